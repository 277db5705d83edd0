//! Work that stands in the queue of a pool, and would end what the pool's own workers wait for: it never gets its
//! turn. Nobody else may be there who gets at that object.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::asyncio::futures;
use super::asyncio::search::{Freedom, Search};
use super::{Scene, Seen, ThreadScene, locks, signals, wakers};
use crate::snapshot::{Certainty, Wait};
use crate::target::memory::Addr;

/// Items of one queue that are searched.
const MAX_ITEMS: usize = 64;

pub fn find(scene: &Scene, seen: &mut Seen) {
    let loops: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).collect();
    for (items, workers) in scene.work().pools(scene, MAX_ITEMS) {
        for &worker in &workers {
            let thread = &scene.threads[worker];
            let Some(wait) = seen.waits.get(&thread.raw.tstate).filter(|w| is_open(w)) else { continue };
            let Some(object) = wait.address.map(|a| a.0) else { continue };
            let methods = signals::methods(wait);
            // A loop may run what nobody has asked for yet: there only who serves a request is surely in need.
            if !seen.loops.is_empty() && !serves(seen, thread) {
                continue;
            }
            let mut search = Search::new(scene, FxHashSet::from_iter([object]), &loops);
            let setter = items.iter().find_map(|item| {
                let called = callables(scene, *item);
                let found = search.from(&[], true, &called, Freedom::Named);
                let ends = found.reached.contains(&object) && search.speaks(&found, methods);
                ends.then(|| called.iter().rev().find_map(|c| name(scene, *c)).unwrap_or_default())
            });
            let Some(setter) = setter else { continue };
            let behind = wakers::behind(scene, seen, thread.raw.tstate, object, &|_, _, _| false);
            let others = scene.threads.iter().enumerate().filter(|(at, t)| {
                let rests = seen.loops.get(&t.raw.tstate).is_some_and(|l| l.state == "polling");
                !workers.contains(at) && !behind.contains(&t.raw.tstate) && !rests
            });
            let gets_at = |(_, other): (usize, &ThreadScene)| {
                let found = search.from_blocked(&other.frames, Freedom::Named);
                wakers::gets_at(&search, &found, object, methods)
            };
            if others.into_iter().any(gets_at) {
                continue;
            }
            let on = workers.iter().map(|at| locks::actor(scene, &scene.threads[*at])).collect();
            let Some(wait) = seen.waits.get_mut(&thread.raw.tstate) else { continue };
            wait.on = on;
            wait.certainty = Certainty::Likely;
            wait.detail["queued_setter"] = json!(setter);
            wait.detail["open"] = json!(false);
        }
    }
}

/// A sign for which nobody is known who would give it.
fn is_open(wait: &Wait) -> bool {
    let shared = wait.call.as_deref().is_some_and(|call| call.starts_with("multiprocessing"));
    matches!(wait.kind.as_str(), "event" | "condition" | "barrier" | "semaphore")
        && wait.on.is_empty()
        && wait.detail.is_object()
        && wait.ends_in.is_none()
        && !shared
}

/// It is at a request, or a task that is waits for it.
fn serves(seen: &Seen, thread: &ThreadScene) -> bool {
    let waits = |w: &Wait| w.on.iter().any(|on| on.tid.is_some() && on.tid == thread.tid);
    let mut tasks = seen.tasks.iter().filter(|t| t.request.is_some());
    seen.requests.contains_key(&thread.raw.tstate) || tasks.any(|t| t.waits_on.as_ref().is_some_and(&waits))
}

/// What a work item calls, and with what. From 3.14 on it has all of it in a tuple.
fn callables(scene: &Scene, item: Addr) -> Vec<Addr> {
    let parts = scene.heap.attrs(item, ["fn", "args", "kwargs", "task"]);
    parts.into_iter().flatten().collect()
}

/// Of the functions of Python that are called or handed on, the last: those before it are what calls it.
fn name(scene: &Scene, callable: Addr) -> Option<String> {
    let heap = scene.heap;
    let ty = heap.type_of(callable)?;
    let last = |parts: Vec<Addr>| parts.into_iter().rev().find_map(|part| name(scene, part));
    match ty.name.as_str() {
        "function" => futures::function_name(heap, callable).map(|name| name.to_string()),
        "method" => name(scene, heap.ptr(callable + heap.layout.method.func)?),
        // `partialobject { fn, args, … }` (Modules/_functoolsmodule.c)
        "functools.partial" => last(heap.words(callable + heap.layout.object.size, 2)?),
        _ if ty.is_tuple() => last(heap.tuple(callable, 8)?),
        _ => None,
    }
}
