//! What the thread of a blocked loop waits for, where nobody but its own loop is left who could end it: no other thread
//! and no handler of a signal gets at it. A task of that very loop that would do it is named.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::futures;
use super::search::{Freedom, Search};
use crate::python::code::Codes;
use crate::snapshot::{Actor, Address, Certainty, Wait};
use crate::stdlib::wakers::gets_at;
use crate::stdlib::{Scene, Seen, signals, visible};
use crate::target::memory::Addr;

pub fn find(scene: &Scene, codes: &Codes, handlers: &[Addr], seen: &mut Seen) {
    let loops: FxHashSet<Addr> = seen.running.keys().copied().collect();
    for (event_loop, at) in seen.running.clone() {
        let thread = &scene.threads[at];
        let tstate = thread.raw.tstate;
        let is_blocked = seen.loops.get(&tstate).is_some_and(|l| l.state == "blocked");
        let wait = seen.waits.get(&tstate).filter(|w| is_blocked && is_open(w));
        let Some((wait, object)) = wait.and_then(|w| Some((w, w.address?.0))) else { continue };
        let methods = signals::methods(wait);
        let mut search = Search::new(scene, [object].into_iter().collect(), &loops);
        let mut others = scene.threads.iter().filter(|t| t.raw.tstate != tstate).map(|t| &t.frames);
        let by_thread = others.any(|frames| {
            let found = search.from_blocked(frames, Freedom::All);
            gets_at(&search, &found, object, methods)
        });
        let by_signal = handlers.iter().any(|handler| {
            let found = search.from_function(*handler);
            gets_at(&search, &found, object, methods)
        });
        if by_thread || by_signal || search.is_exhausted() {
            continue;
        }
        let own = seen.tasks.iter().filter(|t| t.event_loop == Some(Address(event_loop)));
        let tasks: Vec<Actor> = own
            .filter(|task| Some(&task.id.0) != seen.current.get(&tstate))
            .filter(|task| {
                let raw = seen.task_frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
                let callbacks =
                    futures::future(scene.heap, task.id.0).map(|f| futures::callbacks(scene.heap, &f));
                let frames = visible(scene.heap, codes, raw);
                let found = search.from(&frames, true, &callbacks.unwrap_or_default(), Freedom::Named);
                found.reached.contains(&object) && search.speaks(&found, methods)
            })
            .take(super::waits::MAX_ACTORS)
            .map(|task| Actor::task(scene.pid, task.tid, task.id))
            .collect();
        let Some(wait) = seen.waits.get_mut(&tstate) else { continue };
        wait.certainty = Certainty::Likely;
        wait.detail["open"] = json!(false);
        if tasks.is_empty() {
            wait.detail["deserted"] = json!(true);
        } else {
            wait.detail["event_loop"] = json!(Address(event_loop));
            wait.on = tasks;
        }
    }
}

/// Nobody who would have to act is known; processes do not share it.
fn is_open(wait: &Wait) -> bool {
    let shared = wait.call.as_deref().is_some_and(|call| call.starts_with("multiprocessing"));
    matches!(wait.kind.as_str(), "event" | "condition" | "barrier" | "semaphore" | "future" | "queue")
        && wait.on.is_empty()
        && wait.detail.is_object()
        && wait.detail["pool"].is_null()
        && !shared
}
