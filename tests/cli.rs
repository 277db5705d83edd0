//! What a user types, and what comes back: sessions with the binary itself.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

/// hangscope's answer: exit code, stdout, stderr.
fn hangscope(args: &[&str]) -> (i32, String, String) {
    answer(Command::new(env!("CARGO_BIN_EXE_hangscope")).args(args).output().unwrap())
}

fn answer(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("it ended by itself");
    (code, text(output.stdout), text(output.stderr))
}

/// A program that is ended with the test.
struct Running(Child);

impl Running {
    fn python(program: &str) -> Running {
        // Not a pyenv shim, which is a shell for a while.
        let python = ["/usr/bin/python3", "/usr/local/bin/python3"];
        let python = python.into_iter().find(|p| std::path::Path::new(p).exists()).unwrap_or("python3");
        let mut running = Running::start(Command::new(python).args(["-c", program]));
        let mut line = String::new();
        BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "READY\n");
        running
    }

    fn start(command: &mut Command) -> Running {
        Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const WAITS: &str = "import sys; print('READY', flush=True); sys.stdin.read()";
/// No kernel gives it to a process (PID_MAX_LIMIT is 2^22).
const GONE: &str = "99999999";

#[test]
fn what_is_promised_and_not_built_is_refused_with_a_word() {
    for flag in ["-n", "--native", "-c", "--core", "--executable", "--tasks"] {
        let (code, _, err) = hangscope(&["dump", "1", flag]);
        assert_eq!(code, 2, "{flag}");
        assert!(err.starts_with(&format!("hangscope: {flag} is not built yet")), "{err}");
    }
    let (code, _, err) = hangscope(&["dump", "--no-such-flag"]);
    assert_eq!(code, 2);
    assert!(err.contains("unexpected argument"), "{err}");
}

#[test]
fn wrong_usage() {
    for args in [
        &["dump"][..],
        &["dump", "x"],
        &["dump", "0"],
        &["dump", "--port", "0"],
        &["dump", "--name", ""],
        &["dump", "--pause", "--nonblocking", "1"],
        &["dump", "--capture", "x", "1"],
        &[],
    ] {
        let (code, out, err) = hangscope(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(!err.is_empty(), "{args:?}");
    }
}

#[test]
fn one_of_several_is_gone() {
    let target = Running::python(WAITS);
    let (code, out, err) = hangscope(&["dump", &target.pid(), GONE]);
    assert_eq!(code, 3, "{out}{err}");
    assert!(out.contains(&format!("pid {}", target.pid())) && out.contains("<module>"), "{out}");
    assert!(err.contains(&format!("process {GONE} does not exist")), "{err}");
    let (code, out, err) = hangscope(&["dump", "--json", "--pid", &target.pid(), "--name", "no such name"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("no Python process has \"no such name\""), "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["processes"].as_array().unwrap().len(), 1);
    assert_eq!(report["skipped"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_not_python() {
    let target = Running::start(Command::new("cat").arg0("cat"));
    // Just after `exec` a process has no command line yet.
    let command = format!("/proc/{}/cmdline", target.pid());
    let until = Instant::now() + DEADLINE;
    while std::fs::read(&command).unwrap() != b"cat\0" {
        assert!(Instant::now() < until, "it does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (code, out, err) = hangscope(&["dump", &target.pid()]);
    assert_eq!(code, 3);
    assert!(err.contains("is not a Python that hangscope can read (cat)"), "{err}");
    // The same reason stands once for all images, and each remedy on its own line.
    assert_eq!(err.matches("no dynamic symbol _PyRuntime").count(), 1, "{err}");
    assert!(!out.contains("\\n") && out.lines().any(|l| l.trim() == "list what runs: hangscope ps"), "{out}");
    let (code, _, err) = hangscope(&["dump", GONE]);
    assert_eq!(code, 3);
    assert_eq!(
        err,
        format!("hangscope: process {GONE} does not exist\n  do: list what runs: hangscope ps\n")
    );
}

#[test]
fn a_zombie_is_called_one() {
    let program = "import subprocess, sys\nkept = subprocess.Popen(['true'])\n\
                   print('READY', flush=True)\nsys.stdin.read()";
    let target = Running::python(program);
    let children = format!("/proc/{0}/task/{0}/children", target.pid());
    let child = std::fs::read_to_string(children).unwrap().trim().to_owned();
    let until = Instant::now() + DEADLINE;
    while !std::fs::read_to_string(format!("/proc/{child}/status")).unwrap().contains("zombie") {
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (code, _, err) = hangscope(&["dump", &child]);
    assert_eq!(code, 3);
    assert!(err.contains("its parent") && err.contains("(zombie)"), "{err}");
    assert!(err.contains(&format!("look at its parent: hangscope dump --pid {}", target.pid())), "{err}");
}

#[test]
fn a_kernel_thread_is_in_no_system_call() {
    let kthreadd = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if kthreadd != "kthreadd\n" {
        eprintln!("no threads of the kernel are to be seen here");
        return;
    }
    let (code, out, err) = hangscope(&["dump", "2"]);
    assert_eq!(code, 3);
    assert!(err.contains("is a thread of the kernel"), "{err}");
    assert!(!out.contains("read(fd"), "{out}");
}

#[test]
fn one_that_is_just_starting_is_told_from_what_is_no_python() {
    // As it stands between exec and the interpreter: stopped by its first instruction.
    let python = ["/usr/bin/python3", "/usr/local/bin/python3"]
        .into_iter()
        .find(|p| std::path::Path::new(p).exists())
        .unwrap_or("python3");
    for _ in 0..20 {
        let target = Running::start(Command::new(python).args(["-c", WAITS]));
        let (code, out, err) = hangscope(&["dump", &target.pid()]);
        match code {
            0 => assert!(out.contains("Thread "), "{out}"),
            3 => assert!(err.contains("just starting") || err.contains("does not exist"), "{err}"),
            other => panic!("{other}: {err}"),
        }
    }
}

#[test]
fn whoever_has_seen_enough_closes_the_pipe() {
    let target = Running::python(WAITS);
    let script = format!(
        "{} dump {} | head -1; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_hangscope"),
        target.pid()
    );
    let (code, out, err) = answer(Command::new("bash").args(["-c", &script]).output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.ends_with("\n0\n"), "{out}");
}

#[test]
fn a_file_that_cannot_be_written_loses_no_report() {
    let target = Running::python(WAITS);
    let (code, out, err) = hangscope(&["dump", &target.pid(), "--save", "/nonexistent/x.capture"]);
    assert_eq!(code, 3);
    assert!(out.contains("<module>"), "{out}");
    assert!(err.contains("could not be written to /nonexistent/x.capture"), "{err}");
}
