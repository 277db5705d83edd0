//! Consumers that wait for an item which nobody is left to put in: no thread of their process can do anything
//! any more, and no signal handler either.

use super::case::is_bystander;
use super::waits::{Fate, Graph, Party, word};
use crate::snapshot::Activity;

/// Whether who waits here for an item of a queue of threads waits in such a process, or at a queue that nobody else
/// gets at.
pub fn waits_in_vain(graph: &Graph, at: usize) -> bool {
    let party = &graph.parties[at];
    let out_of_reach =
        || party.wait().is_some_and(|w| w.detail["open"] == false) && !has_native_threads(party);
    gets(party) && !is_fed_by_handler(party) && (is_last(graph, at) || out_of_reach())
}

/// Nobody of its process is left who does anything.
fn is_last(graph: &Graph, at: usize) -> bool {
    let ours = |n: &usize| graph.parties[*n].pid() == graph.parties[at].pid();
    (0..graph.parties.len()).filter(ours).all(|n| is_passive(graph, n) || is_bystander(&graph.parties[n]))
}

/// A handler of signals may put an item in; where they are not known, that there is one.
fn is_fed_by_handler(party: &Party) -> bool {
    let known = party.wait().and_then(|wait| wait.detail["by_signal"].as_bool());
    known.unwrap_or_else(|| party.process.kin.may_be_signalled())
}

/// In `get` of an empty queue that lies in the memory of this process alone.
fn gets(party: &Party) -> bool {
    party.wait().is_some_and(|wait| {
        wait.kind == "queue"
            && word(wait, "operation") == Some("get")
            && wait.call.as_deref().is_some_and(|call| call.starts_with("queue."))
    })
}

/// Nothing but another thread of the process could make it go on.
fn is_passive(graph: &Graph, at: usize) -> bool {
    let party = &graph.parties[at];
    match graph.fates[at] {
        // Threads that extensions have started may call Python at any time: those that sleep until somebody
        // calls them are taken to be no more than helpers.
        _ if party.thread().is_some_and(|t| t.interpreter.is_none()) => party.thread().is_some_and(|t| {
            let call = t.os.as_ref().and_then(|os| os.syscall.as_ref());
            t.activity == Activity::Waiting && call.is_some_and(|call| call.name == "futex")
        }),
        Fate::Idle => {
            let (chain, _) = graph.chain(at);
            let inside = |at: &usize| is_inside(&graph.parties[*at]);
            let rests = |at: &usize| gets(&graph.parties[*at]) || rests_in_pool(&graph.parties[*at]);
            chain.iter().all(|at| rests(at) || inside(at)) && chain.iter().any(rests)
        }
        fate => fate >= Fate::Endless,
    }
}

/// Waits for other threads of its process.
fn is_inside(party: &Party) -> bool {
    party.thread().is_some()
        && party.wait().is_some_and(|wait| matches!(wait.kind.as_str(), "thread" | "future" | "lock"))
}

/// A worker that waits for work of its pool.
fn rests_in_pool(party: &Party) -> bool {
    party.wait().is_some_and(|wait| wait.call.as_deref() == Some("concurrent.futures.thread._worker"))
}

/// What is reached was searched for; that all stand still is seen.
pub fn is_certain(graph: &Graph, at: usize) -> bool {
    is_last(graph, at) && !has_native_threads(&graph.parties[at])
}

/// Nobody knows what wakes these.
fn has_native_threads(party: &Party) -> bool {
    party.process.threads.iter().any(|t| t.interpreter.is_none())
}
