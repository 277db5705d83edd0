//! `tornado.locks` and `tornado.queues`: their methods return a bare future, and the object keeps it until somebody
//! ends the wait (tornado/locks.py, `_waiters`; tornado/queues.py, `_getters` and `_putters`). So the objects are
//! looked for that the waiting task gets at.

use std::rc::Rc;

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::{Value, json};

use super::search::Search;
use super::{futures, waits};
use crate::python::code::Codes;
use crate::python::objects::Heap;
use crate::python::sysinfo;
use crate::snapshot::{Actor, Address, Certainty, Task};
use crate::stdlib::{FrameScene, Scene, Seen, locks, visible};
use crate::target::memory::Addr;

pub const LOCKS: &str = "tornado.locks";
const QUEUES: &str = "tornado.queues";
/// Steps from a frame to the object: `self.application.lots[n].lock`.
const DEPTH: usize = 5;
const MAX_OBJECTS: usize = 4_000;
/// Futures that one object keeps.
const MAX_WAITERS: usize = 10_000;
/// Tasks from whose frames objects are looked for.
const MAX_SEARCHES: usize = 64;

/// One that keeps the futures of those who wait.
struct Keeper {
    object: Addr,
    kind: &'static str,
    call: &'static str,
    detail: Value,
    waiters: Vec<Addr>,
    /// Keeps them for this one: the semaphore inside of a lock, the event of a queue.
    inner: Option<Addr>,
}

pub fn find(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let is_loaded =
        |interp| sysinfo::modules(scene.heap, interp, [LOCKS, QUEUES]).iter().any(Option::is_some);
    if !scene.threads.iter().any(|t| is_loaded(t.interp)) {
        return;
    }
    let loops: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).collect();
    let mut search = Search::new(scene, FxHashSet::default(), &loops);
    let mut kept: FxHashMap<Addr, Rc<Keeper>> = FxHashMap::default();
    let mut searches = 0;
    for at in 0..seen.tasks.len() {
        let bare = seen.tasks[at].waits_on.as_ref().filter(|w| w.kind == "future" && w.call.is_none());
        let Some(Address(future)) = bare.and_then(|w| w.address) else { continue };
        if !kept.contains_key(&future) && searches < MAX_SEARCHES {
            searches += 1;
            let raw = seen.task_frames.get(&seen.tasks[at].id.0).map_or(&[][..], Vec::as_slice);
            let frames = visible(scene.heap, codes, raw);
            let near = search.near(&roots(scene, &frames), DEPTH, MAX_OBJECTS);
            let keepers: Vec<Keeper> = near.into_keys().flat_map(|o| of_object(scene.heap, o)).collect();
            let inner: FxHashSet<Addr> = keepers.iter().filter_map(|k| k.inner).collect();
            for keeper in keepers.into_iter().filter(|k| !inner.contains(&k.object)).map(Rc::new) {
                kept.extend(keeper.waiters.iter().map(|future| (*future, Rc::clone(&keeper))));
            }
        }
        if let Some(keeper) = kept.get(&future) {
            tell(scene, seen, at, future, keeper);
        }
    }
}

fn tell(scene: &Scene, seen: &mut Seen, at: usize, future: Addr, keeper: &Keeper) {
    let has = |task: &&Task| {
        let is_it = |a: Addr| a == keeper.object || Some(a) == keeper.inner;
        task.holds.iter().any(|lock| is_it(lock.address.0))
    };
    let on: Vec<Actor> = seen.tasks.iter().filter(has).map(|t| Actor::task(scene.pid, t.tid, t.id)).collect();
    let Some(wait) = &mut seen.tasks[at].waits_on else { return };
    if let Some(when) = timer(scene.heap, future).filter(|_| wait.ends_in.is_none()) {
        (wait.deadline, wait.ends_in) = (Some("at".to_owned()), waits::seconds_to(scene, when));
    }
    // Who has taken a slot without a `with` is not known, and may be the one to give one back.
    let all = on.is_empty() || keeper.kind == "lock" || keeper.detail["max"] == on.len();
    wait.certainty = if all { Certainty::Proved } else { Certainty::Likely };
    wait.kind = keeper.kind.to_owned();
    wait.address = Some(Address(keeper.object));
    wait.call = Some(keeper.call.to_owned());
    let told = keeper.detail.as_object().into_iter().flatten();
    told.for_each(|(key, value)| wait.detail[key] = value.clone());
    wait.on = on;
}

/// What the frames get at by their variables, and by the globals that their code names.
fn roots(scene: &Scene, frames: &[FrameScene]) -> Vec<Addr> {
    let of_frame = |frame: &FrameScene| {
        let mut values = scene.values(frame);
        values.extend(locks::named_globals(scene, frame).iter());
        values
    };
    frames.iter().flat_map(of_frame).collect()
}

fn of_object(heap: &Heap, object: Addr) -> Vec<Keeper> {
    let Some(ty) = heap.type_of(object).filter(|ty| ty.is_heap_type() && !ty.is_type()) else {
        return Vec::new();
    };
    let is = |module: &str, class: &str| heap.is_of(&ty, module, class);
    let number = |attr: &str| heap.attrs(object, [attr])[0].and_then(|n| heap.int(n));
    let waiters = |object: Addr| members(heap, object, "_waiters");
    let one = |kind: &'static str, call: &'static str| Keeper {
        object,
        kind,
        call,
        detail: json!({}),
        waiters: waiters(object),
        inner: None,
    };
    match () {
        _ if is(LOCKS, "Lock") => {
            let inner = heap.attrs(object, ["_block"])[0];
            let waiters = inner.map(waiters).unwrap_or_default();
            vec![Keeper { waiters, inner, ..one("lock", "tornado.locks.Lock.acquire") }]
        }
        _ if is(LOCKS, "Semaphore") => {
            let detail = json!({ "value": number("_value"), "max": number("_initial_value") });
            vec![Keeper { detail, ..one("semaphore", "tornado.locks.Semaphore.acquire") }]
        }
        _ if is(LOCKS, "Event") => vec![one("event", "tornado.locks.Event.wait")],
        _ if is(LOCKS, "Condition") => vec![one("condition", "tornado.locks.Condition.wait")],
        _ if is(QUEUES, "Queue") => {
            let [items, finished] = heap.attrs(object, ["_queue", "_finished"]);
            let size = items.and_then(|items| heap.size(items));
            let of = |call, operation: &str, waiters| {
                let detail = json!({
                    "operation": operation, "size": size, "maxsize": number("_maxsize"),
                    "unfinished": number("_unfinished_tasks"),
                });
                Keeper { detail, waiters, inner: finished, ..one("queue", call) }
            };
            // Each of those who put stands beside its item.
            let pairs = members(heap, object, "_putters").into_iter();
            let putters = pairs.filter_map(|pair| heap.tuple(pair, 2)?.get(1).copied()).collect();
            vec![
                of("tornado.queues.Queue.get", "get", members(heap, object, "_getters")),
                of("tornado.queues.Queue.put", "put", putters),
                of("tornado.queues.Queue.join", "join", finished.map(waiters).unwrap_or_default()),
            ]
        }
        _ => Vec::new(),
    }
}

/// Of a deque, or of a set, as an event has it.
fn members(heap: &Heap, object: Addr, attribute: &str) -> Vec<Addr> {
    let Some(all) = heap.attrs(object, [attribute])[0] else { return Vec::new() };
    match heap.type_of(all) {
        Some(ty) if ty.name == "set" => heap.set(all, MAX_WAITERS).unwrap_or_default().0,
        _ => futures::deque(heap, all, MAX_WAITERS),
    }
}

/// When a timer ends the wait: a callback of the future has it, to remove it when it is no longer needed.
fn timer(heap: &Heap, future: Addr) -> Option<f64> {
    let callbacks = futures::callbacks(heap, &futures::future(heap, future)?).into_iter();
    let values = callbacks.flat_map(|callback| futures::closure(heap, callback));
    values.filter(|(name, _)| &**name == "timeout_handle").find_map(|(_, handle)| waits::when(heap, handle))
}
