//! Stopping one running thread for a moment (`--pause`), with ptrace.
//!
//! PTRACE_SEIZE, so that whatever happens to us, even SIGKILL, the thread runs on: the kernel detaches
//! it when its tracer is gone. Never SIGSTOP. A thread that blocks in a system call is not to be
//! paused: the call would return early (a short `write`).

use std::cell::RefCell;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long to wait for a thread that is to be let go; then it is tried again with each later pause.
const LET_GO: Duration = Duration::from_secs(1);

thread_local! {
    /// Threads that are still to be let go: only who has seized them can do it.
    static LEFT: RefCell<Vec<Pid>> = const { RefCell::new(Vec::new()) };
}

/// A thread that stands still until this is dropped.
#[derive(Debug)]
pub struct Pause {
    tid: Pid,
    stopped: bool,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum PauseError {
    #[error("thread {tid} could not be paused: {errno}{}", tracer(*tid))]
    Refused { tid: i32, errno: Errno },
    #[error("thread {tid} did not stop within {deadline:?}; it was let go")]
    TooSlow { tid: i32, deadline: Duration },
    #[error("thread {tid} ended while it was to be paused")]
    Ended { tid: i32 },
}

/// Who traces it already, if anybody.
fn tracer(tid: i32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    match status.lines().find_map(|l| l.strip_prefix("TracerPid:")).map(str::trim) {
        None | Some("0") => String::new(),
        Some(pid) => format!(" (traced by process {pid} already)"),
    }
}

impl Pause {
    /// Stops `tid`; gives up after `deadline`.
    pub fn seize(tid: i32, deadline: Duration) -> Result<Pause, PauseError> {
        LEFT.with_borrow_mut(|left| left.retain(|tid| !let_go(*tid)));
        let thread = Pid::from_raw(tid);
        let refused = |errno| match errno {
            Errno::ESRCH => PauseError::Ended { tid },
            errno => PauseError::Refused { tid, errno },
        };
        ptrace::seize(thread, ptrace::Options::empty()).map_err(refused)?;
        // From here on dropping it lets it go.
        let mut pause = Pause { tid: thread, stopped: false };
        ptrace::interrupt(thread).map_err(refused)?;
        let until = Instant::now() + deadline;
        loop {
            match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() < until => {
                    // A thread in D state cannot stop before its I/O is done.
                    std::thread::sleep(Duration::from_micros(20));
                }
                Ok(WaitStatus::StillAlive) => return Err(PauseError::TooSlow { tid, deadline }),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                    return Err(PauseError::Ended { tid });
                }
                Ok(WaitStatus::Stopped(_, signal)) => {
                    // A signal that was on its way arrives: it must not be lost, and this is no place
                    // to read from. Give it back and wait for our own stop.
                    ptrace::cont(thread, signal).map_err(refused)?;
                }
                Ok(_) => {
                    pause.stopped = true;
                    return Ok(pause);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(refused(errno)),
            }
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if self.stopped && ptrace::detach(self.tid, None).is_ok() {
            return;
        }
        let until = Instant::now() + LET_GO;
        let mut nap = Duration::from_micros(20);
        while !let_go(self.tid) {
            if Instant::now() >= until {
                LEFT.with_borrow_mut(|left| left.push(self.tid));
                return;
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(2));
        }
    }
}

/// Lets a seized thread go that was not seen to stop, or has been killed since. `false`: it cannot be done yet, as it has not met its interruption:
/// it waits for a CPU, or for a disk. It would stand still when it does.
fn let_go(tid: Pid) -> bool {
    match waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => false,
        Ok(WaitStatus::Stopped(_, signal)) => ptrace::detach(tid, signal).is_ok(),
        Ok(WaitStatus::PtraceEvent(..)) => ptrace::detach(tid, None).is_ok(),
        // It has ended, and must be waited for by its tracer, or nobody can wait for its process.
        _ => true,
    }
}
