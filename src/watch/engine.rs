//! Polls all targets, looks closely at what lasts too long, and tells what it saw.

use rustc_hash::FxHashMap;

use super::exec::{Call, Runner};
use super::follow::Follower;
use super::metrics::{Metrics, OfProcess, OfReason, OfRule};
use super::poll::Poller;
use super::reports::{Refusal, Reports, Series, WriteError};
use super::stall::{self, Stall, Suspect, What};
use super::write;
use crate::diagnose::diagnose;
use crate::look::capture::Capture;
use crate::look::{self, Options};
use crate::render::report::Report;
use crate::snapshot::{Look, Process, Snapshot};
use crate::target::access::AccessError;
use crate::target::blocked::monotonic;
use crate::target::find::FindError;
use crate::target::host;

/// When a stall that goes on is looked at again, in multiples of the limit after the look before: at once, to
/// tell what moves; then after as long again; then when there is no hope left.
const SERIES: [f64; 3] = [0.1, 1.0, 4.0];
/// Two looks are this far apart at least, seconds.
const APART: f64 = 0.1;
/// Looks for what no poll can see may take this share of a core, and are this far apart at least, seconds.
const PATROL_SHARE: f64 = 0.001;
const PATROL_EVERY: f64 = 5.0;
/// The second look that a suspicion of the first one needs.
const PATROL_AGAIN: f64 = 0.25;
/// Close looks at suspects: this share of a core in the long run, and so many seconds of it at once.
const LOOKS_SHARE: f64 = 0.002;
const LOOKS_AT_ONCE: f64 = 0.5;
/// Stacks that have been judged are remembered, so many per process.
const MAX_JUDGED: usize = 4096;
/// How often an attach that failed is tried again, seconds.
const TRY_AGAIN: f64 = 5.0;
/// How much the GIL's share of the last second counts.
const GIL_SMOOTHING: f64 = 0.1;

/// What happened, for whoever prints it.
#[derive(Debug)]
pub enum Event {
    Watching { pid: i32, command: Vec<String> },
    Unreadable(AccessError),
    NotFound(FindError),
    Gone { pid: i32 },
    Stall { stall: Stall, at: String, file: Option<std::path::PathBuf>, refused: Option<Refusal> },
    Over { pid: i32, rule: String, lasted: f64 },
    Trouble(String),
}

pub struct Settings {
    pub stall: f64,
    pub look: Options,
    pub metrics: Option<Metrics>,
}

pub struct Engine {
    settings: Settings,
    follower: Follower,
    reports: Option<Reports>,
    runner: Option<Runner>,
    targets: Vec<Target>,
    /// Until when not to try again.
    unreadable: FxHashMap<i32, f64>,
    episodes: Vec<Episode>,
    /// Seconds of close looks that may be spent now.
    allowance: f64,
    last_poll: f64,
    last_second: f64,
    said_not_found: bool,
}

struct Target {
    poller: Poller,
    /// What was already looked into, by thread.
    asked: FxHashMap<i32, f64>,
    /// What was found of a stack: who stands there stalls, or waits for work.
    judged: FxHashMap<u64, Option<(String, String)>>,
    patrol_at: f64,
    /// The first look of a patrol that saw something.
    patrol_first: Option<Snapshot>,
    gil: Gil,
}

#[derive(Default)]
struct Gil {
    polls: u32,
    held: u32,
    share: Option<f64>,
}

/// A stall that goes on.
struct Episode {
    stall: Stall,
    what: Cause,
    began: f64,
    series: Option<Series>,
    first: Option<Snapshot>,
    looks: usize,
    next_look: f64,
}

enum Cause {
    /// Polls tell how long it lasts.
    Suspect(Suspect),
    /// Only the next patrol tells whether it is over.
    Finding,
}

impl Engine {
    pub fn new(
        settings: Settings,
        follower: Follower,
        reports: Option<Reports>,
        runner: Option<Runner>,
    ) -> Self {
        Engine {
            settings,
            follower,
            reports,
            runner,
            targets: Vec::new(),
            unreadable: FxHashMap::default(),
            episodes: Vec::new(),
            allowance: LOOKS_AT_ONCE,
            last_poll: f64::NAN,
            last_second: f64::NEG_INFINITY,
            said_not_found: false,
        }
    }

    pub fn is_watching(&self) -> bool {
        !self.targets.is_empty()
    }

    /// Nothing is watched, and nothing can appear.
    pub fn is_at_end(&self) -> bool {
        self.targets.is_empty() && !self.follower.may_find_more()
    }

    /// One round; `now` is CLOCK_MONOTONIC, seconds.
    pub fn step(&mut self, now: f64, tell: &mut dyn FnMut(Event)) {
        if self.last_poll.is_finite() {
            self.allowance = (self.allowance + (now - self.last_poll) * LOOKS_SHARE).min(LOOKS_AT_ONCE);
        }
        self.last_poll = now;
        self.follow(now, tell);
        let second = now - self.last_second >= 1.0;
        let mut suspects: Vec<(usize, Suspect)> = Vec::new();
        let mut gone: Vec<i32> = Vec::new();
        for (i, target) in self.targets.iter_mut().enumerate() {
            if target.poller.poll(now).is_err() {
                gone.push(target.poller.pid);
                continue;
            }
            if let Some(metrics) = &self.settings.metrics {
                target.observe(metrics, now);
            }
            let stall = self.settings.stall;
            suspects.extend(target.suspects(now, stall).map(|s| (i, s)));
        }
        for (i, suspect) in suspects {
            self.look_into(i, suspect, now, tell);
        }
        self.follow_up(now, &gone, tell);
        if !gone.is_empty() {
            self.targets.retain(|t| !gone.contains(&t.poller.pid));
            gone.into_iter().for_each(|pid| tell(Event::Gone { pid }));
            self.follower.hurry(now);
        }
        self.patrol(now, tell);
        if second {
            self.last_second = now;
            self.publish();
        }
    }

    // ------------------------------------------------------------ who is watched

    fn follow(&mut self, now: f64, tell: &mut dyn FnMut(Event)) {
        let found = match self.follower.search(now) {
            None => return,
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                // Once, not every two seconds while the server is down.
                if self.targets.is_empty() && !std::mem::replace(&mut self.said_not_found, true) {
                    tell(Event::NotFound(error));
                }
                return;
            }
        };
        self.said_not_found = false;
        self.unreadable.retain(|pid, _| found.pids.contains(pid));
        for pid in found.pids {
            let again = self.unreadable.get(&pid).copied();
            if self.targets.iter().any(|t| t.poller.pid == pid) || again.is_some_and(|at| now < at) {
                continue;
            }
            match Poller::attach(pid, self.settings.stall, now) {
                Ok(poller) => {
                    self.unreadable.remove(&pid);
                    let command = crate::target::proc::command_of(pid);
                    let masked = self.settings.look.show_secrets;
                    let command = if masked { command } else { crate::mask::command(&command) };
                    tell(Event::Watching { pid, command });
                    self.targets.push(Target::new(poller, now));
                }
                Err(error) => {
                    self.unreadable.insert(pid, now + TRY_AGAIN);
                    // One that is starting, or has just ended, is no news.
                    let passing = matches!(error, AccessError::Starting { .. } | AccessError::Gone { .. });
                    if again.is_none() && !passing {
                        tell(Event::Unreadable(error));
                    }
                    if passing {
                        self.unreadable.insert(pid, now);
                        self.follower.hurry(now);
                    }
                }
            }
        }
    }

    // ------------------------------------------------------------ what lasts too long

    fn look_into(&mut self, target: usize, suspect: Suspect, now: f64, tell: &mut dyn FnMut(Event)) {
        let target = &mut self.targets[target];
        if suspect.what == What::Loop && !target.poller.confirm(suspect.tid) {
            return;
        }
        let stands_at = target.poller.stands_at(suspect.tid);
        if let Some(known) = stands_at.and_then(|at| target.judged.get(&at)) {
            let Some((rule, place)) = known else {
                target.asked.insert(suspect.tid, suspect.since);
                return;
            };
            // It would not be written anyway: what it is, is known.
            if self.reports.as_ref().is_none_or(|r| r.is_cooling(rule, place, now)) {
                target.asked.insert(suspect.tid, suspect.since);
                let stall = Stall {
                    pid: suspect.pid,
                    tid: Some(suspect.tid),
                    rule: rule.clone(),
                    place: place.clone(),
                    summary: format!("again in {place}"),
                    age: Some(now - suspect.since),
                    severity: crate::diagnose::Severity::Warning,
                };
                self.begin(stall, Cause::Suspect(suspect), None, now, tell);
                return;
            }
        }
        // That a loop stalls is news; that a thread sleeps seldom is, and can wait.
        if self.allowance <= 0.0 && suspect.what == What::Thread {
            return;
        }
        target.asked.insert(suspect.tid, suspect.since);
        let pid = suspect.pid;
        let Some(seen) = self.look(pid) else { return };
        let report = Report::new(seen.snapshot.clone()).with(diagnose(std::slice::from_ref(&seen.snapshot)));
        let explained = stall::explain(&report, &suspect, monotonic().as_secs_f64() - suspect.since);
        if let (Some(at), Some(target)) = (stands_at, self.targets.iter_mut().find(|t| t.poller.pid == pid)) {
            if target.judged.len() >= MAX_JUDGED {
                target.judged.clear();
            }
            target.judged.insert(at, explained.as_ref().map(|s| (s.rule.clone(), s.place.clone())));
        }
        if let Some(stall) = explained {
            self.begin(stall, Cause::Suspect(suspect), Some((seen, report)), now, tell);
        }
    }

    /// Counts a stall, writes the first report, and remembers it while it lasts.
    fn begin(
        &mut self,
        stall: Stall,
        what: Cause,
        seen: Option<(Seen, Report)>,
        now: f64,
        tell: &mut dyn FnMut(Event),
    ) {
        if let Some(metrics) = &self.settings.metrics {
            metrics.stalls.get_or_create(&OfRule { rule: stall.rule.clone() }).inc();
        }
        let at = host::now();
        let began = match &what {
            Cause::Suspect(suspect) => suspect.since,
            Cause::Finding => now - stall.age.unwrap_or(0.0),
        };
        let (mut file, mut refused, mut series, mut first) = (None, None, None, None);
        match (&mut self.reports, seen) {
            (Some(reports), Some((seen, report))) => {
                match reports.begin(&stall.rule, &stall.place, stall.pid, &at, now) {
                    Ok(begun) => {
                        match write::look(reports, &begun, 1, &report, &seen.capture) {
                            Ok(()) => {
                                let text = begun.file(1, "txt");
                                file = Some(text.clone());
                                let call = Call { report: text, rule: stall.rule.clone(), pid: stall.pid };
                                if self.runner.as_ref().is_some_and(|runner| !runner.call(call)) {
                                    tell(Event::Trouble(
                                        "too many commands of --exec wait: this one is left out".into(),
                                    ));
                                }
                                series = Some(begun);
                            }
                            Err(WriteError::Full) => refused = Some(Refusal::Bytes),
                            Err(error) => {
                                tell(Event::Trouble(format!("the report cannot be written: {error}")))
                            }
                        }
                        first = Some(seen.snapshot);
                    }
                    Err(why) => refused = Some(why),
                }
            }
            (Some(_), None) => refused = Some(Refusal::CoolDown),
            (None, _) => {}
        }
        if let (Some(metrics), Some(why)) = (&self.settings.metrics, refused) {
            metrics.unwritten.get_or_create(&OfReason { reason: why.word().into() }).inc();
        }
        tell(Event::Stall { stall: stall.clone(), at, file, refused });
        let next_look = now + APART.max(SERIES[0] * self.settings.stall);
        self.episodes.push(Episode { stall, what, began, series, first, looks: 1, next_look });
    }

    /// The stalls that go on: another look, or the word that they are over.
    fn follow_up(&mut self, now: f64, gone: &[i32], tell: &mut dyn FnMut(Event)) {
        let mut i = 0;
        while i < self.episodes.len() {
            let episode = &self.episodes[i];
            let pid = episode.stall.pid;
            let target = self.targets.iter().find(|t| t.poller.pid == pid).filter(|_| !gone.contains(&pid));
            let goes_on = target.is_some_and(|target| match &episode.what {
                Cause::Suspect(suspect) => target.poller.goes_on(suspect),
                Cause::Finding => true,
            });
            if !goes_on {
                self.over(i, now, tell);
                continue;
            }
            if episode.series.is_some() && episode.looks <= SERIES.len() && now >= episode.next_look {
                self.look_again(i, now, tell);
            }
            i += 1;
        }
    }

    /// The stall is over, or the process is.
    fn over(&mut self, episode: usize, now: f64, tell: &mut dyn FnMut(Event)) {
        let over = self.episodes.swap_remove(episode);
        let lasted = now - over.began;
        if let (Some(series), Some(reports)) = (&over.series, &mut self.reports) {
            match write::end(reports, series, &over.stall, over.looks, lasted) {
                Ok(()) | Err(WriteError::Full) => {}
                Err(error) => tell(Event::Trouble(format!("the report cannot be written: {error}"))),
            }
        }
        tell(Event::Over { pid: over.stall.pid, rule: over.stall.rule, lasted });
    }

    fn look_again(&mut self, episode: usize, now: f64, tell: &mut dyn FnMut(Event)) {
        let seen = self.look(self.episodes[episode].stall.pid);
        let episode = &mut self.episodes[episode];
        episode.looks += 1;
        let wait = SERIES.get(episode.looks - 1).copied().unwrap_or(f64::INFINITY);
        episode.next_look = now + APART.max(wait * self.settings.stall);
        let (Some(mut seen), Some(first), Some(series), Some(reports)) =
            (seen, &episode.first, &episode.series, &mut self.reports)
        else {
            return;
        };
        let findings = diagnose(&[first.clone(), seen.snapshot.clone()]);
        seen.snapshot.looks.splice(0..0, first.looks.iter().cloned());
        let report = Report::new(seen.snapshot).with(findings);
        match write::look(reports, series, episode.looks, &report, &seen.capture) {
            // The first report stands; the others are a luxury.
            Ok(()) | Err(WriteError::Full) => {}
            Err(error) => tell(Event::Trouble(format!("the report cannot be written: {error}"))),
        }
        if episode.looks > SERIES.len() {
            episode.first = None;
        }
    }

    // ------------------------------------------------------------ what no poll can see

    fn patrol(&mut self, now: f64, tell: &mut dyn FnMut(Event)) {
        let Some(i) = self.targets.iter().position(|t| now >= t.patrol_at) else { return };
        let pid = self.targets[i].poller.pid;
        let began = monotonic();
        let seen = self.look(pid);
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

    // ------------------------------------------------------------ looks and numbers

    fn look(&mut self, pid: i32) -> Option<Seen> {
        let began = monotonic();
        let captured_at = host::now();
        let options = Options { save: self.reports.is_some(), ..self.settings.look.clone() };
        let looked = look::live(pid, &options).ok()?;
        let took = (monotonic() - began).as_secs_f64();
        self.allowance -= took;
        let snapshot = Snapshot {
            captured_at,
            host: host::name(),
            looks: vec![Look { at: 0.0, took }],
            processes: vec![looked.process],
            skipped: Vec::new(),
        };
        let mut capture = Capture::default();
        capture.processes.extend(looked.captured);
        capture.of_snapshot(&snapshot);
        Some(Seen { snapshot, capture })
    }

    fn publish(&mut self) {
        let Some(metrics) = &self.settings.metrics else { return };
        let pids: Vec<i32> = self.targets.iter().map(|t| t.poller.pid).collect();
        metrics.keep_only(&pids);
        for target in &mut self.targets {
            let pid = target.poller.pid;
            let blocked = self.episodes.iter().filter(|e| e.stall.pid == pid).count();
            metrics.blocked_threads.get_or_create(&OfProcess { pid }).set(blocked as i64);
            if let Some(share) = target.gil.share() {
                metrics.gil_held.get_or_create(&OfProcess { pid }).set(share);
            }
        }
    }
}

/// One look at one process, with what a capture of it holds.
struct Seen {
    snapshot: Snapshot,
    capture: Capture,
}

/// What only a whole look tells.
fn of_process(metrics: &Metrics, process: &Process) {
    let of = OfProcess { pid: process.pid };
    if let Some(fds) = process.open_fds {
        metrics.open_fds.get_or_create(&of).set(fds as i64);
    }
    if let Some(age) = process.server.as_ref().and_then(|s| s.heartbeat_age) {
        metrics.heartbeat_age.get_or_create(&of).set(age);
    }
}

impl Target {
    fn new(poller: Poller, now: f64) -> Self {
        Target {
            poller,
            asked: FxHashMap::default(),
            judged: FxHashMap::default(),
            patrol_at: now + 1.0,
            patrol_first: None,
            gil: Gil::default(),
        }
    }

    /// Threads that have passed the limit since they were asked last.
    fn suspects(&mut self, now: f64, stall: f64) -> impl Iterator<Item = Suspect> {
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

    fn observe(&mut self, metrics: &Metrics, now: f64) {
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
    fn share(&mut self) -> Option<f64> {
        if self.polls > 0 {
            let last = f64::from(self.held) / f64::from(self.polls);
            self.share = Some(self.share.map_or(last, |share| share + GIL_SMOOTHING * (last - share)));
            (self.polls, self.held) = (0, 0);
        }
        self.share
    }
}
