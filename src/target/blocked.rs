//! Since when a thread has not run.
//!
//! The kernel stamps a thread when it leaves its CPU (`se.exec_start` in `/proc/PID/task/TID/sched`), on the clock
//! of that CPU: `rq_clock_task`, from which interrupts and stolen time are taken off, so that the clocks of two
//! CPUs drift apart (0.5 s was seen). To read such a clock the reader goes to that CPU and looks at its own stamp.

use std::cell::RefCell;
use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::clocks::Allowance;
use super::parse::{self, Stamp};

/// How far each CPU's clock lies behind the monotonic one, as far as that is known. It drifts by the CPU's
/// interrupt and stolen time: make a new one for each look.
#[derive(Debug)]
pub struct CpuClocks {
    own: Option<File>,
    /// CPU and `monotonic − its clock`, nanoseconds; the same for its clock of loads.
    lags: Vec<(usize, i64, Option<i64>)>,
    /// `/proc/thread-self/sched` belongs to the thread that opened it.
    _of_this_thread: PhantomData<*const ()>,
}

/// Clocks that are older than this have drifted too far.
const FRESH: Duration = Duration::from_secs(1);

thread_local! {
    static CLOCKS: RefCell<Option<(Duration, CpuClocks)>> = const { RefCell::new(None) };
}

/// With the clocks as they were learnt a moment ago, if they were: of a crowd of processes each would go to a CPU
/// that may be busy.
pub fn with_clocks<T>(then: impl FnOnce(&mut CpuClocks) -> T) -> T {
    CLOCKS.with_borrow_mut(|kept| {
        let now = monotonic();
        if kept.as_ref().is_none_or(|(made, _)| now - *made > FRESH) {
            *kept = None;
        }
        then(&mut kept.get_or_insert_with(|| (now, CpuClocks::new())).1)
    })
}

impl Default for CpuClocks {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuClocks {
    pub fn new() -> Self {
        // Missing on a kernel without CONFIG_SCHED_DEBUG (always there from 6.15 on).
        Self {
            own: File::open("/proc/thread-self/sched").ok(),
            lags: Vec::new(),
            _of_this_thread: PhantomData,
        }
    }

    /// This kernel can tell at all.
    pub fn is_supported(&self) -> bool {
        self.own.is_some()
    }

    /// Learns the clocks of these CPUs, the present one for free, the others by going there one after the other,
    /// most wanted first, until `budget` of CPU time is used up: a CPU that is busy or asleep lets us wait.
    /// The affinity of this thread is restored.
    pub fn learn(&mut self, cpus: &[usize], budget: Duration) {
        if !self.is_supported() {
            return;
        }
        if cpus.iter().any(|&cpu| self.lag(cpu).is_none()) {
            self.look();
        }
        if cpus.iter().all(|&cpu| self.lag(cpu).is_some()) {
            return;
        }
        // Fails where there are more CPUs than nix's set holds (1,024): then nothing is exact.
        let Ok(before) = sched_getaffinity(Pid::from_raw(0)) else { return };
        let guard = Restore(before);
        let allowed = Allowance::of(budget);
        for &cpu in cpus {
            if self.lag(cpu).is_some() {
                continue;
            }
            if allowed.is_spent() {
                break;
            }
            let mut only = CpuSet::new();
            // Refused outside of our cpuset.
            if only.set(cpu).is_ok() && sched_setaffinity(Pid::from_raw(0), &only).is_ok() {
                self.look();
            }
        }
        drop(guard);
    }

    /// How long ago this stamp was made, seconds; `None` where that CPU's clock is not known.
    pub fn since(&self, cpu: usize, stamp: Stamp, now: Duration) -> Option<f64> {
        let (_, ran, load) = *self.lags.iter().find(|lag| lag.0 == cpu)?;
        let (stamp, lag) = match stamp {
            Stamp::Ran(stamp) => (stamp, ran),
            Stamp::Load(stamp) => (stamp, load?),
        };
        let then = i64::try_from(stamp).ok()?.checked_add(lag)?;
        let now = i64::try_from(now.as_nanos()).ok()?;
        Some(now.saturating_sub(then).max(0) as f64 / 1e9)
    }

    fn lag(&self, cpu: usize) -> Option<i64> {
        self.lags.iter().find(|lag| lag.0 == cpu).map(|lag| lag.1)
    }

    /// Learns the clock of the CPU that we are on.
    fn look(&mut self) {
        let Some(own) = &self.own else { return };
        let mut best: Option<(usize, i64, Option<i64>, Duration)> = None;
        for _ in 0..3 {
            let Ok(cpu) = sched_getcpu() else { return };
            // Our own stamp is that of our last tick, unless our CPU time is asked for: this makes the kernel bring
            // it up to date (kernel/sched/core.c, task_sched_runtime).
            let _ = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
            let now = monotonic();
            let mut buffer = [0; 4096];
            let Ok(length) = own.read_at(&mut buffer, 0) else { return };
            let took = monotonic() - now;
            let Some(stamp) = parse::exec_start(&buffer[..length]) else { return };
            if sched_getcpu() != Ok(cpu) {
                continue;
            }
            let (Ok(now), Ok(stamp)) = (i64::try_from(now.as_nanos()), i64::try_from(stamp)) else { return };
            if best.is_none_or(|(.., before)| took < before) {
                let load = parse::load_updated(&buffer[..length]).and_then(|at| i64::try_from(at).ok());
                best = Some((cpu, now - stamp, load.map(|at| now - at), took));
            }
            // Longer, and we were off the CPU in the middle: the stamp may be younger than `now`.
            if took < Duration::from_micros(200) {
                break;
            }
        }
        if let Some((cpu, lag, load, _)) = best
            && self.lag(cpu).is_none()
        {
            self.lags.push((cpu, lag, load));
        }
    }
}

struct Restore(CpuSet);

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(Pid::from_raw(0), &self.0) {
            log::warn!("cannot go back to the former CPUs: {error}");
        }
    }
}

/// CLOCK_MONOTONIC.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_affinity_is_restored_and_the_clocks_are_known() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mut clocks = CpuClocks::new();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| before.is_set(cpu).unwrap()).collect();
        clocks.learn(&cpus, Duration::from_secs(10));
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before);
        if clocks.is_supported() {
            for cpu in cpus {
                assert!(clocks.lag(cpu).is_some());
            }
        }
        assert_eq!(clocks.since(1022, Stamp::Ran(1), monotonic()), None);
        clocks.learn(&[1023], Duration::ZERO);
        assert_eq!(clocks.since(1023, Stamp::Load(5), monotonic()), None);
    }
}
