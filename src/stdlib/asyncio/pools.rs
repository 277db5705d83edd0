//! Tasks that wait for a connection of a pool, and the tasks that have its connections.

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::json;

use super::coroutines;
use super::search::Search;
use crate::python::code::Codes;
use crate::snapshot::{Actor, Address, Certainty, Wait};
use crate::stdlib::databases::{kinds, pools};
use crate::stdlib::{FrameScene, Scene, Seen, visible};
use crate::target::memory::Addr;

/// How far from a frame a connection is looked for: httpx wraps it five times.
const DEPTH: usize = 7;
/// Objects that are looked at for one task, and tasks that are.
const MAX_OBJECTS: usize = 600;
const MAX_TASKS: usize = 1_000;
const MAX_ACTORS: usize = 64;
/// ...and for the pool of a greenlet.
const MAX_REACHED: usize = 4_000;

/// Calls through which a pool waits.
const WAITING: &[&str] = &["wait", "wait_for", "wait_timeout", "wait_for_connection", "acquire", "get"];

/// What a wait for a connection looks like; up to 3.11 `wait_for` makes a task of its own.
const THROUGH: &[&str] = &["condition", "lock", "queue", "event", "semaphore", "future", "task"];

/// Waits inside of a pool are waits for one of its connections.
pub fn of_task(scene: &Scene, frames: &[FrameScene], wait: &mut Wait) {
    if !THROUGH.contains(&wait.kind.as_str()) {
        return;
    }
    if let Some((library, at, pool)) = pool_of(scene, frames) {
        tell(scene, frames, wait, library, at, pool);
    }
}

/// Makes a wait that of a pool, if all of its connections are out.
fn tell(scene: &Scene, frames: &[FrameScene], wait: &mut Wait, library: &str, at: usize, pool: Addr) {
    let heap = scene.heap;
    let measured = kinds::measure(heap, library, pool);
    if measured.out.zip(measured.size).is_some_and(|(out, size)| out < size) {
        // One is being made, or the loop has not got to it yet.
        return;
    }
    let class = heap.type_of(pool).map(|ty| ty.name.rsplit('.').next().unwrap_or(&ty.name).to_owned());
    let frame = pools::outermost(frames, at, library);
    *wait = Wait {
        call: Some(format!("{library}.{}", frames[frame].code.name)),
        frame: Some(frame),
        label: class.clone(),
        certainty: Certainty::Likely,
        detail: json!({
            "value": 0,
            "max": measured.size,
            "pool": {
                "library": library,
                "class": class,
                "size": measured.size,
                "out": measured.out,
                "waiting": measured.waiting,
                "holders": [],
            },
        }),
        deadline: wait.deadline.take(),
        ends_in: wait.ends_in,
        ..Wait::new("semaphore", Some(pool))
    };
}

fn pool_of(scene: &Scene, frames: &[FrameScene]) -> Option<(&'static str, usize, Addr)> {
    for (at, frame) in frames.iter().enumerate() {
        if let Some(library) = kinds::of_frame(frame, kinds::OF_TASKS) {
            let waits =
                library != "httpcore" || frames[..at].iter().any(|f| f.code.name == "wait_for_connection");
            return waits.then_some((library, at, scene.receiver(frame)?));
        }
        let of_asyncio = frame.code.file.as_deref().is_some_and(|f| f.contains("/asyncio/"));
        if !of_asyncio && !WAITING.contains(&&*frame.code.name) {
            return None;
        }
    }
    None
}

/// SQLAlchemy's engine for asyncio runs its pool in a greenlet, whose frames are no task's: the queue that is awaited
/// is that of a pool which the function leads to that the greenlet was started with.
fn of_greenlets(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let gets = |w: &Wait| (w.kind == "queue" && w.detail["operation"] == "get").then_some(w.address?.0);
    let queues: FxHashMap<Address, Addr> =
        seen.tasks.iter().filter_map(|t| Some((t.id, gets(t.waits_on.as_ref()?)?))).collect();
    if queues.is_empty() {
        return;
    }
    let stops: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).collect();
    let mut search = Search::new(scene, FxHashSet::default(), &stops);
    let mut known: FxHashMap<Addr, Option<Addr>> = FxHashMap::default();
    for task in seen.tasks.iter_mut().take(MAX_TASKS) {
        let raw = seen.task_frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
        let frames = visible(scene.heap, codes, raw);
        let Some(at) = frames.iter().position(is_greenlet) else { continue };
        let Some(wait) = &mut task.waits_on else { continue };
        // Up to 3.11 `wait_for` makes a task of its own for the queue.
        let through = || task.awaits.first().and_then(|id| queues.get(id)).copied();
        let queue = gets(wait).or_else(|| through().filter(|_| wait.kind == "task"));
        let Some(queue) = queue else { continue };
        let pool = *known.entry(queue).or_insert_with(|| {
            let near = search.near(&scene.values(&frames[at]), DEPTH, MAX_REACHED);
            near.into_keys().find(|object| kinds::is_pool_of_queue(scene.heap, *object, queue))
        });
        if let Some(pool) = pool {
            tell(scene, &frames, wait, "sqlalchemy", at, pool);
        }
    }
}

fn is_greenlet(frame: &FrameScene) -> bool {
    frame.code.name == "greenlet_spawn"
        && frame.code.file.as_deref().is_some_and(|f| f.contains("/sqlalchemy/util/"))
}

/// Names the tasks that have the connections. Those of one pool stand for all who wait for it.
pub fn find(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    of_greenlets(scene, codes, seen);
    let waits = |w: &Wait| Some((w.detail["pool"]["library"].as_str()?.to_owned(), w.address?.0));
    let pools: FxHashSet<(String, Addr)> =
        seen.tasks.iter().filter_map(|t| waits(t.waits_on.as_ref()?)).collect();
    if pools.is_empty() {
        return;
    }
    let stops: FxHashSet<Addr> =
        seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).chain(pools.iter().map(|p| p.1)).collect();
    let mut search = Search::new(scene, FxHashSet::default(), &stops);
    // Of those that a connection can be reached from, the nearest have it: an application that keeps all of its
    // parts reaches every one.
    let mut nearest: FxHashMap<(Addr, Addr), (usize, Vec<usize>)> = FxHashMap::default();
    for (i, task) in seen.tasks.iter().enumerate().take(MAX_TASKS) {
        let raw = seen.task_frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
        let frames = visible(scene.heap, codes, raw);
        let of_frame = |f: &FrameScene| {
            let stack = coroutines::stack(scene.heap, f.raw).filter(|_| task.waits_on.is_some());
            scene.values(f).into_iter().chain(stack.unwrap_or_default())
        };
        let roots: Vec<Addr> = frames.iter().flat_map(of_frame).collect();
        let near = search.near(&roots, DEPTH, MAX_OBJECTS);
        for (library, pool) in &pools {
            let out = kinds::out(scene.heap, library, *pool);
            let is_out = |o: Addr| out.contains(&o) || out.is_empty() && kinds::is_of(scene.heap, o, *pool);
            for (connection, step) in near.iter().filter(|(o, _)| is_out(**o)) {
                let best = nearest.entry((*pool, *connection)).or_insert((*step, Vec::new()));
                if *step < best.0 {
                    *best = (*step, Vec::new());
                }
                if *step == best.0 {
                    best.1.push(i);
                }
            }
        }
    }
    let mut holders: FxHashMap<Addr, Vec<Actor>> = FxHashMap::default();
    let mut found: Vec<(Addr, usize)> = nearest
        .into_iter()
        .flat_map(|((pool, _), (_, tasks))| tasks.into_iter().map(move |t| (pool, t)))
        .collect();
    found.sort_unstable();
    found.dedup();
    for (pool, task) in found {
        let task = &seen.tasks[task];
        holders.entry(pool).or_default().push(Actor::task(scene.pid, task.tid, task.id));
    }
    let waiting = |pool: Addr| {
        let of_pool = |w: &Wait| w.is_for_pool() && w.address == Some(Address(pool));
        seen.tasks.iter().filter(|t| t.waits_on.as_ref().is_some_and(of_pool)).count()
    };
    let counts: FxHashMap<Addr, usize> = pools.iter().map(|p| (p.1, waiting(p.1))).collect();
    for wait in seen.tasks.iter_mut().filter_map(|t| t.waits_on.as_mut()) {
        let Some(pool) = wait.address.filter(|_| wait.is_for_pool()) else { continue };
        wait.on =
            holders.get(&pool.0).map(|h| h.iter().take(MAX_ACTORS).cloned().collect()).unwrap_or_default();
        if wait.detail["pool"]["waiting"].is_null() {
            wait.detail["pool"]["waiting"] = json!(counts.get(&pool.0));
        }
    }
}
