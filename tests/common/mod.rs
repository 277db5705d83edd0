//! What the tests on live processes share: the interpreters of this machine, programs that run
//! under them and are ended whatever happens, and hangscope itself.
//!
//! Nothing here depends on how fast the machine is: everything waits for a condition, and the one
//! generous deadline only turns a hang into a failure that says what it waited for.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const DEADLINE: Duration = Duration::from_secs(120);

/// A failure in words; tests gather them over all interpreters.
pub type Outcome<T = ()> = Result<T, String>;

// ---------------------------------------------------------------- interpreters

#[derive(Clone, Debug)]
pub struct Interpreter {
    /// `3.8`; `3.13.0` (pyenv's, for it differs from later ones); `3.11-system`; `3.15d`; `3.14t`.
    pub label: String,
    pub minor: u32,
    /// What comes before the program's path.
    pub command: Vec<OsString>,
    /// The root directory it runs in, if not ours.
    pub chroot: Option<PathBuf>,
    pub debug: bool,
    pub free_threaded: bool,
}

/// The root that holds Debian sid's interpreters.
pub fn sid_root() -> PathBuf {
    std::env::var_os("HANGSCOPE_SID").unwrap_or_else(|| "/opt/hangscope/sid".into()).into()
}

/// Every interpreter of this machine that the tests know of.
///
/// `HANGSCOPE_REQUIRE` (labels, comma-separated) makes a missing one a failure, see
/// `required_interpreters_are_there`; `HANGSCOPE_ONLY` restricts all tests to some labels.
pub fn interpreters() -> Vec<Interpreter> {
    let mut found = pyenv();
    let system = Path::new("/usr/bin/python3.11");
    if system.exists() {
        found.push(here("3.11-system", 11, system));
    }
    found.extend(in_sid());
    if let Ok(only) = std::env::var("HANGSCOPE_ONLY") {
        found.retain(|interpreter| only.split(',').any(|label| label == interpreter.label));
    }
    found
}

/// The labels that must be there and are not.
pub fn missing_interpreters() -> Vec<String> {
    let found = interpreters();
    let required = std::env::var("HANGSCOPE_REQUIRE").unwrap_or_default();
    required
        .split(',')
        .filter(|label| !label.is_empty() && !found.iter().any(|i| i.label == *label))
        .map(str::to_owned)
        .collect()
}

fn here(label: &str, minor: u32, path: &Path) -> Interpreter {
    Interpreter {
        label: label.into(),
        minor,
        command: vec![path.into()],
        chroot: None,
        debug: false,
        free_threaded: false,
    }
}

/// pyenv's: `3.8` for the newest 3.8.x; from 3.13 on, where patch levels differ, the full version.
fn pyenv() -> Vec<Interpreter> {
    let root = match (std::env::var_os("PYENV_ROOT"), std::env::var_os("HOME")) {
        (Some(root), _) => PathBuf::from(root),
        (None, Some(home)) => Path::new(&home).join(".pyenv"),
        (None, None) => return Vec::new(),
    };
    let mut versions: Vec<(u32, u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir(root.join("versions")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let numbers: Vec<u32> = name.split('.').map_while(|part| part.parse().ok()).collect();
        let path = entry.path().join("bin/python3");
        if let [3, minor, patch] = numbers[..]
            && minor >= 8
            && path.exists()
        {
            versions.push((minor, patch, path));
        }
    }
    versions.sort();
    let mut found: Vec<Interpreter> = Vec::new();
    for (minor, patch, path) in versions {
        let label = if minor < 13 { format!("3.{minor}") } else { format!("3.{minor}.{patch}") };
        found.retain(|older| older.label != label);
        found.push(here(&label, minor, &path));
    }
    found
}

/// Those in the sid root: releases, their debug twins, and free-threaded builds under `/opt/ft`.
fn in_sid() -> Vec<Interpreter> {
    let root = sid_root();
    let chroot = ["/usr/sbin/chroot", "/usr/bin/chroot"].into_iter().find(|path| Path::new(path).exists());
    let (Some(chroot), true) = (chroot, nix::unistd::geteuid().is_root()) else { return Vec::new() };
    let mut found = Vec::new();
    for minor in 13..=15 {
        let builds = [
            (format!("3.{minor}"), format!("/usr/bin/python3.{minor}")),
            (format!("3.{minor}d"), format!("/usr/bin/python3.{minor}d")),
            (format!("3.{minor}t"), format!("/opt/ft/3.{minor}t/bin/python3.{minor}t")),
        ];
        for (label, path) in builds {
            if root.join(&path[1..]).exists() {
                found.push(Interpreter {
                    debug: label.ends_with('d'),
                    free_threaded: label.ends_with('t'),
                    label,
                    minor,
                    command: vec![chroot.into(), root.clone().into(), path.into()],
                    chroot: Some(root.clone()),
                });
            }
        }
    }
    found
}

/// A program of this machine that a test cannot do without. `None`: it is not there, which is said whatever
/// becomes of the test's output; where `HANGSCOPE_REQUIRE_TOOLS=tmux,postgres,…` names it, the test fails.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(&search_path()).map(|dir| dir.join(name)).find(|file| file.exists());
    if found.is_none() {
        let required = std::env::var("HANGSCOPE_REQUIRE_TOOLS").unwrap_or_default();
        assert!(!required.split(',').any(|tool| tool == name), "{name} is required and not there");
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Not a macro: the output of tests that pass is thrown away.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: there is no {name} on this machine");
    }
    found
}

/// Where programs are; Debian keeps PostgreSQL's off the `PATH`.
pub fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let directories = std::env::split_paths(&path).chain(versions.map(|version| version.path().join("bin")));
    std::env::join_paths(directories).unwrap_or(path)
}

static MACHINE: RwLock<()> = RwLock::new(());

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the other tests of this binary from running: for what is judged by a share of the looks
/// that succeed, which depends on whether the CPUs are fought for.
pub fn alone() -> impl Drop {
    struct Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>);
    impl Drop for Alone {
        fn drop(&mut self) {
            ALONE.set(false);
        }
    }
    let guard = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    ALONE.set(true);
    Alone(guard)
}

/// The interpreters of tests that take long: one of each kind of frames, locks and value stacks, unless
/// `HANGSCOPE_ALL=1` or `HANGSCOPE_ONLY` asks for others.
pub fn typical(interpreter: &Interpreter) -> bool {
    let asked = ["HANGSCOPE_ALL", "HANGSCOPE_ONLY"].iter().any(|name| std::env::var_os(name).is_some());
    let plain = !interpreter.debug && !interpreter.free_threaded;
    plain && (asked || ["3.8", "3.11", "3.12", "3.14"].contains(&interpreter.label.as_str()))
}

/// Runs a test under every interpreter that `wanted` accepts, and fails once, with all failures.
pub fn each_interpreter(
    name: &str,
    wanted: impl Fn(&Interpreter) -> bool,
    test: impl Fn(&Interpreter) -> Outcome,
) {
    let interpreters: Vec<Interpreter> = interpreters().into_iter().filter(wanted).collect();
    assert!(!interpreters.is_empty(), "{name}: no interpreter found");
    let mut failures = Vec::new();
    for interpreter in &interpreters {
        let _shared = (!ALONE.get()).then(|| MACHINE.read().unwrap_or_else(PoisonError::into_inner));
        let outcome = catch_unwind(AssertUnwindSafe(|| test(interpreter)));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default())
        });
        if let Err(reason) = outcome {
            failures.push((&interpreter.label, reason));
        }
    }
    if failures.is_empty() {
        return;
    }
    let labels: Vec<&str> = failures.iter().map(|(label, _)| label.as_str()).collect();
    let mut text =
        format!("{name}: failed under {} of {}: {}\n", labels.len(), interpreters.len(), labels.join(", "));
    for (label, reason) in &failures {
        text += &format!("\n──── {label}\n{}\n", shortened(name, label, reason));
    }
    panic!("{text}");
}

/// Long accounts go to a file, their beginning into the failure message.
fn shortened(name: &str, label: &str, reason: &str) -> String {
    const LINES: usize = 60;
    if reason.lines().count() <= LINES {
        return reason.into();
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{label}.txt"));
    let written = fs::write(&file, reason).map_or_else(|e| e.to_string(), |()| file.display().to_string());
    let head: Vec<&str> = reason.lines().take(LINES).collect();
    format!("{}\n… the rest: {written}", head.join("\n"))
}

// ---------------------------------------------------------------- Python embedded

/// Builds `fixtures/programs/embed.c` against this interpreter, as a program that goes by another
/// name: linked to libpython, or with libpython inside and stripped. `None`, with a word printed,
/// where compiler, headers or library are not there.
pub fn embedded(interpreter: &Interpreter, statically: bool) -> Outcome<Option<Interpreter>> {
    let ask = "import sysconfig as s; v = s.get_config_var; \
               print(v('INCLUDEPY'), v('LIBDIR'), v('LIBPL'), v('LDVERSION'), v('LIBS'), v('SYSLIBS'), v('MODLIBS'), sep='\\n')";
    let output =
        Command::new(&interpreter.command[0]).args(["-c", ask]).output().map_err(|e| e.to_string())?;
    let answer = lossy(&output.stdout);
    let lines: Vec<&str> = answer.lines().collect();
    let [include, lib_dir, config_dir, version, libraries @ ..] = &lines[..] else {
        return Err(format!("sysconfig says {answer:?}"));
    };
    let archive = Path::new(config_dir).join(format!("libpython{version}.a"));
    let shared = Path::new(lib_dir).join(format!("libpython{version}.so"));
    let library = if statically { &archive } else { &shared };
    let compiler = Command::new("cc").arg("--version").output().is_ok();
    if !compiler || !Path::new(include).join("Python.h").exists() || !library.exists() {
        eprintln!("embedded in {}: no compiler, headers or {}", interpreter.label, library.display());
        return Ok(None);
    }
    let kind = if statically { "static" } else { "shared" };
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("embed-{}-{kind}", interpreter.label));
    fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
    let program = directory.join("newsroom-worker");
    let mut command = Command::new("cc");
    command.arg("-o").arg(&program).arg(format!("-I{include}"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/programs/embed.c"));
    command.arg(library).arg(format!("-Wl,-rpath,{lib_dir}")).args(["-pthread", "-s"]);
    if statically {
        // Extension modules find the interpreter's functions in the program.
        command.arg("-Wl,--export-dynamic");
        command.args(libraries.iter().flat_map(|words| words.split_whitespace()));
    }
    let run = |command: &mut Command| command.output().map_err(|e| format!("cc: {e}"));
    let mut built = run(&mut command)?;
    if !built.status.success() {
        // Debian's archive is not position-independent.
        built = run(command.arg("-no-pie"))?;
    }
    if !built.status.success() {
        return Err(format!("{command:?}: {}", lossy(&built.stderr)));
    }
    let label = format!("{} {kind}", interpreter.label);
    Ok(Some(Interpreter { label, command: vec![program.into()], ..interpreter.clone() }))
}

// ---------------------------------------------------------------- programs

/// A program of `fixtures/programs` that runs; dropped, it is killed and waited for.
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Where its text was copied to, if it runs in another root.
    copied: Option<PathBuf>,
    what: String,
}

impl Program {
    pub fn start(interpreter: &Interpreter, name: &str, args: &[&str]) -> Outcome<Program> {
        Program::start_with(interpreter, name, args, &[])
    }

    /// Starts `fixtures/programs/NAME`, or `fixtures/NAME` if that has a directory, with these
    /// variables. What lies beside it can be imported, in another root too.
    pub fn start_with(
        interpreter: &Interpreter,
        name: &str,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Outcome<Program> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let source =
            if name.contains('/') { fixtures.join(name) } else { fixtures.join("programs").join(name) };
        let mut copied = None;
        let path = match &interpreter.chroot {
            None => source,
            Some(root) => {
                let inside = Path::new("/tmp").join(unique_name());
                let outside = root.join(inside.strip_prefix("/").expect("absolute"));
                copy_programs(source.parent().expect("it has a directory"), &outside)
                    .map_err(|e| format!("{}: {e}", outside.display()))?;
                copied = Some(outside);
                inside.join(source.file_name().expect("it has a name"))
            }
        };
        let what = format!("{} {name} {}", interpreter.label, args.join(" "));
        let mut command = Command::new(&interpreter.command[0]);
        command.args(&interpreter.command[1..]).arg(path).args(args).envs(variables.iter().copied());
        Program::spawn(command, what, copied)
    }

    /// Starts any Python program; `copied` is a directory that goes with it.
    pub fn spawn(mut command: Command, what: String, copied: Option<PathBuf>) -> Outcome<Program> {
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("PYTHON") {
                command.env_remove(key);
            }
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{what}: {e}"))?;

        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (mut pipe, kept) = (child.stderr.take().expect("piped"), Arc::clone(&stderr));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                kept.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Program { stdin: child.stdin.take(), child, lines, stderr, copied, what })
    }

    /// Starts it and waits for its `READY {…}`.
    pub fn ready(interpreter: &Interpreter, name: &str, args: &[&str]) -> Outcome<(Program, Value)> {
        let program = Program::start(interpreter, name, args)?;
        let truth = program.line("READY ")?;
        Ok((program, truth))
    }

    /// Starts it, waits for its `READY {…}` and until its main thread (Python's) is blocked in reading.
    pub fn settled(interpreter: &Interpreter, name: &str, args: &[&str]) -> Outcome<(Program, Value)> {
        let (program, truth) = Program::ready(interpreter, name, args)?;
        let main = truth["main"].as_i64().map_or(program.pid(), |tid| tid.try_into().expect("a tid fits"));
        program.until("its main thread to read its standard input", || {
            Ok(system_call(program.pid(), main).is_some_and(|call| call.is_read_of_stdin()))
        })?;
        Ok((program, truth))
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().expect("a pid fits")
    }

    pub fn is_alive(&self) -> bool {
        !matches!(state(self.pid(), self.pid()), None | Some('Z' | 'X'))
    }

    /// The JSON after `prefix` on the next line that begins so.
    pub fn line(&self, prefix: &str) -> Outcome<Value> {
        let end = Instant::now() + DEADLINE;
        loop {
            let line = match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return Err(self.failed(&format!("no {prefix:?} in time"))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.failed(&format!("ended before its {prefix:?}")));
                }
            };
            if let Some(json) = line.strip_prefix(prefix) {
                return serde_json::from_str(json).map_err(|e| self.failed(&format!("{prefix:?}: {e}")));
            }
        }
    }

    pub fn send(&mut self, text: &str) -> Outcome {
        let stdin = self.stdin.as_mut().expect("open until dropped");
        stdin.write_all(text.as_bytes()).map_err(|e| self.failed(&e.to_string()))
    }

    /// Waits until `condition` holds.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> Outcome<bool>) -> Outcome {
        let mut result = Ok(false);
        let came = within(|| {
            result = condition();
            !matches!(result, Ok(false))
        });
        if came { result.map(drop) } else { Err(self.failed(&format!("waited in vain for {what}"))) }
    }

    /// A failure message with what the program has said on its standard error.
    pub fn failed(&self, reason: &str) -> String {
        let stderr = self.stderr.lock().unwrap();
        format!("{}: {reason}\nits standard error: {}", self.what, String::from_utf8_lossy(&stderr))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(dir) = &self.copied {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// The Python files of one directory.
fn copy_programs(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "py") {
            fs::copy(&path, to.join(path.file_name().expect("it has a name")))?;
        }
    }
    Ok(())
}

fn unique_name() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("hangscope-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

// ---------------------------------------------------------------- what /proc says

pub fn tids(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The state letter of a thread.
pub fn state(pid: i32, tid: i32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

/// Who traces it; 0 if nobody does.
pub fn tracer(pid: i32, tid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()
}

/// Time on a CPU, time waiting for one, and how often it ran: unchanged while it sleeps.
pub fn schedstat(pid: i32, tid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()
}

/// CPU time of all threads, nanoseconds.
pub fn cpu_time(pid: i32) -> u64 {
    let of = |tid| schedstat(pid, tid)?.split(' ').next()?.parse::<u64>().ok();
    tids(pid).into_iter().filter_map(of).sum()
}

pub struct SystemCall {
    pub number: i64,
    pub first: u64,
}

impl SystemCall {
    pub fn is_read_of_stdin(&self) -> bool {
        self.number == nix::libc::SYS_read && self.first == 0
    }
    pub fn is_sleep(&self) -> bool {
        [nix::libc::SYS_nanosleep, nix::libc::SYS_clock_nanosleep].contains(&self.number)
    }
}

/// The system call a thread is blocked in; `None` while it runs.
pub fn system_call(pid: i32, tid: i32) -> Option<SystemCall> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let first = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    Some(SystemCall { number, first })
}

/// Whether it comes true before the deadline.
pub fn within(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DEADLINE;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

// ---------------------------------------------------------------- hangscope

/// The program under test: this build's, or the one that `HANGSCOPE_BIN` names.
pub fn binary() -> OsString {
    std::env::var_os("HANGSCOPE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_hangscope").into())
}

/// Whether the program under test is an optimised build.
pub fn optimised() -> bool {
    !cfg!(debug_assertions) || std::env::var_os("HANGSCOPE_BIN").is_some()
}

/// Runs hangscope to its end.
pub fn hangscope(args: &[&str]) -> Output {
    let mut command = assert_cmd::Command::new(binary());
    command.args(args).env("NO_COLOR", "1").timeout(DEADLINE);
    command.output().unwrap_or_else(|e| panic!("hangscope {}: {e}", args.join(" ")))
}

/// `hangscope dump --json` of one process: the whole report.
pub fn dump_json(pid: i32, extra: &[&str]) -> Outcome<Value> {
    let pid = pid.to_string();
    let mut args = vec!["dump", "--pid", &pid, "--json"];
    args.extend(extra);
    let output = hangscope(&args);
    let said = || format!("hangscope {}\nits standard error: {}", args.join(" "), lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{} from {}", output.status, said()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("no JSON ({e}) from {}", said()))
}

/// The part of a report that is about this process.
pub fn process(report: &Value, pid: i32) -> Outcome<&Value> {
    let processes = list(report, "processes");
    processes
        .iter()
        .find(|process| process["pid"] == pid)
        .ok_or_else(|| format!("pid {pid} is not in {report}"))
}

/// A list of the report; empty if it is not there.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
