//! What the OS says of a process as a whole: the reader of `/proc/PID`.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::FileStat;
use nix::time::{ClockId, clock_gettime};

use super::access::{self, AccessError};
use super::facts::ProcessFacts;
use super::files::{self, ProcDir, numbers, with_path};
use super::net;
use super::parse;
use super::probe::{ticks_per_second, with_room};
pub use super::threads::{thread_facts, thread_facts_of};
use crate::snapshot::Child;

/// Longest command line that we read.
const COMMAND_CAP: u64 = 128 * 1024;

/// All facts of one process but those of its threads. Fails only when there is no such process; whatever else
/// cannot be learned is `None`.
pub fn process(pid: i32) -> Result<ProcessFacts, AccessError> {
    let mut facts = standing(pid)?;
    match net::sockets(pid) {
        Ok(found) => (facts.listens, facts.connections) = (Some(found.listens), Some(found.connections)),
        Err(error) => facts.problems.push(format!("its sockets cannot be listed: {error}")),
    }
    Ok(facts)
}

/// The same without its sockets.
pub fn standing(pid: i32) -> Result<ProcessFacts, AccessError> {
    let dir = with_room(|| ProcDir::process(pid)).map_err(|_| access::missing(pid))?;
    let mut buffer = [0; files::SMALL];
    let text = dir.read(c"stat", &mut buffer).map_err(|_| access::missing(pid))?;
    let mut facts = ProcessFacts { pid, ns_pid: pid, ..ProcessFacts::default() };
    if let Some(stat) = parse::stat(text) {
        facts.comm = String::from_utf8_lossy(stat.comm).into_owned();
        facts.state = Some(stat.state);
        facts.parent = (stat.parent > 0).then_some(stat.parent);
        facts.rss = Some(stat.pages.saturating_mul(page_size()));
        facts.uptime = uptime(stat.started);
    }
    if let Ok(status) = dir.read(c"status", &mut buffer) {
        let last = |name| parse::field(status, name).and_then(|line| parse::numbers(line).last());
        facts.ns_pid = last("NSpid").map_or(pid, |id| id as i32);
        facts.caught = parse::field(status, "SigCgt")
            .and_then(|mask| u64::from_str_radix(std::str::from_utf8(mask).ok()?, 16).ok())
            .unwrap_or(0);
        facts.uid =
            parse::field(status, "Uid").and_then(|line| parse::numbers(line).next()).map(|uid| uid as u32);
        facts.caught_signals = parse::field(status, "SigCgt").and_then(parse::hex);
    }
    facts.command = command(&dir).unwrap_or_default();
    facts.fd_limit = dir.read(c"limits", &mut buffer).ok().and_then(parse::open_files_limit);
    facts.open_fds = open_fds(&dir, pid);
    facts.cwd =
        dir.link(c"cwd").ok().map(|cwd| cwd.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(cwd));
    (facts.executable, facts.executable_replaced) = executable(&dir);
    facts.children = children(&dir, pid);
    Ok(facts)
}

/// The arguments of a process, as it shows them; masks nothing.
pub fn command(dir: &ProcDir) -> Option<Vec<String>> {
    dir.read_all(c"cmdline", COMMAND_CAP).ok().map(|bytes| parse::command_line(&bytes))
}

/// The same by pid; empty for what is gone or has none.
pub fn command_of(pid: i32) -> Vec<String> {
    with_room(|| ProcDir::process(pid)).ok().and_then(|dir| command(&dir)).unwrap_or_default()
}

/// The executable without the mark of deletion, and whether that path leads to another file by now.
fn executable(dir: &ProcDir) -> (Option<String>, Option<bool>) {
    let Ok(link) = dir.link(c"exe") else { return (None, None) };
    let Ok(running) = dir.stat(c"exe") else { return (Some(link), None) };
    // The path is seen from our root or from the target's: a chroot's shows whole, a container's does not.
    let leads_to_it = |path: &str| {
        let below = dir.stat(format!("root/{}", path.trim_start_matches('/')).as_str()).ok();
        let same = |found: &FileStat| (found.st_dev, found.st_ino) == (running.st_dev, running.st_ino);
        if below.as_ref().is_some_and(same) {
            return Some(true);
        }
        let plain = nix::sys::stat::stat(path).ok();
        plain.as_ref().map(same).or(below.map(|_| false))
    };
    // Looked at first with the mark: a file may be called "python (deleted)".
    match (leads_to_it(&link), link.strip_suffix(" (deleted)")) {
        (Some(true), _) => (Some(link), Some(false)),
        (_, Some(path)) => {
            let replaced = leads_to_it(path) != Some(true);
            (Some(path.to_owned()), Some(replaced))
        }
        // Neither deleted nor to be found, on a file system that was unmounted, say: not known.
        (other, None) => (Some(link), other.map(|_| true)),
    }
}

/// From 6.2 on the size of the directory is their number (fs/proc/fd.c, `proc_readfd_count`); before it is 0.
fn open_fds(dir: &ProcDir, pid: i32) -> Option<u64> {
    match dir.stat(c"fd") {
        Ok(stat) if stat.st_size > 0 => Some(stat.st_size as u64),
        _ => numbers(&format!("/proc/{pid}/fd")).ok().map(|fds| fds.len() as u64),
    }
}

/// Those that it started itself and that are still its own.
fn children(dir: &ProcDir, pid: i32) -> Option<Vec<Child>> {
    let pids = match listed_children(dir, pid) {
        Some(pids) => pids,
        // CONFIG_PROC_CHILDREN is off: ask every process for its parent.
        None => files::pids().into_iter().filter(|&other| parent(other) == Some(pid)).collect(),
    };
    Some(pids.into_iter().filter_map(child).collect())
}

/// The pids of its children; empty where the kernel does not list them.
pub fn children_of(pid: i32) -> Vec<i32> {
    let dir = with_room(|| ProcDir::process(pid)).ok();
    dir.and_then(|dir| listed_children(&dir, pid)).unwrap_or_default()
}

fn listed_children(dir: &ProcDir, pid: i32) -> Option<Vec<i32>> {
    let mut found = Vec::new();
    for tid in numbers(&format!("/proc/{pid}/task")).ok()? {
        let list = with_path(format_args!("task/{tid}/children"), |path| dir.read_all(path, 1 << 20));
        match list {
            Ok(list) => found.extend(parse::numbers(&list).map(|pid| pid as i32)),
            // A thread may have ended; without the file for the main thread the kernel has none at all.
            Err(_) if tid == pid => return None,
            Err(_) => {}
        }
    }
    found.sort_unstable();
    Some(found)
}

fn child(pid: i32) -> Option<Child> {
    let dir = with_room(|| ProcDir::process(pid)).ok()?;
    let mut buffer = [0; 1024];
    let text = dir.read(c"stat", &mut buffer).ok()?;
    let stat = parse::stat(text)?;
    let command = command(&dir).filter(|command| !command.is_empty());
    // As wait(2) has it.
    let status = (stat.state == 'Z').then(|| parse::exit_status(text)).flatten();
    let signal = status.map(|s| s & 0x7f).filter(|s| *s != 0);
    Some(Child {
        pid,
        exit_code: status.filter(|_| signal.is_none()).map(|s| s >> 8 & 0xff),
        exit_signal: signal,
        // A zombie has a name left, no arguments.
        command: command.unwrap_or_else(|| vec![format!("[{}]", String::from_utf8_lossy(stat.comm))]),
        state: Some(stat.state.to_string()),
    })
}

pub fn parent(pid: i32) -> Option<i32> {
    with_stat(pid, |stat| stat.parent).filter(|&parent| parent > 0)
}

/// The process's own `stat`, while it is there.
pub fn with_stat<T>(pid: i32, then: impl FnOnce(parse::Stat<'_>) -> T) -> Option<T> {
    let mut buffer = [0; 1024];
    let length = with_path(format_args!("/proc/{pid}/stat"), |path| {
        use std::io::Read;
        with_room(|| std::fs::File::open(path_of(path)))?.read(&mut buffer)
    });
    parse::stat(&buffer[..length.ok()?]).map(then)
}

fn path_of(path: &CStr) -> &std::path::Path {
    std::path::Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

/// What a descriptor of a process leads to: `socket:[123]`, `pipe:[45]`, a path.
pub fn fd_target(pid: i32, fd: i32) -> Option<String> {
    let dir = with_room(|| ProcDir::process(pid)).ok()?;
    with_path(format_args!("fd/{fd}"), |path| dir.link(path)).ok()
}

fn uptime(started: u64) -> Option<f64> {
    // Since boot, suspended time included, like the start in `stat` (fs/proc/array.c, start_boottime).
    let now = std::time::Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?).as_secs_f64();
    Some((now - started as f64 / ticks_per_second() as f64).max(0.0))
}

fn page_size() -> u64 {
    static SIZE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SIZE.get_or_init(|| {
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |n| n as u64)
    })
}
