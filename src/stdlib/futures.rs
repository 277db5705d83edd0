//! `concurrent.futures`: results waited for, executors shut down, and what their workers do.

use rustc_hash::FxHashMap;
use serde_json::json;

use super::locks::{self, actor};
use super::queue;
use super::threading::{Found, others};
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::snapshot::{Actor, Address, Certainty};
use crate::target::memory::Addr;

const BASE: &str = "/concurrent/futures/_base.py";
const THREAD: &str = "/concurrent/futures/thread.py";
const PROCESS: &str = "/concurrent/futures/process.py";
/// Most queued work items that are searched for a future.
const MAX_QUEUED: usize = 10_000;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_some()) {
        let mut found = None;
        for (index, frame) in thread.frames.iter().enumerate().take(8) {
            let ours = [BASE, THREAD, PROCESS].iter().any(|f| frame.in_file(f));
            if !ours && !frame.in_file("/threading.py") && !frame.in_file("/queue.py") {
                break;
            }
            if ours {
                // The outermost: `__exit__` above `shutdown` above `join`.
                found = of_frame(scene, thread, index, frame).or(found);
            }
        }
        if let Some(found) = found {
            seen.waits.insert(thread.raw.tstate, found.into_wait());
        }
    }
}

fn of_frame(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    if frame.is(BASE, &["result", "exception"]) {
        return result(scene, thread, index, frame);
    }
    if frame.is(BASE, &["wait", "as_completed", "result_iterator"]) {
        return several(scene, thread, index, frame);
    }
    if frame.is(THREAD, &["shutdown"]) || frame.is(PROCESS, &["shutdown"]) {
        return shutdown(scene, thread, index, frame);
    }
    // Anything but the queue above it is at work: an item, or the pool's initializer.
    if frame.is(THREAD, &["_worker"]) && (index == 0 || thread.frames[index - 1].in_file("/queue.py")) {
        return Some(idle_worker(index));
    }
    if frame.is(THREAD, &["_python_exit"]) {
        return shutdown_at_exit(scene, thread, index);
    }
    None
}

fn result(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let future = scene.receiver(frame)?;
    let (mut on, mut detail, mut certainty) = scene.work().of(scene, future);
    if on.is_empty() && is_left_behind(scene, thread, future) {
        detail["nobody"] = json!(true);
        detail["left_behind"] = json!(true);
        certainty = Certainty::Proved;
    } else if on.is_empty() {
        // No pool's: a promise that somebody keeps who reads the answers.
        on = others(scene, thread, future, &["set_result", "set_exception"]);
        // The pools' own machinery does so for every future.
        let is_user = |t: &&ThreadScene| t.frames.iter().any(|f| scene.is_user(f));
        on.retain(|a| scene.threads.iter().find(|t| t.tid == a.tid).is_some_and(|t| is_user(&t)));
        detail["promise"] = json!(!on.is_empty());
    }
    let name = locks::named_object(scene, thread, future);
    Some(Found {
        kind: "future",
        call: format!("concurrent.futures.Future.{}", frame.code.name),
        frame: index,
        object: Some(future),
        label: Some(name.map_or_else(|| "a Future".into(), |n| format!("Future {n}"))),
        on,
        certainty,
        detail,
    })
}

/// An executor that was there before a fork has its work items in the child as well, and none of its threads: who
/// would run this future, or hand it to a process, stayed behind in the parent.
fn is_left_behind(scene: &Scene, thread: &ThreadScene, future: Addr) -> bool {
    let heap = scene.heap;
    let is_it = |item: &Addr| heap.attrs(*item, ["future"])[0] == Some(future);
    let left = |executor: Addr| {
        let names = [
            "_pending_work_items",
            "_executor_manager_thread",
            "_queue_management_thread",
            "_work_queue",
            "_threads",
        ];
        let [pending, manager, older, queue, threads] = heap.attrs(executor, names);
        if let Some(manager) = manager.or(older) {
            let items = pending.and_then(|p| heap.dict(p, MAX_QUEUED)).unwrap_or_default().0;
            let is_thread = heap.type_of(manager).is_some_and(|ty| ty.name != "NoneType");
            return is_thread && items.iter().any(|i| is_it(&i.1)) && scene.thread_of(manager).is_none();
        }
        let Some((threads, _)) = threads.and_then(|t| heap.set(t, 4096)) else { return false };
        let items = queue.and_then(|q| queue::simple_items(heap, q, MAX_QUEUED)).unwrap_or_default();
        !threads.is_empty()
            && items.iter().any(is_it)
            && threads.iter().all(|t| scene.thread_of(*t).is_none())
    };
    let of_frame = |frame: &FrameScene| {
        let own = scene.values(frame).into_iter();
        own.chain(locks::named_globals(scene, frame).iter().copied()).collect::<Vec<_>>()
    };
    let objects = thread.frames.iter().take(16).filter(|f| scene.is_user(f)).flat_map(of_frame);
    let is_executor = |o: &Addr| heap.type_of(*o).is_some_and(|ty| ty.is_heap_type() && !ty.is_type());
    objects.into_iter().filter(is_executor).any(left)
}

/// `wait`, `as_completed` and `map`: those futures that are not done yet.
fn several(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let heap = scene.heap;
    // The one that `map` waits for just now has left its list.
    if let Some((inner, next)) = thread.frames[..index]
        .iter()
        .enumerate()
        .find(|(_, f)| frame.code.name == "result_iterator" && f.is(BASE, &["result"]))
    {
        let found = result(scene, thread, inner, next)?;
        return Some(Found { call: "concurrent.futures.Executor.map".into(), frame: index, ..found });
    }
    let container = scene
        .local(frame, "pending")
        .or_else(|| scene.local(frame, "not_done"))
        .or_else(|| scene.local(frame, "fs"))?;
    let ty = heap.type_of(container)?;
    let futures = match heap.set(container, 64) {
        Some((items, _)) if ty.name == "set" || ty.name == "frozenset" => items,
        _ if ty.is_list() || ty.is_tuple() => heap.items(container, &ty, 64)?.0,
        _ => return None,
    };
    let condition = scene.local(frame, "return_when").and_then(|w| heap.checked_str(w));
    let first = frame.code.name == "as_completed" || condition.is_some_and(|c| c == "FIRST_COMPLETED");
    let (on, mut detail, certainty) = scene.work().of_several(scene, &futures);
    detail["first"] = json!(first);
    // Who has them in work is known to the pools of processes.
    if on.is_empty() {
        detail["members"] = json!(futures.iter().map(|f| Address(*f)).collect::<Vec<_>>());
    }
    Some(Found {
        kind: "future",
        call: format!("concurrent.futures.{}", frame.code.name),
        frame: index,
        object: None,
        label: Some(format!("{} futures", futures.len())),
        certainty,
        on,
        detail,
    })
}

/// Work items that wait in the queues of all thread pools that have a worker.
pub fn queued_work(scene: &Scene) -> Option<u64> {
    let queue_of = |worker: &ThreadScene| {
        scene.local(worker.frames.iter().find(|f| f.is(THREAD, &["_worker"]))?, "work_queue")
    };
    let mut queues: Vec<Addr> = scene.threads.iter().filter_map(queue_of).collect();
    queues.sort_unstable();
    queues.dedup();
    let sizes = queues.iter().filter_map(|q| queue::simple_items(scene.heap, *q, MAX_QUEUED));
    (!queues.is_empty()).then(|| sizes.map(|items| items.len() as u64).sum())
}

/// What all thread pools work on, and what stands in their queues.
pub struct Work {
    /// By future: the thread (index into the scene's) that runs it.
    running: FxHashMap<Addr, usize>,
    /// By future: the pool's queue, and the place in it.
    queued: FxHashMap<Addr, (Addr, usize)>,
    /// By queue: the workers.
    workers: FxHashMap<Addr, Vec<usize>>,
}

impl Work {
    pub fn of_scene(scene: &Scene) -> Self {
        let heap = scene.heap;
        let mut work = Work {
            running: FxHashMap::default(),
            queued: FxHashMap::default(),
            workers: FxHashMap::default(),
        };
        for (i, worker) in scene.threads.iter().enumerate() {
            if let Some(future) = work_item(scene, worker) {
                work.running.insert(future, i);
            }
            let Some(frame) = worker.frames.iter().find(|f| f.is(THREAD, &["_worker"])) else { continue };
            let Some(queue) = scene.local(frame, "work_queue") else { continue };
            let workers = work.workers.entry(queue).or_default();
            workers.push(i);
            if workers.len() > 1 {
                continue;
            }
            let items = queue::simple_items(heap, queue, MAX_QUEUED).unwrap_or_default();
            for (place, item) in items.into_iter().enumerate() {
                if let Some(future) = heap.attrs(item, ["future"])[0] {
                    work.queued.insert(future, (queue, place));
                }
            }
        }
        work
    }

    /// Work items that wait, at most so many, and the workers (indices into the scene's threads), by pool.
    pub fn pools(&self, scene: &Scene, most: usize) -> Vec<(Vec<Addr>, Vec<usize>)> {
        let items = |queue: Addr| queue::simple_items(scene.heap, queue, most).filter(|all| !all.is_empty());
        self.workers.iter().filter_map(|(queue, workers)| Some((items(*queue)?, workers.clone()))).collect()
    }

    /// Who runs a future, or at which place of its pool's queue it stands.
    pub fn of(&self, scene: &Scene, future: Addr) -> (Vec<Actor>, serde_json::Value, Certainty) {
        let heap = scene.heap;
        let state = heap.attrs(future, ["_state"])[0].and_then(|s| heap.checked_str(s));
        let actors =
            |threads: &[usize]| threads.iter().map(|i| actor(scene, &scene.threads[*i])).collect::<Vec<_>>();
        if let Some(worker) = self.running.get(&future) {
            return (actors(&[*worker]), json!({ "state": state, "queued_at": null }), Certainty::Proved);
        }
        // Still queued: the workers of that pool must get there first.
        if let Some((queue, place)) = self.queued.get(&future) {
            let workers = self.workers.get(queue).map_or(&[][..], Vec::as_slice);
            return (actors(workers), json!({ "state": state, "queued_at": place }), Certainty::Proved);
        }
        (Vec::new(), json!({ "state": state, "queued_at": null }), Certainty::Likely)
    }

    /// The same of futures that are waited for together: who runs one of them; or, where none runs, the workers of
    /// the pools in whose queues they stand.
    pub fn of_several(&self, scene: &Scene, futures: &[Addr]) -> (Vec<Actor>, serde_json::Value, Certainty) {
        let (mut running, mut queueing): (Vec<Actor>, Vec<Actor>) = Default::default();
        let mut places = Vec::new();
        for future in futures {
            let (workers, detail, _) = self.of(scene, *future);
            places.extend(detail["queued_at"].as_u64());
            let group = if detail["queued_at"].is_u64() { &mut queueing } else { &mut running };
            for worker in workers {
                if !group.contains(&worker) {
                    group.push(worker);
                }
            }
        }
        let runs = !running.is_empty();
        let on = if runs { running } else { queueing };
        let detail = json!({
            "state": if runs { "RUNNING" } else { "PENDING" }, "futures": futures.len(), "queued": places.len(),
            "queued_at": places.iter().min().filter(|_| !runs),
        });
        let certainty = if on.is_empty() { Certainty::Likely } else { Certainty::Proved };
        (on, detail, certainty)
    }
}

/// The future that a pool's worker works on. From 3.14 on a worker has a second `run`, of its context.
fn work_item(scene: &Scene, worker: &ThreadScene) -> Option<Addr> {
    let runs = worker.frames.iter().filter(|f| f.is(THREAD, &["run"]));
    runs.filter_map(|f| scene.heap.attrs(scene.receiver(f)?, ["future"])[0]).next()
}

fn shutdown(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let heap = scene.heap;
    let executor = scene.receiver(frame)?;
    let ty = heap.type_of(executor)?;
    let class = ty.name.rsplit('.').next().unwrap_or("Executor").to_owned();
    let [threads] = heap.attrs(executor, ["_threads"]);
    let members = threads.and_then(|t| heap.set(t, 4096)).map(|(items, _)| items).unwrap_or_default();
    let alive: Vec<&ThreadScene> = members.iter().filter_map(|t| scene.thread_of(*t)).collect();
    // Which one it joins just now stands first; the others that live will be joined next.
    let joined = thread.frames[..index]
        .iter()
        .find(|f| f.is("/threading.py", &["join"]))
        .and_then(|f| scene.receiver(f));
    let mut on: Vec<Actor> = alive.iter().map(|t| actor(scene, t)).collect();
    if let Some(first) = joined.and_then(|j| scene.thread_of(j)) {
        on.retain(|a| a.tid != first.tid);
        on.insert(0, actor(scene, first));
    }
    let name = locks::named_object(scene, thread, executor);
    let module = if frame.in_file(THREAD) { "thread" } else { "process" };
    Some(Found {
        kind: "thread",
        call: format!("concurrent.futures.{module}.{class}.shutdown"),
        frame: index,
        object: Some(executor),
        label: Some(name.map_or_else(|| class.clone(), |n| format!("{class} {n}"))),
        certainty: if on.is_empty() { Certainty::Likely } else { Certainty::Proved },
        detail: json!({
            "name": on.first().and_then(|a| a.thread.clone()), "alive": !on.is_empty(),
            "shutdown": true, "workers": on.len(),
        }),
        on,
    })
}

/// A worker that sleeps at its pool's queue.
fn idle_worker(index: usize) -> Found {
    Found {
        kind: "queue",
        call: "concurrent.futures.thread._worker".into(),
        frame: index,
        object: None,
        label: Some("its pool's queue".into()),
        on: Vec::new(),
        certainty: Certainty::Proved,
        detail: json!({
            "operation": "get", "size": 0, "maxsize": 0, "unfinished": null, "pool": true,
            "consumers": [], "producers": [],
        }),
    }
}

/// The interpreter ends and joins the workers of all pools.
fn shutdown_at_exit(scene: &Scene, thread: &ThreadScene, index: usize) -> Option<Found> {
    let join = thread.frames[..index].iter().find(|f| f.is("/threading.py", &["join"]))?;
    let target = scene.thread_of(scene.receiver(join)?)?;
    Some(Found {
        kind: "thread",
        call: "concurrent.futures.thread._python_exit".into(),
        frame: index,
        object: None,
        label: target.name().map(|n| format!("thread {n}")),
        on: vec![actor(scene, target)],
        certainty: Certainty::Proved,
        detail: json!({ "name": target.name(), "alive": true, "exit": true }),
    })
}
