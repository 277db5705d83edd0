//! How long somebody has waited for the GIL. Who does asks for it again every 5 ms, so that its sleep tells
//! nothing; but the GIL counts how often it changes hands, and whoever shares it gives it up when asked.

use super::waits::Party;
use crate::snapshot::{Activity, Process, Snapshot, Thread};

/// Seconds without a change of hands, from the end of the first of two looks to the second.
pub struct Held {
    /// Process, interpreter.
    of: Vec<((i32, i64), f64)>,
    waited_before: Vec<(i32, i32)>,
}

impl Held {
    pub fn new(before: &Snapshot, now: &Snapshot) -> Held {
        let began = before.looks.last().map_or(0.0, |look| look.at + look.took);
        let passed = now.looks.last().map_or(0.0, |look| look.at - began);
        let mut held = Held { of: Vec::new(), waited_before: Vec::new() };
        for process in &now.processes {
            let Some(earlier) = before.processes.iter().find(|p| p.pid == process.pid) else { continue };
            let of_one = |p: &Process| p.interpreters.iter().map(|i| i.id).collect::<Vec<_>>();
            let unmoved = of_one(process).into_iter().filter(|id| {
                let state = gil(process, *id);
                state.is_some() && state == gil(earlier, *id)
            });
            held.of.extend(unmoved.map(|id| ((process.pid, id), passed)));
            held.waited_before.extend(waiters(earlier).filter_map(|t| Some((earlier.pid, t.tid?))));
        }
        held
    }

    /// How long this one has waited at least.
    pub fn by(&self, party: &Party) -> Option<f64> {
        let thread = party.thread().filter(|t| waits(t))?;
        let waited = self.waited_before.contains(&(party.pid(), thread.tid?));
        let of = (party.pid(), thread.interpreter?);
        self.of.iter().find(|(which, _)| waited && *which == of).map(|(_, seconds)| *seconds)
    }
}

/// Who holds it, and how often it has changed hands.
fn gil(process: &Process, interpreter: i64) -> Option<(i32, u64)> {
    let of = process.interpreters.iter().find(|i| i.id == interpreter)?;
    let switches = process.kin.gil_switches.iter().find(|s| s.interpreter == interpreter)?;
    Some((of.gil.as_ref()?.holder?, switches.count))
}

fn waits(thread: &Thread) -> bool {
    thread.activity == Activity::WaitingForGil
}

fn waiters(process: &Process) -> impl Iterator<Item = &Thread> {
    process.threads.iter().filter(|t| waits(t))
}

/// Somebody waits for a GIL, which may mean nothing.
pub fn is_wanted(process: &Process) -> bool {
    waiters(process).next().is_some()
}

/// Somebody waits for a GIL that has not changed hands between two looks.
pub fn stands(before: &Snapshot, now: &Snapshot) -> bool {
    let held = Held::new(before, now);
    now.processes.iter().any(|process| {
        process
            .threads
            .iter()
            .any(|thread| held.by(&Party { process, who: super::waits::Who::Thread(thread) }).is_some())
    })
}
