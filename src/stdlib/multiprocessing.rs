//! `multiprocessing`: semaphores shared between processes, the queues built on them, processes joined.
//!
//! A SemLock keeps its value in shared memory that the target itself maps; what belongs to this
//! process (`count`, `last_tid`) stands in the object (Modules/_multiprocessing/semaphore.c).

use serde_json::json;

use super::locks;
use super::threading::{Found, others};
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::python::objects::Heap;
use crate::snapshot::{Actor, Certainty};
use crate::target::memory::Addr;

/// A SemLock, read.
#[derive(Clone, Copy, Debug)]
pub struct SemLock {
    /// The `sem_t`; the futex a waiter sleeps on.
    pub handle: Addr,
    /// Value of the semaphore (glibc from 2.21 on, 64-bit: the low half of its first word).
    pub value: u32,
    pub max: i32,
    /// Times this process has acquired it.
    pub count: i32,
    /// The thread of this process that did so last.
    pub last_tid: u64,
}

pub fn semlock(heap: &Heap, object: Addr) -> Option<SemLock> {
    if heap.type_of(object)?.name != "_multiprocessing.SemLock" {
        return None;
    }
    let body = object + heap.layout.object.size;
    let handle = heap.ptr(body)?;
    Some(SemLock {
        handle,
        value: heap.mem.u32(handle).ok()?,
        last_tid: heap.mem.u64(body + 8).ok()?,
        count: heap.mem.i32(body + 16).ok()?,
        max: heap.mem.i32(body + 20).ok()?,
    })
}

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_some()) {
        let mut found = semaphore(scene, thread);
        for (index, frame) in thread.frames.iter().enumerate().take(6) {
            if !frame.code.file.as_deref().is_some_and(|f| f.contains("/multiprocessing/")) {
                break;
            }
            found = of_frame(scene, thread, index, frame).or(found);
        }
        if let Some(found) = found {
            seen.waits.insert(thread.raw.tstate, found.into_wait());
        }
    }
}

/// A thread that sleeps on the futex of a SemLock near by.
fn semaphore(scene: &Scene, thread: &ThreadScene) -> Option<Found> {
    let heap = scene.heap;
    let futex = thread.futex()?;
    let mine = |object: Addr| {
        let sem = semlock(heap, object).or_else(|| semlock(heap, heap.attrs(object, ["_semlock"])[0]?))?;
        (sem.handle == futex).then_some(sem)
    };
    let (sem, near) = locks::find_near(scene, thread, mine)?;
    let holder = (sem.count > 0).then(|| scene.thread_by_ident(sem.last_tid)).flatten();
    let on: Vec<Actor> = holder.map(|t| locks::actor(scene, t)).into_iter().collect();
    Some(Found {
        kind: if sem.max == 1 { "lock" } else { "semaphore" },
        call: "multiprocessing.synchronize.SemLock.acquire".into(),
        frame: near.frame,
        object: Some(near.object),
        label: Some(near.name.map_or_else(
            || "a multiprocessing lock".into(),
            |n| format!("multiprocessing lock {}", n.trim_end_matches("._semlock")),
        )),
        certainty: Certainty::Proved,
        detail: json!({ "value": sem.value, "max": sem.max, "owner": on.first().and_then(|a| a.tid) }),
        on,
    })
}

fn of_frame(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let name = frame.code.name.as_str();
    if frame.in_file("/multiprocessing/queues.py") && matches!(name, "put" | "get" | "join") {
        return queue(scene, thread, index, frame);
    }
    if frame.is("/multiprocessing/process.py", &["join"]) {
        return process(scene, index, frame);
    }
    if frame.is("/multiprocessing/pool.py", &["join", "get", "wait", "map", "apply", "starmap"]) {
        return Some(pool(scene, thread, index, frame));
    }
    None
}

fn queue(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let heap = scene.heap;
    let object = scene.receiver(frame)?;
    let operation = frame.code.name.clone();
    let class = heap.type_of(object)?.name.rsplit('.').next().unwrap_or("Queue").to_owned();
    let [maxsize, free, unfinished, buffer] =
        heap.attrs(object, ["_maxsize", "_sem", "_unfinished_tasks", "_buffer"]);
    let value = |o: Option<Addr>| {
        let sem = semlock(heap, heap.attrs(o?, ["_semlock"])[0]?)?;
        Some(i64::from(sem.value))
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
        on,
        certainty: Certainty::Likely,
        detail: json!({
            "operation": operation, "size": size, "maxsize": limit, "unfinished": value(unfinished),
            "not_written_yet": buffer.and_then(|b| heap.size(b)),
            "consumers": consumers, "producers": producers,
        }),
    })
}

fn process(scene: &Scene, index: usize, frame: &FrameScene) -> Option<Found> {
    let heap = scene.heap;
    let object = scene.receiver(frame)?;
    let [popen, name] = heap.attrs(object, ["_popen", "_name"]);
    let pid = popen.and_then(|p| heap.int(heap.attrs(p, ["pid"])[0]?)).and_then(|p| i32::try_from(p).ok());
    let name = name.and_then(|n| heap.checked_str(n));
    Some(Found {
        kind: "process",
        call: "multiprocessing.Process.join".into(),
        frame: index,
        object: Some(object),
        label: Some(format!("process {}", name.clone().unwrap_or_default())),
        on: pid
            .map(|pid| Actor { pid: Some(pid), tid: None, thread: None, task: None })
            .into_iter()
            .collect(),
        certainty: if pid.is_some() { Certainty::Proved } else { Certainty::Likely },
        detail: json!({ "name": name, "pid": pid, "command": null, "state": null }),
    })
}

fn pool(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Found {
    let object = scene.receiver(frame);
    let joined = thread.frames[..index].iter().find(|f| f.is("/threading.py", &["join"]));
    let on = joined.and_then(|f| scene.thread_of(scene.receiver(f)?)).map(|t| locks::actor(scene, t));
    Found {
        kind: "thread",
        call: format!("multiprocessing.pool.{}", frame.code.qualname.as_deref().unwrap_or(&frame.code.name)),
        frame: index,
        object,
        label: Some("a multiprocessing pool".into()),
        on: on.into_iter().collect(),
        certainty: Certainty::Likely,
        detail: json!({ "name": null, "alive": true, "pool": true }),
    }
}
