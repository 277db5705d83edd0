//! What is wrong with a whole process, and no thread tells.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{Interpreter, Outcome, Program, dump_json, each_interpreter, state, text, typical};
use crate::judge::{check_says, findings};

/// The sockets of a process that has two of its descriptors left, and of one that has many.
#[test]
fn descriptors_that_run_out() {
    each_interpreter("fd-leak", typical, |interpreter| {
        let found = |limit: &str| -> Outcome<(Vec<Value>, Value)> {
            let (program, truth) = Program::ready(interpreter, "incidents/descriptors.py", &[limit])?;
            let report = dump_json(program.pid(), &[])?;
            check_says(&["--pid", &program.pid().to_string()], 0)?;
            Ok((findings(&report).into_iter().cloned().collect(), truth))
        };
        let (many, _) = found("1000")?;
        if !many.is_empty() {
            return Err(format!("with many left: {many:#?}"));
        }
        let (few, truth) = found("64")?;
        let said = format!("{} of 64 descriptors are open", truth["open"]);
        let sockets = format!("{} of them are sockets", truth["sockets"]);
        match &few[..] {
            [leak]
                if leak["rule"] == "fd-leak"
                    && leak["severity"] == "warning"
                    && text(leak, "summary").starts_with(&said)
                    && leak["evidence"][0] == *sockets =>
            {
                Ok(())
            }
            _ => Err(format!("not {said:?}, {sockets:?}: {few:#?}")),
        }
    });
}

/// Goes on when dropped, so that it can end.
struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn a_process_that_was_stopped() {
    each_interpreter("stopped", typical, |interpreter: &Interpreter| {
        let (program, _) = Program::ready(interpreter, "incidents/descriptors.py", &["1000"])?;
        let pid = Pid::from_raw(program.pid());
        kill(pid, Signal::SIGSTOP).map_err(|e| e.to_string())?;
        let stopped = Stopped(pid);
        program.until("it to stop", || Ok(state(program.pid(), program.pid()) == Some('T')))?;
        let report = dump_json(program.pid(), &[])?;
        let found = findings(&report);
        let right = |f: &Value| {
            f["rule"] == "stopped"
                && f["severity"] == "info"
                && text(f, "summary").contains("stopped by a signal")
                && text(f, "advice").contains("kill -CONT")
        };
        if !matches!(found[..], [one] if right(one)) {
            return Err(format!("stopped: {found:#?}"));
        }
        if report["processes"][0]["threads"][0]["frames"].as_array().is_none_or(Vec::is_empty) {
            return Err(format!("its stack can be read all the same: {report:#}"));
        }
        drop(stopped);
        program.until("it to go on", || Ok(state(program.pid(), program.pid()) != Some('T')))?;
        let report = dump_json(program.pid(), &[])?;
        let found = findings(&report);
        if found.is_empty() { Ok(()) } else { Err(format!("it goes on: {found:#?}")) }
    });
}
