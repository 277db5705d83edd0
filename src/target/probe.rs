//! Where one thread stands, asked again and again through files that are kept open.
//!
//! Two equal answers prove that the thread did not run in between: that is what makes a read of its memory one
//! moment without stopping it (frozen.rs).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::files::{ProcDir, with_path};
use super::parse::{self, Doing};

/// Where a thread stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Time on a CPU, nanoseconds. Brought up to date when the thread leaves its CPU and at the tick only.
    pub run_ns: u64,
    /// How many times it was put on a CPU (or switched, where the kernel does not count the former).
    pub runs: u64,
    pub doing: Doing,
}

impl Standing {
    /// It slept in one and the same system call at both moments and did not run in between.
    pub fn is_proof_against(&self, later: &Standing) -> bool {
        matches!(self.doing, Doing::Asleep(_)) && self == later
    }
}

/// One thread's `schedstat`, `syscall` and `stat`.
#[derive(Debug)]
pub struct ThreadProbe {
    pub pid: i32,
    pub tid: i32,
    schedstat: Kept,
    syscall: Kept,
    stat: Kept,
}

/// A file below `/proc/PID/task/TID`: kept open, or opened anew each time if we may not have as many.
#[derive(Debug)]
enum Kept {
    Open(File),
    Reopen(&'static CStr),
}

impl ThreadProbe {
    /// Fails only when there is no such thread (any more).
    pub fn open(pid: i32, tid: i32) -> io::Result<Self> {
        Self::below(&with_room(|| ProcDir::process(pid))?, pid, tid)
    }

    /// The same, for many threads of a process that is held open anyway.
    pub fn below(process: &ProcDir, pid: i32, tid: i32) -> io::Result<Self> {
        let keep = |name| match with_room(|| process.open_of_task(tid, name)) {
            Ok(file) if leaves_room(&file) => Ok(Kept::Open(file)),
            Ok(_) => Ok(Kept::Reopen(name)),
            // The thread is there and this file is not for us, or one too many, or not made by this kernel.
            Err(error) if name != c"stat" || error.raw_os_error() == Some(Errno::EMFILE as i32) => {
                Ok(Kept::Reopen(name))
            }
            Err(error) => Err(error),
        };
        Ok(Self {
            pid,
            tid,
            stat: keep(c"stat")?,
            schedstat: keep(c"schedstat")?,
            syscall: keep(c"syscall")?,
        })
    }

    /// Time on a CPU (ns) and number of runs, the two that tell whether it ran.
    pub fn ran(&self) -> io::Result<(u64, u64)> {
        let mut buffer = [0; 128];
        match self.read(&self.schedstat, &mut buffer) {
            // A kernel that keeps no such account prints zeros (fs/proc/base.c, proc_pid_schedstat): a thread that
            // is there has run at least once.
            Ok(text) => match parse::schedstat(text) {
                Some((run_ns, runs)) if runs > 0 => Ok((run_ns, runs)),
                _ => self.switches(),
            },
            Err(error) if error.raw_os_error() == Some(libc_enoent()) => self.switches(),
            Err(error) => Err(error),
        }
    }

    pub fn doing(&self) -> Doing {
        let mut buffer = [0; 256];
        self.read(&self.syscall, &mut buffer).map_or(Doing::Unknown, parse::doing)
    }

    pub fn standing(&self) -> io::Result<Standing> {
        let (run_ns, runs) = self.ran()?;
        Ok(Standing { run_ns, runs, doing: self.doing() })
    }

    /// The CPU it runs or last ran on.
    pub fn cpu(&self) -> io::Result<usize> {
        self.with_stat(|stat| stat.cpu)
    }

    /// One letter, as in `/proc/PID/stat`.
    pub fn state(&self) -> io::Result<char> {
        self.with_stat(|stat| stat.state)
    }

    pub fn with_stat<T>(&self, then: impl FnOnce(parse::Stat<'_>) -> T) -> io::Result<T> {
        let mut buffer = [0; 1024];
        let text = self.read(&self.stat, &mut buffer)?;
        parse::stat(text).map(then).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Fallback without CONFIG_SCHED_INFO: every time a thread leaves its CPU one of these counters grows.
    fn switches(&self) -> io::Result<(u64, u64)> {
        let mut buffer = [0; 4096];
        let status = self.read(&Kept::Reopen(c"status"), &mut buffer)?;
        let count = |name| parse::field(status, name).and_then(parse::number);
        let switches = count("voluntary_ctxt_switches").zip(count("nonvoluntary_ctxt_switches"));
        let (own, forced) = switches.ok_or(io::ErrorKind::InvalidData)?;
        let ticks = self.with_stat(|stat| stat.ticks)?;
        Ok((ticks.saturating_mul(1_000_000_000 / ticks_per_second()), own.saturating_add(forced)))
    }

    fn read<'b>(&self, file: &Kept, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let length = match file {
            Kept::Open(file) => file.read_at(buffer, 0)?,
            Kept::Reopen(name) => {
                let path = format_args!("/proc/{}/task/{}/{}", self.pid, self.tid, name.to_string_lossy());
                with_path(path, |path| {
                    use std::os::unix::ffi::OsStrExt;
                    File::open(std::ffi::OsStr::from_bytes(path.to_bytes()))?.read_at(buffer, 0)
                })?
            }
        };
        Ok(&buffer[..length])
    }
}

/// USER_HZ: the unit of times in `/proc/PID/stat`.
pub fn ticks_per_second() -> u64 {
    static TICKS: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *TICKS.get_or_init(|| {
        nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().map_or(100, |n| n.max(1) as u64)
    })
}

fn libc_enoent() -> i32 {
    Errno::ENOENT as i32
}

/// Descriptors that are not given away to probes: reading anew needs one, and so does everything else.
const RESERVE: u64 = 48;

/// Whether a file may stay open without taking the last descriptors. The limit is raised first if need be.
fn leaves_room(file: &File) -> bool {
    let fits = |limit: u64| file.as_raw_fd() as u64 + RESERVE < limit;
    if LIMIT.load(Relaxed) == 0 {
        LIMIT.store(getrlimit(Resource::RLIMIT_NOFILE).map_or(256, |(soft, _)| soft), Relaxed);
    }
    fits(LIMIT.load(Relaxed)) || {
        RAISED.call_once(raise_limit);
        fits(LIMIT.load(Relaxed))
    }
}

/// The soft limit; 0 before it was asked for.
static LIMIT: AtomicU64 = AtomicU64::new(0);
static RAISED: Once = Once::new();

/// Opens something; where that fails for want of descriptors, the soft limit is raised to the hard one, once.
/// (Whoever starts a command of the user's must give it the old limit back: `select` knows 1,024 only.)
pub fn with_room<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match open() {
        Err(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => {
            RAISED.call_once(raise_limit);
            open()
        }
        result => result,
    }
}

fn raise_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => LIMIT.store(hard, Relaxed),
        Err(error) => {
            LIMIT.store(soft, Relaxed);
            log::debug!("cannot raise the limit of open files: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_sleeping_thread_stands_still_and_a_woken_one_does_not() {
        let (wake, sleep) = mpsc::channel::<()>();
        let (tell, tid) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            while sleep.recv().is_ok() {
                tell.send(0).unwrap();
            }
        });
        let probe = ThreadProbe::open(std::process::id() as i32, tid.recv().unwrap()).unwrap();
        // On its way it may sleep elsewhere for a moment: for the lock of its own address space, say.
        let asleep = || {
            let soon = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while std::time::Instant::now() < soon {
                let standing = probe.standing().unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
                if standing.doing.syscall().is_some() && standing.is_proof_against(&probe.standing().unwrap())
                {
                    return standing;
                }
            }
            panic!("it never stands still");
        };
        let first = asleep();
        wake.send(()).unwrap();
        tid.recv().unwrap();
        let second = asleep();
        assert!(!first.is_proof_against(&second));
        assert!(second.runs > first.runs);
        assert!(probe.cpu().unwrap() < 1024);
        drop(wake);
        thread.join().unwrap();
        // It is joined a moment before the kernel has forgotten it.
        while probe.standing().is_ok() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn files_that_may_not_stay_open_are_opened_anew() {
        let tid = nix::unistd::gettid().as_raw();
        let kept = ThreadProbe::open(std::process::id() as i32, tid).unwrap();
        let reopen = ThreadProbe {
            schedstat: Kept::Reopen(c"schedstat"),
            syscall: Kept::Reopen(c"syscall"),
            stat: Kept::Reopen(c"stat"),
            ..kept
        };
        assert!(reopen.standing().unwrap().runs > 0);
        // Of itself a thread sees the very read (lib/syscall.c, task_current_syscall).
        assert!(reopen.doing().syscall().is_some());
        assert_eq!(reopen.state().unwrap(), 'R');
        assert!(reopen.switches().is_ok());
    }
}
