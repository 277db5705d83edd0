//! What lasts too long: first as polls see it, then as a look explains it. Pure.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use crate::diagnose::{Finding, Severity};
use crate::render::report::{Report, ReportProcess};
use crate::snapshot::{Activity, Address, Frame, Process, Request, Task, Thread};

/// What a poll saw that lasts longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suspect {
    pub pid: i32,
    pub tid: i32,
    pub what: What,
    /// CLOCK_MONOTONIC, seconds.
    pub since: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// An iteration of an event loop. That it lasts is known; a look says why.
    Loop,
    /// A thread that sleeps in one call. A look says whether anybody suffers from that.
    Thread,
}

/// A stall, explained as well as can be.
#[derive(Clone, Debug, PartialEq)]
pub struct Stall {
    pub pid: i32,
    pub tid: Option<i32>,
    /// The task, where it is one's and no thread's.
    pub task: Option<Address>,
    pub rule: String,
    /// The application's line, or the blocking call's.
    pub place: String,
    pub summary: String,
    /// How long it has lasted, seconds.
    pub age: Option<f64>,
    pub severity: Severity,
}

impl Stall {
    /// Both are of the same thread, or of the same task.
    pub fn is_of_the_same(&self, other: &Stall) -> bool {
        (self.tid.is_some() || self.task.is_some()) && (self.tid, self.task) == (other.tid, other.task)
    }
}

/// What the look makes of the suspect; `None`: nobody suffers.
pub fn explain(report: &Report, suspect: &Suspect, age: f64) -> Option<Stall> {
    let process = report.processes.iter().find(|p| p.process.pid == suspect.pid)?;
    let thread = process.process.threads.iter().find(|t| t.tid == Some(suspect.tid))?;
    let concerns = |f: &&Finding| {
        f.pid == Some(suspect.pid) && f.tid == Some(suspect.tid)
            || f.cause.iter().any(|c| c.pid == Some(suspect.pid) && c.tid == Some(suspect.tid))
    };
    let found = process
        .findings
        .iter()
        .chain(&report.findings)
        .filter(|f| f.severity > Severity::Info)
        .find(concerns);
    let place = place(thread).unwrap_or_else(|| "?".to_owned());
    let told = |rule: &str, what: String| Stall {
        pid: suspect.pid,
        tid: Some(suspect.tid),
        task: None,
        rule: found.map_or(rule, |f| &f.rule).to_owned(),
        summary: found.map_or(what, |f| f.summary.clone()),
        place: place.clone(),
        age: Some(age),
        severity: found.map_or(Severity::Warning, |f| f.severity),
    };
    let nameless = if thread.main { "the main thread" } else { "a thread" };
    let name = thread.name.as_deref().unwrap_or(nameless);
    match suspect.what {
        What::Loop => Some(told("loop-stall", format!("the event loop of {name} is in {place}"))),
        What::Thread if found.is_some() => Some(told("", String::new())),
        What::Thread if thread.activity != Activity::Waiting => None,
        What::Thread => match (&thread.request, &thread.waits_on) {
            (Some(request), _) => {
                Some(told("request-stall", format!("{} waits in {place}", request.words())))
            }
            // Without a holder it may be a signal, for which to wait is health.
            (None, Some(wait)) if wait.kind == "lock" && !wait.on.is_empty() => {
                let holder = wait.on.iter().find_map(|on| on.thread.clone());
                let holder = holder.map(|h| format!(" that {h} holds")).unwrap_or_default();
                Some(told("lock-wait", format!("{name} waits for a lock{holder} in {place}")))
            }
            _ => None,
        },
    }
}

/// The findings of a look that have lasted longer than the limit, with who suffers: what no poll can see.
pub fn of_findings(process: &ReportProcess, global: &[Finding], stall: f64) -> Vec<Stall> {
    let lasting = |f: &&Finding| {
        // Where its age is not known, it counts if it is as bad as can be.
        f.severity > Severity::Info
            && f.blocked_for.map_or(f.severity == Severity::Critical, |age| age >= stall)
    };
    let stall_of = |f: &Finding| {
        let pid = f.pid?;
        let thread = process.process.threads.iter().find(|t| t.tid.is_some() && t.tid == f.tid);
        let task = process.process.tasks.iter().find(|t| Some(t.id) == f.task);
        let of_task = task.and_then(|t| Frame::telling(&t.frames)).map(at);
        Some(Stall {
            pid,
            tid: f.tid,
            task: f.task.filter(|_| f.tid.is_none()),
            rule: f.rule.clone(),
            place: of_task.or_else(|| thread.and_then(place)).unwrap_or_else(|| "?".to_owned()),
            summary: f.summary.clone(),
            age: f.blocked_for,
            severity: f.severity,
        })
    };
    let own = global.iter().filter(|f| f.pid == Some(process.process.pid));
    process.findings.iter().chain(own).filter(lasting).filter_map(stall_of).collect()
}

/// The requests that have lasted longer than the limit, whatever their threads do: their clients have waited so
/// long, and have been sent nothing so long. `awaiting`: the limit for those whose tasks await something.
pub fn of_requests(process: &Process, stall: f64, awaiting: Option<f64>) -> Vec<Stall> {
    let quiet = |request: &Request, limit: f64| {
        // Between two messages nobody waits.
        let is_message = request.method.as_deref() == Some("WEBSOCKET");
        request.quiet_for.filter(|age| *age >= limit && !is_message)
    };
    let stall_of = |request: &Request, does: &str, frames: &[Frame], age: f64| {
        let place = Frame::telling(frames).map_or_else(|| "?".to_owned(), at);
        Stall {
            pid: process.pid,
            tid: None,
            task: None,
            rule: "request-stall".into(),
            summary: format!("{} {does} in {place}", request.words()),
            place,
            age: Some(age),
            severity: Severity::Warning,
        }
    };
    let of_thread = |thread: &Thread| {
        let request = thread.request.as_ref().filter(|_| thread.event_loop.is_none())?;
        let age = quiet(request, stall)?;
        let does = if thread.activity == Activity::Running { "computes" } else { "is" };
        Some(Stall { tid: Some(thread.tid?), ..stall_of(request, does, &thread.frames, age) })
    };
    let runs = |task: &Task| process.threads.iter().any(|t| t.task == Some(task.id));
    let of_task = |task: &Task| {
        let request = task.request.as_ref()?;
        let age = quiet(request, awaiting?)?;
        let stall = Stall { task: Some(task.id), ..stall_of(request, "awaits", &task.frames, age) };
        Some(stall).filter(|_| !runs(task))
    };
    // A request may have several tasks, and threads that they wait for: what runs the application's code tells most.
    let mut tasks: Vec<&Task> = process.tasks.iter().collect();
    tasks.sort_by_key(|task| !Frame::telling(&task.frames).is_some_and(|f| f.user));
    let threads = process.threads.iter().map(|thread| (thread.request.as_ref(), of_thread(thread)));
    let tasks = tasks.into_iter().map(|task| (task.request.as_ref(), of_task(task)));
    let mut clients: Vec<&str> = Vec::new();
    let mut stalls = Vec::new();
    for (request, stall) in threads.chain(tasks) {
        let client = request.and_then(|request| request.client.as_deref());
        if stall.is_some() && !client.is_some_and(|client| clients.contains(&client)) {
            clients.extend(client);
            stalls.extend(stall);
        }
    }
    stalls
}

/// Where a thread stands in a report: its line, and all of its stack as one number, to tell what moves.
pub fn stands(report: &Report, pid: i32, tid: i32) -> Option<(String, u64)> {
    let process = report.processes.iter().find(|p| p.process.pid == pid)?;
    let thread = process.process.threads.iter().find(|t| t.tid == Some(tid))?;
    let mut hasher = FxHasher::default();
    for frame in &thread.frames {
        (&frame.file, &frame.function, frame.line).hash(&mut hasher);
    }
    Some((place(thread)?, hasher.finish()))
}

fn place(thread: &Thread) -> Option<String> {
    Frame::telling(&thread.frames).map(at)
}

fn at(frame: &Frame) -> String {
    let file = frame.file.as_deref().unwrap_or("?");
    match frame.line {
        Some(line) => format!("{} {file}:{line}", frame.function),
        None => format!("{} {file}", frame.function),
    }
}
