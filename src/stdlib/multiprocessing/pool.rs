//! Pools of processes, `multiprocessing.pool` and `concurrent.futures.process`: who waits for which job,
//! and at which job each worker is. The two are joined over all processes (look/across.rs).

use serde_json::json;

use super::{by_pid, pid_of};
use crate::snapshot::{Actor, Certainty};
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
    let (on, mut detail) = of_pool(scene, pool);
    detail["job"] = json!(job);
    detail["state"] = json!("PENDING");
    let name = locks::named_object(scene, thread, object);
    Some(Found {
        kind: "future",
        call: format!("multiprocessing.pool.{class}.{}", frame.code.name),
        frame: index,
        object: Some(object),
        label: Some(name.map_or_else(|| class.clone(), |n| format!("{class} {n}"))),
        on,
        certainty: Certainty::Likely,
        detail,
    })
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
    let (on, detail) = of_pool(scene, pool);
    let name = locks::named_object(scene, thread, pool);
    Found {
        kind: "process",
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
    let [list, tasks, cache] = heap.attrs(pool, ["_pool", "_taskqueue", "_cache"]);
    let pids = list.map(|l| workers(scene, l)).unwrap_or_default();
    let waiting = tasks.and_then(|q| {
        let simple = queue::simple_items(heap, q, 64).map(|items| items.len() as i64);
        simple.or_else(|| heap.size(heap.attrs(q, ["queue"])[0]?))
    });
    let pending = cache.and_then(|c| Some(heap.dict(c, MAX_ITEMS)?.0.len()));
    let on = pids.iter().filter_map(|p| by_pid(*p)).collect();
    let detail = json!({
        "pool": true, "job": null, "workers": pids, "in_queue": waiting, "pending": pending,
        "queued_at": null, "command": null, "state": null,
    });
    (on, detail)
}

/// Pids of a list of `Process` objects.
fn workers(scene: &Scene, list: Addr) -> Vec<i64> {
    let heap = scene.heap;
    let Some(ty) = heap.type_of(list).filter(|t| t.is_list()) else { return Vec::new() };
    let processes = heap.items(list, &ty, MAX_WORKERS).map(|i| i.0).unwrap_or_default();
    processes.into_iter().filter_map(|p| pid_of(scene, p)).collect()
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

/// What a thread of a pool's worker is at: `Some(None)` between two jobs, `None` for other threads.
pub fn job(scene: &Scene, thread: &ThreadScene) -> Option<Option<i64>> {
    let heap = scene.heap;
    let frame = thread
        .frames
        .iter()
        .rev()
        .find(|f| f.is(POOL, &["worker"]) || f.is(EXECUTOR, &["_process_worker"]))?;
    if frame.in_file(POOL) {
        return Some(scene.local(frame, "job").and_then(|j| heap.int(j)));
    }
    let item = scene.local(frame, "call_item");
    Some(item.and_then(|i| heap.int(heap.attrs(i, ["work_id"])[0]?)))
}

/// Futures of a `ProcessPoolExecutor`: its manager thread knows the number of the work and the workers.
pub fn read(scene: &Scene, seen: &mut Seen) {
    let heap = scene.heap;
    let wanted = |w: &&mut crate::snapshot::Wait| w.kind == "future" && w.on.is_empty();
    for wait in seen.waits.values_mut().filter(wanted) {
        let Some(future) = wait.address else { continue };
        for frame in scene.threads.iter().flat_map(|t| &t.frames).filter(|f| f.in_file(EXECUTOR)) {
            let attribute =
                |name| scene.local(frame, name).or_else(|| heap.attrs(scene.receiver(frame)?, [name])[0]);
            let Some(items) = attribute("pending_work_items") else { continue };
            let items = heap.dict(items, MAX_ITEMS).map(|d| d.0).unwrap_or_default();
            let is_it = |item: &&(Addr, Addr)| heap.attrs(item.1, ["future"])[0] == Some(future.0);
            let Some((id, _)) = items.iter().find(is_it) else { continue };
            let processes = attribute("processes").and_then(|p| heap.dict(p, MAX_WORKERS));
            let pids: Vec<i64> =
                processes.map(|d| d.0).unwrap_or_default().iter().filter_map(|(k, _)| heap.int(*k)).collect();
            wait.on = pids.iter().filter_map(|p| by_pid(*p)).collect();
            wait.detail["pool"] = json!(true);
            wait.detail["job"] = json!(heap.int(*id));
            wait.detail["workers"] = json!(pids);
            break;
        }
    }
}
