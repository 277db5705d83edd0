//! What the descriptors lead to that threads sleep on: sockets and their peers, pipes and who has the
//! other end, terminals, locked files, polled sets. Read after the frozen window; plain data, so that
//! it stands in captures.

use super::clocks::Allowance;
use std::collections::HashMap;

use super::ends;
use super::facts::{Child, End, FdFacts, FdKind, Heartbeat, ProcessFacts};
use super::file_locks;
use super::files::{self, ProcDir, numbers, with_path};
use super::net;
use super::parse;
use super::probe::with_room;
use super::proc;
use crate::snapshot::PeerProcess;

/// Most descriptors of a polled set that are looked at.
pub const MAX_POLLED: usize = 16;
/// Most holders of one end that are named.
const MAX_ENDS: usize = 16;
const MAX_FDINFO: u64 = 256 * 1024;

/// A descriptor that somebody sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub fd: i32,
    /// Also who has the other end: a search over the descriptors of the machine.
    pub other_end: bool,
    /// Also who has the lock on the file that is waited for.
    pub lock: Option<LockCall>,
}

/// The two kinds of locks that a file may have, independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockCall {
    Flock,
    Fcntl,
}

/// Looks at descriptors of a process, and at what polled sets watch. The search for other ends gives up
/// with its allowance; what it has found by then stands, and the facts say that it was cut short.
pub fn look(facts: &ProcessFacts, wanted: &[Wanted], allowed: Allowance) -> Vec<FdFacts> {
    let Ok(dir) = with_room(|| ProcDir::process(facts.pid)) else { return Vec::new() };
    let mut found: Vec<FdFacts> = Vec::new();
    let mut search: Vec<i32> = Vec::new();
    for wish in wanted {
        let watched = add(&dir, facts, wish.fd, wish.lock, &mut found);
        let also = watched.into_iter().take(MAX_POLLED);
        let all: Vec<i32> = std::iter::once(wish.fd).chain(also).collect();
        for fd in &all[1..] {
            add(&dir, facts, *fd, None, &mut found);
        }
        if wish.other_end {
            search.extend(all);
        }
    }
    search.sort_unstable();
    search.dedup();
    for one in &mut found {
        if let Some(socket) = one.socket.as_mut().filter(|_| wanted.iter().any(|w| w.fd == one.fd)) {
            socket.tcp = net::tcp_info(&dir, socket);
        }
    }
    find_ends(&dir, facts, &search, &mut found, allowed);
    found
}

/// When a file was last touched, if the descriptor is one whose path contains `name`.
pub fn heartbeat(pid: i32, fd: i32, name: &str) -> Option<Heartbeat> {
    let dir = with_room(|| ProcDir::process(pid)).ok()?;
    let link = with_path(format_args!("fd/{fd}"), |path| dir.link(path)).ok()?;
    let stat = link.contains(name).then(|| dir.stat(format!("fd/{fd}").as_str()).ok()).flatten()?;
    Some(Heartbeat {
        mtime: stat.st_mtime as f64 + stat.st_mtime_nsec as f64 / 1e9,
        ctime: stat.st_ctime as f64 + stat.st_ctime_nsec as f64 / 1e9,
    })
}

/// Describes one descriptor, once; returns what it watches if it is an epoll set.
fn add(
    dir: &ProcDir,
    facts: &ProcessFacts,
    fd: i32,
    lock: Option<LockCall>,
    found: &mut Vec<FdFacts>,
) -> Vec<i32> {
    let at = found.iter().position(|f| f.fd == fd).unwrap_or_else(|| {
        found.push(describe(dir, facts, fd));
        found.len() - 1
    });
    if let Some(call) = lock.filter(|_| found[at].lock.is_none()) {
        let inode = dir.stat(format!("fd/{fd}").as_str()).ok().map(|stat| stat.st_ino);
        found[at].lock = inode.and_then(|inode| file_locks::waited_for(facts.pid, inode, call));
    }
    found[at].watches.clone()
}

fn describe(dir: &ProcDir, facts: &ProcessFacts, fd: i32) -> FdFacts {
    let link = with_path(format_args!("fd/{fd}"), |path| dir.link(path)).ok();
    let mut out = FdFacts { fd, target: link.clone(), ..FdFacts::default() };
    let Some(link) = link else { return out };
    out.kind = match link.as_str() {
        _ if link.starts_with("socket:[") => FdKind::Socket,
        _ if link.starts_with("pipe:[") => FdKind::Pipe,
        "anon_inode:[eventpoll]" => FdKind::Epoll,
        "anon_inode:[pidfd]" => FdKind::Pidfd,
        _ if link.starts_with("pidfd:[") => FdKind::Pidfd,
        _ if link.starts_with("anon_inode:") => FdKind::Other,
        _ if link.starts_with("/dev/pts/") || link.starts_with("/dev/tty") || link == "/dev/console" => {
            FdKind::Tty
        }
        _ => file_kind(dir, fd),
    };
    if matches!(out.kind, FdKind::File | FdKind::Pipe) && link.starts_with('/') {
        out.target = Some(seen_from_inside(dir, link.clone()));
    }
    match out.kind {
        FdKind::Socket => {
            let known = facts.connections.iter().flatten().find(|s| s.fd == fd);
            out.socket = known.cloned();
            if known.is_none_or(|s| s.family.is_none())
                && let Some(inode) = net::socket_inode(&link)
                && let Some(row) = net::row_of(dir, inode)
            {
                out.listening = row.state == net::State::Listening;
                out.socket = Some(net::socket(fd, Some(&row)));
            }
        }
        FdKind::Epoll => {
            let text = fdinfo(dir, fd);
            let watched = |line: &[u8]| {
                let rest = line.strip_prefix(b"tfd:")?;
                parse::words(rest).next().and_then(parse::number).map(|n| n as i32)
            };
            out.watches = text.split(|&b| b == b'\n').filter_map(watched).collect();
            out.watches.sort_unstable();
        }
        FdKind::Pidfd => {
            let text = fdinfo(dir, fd);
            out.pid = parse::field(&text, "Pid").and_then(parse::signed).map(|p| p as i32).filter(|p| *p > 0);
        }
        _ => {}
    }
    out
}

/// The path as the process itself names it, below its own root.
pub fn seen_from_inside(dir: &ProcDir, path: String) -> String {
    let root = dir.link(c"root").unwrap_or_default();
    match path.strip_prefix(root.trim_end_matches('/')) {
        Some(inside) if root != "/" && inside.starts_with('/') => inside.to_owned(),
        _ => path,
    }
}

fn fdinfo(dir: &ProcDir, fd: i32) -> Vec<u8> {
    with_path(format_args!("fdinfo/{fd}"), |path| dir.read_all(path, MAX_FDINFO)).unwrap_or_default()
}

fn file_kind(dir: &ProcDir, fd: i32) -> FdKind {
    let Ok(stat) = dir.stat(format!("fd/{fd}").as_str()) else { return FdKind::Other };
    match stat.st_mode & nix::libc::S_IFMT {
        nix::libc::S_IFIFO => FdKind::Pipe,
        nix::libc::S_IFREG | nix::libc::S_IFBLK | nix::libc::S_IFDIR => FdKind::File,
        _ => FdKind::Other,
    }
}

// ---------------------------------------------------------------- other ends

/// What to look for among the descriptors of all processes, and for which of ours.
struct Search {
    fd: i32,
    link: String,
    /// Of a pipe: an end that is opened like this counts.
    way: Way,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Any,
    /// Whoever can do the opposite of what we have it open for.
    Opposite {
        we_read: bool,
        we_write: bool,
    },
    /// The other side of the terminal `/dev/pts/N`.
    Terminal(u64),
}

fn find_ends(dir: &ProcDir, facts: &ProcessFacts, fds: &[i32], found: &mut [FdFacts], allowed: Allowance) {
    let mut searches: Vec<Search> = Vec::new();
    let mut sockets: Vec<(u64, crate::snapshot::Socket)> = Vec::new();
    for one in found.iter().filter(|f| fds.contains(&f.fd)) {
        let Some(link) = one.target.clone() else { continue };
        match one.kind {
            FdKind::Socket if !one.listening => {
                sockets.extend(net::socket_inode(&link).zip(one.socket.clone()));
            }
            FdKind::Pipe => {
                // As we see it, like the links of all others.
                let link = with_path(format_args!("fd/{}", one.fd), |path| dir.link(path)).unwrap_or(link);
                let (we_read, we_write) = access(dir, one.fd).unwrap_or((true, true));
                searches.push(Search { fd: one.fd, link, way: Way::Opposite { we_read, we_write } });
            }
            FdKind::Tty => {
                let number = link.strip_prefix("/dev/pts/").and_then(|n| n.parse().ok());
                searches.extend(number.map(|n| Search {
                    fd: one.fd,
                    link: String::new(),
                    way: Way::Terminal(n),
                }));
            }
            _ => {}
        }
    }
    for (fd, end) in net::other_ends(dir, &sockets) {
        if let Some(one) = found.iter_mut().find(|f| f.fd == fd) {
            one.unaccepted = end.unaccepted;
            if let (Some(socket), Some(path)) = (&mut one.socket, end.path) {
                socket.peer.get_or_insert(path);
            }
        }
        searches.push(Search { fd, link: format!("socket:[{}]", end.inode), way: Way::Any });
    }
    if searches.is_empty() {
        return;
    }
    let (mut ends, complete) = holders(facts, &searches, allowed);
    let mut commands: HashMap<i32, Vec<String>> = HashMap::new();
    for search in &searches {
        let mut ends = ends.remove(&search.fd).unwrap_or_default();
        for end in &mut ends {
            end.command = commands.entry(end.pid).or_insert_with(|| command(end.pid)).clone();
        }
        let Some(one) = found.iter_mut().find(|f| f.fd == search.fd) else { continue };
        if one.unaccepted {
            leave_out_supervisors(&mut ends);
        }
        if let Some(socket) = &mut one.socket {
            // Forked children may have it too: the oldest one that is not the target itself, unless it is the
            // one that should accept.
            let own = ends.iter().find(|e| e.pid == facts.pid && one.unaccepted);
            let oldest = || ends.iter().filter(|e| e.pid != facts.pid).min_by_key(|e| e.pid);
            let peer = own.or_else(oldest).or(ends.first());
            socket.peer_process = peer.map(|e| PeerProcess { pid: e.pid, command: e.command.clone() });
        }
        // A pipe, or a pair of sockets; what has an address is a connection of somebody's.
        let is_pair = |s: &crate::snapshot::Socket| {
            let unix = s.family.as_deref().is_some_and(|family| family.starts_with("unix"));
            unix && s.local.is_none() && s.peer.is_none()
        };
        let is_pair = !one.unaccepted && one.socket.as_ref().is_none_or(is_pair);
        one.wakes = complete && is_pair && wakes(dir, facts.pid, &ends);
        one.ends = Some(ends);
        one.cut_short = !complete;
        if let Some(peer) = one.socket.as_ref().and_then(|s| s.peer_process.as_ref()) {
            one.sessions = super::sessions::idle_in_transaction(dir, peer);
        }
    }
}

/// Whether these ends are of the process alone and in non-blocking mode (`flags`, octal, fs/proc/fd.c).
fn wakes(dir: &ProcDir, own: i32, ends: &[End]) -> bool {
    const O_NONBLOCK: u32 = nix::libc::O_NONBLOCK as u32;
    let flags = |fd: i32| {
        let text = fdinfo(dir, fd);
        let octal = std::str::from_utf8(parse::field(&text, "flags")?).ok()?.trim();
        u32::from_str_radix(octal, 8).ok()
    };
    let is_one = |fd: &i32| flags(*fd).is_some_and(|flags| flags & O_NONBLOCK != 0);
    !ends.is_empty() && ends.iter().all(|end| end.pid == own && end.fds.iter().all(is_one))
}

/// Of those who have a listener, whoever has a child among them has it for that one.
fn leave_out_supervisors(ends: &mut Vec<End>) {
    let parents: Vec<i32> =
        ends.iter().filter_map(|end| proc::with_stat(end.pid, |stat| stat.parent)).collect();
    ends.retain(|end| !parents.contains(&end.pid));
}

/// The command line, or the name in brackets where there is none.
fn command(pid: i32) -> Vec<String> {
    let command = proc::command_of(pid);
    if !command.is_empty() {
        return command;
    }
    let name = proc::with_stat(pid, |stat| format!("[{}]", String::from_utf8_lossy(stat.comm)));
    name.into_iter().collect()
}

/// How a descriptor is opened: for reading, for writing (fs/proc/fd.c: the mode of the link).
fn access(dir: &ProcDir, fd: i32) -> Option<(bool, bool)> {
    let stat = with_path(format_args!("fd/{fd}"), |path| dir.lstat(path)).ok()?;
    Some((stat.st_mode & 0o400 != 0, stat.st_mode & 0o200 != 0))
}

/// The same by the table of all descriptors; the other sides of terminals are not in it.
fn of_table(facts: &ProcessFacts, searches: &[Search], table: &ends::Table) -> HashMap<i32, Vec<End>> {
    let mut found: HashMap<i32, Vec<End>> = HashMap::new();
    for search in searches {
        let ends = found.entry(search.fd).or_default();
        for holder in table.of(&search.link) {
            let counts = match search.way {
                Way::Terminal(_) => false,
                Way::Any => true,
                Way::Opposite { .. } if holder.pid == facts.pid && holder.fd == search.fd => false,
                Way::Opposite { we_read, we_write } => {
                    (we_read && holder.writes) || (we_write && holder.reads)
                }
            };
            match ends.iter().position(|e| e.pid == holder.pid) {
                _ if !counts => {}
                Some(at) => ends[at].fds.push(holder.fd),
                None if ends.len() < MAX_ENDS => {
                    ends.push(End { pid: holder.pid, fds: vec![holder.fd], command: Vec::new() });
                }
                None => break,
            }
        }
    }
    found
}

/// Who has which of them open; relatives are asked first. False: not everybody could be asked in time.
fn holders(facts: &ProcessFacts, searches: &[Search], allowed: Allowance) -> (HashMap<i32, Vec<End>>, bool) {
    if let Some(found) = ends::shared(|table| (of_table(facts, searches, table), table.complete)) {
        return found;
    }
    let mut pids: Vec<i32> = vec![facts.pid];
    pids.extend(facts.children.iter().flatten().map(|c| c.pid));
    pids.extend(facts.parent);
    let relatives = pids.len();
    // We ourselves have inherited what our parent has open, and use none of it.
    let own = std::process::id() as i32;
    let is_other = |p: &i32| !pids.contains(p) && (*p != own || facts.pid == own);
    let others: Vec<i32> = files::pids().into_iter().filter(is_other).collect();
    pids.extend(others);
    let mut found: HashMap<i32, Vec<End>> = HashMap::new();
    let terminals = searches.iter().any(|s| matches!(s.way, Way::Terminal(_)));
    for (i, pid) in pids.into_iter().enumerate() {
        if i >= relatives && allowed.is_spent() {
            log::debug!("the search for other ends was cut short after {i} processes");
            return (found, false);
        }
        let Ok(dir) = with_room(|| ProcDir::process(pid)) else { continue };
        let Ok(fds) = numbers(&format!("/proc/{pid}/fd")) else { continue };
        for fd in fds {
            let Ok(link) = with_path(format_args!("fd/{fd}"), |path| dir.link(path)) else { continue };
            let index = (terminals && link.ends_with("/ptmx"))
                .then(|| {
                    let text = fdinfo(&dir, fd);
                    parse::field(&text, "tty-index").and_then(parse::number)
                })
                .flatten();
            for search in searches {
                let counts = match search.way {
                    Way::Terminal(number) => index == Some(number),
                    _ if search.link != link => false,
                    Way::Any => true,
                    Way::Opposite { we_read, we_write } => match access(&dir, fd) {
                        // Our very own descriptor is not its other end, unless it is opened both ways.
                        _ if pid == facts.pid && fd == search.fd => false,
                        Some((reads, writes)) => (we_read && writes) || (we_write && reads),
                        None => false,
                    },
                };
                let ends = found.entry(search.fd).or_default();
                match ends.iter().position(|e| e.pid == pid) {
                    _ if !counts => {}
                    Some(at) => ends[at].fds.push(fd),
                    None if ends.len() < MAX_ENDS => {
                        ends.push(End { pid, fds: vec![fd], command: Vec::new() })
                    }
                    None => {}
                }
            }
        }
    }
    (found, true)
}

/// The children as the process itself numbers them, where that differs.
pub fn inner_children(facts: &ProcessFacts) -> Vec<Child> {
    if facts.ns_pid == facts.pid {
        return Vec::new();
    }
    let inside = |pid: i32| {
        let dir = with_room(|| ProcDir::process(pid)).ok()?;
        let mut buffer = [0; files::SMALL];
        let status = dir.read(c"status", &mut buffer).ok()?;
        parse::numbers(parse::field(status, "NSpid")?).last().map(|p| p as i32)
    };
    let children = facts.children.iter().flatten();
    children.filter_map(|c| Some(Child { pid: c.pid, inside: inside(c.pid)? })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pipe() {
        let (reader, writer) = std::io::pipe().unwrap();
        use std::os::fd::AsRawFd;
        let pid = std::process::id() as i32;
        let facts = ProcessFacts { pid, ns_pid: pid, ..ProcessFacts::default() };
        let wanted = Wanted { fd: reader.as_raw_fd(), other_end: true, lock: None };
        let far = Allowance::of(std::time::Duration::from_secs(5));
        let found = look(&facts, &[wanted], far);
        assert_eq!(found[0].kind, FdKind::Pipe);
        let ends = found[0].ends.as_ref().unwrap();
        assert!(ends.iter().any(|e| e.pid == pid), "{ends:?}");
        drop(writer);
        let found = look(&facts, &[wanted], far);
        assert!(found[0].ends.as_ref().unwrap().iter().all(|e| e.pid != pid));
    }
}
