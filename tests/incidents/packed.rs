//! An application that PyInstaller has packed into one file: its code and that of the standard library have no
//! files and no directories.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::common::{Interpreter, Outcome, Program, dump_json, each_interpreter, list, process, text};
use crate::supervised::Group;
use crate::venv;

#[test]
fn by_pyinstaller() {
    // To pack takes half a minute.
    let one = |interpreter: &Interpreter| venv::typical(interpreter) && interpreter.label != "3.9";
    each_interpreter("packed", one, |interpreter| {
        let python = venv::packer(interpreter)?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let packed = pack(&python, dir.path())?;
        let mut command = Command::new(packed);
        command.process_group(0);
        let program = Program::spawn(command, format!("{} packed", interpreter.label), None)?;
        let _group = Group(program.pid());
        program.line("READY ")?;
        // What PyInstaller starts unpacks the program and waits for it in a process of its own.
        let mut last = "it has no child".to_owned();
        let is_explained = || {
            let Some(pid) = child(program.pid()) else { return Ok(false) };
            last = match explained(interpreter, pid) {
                Ok(()) => return Ok(true),
                Err(reason) => reason,
            };
            Ok(false)
        };
        let outcome = program.until("both threads to wait", is_explained);
        outcome.map_err(|e| format!("{e}\n{last}"))
    });
}

fn pack(python: &Interpreter, dir: &std::path::Path) -> Outcome<std::path::PathBuf> {
    let mut command = Command::new(&python.command[0]);
    command.args(["-m", "PyInstaller", "--onefile", "--log-level=WARN", "--name=shop"]);
    for (option, name) in [("--distpath", "."), ("--workpath", "work"), ("--specpath", ".")] {
        command.arg(option).arg(dir.join(name));
    }
    venv::run(command.arg(venv::fixtures().join("../programs/packed.py")))?;
    Ok(dir.join("shop"))
}

fn child(pid: i32) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.trim().parse().ok()
}

fn explained(interpreter: &Interpreter, pid: i32) -> Outcome {
    let report = dump_json(pid, &[])?;
    let process = process(&report, pid)?;
    let version = text(&process["python"], "version");
    if !interpreter.label.starts_with(&version.rsplit_once('.').unwrap_or_default().0[..3]) {
        return Err(format!("it is called {version}"));
    }
    for (name, kind, call) in [("MainThread", "thread", "main"), ("consumer", "queue", "consume")] {
        let thread = list(process, "threads").iter().find(|t| t["name"] == name);
        let thread = thread.ok_or_else(|| format!("no {name} in {process:#}"))?;
        let own = list(thread, "frames").iter().find(|f| f["user"] == true);
        if thread["waits_on"]["kind"] != kind || own.is_none_or(|f| f["function"] != call) {
            return Err(format!("{name} is not in {kind}, called by {call}: {thread:#}"));
        }
    }
    Ok(())
}
