//! Tasks that wait for a connection of a pool, and the tasks that have its connections.

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::json;

use super::coroutines;
use super::keepers::{self, Kept};
use super::search::Search;
use super::wakers::Above;
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
/// Places that are named where connections are kept.
const MAX_KEPT: usize = 4;
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
    } else if let Some((at, pool)) = closed_pool(scene, frames) {
        *wait = of_pool(scene, frames, wait, "asyncpg", at, pool);
        wait.detail["pool"]["closing"] = json!(true);
    }
}

/// `Pool.close()` of asyncpg waits for each connection that is out (asyncpg/pool.py).
fn closed_pool(scene: &Scene, frames: &[FrameScene]) -> Option<(usize, Addr)> {
    let at = frames.iter().position(|f| f.is("/asyncpg/pool.py", &["wait_until_released"]))?;
    Some((at, kinds::fields(scene.heap, scene.receiver(&frames[at])?, ["_pool"])[0]?))
}

/// Makes a wait that of a pool, if all of its connections are out.
fn tell(scene: &Scene, frames: &[FrameScene], wait: &mut Wait, library: &str, at: usize, pool: Addr) {
    let heap = scene.heap;
    let measured = kinds::measure(heap, library, pool);
    if measured.out.zip(measured.size).is_some_and(|(out, size)| out < size) {
        // One is being made, or the loop has not got to it yet.
        return;
    }
    *wait = of_pool(scene, frames, wait, library, at, pool);
}

fn of_pool(scene: &Scene, frames: &[FrameScene], wait: &Wait, library: &str, at: usize, pool: Addr) -> Wait {
    let heap = scene.heap;
    let measured = kinds::measure(heap, library, pool);
    let class = heap.type_of(pool).map(|ty| ty.name.rsplit('.').next().unwrap_or(&ty.name).to_owned());
    let frame = pools::outermost(frames, at, library);
    Wait {
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
        deadline: wait.deadline.clone(),
        ends_in: wait.ends_in,
        ..Wait::new("semaphore", Some(pool))
    }
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
    // Who can reach a connection, and in how many steps.
    let mut reaching: FxHashMap<(Addr, Addr), Vec<(usize, usize)>> = FxHashMap::default();
    for (i, task) in seen.tasks.iter().enumerate().take(MAX_TASKS) {
        // The pool's own, which wait for the end of those who have the connections.
        if task.waits_on.as_ref().is_some_and(closes) {
            continue;
        }
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
                reaching.entry((*pool, *connection)).or_default().push((*step, i));
            }
        }
    }
    let above = Above::new(&seen.tasks);
    let mut holders: FxHashMap<Addr, Vec<usize>> = FxHashMap::default();
    let mut kept: FxHashMap<Addr, Vec<Kept>> = FxHashMap::default();
    let mut reaching: Vec<_> = reaching.into_iter().collect();
    reaching.sort_unstable();
    for ((pool, connection), mut by) in reaching {
        by.sort_unstable();
        let wants = |w: &Wait| w.is_for_pool() && w.address == Some(Address(pool));
        let waiters = (0..seen.tasks.len()).filter(|t| seen.tasks[*t].waits_on.as_ref().is_some_and(wants));
        let mut behind: FxHashSet<usize> = waiters.clone().collect();
        behind.extend(waiters.flat_map(|t| above.of(t)));
        let found = having(&by, &behind, is_closing(seen, pool));
        if found.is_empty() {
            let of_task = |(_, t): &(usize, usize)| {
                let raw = seen.task_frames.get(&seen.tasks[*t].id.0)?;
                keepers::of(scene, &visible(scene.heap, codes, raw), connection, pool)
            };
            let known = kept.entry(pool).or_default();
            let ways = by.iter().filter_map(of_task).min_by_key(|k| k.path.len());
            known.extend(ways.filter(|k| known.iter().all(|other| other.path != k.path)));
        }
        holders.entry(pool).or_default().extend(found);
    }
    let actor = |at: &usize| Actor::task(scene.pid, seen.tasks[*at].tid, seen.tasks[*at].id);
    let holders: FxHashMap<Addr, Vec<Actor>> = holders
        .into_iter()
        .map(|(pool, mut tasks)| {
            tasks.sort_unstable();
            tasks.dedup();
            (pool, tasks.iter().map(actor).collect())
        })
        .collect();
    let waiting = |pool: Addr| {
        let of_pool = |w: &Wait| w.is_for_pool() && w.address == Some(Address(pool));
        seen.tasks.iter().filter(|t| t.waits_on.as_ref().is_some_and(of_pool)).count()
    };
    let counts: FxHashMap<Addr, usize> = pools.iter().map(|p| (p.1, waiting(p.1))).collect();
    for wait in seen.tasks.iter_mut().filter_map(|t| t.waits_on.as_mut()) {
        let Some(pool) = wait.address.filter(|_| wait.is_for_pool()) else { continue };
        wait.on =
            holders.get(&pool.0).map(|h| h.iter().take(MAX_ACTORS).cloned().collect()).unwrap_or_default();
        let kept = kept.get(&pool.0).filter(|kept| wait.on.is_empty() && !kept.is_empty());
        if let Some(kept) = kept {
            let told = kept.iter().take(MAX_KEPT);
            let told = told.map(|k| json!({ "path": k.path, "class": k.class, "function": k.function }));
            wait.detail["pool"]["kept"] = told.collect();
            wait.detail["nobody"] = json!(true);
        }
        if wait.detail["pool"]["waiting"].is_null() {
            wait.detail["pool"]["waiting"] = json!(counts.get(&pool.0));
        }
    }
}

/// Who has a connection: of those that it can be reached from the nearest, for an application that keeps all of its
/// parts reaches every one. What several reach in the same way none of them has: of these only those count that do not
/// wait for the pool in turn, or for who does.
fn having(by: &[(usize, usize)], behind: &FxHashSet<usize>, closing: bool) -> Vec<usize> {
    let least = by.first().map_or(0, |first| first.0);
    let nearest: Vec<usize> = by.iter().take_while(|(step, _)| *step == least).map(|(_, t)| *t).collect();
    // A variable of who closes the pool; what it only gets at through others is kept by these.
    if nearest.len() == 1 && (!closing || least == 0) {
        return nearest;
    }
    let free = |tasks: Vec<usize>| tasks.into_iter().filter(|t| !behind.contains(t)).collect::<Vec<_>>();
    let found = free(nearest);
    if found.is_empty() { free(by.iter().map(|(_, t)| *t).collect()) } else { found }
}

fn is_closing(seen: &Seen, pool: Addr) -> bool {
    let is_it = |w: &Wait| closes(w) && w.address == Some(Address(pool));
    seen.tasks.iter().any(|task| task.waits_on.as_ref().is_some_and(is_it))
}

fn closes(wait: &Wait) -> bool {
    wait.detail["pool"]["closing"] == true
}
