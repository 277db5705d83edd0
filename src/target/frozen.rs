//! The proof that threads stood still while their memory was read, without stopping them.
//!
//! Two proofs, both over what the scheduler itself counts:
//! * a *sleeping* thread whose run time, run count and system call are the same before and after did
//!   not run in between;
//! * a *running* thread cannot run while we sit on its CPU ("the seat"): its run count and run time
//!   are the same before and after, and its CPU was ours at both ends. Without the second half a
//!   thread that runs on another CPU all the time slips through, since its times are brought up to
//!   date only when it leaves the CPU.
//!
//! Where a GIL is in use only its holder can change a frame or an object, so one thread that stands
//! still, with the GIL's own words unchanged, freezes the whole process.

use std::time::Duration;

use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::parse::Doing;
use super::probe::{Standing, ThreadProbe};

/// Puts this thread on other CPUs, ahead of who runs there; back to where and what it was when dropped.
#[derive(Default)]
pub struct Seat {
    home: Option<Home>,
    on: Option<usize>,
    refused: bool,
}

/// Where this thread ran before it took a seat.
struct Home {
    cpus: CpuSet,
    cpu: Option<usize>,
    /// While seated, we have a real-time policy: who runs on the CPU gives way at once, and not after
    /// the slice of time that it may have.
    ahead: bool,
}

impl Seat {
    /// Moves to `cpu`, which takes effect at once. `false` if we may not go there.
    pub fn take(&mut self, cpu: usize) -> bool {
        if self.on == Some(cpu) {
            return true;
        }
        if self.refused {
            return false;
        }
        if self.home.is_none()
            && let Ok(cpus) = sched_getaffinity(Pid::from_raw(0))
        {
            self.home = Some(Home { cpus, cpu: sched_getcpu().ok(), ahead: go_ahead() });
        }
        if self.home.is_none() || !go_to(cpu) {
            // A cpuset that is not the target's: it will be the same next time.
            self.refused = true;
            return false;
        }
        self.on = Some(cpu);
        if self.home.as_ref().is_some_and(|h| !h.ahead) {
            // Without the right to be ahead: who wakes preempts who runs, and begins a fresh slice of time.
            std::thread::sleep(Duration::from_micros(60));
        }
        true
    }

    /// We may not go where we have to.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// Pinned to this CPU.
    pub fn is_on(&self, cpu: usize) -> bool {
        self.on == Some(cpu)
    }

    /// The CPU that this thread is pinned to and on.
    pub fn cpu(&self) -> Option<usize> {
        self.on.filter(|cpu| sched_getcpu().ok() == Some(*cpu))
    }

    pub fn leave(&mut self) {
        let Some(home) = self.home.take() else { return };
        // First off this CPU: its thread has been kept waiting, and would keep us waiting now.
        if let Some(seat) = self.on.take() {
            match home.cpu {
                Some(cpu) if cpu != seat => _ = go_to(cpu),
                _ => {
                    let mut others = home.cpus;
                    if others.unset(seat).is_ok() {
                        // Fails where this is the only one.
                        let _ = sched_setaffinity(Pid::from_raw(0), &others);
                    }
                }
            }
        }
        if home.ahead {
            set_policy(libc::SCHED_OTHER, 0);
        }
        if let Err(error) = sched_setaffinity(Pid::from_raw(0), &home.cpus) {
            log::warn!("cannot go back to the former CPUs: {error}");
        }
    }
}

fn go_to(cpu: usize) -> bool {
    let mut only = CpuSet::new();
    only.set(cpu).is_ok() && sched_setaffinity(Pid::from_raw(0), &only).is_ok()
}

fn go_ahead() -> bool {
    // SAFETY: only asks; 0 is this thread. Who has chosen a policy for us keeps it.
    let now = unsafe { libc::sched_getscheduler(0) } & !libc::SCHED_RESET_ON_FORK;
    now == libc::SCHED_OTHER && set_policy(libc::SCHED_FIFO, 1)
}

/// Refused without CAP_SYS_NICE, and in a cgroup without real-time bandwidth.
fn set_policy(policy: i32, priority: i32) -> bool {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one integer; 0 is this thread.
    unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const param) == 0 }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// How one thread was found at the start of a window.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    standing: Standing,
    /// The CPU that we share with it, if it does not sleep.
    cpu: Option<usize>,
}

/// What held a thread still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Still {
    Asleep,
    Seat,
}

/// Before the read. With `seat`, goes to the thread's CPU if the thread is not asleep.
pub fn start(probe: &ThreadProbe, seat: Option<&mut Seat>) -> Option<Start> {
    let standing = probe.standing().ok()?;
    if matches!(standing.doing, Doing::Asleep(_)) {
        return Some(Start { standing, cpu: None });
    }
    let seat = seat?;
    let cpu = probe.cpu().ok()?;
    if !seat.take(cpu) {
        return None;
    }
    // It may have moved or gone to sleep while we came.
    let standing = probe.standing().ok()?;
    if matches!(standing.doing, Doing::Asleep(_)) {
        return Some(Start { standing, cpu: None });
    }
    let here = probe.cpu().ok()?;
    (sched_getcpu().ok()? == here && here == cpu).then_some(Start { standing, cpu: Some(cpu) })
}

/// After the read: whether the thread stood still from `start` until now, and why.
pub fn finish(probe: &ThreadProbe, start: &Start) -> Option<Still> {
    let now = probe.standing().ok()?;
    match start.cpu {
        None => start.standing.is_proof_against(&now).then_some(Still::Asleep),
        Some(cpu) => {
            let same = (now.run_ns, now.runs) == (start.standing.run_ns, start.standing.runs);
            (same && probe.cpu().ok()? == cpu && sched_getcpu().ok()? == cpu).then_some(Still::Seat)
        }
    }
}
