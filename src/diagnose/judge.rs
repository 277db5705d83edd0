//! How bad a case is: by its consequence, not by its rule.

use super::Severity::{self, Critical, Info, Warning};
use super::acting::{is_for_clients, is_unaccepted};
use super::case::Case;
use super::rules::{HTTP, Rule};
use super::waits::{
    Fate, has_dying_workers, is_full, is_locked_file, is_lost_wakeup, is_queued, number, word,
};
use crate::kin::At;
use crate::snapshot::{Certainty, EventLoop, Wait};

/// A loop's iteration that is older than this is critical, seconds.
const LOOP_CRITICAL: f64 = 1.0;
const LOOP_WARNING: f64 = 0.1;
/// What begins so soon after its process belongs to its start.
const STARTING: f64 = 5.0;
/// The start of a server may take so long.
const LONG_START: f64 = 30.0;
/// Two looks are this far apart at least.
const APART: f64 = 0.1;
/// Elsewhere, without an end in sight.
const LONG: f64 = 5.0;
/// Nobody waits for so long at the end of a program.
const FAR: f64 = 60.0;
/// Longer than a look at many processes takes, seconds.
const ON_ITS_WAY: f64 = 1.0;
/// Whoever shares the GIL gives it away a hundred times in that time.
const GIL_LONG: f64 = 1.0;

/// `None`: nobody suffers.
pub fn severity(case: &Case, rule: &Rule) -> Option<Severity> {
    if case.party().is_stopped() && !is_in_memory(case) {
        return None;
    }
    if case.cycle.is_some() {
        return of_cycle(case);
    }
    if rests_in_pool(case) {
        return None;
    }
    let head = case.head();
    if case.is_loop(head) {
        return of_loop(case);
    }
    if case.party().task().is_some() {
        // Nobody is left who could take an item, or call one done.
        let lost = case.fate == Fate::Stuck && case.kind() == "queue" && case.loop_is_lifeless();
        return of_task(case).map(|severity| if lost { severity } else { severity.min(rule.usual) });
    }
    // A holder that sleeps has had the lock for as long at least: it did not take it in its sleep.
    let held_for = || case.culprit().blocked_for().filter(|_| case.wait().is_some_and(Wait::asks_again));
    // Since when who asks again does so, nobody knows; the request that he serves has suffered for its age.
    let asked_for = || request(case)?.age.filter(|_| case.wait().is_some_and(Wait::asks_again));
    // Of who asks for what nobody is known to have there is no other sign; nor of who has it himself.
    let alone = || {
        let wait = case.wait().filter(|_| case.chain.len() == 1)?;
        let own = wait.detail["own"] == true && case.party().process.threads.len() == 1;
        (wait.is_retried() || wait.asks_again() && own).then_some(LONG)
    };
    if rule.id == "busy-loop" {
        return Some(Warning);
    }
    // Since when a library asks for a lock again and again, it does not always say.
    if case.says("polled") && case.age().is_none() {
        let is_main = case.party().thread().is_some_and(|thread| thread.main);
        return (is_main || request(case).is_some()).then_some(Info);
    }
    let severity = if case.is_gil() {
        of_gil(case)?
    } else {
        case.age().or_else(held_for).or_else(asked_for).or_else(alone).filter(|&age| age >= LONG)?;
        if case.is_client_idle() {
            return Some(if case.keeps_others_waiting() { Warning } else { Info });
        }
        of_waiting(case)?
    };
    // Whoever serves a request has suffered past its limit.
    Some(if request(case).is_some() { severity } else { severity.min(rule.usual) })
}

fn of_gil(case: &Case) -> Option<Severity> {
    // A holder that sleeps has had it for as long.
    let asleep = || case.culprit().blocked_for().filter(|_| case.root_sleeps());
    let age = case.age().into_iter().chain(asleep()).reduce(f64::max).filter(|&age| age >= GIL_LONG)?;
    Some(if age >= LONG { Critical } else { Warning })
}

/// A cycle of objects, which no signal ends: of threads that were stopped it is as true. In which system call
/// one was stopped says nothing.
fn is_in_memory(case: &Case) -> bool {
    let kinds = ["lock", "semaphore", "future", "thread", "task", "queue"];
    case.cycle.is_some() && !case.in_cycle(|wait| !kinds.contains(&wait.kind.as_str()))
}

fn of_cycle(case: &Case) -> Option<Severity> {
    let from = case.cycle?;
    // Both ends of a connection read, and nobody is known to have asked for anything: it may be at rest, and others
    // may answer what has been read. Whoever has both ends himself answers nothing.
    if case.cycle_len() > 1 && request(case).is_none() && case.members().all(rests_on_connection) {
        return Some(Info);
    }
    let proved = case.graph.certainty(&case.chain[from..], true) == Certainty::Proved;
    if !proved
        && request(case).is_none()
        && (case.cycle_crosses() && case.is_open_exchange() || case.is_aside())
    {
        return Some(Info);
    }
    // The handler of a signal ends it: until then it is parked. No worker of a pool is there for that.
    let parks = |wait: &Wait| wait.detail["by_signal"] == true && !wait.detail["queued_setter"].is_string();
    if !proved && case.in_cycle(parks) {
        return Some(Info);
    }
    // A handler might give the sign that all of them wait for.
    let is_sign = |party: &super::waits::Party| {
        party.wait().is_some_and(|w| matches!(w.kind.as_str(), "event" | "condition"))
    };
    let signalled = case.members().any(|party| party.process.kin.may_be_signalled());
    if !proved && case.cycle_crosses() && signalled && case.members().any(is_sign) {
        return Some(Warning);
    }
    // Of a task it is a lower bound: any timer wakes its loop.
    let dated = |party: &&super::waits::Party| party.task().is_none() || case.cycle_of_tasks();
    let ages = case.members().filter(dated).filter_map(|party| party.blocked_for());
    let youngest = ages.fold(f64::INFINITY, f64::min);
    // One process is read after the other: what is on its way between them has come by then.
    if case.cycle_crosses() && youngest < ON_ITS_WAY {
        return None;
    }
    // It was not yet there at the first look: who came since goes again.
    let asks_again = |wait: &Wait| wait.is_retried() || wait.asks_again();
    if !proved && case.two_looks && youngest < APART && !case.in_cycle(asks_again) {
        return None;
    }
    let old = youngest >= LONG;
    // Tasks stand still for many reasons, and who could wake whom is an inference.
    let of_pool = case.in_cycle(|wait| wait.is_for_pool());
    // Each wants what the next one has, or its end: there is nothing to be inferred but who gives a slot back.
    let wants =
        |wait: &Wait| matches!(wait.kind.as_str(), "lock" | "semaphore" | "task") || case.writes_both_ways();
    let has_them =
        |party: &super::waits::Party| party.holds().iter().all(|l| l.certainty == Certainty::Proved);
    let of_locks =
        youngest.is_finite() && !case.in_cycle(|wait| !wants(wait)) && case.members().all(has_them);
    // Requests know since when they wait, if tasks do not.
    let serves = |party: &super::waits::Party| {
        party.task().and_then(|t| t.request.as_ref()?.age).is_some_and(|age| age >= LONG)
    };
    let sure = proved
        || (!case.cycle_of_tasks() || (of_pool || of_locks) && old) && (old || case.two_looks)
        || case.members().all(serves);
    Some(if sure { Critical } else { Warning })
}

/// A connection of TCP: what is between two ends of a pipe was made for the two.
fn rests_on_connection(party: &super::waits::Party) -> bool {
    party.wait().is_some_and(|w| {
        let word = |key| super::waits::word(w, key).unwrap_or_default();
        let asks = w.detail["database"].is_object()
            || w.detail["url"].is_string()
            || w.detail["partial"] == true
            || super::waits::has_library(party.frames(), HTTP);
        w.kind == "socket" && word("operation") == "recv" && word("family").starts_with("tcp") && !asks
    })
}

/// By the age of the iteration, whatever it is that takes so long.
fn of_loop(case: &Case) -> Option<Severity> {
    let event_loop: &EventLoop = case.event_loop()?;
    // It slept in its selector, and had just been woken when its stack was read.
    let awake = event_loop.state == "running" && case.wait().is_none() && event_loop.iteration_age.is_none();
    if awake || keeps_nobody_waiting(case, event_loop) {
        return None;
    }
    if case.is_attended() {
        return Some(Info);
    }
    // Whoever waits for it is its own thread: that one is judged as any other.
    if is_unshared(case, event_loop) {
        let is_main = case.party().thread().is_some_and(|thread| thread.main);
        let age = case.age().unwrap_or_default();
        return match is_main {
            true if case.is_computing() || case.is_consumer() || is_server_of_work(case) => {
                (age > LOOP_CRITICAL).then_some(Info)
            }
            true => (age > LOOP_CRITICAL).then_some(Warning),
            false if age < LONG => None,
            false => Some(if request(case).is_some() { Critical } else { Warning }),
        };
    }
    match case.age() {
        // A server that imports its application, or is in its startup: it does not listen yet.
        Some(age) if is_server_at_start(case) => Some(if age < LONG_START { Info } else { Warning }),
        // A server that starts imports and loads: nobody asks it for anything yet.
        Some(age) if age > LOOP_CRITICAL && case.is_computing() && request(case).is_none() => {
            let began = case.party().process.uptime.map(|up| up - age);
            Some(if began.is_some_and(|began| began < STARTING) { Warning } else { Critical })
        }
        Some(age) if age > LOOP_CRITICAL => Some(Critical),
        Some(age) if age > LOOP_WARNING => Some(Warning),
        Some(_) => None,
        // Since when is not known; that it stands is.
        None if event_loop.state == "blocked" && case.fate >= Fate::Ends => Some(Warning),
        None => None,
    }
}

/// A loop in a thread of its own for one task, which waits a moment for a sign, again and again.
fn keeps_nobody_waiting(case: &Case, event_loop: &EventLoop) -> bool {
    let party = case.party();
    let tasks = party.process.tasks.iter().filter(|task| task.tid.is_some() && task.tid == party.tid());
    party.thread().is_some_and(|thread| !thread.main)
        && tasks.count() <= 1
        && event_loop.ready.unwrap_or(0) == 0
        && event_loop.overdue.unwrap_or(0) == 0
        && matches!(case.kind(), "event" | "condition")
        && case.wait().and_then(|wait| wait.ends_in).is_some_and(|left| left < LONG)
}

/// It runs one task, and nothing else is there that could want to run: no callback, no timer that is due, nobody who
/// could connect.
fn is_unshared(case: &Case, event_loop: &EventLoop) -> bool {
    let party = case.party();
    let is_main = party.thread().is_some_and(|thread| thread.main);
    let tasks = party.process.tasks.iter().filter(|task| task.tid.is_some() && task.tid == party.tid());
    // Threads that have handed coroutines to it.
    let is_handed_in = |other: &super::waits::Party| {
        let needs_us =
            |w: &Wait| w.detail["event_loop"].is_string() && w.on.iter().any(|on| on.tid == party.tid());
        other.pid() == party.pid() && other.wait().is_some_and(needs_us)
    };
    event_loop.kind == "asyncio"
        && tasks.count() == 1
        && event_loop.ready == Some(0)
        && event_loop.overdue.unwrap_or(0) == 0
        && !case.graph.parties.iter().any(is_handed_in)
        && (!is_main || party.process.listens.as_ref().is_some_and(Vec::is_empty) && request(case).is_none())
}

fn is_server_at_start(case: &Case) -> bool {
    case.has_frame("uvicorn.lifespan.on", "main") || case.has_frame("uvicorn.config", "load")
}

/// Threads and tasks that are no loop, and have waited long.
fn of_waiting(case: &Case) -> Option<Severity> {
    let party = case.party();
    let is_main = party.thread().is_some_and(|thread| thread.main);
    let serves = request(case).is_some();
    let suffers = is_main || serves;
    let alone = case.chain.len() == 1;
    // Who waits for one of these wants to go on; who joins may be a supervisor, for whom waiting is health.
    let wants = match case.kind() {
        // Who will give a sign is at work.
        "lock" => !case.says("signal"),
        "semaphore" => !case.is_count(),
        "gil" => true,
        "queue" => case.operation() == "put",
        "file" => case.wait().is_some_and(is_locked_file),
        // A lock inside of a database.
        "socket" => {
            case.wait().is_some_and(|w| w.detail["blockers"].as_array().is_some_and(|b| !b.is_empty()))
        }
        _ => false,
    };
    let jammed = case.followers >= 2 && wants;
    // Who has been woken lately is not forgotten.
    let lately = case.culprit().blocked_for().is_some_and(|age| age < LONG);
    if !alone && lately && case.culprit().wait().is_some_and(|wait| wait.detail["deserted"] == true) {
        return None;
    }
    // Who is waited for here is at work, and has not waited for long for what it waits for now: the wait for its end
    // is as old as the work.
    if !alone && !serves && matches!(case.kind(), "thread" | "process") {
        let now = case.culprit().wait();
        let goes_on = lately && !now.is_some_and(Wait::is_retried);
        if goes_on || now.is_some_and(|w| w.asks_again() && !w.is_retried()) {
            let ends = matches!(case.fate, Fate::Ends | Fate::Idle | Fate::Outside);
            return (is_main && ends).then_some(Info);
        }
    }
    // What is shared with the parent, that one may still come to.
    if matches!(case.kind(), "barrier" | "semaphore")
        && !wants
        && alone
        && case.call_starts("multiprocessing")
    {
        return is_main.then_some(Info);
    }
    // A program that a worker runs may take its time.
    if case.fate >= Fate::Outside && case.kind() != "process" && case.heads_stuck_pool() {
        return Some(if serves { Critical } else { Warning });
    }
    // No program parks there.
    if case.wait().is_some_and(has_dying_workers) {
        return Some(if suffers { Critical } else { Warning });
    }
    if case.is_parked_at_manager() {
        return is_main.then_some(Info);
    }
    // Nothing else is wrong with it: somebody has to let it go on.
    if case.is_behind_stopped() && suffers {
        return Some(if serves { Critical } else { Warning });
    }
    // The other end is its own, for what a handler of signals writes; or it is a named pipe, to which others come
    // and go.
    let is_pair = |w: &Wait| word(w, "family").is_some_and(|f| f.starts_with("unix")) && !is_unaccepted(w);
    let has_ends = || case.kind() == "pipe" || case.kind() == "socket" && case.wait().is_some_and(is_pair);
    let own_end = || has_ends() && case.waits_for_own_process();
    let signalled = || case.party().process.kin.may_be_signalled();
    if alone && (own_end() && signalled() || case.is_named_pipe() && case.operation() == "read") {
        return is_main.then_some(Info);
    }
    // The machinery of the standard library at rest: what would wake it is a call of the application's.
    let at_rest = matches!(case.kind(), "condition" | "event" | "queue");
    if alone && at_rest && super::case::serves_a_pool(party) {
        return None;
    }
    if case.kind() == "process" && is_supervisor(case) {
        return None;
    }
    // What is published is handed on to a client that listens.
    if case.is_subscriber() {
        return serves.then_some(Info);
    }
    if case.is_held_up() {
        let often = case.is_read_now_and_then();
        return (case.fate > Fate::Moves).then_some(if often { Info } else { Warning });
    }
    // Whoever waits for its answer may not know.
    if is_main && asks_for_input(case) {
        return Some(Info);
    }
    match case.fate {
        // Whoever has it is at work, and has been for long. Slots and queues are there to make others wait.
        Fate::Moves
            if case.kind() == "lock"
                && !case.says("signal")
                && (suffers || jammed)
                && case.is_behind_work() =>
        {
            Some(Warning)
        }
        Fate::Moves => None,
        Fate::Idle if is_main && is_starved(case) => {
            let works = || {
                (case.process_works() || may_be_signalled(case)) && !case.is_deserted() || case.says("open")
            };
            let deserted = if case.is_surely_deserted() || !case.is_deserted() { Critical } else { Warning };
            Some(if !case.call_starts("queue.") || works() { Info } else { deserted })
        }
        // Who is joined, if by a few others, waits for an item that nobody is left to put in.
        Fate::Idle if suffers && !alone && case.is_deserted() => {
            Some(if case.is_surely_deserted() { Critical } else { Warning })
        }
        Fate::Idle if alone => case.wait().filter(|w| is_lost_wakeup(w)).map(|_| Critical),
        _ if case.is_hopeless() => {
            let lost = case.wait().is_some_and(is_lost_wakeup);
            let full = case.kind() == "queue" && case.wait().is_some_and(is_full);
            Some(if suffers || jammed || wants || lost || full { Critical } else { Warning })
        }
        // Workers at rest to which nobody can give anything any more: it troubles no one.
        Fate::Stuck if case.kind() == "condition" && alone && !suffers => Some(Info),
        Fate::Stuck => Some(if suffers || wants { Critical } else { Warning }),
        // The database itself says that it waits for a lock, and whose session is idle.
        Fate::Unknown | Fate::Idle if wants && case.kind() == "socket" && (suffers || jammed) => {
            Some(Critical)
        }
        // A queue is there to make those wait who put more into it than can be taken out.
        Fate::Ends if !suffers && case.kind() == "queue" && ends_soon(case) => Some(Info),
        Fate::Ends if serves || wants => Some(Warning),
        // Another process has a deadline, which may be far.
        Fate::Ends if is_main && case.kind() == "socket" && !alone => {
            let soon = case.culprit().wait().and_then(|w| w.ends_in).is_some_and(|left| left < LONG);
            Some(if soon { Info } else { Warning })
        }
        // It ends by itself, but in the meantime the main thread does nothing else.
        Fate::Ends => (is_main && case.kind() != "sleep").then_some(Info),
        Fate::Unknown if wants => Some(if serves { Critical } else { Warning }),
        Fate::Unknown => None,
        // All consumers are back for more, and still there are items that nobody has called done.
        Fate::Idle if is_forgotten(case) => Some(Warning),
        // Who has asked for something waits for an answer, whatever else the peer's main thread waits for.
        Fate::Idle if case.is_call() && serves => Some(Critical),
        Fate::Idle if case.is_call() && is_main => Some(Warning),
        // In line for a listener, whose turn it is waits for a client.
        Fate::Idle if case.kind() == "file" && case.culprit().wait().is_some_and(is_for_clients) => None,
        // Somebody holds what is wanted and waits for work meanwhile.
        Fate::Idle if wants => Some(Warning),
        Fate::Idle => None,
        // Work that was handed in asks for something to be typed.
        Fate::Outside
            if is_main && !alone && case.kind() == "future" && !wants && is_server_of_work(case) =>
        {
            Some(Info)
        }
        // Who waits for work, with what is wanted here.
        Fate::Outside if is_server_of_work(case) => (wants && (suffers || jammed)).then_some(Warning),
        // A program that a thread runs may take its time.
        Fate::Outside if runs_program(case) && !serves => Some(if wants { Warning } else { Info }),
        Fate::Outside if serves || wants && (suffers || jammed) => Some(Critical),
        // A select loop of its own, for what others send when they like.
        Fate::Outside if is_main && is_listening(case) => Some(Info),
        Fate::Outside if is_main || wants => Some(Warning),
        Fate::Outside => None,
        // Nobody is known who could end it; but who knows all?
        // A long poll, which another request may end.
        Fate::Endless if serves => {
            Some(if case.wait().is_some_and(is_for_request) { Warning } else { Critical })
        }
        Fate::Endless if !alone && wants && (suffers || jammed || case.kind() == "queue") => Some(Critical),
        // The main thread may well be parked, while others work or until a signal comes. Where nothing
        // else moves either, the process is dead.
        // It is parked until a signal comes, which is what the handler is there for.
        Fate::Endless if alone && matches!(case.kind(), "event" | "condition") && case.says("by_signal") => {
            None
        }
        Fate::Endless
            if is_main && !(case.process_works() || may_be_signalled(case) || case.says("open")) =>
        {
            Some(Critical)
        }
        Fate::Endless if is_main && !wants => Some(if case.is_call() { Warning } else { Info }),
        Fate::Endless if wants || suffers => Some(Warning),
        Fate::Endless => None,
        Fate::Deadlock => Some(Critical),
    }
}

/// Tasks: how long one has waited is known only while its loop sleeps.
fn of_task(case: &Case) -> Option<Severity> {
    let wait = case.party().wait()?;
    let serves = request(case).is_some();
    // Any timer wakes the loop, and hides how long a task has waited; its request may tell.
    let suffered = request(case).filter(|r| r.method.as_deref() != Some("WEBSOCKET"));
    let suffered = suffered.and_then(|r| r.quiet_for.or(r.age));
    let ages = [case.age(), case.culprit().blocked_for(), suffered, case.stopping_for()];
    let old = ages.into_iter().flatten().any(|age| age >= LONG);
    let wants = match wait.kind.as_str() {
        "lock" | "semaphore" => true,
        "queue" => case.operation() == "put",
        _ => false,
    };
    let says_nobody = |wait: &Wait| wait.detail.get("nobody").and_then(|v| v.as_bool()) == Some(true);
    let (is_main, awaited) = (is_main_task(case), case.of_awaited());
    let unanswered = || of_unanswered(case, &awaited);
    if is_parked(case) {
        return None;
    }
    // Whoever waits for these waits for their end.
    let overdue = case.overdue();
    // What goes on for a while may be tidying up.
    let left = awaited.wait().and_then(|w| w.ends_in);
    let for_long = left.is_some_and(|left| left >= FAR) || overdue.is_some_and(|age| age >= FAR);
    // Who tidies up waits for something that may come.
    let in_vain = awaited.wait().is_some_and(says_nobody);
    let late =
        old || in_vain || overdue.is_some_and(|age| age >= if for_long { LOOP_CRITICAL } else { LONG });
    let is_missed = (overdue.is_some() || case.chain.len() > 1) && !case.outlives_run();
    // It has gone on with what it did before, and whoever asked it to end waits for that.
    let goes_on = awaited.says("goes_on") && case.chain.len() > 1;
    if case.ignores_cancel() && goes_on && is_missed {
        return Some(if serves { Critical } else { Warning });
    }
    if (case.ignores_cancel() || case.is_closing())
        && late
        && (case.fate >= Fate::Idle || is_missed && for_long && case.fate > Fate::Moves)
    {
        let awaits = is_main && (case.chain.len() > 1 || overdue.is_some());
        let severity = if awaits || case.is_closing() { Warning } else { Info };
        return Some(if serves { Critical } else { severity });
    }
    if awaited.is_unread() {
        // Its loop may be awake; the child is not.
        let sleeps = |at: &usize| case.graph.parties[*at].blocked_for().is_some_and(|age| age >= LONG);
        let severity = if serves || is_main { Critical } else { Warning };
        return case.chain.iter().any(sleeps).then_some(severity);
    }
    // It sleeps, or tries something again, in a program that has ended but for it.
    if case.outlives_run() && old && wait.ends_in.is_none_or(|left| left >= LONG) {
        return Some(if wait.ends_in.is_none_or(|left| left >= FAR) { Warning } else { Info });
    }
    // `wait_for` up to 3.11 waits for a task that knows nothing of the deadline.
    if case.fate == Fate::Ends || case.is_awaited_with_deadline() {
        // Who has the lock waits for a thread that has slept for long.
        let locked = wait.kind == "lock" && case.culprit().thread().is_some();
        let severity = unanswered().map(|severity| severity.min(if serves { Warning } else { Info }));
        let for_pool = wait.is_for_pool();
        let lost = (wants && says_nobody(wait)).then_some(if serves { Warning } else { Info });
        return severity.or((locked || for_pool).then_some(Warning)).or(lost).filter(|_| old);
    }
    if awaited.is_unread_by_child() && case.fate > Fate::Moves && (serves || is_main) {
        return old.then_some(if serves { Critical } else { Warning });
    }
    // A timer of the application's hides how long it lasts: a server begins with its startup.
    if is_main && case.starts_in_vain() {
        let up = case.party().process.uptime.is_some_and(|up| up >= LONG);
        return (old || up).then_some(if case.backlog() > 0 { Critical } else { Warning });
    }
    match case.fate {
        Fate::Stuck if serves => Some(Critical),
        fate if fate >= Fate::Idle && old && case.is_exiting() => Some(Warning),
        // Any timer or connection wakes the loop, and hides it.
        Fate::Stuck if case.is_unwoken() => Some(if old { Critical } else { Warning }),
        Fate::Stuck if wants || case.kind() == "queue" => {
            // Those who would make room wait for room themselves.
            let closed = || case.two_looks && case.wait().is_some_and(has_takers);
            Some(if old || case.loop_is_lifeless() || closed() { Critical } else { Warning })
        }
        // Nobody parks a program there: the main task waits for what was promised to others.
        Fate::Stuck if is_main && case.chain.len() > 1 && is_promise(case, &awaited) => Some(Warning),
        // A main task that waits for ever lets others work: threads, servers, signals.
        Fate::Stuck if case.loop_is_lifeless() && !case.is_main_beside_threads() => Some(Warning),
        Fate::Stuck if is_main && old && case.main_waits_in_vain() => Some(Warning),
        Fate::Stuck => Some(Info),
        Fate::Endless if serves && old => Some(Critical),
        Fate::Endless if wants && old => Some(Warning),
        // Every worker that could take it up waits for ever; or whoever should read what is written.
        Fate::Endless if is_main && old && awaited.wait().is_some_and(is_queued) => Some(Warning),
        Fate::Endless if is_main && old && matches!(awaited.operation(), "send" | "write") => Some(Warning),
        Fate::Endless if old => Some(unanswered().map_or(Info, |severity| severity.max(Info))),
        Fate::Idle if is_forgotten(case) => Some(Warning),
        Fate::Idle if wants && old => Some(Warning),
        // Who never returns is there to rest, and his main task to let him.
        Fate::Idle if says_nobody(wait) && !case.says("endless") && case.keeps_main() => Some(Warning),
        // A consumer at rest, for whose end nobody waits, troubles no one.
        Fate::Idle if says_nobody(wait) && (case.is_awaited() || case.loop_is_lifeless()) => Some(Info),
        Fate::Outside if wants && serves && has_held_long(case) && !case.of_root().says("body") => {
            Some(Critical)
        }
        Fate::Outside if wants && old => Some(Warning),
        Fate::Outside if serves && old && case.culprit().thread().is_some() => Some(Critical),
        Fate::Outside if is_main && old && waits_for_other(&awaited) => Some(Warning),
        Fate::Outside | Fate::Idle if old => unanswered(),
        _ => None,
    }
}

/// Who is waited for goes on within a minute, as far as that depends on him.
fn ends_soon(case: &Case) -> bool {
    case.culprit().wait().and_then(|w| w.ends_in).is_some_and(|left| left < FAR)
}

/// A call that waits by its own name: a program that is to run until it is killed stands in it.
fn is_for_waiting(frame: &crate::snapshot::Frame) -> bool {
    matches!(frame.function.as_str(), "wait" | "__await__" | "__iter__" | "sleep_forever" | "serve_forever")
}

/// Whoever has what is wanted has stood still for long himself, or who works for him: slots may go from hand to
/// hand.
fn has_held_long(case: &Case) -> bool {
    let own = case.party().pid();
    let behind = case.chain[1..].iter().map(|&at| &case.graph.parties[at]).filter(|p| p.pid() == own);
    behind.filter_map(|party| party.blocked_for()).any(|age| age >= LONG)
}

/// For a thread, a child, a pipe: for work that is being done it is health.
fn waits_for_other(awaited: &Case) -> bool {
    let of_thread = || awaited.kind() == "future" && awaited.culprit().thread().is_some();
    (matches!(awaited.kind(), "process" | "pipe") || of_thread()) && !is_server_of_work(awaited)
}

/// A server was asked for something and has sent nothing since, or not all of it. Who listens to what others
/// publish has been answered.
fn of_unanswered(case: &Case, awaited: &Case) -> Option<Severity> {
    let wait = awaited.wait().filter(|w| w.kind == "socket")?;
    let tcp = &wait.detail["tcp"];
    let asked = || {
        let nothing_came = tcp["received"] == 0;
        let spoke_last = quiet(wait).is_some_and(|(sent, received)| sent < received || nothing_came);
        spoke_last
            && tcp["sent"] != 0
            && !awaited.is_consumer()
            && !super::waits::has_library(awaited.party().frames(), BROKERS)
    };
    let serves = request(case).is_some();
    let is_call = awaited.is_call() && (wait.detail["url"].is_string() || awaited.statement().is_some());
    match awaited.operation() {
        // A client that takes its answer slowly, or asks for nothing.
        "send" if awaited.says("inbound") => serves.then_some(Warning),
        // The rest of the request that it serves.
        "recv" if awaited.says("body") => {
            quiet(wait).is_some_and(|(_, received)| received >= LONG).then_some(Info)
        }
        _ if awaited.says("inbound") => None,
        "recv" if !is_call && !asked() => None,
        // Both ends are here: whoever has the other one may have nothing to say.
        "recv" if !is_call && !serves && wait.on.iter().any(|on| on.pid == Some(case.party().pid())) => {
            Some(Info)
        }
        "recv" | "send" | "connect" if serves => Some(Critical),
        "recv" | "send" | "connect" if is_main_task(case) => Some(Warning),
        "recv" if is_call => Some(Info),
        _ => None,
    }
}

/// `await asyncio.Future()`, `await asyncio.Event().wait()`: the main task waits for what nobody has ever had, as
/// those do that are to run until they are killed.
fn is_parked(case: &Case) -> bool {
    case.chain.len() == 1
        && is_main_task(case)
        && case.fate == Fate::Stuck
        && case.wait().is_some_and(|w| {
            matches!(w.kind.as_str(), "future" | "event")
                && w.label.as_deref().is_none_or(|l| !l.contains(' '))
        })
        && case.party().frames().iter().take_while(|f| !f.user).all(is_for_waiting)
        && !case.is_unwoken()
}

/// Selects on a connection on which nothing was asked since the last answer came; or reads one whose other side
/// has spoken last.
fn is_listening(case: &Case) -> bool {
    let Some(wait) = case.wait().filter(|w| w.kind == "socket") else { return false };
    // The other side has read all that was sent to it, and waits for more.
    let reads_it = |&to: &usize| {
        case.graph.parties[to].wait().is_some_and(|w| {
            let is = |key, other| w.detail[key].is_string() && w.detail[key] == wait.detail[other];
            w.detail["operation"] == "recv" && is("local", "peer") && is("peer", "local")
        })
    };
    if case.operation() == "recv"
        && request(case).is_none()
        && case.graph.links[case.head()].to.iter().any(reads_it)
    {
        return !case.is_call();
    }
    // A server that waits for what its client asks next.
    if case.says("inbound") && case.operation() == "recv" && request(case).is_none() {
        return true;
    }
    let asked = quiet(wait).map(|(sent, received)| sent < received || wait.detail["tcp"]["received"] == 0);
    let listens = match asked {
        Some(asked) => !asked && (case.operation() == "recv" || case.call_starts("select.")),
        None => case.call_starts("select."),
    };
    listens && !case.is_call()
}

/// How long ago something was sent on a connection, and something came. Within one tick of the clock it is the
/// answer that came last.
fn quiet(wait: &Wait) -> Option<(f64, f64)> {
    let tcp = &wait.detail["tcp"];
    tcp["sent_ago"].as_f64().zip(tcp["received_ago"].as_f64())
}

/// What others were to bring: a slot, room, the last one at a barrier, the result that stands under a key, what a task
/// had in its hands that has died. An event or a future of its own may be where a program is parked.
fn is_promise(case: &Case, awaited: &Case) -> bool {
    let Some(wait) = awaited.wait() else { return false };
    let is_keyed = || wait.label.as_deref().is_some_and(|label| label.contains('['));
    match wait.kind.as_str() {
        "lock" | "semaphore" | "barrier" => true,
        "queue" => awaited.operation() != "get",
        "future" => is_keyed() || wait.detail["died"].is_object(),
        // A server that is to say that it has started.
        "event" => case.call_is(&["TaskGroup.start"]),
        _ => false,
    }
}

/// All who take from the full queue wait for room in it.
fn has_takers(wait: &Wait) -> bool {
    wait.detail["takers"].is_array()
}

fn is_main_task(case: &Case) -> bool {
    case.party().task().is_some_and(|task| task.main)
}

/// Waits for an item, and whoever could put one in stands still: of a queue of threads, all of them are
/// seen.
fn is_starved(case: &Case) -> bool {
    let links = &case.graph.links[case.head()].to;
    let stands = |&to: &usize| case.graph.fates[to] >= Fate::Endless;
    case.kind() == "queue"
        && case.operation() == "get"
        && !case.wait().is_some_and(is_lost_wakeup)
        && (case.call_starts("queue.") || !links.is_empty())
        && links.iter().all(stands)
}

/// A worker of a pool of processes that waits for work.
fn rests_in_pool(case: &Case) -> bool {
    let party = case.party();
    party.process.kin.jobs.iter().any(|(tid, at)| Some(*tid) == party.tid() && *at == At::Rest)
}

/// A handler of signals may end the wait; where they are not known, that there is one.
fn may_be_signalled(case: &Case) -> bool {
    // Who is joined may be woken by one.
    if case.culprit().wait().is_some_and(|wait| wait.detail["by_signal"] == true) {
        return true;
    }
    if let Some(may) = case.wait().and_then(|wait| wait.detail["by_signal"].as_bool()) {
        return may;
    }
    let signals = || case.party().wait()?.detail.get("signals")?.as_array();
    signals().is_some_and(|signals| !signals.is_empty())
}

fn is_forgotten(case: &Case) -> bool {
    let count = |key: &str| case.wait().and_then(|wait| number(wait, key));
    case.kind() == "queue"
        && case.operation() == "join"
        && count("size") == Some(0)
        && count("unfinished").is_some_and(|n| n > 0)
}

pub fn request<'a>(case: &Case<'_, 'a>) -> Option<&'a crate::snapshot::Request> {
    let party = case.party();
    if let Some(task) = party.task() {
        return task.request.as_ref();
    }
    let thread = party.thread()?;
    let of_task = || party.process.tasks.iter().find(|task| Some(task.id) == thread.task)?.request.as_ref();
    thread.request.as_ref().or_else(of_task)
}

/// Libraries that wait for work.
const BROKERS: &[&str] = &[
    "pika",
    "aio_pika",
    "aiormq",
    "amqp",
    "kombu",
    "kafka",
    "aiokafka",
    "confluent_kafka",
    "celery",
    "gunicorn",
    "socketserver",
    "http.server",
    "xmlrpc",
];

/// Waits for a client, a broker, its children: for work.
fn is_server_of_work(case: &Case) -> bool {
    let culprit = case.culprit();
    let wait = culprit.wait();
    let kind = wait.map_or("", |w| &w.kind);
    let call = wait.and_then(|w| w.call.as_deref()).unwrap_or("");
    // Who waits for a server's answer is not helped by that it accepts others.
    let asker = case.chain.iter().rev().nth(1).and_then(|at| case.graph.parties[*at].wait());
    let accepts = call.ends_with("accept") && asker.is_none_or(|w| w.kind != "socket");
    let accepts = accepts || call.ends_with("input") || call.ends_with("stdin.read");
    let of_broker = super::waits::has_library(culprit.frames(), BROKERS) || case.of_root().is_consumer();
    let polls = of_broker && request(case).is_none();
    // Whoever likes sends it something.
    let is_mailbox = |w: &Wait| {
        let datagrams = word(w, "family").is_some_and(|f| f.starts_with("udp") || f == "unix");
        w.kind == "socket"
            && datagrams
            && word(w, "operation") == Some("recv")
            && w.detail["local"].is_string()
            && w.detail["peer"].is_null()
            && w.detail["peer_process"].is_null()
            && w.on.is_empty()
    };
    let polls = polls || wait.is_some_and(is_mailbox) && request(case).is_none();
    let from_stdin = |w: &crate::snapshot::Wait| {
        w.kind == "pipe" && w.detail.get("fd").and_then(|v| v.as_i64()) == Some(0)
    };
    let stdin = kind == "file"
        || kind == "pipe" && wait.is_some_and(|w| w.detail.get("fd").and_then(|v| v.as_i64()) == Some(0));
    // A child that is no Python is at work, as far as anybody can tell; so is one that it waits for.
    let works = culprit.process.python.is_none() || case.chain.len() == 1;
    let child = |at: &usize| waits_for_child(&case.graph.parties[*at]);
    let supervises = case.chain[..case.chain.len().max(2) - 1].iter().all(child);
    works && supervises || accepts || polls || kind == "pipe" && stdin || case.wait().is_some_and(from_stdin)
}

/// It ends with a program that somebody here has started and that runs: who waits for its end, or its output, lets it
/// take its time.
fn runs_program(case: &Case) -> bool {
    let parties = &case.graph.parties;
    let lives = |party: &super::waits::Party| {
        party.process.children.iter().flatten().any(|c| c.state.as_deref() != Some("Z"))
    };
    let runs = |party: &super::waits::Party| {
        party.wait().is_some_and(|w| {
            let reads = w.kind == "pipe" && word(w, "operation") == Some("read");
            w.kind == "process" || reads && lives(party)
        })
    };
    let culprit = case.culprit();
    case.keeps_output().is_none()
        && case.chain.iter().any(|&at| runs(&parties[at]))
        && (culprit.process.python.is_none() || runs(culprit))
}

/// Is there to wait for its children.
fn is_supervisor(case: &Case) -> bool {
    let role = case.party().process.server.as_ref().map(|s| s.role.as_str());
    matches!(role, Some("reloader" | "supervisor" | "arbiter"))
}

/// Waits for what a child sends, which itself reads what somebody else is to write: the keyboard, say.
fn asks_for_input(case: &Case) -> bool {
    let receives = matches!(case.operation(), "read" | "recv" | "get");
    let own = case.party().pid();
    let Some(child) = case.second().map(|at| &case.graph.parties[at]) else { return false };
    let reads = child.wait().is_some_and(|w| {
        let input = w.kind == "pipe" && super::waits::word(w, "operation") == Some("read");
        input && !w.on.iter().any(|on| on.pid == Some(own) || on.pid == Some(child.pid()))
    });
    receives
        && matches!(case.kind(), "pipe" | "socket" | "queue")
        && child.process.parent == Some(own)
        && reads
}

/// A function that another request may call would end it.
fn is_for_request(wait: &Wait) -> bool {
    wait.detail["by_request"].is_string()
}

/// What a look alone cannot tell, and a second one might.
pub fn is_suspicious(severity: Severity, certainty: Certainty, cycle: bool) -> bool {
    severity > Info && !(cycle && certainty == Certainty::Proved)
}

/// For the end of a child, or for what a child that lives will write.
fn waits_for_child(party: &super::waits::Party) -> bool {
    let Some(wait) = party.wait() else { return false };
    let lives = |pid: Option<i32>| {
        let children = party.process.children.iter().flatten();
        children.into_iter().any(|c| Some(c.pid) == pid && c.state.as_deref() != Some("Z"))
    };
    match wait.kind.as_str() {
        "process" => true,
        "pipe" => {
            let reads = super::waits::word(wait, "operation") == Some("read");
            reads && !wait.on.is_empty() && wait.on.iter().all(|a| lives(a.pid))
        }
        _ => false,
    }
}
