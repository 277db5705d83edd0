//! Whole looks, seldom, for what no poll can see: deadlocks, tasks that await each other, exhausted pools, and
//! requests that take long while their thread is busy.

use std::sync::Arc;

use super::engine::{Cause, Engine, Episode, Event};
use super::looker::{Answer, Why};
use super::metrics::{Metrics, OfProcess};
use super::stall::{self, Stall};
use super::target::Target;
use crate::snapshot::Process;

/// Looks for what no poll can see may take this share of a core, and are this far apart at least, seconds.
const PATROL_SHARE: f64 = 0.001;
const PATROL_EVERY: f64 = 5.0;
/// The second look that a suspicion of the first one needs.
const PATROL_AGAIN: f64 = 0.25;
/// Second looks at what the first one suspects, this...
const AGAIN_SHARE: f64 = 0.003;
/// ...and whether a request goes on, this.
const OVER_SHARE: f64 = 0.004;
/// How long a busy server in which nothing takes long is left alone, seconds at most.
const ACTIVE_MOST: f64 = 20.0;
/// What is known of when a request came is that exact, seconds.
const EXACT: f64 = 1.0;

impl Engine {
    /// One patrol at a time; between two of them where a request may take long, as far as the allowance goes.
    pub(super) fn patrol(&mut self, now: f64) {
        if self.targets.iter().any(|t| t.patrol_at.is_infinite()) {
            return;
        }
        let stall = self.settings.stall;
        // Whether a request goes on is asked as soon as its thread rests, when a look costs little.
        let may_be_over = |t: &Target| {
            let of = |e: &Episode| e.stall.tid.filter(|_| matches!(e.what, Cause::Request));
            let of = |e: &Episode| of(e).filter(|_| e.stall.pid == t.poller.pid);
            self.episodes.iter().filter_map(of).any(|tid| t.poller.rests(tid, now, stall / 4.0))
        };
        let early = |t: &Target| {
            let active = || {
                self.allowance > 0.0 && now >= t.patrolled + t.active_wait && t.poller.is_active(now, stall)
            };
            let over = || now >= t.patrolled + t.cost / OVER_SHARE && may_be_over(t);
            now >= t.patrolled + stall && (active() || over())
        };
        let due = self.targets.iter().position(|t| now >= t.patrol_at || early(t));
        let Some(i) = due else { return };
        let target = &self.targets[i];
        let first = target.patrol_first.clone();
        let is_due = now >= target.patrol_at;
        let quick = !is_due || first.is_none() && now < target.whole_at(PATROL_SHARE);
        if self.ask(target.poller.pid, Why::Patrol, first.is_some(), first.filter(|_| !quick), quick) {
            let target = &mut self.targets[i];
            target.patrol_is_due = is_due;
            target.patrol_next = target.patrol_at;
            target.patrol_at = f64::INFINITY;
        }
    }

    pub(super) fn patrolled(&mut self, answer: Answer, now: f64, tell: &mut dyn FnMut(Event)) {
        let pid = answer.pid;
        let Some(target) = self.targets.iter_mut().find(|t| t.poller.pid == pid) else { return };
        (target.patrolled, target.cost) = (now, answer.took);
        target.patrol_at = match target.patrol_is_due {
            true => now + PATROL_EVERY.max(answer.took / PATROL_SHARE),
            false => target.patrol_next,
        };
        if target.patrol_is_due {
            // Not out of the allowance of suspects.
            self.allowance += answer.took;
        }
        if !answer.quick {
            target.whole = (now, answer.took);
            target.patrol_at = now + PATROL_EVERY;
        }
        let first = match target.patrol_is_due {
            true => target.patrol_first.take(),
            false => None,
        };
        let Some((seen, report)) = answer.seen else { return };
        if let (Some(metrics), Some(process)) = (&self.settings.metrics, seen.snapshot.processes.first()) {
            of_process(metrics, process);
        }
        let Some(process) = report.processes.first() else { return };
        let stall = self.settings.stall;
        let mut found = stall::of_findings(process, &report.findings, stall);
        let requests = stall::of_requests(&process.process, stall, self.settings.awaiting);
        // What was a finding and is none any more is over, and so is a request that another one has followed.
        let (mut i, mut doubted) = (0, false);
        while i < self.episodes.len() {
            let Episode { stall, what, began, .. } = &self.episodes[i];
            let goes_on = match what {
                _ if stall.pid != pid => true,
                Cause::Suspect(_) => true,
                Cause::Finding if found.iter().any(|s| s.rule == stall.rule && s.tid == stall.tid) => true,
                // What a search of the memory has found only another one can miss.
                Cause::Finding => {
                    doubted |= answer.quick;
                    answer.quick
                }
                Cause::Request => requests.iter().any(|s| {
                    s.is_of_the_same(stall) && s.age.is_some_and(|age| answer.at - age < began + EXACT)
                }),
            };
            if goes_on {
                i += 1;
            } else {
                self.over(i, now, tell);
            }
        }
        let of_pid = || self.episodes.iter().map(|e| &e.stall).filter(|s| s.pid == pid);
        let requests: Vec<Stall> =
            requests.into_iter().filter(|s| !of_pid().any(|known| known.is_of_the_same(s))).collect();
        found.retain(|s| {
            let is_known = of_pid().any(|known| known.rule == s.rule || known.is_of_the_same(s));
            !is_known && !requests.iter().any(|r| r.is_of_the_same(s))
        });
        if let Some(target) = self.targets.iter_mut().find(|t| t.poller.pid == pid) {
            let soon = (now + PATROL_AGAIN).max(target.whole_at(AGAIN_SHARE));
            if first.is_none() && !found.is_empty() {
                // One look shows where things stand, not whether they move.
                target.patrol_first = Some(Arc::new(seen.snapshot.clone()));
                target.patrol_at = soon;
                found.clear();
            } else if doubted {
                target.patrol_at = soon;
                target.whole.0 = f64::NEG_INFINITY;
            }
            // A server that is busy with short ones, or with one that is known, is asked less and less often.
            let busy = requests.is_empty() && target.poller.is_active(now, stall);
            target.active_wait =
                if busy { (target.active_wait * 2.0).min(ACTIVE_MOST).max(stall) } else { stall };
        }
        // One report has them all.
        let mut seen = Some((seen, report));
        for stall in requests {
            self.begin(stall, Cause::Request, seen.take(), answer.at, tell);
        }
        for stall in found {
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
