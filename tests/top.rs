//! `hangscope top`, driven in tmux as a person would, and its one screen as text.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{DEADLINE, Interpreter, Program, binary, hangscope, interpreters, lossy};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A terminal of its own; dropped, it is gone with all that runs in it.
struct Terminal {
    socket: String,
    _dir: tempfile::TempDir,
}

impl Terminal {
    /// `None`: there is no tmux here.
    fn open(columns: u32, rows: u32) -> Option<Terminal> {
        common::tool("tmux")?;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("tmux").to_string_lossy().into_owned();
        let terminal = Terminal { socket, _dir: dir };
        let (x, y) = (columns.to_string(), rows.to_string());
        let shell = "env -i PATH=\"$PATH\" HOME=/tmp LANG=C.UTF-8 TERM=\"$TERM\" bash --norc --noprofile -i";
        terminal.tmux(&["-f", "/dev/null", "-u", "new-session", "-d", "-x", &x, "-y", &y, shell]);
        terminal.line("PS1='READY$ '");
        terminal.until("the prompt", |screen| screen.lines().any(|l| l.starts_with("READY$")));
        Some(terminal)
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux").args(["-S", &self.socket]).args(args).output().expect("tmux runs");
        assert!(output.status.success(), "tmux {args:?}: {}", lossy(&output.stderr));
        lossy(&output.stdout)
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.keys(&["Enter"]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn until(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let screen = self.screen();
            if condition(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "waited in vain for {what}:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn top(&self, args: &str) {
        self.line("clear; echo BEFORE");
        // What is typed before the shell has its prompt again is echoed in the midst of it.
        self.until("the prompt", |screen| {
            let lines: Vec<&str> = screen.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
            lines == ["BEFORE", "READY$"]
        });
        self.line(&format!("{} top {args}; echo CODE=$?", Path::new(&binary()).display()));
    }

    /// The command is over with this code, and the terminal is as it was.
    fn is_restored(&self, code: i32) {
        let wanted = format!("CODE={code}");
        // Where tmux puts the cursor after a change of size is its own affair: not always on a line of its own.
        let screen = self.until(&wanted, |screen| screen.contains(&wanted));
        assert!(screen.contains("BEFORE"), "the screen is not the one from before:\n{screen}");
        self.line("clear; stty -a");
        let settings = self.until("the terminal's settings", |screen| screen.contains("echoctl"));
        for flag in [" icanon", " echo ", " isig", " opost"] {
            assert!(settings.replace('\n', " ").contains(flag), "{flag} is off:\n{settings}");
        }
        assert_eq!(self.tmux(&["display-message", "-p", "#{cursor_flag} #{alternate_on}"]).trim(), "1 0");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}

fn python() -> Interpreter {
    let all = interpreters();
    let wanted = all.iter().find(|i| i.label == "3.12");
    wanted.or(all.last()).expect("there is an interpreter").clone()
}

fn program(args: &[&str]) -> Program {
    let program = Program::start(&python(), "incidents/watched.py", args).expect("it starts");
    program.line("READY ").expect("it is ready");
    program
}

/// The first row of the functions.
fn first_row(screen: &str) -> Option<&str> {
    screen.lines().skip_while(|l| !l.contains("Function (file:line)")).nth(1)
}

fn top_of(terminal_pid: &str) -> Option<i32> {
    // The child of the shell in the terminal.
    let children =
        std::fs::read_to_string(format!("/proc/{terminal_pid}/task/{terminal_pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn the_burning_function_is_shown_and_q_gives_the_terminal_back() {
    for (columns, rows) in [(80, 24), (160, 50)] {
        let Some(terminal) = Terminal::open(columns, rows) else { return };
        let program = program(&["burn"]);
        terminal.top(&format!("{} --delay 0.2", program.pid()));
        let screen = terminal
            .until("the burning function", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
        assert!(screen.contains(&format!("pid {}", program.pid())) && screen.contains("GIL"), "{screen}");
        assert!(screen.lines().count() <= rows as usize && screen.contains("q quit"), "{screen}");
        terminal.keys(&["q"]);
        terminal.is_restored(0);
    }
}

#[test]
fn keys_do_what_they_say() {
    let Some(terminal) = Terminal::open(80, 24) else { return };
    let program = program(&["burn"]);
    terminal.top(&format!("{} --delay 0.2", program.pid()));
    terminal.until("the burning function", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
    // By total time, who called it stands first: the other numbers are the same for both.
    terminal.keys(&["4"]);
    terminal.until("another order", |s| {
        first_row(s).is_some_and(|row| row.contains("<module>") || row.contains("burn"))
    });
    terminal.keys(&["1", "Right"]);
    let stack = terminal.until("the stack", |s| s.contains("stand so"));
    assert!(stack.contains("burn (") && stack.contains("<module> ("), "{stack}");
    terminal.keys(&["Escape"]);
    terminal.until("the functions", |s| s.contains("Function (file:line)"));
    terminal.keys(&["t"]);
    let threads = terminal.until("the threads", |s| s.contains("Stack of") && s.contains("consumer"));
    assert!(threads.contains("MainThread"), "{threads}");
    terminal.keys(&["e"]);
    terminal.until("no loop", |s| s.contains("no thread runs an event loop"));
    terminal.keys(&["?"]);
    terminal.until("the help", |s| s.contains("begin to count anew"));
    terminal.keys(&["f", "/"]);
    terminal.keys(&["n", "o", "n", "e", "s", "u", "c", "h", "Enter"]);
    terminal.until("nothing", |s| s.contains("no function has that"));
    terminal.keys(&["Escape"]);
    terminal.until("everything again", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
    terminal.keys(&["Space"]);
    let frozen = terminal.until("the frozen screen", |s| s.contains("FROZEN"));
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(terminal.screen(), frozen);
    terminal.keys(&["Space"]);
    terminal.until("it to go on", |s| !s.contains("FROZEN"));
    terminal.tmux(&["resize-window", "-x", "120", "-y", "40"]);
    terminal.until("the new size", |s| {
        s.lines().count() == 40 && s.lines().last().is_some_and(|l| l.contains("q quit"))
    });
    terminal.keys(&["C-c"]);
    terminal.is_restored(130);
}

#[test]
fn a_finding_turns_the_line_red_and_enter_shows_it() {
    let Some(terminal) = Terminal::open(80, 24) else { return };
    let program = program(&["stuck"]);
    terminal.top(&format!("{} --delay 0.2", program.pid()));
    let line = terminal.until("the finding", |s| s.contains("Enter"));
    assert!(line.lines().nth(2).is_some_and(|l| l.contains("loop-")), "{line}");
    // Red behind it, once it is critical.
    let is_red = || {
        let shown = terminal.tmux(&["capture-pane", "-p", "-e"]);
        shown.lines().nth(2).is_some_and(|line| line.contains("[41m") || line.contains("[48;5;1m"))
    };
    assert!(common::within(is_red), "it is not red: {}", terminal.screen());
    terminal.keys(&["Enter"]);
    terminal.until("the whole finding", |s| s.contains("EVENT LOOP BLOCKED") && s.contains("readline"));
    terminal.keys(&["Escape", "e"]);
    terminal.until("the event loop", |s| s.contains("asyncio, blocked") && s.contains("main ("));
    drop(program);
    terminal.is_restored(0);
}

#[test]
fn the_terminal_is_given_back_after_signals_and_a_panic() {
    let Some(terminal) = Terminal::open(80, 24) else { return };
    let program = program(&["burn"]);
    let shell = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]).trim().to_owned();
    let start = || {
        terminal.top(&format!("{} --delay 0.2", program.pid()));
        terminal.until("the screen", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
        top_of(&shell).expect("it runs")
    };
    let pid = start();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    terminal.is_restored(143);

    start();
    terminal.keys(&["C-z"]);
    terminal.until("the shell", |s| s.contains("Stopped") && s.contains("BEFORE"));
    terminal.line("fg");
    terminal.until("the screen again", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
    // From outside, too.
    let pid = top_of(&shell).expect("it runs");
    kill(Pid::from_raw(pid), Signal::SIGTSTP).unwrap();
    terminal.until("the shell", |s| s.contains("Stopped") && s.contains("BEFORE"));
    terminal.line("fg");
    terminal.until("the screen again", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
    // And without a word: the shell has its own settings of the terminal meanwhile.
    let pid = top_of(&shell).expect("it runs");
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    assert!(common::within(|| common::state(pid, pid) == Some('T')), "it is not stopped");
    terminal.until("the shell", |s| s.contains("Stopped"));
    terminal.line("stty sane; clear");
    terminal.line("fg");
    terminal.until("the screen again", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
    // Its keys need no Enter, and are not echoed.
    terminal.keys(&["t"]);
    terminal.until("the threads", |s| s.contains("Stack of"));
    terminal.keys(&["q"]);
    terminal.until("the shell", |s| s.contains("fg"));
    // `fg` has the code now.
    terminal.line("echo CODE=$?");
    terminal.is_restored(0);

    if !common::optimised() {
        start();
        terminal.keys(&["C-p"]);
        terminal.until("the message", |s| s.contains("panicked at"));
        terminal.is_restored(101);
    }
}

/// The `hangscope top` of this process, wherever it runs.
fn top_of_target(pid: i32) -> Option<i32> {
    let pid = pid.to_string();
    let is_it = |process: &i32| {
        let command = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        args.first().is_some_and(|a| a.ends_with(b"hangscope")) && args.get(2) == Some(&pid.as_bytes())
    };
    let all = std::fs::read_dir("/proc").expect("/proc is there").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_it)
}

#[test]
fn a_terminal_that_vanishes_ends_it() {
    // In its shell's session it gets a signal; in one of its own it only has the terminal itself.
    for session in ["", "setsid --wait "] {
        let Some(terminal) = Terminal::open(80, 24) else { return };
        let dir = tempfile::tempdir().unwrap();
        let code = dir.path().join("code");
        let program = program(&["burn"]);
        // No refresh for a minute: that it cannot draw is not what ends it. The shell lives to tell the code.
        terminal.line(&format!(
            "(trap '' HUP; {session}{} top {} --delay 60; echo CODE=$? > {})",
            Path::new(&binary()).display(),
            program.pid(),
            code.display()
        ));
        terminal.until("the screen", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
        let pid = top_of_target(program.pid()).expect("it runs");
        drop(terminal);
        let end = Instant::now() + DEADLINE;
        let said = loop {
            let said = std::fs::read_to_string(&code).unwrap_or_default();
            if said.ends_with('\n') {
                break said;
            }
            if Instant::now() > end {
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
                panic!("{session}top outlives its terminal");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(said, "CODE=129\n", "{session}top");
    }
}

#[test]
fn s_saves_what_the_screen_shows() {
    let Some(terminal) = Terminal::open(80, 24) else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = program(&["burn"]);
    terminal.line(&format!("cd {}", dir.path().display()));
    terminal.top(&format!("{} --delay 0.2", program.pid()));
    terminal.until("the burning function", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
    for n in 1..=2 {
        terminal.keys(&["s"]);
        terminal.until("its word", |s| s.contains("saved to hangscope-top-"));
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|f| f.path()).collect();
        assert_eq!(files.len(), n, "each is a new one: {files:?}");
        for file in files {
            let saved: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&file).unwrap()).expect("it is complete");
            assert_eq!(saved["pids"], serde_json::json!([program.pid()]), "{saved}");
            assert_eq!(saved["functions"][0]["name"], "burn", "{saved}");
            assert!(saved["samples"].as_u64().is_some_and(|n| n > 0), "{saved}");
        }
        // Its word goes with the next key, so that the second one is seen to come.
        terminal.keys(&["t", "f"]);
        terminal.until("no word", |s| !s.contains("saved to"));
    }
    terminal.keys(&["q"]);
    terminal.is_restored(0);
}

#[test]
fn one_screen_as_text() {
    let program = program(&["burn"]);
    let output = hangscope(&["top", "--once", "--delay", "0.3", &program.pid().to_string()]);
    let text = lossy(&output.stdout);
    assert!(output.status.success(), "{}", lossy(&output.stderr));
    assert!(first_row(&text).is_some_and(|row| row.contains("burn (")), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    // Without a terminal there is no live view.
    let output = hangscope(&["top", &program.pid().to_string()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(lossy(&output.stderr).contains("--once"), "{}", lossy(&output.stderr));
}

#[test]
fn what_cannot_be_read_is_said_at_once() {
    let mut sleep = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = sleep.id().to_string();
    let output = hangscope(&["top", "--once", &pid]);
    let checks = || {
        assert_eq!(output.status.code(), Some(3), "{}", lossy(&output.stderr));
        assert!(lossy(&output.stderr).contains("is not a Python"), "{}", lossy(&output.stderr));
        let Some(terminal) = Terminal::open(80, 24) else { return };
        terminal.top(&pid);
        terminal.until("the reason", |s| s.contains("is not a Python"));
        terminal.is_restored(3);
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(checks));
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_target_that_ends_ends_it() {
    let Some(terminal) = Terminal::open(80, 24) else { return };
    let program = program(&["burn"]);
    terminal.top(&format!("{} --delay 0.2", program.pid()));
    terminal.until("the burning function", |s| first_row(s).is_some_and(|row| row.contains("burn (")));
    drop(program);
    let screen = terminal.until("its end", |s| s.contains("CODE=0"));
    assert!(screen.contains("has ended"), "{screen}");
    terminal.is_restored(0);
}

#[test]
fn children_are_followed() {
    let Some(terminal) = Terminal::open(80, 24) else { return };
    let python = python().command[0].to_string_lossy().into_owned();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("parent.py");
    // The child ends with its parent.
    let child =
        "import os\nparent = os.getppid()\ndef toil():\n  while os.getppid() == parent: pass\ntoil()\n";
    let text = format!("import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child:?}])\n");
    std::fs::write(&file, text).unwrap();
    terminal.top(&format!("-s --delay 0.2 -- {python} {}", file.display()));
    let screen = terminal.until("the child", |s| {
        s.contains("and 1 more") && first_row(s).is_some_and(|row| row.contains("toil ("))
    });
    assert!(screen.contains("threads 2"), "{screen}");
    terminal.keys(&["t"]);
    terminal.until("both", |s| s.contains("PID     TID"));
    terminal.keys(&["q"]);
    terminal.is_restored(0);
}

#[test]
fn a_command_is_started_and_its_code_is_ours() {
    let python = python().command[0].to_string_lossy().into_owned();
    let burn = "def burn():\n  while True: pass\nburn()";
    // As long as it takes Python to start on this machine.
    let mut said = String::new();
    for delay in ["0.3", "1", "4", "16"] {
        let output = hangscope(&["top", "--once", "--delay", delay, "--", &python, "-c", burn]);
        said = lossy(&output.stdout) + &lossy(&output.stderr);
        if said.contains("burn (<string>") {
            break;
        }
    }
    assert!(said.contains("burn (<string>"), "{said}");
    let Some(terminal) = Terminal::open(80, 24) else { return };
    terminal
        .top(&format!("-- {python} -c 'import time; print(\"said\"); time.sleep(1); raise SystemExit(7)'"));
    terminal.is_restored(7);
}
