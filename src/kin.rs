//! What leads from one process to others: plain data that stands beside a process of the snapshot and is
//! no part of the report. Read with the process, joined over all processes of a look (look/across.rs).

use serde::{Deserialize, Serialize};

use crate::snapshot::Address;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kin {
    /// Where the interpreter's state lies: a forked child has it at the very same address.
    pub runtime: Option<Address>,
    /// Where the first stack ends: as the other, but at random after `exec` also where the executable is not.
    pub stack_end: Option<u64>,
    /// Signals that it catches, one bit each from 1 on (`SigCgt` of `/proc/PID/status`).
    pub caught_signals: Option<u64>,
    /// Whether the application's handlers of signals do anything that others might wait for; `None`: not known.
    pub handlers_act: Option<bool>,
    /// Shared semaphores that it maps.
    pub areas: Vec<Area>,
    /// Its SemLock objects, of those semaphores that somebody waits for.
    pub semlocks: Vec<SemLocks>,
    /// Descriptors that the frames of a thread can reach, by tid.
    pub fds: Vec<(i32, Descriptors)>,
    /// Descendants that sleep in a write to what the process has the other end of, and its threads whose code
    /// speaks of reading.
    pub held_up: Vec<i32>,
    pub readers: Vec<i32>,
    /// Threads that read standard input, and call no code of the application's then.
    pub bystanders: Vec<i32>,
    /// Threads that work for a pool, and what each is at.
    pub jobs: Vec<(i32, At)>,
    /// How often the GIL of each interpreter has changed hands.
    pub gil_switches: Vec<GilSwitches>,
    /// Work items in the queues of its thread pools; `None`: it has no pool at work.
    pub queued_work: Option<u64>,
}

/// Descriptors that a thread can reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// Of files, sockets and connections.
    pub objects: Vec<i32>,
    /// Plain numbers, which may as well be something else: `os.pipe()` gives no more.
    pub numbers: Vec<i32>,
}

impl Descriptors {
    pub fn has(&self, fd: i32) -> bool {
        self.objects.contains(&fd) || self.numbers.contains(&fd)
    }
}

/// How often a GIL has gone to another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GilSwitches {
    pub interpreter: i64,
    pub count: u64,
    /// Where that count lies in the process's memory.
    pub at: Address,
}

/// What a worker of a pool is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Its initializer, or on its way: it has not asked for work yet.
    Start,
    Job(i64),
    /// Waits for the next one.
    Rest,
}

/// A mapping that other processes have as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    /// The same for all who map it: device and inode.
    pub file: String,
}

/// What one process has of a semaphore that somebody waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SemLocks {
    /// Device, inode and offset of the semaphore.
    pub id: String,
    /// Who maps it, and perhaps a few more; `None`: not everybody could be asked.
    pub sharers: Option<Vec<i32>>,
    pub value: Option<u32>,
    pub objects: Vec<SemLock>,
    /// All of its memory was searched.
    pub complete: bool,
}

/// `_multiprocessing.SemLock` (Modules/_multiprocessing/semaphore.c).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SemLock {
    /// Times this process has acquired it, releases taken off.
    pub count: i32,
    pub max: i32,
    /// `threading.get_ident()` of who did so last.
    pub last_tid: u64,
}

impl Kin {
    /// Whether the one process was forked from the other, or both from a third.
    pub fn shares_address_space(&self, other: &Kin) -> bool {
        let same = self.runtime == other.runtime && self.stack_end == other.stack_end;
        same && self.runtime.is_some() && self.stack_end.is_some()
    }

    /// The semaphore at this address, as everybody knows it.
    pub fn semaphore(&self, address: u64) -> Option<String> {
        let area = self.areas.iter().find(|a| (a.start..a.end).contains(&address))?;
        Some(format!("{}+{:#x}", area.file, address - area.start))
    }

    /// Where this process has it mapped.
    pub fn address(&self, id: &str) -> Option<u64> {
        let (file, offset) = id.rsplit_once("+0x")?;
        let offset = u64::from_str_radix(offset, 16).ok()?;
        let at = |a: &Area| a.start.checked_add(offset).filter(|at| *at < a.end);
        self.areas.iter().filter(|a| a.file == file).find_map(at)
    }

    pub fn maps(&self, id: &str) -> bool {
        self.address(id).is_some()
    }

    /// Whether a signal could make it do something while it waits: Python itself catches SIGINT only.
    pub fn may_be_signalled(&self) -> bool {
        const SIGINT: u64 = 1 << 1;
        // Of the others these say that something went wrong (faulthandler): nothing goes on after them.
        const FAULTS: u64 = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10;
        // 32 and 33 are the C library's own.
        const LIBC: u64 = 1 << 31 | 1 << 32;
        self.handlers_act != Some(false)
            && self.caught_signals.is_none_or(|caught| caught & !(SIGINT | FAULTS | LIBC) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semaphores_have_one_name_for_all() {
        let area = |start| Area { start, end: start + 0x1000, file: "0:1a:77".into() };
        let (a, b) = (
            Kin { areas: vec![area(0x7000)], ..Kin::default() },
            Kin { areas: vec![area(0x9000)], ..Kin::default() },
        );
        let id = a.semaphore(0x7020).unwrap();
        assert_eq!(b.address(&id), Some(0x9020));
        assert_eq!(a.semaphore(0x8000), None);
        assert!(!Kin::default().maps(&id));
    }

    #[test]
    fn python_catches_sigint_itself() {
        let of = |caught| Kin { caught_signals: Some(caught), ..Kin::default() };
        assert!(!of(0x2).may_be_signalled());
        assert!(of(0x4002).may_be_signalled());
        assert!(Kin::default().may_be_signalled());
    }
}
