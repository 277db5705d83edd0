//! Threads that wait for a loop: the future of `run_coroutine_threadsafe`, which only that loop can complete; what
//! `call_soon_threadsafe` has told it to set, release or put.

use serde_json::json;

use super::{futures, uv};
use crate::python::objects::Heap;
use crate::snapshot::{Actor, Address, Certainty, Wait};
use crate::stdlib::{Scene, Seen, locks, signals, spoken};
use crate::target::memory::Addr;

/// Ready callbacks of one loop that are searched.
const MAX_READY: usize = 10_000;
const MAX_ATTRIBUTES: usize = 64;

/// For threads that wait for a future of which no pool knows anything.
pub fn find(scene: &Scene, seen: &mut Seen) {
    let waiting: Vec<(Addr, Addr)> = seen
        .waits
        .iter()
        .filter(|(_, w)| w.kind == "future" && w.on.is_empty())
        .filter_map(|(tstate, w)| Some((*tstate, w.address?.0)))
        .collect();
    of_tasks(scene, seen);
    of_callbacks(scene, seen);
    for (tstate, future) in waiting {
        let Some((event_loop, actor)) = completer(scene, seen, future, Some(tstate)) else { continue };
        let Some(wait) = seen.waits.get_mut(&tstate) else { continue };
        wait.on = vec![actor];
        wait.certainty = Certainty::Proved;
        wait.detail["event_loop"] = json!(Address(event_loop));
    }
}

/// For threads whose wait the very next iteration of a loop would end: that is among its ready callbacks, or what one
/// of them calls. Others may end it as well.
fn of_callbacks(scene: &Scene, seen: &mut Seen) {
    if seen.running.is_empty() {
        return;
    }
    let ready: Vec<(Addr, Addr)> = seen
        .running
        .keys()
        .flat_map(|event_loop| ready(scene, *event_loop).into_iter().map(|callback| (*event_loop, callback)))
        .collect();
    for wait in seen.waits.values_mut() {
        let methods = signals::methods(wait);
        let Some(object) = wait.address.map(|a| a.0).filter(|_| wait.kind != "thread") else { continue };
        let ends = |callback: &Addr| {
            spoken::is_method(scene, *callback, object, methods)
                || wait.on.is_empty()
                    && knows(scene, *callback, object)
                    && spoken::function_speaks_of(scene, *callback, object, methods)
        };
        let Some((event_loop, _)) = ready.iter().find(|(_, callback)| ends(callback)) else { continue };
        let Some(thread) = seen.running.get(event_loop).and_then(|t| scene.threads.get(*t)) else { continue };
        (wait.on, wait.certainty) = (vec![locks::actor(scene, thread)], Certainty::Likely);
        wait.detail["event_loop"] = json!(Address(*event_loop));
    }
}

/// The object is a free variable of the function, what its method is bound to, or an attribute of these.
fn knows(scene: &Scene, callback: Addr, object: Addr) -> bool {
    let heap = scene.heap;
    let roots: Vec<Addr> = match heap.type_of(callback).as_deref().map(|ty| ty.name.as_str()) {
        Some("function") => futures::closure(heap, callback).into_iter().map(|(_, value)| value).collect(),
        Some("method") => heap.ptr(callback + heap.layout.method.self_).into_iter().collect(),
        _ => return false,
    };
    let attributes = |root: &Addr| heap.attributes(*root, MAX_ATTRIBUTES).unwrap_or_default();
    roots.contains(&object) || roots.iter().flat_map(attributes).any(|(_, value)| value == object)
}

/// The same for tasks: `wrap_future` around the future of another loop.
fn of_tasks(scene: &Scene, seen: &mut Seen) {
    let waits = seen.tasks.iter().map(|task| task.waits_on.as_ref());
    let open = |w: &Wait| w.kind == "future" && w.on.is_empty() && w.detail["executor"] == true;
    let futures: Vec<Option<Addr>> = waits.map(|wait| Some(wait.filter(|w| open(w))?.address?.0)).collect();
    for (at, future) in futures.into_iter().enumerate() {
        let found = future.and_then(|f| completer(scene, seen, f, None));
        let Some((event_loop, actor)) = found else { continue };
        let Some(wait) = &mut seen.tasks[at].waits_on else { continue };
        wait.call = Some("asyncio.wrap_future".to_owned());
        (wait.on, wait.certainty) = (vec![actor], Certainty::Proved);
        wait.detail = json!({ "event_loop": Address(event_loop) });
    }
}

/// The loop that completes a future, and who does it there: the task, or else the loop's thread. Where that is
/// the very thread that waits, nothing else counts.
fn completer(scene: &Scene, seen: &Seen, future: Addr, waiter: Option<Addr>) -> Option<(Addr, Actor)> {
    let (event_loop, task) = scheduled(scene, seen, future).or_else(|| chained(scene, future))?;
    let runs = seen.running.get(&event_loop).and_then(|t| scene.threads.get(*t));
    let own = runs.is_some_and(|t| Some(t.raw.tstate) == waiter);
    let actor = match task.filter(|_| !own) {
        Some(task) => Actor::task(scene.pid, runs.and_then(|t| t.tid), Address(task)),
        None => locks::actor(scene, runs?),
    };
    Some((event_loop, actor))
}

/// The loop has not begun with it: the future stands in the closure of one of its ready callbacks.
fn scheduled(scene: &Scene, seen: &Seen, future: Addr) -> Option<(Addr, Option<Addr>)> {
    let mut loops = seen.running.keys();
    loops.find(|l| is_scheduled(scene, **l, future)).map(|event_loop| (*event_loop, None))
}

fn is_scheduled(scene: &Scene, event_loop: Addr, future: Addr) -> bool {
    let has =
        |callback: Addr| futures::closure(scene.heap, callback).iter().any(|(_, value)| *value == future);
    ready(scene, event_loop).into_iter().any(has)
}

/// Only this loop could complete the future.
pub fn is_for(scene: &Scene, event_loop: Addr, future: Addr) -> bool {
    is_scheduled(scene, event_loop, future)
        || chained(scene, future).is_some_and(|(its_loop, _)| its_loop == event_loop)
}

/// The callbacks that a loop will call next, and the functions that they are given: `IOLoop.add_callback` wraps them.
fn ready(scene: &Scene, event_loop: Addr) -> Vec<Addr> {
    let heap = scene.heap;
    let [ready] = heap.attrs(event_loop, ["_ready"]);
    let handles = match ready {
        Some(ready) => futures::deque(heap, ready, MAX_READY),
        None => uv::ready_handles(heap, event_loop, MAX_READY),
    };
    let of_handle = |handle: Addr| -> Vec<Addr> {
        let Some(ty) = heap.type_of(handle) else { return Vec::new() };
        match ty.name.starts_with("uvloop.") {
            true => uv::fields(heap, handle, &ty),
            false => heap.named_slots(handle, &ty, ["_callback", "_args"]).into_iter().flatten().collect(),
        }
    };
    let mut found = Vec::new();
    for part in handles.into_iter().flat_map(of_handle) {
        callables(heap, part, 3, &mut found);
    }
    found
}

/// Functions and methods among an object, the parts of a tuple, and what a `functools.partial` calls, and with what.
fn callables(heap: &Heap, object: Addr, depth: u32, found: &mut Vec<Addr>) {
    let Some(ty) = heap.type_of(object).filter(|_| depth > 0) else { return };
    let parts = match ty.name.as_str() {
        "functools.partial" => heap.words(object + heap.layout.object.size, 2).unwrap_or_default(),
        "tuple" => heap.tuple(object, 16).unwrap_or_default(),
        "function" | "method" => return found.push(object),
        _ if ty.is_c_function() => return found.push(object),
        _ => return,
    };
    parts.into_iter().for_each(|part| callables(heap, part, depth - 1, found));
}

/// It is chained to a task: a callback of it knows both (asyncio/futures.py, `_chain_future`).
fn chained(scene: &Scene, future: Addr) -> Option<(Addr, Option<Addr>)> {
    let heap = scene.heap;
    let [callbacks] = heap.attrs(future, ["_done_callbacks"]);
    let ty = heap.type_of(callbacks?).filter(|t| t.is_list())?;
    let (callbacks, _) = heap.items(callbacks?, &ty, 64)?;
    callbacks.into_iter().find_map(|callback| {
        let values = futures::closure(heap, callback);
        let (_, source) = values.iter().find(|(name, _)| &**name == "source")?;
        let source = futures::future(heap, *source).filter(|f| f.is_pending())?;
        Some((source.event_loop?, source.is_task.then_some(source.addr)))
    })
}
