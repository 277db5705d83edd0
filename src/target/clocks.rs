//! Clocks: absolute deadlines to sleep to, and the time that a process has had on CPUs.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use nix::unistd::Pid;

/// CLOCK_MONOTONIC, nanoseconds.
pub fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, nanos)
}

/// CPU time of the calling thread, nanoseconds.
pub fn own_cpu() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0, nanos)
}

/// What a search may cost: so much CPU time of the calling thread. On a machine that others keep busy it takes
/// longer, and finds the same; but there is an end to that as well.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    cpu: u64,
    wall: Instant,
}

impl Allowance {
    /// How much longer than its CPU time it may take.
    const PATIENCE: u32 = 8;

    pub fn of(cpu: Duration) -> Self {
        let nanos = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        Allowance { cpu: own_cpu().saturating_add(nanos), wall: Instant::now() + cpu * Self::PATIENCE }
    }

    pub fn is_spent(self) -> bool {
        own_cpu() > self.cpu || Instant::now() > self.wall
    }

    /// A part of it.
    pub fn at_most(self, cpu: Duration) -> Self {
        let part = Allowance::of(cpu);
        Allowance { cpu: self.cpu.min(part.cpu), wall: self.wall.min(part.wall) }
    }
}

/// How often the calling thread has left its CPU.
pub fn own_switches() -> Option<u64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
    Some(
        (usage.voluntary_context_switches() as u64).wrapping_add(usage.involuntary_context_switches() as u64),
    )
}

/// Sleeps to a moment of CLOCK_MONOTONIC. `false` if a signal came first.
pub fn sleep_until(deadline: u64) -> bool {
    let at = TimeSpec::from(Duration::from_nanos(deadline));
    !matches!(
        clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at),
        Err(Errno::EINTR)
    )
}

/// Lets timers of this thread fire when they are due, not up to 50 µs later.
pub fn be_punctual() {
    if let Err(errno) = nix::sys::prctl::set_timerslack(1) {
        log::debug!("timer slack: {errno}");
    }
}

/// The CPU time of all threads of a process together, those that ended included.
///
/// The kernel adds what a thread has run up to this very moment, on whichever CPU (`thread_group_cputime`,
/// `task_sched_runtime`; kernel/sched/cputime.c, core.c). Two equal answers tell that no thread of the process
/// ran in between, but for moments in which the clock of a CPU stands still to make up for interrupts and stolen
/// time: a cheap hint, no proof.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// Of a process; fails once it is gone.
    pub fn of(pid: i32) -> Result<Self, Errno> {
        let clock = CpuClock(ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?);
        clock.now().map(|_| clock)
    }

    /// Nanoseconds.
    pub fn now(self) -> Result<u64, Errno> {
        clock_gettime(self.0).map(nanos)
    }
}

fn nanos(time: TimeSpec) -> u64 {
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
