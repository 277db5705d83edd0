//! Locks on files, as `/proc/locks` has them: who has the one that a process waits for.

use std::collections::BTreeMap;

use super::facts::{FileLock, LockedDatabase, LockedFile};
use super::fds::{self, LockCall};
use super::files::{self, ProcDir};
use super::probe::with_room;
use super::{parse, proc};
use crate::snapshot::PeerProcess;

/// Descriptors of one process that are looked at.
const MAX_FDS: usize = 4096;

struct Line<'a> {
    /// It waits for the lock of the last line that does not.
    waits: bool,
    kind: &'a [u8],
    writes: bool,
    pid: Option<i32>,
    inode: u64,
    start: u64,
}

/// `1: POSIX  ADVISORY  WRITE 70 fe:00:11 0 EOF`; the waiters follow their blocker under the same number, with an
/// arrow (fs/locks.c, lock_get_status).
fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    text.split(|&b| b == b'\n').filter_map(|line| {
        let mut words = parse::words(line).skip(1).peekable();
        let waits = words.next_if_eq(&b"->".as_slice()).is_some();
        let kind = words.next()?;
        let writes = words.nth(1)? == b"WRITE";
        let pid = words.next().and_then(parse::signed).and_then(|p| i32::try_from(p).ok());
        let inode = words.next()?.rsplit(|&b| b == b':').next().and_then(parse::number)?;
        let start = words.next().and_then(parse::number)?;
        Some(Line { waits, kind, writes, pid: pid.filter(|p| *p > 0), inode, start })
    })
}

/// The lock on this file that this process waits for in this call.
pub fn waited_for(pid: i32, inode: u64, call: LockCall) -> Option<FileLock> {
    let text = std::fs::read("/proc/locks").ok()?;
    let (kind, taken_by) = blocker(&text, pid, inode, call)?;
    // Those of fcntl belong to a process. The others lie in what was opened: whoever has that open has the lock,
    // children that inherited it as well, after the process that took it has ended.
    let holder = match kind.as_str() {
        "posix" => taken_by,
        _ => taken_by
            .filter(|by| locking(*by, inode).is_none_or(|fds| !fds.is_empty()))
            .or_else(|| heir(inode)),
    };
    let fds = holder.filter(|by| *by == pid).and_then(|_| locking(pid, inode)).unwrap_or_default();
    Some(FileLock { kind, holder: holder.map(peer), fds })
}

/// Who has locked the file at this path, as the process sees it.
pub fn of_path(pid: i32, path: &str) -> Option<LockedFile> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(format!("/proc/{pid}/root{path}")).ok()?.ino();
    let text = std::fs::read("/proc/locks").ok()?;
    let by = lines(&text).find(|line| !line.waits && line.inode == inode)?.pid;
    let holder =
        by.filter(|by| locking(*by, inode).is_none_or(|fds| !fds.is_empty())).or_else(|| heir(inode));
    Some(LockedFile { path: path.to_owned(), holder: holder.or(by).map(peer) })
}

/// Of those that have a locked file open, the first.
fn heir(inode: u64) -> Option<i32> {
    files::pids().into_iter().find(|pid| locking(*pid, inode).is_some_and(|fds| !fds.is_empty()))
}

/// The process's descriptors that have this file open with a lock (`fdinfo/FD` names it). `None`: it may not be
/// asked.
fn locking(pid: i32, inode: u64) -> Option<Vec<i32>> {
    let Ok(dir) = with_room(|| ProcDir::process(pid)) else { return Some(Vec::new()) };
    let fds = files::numbers(&format!("/proc/{pid}/fd")).ok()?;
    let is_it = |fd: &&i32| dir.stat(format!("fd/{fd}").as_str()).is_ok_and(|stat| stat.st_ino == inode);
    let holds = |fd: &i32| {
        let mut buffer = [0; files::SMALL];
        let info =
            files::with_path(format_args!("fdinfo/{fd}"), |path| Ok(has_lock(dir.read(path, &mut buffer)?)));
        info.unwrap_or(false)
    };
    Some(fds.iter().take(MAX_FDS).filter(is_it).filter(|fd| holds(fd)).copied().collect())
}

/// `lock:\t1: FLOCK  ADVISORY  WRITE 70 fe:00:11 0 EOF`: those that this descriptor has, not one that it waits
/// for. Those of fcntl are named with every descriptor of the file.
fn has_lock(fdinfo: &[u8]) -> bool {
    let locks = fdinfo.split(|&b| b == b'\n').filter_map(|line| line.strip_prefix(b"lock:"));
    locks.flat_map(lines).any(|line| !line.waits && line.kind != b"POSIX")
}

/// (kind, pid of the holder where the kernel knows one).
fn blocker(text: &[u8], waiter: i32, inode: u64, call: LockCall) -> Option<(String, Option<i32>)> {
    let mut blocker: Option<(String, Option<i32>)> = None;
    for line in lines(text) {
        if !line.waits {
            blocker = Some((String::from_utf8_lossy(line.kind).to_lowercase(), line.pid));
        } else if line.pid == Some(waiter)
            && (line.kind == b"FLOCK") == (call == LockCall::Flock)
            && line.inode == inode
        {
            return blocker;
        }
    }
    None
}

fn peer(pid: i32) -> PeerProcess {
    PeerProcess { pid, command: proc::command_of(pid) }
}

// ---------------------------------------------------------------- SQLite

/// The databases of SQLite which this process has open and which somebody has locked. SQLite does not wait in the
/// kernel: it asks again and again, so that nothing but the bytes it locks shows what for.
pub fn databases(pid: i32) -> Vec<LockedDatabase> {
    let Ok(text) = std::fs::read("/proc/locks") else { return Vec::new() };
    if !lines(&text).any(|line| part(&line).is_some()) {
        return Vec::new();
    }
    let Ok(dir) = with_room(|| ProcDir::process(pid)) else { return Vec::new() };
    let fds = files::numbers(&format!("/proc/{pid}/fd")).unwrap_or_default();
    let open = fds.into_iter().take(MAX_FDS).filter_map(|fd| {
        let path = files::with_path(format_args!("fd/{fd}"), |path| dir.link(path)).ok()?;
        let inode =
            path.starts_with('/').then(|| dir.stat(format!("fd/{fd}").as_str()).ok()).flatten()?.st_ino;
        Some((inode, path))
    });
    let open: BTreeMap<u64, String> = open.collect();
    let found = locked(&text, pid, &open).into_iter();
    let described = |(path, holder): (String, Option<i32>)| LockedDatabase {
        path: fds::seen_from_inside(&dir, path),
        own: holder == Some(pid),
        holder: holder.filter(|by| *by != pid).map(peer),
    };
    found.map(described).collect()
}

/// What a lock protects.
#[derive(PartialEq)]
enum Part {
    /// PENDING_BYTE, RESERVED_BYTE and the range of SHARED behind them (sqlite's os.h).
    Database,
    /// The locks in the index of a write-ahead log; the byte behind them is one that everybody shares
    /// (os_unix.c, UNIX_SHM_BASE and UNIX_SHM_DMS).
    Index,
}

fn part(line: &Line) -> Option<Part> {
    match line.start {
        _ if line.waits || line.kind != b"POSIX" => None,
        0x4000_0000..0x4000_0200 => Some(Part::Database),
        120..128 => Some(Part::Index),
        _ => None,
    }
}

/// Paths, and who keeps this process out, if that can only be one: perhaps it is itself, by another connection.
fn locked(text: &[u8], pid: i32, open: &BTreeMap<u64, String>) -> Vec<(String, Option<i32>)> {
    #[derive(Default)]
    struct Users {
        writers: Vec<i32>,
        readers: Vec<i32>,
        has_log: bool,
    }
    let mut all: BTreeMap<&str, Users> = BTreeMap::new();
    for line in lines(text) {
        let (Some(part), Some(path), Some(by)) = (part(&line), open.get(&line.inode), line.pid) else {
            continue;
        };
        let of_log = path.strip_suffix("-shm");
        if (part == Part::Index) != of_log.is_some() {
            continue;
        }
        let users = all.entry(of_log.unwrap_or(path)).or_default();
        users.has_log |= of_log.is_some();
        let same = if line.writes { &mut users.writers } else { &mut users.readers };
        if !same.contains(&by) {
            same.push(by);
        }
    }
    let others = |pids: &[i32]| pids.iter().copied().filter(|p| *p != pid).collect::<Vec<_>>();
    all.into_iter()
        .filter_map(|(path, users)| {
            // Behind a log readers keep nobody out, and are there as long as their connections.
            let readers = if users.has_log { Vec::new() } else { others(&users.readers) };
            let holder = match (&users.writers[..], &readers[..]) {
                ([], []) => return None,
                ([one], _) if *one != pid => Some(*one),
                ([one], []) => Some(*one),
                ([], [one]) => Some(*one),
                _ => None,
            };
            Some((path.to_owned(), holder))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOCKS: &[u8] = b"1: POSIX  ADVISORY  WRITE 70 fe:00:11 0 EOF\n\
        2: FLOCK  ADVISORY  WRITE 80 fe:00:12 0 EOF\n\
        2: -> FLOCK  ADVISORY  WRITE 81 fe:00:12 0 EOF\n\
        3: OFDLCK ADVISORY  WRITE -1 fe:00:13 0 EOF\n\
        3: -> POSIX  ADVISORY  WRITE 81 fe:00:13 0 EOF\n";

    #[test]
    fn who_has_the_lock() {
        assert_eq!(blocker(LOCKS, 81, 12, LockCall::Flock), Some(("flock".into(), Some(80))));
        assert_eq!(blocker(LOCKS, 81, 13, LockCall::Fcntl), Some(("ofdlck".into(), None)));
        assert_eq!(blocker(LOCKS, 81, 11, LockCall::Fcntl), None);
        assert_eq!(blocker(LOCKS, 81, 12, LockCall::Fcntl), None);
    }

    #[test]
    fn what_a_descriptor_has() {
        let info = b"pos:\t0\nflags:\t0100001\nlock:\t1: FLOCK  ADVISORY  WRITE 70 fe:00:11 0 EOF\n";
        assert!(has_lock(info));
        assert!(!has_lock(b"pos:\t0\nflags:\t0100001\n"));
        assert!(!has_lock(b"lock:\t1: POSIX  ADVISORY  WRITE 70 fe:00:11 0 EOF\n"));
        assert!(!has_lock(b"lock:\t1: -> FLOCK  ADVISORY  WRITE 70 fe:00:11 0 EOF\n"));
    }

    #[test]
    fn who_has_the_database() {
        let open: BTreeMap<u64, String> =
            [(1, "/shop.db".into()), (2, "/log.db".into()), (3, "/log.db-shm".into())].into();
        let one = |text: &str, pid| locked(text.as_bytes(), pid, &open);
        // A writer, while others read; from the view of each.
        let writer = "1: POSIX  ADVISORY  WRITE 70 fe:00:1 1073741825 1073741825\n\
            2: POSIX  ADVISORY  READ 81 fe:00:1 1073741826 1073742335\n\
            3: POSIX  ADVISORY  READ 70 fe:00:1 1073741826 1073742335\n";
        assert_eq!(one(writer, 80), [("/shop.db".into(), Some(70))]);
        assert_eq!(one(writer, 70), [("/shop.db".into(), None)], "it may wait for the reader, or for itself");
        let alone = "1: POSIX  ADVISORY  WRITE 70 fe:00:1 1073741825 1073741825\n";
        assert_eq!(one(alone, 70), [("/shop.db".into(), Some(70))], "another connection of its own");
        // A reader, whose end a writer waits for.
        let reader = "1: POSIX  ADVISORY  READ 70 fe:00:1 1073741826 1073742335\n";
        assert_eq!(one(reader, 80), [("/shop.db".into(), Some(70))]);
        assert_eq!(one(reader, 70), []);
        // With a log, those who have it open and its readers keep nobody out.
        let idle = "1: POSIX  ADVISORY  READ 70 fe:00:2 1073741826 1073742335\n\
            2: POSIX  ADVISORY  READ 70 fe:00:3 128 128\n3: POSIX  ADVISORY  READ 70 fe:00:3 123 123\n";
        assert_eq!(one(idle, 80), []);
        let busy = idle.to_owned() + "4: POSIX  ADVISORY  WRITE 71 fe:00:3 120 120\n";
        assert_eq!(one(&busy, 80), [("/log.db".into(), Some(71))]);
        // Other files, and other bytes of these.
        assert_eq!(one("1: POSIX  ADVISORY  WRITE 70 fe:00:9 1073741825 1073741825\n", 80), []);
        assert_eq!(one("1: POSIX  ADVISORY  WRITE 70 fe:00:1 0 EOF\n", 80), []);
    }

    proptest! {
        #[test]
        fn any_table_of_locks_is_read(bytes in prop::collection::vec(any::<u8>(), 0..200), pid: i32, inode: u64) {
            let _ = blocker(&bytes, pid, inode, LockCall::Flock);
            let _ = locked(&bytes, pid, &[(inode, "/x".to_owned())].into());
        }
    }
}
