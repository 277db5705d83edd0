//! What the OS says of a process, as plain data: it stands in captures as it is.

use serde::{Deserialize, Serialize};

use crate::kin::{Area, SemLocks};
use crate::snapshot::{self, Listener, PeerProcess, Socket, ThreadOs};

/// Facts of one process from `/proc/PID`. `None` means "could not be learned".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// In the reader's pid namespace.
    pub pid: i32,
    /// In the innermost pid namespace the process lives in (`NSpid` of `/proc/PID/status`).
    pub ns_pid: i32,
    pub parent: Option<i32>,
    pub uid: Option<u32>,
    /// `/proc/PID/stat`'s letter.
    pub state: Option<char>,
    pub comm: String,
    pub command: Vec<String>,
    /// As the target names it (without the ` (deleted)` mark).
    pub executable: Option<String>,
    /// The file was deleted or another one stands in its place by now.
    pub executable_replaced: Option<bool>,
    pub cwd: Option<String>,
    pub uptime: Option<f64>,
    /// CLOCK_MONOTONIC when the threads were looked at, seconds: what event loops and timeouts count by.
    pub monotonic: Option<f64>,
    /// CLOCK_REALTIME at the same moment, seconds.
    #[serde(default)]
    pub realtime: Option<f64>,
    /// `SigCgt`: the signals that it has handlers for, by bit.
    #[serde(default)]
    pub caught: u64,
    pub rss: Option<u64>,
    pub open_fds: Option<u64>,
    pub fd_limit: Option<u64>,
    pub listens: Option<Vec<Listener>>,
    pub connections: Option<Vec<Socket>>,
    pub children: Option<Vec<snapshot::Child>>,
    /// All tasks of the process, main thread first.
    pub threads: Vec<ThreadFacts>,
    /// Descriptors that threads sleep on.
    #[serde(default)]
    pub fds: Vec<FdFacts>,
    /// Those that a thread asks for again and again.
    #[serde(default)]
    pub databases: Vec<LockedDatabase>,
    /// Files that a thread tries to lock now and then.
    #[serde(default)]
    pub locked: Vec<LockedFile>,
    /// The children as the process itself numbers them, where that differs.
    #[serde(default)]
    pub inner_children: Vec<Child>,
    /// The file by which a server's worker gives signs of life.
    #[serde(default)]
    pub heartbeat: Option<Heartbeat>,
    /// Signals that it catches, as bits from 1 on.
    #[serde(default)]
    pub caught_signals: Option<u64>,
    /// Where its first stack ends: at random for each `exec`, and the same over a `fork`.
    #[serde(default)]
    pub stack_end: Option<u64>,
    /// Semaphores in shared memory.
    #[serde(default)]
    pub areas: Vec<Area>,
    /// Its SemLock objects, of semaphores that somebody waits for.
    #[serde(default)]
    pub semlocks: Vec<SemLocks>,
    /// Descendants that sleep in a write to what the process has the other end of.
    #[serde(default)]
    pub held_up: Vec<i32>,
    /// Read only because a wait led here.
    #[serde(default)]
    pub followed: bool,
    /// What could not be read, in words, one entry each.
    pub problems: Vec<String>,
}

/// Times of a file, seconds since 1970 or since whatever its owner has set them to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub mtime: f64,
    pub ctime: f64,
}

/// What a descriptor leads to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FdFacts {
    pub fd: i32,
    /// `socket:[123]`, `pipe:[45]`, a path.
    pub target: Option<String>,
    pub kind: FdKind,
    pub socket: Option<Socket>,
    /// A socket that accepts connections.
    #[serde(default)]
    pub listening: bool,
    /// Of an epoll set: the descriptors in it.
    #[serde(default)]
    pub watches: Vec<i32>,
    /// Of a pidfd: whose it is.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Who has the other end; `None`: not searched for.
    #[serde(default)]
    pub ends: Option<Vec<End>>,
    /// Nobody has accepted the connection yet: those ends have the listener.
    #[serde(default)]
    pub unaccepted: bool,
    /// The other end is in the process itself and writing to it does not block: `signal.set_wakeup_fd` asks for
    /// such a one.
    #[serde(default)]
    pub wakes: bool,
    /// That search ended before everybody was asked.
    #[serde(default)]
    pub cut_short: bool,
    #[serde(default)]
    pub lock: Option<FileLock>,
    /// Of a connection to a local PostgreSQL whose session waits for a lock: the sessions that are idle
    /// inside of a transaction.
    #[serde(default)]
    pub sessions: Vec<Session>,
}

/// A session of a database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The server's process for it.
    pub pid: i32,
    pub title: String,
    pub client: Option<PeerProcess>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FdKind {
    Socket,
    Pipe,
    Tty,
    Epoll,
    Pidfd,
    File,
    #[default]
    Other,
}

/// Somebody who has the other end of a pipe, socket or terminal open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    pub pid: i32,
    /// Its descriptors of that end.
    #[serde(default)]
    pub fds: Vec<i32>,
    pub command: Vec<String>,
}

/// A lock on a file that somebody else has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileLock {
    /// `flock`, `posix`, `ofdlck`, as the kernel calls it.
    pub kind: String,
    pub holder: Option<PeerProcess>,
    /// Where that is the very process that waits: its descriptors that have the lock.
    #[serde(default)]
    pub fds: Vec<i32>,
}

/// A file that somebody has locked, and that is not open here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockedFile {
    pub path: String,
    pub holder: Option<PeerProcess>,
}

/// A database of SQLite that somebody has locked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockedDatabase {
    pub path: String,
    /// Who keeps the process out, where that can only be one.
    pub holder: Option<PeerProcess>,
    /// Nobody else has locked it: it is another connection of the process itself.
    #[serde(default)]
    pub own: bool,
}

/// A child in both numberings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Child {
    pub pid: i32,
    pub inside: i32,
}

/// Facts of one task from `/proc/PID/task/TID`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThreadFacts {
    /// In the reader's pid namespace.
    pub tid: i32,
    /// As the target itself sees it (`gettid()`).
    pub ns_tid: i32,
    pub comm: String,
    pub os: ThreadOs,
    /// The raw system call, if the thread sleeps in one.
    pub syscall: Option<RawSyscall>,
    /// The CPU it runs or last ran on.
    #[serde(default)]
    pub cpu: Option<usize>,
}

/// `/proc/PID/task/TID/syscall`: number, six arguments, stack pointer, program counter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RawSyscall {
    pub number: i64,
    pub args: [u64; 6],
    pub sp: u64,
    pub pc: u64,
}
