//! What the OS says of a process, as plain data: it stands in captures as it is.

use serde::{Deserialize, Serialize};

use crate::snapshot::{Child, Listener, Socket, ThreadOs};

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
    pub rss: Option<u64>,
    pub open_fds: Option<u64>,
    pub fd_limit: Option<u64>,
    pub listens: Option<Vec<Listener>>,
    pub connections: Option<Vec<Socket>>,
    pub children: Option<Vec<Child>>,
    /// All tasks of the process, main thread first.
    pub threads: Vec<ThreadFacts>,
    /// What could not be read, in words, one entry each.
    pub problems: Vec<String>,
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
