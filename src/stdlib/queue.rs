//! `queue`: Queue and its kin, and the C-made SimpleQueue: size, limit, who would have to get or put.

use rustc_hash::FxHashMap;
use serde_json::json;

use super::locks::{self, Parked};
use super::spoken;
use super::threading::{Found, others, promisers};
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::python::objects::{Heap, TypeInfo};
use crate::snapshot::Certainty;
use crate::target::memory::Addr;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_some()) {
        let of_queue = |(index, frame): (usize, &FrameScene)| of_frame(scene, thread, index, frame);
        let found = thread
            .frames
            .iter()
            .enumerate()
            .take(6)
            .take_while(|(_, f)| f.in_file("/threading.py") || f.in_file("/queue.py"))
            .filter(|(_, f)| f.in_file("/queue.py"))
            .find_map(of_queue)
            .or_else(|| simple(scene, thread));
        if let Some(found) = found {
            seen.waits.insert(thread.raw.tstate, found.into_wait());
        }
    }
}

fn of_frame(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let operation = match frame.code.name.as_str() {
        o @ ("put" | "get" | "join") => o,
        _ => return None,
    };
    // Not yet inside: then it waits for the queue's own lock.
    if !thread.frames[..index].iter().any(|f| f.is("/threading.py", &["wait"])) {
        return None;
    }
    let heap = scene.heap;
    let object = scene.receiver(frame)?;
    let ty = heap.type_of(object)?;
    let class = ty.name.rsplit('.').next().unwrap_or("Queue").to_owned();
    let [maxsize, queue, unfinished, shutdown] =
        heap.attrs(object, ["maxsize", "queue", "unfinished_tasks", "is_shutdown"]);
    let int = |v: Option<Addr>| v.and_then(|v| heap.int(v));
    let size = heap.size(queue?)?;
    let consumers = others(scene, thread, object, &["get", "get_nowait"]);
    let producers = others(scene, thread, object, &["put", "put_nowait"]);
    let promised = match operation {
        "get" => promisers(scene, thread, object, &["put", "put_nowait"]),
        _ => Vec::new(),
    };
    // Who would have to take one out, or say that it is done, may be the very one who waits for that.
    let outer = || (index + 1..thread.frames.len()).filter(|i| !thread.frames[*i].in_file("/queue.py"));
    let takes = |i: usize| {
        const METHODS: &[&str] = &["get", "get_nowait"];
        let will = spoken::will_speak_of(scene, thread, i, object, METHODS);
        will && spoken::surely_speaks_of(scene, &thread.frames[i], object, METHODS)
            || spoken::calls_who_speaks_of(scene, thread, i, object, METHODS)
    };
    let on = match operation {
        "put" => consumers.clone(),
        "get" if !promised.is_empty() => promised.clone(),
        "get" => producers.clone(),
        // A consumer that never says task_done() is to blame as much.
        _ => Some(others(scene, thread, object, &["task_done"])).filter(|on| !on.is_empty()).unwrap_or_else(
            || {
                let own =
                    outer().any(|i| spoken::speaks_of(scene, &thread.frames[i], object, &["task_done"]));
                if own && consumers.is_empty() {
                    vec![locks::actor(scene, thread)]
                } else {
                    consumers.clone()
                }
            },
        ),
    };
    let takers = (operation == "put" && outer().any(takes)).then(|| vec![thread.name()]);
    let maxsize = int(maxsize).unwrap_or(0);
    let described = if maxsize > 0 { format!("{class}(maxsize={maxsize})") } else { class };
    let label = match locks::named_object(scene, thread, object) {
        Some(name) => format!("{described} {name}"),
        None => described,
    };
    Some(Found {
        kind: "queue",
        call: format!("queue.Queue.{operation}"),
        frame: index,
        object: Some(object),
        label: Some(label),
        on,
        certainty: Certainty::Likely,
        detail: json!({
            "operation": operation, "size": size, "maxsize": maxsize, "unfinished": int(unfinished),
            "shutdown": int(shutdown).map(|s| s != 0), "consumers": consumers, "producers": producers,
            "reply": !promised.is_empty(), "takers": takers,
        }),
    })
}

/// `SimpleQueue.get` is C: the thread sleeps at the queue's own lock (up to 3.12) or parks at its
/// address (3.13 on; Modules/_queuemodule.c).
fn simple(scene: &Scene, thread: &ThreadScene) -> Option<Found> {
    let heap = scene.heap;
    let parked = locks::parked(scene, thread)?;
    let (size, near) = locks::find_near(scene, thread, |object| simple_queue(heap, object, &parked))?;
    let promised = promisers(scene, thread, near.object, &["put", "put_nowait"]);
    let producers = match promised.is_empty() {
        true => others(scene, thread, near.object, &["put", "put_nowait"]),
        false => promised.clone(),
    };
    let label = near.name.map_or_else(|| "SimpleQueue".into(), |n| format!("SimpleQueue {n}"));
    Some(Found {
        kind: "queue",
        call: "queue.SimpleQueue.get".into(),
        frame: near.frame,
        object: Some(near.object),
        label: Some(label),
        on: producers.clone(),
        certainty: Certainty::Proved,
        detail: json!({
            "operation": "get", "size": size, "maxsize": 0, "unfinished": null,
            "consumers": [], "producers": producers, "reply": !promised.is_empty(),
        }),
    })
}

/// Number of items, if it is a SimpleQueue and this thread waits at it.
fn simple_queue(heap: &Heap, object: Addr, parked: &Parked) -> Option<i64> {
    if heap.type_of(object)?.name != "_queue.SimpleQueue" {
        return None;
    }
    let body = object + heap.layout.object.size;
    // 3.13 on: `has_threads_waiting` (what is parked at), then RingBuf { get_idx, items, …, num_items }
    // behind it; before: lock, locked, lst, lst_pos.
    if parked.is_at(body) {
        return heap.mem.i64(body + 40).ok();
    }
    let lock = heap.ptr(body)?;
    if !parked.is_at(lock) {
        return None;
    }
    let (list, position) = (heap.ptr(body + 16)?, heap.mem.i64(body + 24).ok()?);
    Some(heap.size(list)? - position)
}

/// Items of a SimpleQueue in order, at most `cap`.
pub fn simple_items(heap: &Heap, object: Addr, cap: usize) -> Option<Vec<Addr>> {
    if heap.type_of(object)?.name != "_queue.SimpleQueue" {
        return None;
    }
    let body = object + heap.layout.object.size;
    if heap.layout.minor >= 13 {
        let word = |at| heap.mem.u64(body + at).ok();
        let (get, items, room, count) = (word(16)?, word(24)?, word(32)?, word(40)?);
        let count = (count as usize).min(cap);
        let at = |i: u64| {
            heap.mem.u64(items.checked_add((get.wrapping_add(i) % room.max(1)).checked_mul(8)?)?).ok()
        };
        return (0..count as u64).map(at).collect();
    }
    let (list, position) = (heap.ptr(body + 16)?, heap.mem.u64(body + 24).ok()? as usize);
    let ty = heap.type_of(list).filter(|t| t.is_list())?;
    let (items, _) = heap.items(list, &ty, position.saturating_add(cap))?;
    Some(items.into_iter().skip(position).collect())
}

/// What the items of queues that frames can reach lead to: an event, a future, the method by which to answer.
pub fn mail(scene: &Scene) -> FxHashMap<Addr, Vec<Addr>> {
    const MOST_ITEMS: usize = 256;
    let heap = scene.heap;
    let items = |queue: Addr| {
        let ty = heap.type_of(queue)?;
        if heap.is_of(&ty, "queue", "Queue") {
            return scene.items(heap.attrs(queue, ["queue"])[0]?, MOST_ITEMS);
        }
        simple_items(heap, queue, MOST_ITEMS)
    };
    let mut found: FxHashMap<Addr, Vec<Addr>> = FxHashMap::default();
    for queue in scene.reach().keys() {
        for item in items(*queue).unwrap_or_default() {
            let attributes =
                || heap.attributes(item, 16).map(|all| all.into_iter().map(|(_, v)| v).collect());
            let parts = scene.items(item, 16).or_else(attributes).unwrap_or_default();
            for part in parts.into_iter().chain([item]) {
                let is_method = |ty: &TypeInfo| ty.name == "method" || ty.is_c_function();
                let method = heap.type_of(part).is_some_and(|ty| is_method(&ty));
                let owner = method.then(|| heap.ptr(part + heap.layout.method.self_)).flatten();
                found.entry(owner.unwrap_or(part)).or_default().push(*queue);
            }
        }
    }
    found
}
