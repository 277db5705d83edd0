//! Two threads that gather what the screen shows: one samples stacks, the other looks for what is wrong.
//!
//! They are apart because a sample must come at its time and from the target's own CPU, and a look takes
//! milliseconds.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::counts::{Counts, Filter, OfThread, Own};
use super::screen::{FindingRow, FunctionRow, LoopRow, Screen, StackView, ThreadRow};
use crate::diagnose::{Severity, diagnose};
use crate::duration::Duration as Span;
use crate::look::{self, Options};
use crate::profile::{Outcome, Sampler, SamplerOptions, Seat, State, Tree};
use crate::render::profile::{ProfileOptions, label};
use crate::render::report::Report;
use crate::render::text::{self, TextOptions};
use crate::snapshot::{Activity, EventLoop, Frame, Process, Snapshot, Thread};
use crate::target::access::AccessError;
use crate::target::blocked::monotonic;
use crate::target::find::{self, Selector};
use crate::target::host;
use crate::watch::follow::Follower;
use crate::watch::poll::Poller;

/// How often a loop is asked since when its iteration lasts.
const POLL: Duration = Duration::from_millis(50);
/// How often the whole process is looked at.
const LOOK: Duration = Duration::from_millis(1000);
/// And at once, but not more often than this, when an iteration of a loop lasts so long, seconds: who looks at the
/// screen wants to know what it does.
const LOOK_SOON: Duration = Duration::from_millis(250);
const LATE: f64 = 0.1;
/// An attach that failed is tried again after this.
const AGAIN: Duration = Duration::from_millis(300);

#[derive(Clone, Debug)]
pub struct Settings {
    pub selector: Selector,
    pub rate: u32,
    pub filter: Filter,
    pub look: Options,
    pub text: TextOptions,
}

/// What both threads write and the screen is made from.
pub struct Gathered {
    settings: Settings,
    profile: Mutex<Profile>,
    health: Mutex<Health>,
    stop: AtomicBool,
    width: AtomicU16,
    /// Processes that are sampled now; `u32::MAX` before the first was.
    alive: AtomicU32,
    /// Why none of the targets can be read, if none can.
    refused: Mutex<Option<AccessError>>,
}

#[derive(Default)]
struct Profile {
    tree: Tree,
    counts: Counts,
    began: Option<Instant>,
    /// By process, in words.
    problems: Vec<(i32, String)>,
    pythons: Vec<(i32, String)>,
}

#[derive(Default)]
struct Health {
    pids: Vec<i32>,
    processes: Vec<Process>,
    findings: Vec<FindingRow>,
    loops: Vec<LoopSeen>,
    looks: u64,
    /// When the last look began, CLOCK_MONOTONIC.
    looked_at: f64,
}

/// An event loop, by the last poll.
struct LoopSeen {
    pid: i32,
    tid: i32,
    /// Since when its iteration lasts (CLOCK_MONOTONIC), and how long that is; `None`: it waits for work.
    iteration: Option<(f64, f64)>,
    /// The longest iteration since the screen was made.
    longest: f64,
}

impl LoopSeen {
    fn age(&self) -> Option<f64> {
        self.iteration.map(|(_, age)| age)
    }
}

pub struct Gatherers {
    pub gathered: Arc<Gathered>,
    threads: Vec<JoinHandle<()>>,
}

impl Gatherers {
    pub fn start(settings: Settings, pids: Vec<i32>) -> std::io::Result<Gatherers> {
        let gathered = Arc::new(Gathered {
            settings,
            profile: Mutex::default(),
            health: Mutex::new(Health { pids, ..Health::default() }),
            stop: AtomicBool::new(false),
            width: AtomicU16::new(80),
            alive: AtomicU32::new(u32::MAX),
            refused: Mutex::default(),
        });
        let (one, two) = (Arc::clone(&gathered), Arc::clone(&gathered));
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = vec![
            thread("samples").spawn(move || one.sample())?,
            thread("health").spawn(move || two.watch())?,
        ];
        Ok(Gatherers { gathered, threads })
    }

    /// One of them has ended though it should not have.
    pub fn have_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Gatherers {
    fn drop(&mut self) {
        self.gathered.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Gathered {
    fn profile(&self) -> MutexGuard<'_, Profile> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// All targets have ended.
    pub fn is_at_end(&self) -> bool {
        self.alive.load(SeqCst) == 0
    }

    /// None of the targets can be read, and that will not change.
    pub fn refused(&self) -> Option<AccessError> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_width(&self, width: u16) {
        self.width.store(width, SeqCst);
    }

    // ------------------------------------------------------------ samples

    fn sample(&self) {
        let settings = &self.settings;
        let options = SamplerOptions {
            idle: settings.filter.idle,
            apps: settings.look.apps.clone(),
            ..SamplerOptions::default()
        };
        let every = Duration::from_secs_f64(1.0 / f64::from(settings.rate));
        let mut samplers: Vec<Sampler> = Vec::new();
        let mut failed: Vec<(i32, Instant)> = Vec::new();
        let mut gone: Vec<i32> = Vec::new();
        let mut seat = Seat::default();
        let mut next = Instant::now();
        while !self.is_over() {
            let wanted = self.health().pids.clone();
            gone.retain(|pid| wanted.contains(pid));
            failed.retain(|(_, at)| at.elapsed() < AGAIN);
            self.profile().problems.retain(|(pid, _)| wanted.contains(pid));
            let mut refusals = 0;
            for pid in wanted.iter().copied() {
                let known = samplers.iter().any(|s| s.pid() == pid) || gone.contains(&pid);
                if known || failed.iter().any(|f| f.0 == pid) {
                    continue;
                }
                seat.leave();
                match Sampler::attach(pid, options.clone()) {
                    Ok(sampler) => {
                        let mut profile = self.profile();
                        profile.began.get_or_insert_with(Instant::now);
                        profile.problems.retain(|(of, _)| *of != pid);
                        profile.pythons.push((pid, sampler.python().sys.version()));
                        samplers.push(sampler);
                    }
                    Err(error) => {
                        failed.push((pid, Instant::now()));
                        let problems = &mut self.profile().problems;
                        problems.retain(|(of, _)| *of != pid);
                        problems.push((pid, error.to_string()));
                        let passing =
                            matches!(error, AccessError::Starting { .. } | AccessError::Gone { .. });
                        refusals += usize::from(!passing);
                        if refusals == wanted.len() {
                            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                    }
                }
            }
            self.round(&mut samplers, &mut gone, &mut seat);
            if !samplers.is_empty() || !gone.is_empty() {
                self.alive.store(samplers.len() as u32, SeqCst);
            }
            next += every;
            let now = Instant::now();
            match next.checked_duration_since(now) {
                Some(wait) => std::thread::sleep(wait),
                // What was missed is missed.
                None => next = now,
            }
        }
        seat.leave();
    }

    fn round(&self, samplers: &mut Vec<Sampler>, gone: &mut Vec<i32>, seat: &mut Seat) {
        if samplers.is_empty() {
            return;
        }
        let profile = &mut *self.profile();
        profile.counts.begin();
        samplers.retain_mut(|sampler| {
            let outcome = sampler.sample(&mut profile.tree, seat);
            match outcome {
                Outcome::Sample => {}
                Outcome::Torn => profile.counts.torn(),
                Outcome::Gone => {
                    gone.push(sampler.pid());
                    return false;
                }
            }
            if outcome == Outcome::Sample {
                profile.counts.add(&profile.tree, sampler.pid(), sampler.threads(), self.settings.filter);
            }
            true
        });
    }

    // ------------------------------------------------------------ health

    fn watch(&self) {
        let mut follower = Follower::new(self.settings.selector.clone());
        let mut pollers: Vec<Poller> = Vec::new();
        let mut before: Option<Snapshot> = None;
        let mut look_at = Instant::now();
        let mut looked = look_at;
        while !self.is_over() {
            let now = monotonic().as_secs_f64();
            if let Some(Ok(found)) = follower.search(now) {
                self.health().pids = found.pids;
            }
            let pids = self.health().pids.clone();
            pollers.retain(|p| pids.contains(&p.pid));
            if Instant::now() >= look_at {
                for pid in
                    pids.iter().filter(|pid| !pollers.iter().any(|p| p.pid == **pid)).collect::<Vec<_>>()
                {
                    pollers.extend(Poller::attach(*pid, LOOK.as_secs_f64(), now));
                }
                before = self.look(&pids, before);
                looked = Instant::now();
                look_at = looked + LOOK;
            }
            let mut seen: Vec<LoopSeen> = Vec::new();
            pollers.retain_mut(|poller| {
                let now = monotonic().as_secs_f64();
                let alive = poller.poll(now).is_ok();
                let loops = poller.threads().iter().filter(|t| t.event_loop.is_some());
                seen.extend(loops.map(|t| {
                    let iteration = t.iteration().map(|start| (start, (now - start).max(0.0)));
                    LoopSeen { pid: poller.pid, tid: t.tid, iteration, longest: 0.0 }
                }));
                alive
            });
            if self.note_loops(seen) {
                look_at = look_at.min(looked + LOOK_SOON);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Takes over what was polled; whether some loop is late and its iteration has not been looked at.
    fn note_loops(&self, mut seen: Vec<LoopSeen>) -> bool {
        let health = &mut *self.health();
        for now in &mut seen {
            let known = health.loops.iter().find(|l| (l.pid, l.tid) == (now.pid, now.tid));
            now.longest = known.map_or(0.0, |l| l.longest).max(now.age().unwrap_or(0.0));
        }
        health.loops = seen;
        let is_new = |(start, age): (f64, f64)| age > LATE && start > health.looked_at;
        health.loops.iter().filter_map(|l| l.iteration).any(is_new)
    }

    /// What is wrong, by this look and the one before.
    fn look(&self, pids: &[i32], before: Option<Snapshot>) -> Option<Snapshot> {
        let options = &self.settings.look;
        let captured_at = host::now();
        let began = monotonic().as_secs_f64();
        let processes: Vec<Process> = pids
            .iter()
            .filter_map(|pid| look::live(*pid, options).ok())
            .filter(|looked| looked.error.is_none())
            .map(|looked| looked.process)
            .collect();
        let same = |b: &Snapshot| b.processes.iter().map(|p| p.pid).eq(processes.iter().map(|p| p.pid));
        let snapshot = Snapshot {
            captured_at,
            host: host::name(),
            looks: Vec::new(),
            processes: processes.clone(),
            skipped: Vec::new(),
        };
        let looks: Vec<Snapshot> = before.filter(same).into_iter().chain([snapshot.clone()]).collect();
        let found = diagnose(&looks);
        let mut rows: Vec<FindingRow> = Vec::new();
        let mut findings: Vec<_> = found.all().filter(|f| f.severity > Severity::Info).cloned().collect();
        findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
        if !findings.is_empty() {
            let width = Some(usize::from(self.width.load(SeqCst)));
            let report = Report::new(snapshot.clone()).with(found);
            let mut styled = Vec::new();
            let written = text::write_findings(
                &mut styled,
                &report,
                &TextOptions { width, ..self.settings.text.clone() },
            );
            let plain = anstream::adapter::strip_bytes(&styled).into_vec();
            let mut text = written.map(|()| String::from_utf8_lossy(&plain).into_owned()).unwrap_or_default();
            rows.extend(findings.into_iter().map(|f| FindingRow {
                critical: f.severity == Severity::Critical,
                rule: f.rule,
                summary: f.summary,
                blocked_for: f.blocked_for,
                // The first one has the text of all.
                text: std::mem::take(&mut text),
            }));
        }
        let health = &mut *self.health();
        health.processes = processes;
        health.findings = rows;
        health.looks += 1;
        health.looked_at = began;
        Some(snapshot)
    }

    // ------------------------------------------------------------ the screen

    pub fn reset(&self) {
        let mut profile = self.profile();
        profile.counts.reset();
        profile.began = Some(Instant::now());
    }

    /// The stack that this function was met on most.
    pub fn stack(&self, name: &str, file: &str, line: u32) -> Option<StackView> {
        let profile = &*self.profile();
        let is = |f: &super::counts::Function| f.name == name && f.file == file && f.first_line == line;
        let at = profile.counts.functions.iter().position(is)?;
        let (frames, samples) = profile.counts.stack_of(&profile.tree, at)?;
        let all = profile.counts.start.functions.get(at).map_or(samples, |f| f.total).max(1);
        let line = |id: &u32| of_frame(profile.tree.frame(*id));
        Some(StackView {
            function: name.to_owned(),
            share: samples as f64 / all as f64,
            samples: all,
            frames: frames.iter().map(line).collect(),
        })
    }

    /// What the screen is to show; ends the stretch that "now" means.
    pub fn screen(&self) -> Screen {
        let mut screen = Screen { rate: self.settings.rate, ..Screen::default() };
        let mut profile = self.profile();
        let now = profile.counts.take_now();
        let rounds = now.samples.max(1) as f64;
        let start = &profile.counts.start;
        screen.since = profile.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        (screen.samples, screen.torn) = (start.samples, start.torn);
        screen.gil = now.gil as f64 / rounds;
        screen.gc = now.gc as f64 / rounds;
        screen.active = now.active as f64 / rounds;
        screen.problems = profile.problems.iter().map(|(_, problem)| problem.clone()).collect();
        let second = 1.0 / f64::from(self.settings.rate);
        for (i, function) in profile.counts.functions.iter().enumerate() {
            let Some(all) = start.functions.get(i).filter(|f| f.total > 0) else { continue };
            let last = now.functions.get(i).copied().unwrap_or(Own::default());
            screen.functions.push(FunctionRow {
                name: function.name.clone(),
                file: function.file.clone(),
                line: function.first_line,
                user: function.user,
                own_now: last.own as f64 / rounds,
                total_now: last.total as f64 / rounds,
                own: all.own as f64 * second,
                total: all.total as f64 * second,
            });
        }
        let mut stacks: Vec<(i32, i32, String, State, Vec<String>)> = Vec::new();
        for seen in &profile.counts.threads {
            let frames = profile.tree.walk(seen.stack).map(|id| of_frame(profile.tree.frame(id))).collect();
            stacks.push((seen.pid, seen.tid, seen.name.clone(), seen.state, frames));
        }
        screen.python =
            profile.pythons.last().map_or(String::new(), |(_, version)| format!("CPython {version}"));
        drop(profile);

        let mut health = self.health();
        screen.pids = health.pids.clone();
        screen.findings = health.findings.clone();
        screen.looks = health.looks;
        screen.command = health.processes.first().map(|p| command(&p.command)).unwrap_or_default();
        let thread_of = |pid: i32, tid: i32| {
            let process = health.processes.iter().find(|p| p.pid == pid)?;
            Some((process, process.threads.iter().find(|t| t.tid == Some(tid))?))
        };
        for (pid, tid, name, state, mut frames) in stacks {
            let known = thread_of(pid, tid).map(|(_, thread)| thread);
            let of = now.threads.get(&(pid, tid)).cloned().unwrap_or(OfThread::default());
            if frames.is_empty() {
                frames = known.map(|t| t.frames.iter().map(of_snapshot).collect()).unwrap_or_default();
            }
            let (active, gil) = (of.active as f64 / rounds, of.gil as f64 / rounds);
            screen.threads.push(ThreadRow { pid, tid, name, state: word(state, known), active, gil, frames });
        }
        screen
            .threads
            .sort_by(|a, b| b.active.total_cmp(&a.active).then((a.pid, a.tid).cmp(&(b.pid, b.tid))));
        for seen in &health.loops {
            let known = thread_of(seen.pid, seen.tid);
            screen.loops.push(loop_row(seen, known, health.looked_at));
        }
        // Those that no poll can see.
        for process in &health.processes {
            for thread in &process.threads {
                let (Some(tid), Some(_)) = (thread.tid, &thread.event_loop) else { continue };
                if !health.loops.iter().any(|l| (l.pid, l.tid) == (process.pid, tid)) {
                    let row = LoopRow { pid: process.pid, tid, ..LoopRow::default() };
                    screen.loops.push(of_look(row, process, thread));
                }
            }
        }
        screen.loop_lag = health.loops.iter().map(|l| l.longest).reduce(f64::max);
        for seen in &mut health.loops {
            seen.longest = seen.age().unwrap_or(0.0);
        }
        screen
    }
}

/// What the last poll and the last look say of a loop, as far as they speak of the same iteration.
fn loop_row(seen: &LoopSeen, known: Option<(&Process, &Thread)>, looked_at: f64) -> LoopRow {
    let LoopSeen { pid, tid, iteration, longest } = *seen;
    let row = LoopRow { pid, tid, iteration: seen.age(), longest, ..LoopRow::default() };
    let Some((process, thread)) = known else {
        return LoopRow { thread: format!("thread {tid}"), ..row };
    };
    let mut row = of_look(row, process, thread);
    if let Some(state) = outdated(iteration, looked_at) {
        row.event_loop = row.event_loop.map(|l| EventLoop { state: state.to_owned(), ..l });
        (row.task, row.request, row.place) = (None, None, None);
    }
    row
}

/// The state of a loop whose present iteration the last look does not know.
fn outdated(iteration: Option<(f64, f64)>, looked_at: f64) -> Option<&'static str> {
    match iteration {
        None => Some("polling"),
        Some((start, _)) => (looked_at < start).then_some("running"),
    }
}

fn of_look(row: LoopRow, process: &Process, thread: &Thread) -> LoopRow {
    let task = process.tasks.iter().find(|t| Some(t.id) == thread.task);
    let task_name = task.map(|t| {
        let name = t.name.clone().unwrap_or_else(|| "a task".into());
        t.coroutine.as_ref().map_or(name.clone(), |c| format!("{name}: {c}"))
    });
    let polls = thread.event_loop.as_ref().is_some_and(|l| l.state == "polling");
    LoopRow {
        thread: thread.name.clone().unwrap_or_else(|| format!("thread {}", row.tid)),
        event_loop: thread.event_loop.clone(),
        task: task_name,
        request: thread.request.clone().or(task.and_then(|t| t.request.clone())),
        tasks: process.tasks.iter().filter(|t| t.tid == Some(row.tid)).count(),
        place: Some(thread).filter(|_| !polls).and_then(|t| Frame::telling(&t.frames)).map(of_snapshot),
        ..row
    }
}

/// The command without the directory of its program.
fn command(words: &[String]) -> String {
    let program = words.first().map(|first| first.rsplit('/').next().unwrap_or(first));
    let rest = words.iter().skip(1).map(String::as_str);
    program.into_iter().chain(rest).collect::<Vec<_>>().join(" ")
}

/// What a thread does, in words.
fn word(state: State, known: Option<&Thread>) -> String {
    let wait = known.and_then(|t| t.waits_on.as_ref());
    match state {
        State::Running => "runs".into(),
        State::WaitingForGil => "waits for the GIL".into(),
        State::Idle => {
            let what = wait.and_then(|w| w.call.clone().or_else(|| Some(w.kind.clone()))).unwrap_or_default();
            let idle = known.is_some_and(|t| t.activity == Activity::Idle);
            let age = wait.and_then(|w| w.blocked_for).filter(|age| *age >= 0.1);
            let age = age.map(|age| format!(" for {}", Span(age))).unwrap_or_default();
            let word = if idle { "idle" } else { "waits" };
            if what.is_empty() { word.to_owned() } else { format!("{word} in {what}{age}") }
        }
    }
}

fn of_frame(frame: &crate::profile::Frame) -> String {
    label(frame, &ProfileOptions::default())
}

fn of_snapshot(frame: &Frame) -> String {
    let file = frame.file.as_deref().unwrap_or("?");
    let name = frame.qualname.as_ref().unwrap_or(&frame.function);
    match frame.line {
        Some(line) => format!("{name} ({file}:{line})"),
        None => format!("{name} ({file})"),
    }
}

/// The targets at the start; later ones are found while it runs.
pub fn targets(selector: &Selector) -> Result<find::Found, find::FindError> {
    find::find(selector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_from_before_an_iteration_says_nothing_of_it() {
        assert_eq!(outdated(Some((100.0, 2.0)), 101.0), None);
        assert_eq!(outdated(Some((100.0, 2.0)), 99.0), Some("running"));
        assert_eq!(outdated(None, 101.0), Some("polling"));
    }
}
