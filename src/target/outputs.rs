//! Descendants that stand still because nobody takes what they write to a process.

use super::facts::ProcessFacts;
use super::files::{self, ProcDir, numbers, with_path};
use super::net;
use super::parse;
use super::probe::with_room;
use super::proc;
use super::syscalls::{self, Arch};

/// Most descendants that are asked, and how far down: a shell may stand between.
const MOST: usize = 64;
const DEPTH: usize = 3;

/// Those that sleep in a write to a pipe, or a pair of sockets, of which the process has the other end.
pub fn held_up(facts: &ProcessFacts) -> Vec<i32> {
    let mut level: Vec<i32> = facts.children.iter().flatten().map(|c| c.pid).collect();
    let mut asked = 0;
    let mut writing: Vec<(i32, String)> = Vec::new();
    for _ in 0..DEPTH {
        level.truncate(MOST - asked);
        asked += level.len();
        writing.extend(level.iter().filter_map(|pid| Some((*pid, written_to(*pid)?))));
        level = level.into_iter().flat_map(proc::children_of).collect();
    }
    if writing.is_empty() {
        return Vec::new();
    }
    let ours = open_for_reading(facts.pid);
    writing.into_iter().filter(|(_, link)| ours.contains(link)).map(|(pid, _)| pid).collect()
}

/// What the main thread of a process is writing to: a pipe, or the other end of its socket.
fn written_to(pid: i32) -> Option<String> {
    let dir = with_room(|| ProcDir::process(pid)).ok()?;
    let mut buffer = [0; files::SMALL];
    let call = parse::doing(dir.read(c"syscall", &mut buffer).ok()?).syscall()?;
    let writes = ["write", "writev", "sendto", "sendmsg", "sendfile"];
    syscalls::name(Arch::HERE, call.number).filter(|name| writes.contains(name))?;
    let fd = i32::try_from(call.args[0]).ok()?;
    let link = with_path(format_args!("fd/{fd}"), |path| dir.link(path)).ok()?;
    if link.starts_with("pipe:[") {
        return Some(link);
    }
    let inode = net::socket_inode(&link)?;
    let socket = net::socket(fd, Some(&net::row_of(&dir, inode)?));
    let pair = socket.family.as_deref().is_some_and(|f| f.starts_with("unix"));
    let (_, end) =
        pair.then(|| net::other_ends(&dir, &[(inode, socket)])).and_then(|ends| ends.into_iter().next())?;
    Some(format!("socket:[{}]", end.inode))
}

fn open_for_reading(pid: i32) -> Vec<String> {
    let Ok(dir) = with_room(|| ProcDir::process(pid)) else { return Vec::new() };
    let reads = |fd: i32| {
        with_path(format_args!("fd/{fd}"), |path| dir.lstat(path)).is_ok_and(|s| s.st_mode & 0o400 != 0)
    };
    let fds = numbers(&format!("/proc/{pid}/fd")).unwrap_or_default();
    let link = |fd: &i32| with_path(format_args!("fd/{fd}"), |path| dir.link(path)).ok();
    fds.into_iter().filter(|fd| reads(*fd)).filter_map(|fd| link(&fd)).collect()
}
