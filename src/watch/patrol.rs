//! Whole looks, seldom, for what no poll can see: deadlocks, tasks that await each other, exhausted pools.

use super::engine::{Cause, Engine, Episode, Event};
use super::metrics::{Metrics, OfProcess};
use super::stall::{self, Stall};
use crate::diagnose::diagnose;
use crate::render::report::Report;
use crate::snapshot::{Process, Snapshot};
use crate::target::blocked::monotonic;

/// Looks for what no poll can see may take this share of a core, and are this far apart at least, seconds.
const PATROL_SHARE: f64 = 0.001;
const PATROL_EVERY: f64 = 5.0;
/// The second look that a suspicion of the first one needs.
const PATROL_AGAIN: f64 = 0.25;
impl Engine {
    pub(super) fn patrol(&mut self, now: f64, tell: &mut dyn FnMut(Event)) {
        let Some(i) = self.targets.iter().position(|t| now >= t.patrol_at) else { return };
        let pid = self.targets[i].poller.pid;
        let began = monotonic();
        let seen = self.look(pid, self.targets[i].patrol_first.is_some());
        let took = (monotonic() - began).as_secs_f64();
        // Not out of the allowance of suspects.
        self.allowance += took;
        let target = &mut self.targets[i];
        target.patrol_at = now + PATROL_EVERY.max(took / PATROL_SHARE);
        let Some(seen) = seen else {
            target.patrol_first = None;
            return;
        };
        if let (Some(metrics), Some(process)) = (&self.settings.metrics, seen.snapshot.processes.first()) {
            of_process(metrics, process);
        }
        let first = target.patrol_first.take();
        let looks: Vec<Snapshot> = first.iter().cloned().chain([seen.snapshot.clone()]).collect();
        let report = Report::new(seen.snapshot.clone()).with(diagnose(&looks));
        let Some(process) = report.processes.first() else { return };
        let found = stall::of_findings(process, &report.findings, self.settings.stall);
        let of_pid = |e: &Episode| e.stall.pid == pid && matches!(e.what, Cause::Finding);
        // What was a finding and is none any more is over.
        let mut i = 0;
        while i < self.episodes.len() {
            let episode = &self.episodes[i];
            let still = found.iter().any(|s| s.rule == episode.stall.rule && s.tid == episode.stall.tid);
            if of_pid(episode) && !still {
                self.over(i, now, tell);
            } else {
                i += 1;
            }
        }
        let is_known = |s: &Stall| {
            self.episodes
                .iter()
                .any(|e| e.stall.pid == pid && (e.stall.rule == s.rule || e.stall.tid == s.tid))
        };
        let new: Vec<Stall> = found.into_iter().filter(|s| !is_known(s)).collect();
        if new.is_empty() {
            return;
        }
        if first.is_none() {
            // One look shows where things stand, not whether they move.
            if let Some(target) = self.targets.iter_mut().find(|t| t.poller.pid == pid) {
                target.patrol_first = Some(seen.snapshot);
                target.patrol_at = now + PATROL_AGAIN;
            }
            return;
        }
        let mut seen = Some((seen, report));
        for stall in new {
            // One report has them all.
            self.begin(stall, Cause::Finding, seen.take(), now, tell);
        }
    }
}

/// What only a whole look tells.
fn of_process(metrics: &Metrics, process: &Process) {
    let of = OfProcess { pid: process.pid };
    if let Some(fds) = process.open_fds {
        metrics.open_fds.get_or_create(&of).set(fds as i64);
    }
    if let Some(queued) = process.kin.queued_work {
        metrics.executor_queue.get_or_create(&of).set(queued as i64);
    }
    if let Some(age) = process.server.as_ref().and_then(|s| s.heartbeat_age) {
        metrics.heartbeat_age.get_or_create(&of).set(age);
    }
}
