//! `multiprocessing.synchronize`: what stands on a SemLock, which keeps its value in memory that all
//! processes share, and what belongs to one process in the object (Modules/_multiprocessing/semaphore.c).

use serde_json::json;

use crate::python::objects::Heap;
use crate::snapshot::{Address, Certainty};
use crate::stdlib::threading::{Found, gives_back, others};
use crate::stdlib::{FrameScene, Scene, ThreadScene, locks};
use crate::target::memory::Addr;

/// Frames from the innermost that are searched for the object around a SemLock.
const NEAR: usize = 8;
/// `SEMAPHORE` of Modules/_multiprocessing/semaphore.c; 0 is a recursive lock.
const SEMAPHORE: i32 = 1;

/// A SemLock, read.
#[derive(Clone, Copy, Debug)]
pub struct SemLock {
    /// The `sem_t`; the futex a waiter sleeps on.
    pub handle: Addr,
    /// Value of the semaphore (glibc from 2.21 on, 64-bit: the low half of its first word).
    pub value: u32,
    pub max: i32,
    /// Times this process has acquired it, releases taken off.
    pub count: i32,
    /// The thread of this process that did so last.
    pub last_tid: u64,
    pub recursive: bool,
}

pub fn semlock(heap: &Heap, object: Addr) -> Option<SemLock> {
    if heap.type_of(object)?.name != "_multiprocessing.SemLock" {
        return None;
    }
    let body = object.checked_add(heap.layout.object.size)?;
    let handle = heap.ptr(body)?;
    Some(SemLock {
        handle,
        value: heap.mem.u32(handle).ok()?,
        last_tid: heap.mem.u64(body + 8).ok()?,
        count: heap.mem.i32(body + 16).ok()?,
        max: heap.mem.i32(body + 20).ok()?,
        recursive: heap.mem.i32(body + 24).ok()? != SEMAPHORE,
    })
}

/// A thread that sleeps on the futex of a SemLock near by.
pub fn semaphore(scene: &Scene, thread: &ThreadScene) -> Option<Found> {
    let heap = scene.heap;
    let futex = thread.futex()?;
    let mine = |object: Addr| {
        let inner = |o| semlock(heap, o).map(|sem| (o, sem));
        let (object, sem) = inner(object).or_else(|| inner(heap.attrs(object, ["_semlock"])[0]?))?;
        (sem.handle == futex).then_some((object, sem))
    };
    let ((object, sem), near) = locks::find_near(scene, thread, mine)?;
    let around = around(scene, thread, object);
    let slot = around.as_ref().is_none_or(|a| gives_back(scene, thread, a.object));
    let class = around.as_ref().map(|a| a.class.clone()).unwrap_or_else(|| "Lock".into());
    let label = match around.and_then(|a| a.name).or(near.name.filter(|n| n != "self")) {
        Some(name) => format!("multiprocessing {class} {}", name.trim_end_matches("._semlock")),
        None => format!("a multiprocessing {class}"),
    };
    Some(Found {
        kind: if sem.max == 1 { "lock" } else { "semaphore" },
        call: format!("multiprocessing.synchronize.{class}.acquire"),
        frame: near.frame,
        object: Some(object),
        label: Some(label),
        on: Vec::new(),
        certainty: Certainty::Proved,
        // Who holds it is asked of all who share it.
        detail: json!({
            "value": sem.value, "max": sem.max, "count": sem.count, "recursive": sem.recursive,
            "semaphore": Address(sem.handle), "owner": null, "slot": slot,
        }),
    })
}

/// The Python object around a SemLock, and what the application calls it.
struct Around {
    object: Addr,
    class: String,
    name: Option<String>,
}

fn around(scene: &Scene, thread: &ThreadScene, semlock: Addr) -> Option<Around> {
    let heap = scene.heap;
    let is_around = |object: Addr| heap.attrs(object, ["_semlock"])[0] == Some(semlock);
    for frame in thread.frames.iter().take(NEAR) {
        let near = [scene.values(frame), locks::named_globals(scene, frame).to_vec()].concat();
        let object = near.into_iter().find_map(|value| {
            if is_around(value) {
                return Some(value);
            }
            let parts = heap.attributes(value, 64).unwrap_or_default();
            parts.into_iter().map(|(_, part)| part).find(|part| is_around(*part))
        });
        if let Some(object) = object {
            let class = heap.type_of(object)?.name.rsplit('.').next().unwrap_or("Lock").to_owned();
            return Some(Around { object, class, name: locks::named_object(scene, thread, object) });
        }
    }
    None
}

/// Events and conditions: the semaphore below is a signal that nobody holds.
pub fn of_frame(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    if !matches!(frame.code.name.as_str(), "wait" | "wait_for") {
        return None;
    }
    let heap = scene.heap;
    let object = scene.receiver(frame)?;
    let ty = heap.type_of(object)?;
    let (kind, methods): (_, &[&str]) = match () {
        () if heap.is_a(&ty, "Event") => ("event", &["set"]),
        () if heap.is_a(&ty, "Condition") => ("condition", &["notify", "notify_all"]),
        () => return None,
    };
    let class = ty.name.rsplit('.').next().unwrap_or("Event").to_owned();
    let [condition] = heap.attrs(object, ["_cond"]);
    let [signal] = heap.attrs(condition.unwrap_or(object), ["_wait_semaphore"]);
    let handle = signal.and_then(|s| semlock(heap, heap.attrs(s, ["_semlock"])[0]?)).map(|s| s.handle);
    let on = others(scene, thread, object, methods);
    let label = match locks::named_object(scene, thread, object) {
        Some(name) => format!("multiprocessing {class} {name}"),
        None => format!("a multiprocessing {class}"),
    };
    Some(Found {
        kind,
        call: format!("multiprocessing.synchronize.{class}.{}", frame.code.name),
        frame: index,
        object: Some(object),
        label: Some(label),
        certainty: Certainty::Likely,
        detail: json!({ "signal": handle.map(Address), "here": on }),
        on,
    })
}

/// A barrier is that of `threading`, on a condition of `multiprocessing`.
pub fn barrier(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    if !frame.is("/threading.py", &["wait"]) {
        return None;
    }
    let heap = scene.heap;
    let object = scene.receiver(frame)?;
    let ty = heap.type_of(object)?;
    if !heap.is_a(&ty, "Barrier") {
        return None;
    }
    let [parties, condition] = heap.attrs(object, ["_parties", "_cond"]);
    let [signal, sleepers] = heap.attrs(condition?, ["_wait_semaphore", "_sleeping_count"]);
    let sem = |o: Option<Addr>| semlock(heap, heap.attrs(o?, ["_semlock"])[0]?);
    let others = others(scene, thread, object, &["wait"]);
    let name = locks::named_object(scene, thread, object);
    Some(Found {
        kind: "barrier",
        call: "multiprocessing.synchronize.Barrier.wait".into(),
        frame: index,
        object: Some(object),
        label: Some(name.map_or_else(|| "Barrier".into(), |n| format!("multiprocessing Barrier {n}"))),
        certainty: Certainty::Likely,
        detail: json!({
            "parties": parties.and_then(|p| heap.int(p)), "waiting": sem(sleepers).map(|s| s.value),
            "signal": sem(signal).map(|s| Address(s.handle)), "here": others,
        }),
        on: others,
    })
}
