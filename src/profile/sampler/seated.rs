//! The seat: whom to keep from running during a read, and the proof that it did not run. Why that is one: profile/mod.rs.

use std::time::Duration;

use nix::sched::sched_getcpu;

use super::{Found, Outcome, Sampler, Trouble, state};
use crate::profile::reader::{self, Gil};
use crate::profile::threads::State;
use crate::profile::tree::Tree;
use crate::target::clocks::own_switches;
use crate::target::frozen::Seat;
use crate::target::parse::Doing;
use crate::target::pause::{Pause, PauseError};
use crate::target::probe::ThreadProbe;

/// Whole reads of a process before its threads are proven one by one.
const TRIES: usize = 3;
/// Reads of one thread before it is called torn.
const TRIES_OF_A_THREAD: usize = 5;
/// How long a thread may take to stop.
const PAUSE_DEADLINE: Duration = Duration::from_millis(20);

/// A thread that does not run, and what will have changed if it did.
#[derive(Debug)]
struct Guard {
    thread: usize,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    /// Its run time and run count.
    Ran(u64, u64),
    /// The CPU that it says it is on, which is ours, and how often we had left that.
    Place { cpu: usize, switches: u64 },
    /// It is stopped until this is dropped.
    Paused { _pause: Pause },
}

impl Sampler {
    pub(super) fn sample_seated(&mut self, tree: &mut Tree, seat: &mut Seat) -> Outcome {
        self.housekeeping();
        let mut one_by_one = self.unproven > 128 && !self.stats.samples.is_multiple_of(16);
        for attempt in 0..TRIES {
            // Of a thread that stands alone and ran, the clock tells nothing new.
            let mut now = None;
            if !self.any_runs || self.threads.len() != 1 {
                let Ok(time) = self.clock.now() else { return Outcome::Gone };
                now = Some(time);
            }
            if self.last.is_some() && self.last == now && !self.list_again && !self.any_runs {
                self.stats.samples += 1;
                self.stats.unchanged += 1;
                return Outcome::Sample;
            }
            self.pages.end_with(None);
            let mut guard = None;
            if !one_by_one && attempt == 0 {
                guard = self.guard_by_place(seat);
            }
            if !one_by_one && guard.is_none() {
                guard = self.guard(seat);
            }
            let paused = guard.as_ref().filter(|g| matches!(g.proof, Proof::Paused { .. })).map(|g| g.thread);
            match self.read(now, paused) {
                Ok(()) => match guard.and_then(|guard| self.covered(&guard)) {
                    Some(true) => {
                        self.unproven -= self.unproven / 16;
                        self.commit(tree, now);
                        return Outcome::Sample;
                    }
                    // It stood still, but others may have run.
                    Some(false) => one_by_one = true,
                    None => {}
                },
                Err(Trouble::Gone) => return Outcome::Gone,
                Err(Trouble::Threads) => {
                    self.relist();
                    continue;
                }
                Err(Trouble::Moved) => {}
            }
            self.choose_runner();
            if one_by_one {
                break;
            }
            self.stats.retries += 1;
        }
        if self.list_again || (self.found.is_empty() && !one_by_one) {
            // The list of threads changed every time.
            self.stats.samples += 1;
            self.stats.torn += 1;
            return Outcome::Torn;
        }
        self.unproven += (256 - self.unproven) / 16;
        self.one_by_one(tree, seat)
    }

    /// Before a read: sees to it that the thread that runs does not, as long as we do.
    ///
    /// It does not run now if it sleeps, or if its CPU is the one that we are on; and should it begin to,
    /// its run count will have grown. (Two equal answers of the CPU clock alone prove nothing: while the
    /// kernel makes up for interrupts or stolen time, that clock stands still; `update_rq_clock_task`,
    /// kernel/sched/core.c.)
    fn guard(&mut self, seat: &mut Seat) -> Option<Guard> {
        let probe = self.threads.get(self.runner)?.probe.as_ref()?;
        for _ in 0..2 {
            let ran = probe.ran().ok()?;
            let (state, cpu) = probe.with_stat(|stat| (stat.state, stat.cpu)).ok()?;
            self.runs_on = Some(cpu);
            if state == 'R' && self.options.pause {
                let pause = pause(probe, &mut self.unpaused)?;
                return Some(Guard { thread: self.runner, proof: Proof::Paused { _pause: pause } });
            }
            let still = state != 'R' || sched_getcpu().ok() == Some(cpu) && seat.is_on(cpu);
            if still {
                return Some(Guard { thread: self.runner, proof: Proof::Ran(ran.0, ran.1) });
            }
            if !seat.take(cpu) {
                return None;
            }
        }
        None
    }

    /// The same, if we have sat beside it since the last sample: whether it is here at all is told after the read.
    fn guard_by_place(&mut self, seat: &Seat) -> Option<Guard> {
        let thread = self.threads.get(self.runner).filter(|t| t.shown.state == State::Running)?;
        let word = self.places?.of_thread(thread.shown.ident)?;
        let cpu = seat.cpu().filter(|cpu| self.runs_on == Some(*cpu))?;
        let switches = own_switches()?;
        self.pages.end_with(Some(word));
        Some(Guard { thread: self.runner, proof: Proof::Place { cpu, switches } })
    }

    /// After a read: `None` if the thread has run, else whether that proves all that was read: with the GIL
    /// in its hands nobody else could change a frame.
    fn covered(&mut self, guard: &Guard) -> Option<bool> {
        let thread = &self.threads[guard.thread];
        let stood = match guard.proof {
            Proof::Paused { .. } => true,
            Proof::Ran(time, runs) => thread.probe.as_ref()?.ran().ok()? == (time, runs),
            Proof::Place { cpu, switches } => {
                self.pages.last_word().map(|word| word as u32) == Some(cpu as u32)
                    && own_switches() == Some(switches)
            }
        };
        if !stood {
            return None;
        }
        let holds = |gil: &Option<Gil>| gil.is_some_and(|g| g.locked && g.holder == thread.tstate);
        let by_gil = self.gils.get(thread.interp).is_some_and(holds);
        let covers = |found: &Found| {
            found.thread == guard.thread
                || found.frames.is_none()
                || (by_gil && self.threads[found.thread].interp == thread.interp)
        };
        Some(self.found.iter().all(covers))
    }

    /// Whom to guard the next time.
    pub(super) fn choose_runner(&mut self) {
        let runs = |f: &&Found| f.state == State::Running;
        let runner = self.found.iter().find(|f| f.holds).or_else(|| self.found.iter().find(runs));
        if let Some(found) = runner.or(self.found.first()) {
            self.runner = found.thread;
        }
    }

    /// Several threads run at once, or somebody else does: each by its own run count.
    fn one_by_one(&mut self, tree: &mut Tree, seat: &mut Seat) -> Outcome {
        self.stats.one_by_one += 1;
        self.last = None;
        let mut proven = 0;
        let found = std::mem::take(&mut self.found);
        for thread in &mut self.threads {
            thread.shown.holds_gil = false;
            // Who has run and is not proven below is not of this sample.
            thread.shown.exact = true;
        }
        for one in &found {
            if one.frames.is_none() && one.state != State::Running {
                self.raw.clear();
                self.keep(tree, *one);
                proven += 1;
                continue;
            }
            match self.prove(*one, seat) {
                Some(one) => {
                    self.keep_proven(tree, one);
                    proven += 1;
                }
                None => {
                    self.stats.torn += 1;
                    self.threads[one.thread].shown.exact = false;
                }
            }
        }
        let torn = proven == 0 && !found.is_empty();
        self.found = found;
        self.finish();
        if torn { Outcome::Torn } else { Outcome::Sample }
    }

    /// Reads one thread while it provably does not run.
    fn prove(&mut self, found: Found, seat: &mut Seat) -> Option<Found> {
        for _ in 0..TRIES_OF_A_THREAD {
            let probe = self.threads[found.thread].probe.as_ref()?;
            let cpu = probe.cpu().ok()?;
            let ran = probe.ran().ok()?;
            let asleep = matches!(probe.doing(), Doing::Asleep(_));
            let mut stopped = None;
            if !asleep && self.options.pause {
                stopped = Some(pause(probe, &mut self.unpaused)?);
            }
            let held = asleep || stopped.is_some();
            let sits = held || (seat.take(cpu) && probe.cpu().ok()? == cpu);
            if !sits {
                continue;
            }
            // What it ran up to our coming is accounted for now that it does not run any more.
            let ran = if asleep { ran } else { probe.ran().ok()? };
            self.pages.refresh().ok()?;
            self.raw.clear();
            self.roots.clear();
            let thread = &self.threads[found.thread];
            let (layout, runtime) = (&self.python.layout, self.python.runtime);
            let interp = self.interps[thread.interp].addr;
            let gil = reader::gil(&mut self.pages, layout, runtime, interp);
            let holds = gil.is_some_and(|g| g.locked && g.holder == thread.tstate);
            let state = if asleep { state(thread, gil, layout) } else { State::Running };
            let collecting = holds && reader::collecting(&mut self.pages, layout, runtime, interp);
            let walked = reader::walk(&mut self.pages, layout, thread.tstate, &mut self.raw).is_some();
            let root = self.root(found.thread);
            let probe = self.threads[found.thread].probe.as_ref()?;
            let same = stopped.is_some() || probe.ran().ok()? == ran;
            let here = || probe.cpu().ok() == Some(cpu) && sched_getcpu().ok() == Some(cpu);
            if walked && same && (held || here()) {
                let frames = Some((0, self.raw.len()));
                return Some(Found { state, holds, collecting, ran: Some(ran), frames, root, ..found });
            }
            self.stats.retries += 1;
        }
        None
    }
}

/// Stops a running thread. Asked once more whether it sleeps: its system call would return early.
fn pause(probe: &ThreadProbe, unpaused: &mut Option<PauseError>) -> Option<Pause> {
    if matches!(probe.doing(), Doing::Asleep(_)) {
        return None;
    }
    match Pause::seize(probe.tid, PAUSE_DEADLINE) {
        Ok(pause) => Some(pause),
        Err(error) => {
            *unpaused = Some(error);
            None
        }
    }
}
