//! What the OS says of each thread of a process.

use std::borrow::Borrow;
use std::time::Duration;

use super::blocked::{monotonic, with_clocks};
use super::facts::ThreadFacts;
use super::files::{ProcDir, numbers};
use super::parse::{self, Stamp};
use super::probe::{Standing, ThreadProbe, with_room};
use super::syscalls::{self, Arch};
use crate::snapshot::{Precision, ThreadOs};

/// Where the threads stood at an earlier moment: the fallback for [`ThreadOs::blocked_for`] where the kernel does
/// not tell since when a thread has been asleep.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// CLOCK_MONOTONIC.
    pub at: Duration,
    pub standings: Vec<(i32, Standing)>,
}

impl Earlier {
    /// How long a thread has not run at least, seconds: it stood in the same place then.
    fn unmoved_for(&self, tid: i32, standing: &Standing, now: Duration) -> Option<f64> {
        let (_, then) = self.standings.iter().find(|(known, _)| *known == tid)?;
        let same = (then.runs, then.run_ns) == (standing.runs, standing.run_ns);
        same.then(|| now.saturating_sub(self.at).as_secs_f64())
    }
}

/// How long we are ready to wait for other CPUs to let us read their clocks.
const CLOCK_BUDGET: Duration = Duration::from_millis(20);

/// The ids of all tasks, main thread first; empty for a process that is gone.
pub fn tids(pid: i32) -> Vec<i32> {
    let mut tids = numbers(&format!("/proc/{pid}/task")).unwrap_or_default();
    tids.sort_by_key(|&tid| (tid != pid, tid));
    tids
}

/// All threads of a process, main thread first. One that ends while we look is left out.
pub fn thread_facts(pid: i32, earlier: Option<&Earlier>) -> Vec<ThreadFacts> {
    let Ok(dir) = with_room(|| ProcDir::process(pid)) else { return Vec::new() };
    let standing = |tid| {
        let probe = ThreadProbe::below(&dir, pid, tid).ok()?;
        let standing = probe.standing().ok()?;
        Some((probe, standing))
    };
    describe(&dir, pid, tids(pid).into_iter().filter_map(standing), earlier)
}

/// The same for threads that are being watched already: what was read of them is not read again.
pub fn thread_facts_of<'p>(
    pid: i32,
    threads: impl IntoIterator<Item = (&'p ThreadProbe, Standing)>,
    earlier: Option<&Earlier>,
) -> Vec<ThreadFacts> {
    let Ok(dir) = with_room(|| ProcDir::process(pid)) else { return Vec::new() };
    describe(&dir, pid, threads, earlier)
}

fn describe<P: Borrow<ThreadProbe>>(
    dir: &ProcDir,
    pid: i32,
    threads: impl IntoIterator<Item = (P, Standing)>,
    earlier: Option<&Earlier>,
) -> Vec<ThreadFacts> {
    let namespaced = is_in_other_pid_namespace(dir);
    let mut stamps = Vec::new();
    let mut found = Vec::new();
    for (probe, standing) in threads {
        if let Some((facts, stamp)) = thread(dir, probe.borrow(), standing, namespaced) {
            found.push(facts);
            stamps.push((stamp, monotonic(), standing));
        }
    }
    with_clocks(|clocks| {
        clocks.learn(&cpus_by_demand(&found, &stamps), CLOCK_BUDGET);
        for (facts, (stamp, now, standing)) in found.iter_mut().zip(stamps) {
            let exact = stamp.zip(facts.cpu).and_then(|(stamp, cpu)| clocks.since(cpu, stamp, now));
            let before = earlier.filter(|_| is_asleep(facts.os.state));
            let at_least = || before.and_then(|before| before.unmoved_for(facts.tid, &standing, now));
            if let Some(seconds) = exact {
                let precision = match stamp {
                    Some(Stamp::Load(_)) => Precision::AtLeast,
                    _ => Precision::Exact,
                };
                (facts.os.blocked_for, facts.os.blocked_for_is) = (Some(seconds), Some(precision));
            } else if let Some(seconds) = at_least() {
                (facts.os.blocked_for, facts.os.blocked_for_is) = (Some(seconds), Some(Precision::AtLeast));
            }
        }
    });
    log::trace!("{} threads of {pid}", found.len());
    found
}

/// One thread, and the stamp of when it last left its CPU.
fn thread(
    dir: &ProcDir,
    probe: &ThreadProbe,
    standing: Standing,
    namespaced: bool,
) -> Option<(ThreadFacts, Option<Stamp>)> {
    let (comm, state, cpu, kernel) = probe
        .with_stat(|stat| {
            (String::from_utf8_lossy(stat.comm).into_owned(), stat.state, stat.cpu, stat.is_kernel_thread())
        })
        .ok()?;
    // A thread of the kernel is in no system call, and its file says "0", which is `read`.
    let call = standing.doing.syscall().filter(|_| !kernel);
    let mut os = ThreadOs {
        state: Some(state),
        syscall: call.map(|call| syscalls::decode(Arch::HERE, &call)),
        cpu_time: Some(standing.run_ns as f64 / 1e9),
        ..ThreadOs::default()
    };
    let mut ns_tid = probe.tid;
    let mut stamp = None;
    let mut buffer = [0; 4096];
    if is_asleep(Some(state)) {
        stamp = dir.read_of_task(probe.tid, c"sched", &mut buffer).ok().and_then(parse::stamp);
        // In a futex all threads sleep at the same place: not worth 10 µs for each of hundreds.
        let says_nothing = call.is_some_and(|call| syscalls::futex_address(Arch::HERE, &call).is_some());
        if !says_nothing {
            os.wchan = dir.read_of_task(probe.tid, c"wchan", &mut buffer).ok().and_then(wchan);
        }
    }
    if namespaced && let Ok(status) = dir.read_of_task(probe.tid, c"status", &mut buffer) {
        let ids = parse::field(status, "NSpid").map(|line| parse::numbers(line).last());
        ns_tid = ids.flatten().map_or(ns_tid, |id| id as i32);
    }
    Some((ThreadFacts { tid: probe.tid, ns_tid, comm, os, syscall: call, cpu: Some(cpu) }, stamp))
}

/// `0`: not asleep, or we may not know.
fn wchan(text: &[u8]) -> Option<String> {
    let name = text.trim_ascii();
    (!name.is_empty() && name != b"0").then(|| String::from_utf8_lossy(name).into_owned())
}

fn is_asleep(state: Option<char>) -> bool {
    matches!(state, Some('S' | 'D'))
}

/// Our `/proc` knows it by another number than it does itself.
fn is_in_other_pid_namespace(dir: &ProcDir) -> bool {
    let mut buffer = [0; 4096];
    dir.read(c"status", &mut buffer)
        .ok()
        .and_then(|status| parse::field(status, "NSpid"))
        .is_some_and(|ids| parse::words(ids).count() > 1)
}

/// Pairs of (tid in our pid namespace, tid as the target itself sees it).
pub fn namespaced_tids(pid: i32) -> Vec<(i32, i32)> {
    let Ok(dir) = with_room(|| ProcDir::process(pid)) else { return Vec::new() };
    let inside = |tid| {
        let mut buffer = [0; 4096];
        let status = dir.read_of_task(tid, c"status", &mut buffer).ok()?;
        parse::numbers(parse::field(status, "NSpid")?).last().map(|id| id as i32)
    };
    tids(pid).into_iter().filter_map(|tid| Some((tid, inside(tid)?))).collect()
}

fn cpus_by_demand(threads: &[ThreadFacts], stamps: &[(Option<Stamp>, Duration, Standing)]) -> Vec<usize> {
    let mut demand: Vec<(usize, usize)> = Vec::new();
    for (facts, (stamp, ..)) in threads.iter().zip(stamps) {
        let Some(cpu) = stamp.and(facts.cpu) else { continue };
        match demand.iter_mut().find(|(known, _)| *known == cpu) {
            Some((_, count)) => *count += 1,
            None => demand.push((cpu, 1)),
        }
    }
    // Stable: the main thread's CPU stays first among equals.
    demand.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    demand.into_iter().map(|(cpu, _)| cpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::parse::Doing;

    #[test]
    fn what_two_readings_tell() {
        let stood = Standing { run_ns: 10, runs: 2, doing: Doing::Unknown };
        let earlier = Earlier { at: Duration::from_secs(5), standings: vec![(7, stood)] };
        let now = Duration::from_secs(8);
        assert_eq!(earlier.unmoved_for(7, &stood, now), Some(3.0));
        assert_eq!(earlier.unmoved_for(7, &Standing { runs: 3, ..stood }, now), None);
        assert_eq!(earlier.unmoved_for(8, &stood, now), None);
    }

    #[test]
    fn kernel_functions() {
        assert_eq!(wchan(b"0"), None);
        assert_eq!(wchan(b""), None);
        assert_eq!(wchan(b"futex_do_wait").as_deref(), Some("futex_do_wait"));
    }
}
