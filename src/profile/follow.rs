//! Children that come and go, and processes that do not run Python yet.

use crate::target::births::Births;
use crate::target::clocks::monotonic;
use crate::target::find::{self, Looks};

/// Looked for at most this often, nanoseconds: what a child did before it was found is lost. And where there are so many
/// processes that it takes its time, for no more than a part of all time.
const EVERY: u64 = 2_000_000;
const PART: u64 = 16;
/// A process that is no Python (yet) is looked at again after so long; doubled each time.
const AGAIN: u64 = 5_000_000;
const AGAIN_AT_MOST: u64 = 250_000_000;

#[derive(Debug)]
pub struct Candidate {
    pub pid: i32,
    next: u64,
    pause: u64,
}

pub struct Follower {
    births: Births,
    next: u64,
    known: Vec<i32>,
    candidates: Vec<Candidate>,
    /// Also look for descendants.
    descend: bool,
}

impl Follower {
    pub fn new(roots: &[i32], descend: bool) -> Follower {
        Follower { births: Births::watch(), next: 0, known: roots.to_vec(), candidates: Vec::new(), descend }
    }

    /// It is attached to.
    pub fn known(&mut self, pid: i32) {
        if !self.known.contains(&pid) {
            self.known.push(pid);
        }
    }

    /// A process to attach to as soon as it runs Python.
    pub fn expect(&mut self, pid: i32, now: u64) {
        self.known(pid);
        self.candidates.push(Candidate { pid, next: now, pause: AGAIN });
    }

    /// Those that look like Python now.
    pub fn due(&mut self, now: u64) -> Vec<i32> {
        if self.descend && now >= self.next {
            if self.births.any() {
                self.descend(now);
            }
            self.next = now + EVERY.max((monotonic() - now) * PART);
        }
        let mut due = Vec::new();
        self.candidates.retain_mut(|candidate| {
            if candidate.next > now {
                return true;
            }
            match find::looks_like_python(candidate.pid) {
                Looks::Python => {
                    due.push(candidate.pid);
                    false
                }
                Looks::Unknown => {
                    candidate.next = now + candidate.pause;
                    candidate.pause = (candidate.pause * 2).min(AGAIN_AT_MOST);
                    true
                }
                Looks::Never => false,
            }
        });
        due
    }

    /// Expects the descendants that are new.
    fn descend(&mut self, now: u64) {
        // Of those whose parent has ended, too: they are nobody else's.
        let alive = find::descendants(&self.known);
        self.known.retain(|pid| alive.contains(pid));
        for pid in alive {
            if !self.known.contains(&pid) {
                self.expect(pid, now);
            }
        }
    }

    /// It looked like Python, but there was nothing to read yet.
    pub fn later(&mut self, pid: i32, now: u64) {
        self.candidates.push(Candidate { pid, next: now + AGAIN, pause: AGAIN * 2 });
    }

    /// Some process of the tree runs, Python or not.
    pub fn is_alive(&self) -> bool {
        self.descend && self.known.iter().any(|pid| find::looks_like_python(*pid) != Looks::Never)
    }

    pub fn is_waiting(&self) -> bool {
        !self.candidates.is_empty()
    }
}
