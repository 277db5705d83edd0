//! Polls all targets, looks closely at what lasts too long, and tells what it saw.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::exec::{Call, Runner};
use super::follow::Follower;
use super::looker::{Answer, Ask, Looker, Why};
use super::metrics::{Metrics, OfProcess, OfReason, OfRule};
use super::poll::Poller;
use super::profile::Profiling;
use super::reports::{Refusal, Reports, Series, WriteError};
use super::stall::{self, Stall, Suspect, What};
use super::target::Target;
use super::write;
use crate::diagnose::diagnose;
use crate::look::capture::Capture;
use crate::look::{self, Options};
use crate::render::report::Report;
use crate::snapshot::{Look, Snapshot};
use crate::target::access::AccessError;
use crate::target::blocked::monotonic;
use crate::target::clocks::own_cpu;
use crate::target::find::FindError;
use crate::target::host;
use crate::target::own_memory;

/// When a stall that goes on is looked at again, in multiples of the limit after the look before: at once, to
/// tell what moves; then after as long again; then when there is no hope left.
const SERIES: [f64; 3] = [0.1, 1.0, 4.0];
/// Two looks are this far apart at least, seconds.
const APART: f64 = 0.1;
/// Close looks at suspects: this share of a core in the long run, and so many seconds of it at once.
const LOOKS_SHARE: f64 = 0.002;
const LOOKS_AT_ONCE: f64 = 0.5;
/// Stacks that have been judged are remembered, so many per process.
const MAX_JUDGED: usize = 4096;
/// And for so long, seconds: who waits at the same line later may wait for something else.
const JUDGED_FOR: f64 = 60.0;
/// How often an attach that failed is tried again, seconds.
const TRY_AGAIN: f64 = 5.0;

/// What happened, for whoever prints it.
#[derive(Debug)]
pub enum Event {
    Watching {
        pid: i32,
        command: Vec<String>,
    },
    Unreadable(AccessError),
    NotFound(FindError),
    Gone {
        pid: i32,
    },
    Stall {
        stall: Stall,
        at: String,
        file: Option<std::path::PathBuf>,
        refused: Option<Refusal>,
    },
    /// `moved`: whether it stood elsewhere at one of its looks; `None`: there was but one.
    Over {
        pid: i32,
        rule: String,
        lasted: f64,
        moved: Option<bool>,
    },
    Trouble(String),
}

pub struct Settings {
    pub stall: f64,
    /// The limit for requests whose tasks await something, if there is one.
    pub awaiting: Option<f64>,
    pub look: Options,
    pub metrics: Option<Metrics>,
}

pub struct Engine {
    pub(super) settings: Settings,
    follower: Follower,
    reports: Option<Reports>,
    runner: Option<Runner>,
    pub(super) targets: Vec<Target>,
    /// Until when not to try again.
    unreadable: FxHashMap<i32, f64>,
    pub(super) episodes: Vec<Episode>,
    looker: Looker,
    next_episode: u64,
    /// Seconds of close looks that may be spent now.
    pub(super) allowance: f64,
    last_poll: f64,
    last_second: f64,
    said_not_found: bool,
    /// Whole looks have been taken, and freed, since memory was given back.
    has_looked: bool,
}

/// A stall that goes on.
pub(super) struct Episode {
    number: u64,
    pub stall: Stall,
    pub what: Cause,
    pub began: f64,
    series: Option<Series>,
    first: Option<Arc<Snapshot>>,
    looks: usize,
    /// Where it stood at each look, as far as it is a thread's stall.
    stood: Vec<(String, u64)>,
    /// Infinite while one is under way.
    next_look: f64,
    profiling: Option<Profiling>,
}

pub(super) enum Cause {
    /// Polls tell how long it lasts.
    Suspect(Suspect),
    /// Only the next patrol tells whether it is over.
    Finding,
    /// The same, of a request that takes long.
    Request,
}

impl Engine {
    pub fn new(
        settings: Settings,
        follower: Follower,
        reports: Option<Reports>,
        runner: Option<Runner>,
    ) -> std::io::Result<Self> {
        Ok(Engine {
            settings,
            follower,
            reports,
            runner,
            targets: Vec::new(),
            unreadable: FxHashMap::default(),
            episodes: Vec::new(),
            looker: Looker::start()?,
            next_episode: 0,
            allowance: LOOKS_AT_ONCE,
            last_poll: f64::NAN,
            last_second: f64::NEG_INFINITY,
            said_not_found: false,
            has_looked: false,
        })
    }

    /// Nothing is watched, and nothing can appear.
    pub fn is_at_end(&self) -> bool {
        self.targets.is_empty() && !self.follower.may_find_more()
    }

    /// No stall that goes on is still to be looked at.
    pub fn is_settled(&self) -> bool {
        self.episodes.iter().all(|e| e.series.is_none() || e.looks > SERIES.len())
    }

    /// Keeps what was gathered of stalls that go on.
    pub fn finish(&mut self, tell: &mut dyn FnMut(Event)) {
        (0..self.episodes.len()).for_each(|i| self.keep_profile(i, tell));
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
        while let Some(answer) = self.looker.answer() {
            self.spend(answer.took);
            match answer.why {
                Why::Again(number) => self.looked_again(number, answer, now, tell),
                Why::Patrol => self.patrolled(answer, now, tell),
            }
        }
        self.follow_up(now, &gone, tell);
        if !gone.is_empty() {
            self.targets.retain(|t| !gone.contains(&t.poller.pid));
            for pid in gone {
                tell(Event::Gone { pid });
                // Until its parent has waited for it, it is found and cannot be read: that is no news.
                self.unreadable.insert(pid, now);
            }
            self.follower.hurry(now);
        }
        self.patrol(now);
        if second {
            self.last_second = now;
            self.publish();
            if std::mem::take(&mut self.has_looked) {
                own_memory::give_back();
            }
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
                    let show_secrets = self.settings.look.show_secrets;
                    let command = if show_secrets { command } else { crate::mask::command(&command) };
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
        let told = |e: &Episode| e.stall.pid == suspect.pid && e.stall.tid == Some(suspect.tid);
        if suspect.what == What::Thread && self.episodes.iter().any(told) {
            return;
        }
        let stands_at = target.poller.stands_at(suspect.tid);
        let judged = stands_at.and_then(|at| target.judged.get(&at));
        if let Some((_, known)) = judged.filter(|(at, _)| now - at < JUDGED_FOR) {
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
                    task: None,
                    rule: rule.to_string(),
                    place: place.to_string(),
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
        // A loop may be free again in a moment: it is sampled while it is looked at, and who else takes part is
        // asked by the next look only.
        let is_loop = suspect.what == What::Loop && self.reports.is_some();
        let profiling = if is_loop { self.profile(pid, Some(suspect.tid)) } else { None };
        let (seen, took) = Seen::look(pid, false, &Options { quick: true, ..self.look_options() });
        self.spend(took);
        let Some(mut seen) = seen else { return };
        seen.profiling = profiling;
        let report = Report::new(seen.snapshot.clone()).with(diagnose(std::slice::from_ref(&seen.snapshot)));
        let explained = stall::explain(&report, &suspect, monotonic().as_secs_f64() - suspect.since);
        if let (Some(at), Some(target)) = (stands_at, self.targets.iter_mut().find(|t| t.poller.pid == pid)) {
            if target.judged.len() >= MAX_JUDGED {
                target.judged.clear();
            }
            let known = explained.as_ref().map(|s| (s.rule.clone(), s.place.clone()));
            target.judged.insert(at, (now, known));
        }
        if let Some(stall) = explained {
            self.begin(stall, Cause::Suspect(suspect), Some((seen, report)), now, tell);
        }
    }

    /// Counts a stall, writes the first report, and remembers it while it lasts.
    pub(super) fn begin(
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
            Cause::Finding | Cause::Request => now - stall.age.unwrap_or(0.0),
        };
        let (mut file, mut refused, mut series, mut first, mut profiling) = (None, None, None, None, None);
        let mut stood = Vec::new();
        match (&mut self.reports, seen) {
            (Some(reports), Some((mut seen, report))) => {
                profiling = seen.profiling.take();
                stood.extend(stall.tid.and_then(|tid| stall::stands(&report, stall.pid, tid)));
                match reports.begin(&stall.rule, &stall.place, stall.pid, &at, now) {
                    Ok(begun) => {
                        match write::files(&report, &seen.capture)
                            .and_then(|files| write::look(reports, &begun, 1, &files))
                        {
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
                            Err(error) => {
                                reports.nothing_kept();
                                match error {
                                    WriteError::Full => refused = Some(Refusal::Bytes),
                                    error => {
                                        let text = format!("the report cannot be written: {error}");
                                        tell(Event::Trouble(text));
                                    }
                                }
                            }
                        }
                        first = Some(Arc::new(seen.snapshot));
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
        if series.is_some() && profiling.is_none() {
            profiling = self.profile(stall.pid, stall.tid);
        }
        let number = self.next_episode;
        self.next_episode += 1;
        let looks = 1;
        self.episodes.push(Episode {
            number,
            stall,
            what,
            began,
            series,
            first,
            looks,
            stood,
            next_look,
            profiling,
        });
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
                Cause::Finding | Cause::Request => true,
            });
            if !goes_on {
                self.over(i, now, tell);
                continue;
            }
            if episode.profiling.as_ref().is_some_and(Profiling::is_done) {
                self.keep_profile(i, tell);
            }
            let episode = &self.episodes[i];
            if episode.series.is_some() && episode.looks <= SERIES.len() && now >= episode.next_look {
                let (pid, why) = (episode.stall.pid, Why::Again(episode.number));
                if self.ask(pid, why, true, episode.first.clone(), false) {
                    self.episodes[i].next_look = f64::INFINITY;
                }
            }
            i += 1;
        }
    }

    fn keep_profile(&mut self, episode: usize, tell: &mut dyn FnMut(Event)) {
        let episode = &mut self.episodes[episode];
        let Some(text) = episode.profiling.take().and_then(Profiling::finish) else { return };
        let (Some(series), Some(reports)) = (&episode.series, &mut self.reports) else { return };
        kept(reports.write(&series.whole("folded"), text.as_bytes()), "the profile", tell);
    }

    /// Begins to sample a thread; without it the report is good all the same.
    fn profile(&self, pid: i32, tid: Option<i32>) -> Option<Profiling> {
        let started = Profiling::start(pid, tid?, self.settings.look.apps.clone());
        started.inspect_err(|error| log::warn!("no profile of {pid}: {error}")).ok()
    }

    /// The stall is over, or the process is.
    pub(super) fn over(&mut self, episode: usize, now: f64, tell: &mut dyn FnMut(Event)) {
        self.keep_profile(episode, tell);
        let over = self.episodes.swap_remove(episode);
        let lasted = now - over.began;
        if let (Some(series), Some(reports)) = (&over.series, &mut self.reports) {
            let end = write::end(reports, series, &over.stall, &over.stood, over.looks, lasted);
            kept(end, "the report", tell);
        }
        let moved = write::moved(&over.stood);
        tell(Event::Over { pid: over.stall.pid, rule: over.stall.rule, lasted, moved });
    }

    fn looked_again(&mut self, number: u64, answer: Answer, now: f64, tell: &mut dyn FnMut(Event)) {
        // It may be over by now.
        let Some(episode) = self.episodes.iter_mut().find(|e| e.number == number) else { return };
        episode.looks += 1;
        let wait = SERIES.get(episode.looks - 1).copied().unwrap_or(f64::INFINITY);
        episode.next_look = now + APART.max(wait * self.settings.stall);
        if episode.looks > SERIES.len() {
            episode.first = None;
        }
        let Stall { pid, tid, .. } = episode.stall;
        let seen = answer.seen.as_ref().zip(tid);
        episode.stood.extend(seen.and_then(|((_, report), tid)| stall::stands(report, pid, tid)));
        let (Some(files), Some(series), Some(reports)) = (answer.files, &episode.series, &mut self.reports)
        else {
            return;
        };
        // The first report stands; the others are a luxury.
        kept(files.and_then(|files| write::look(reports, series, episode.looks, &files)), "the report", tell);
    }

    // ------------------------------------------------------------ looks and numbers

    fn look_options(&self) -> Options {
        Options { save: self.reports.is_some(), ..self.settings.look.clone() }
    }

    /// Begins a look that the polls do not wait for.
    pub(super) fn ask(
        &self,
        pid: i32,
        why: Why,
        follow: bool,
        first: Option<Arc<Snapshot>>,
        quick: bool,
    ) -> bool {
        self.looker.ask(Ask { pid, why, follow, first, quick, options: self.look_options() })
    }

    fn spend(&mut self, took: f64) {
        self.has_looked = true;
        self.allowance = (self.allowance - took).max(-LOOKS_AT_ONCE);
    }

    fn publish(&mut self) {
        let Some(metrics) = &self.settings.metrics else { return };
        let pids: Vec<i32> = self.targets.iter().map(|t| t.poller.pid).collect();
        metrics.keep_only(&pids);
        for target in &mut self.targets {
            let pid = target.poller.pid;
            // A thread may have more than one to answer for.
            let of_pid = self.episodes.iter().filter(|e| e.stall.pid == pid);
            let blocked: FxHashSet<i32> = of_pid.filter_map(|e| e.stall.tid).collect();
            metrics.blocked_threads.get_or_create(&OfProcess { pid }).set(blocked.len() as i64);
            if let Some(share) = target.gil.share() {
                metrics.gil_held.get_or_create(&OfProcess { pid }).set(share);
            }
        }
    }
}

/// That the directory may not grow further is no trouble: there is a limit for that.
fn kept(written: Result<(), WriteError>, what: &str, tell: &mut dyn FnMut(Event)) {
    match written {
        Ok(()) | Err(WriteError::Full) => {}
        Err(error) => tell(Event::Trouble(format!("{what} cannot be written: {error}"))),
    }
}

/// One look at one process, with what a capture of it holds.
pub(super) struct Seen {
    pub snapshot: Snapshot,
    pub capture: Capture,
    /// Samples of the thread, begun before the look.
    profiling: Option<Profiling>,
}

impl Seen {
    /// `follow`: into other processes, too, where a wait leads there. With the seconds of a CPU that it took.
    pub fn look(pid: i32, follow: bool, options: &Options) -> (Option<Seen>, f64) {
        let (began, used) = (monotonic(), own_cpu());
        let cost = || (own_cpu() - used) as f64 / 1e9;
        let captured_at = host::now();
        let Ok(looked) = look::live(pid, options) else { return (None, cost()) };
        let mut processes = vec![looked.process];
        let mut captured: Vec<_> = looked.captured.into_iter().collect();
        if follow {
            look::follow::follow(&mut processes, &mut captured, options);
        }
        let took = (monotonic() - began).as_secs_f64();
        let snapshot = Snapshot {
            captured_at,
            host: host::name(),
            looks: vec![Look { at: 0.0, took }],
            processes,
            skipped: Vec::new(),
        };
        let mut capture = Capture { processes: captured, ..Capture::default() };
        capture.of_snapshot(&snapshot);
        (Some(Seen { snapshot, capture, profiling: None }), cost())
    }
}
