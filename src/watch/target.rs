//! One process while it is watched: its poller, and what was asked and judged of its threads.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::metrics::{Metrics, OfProcess};
use super::poll::Poller;
use super::stall::{Suspect, What};
use crate::snapshot::Snapshot;

/// How much the GIL's share of the last second counts.
const GIL_SMOOTHING: f64 = 0.1;

/// One process that is watched.
pub(super) struct Target {
    pub poller: Poller,
    /// What was already looked into, by thread.
    pub asked: FxHashMap<i32, f64>,
    /// When, and what was found of a stack: who stands there stalls, or waits for work.
    pub judged: FxHashMap<u64, (f64, Option<(String, String)>)>,
    /// Infinite while one is under way: then `patrol_next` keeps when the next was due, and whether it was.
    pub patrol_at: f64,
    pub patrol_next: f64,
    pub patrol_is_due: bool,
    /// When the last one ended, and what it cost, seconds of a CPU.
    pub patrolled: f64,
    pub cost: f64,
    /// When the last look that searched all memory ended, and what it cost.
    pub whole: (f64, f64),
    /// Time between looks at threads that are busy all the time, seconds.
    pub active_wait: f64,
    /// The first look of a patrol that saw something.
    pub patrol_first: Option<Arc<Snapshot>>,
    pub gil: Gil,
}

#[derive(Default)]
pub(super) struct Gil {
    polls: u32,
    held: u32,
    share: Option<f64>,
}

impl Target {
    pub fn new(poller: Poller, now: f64) -> Self {
        Target {
            poller,
            asked: FxHashMap::default(),
            judged: FxHashMap::default(),
            patrol_at: now + 1.0,
            patrol_next: now + 1.0,
            patrol_is_due: false,
            patrolled: now,
            cost: 0.0,
            whole: (f64::NEG_INFINITY, 0.0),
            active_wait: 0.0,
            patrol_first: None,
            gil: Gil::default(),
        }
    }

    /// From when on another search of all memory keeps to this share of a core.
    pub fn whole_at(&self, share: f64) -> f64 {
        self.whole.0 + self.whole.1 / share
    }

    /// Threads that have passed the limit since they were asked last.
    pub fn suspects(&mut self, now: f64, stall: f64) -> impl Iterator<Item = Suspect> {
        let pid = self.poller.pid;
        let threads = self.poller.threads();
        if self.asked.len() > 2 * threads.len() + 16 {
            self.asked.retain(|tid, _| threads.iter().any(|t| t.tid == *tid));
        }
        let asked = &self.asked;
        threads.iter().filter_map(move |thread| {
            let (what, since) = thread.suspicion()?;
            // What was read of a running thread was not read of one moment: twice the same is.
            let twice = what == What::Thread || thread.event_loop.is_some_and(|l| l.polls >= 2);
            let new = asked.get(&thread.tid) != Some(&since);
            (now - since >= stall && twice && new).then_some(Suspect { pid, tid: thread.tid, what, since })
        })
    }

    pub fn observe(&mut self, metrics: &Metrics, now: f64) {
        metrics.polls.inc();
        let lag = metrics.loop_lag.get_or_create(&OfProcess { pid: self.poller.pid });
        for thread in self.poller.threads().iter().filter(|t| t.event_loop.is_some()) {
            lag.observe(thread.iteration().map_or(0.0, |start| (now - start).max(0.0)));
        }
        if let Some(held) = self.poller.gil_held() {
            self.gil.polls += 1;
            self.gil.held += u32::from(held);
        }
    }
}

impl Gil {
    /// The share so far, smoothed; begins a new second.
    pub fn share(&mut self) -> Option<f64> {
        if self.polls > 0 {
            let last = f64::from(self.held) / f64::from(self.polls);
            self.share = Some(self.share.map_or(last, |share| share + GIL_SMOOTHING * (last - share)));
            (self.polls, self.held) = (0, 0);
        }
        self.share
    }
}
