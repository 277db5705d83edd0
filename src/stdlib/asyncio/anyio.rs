//! AnyIO on asyncio: its limiter of threads, and the threads that it limits.

use rustc_hash::FxHashMap;
use serde_json::json;

use super::World;
use super::waits::{MAX_ACTORS, actor};
use crate::snapshot::Wait;
use crate::stdlib::{FrameScene, Scene, locks};
use crate::target::memory::Addr;

pub const BACKEND: &str = "/anyio/_backends/_asyncio.py";
/// Tokens of one limiter.
const MAX_BORROWERS: usize = 4_096;
/// How far from the innermost frame the limiter's own stands: an event's and a future's are above it.
const NEAR: usize = 4;

/// A task that waits for a token: of the tasks that have one.
pub fn limiter(scene: &Scene, world: &World, frames: &[FrameScene]) -> Option<Wait> {
    let heap = scene.heap;
    let at = frames.iter().take(NEAR).position(|f| f.is(BACKEND, &["acquire_on_behalf_of"]))?;
    let limiter = scene.receiver(&frames[at])?;
    let ty = heap.type_of(limiter)?;
    let names = ["_total_tokens", "_borrowers"];
    let (attributes, slots) = (heap.attrs(limiter, names), heap.named_slots(limiter, &ty, names));
    let total = attributes[0].or(slots[0]).and_then(|n| heap.int(n));
    let (borrowers, count) = heap.set(attributes[1].or(slots[1])?, MAX_BORROWERS)?;
    let tasks: Vec<usize> = borrowers.iter().filter_map(|b| world.by_addr.get(b).copied()).collect();
    let mut detail = json!({ "value": total.map(|t| t - count as i64), "max": total });
    if tasks.len() < count || tasks.len() > MAX_ACTORS {
        // Whoever is not seen may give its token back.
        detail["may_come"] = json!(true);
    }
    Some(Wait {
        call: Some("anyio.CapacityLimiter.acquire".to_owned()),
        label: Some(format!("CapacityLimiter({})", total.map_or("?".into(), |t| t.to_string()))),
        frame: Some(at),
        on: tasks.iter().take(MAX_ACTORS).map(|i| actor(scene, world, *i)).collect(),
        detail,
        ..Wait::new("semaphore", Some(limiter))
    })
}

/// The futures that worker threads will complete: a variable of `WorkerThread.run`.
pub fn workers(scene: &Scene) -> FxHashMap<Addr, usize> {
    let mut found = FxHashMap::default();
    for (i, thread) in scene.threads.iter().enumerate() {
        let Some(at) = thread.frames.iter().rposition(|f| f.is(BACKEND, &["run"])) else { continue };
        // Between two pieces of work the variable still has the last one's.
        let works = at > 0
            && !thread.frames[..at].iter().all(|f| f.in_file("/queue.py") || f.in_file("/threading.py"));
        if works && let Some(future) = scene.local(&thread.frames[at], "future") {
            found.insert(future, i);
        }
    }
    found
}

/// A task that waits for what such a thread does.
pub fn worker(scene: &Scene, world: &World, future: Addr) -> Option<Wait> {
    let thread = world.anyio_workers(scene).get(&future)?;
    Some(Wait {
        call: Some("anyio.to_thread.run_sync".to_owned()),
        on: vec![locks::actor(scene, &scene.threads[*thread])],
        detail: json!({ "state": "RUNNING", "executor": true }),
        ..Wait::new("future", Some(future))
    })
}
