//! `multiprocessing`: semaphores shared between processes, the queues built on them, pools, processes
//! joined. Which other processes have a part in it is joined after the window (look/across.rs).

/// Pools of processes, those of `concurrent.futures` as well.
pub mod pool;
/// Locks, events, conditions: what stands on a SemLock.
pub mod synchronize;

use serde_json::json;

use super::locks;
use super::os::{On, OsWait};
use super::threading::{Found, others};
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::snapshot::{Actor, Address, Certainty};
use crate::target::memory::Addr;

/// How many of the innermost frames may belong to the machinery.
const DEPTH: usize = 10;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_some()) {
        // One that sleeps at a lock of threads does not sleep at a semaphore.
        let known = seen.waits.contains_key(&thread.raw.tstate);
        let mut found = if known { None } else { synchronize::semaphore(scene, thread) };
        for (index, frame) in thread.frames.iter().enumerate().take(DEPTH) {
            if is_ours(frame) {
                found = match (of_frame(scene, thread, index, frame), found) {
                    (Some(outer), Some(inner)) => Some(before(outer, &inner)),
                    (outer, inner) => outer.or(inner),
                };
            } else if is_plumbing(frame) {
                found = found.map(|inner| synchronize::barrier(scene, thread, index, frame).unwrap_or(inner));
            } else {
                break;
            }
        }
        let Some(found) = found else { continue };
        if let Some(os) = pipe_of(scene, &found) {
            seen.os.insert(thread.raw.tstate, os);
        }
        seen.waits.insert(thread.raw.tstate, found.into_wait());
    }
    pool::read(scene, seen);
}

/// Readers and writers of a queue take turns by a lock. Who waits for its turn while there are items, or room,
/// may wait for one who has ended.
fn before(mut queue: Found, lock: &Found) -> Found {
    let has_items = || queue.detail["size"].as_i64().is_some_and(|size| size > 0);
    let is_put = queue.detail["operation"] == "put";
    if queue.kind == "queue" && lock.kind == "lock" && (is_put || has_items()) {
        queue.detail["lock"] = json!({
            "semaphore": lock.detail["semaphore"], "max": lock.detail["max"],
            "address": lock.object.map(Address), "label": lock.label, "call": lock.call,
        });
    }
    queue
}

fn is_ours(frame: &FrameScene) -> bool {
    frame.code.file.as_deref().is_some_and(|f| f.contains("/multiprocessing/"))
}

/// What stands between a wait and the call of `multiprocessing` that led to it.
fn is_plumbing(frame: &FrameScene) -> bool {
    ["/threading.py", "/selectors.py", "/queue.py"].iter().any(|f| frame.in_file(f))
}

fn of_frame(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let name = frame.code.name.as_str();
    if frame.in_file("/multiprocessing/queues.py") && matches!(name, "put" | "get" | "join") {
        return queue(scene, thread, index, frame);
    }
    if frame.is("/multiprocessing/process.py", &["join"]) {
        return process(scene, index, frame);
    }
    if frame.in_file("/multiprocessing/synchronize.py") {
        return synchronize::of_frame(scene, thread, index, frame);
    }
    if frame.in_file("/multiprocessing/pool.py") {
        return pool::of_frame(scene, thread, index, frame);
    }
    None
}

/// A process that is named by nothing but its number.
pub fn by_pid(pid: i64) -> Option<Actor> {
    let pid = i32::try_from(pid).ok().filter(|p| *p > 0)?;
    Some(Actor { pid: Some(pid), tid: None, thread: None, task: None, task_name: None })
}

/// The pipe below a queue: whoever has the other end may get or put.
fn pipe_of(scene: &Scene, found: &Found) -> Option<OsWait> {
    if found.kind != "queue" {
        return None;
    }
    let (end, operation) = match found.detail["operation"].as_str()? {
        "get" => ("_reader", "read"),
        "put" => ("_writer", "write"),
        _ => return None,
    };
    let heap = scene.heap;
    let handle = heap.attrs(heap.attrs(found.object?, [end])[0]?, ["_handle"])[0]?;
    let fd = i32::try_from(heap.int(handle)?).ok()?;
    Some(OsWait { on: On::Fd { fd, operation }, for_work: false, sends: true })
}

fn queue(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let heap = scene.heap;
    let object = scene.receiver(frame)?;
    let operation = frame.code.name.clone();
    let class = heap.type_of(object)?.name.rsplit('.').next().unwrap_or("Queue").to_owned();
    let [maxsize, free, unfinished, buffer, all_done] =
        heap.attrs(object, ["_maxsize", "_sem", "_unfinished_tasks", "_buffer", "_cond"]);
    let sem = |o: Option<Addr>| synchronize::semlock(heap, heap.attrs(o?, ["_semlock"])[0]?);
    let value = |o: Option<Addr>| sem(o).map(|sem| i64::from(sem.value));
    // Who shares the semaphore that it sleeps at may end that.
    let signal = match operation.as_str() {
        "join" => sem(all_done.and_then(|cond| heap.attrs(cond, ["_wait_semaphore"])[0])),
        "put" => sem(free),
        _ => None,
    };
    let maxsize = maxsize.and_then(|m| heap.int(m));
    let size = maxsize.zip(value(free)).map(|(max, free)| max - free);
    let consumers = others(scene, thread, object, &["get", "get_nowait"]);
    let producers = others(scene, thread, object, &["put", "put_nowait"]);
    let on = match operation.as_str() {
        "put" => consumers.clone(),
        "get" => producers.clone(),
        _ => others(scene, thread, object, &["task_done"]),
    };
    // SEM_VALUE_MAX stands for "no limit".
    let limit = maxsize.filter(|m| *m < i64::from(i32::MAX));
    let described = limit.map_or_else(|| class.clone(), |m| format!("{class}(maxsize={m})"));
    let label = match locks::named_object(scene, thread, object) {
        Some(name) => format!("{described} {name}"),
        None => described,
    };
    Some(Found {
        kind: "queue",
        call: format!("multiprocessing.{class}.{operation}"),
        frame: index,
        object: Some(object),
        label: Some(label),
        certainty: Certainty::Likely,
        detail: json!({
            "operation": operation, "size": size, "maxsize": limit, "unfinished": value(unfinished),
            "not_written_yet": buffer.and_then(|b| heap.size(b)),
            "consumers": consumers, "producers": producers,
            "signal": signal.map(|sem| Address(sem.handle)), "here": on,
        }),
        on,
    })
}

fn process(scene: &Scene, index: usize, frame: &FrameScene) -> Option<Found> {
    let heap = scene.heap;
    let object = scene.receiver(frame)?;
    let name = heap.attrs(object, ["_name"])[0].and_then(|n| heap.checked_str(n));
    let pid = pid_of(scene, object);
    Some(Found {
        kind: "process",
        call: "multiprocessing.Process.join".into(),
        frame: index,
        object: Some(object),
        label: Some(format!("process {}", name.clone().unwrap_or_default())),
        on: pid.and_then(by_pid).into_iter().collect(),
        certainty: if pid.is_some() { Certainty::Proved } else { Certainty::Likely },
        detail: json!({ "name": name, "pid": pid, "command": null, "state": null }),
    })
}

/// The pid of a `multiprocessing.Process` object that was started.
pub fn pid_of(scene: &Scene, object: Addr) -> Option<i64> {
    let heap = scene.heap;
    let popen = heap.attrs(object, ["_popen"])[0]?;
    heap.int(heap.attrs(popen, ["pid"])[0]?)
}
