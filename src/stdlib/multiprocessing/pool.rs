//! Pools of processes, `multiprocessing.pool` and `concurrent.futures.process`: who waits for which job,
//! and at which job each worker is. The two are joined over all processes (look/across.rs).

use serde_json::json;

use super::{by_pid, pid_of};
use crate::kin::At;
use crate::snapshot::{Actor, Address, Certainty, Wait};
use crate::stdlib::asyncio::futures::function_name;
use crate::stdlib::locks::actor;
use crate::stdlib::threading::Found;
use crate::stdlib::{FrameScene, Scene, Seen, ThreadScene, locks, queue};
use crate::target::memory::Addr;

const POOL: &str = "/multiprocessing/pool.py";
const EXECUTOR: &str = "/concurrent/futures/process.py";
/// Most workers of one pool that are named.
const MAX_WORKERS: usize = 64;
const MAX_ITEMS: usize = 10_000;

pub fn of_frame(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    let object = || scene.receiver(frame);
    match frame.code.name.as_str() {
        "wait" | "get" | "next" => result(scene, thread, index, frame, object()?),
        "map" | "apply" | "starmap" => {
            // The result that this call waits for is known to the frames below it.
            let below = thread.frames[..index].iter().find(|f| f.is(POOL, &["get", "wait"]))?;
            let mut found = result(scene, thread, index, frame, scene.receiver(below)?)?;
            found.call = format!("multiprocessing.pool.Pool.{}", frame.code.name);
            Some(found)
        }
        "join" => Some(join(scene, thread, index, object()?)),
        "_handle_workers" => worker_handler(scene, index, frame),
        _ => None,
    }
}

/// `AsyncResult.get`, `IMapIterator.next`.
fn result(
    scene: &Scene,
    thread: &ThreadScene,
    index: usize,
    frame: &FrameScene,
    object: Addr,
) -> Option<Found> {
    let heap = scene.heap;
    let ty = heap.type_of(object)?;
    let class = ty.name.rsplit('.').next().unwrap_or("AsyncResult").to_owned();
    let [job, pool] = heap.attrs(object, ["_job", "_pool"]);
    let pool = pool.or_else(|| pool_of(scene))?;
    let job = job.and_then(|j| heap.int(j));
    let (mut on, mut detail) = of_pool(scene, pool);
    detail["job"] = json!(job);
    detail["state"] = json!("PENDING");
    let mut certainty = Certainty::Likely;
    let threads = worker_threads(scene, pool);
    if let Some(handler) = handler(scene, pool) {
        // Whatever the workers do, he hands out the results.
        certainty = Certainty::Proved;
        detail["result_handler"] = json!(handler);
        on = vec![handler];
    } else if let Some(runners) = runners(scene, &threads, job) {
        certainty = Certainty::Proved;
        on = runners.on;
        detail["state"] = json!(if runners.queued { "PENDING" } else { "RUNNING" });
        detail["queued_at"] = json!(runners.queued.then_some(0));
    } else if let Some(feeder) = feeder(scene, job) {
        // No worker is at it: there are no more items yet (look/across.rs knows more of processes).
        detail["feeder"] = json!(feeder);
        if !threads.is_empty() {
            on = vec![feeder];
        }
    }
    let name = locks::named_object(scene, thread, object);
    Some(Found {
        kind: "future",
        call: format!("multiprocessing.pool.{class}.{}", frame.code.name),
        frame: index,
        object: Some(object),
        label: Some(name.map_or_else(|| class.clone(), |n| format!("{class} {n}"))),
        on,
        certainty,
        detail,
    })
}

/// The workers of a `ThreadPool`, which are threads of this process.
fn worker_threads<'s, 'a>(scene: &'s Scene<'a>, pool: Addr) -> Vec<&'s ThreadScene<'a>> {
    let list = scene.heap.attrs(pool, ["_pool"])[0];
    let workers = list.map(|list| processes(scene, list)).unwrap_or_default();
    workers.into_iter().filter_map(|w| scene.thread_of(w)).collect()
}

/// The pool's thread that asks the application's iterable for the next item of a job (`imap`).
fn feeder(scene: &Scene, wanted: Option<i64>) -> Option<Actor> {
    let heap = scene.heap;
    let feeds = |frame: &FrameScene| {
        let job = || heap.int(scene.local(frame, "result_job")?);
        frame.is(POOL, &["_guarded_task_generation"]) && wanted.is_some() && job() == wanted
    };
    // Outside of the iterable's own code it is on its way to the next.
    let inside = |t: &&ThreadScene| t.frames.iter().position(feeds).is_some_and(|at| at > 0);
    scene.threads.iter().find(inside).map(|t| actor(scene, t))
}

/// The pool's thread that hands out results, if it is in a callback of the application.
fn handler(scene: &Scene, pool: Addr) -> Option<Actor> {
    let cache = scene.heap.attrs(pool, ["_cache"])[0]?;
    let hands_out =
        |f: &FrameScene| f.is(POOL, &["_handle_results"]) && scene.local(f, "cache") == Some(cache);
    let in_callback = |t: &&ThreadScene| {
        let at = t.frames.iter().position(hands_out);
        at.is_some_and(|at| t.frames[..at].iter().any(|f| f.is(POOL, &["_set"])))
    };
    scene.threads.iter().find(in_callback).map(|t| actor(scene, t))
}

/// Who of a pool's threads is at a job.
struct Runners {
    on: Vec<Actor>,
    /// None is: all are at others, and one must come back first.
    queued: bool,
}

fn runners(scene: &Scene, threads: &[&ThreadScene], wanted: Option<i64>) -> Option<Runners> {
    let at: Vec<(&&ThreadScene, At)> = threads.iter().filter_map(|t| Some((t, job(scene, t)?))).collect();
    let those = |fits: &dyn Fn(At) -> bool| {
        at.iter().filter(|(_, at)| fits(*at)).map(|(t, _)| actor(scene, t)).collect::<Vec<_>>()
    };
    let on = those(&|at| wanted.is_some_and(|wanted| at == At::Job(wanted)));
    if !on.is_empty() {
        return Some(Runners { on, queued: false });
    }
    let busy = those(&|at| at != At::Rest);
    (!busy.is_empty() && busy.len() == at.len()).then_some(Runners { on: busy, queued: true })
}

/// Some pool that the frames know: where a result does not name its own.
fn pool_of(scene: &Scene) -> Option<Addr> {
    let frames = scene.threads.iter().flat_map(|t| t.frames.iter().take(DEPTH));
    frames
        .flat_map(|f| scene.values(f))
        .find(|v| scene.heap.type_of(*v).is_some_and(|t| t.name == "Pool" || t.name.ends_with(".Pool")))
}

const DEPTH: usize = 8;

fn join(scene: &Scene, thread: &ThreadScene, index: usize, pool: Addr) -> Found {
    let (mut on, mut detail) = of_pool(scene, pool);
    let name = locks::named_object(scene, thread, pool);
    let threads = worker_threads(scene, pool);
    if !threads.is_empty() {
        on = threads.iter().map(|t| actor(scene, t)).collect();
        detail["alive"] = json!(true);
    }
    Found {
        kind: if threads.is_empty() { "process" } else { "thread" },
        call: "multiprocessing.pool.Pool.join".into(),
        frame: index,
        object: Some(pool),
        label: Some(
            name.map_or_else(|| "the workers of a Pool".into(), |n| format!("the workers of Pool {n}")),
        ),
        on,
        certainty: Certainty::Likely,
        detail,
    }
}

/// The workers of a `Pool`, and what waits for one of them.
fn of_pool(scene: &Scene, pool: Addr) -> (Vec<Actor>, serde_json::Value) {
    let heap = scene.heap;
    let [list, tasks, cache, initializer, each] =
        heap.attrs(pool, ["_pool", "_taskqueue", "_cache", "_initializer", "_maxtasksperchild"]);
    let pids = list.map(|l| workers(scene, l)).unwrap_or_default();
    let first = list.and_then(|l| processes(scene, l).into_iter().filter_map(|p| identity(scene, p)).min());
    let waiting = tasks.and_then(|q| {
        let simple = queue::simple_items(heap, q, 64).map(|items| items.len() as i64);
        simple.or_else(|| heap.size(heap.attrs(q, ["queue"])[0]?))
    });
    let pending = cache.and_then(|c| Some(heap.dict(c, MAX_ITEMS)?.0.len()));
    let on = pids.iter().filter_map(|p| by_pid(*p)).collect();
    let detail = json!({
        "pool": true, "job": null, "workers": pids, "in_queue": waiting, "pending": pending,
        "queued_at": null, "command": null, "state": null,
        "first_worker": first,
        "initializer": initializer.and_then(|f| function_name(heap, f)).as_deref(),
        // Without a limit of tasks a worker is replaced only if it has died.
        "workers_stay": each.is_some_and(|n| heap.type_of(n).is_some_and(|t| t.name == "NoneType")),
    });
    (on, detail)
}

/// Pids of a list of `Process` objects.
fn workers(scene: &Scene, list: Addr) -> Vec<i64> {
    processes(scene, list).into_iter().filter_map(|p| pid_of(scene, p)).collect()
}

/// `Process` objects of a list, or those of `ThreadPool`, which are threads.
fn processes(scene: &Scene, list: Addr) -> Vec<Addr> {
    let heap = scene.heap;
    let Some(ty) = heap.type_of(list).filter(|t| t.is_list()) else { return Vec::new() };
    heap.items(list, &ty, MAX_WORKERS).map(|i| i.0).unwrap_or_default()
}

/// Which of all processes that its parent has made a worker is (`BaseProcess._identity`).
fn identity(scene: &Scene, process: Addr) -> Option<i64> {
    let heap = scene.heap;
    heap.int(*heap.tuple(heap.attrs(process, ["_identity"])[0]?, 64)?.last()?)
}

/// The pool's thread that replaces workers which have ended; it also waits for the last job.
fn worker_handler(scene: &Scene, index: usize, frame: &FrameScene) -> Option<Found> {
    let pids = workers(scene, scene.local(frame, "pool")?);
    Some(Found {
        kind: "poll",
        call: "multiprocessing.pool.Pool._handle_workers".into(),
        frame: index,
        object: None,
        label: None,
        on: Vec::new(),
        certainty: Certainty::Proved,
        detail: json!({ "pool": true, "watched": pids }),
    })
}

/// What a thread of a pool's worker is at; `None` for other threads.
pub fn job(scene: &Scene, thread: &ThreadScene) -> Option<At> {
    let heap = scene.heap;
    let is_worker = |f: &FrameScene| f.is(POOL, &["worker"]) || f.is(EXECUTOR, &["_process_worker"]);
    let index = thread.frames.iter().rposition(is_worker)?;
    let frame = &thread.frames[index];
    if frame.in_file(POOL) {
        // None between two jobs, which would read as 0.
        let is_int = |o: &Addr| heap.type_of(*o).is_some_and(|t| t.name == "int");
        let job = scene.local(frame, "job").filter(is_int).and_then(|j| heap.int(j));
        // It counts from when its initializer has ended.
        let starts = || scene.local(frame, "completed").is_none();
        return Some(job.map_or_else(|| if starts() { At::Start } else { At::Rest }, At::Job));
    }
    let item = scene.local(frame, "call_item");
    let job = item.and_then(|i| heap.int(heap.attrs(i, ["work_id"])[0]?));
    let waits = || index > 0 && thread.frames[index - 1].in_file("/multiprocessing/queues.py");
    Some(job.map_or_else(|| if waits() { At::Rest } else { At::Start }, At::Job))
}

/// Futures of a `ProcessPoolExecutor`: its manager thread knows the number of the work and the workers.
pub fn read(scene: &Scene, seen: &mut Seen) {
    complete(scene, seen.waits.values_mut());
}

/// The same of tasks.
pub fn read_tasks(scene: &Scene, seen: &mut Seen) {
    let waits = seen.tasks.iter_mut().filter_map(|task| task.waits_on.as_mut());
    complete(scene, waits.filter(|w| w.detail["executor"] == true));
}

fn complete<'w>(scene: &Scene, waits: impl Iterator<Item = &'w mut Wait>) {
    let heap = scene.heap;
    for wait in waits.filter(|w| w.kind == "future" && w.on.is_empty()) {
        let members: Vec<Address> =
            serde_json::from_value(wait.detail["members"].clone()).unwrap_or_default();
        let futures: Vec<Address> = wait.address.into_iter().chain(members).collect();
        if futures.is_empty() {
            continue;
        }
        for frame in scene.threads.iter().flat_map(|t| &t.frames).filter(|f| f.in_file(EXECUTOR)) {
            let attribute =
                |name| scene.local(frame, name).or_else(|| heap.attrs(scene.receiver(frame)?, [name])[0]);
            let Some(items) = attribute("pending_work_items") else { continue };
            let items = heap.dict(items, MAX_ITEMS).map(|d| d.0).unwrap_or_default();
            let of_it = |item: &&(Addr, Addr)| {
                heap.attrs(item.1, ["future"])[0].is_some_and(|future| futures.contains(&Address(future)))
            };
            let Some((id, _)) = items.iter().find(of_it) else { continue };
            // Of several, any may be at work.
            let id = wait.address.and_then(|_| heap.int(*id));
            let processes = attribute("processes").and_then(|p| heap.dict(p, MAX_WORKERS));
            let pids: Vec<i64> =
                processes.map(|d| d.0).unwrap_or_default().iter().filter_map(|(k, _)| heap.int(*k)).collect();
            wait.on = pids.iter().filter_map(|p| by_pid(*p)).collect();
            wait.detail["pool"] = json!(true);
            wait.detail["job"] = json!(id);
            wait.detail["workers"] = json!(pids);
            break;
        }
    }
}
