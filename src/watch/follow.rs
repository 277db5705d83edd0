//! Which processes there are to watch, over restarts of the server and comings and goings of its workers.

use crate::target::blocked::monotonic;
use crate::target::find::{self, FindError, Found, Selector};

/// How often to search, seconds; sooner once a target has vanished.
const EVERY: f64 = 2.0;
const SOON: f64 = 0.25;
/// A search takes at most this share of a core: by port it asks every process of the machine.
const SHARE: f64 = 0.001;

pub struct Follower {
    selector: Selector,
    due: f64,
    cost: f64,
}

impl Follower {
    pub fn new(selector: Selector) -> Self {
        Follower { selector, due: f64::NEG_INFINITY, cost: 0.0 }
    }

    /// Whether the search can find anything later that it does not find now.
    pub fn may_find_more(&self) -> bool {
        self.selector.port.is_some() || self.selector.name.is_some()
    }

    fn changes(&self) -> bool {
        self.may_find_more() || self.selector.subprocesses
    }

    /// A target is gone: its successor may be there soon.
    pub fn hurry(&mut self, now: f64) {
        self.due = self.due.min(now + SOON.max(self.cost / SHARE / 10.0));
    }

    /// The targets, if it is time to search for them.
    pub fn search(&mut self, now: f64) -> Option<Result<Found, FindError>> {
        let first = self.due == f64::NEG_INFINITY;
        if now < self.due || !first && !self.changes() {
            return None;
        }
        let began = monotonic();
        let found = find::find(&self.selector);
        self.cost = (monotonic() - began).as_secs_f64();
        self.due = now + EVERY.max(self.cost / SHARE);
        Some(found)
    }
}
