//! Which threads of another process may end a wait that only names the process: who joins it waits for
//! its main thread; what comes through a pipe, for whichever of its threads can reach the other end.

use serde_json::Value;

use super::waits::{Party, word};
use crate::kin::Descriptors;
use crate::snapshot::{Certainty, Frame, Wait};

/// `of_process`: the threads of that process. Nobody where nothing tells which of them.
pub fn threads(
    parties: &[Party],
    of_process: &[usize],
    pid: i32,
    wait: &Wait,
    waiter: i32,
) -> (Vec<usize>, Option<Certainty>) {
    let main = || of_process.iter().copied().find(|&at| is_main(&parties[at]));
    if wait.kind == "process" {
        return (main().into_iter().collect(), None);
    }
    // Threads of extensions neither read nor write what Python has open.
    let python = of_process.iter().any(|&at| is_python(&parties[at]));
    let able: Vec<usize> =
        of_process.iter().copied().filter(|&at| !python || is_python(&parties[at])).collect();
    if let [one] = able[..] {
        return (vec![one], None);
    }
    let mut reaching = reaching(parties, &able, pid, wait);
    if !reaching.is_empty() {
        // What a handler of requests gets at is known only when one comes.
        let serves = |at: &&usize| !reaching.contains(at) && serves_clients(&parties[**at]);
        let servers: Vec<usize> = able.iter().filter(serves).copied().collect();
        reaching.extend(servers);
        return (reaching, Some(Certainty::Likely));
    }
    // One of many connections of a server: which of its threads has it is not known.
    if wait.kind == "socket" {
        return (Vec::new(), None);
    }
    // What is shared without a descriptor, all of them may get at: any of the application's own could act.
    if matches!(wait.kind.as_str(), "event" | "condition" | "barrier" | "semaphore" | "lock") {
        let own = |at: &usize| !serves_library(&parties[*at]);
        return (able.into_iter().filter(own).collect(), Some(Certainty::Likely));
    }
    let waits_for_us = |at: &usize| {
        let on = parties[*at].wait().into_iter().flat_map(|w| &w.on);
        on.into_iter().any(|actor| actor.pid == Some(waiter))
    };
    let mutual: Vec<usize> = able.iter().copied().filter(waits_for_us).collect();
    if mutual.is_empty() {
        return (main().into_iter().collect(), Some(Certainty::Likely));
    }
    // asyncio joins its children in threads of their own; it is its loop that reads and writes.
    let runs_loop = |at: &usize| parties[*at].thread().is_some_and(|t| t.event_loop.is_some());
    let loops = able.iter().copied().filter(|at| runs_loop(at) && !mutual.contains(at));
    (mutual.iter().copied().chain(loops).collect(), Some(Certainty::Likely))
}

/// Of a socket whose other end is in the waiter's own process, or a file that is locked there: the other threads that
/// can reach that. One that waits below its own server's loop for what only that loop would accept waits for itself,
/// and so does who waits for a lock that no other thread can get at.
pub fn own_threads(parties: &[Party], of_process: &[usize], waiter: usize, wait: &Wait) -> Vec<usize> {
    let is_alone = || of_process.iter().all(|&at| at == waiter || !is_python(&parties[at]));
    let all = reaching(parties, of_process, parties[waiter].pid(), wait);
    if wait.kind == "file" {
        let is_known = !descriptors(wait, parties[waiter].pid()).is_empty();
        let others: Vec<usize> = all.into_iter().filter(|&at| at != waiter).collect();
        return if others.is_empty() && (is_alone() || is_known) { vec![waiter] } else { others };
    }
    if wait.kind != "socket" {
        return Vec::new();
    }
    // Whoever is in a call on the other end itself has it.
    let fds = descriptors(wait, parties[waiter].pid());
    let is_at_it = |at: &usize| {
        *at != waiter && parties[*at].wait().and_then(own_descriptor).is_some_and(|fd| fds.contains(&fd))
    };
    let at_it: Vec<usize> = all.iter().copied().filter(is_at_it).collect();
    let reads = |at: &usize| parties[*at].wait().and_then(|w| word(w, "operation")) == Some("recv");
    // Whoever only reads there leaves the answer to others that have it, too.
    if !at_it.is_empty() && !at_it.iter().all(reads) {
        return at_it;
    }
    if !at_it.is_empty() {
        let others = all.iter().copied().filter(|at| *at != waiter && !at_it.contains(at));
        return at_it.iter().copied().chain(others).collect();
    }
    if is_unaccepted(wait) && (all.contains(&waiter) || is_alone()) {
        return vec![waiter];
    }
    all.into_iter().filter(|&at| at != waiter).collect()
}

/// Of an answer that the waiter's own server owes it: the task that serves the request which came on this
/// connection, whoever else works for that one.
pub fn own_handler(parties: &[Party], waiter: usize, wait: &Wait) -> Option<usize> {
    let client = word(wait, "local").filter(|_| wait.kind == "socket" && wait.detail["inbound"] != true)?;
    let serves = |party: &Party| {
        let request = party.task().and_then(|task| task.request.as_ref());
        party.pid() == parties[waiter].pid() && request.is_some_and(|r| r.client.as_deref() == Some(client))
    };
    let of_request: Vec<usize> = (0..parties.len()).filter(|at| serves(&parties[*at])).collect();
    let id = |at: usize| parties[at].task().map(|task| task.id);
    let is_awaited = |at: &&usize| {
        let by = parties[**at].task().map_or(&[][..], |task| &task.awaited_by);
        of_request.iter().any(|other| id(*other).is_some_and(|id| by.contains(&id)))
    };
    let mut outermost = of_request.iter().filter(|at| !is_awaited(at));
    outermost.next().copied().filter(|_| outermost.next().is_none())
}

/// Of what the waiter cannot send, as its own process has the other end: the task that cannot send there either. Whoever
/// reads would read, and so nobody does.
pub fn own_writer(parties: &[Party], waiter: usize, wait: &Wait) -> Option<usize> {
    /// That a loop has slept for so long shows that nothing moves, seconds.
    const SLEPT: f64 = 1.0;
    let sends = |wait: &Wait| {
        wait.kind == "socket"
            && word(wait, "operation") == Some("send")
            && wait.blocked_for.is_some_and(|age| age >= SLEPT)
    };
    let fds = descriptors(wait, parties[waiter].pid());
    let is_it = |party: &Party| {
        party.task().is_some()
            && party.pid() == parties[waiter].pid()
            && party.wait().filter(|w| sends(w)).and_then(own_descriptor).is_some_and(|fd| fds.contains(&fd))
    };
    parties[waiter].task().filter(|_| sends(wait))?;
    parties.iter().position(is_it).filter(|at| *at != waiter)
}

/// A connection that its listener has not accepted yet.
pub fn is_unaccepted(wait: &Wait) -> bool {
    wait.detail["unaccepted"] == true
}

/// Those of these threads whose frames lead to the other end.
fn reaching(parties: &[Party], threads: &[usize], pid: i32, wait: &Wait) -> Vec<usize> {
    debug_assert!(threads.iter().all(|at| parties[*at].pid() == pid));
    threads.iter().copied().filter(|at| reaches(&parties[*at], wait)).collect()
}

/// The task of that process that is the only one who could ever write on this connection, where that is known.
pub fn task_at(parties: &[Party], pid: i32, wait: &Wait) -> Option<usize> {
    let fds = descriptors(wait, pid);
    let is_it = |party: &Party| {
        let of_task = party.wait().filter(|_| party.task().is_some() && party.pid() == pid);
        let alone = of_task.filter(|w| w.kind == "socket" && w.detail["alone"] == true);
        alone.and_then(own_descriptor).is_some_and(|fd| fds.contains(&fd))
    };
    parties.iter().position(is_it)
}

/// This thread can reach an end of what is waited for.
pub fn reaches(party: &Party, wait: &Wait) -> bool {
    let fds = descriptors(wait, party.pid());
    let known = &party.process.kin.fds;
    // A socket is an object; plain numbers are mostly something else.
    let has = |its: &Descriptors, fd: i32| {
        if wait.kind == "socket" { its.objects.contains(&fd) } else { its.has(fd) }
    };
    known.iter().any(|(t, its)| Some(*t) == party.tid() && fds.iter().any(|fd| has(its, *fd)))
}

/// Waits for clients, and calls whatever serves them.
fn serves_clients(party: &Party) -> bool {
    party.wait().is_some_and(is_for_clients) && !serves_library(party)
}

/// A thread that a pool or a queue has started for itself, and that is in none of the application's code.
fn serves_library(party: &Party) -> bool {
    let of_library = |f: &Frame| {
        f.module.as_deref().is_some_and(|m| m.starts_with("multiprocessing.") || m.starts_with("concurrent."))
    };
    let frames = party.frames();
    !is_main(party) && frames.iter().any(of_library) && !frames.iter().any(|f| f.user)
}

/// Accepts connections, or sleeps in a selector.
pub fn is_for_clients(wait: &Wait) -> bool {
    wait.kind == "poll" || word(wait, "operation") == Some("accept")
}

fn is_main(party: &Party) -> bool {
    party.thread().is_some_and(|t| t.main || t.tid == Some(party.pid()))
}

fn is_python(party: &Party) -> bool {
    party.thread().is_some_and(|t| t.interpreter.is_some())
}

/// The descriptor that the waiter itself waits on.
fn own_descriptor(wait: &Wait) -> Option<i32> {
    i32::try_from(wait.detail["fd"].as_i64()?).ok()
}

/// The descriptors by which that process has the other end.
pub fn descriptors(wait: &Wait, pid: i32) -> Vec<i32> {
    let ends = wait.detail.get("ends").and_then(Value::as_array).into_iter().flatten();
    let its = ends.filter(|end| end["pid"].as_i64() == Some(i64::from(pid)));
    let fds = its.flat_map(|end| end["fds"].as_array().into_iter().flatten());
    fds.filter_map(|fd| i32::try_from(fd.as_i64()?).ok()).collect()
}

/// Waits for its parent to send something: for work.
pub fn waits_for_parent(party: &Party) -> bool {
    let Some(wait) = party.wait() else { return false };
    let receives = match wait.kind.as_str() {
        "pipe" => word(wait, "operation") == Some("read"),
        // A pair of sockets; over TCP it would be a client.
        "socket" => {
            let unix = word(wait, "family").is_some_and(|f| f.contains("unix"));
            unix && word(wait, "operation") == Some("recv")
        }
        _ => false,
    };
    let parent = party.process.parent.filter(|p| *p > 1);
    receives && parent.is_some() && wait.on.iter().any(|actor| actor.pid == parent)
}

/// A small program that is no Python tidies up when a signal comes, and ends. What others of its threads do,
/// nobody knows.
fn may_send_when_signalled(party: &Party) -> bool {
    let is_small = party.process.python.is_none() && party.process.threads.len() == 1;
    !is_small && party.process.kin.may_be_signalled()
}

/// Waits for work that can only come from those who are known: nobody else has the other end, and no
/// signal handler could make them send.
pub fn is_closed(parties: &[Party], at: usize, links: &[usize]) -> bool {
    let party = &parties[at];
    let Some(wait) = party.wait() else { return false };
    let Some(ends) = wait.detail.get("ends").and_then(Value::as_array) else { return false };
    let linked = |pid: i64| links.iter().any(|&to| i64::from(parties[to].pid()) == pid);
    let own = i64::from(party.pid());
    wait.deadline.as_deref() != Some("at")
        && wait.ends_in.is_none()
        && !links.is_empty()
        && ends.iter().filter_map(|end| end["pid"].as_i64()).all(|pid| pid == own || linked(pid))
        && links.iter().chain([&at]).all(|&to| !may_send_when_signalled(&parties[to]))
}
