//! Work of a pool that a task awaits: `run_in_executor` and `wrap_future` chain a future of asyncio to one of
//! `concurrent.futures` (Lib/asyncio/futures.py, `_chain_future`). `gather`, `wait`, `wait_for` and `shield` put
//! another future in front.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::futures;
use crate::python::objects::Heap;
use crate::snapshot::Wait;
use crate::stdlib::{FrameScene, Scene};
use crate::target::memory::Addr;

/// Futures that are looked at for one wait.
const MAX_FUTURES: usize = 512;

/// A task that waits for nothing but such work.
pub fn wait(scene: &Scene, frames: &[FrameScene], future: Addr) -> Option<Wait> {
    let sources = sources(scene, frames, future);
    let work = scene.work();
    let first = first_will_do(scene, frames);
    let (on, mut detail, certainty, address) = match sources[..] {
        [] => return None,
        [one] => {
            let (on, detail, certainty) = work.of(scene, one);
            (on, detail, certainty, one)
        }
        _ => {
            let (on, mut detail, certainty) = work.of_several(scene, &sources);
            detail["first"] = json!(first);
            // Workers in other processes are found by the future that they work for.
            let address = if on.is_empty() { sources[0] } else { future };
            (on, detail, certainty, address)
        }
    };
    detail["executor"] = json!(true);
    Some(Wait {
        call: Some("asyncio.run_in_executor".to_owned()),
        label: (sources.len() > 1).then(|| format!("{} futures", sources.len())),
        on,
        detail,
        certainty,
        ..Wait::new("future", Some(address))
    })
}

/// A task that waits for others, and for such work beside them: whoever is at it must act as well.
pub fn beside(scene: &Scene, frames: &[FrameScene], future: Addr, mut wait: Wait) -> Wait {
    if !first_will_do(scene, frames) {
        for source in sources(scene, frames, future) {
            let (workers, detail, _) = scene.work().of(scene, source);
            // Of a queue's workers any one will do, which is not what is said of tasks.
            wait.on.extend(workers.into_iter().filter(|_| detail["queued_at"].is_null()));
        }
    }
    wait
}

/// The futures of `concurrent.futures` behind one of asyncio.
fn sources(scene: &Scene, frames: &[FrameScene], future: Addr) -> Vec<Addr> {
    let heap = scene.heap;
    let mut left = given(scene, frames);
    left.push(future);
    let mut seen = FxHashSet::default();
    let mut found = Vec::new();
    while let Some(addr) = left.pop() {
        if seen.len() >= MAX_FUTURES || !seen.insert(addr) {
            continue;
        }
        let Some(future) = futures::future(heap, addr).filter(|f| !f.is_task && f.is_pending()) else {
            continue;
        };
        // `_GatheringFuture` keeps those that it was made of.
        left.extend(heap.attrs(addr, ["_children"])[0].map(|all| members(heap, all)).unwrap_or_default());
        for callback in futures::callbacks(heap, &future) {
            let (name, into) = match futures::function_name(heap, callback).as_deref() {
                Some("_call_check_cancel") => ("source", &mut found),
                // That of `shield` looks back at what it shields.
                Some("_outer_done_callback") => ("inner", &mut left),
                _ => continue,
            };
            let closure = futures::closure(heap, callback);
            into.extend(closure.into_iter().find(|(n, _)| &**n == name).map(|(_, value)| value));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// What `asyncio.wait` and, up to 3.11, `wait_for` were given: they wait for a future of their own.
fn given(scene: &Scene, frames: &[FrameScene]) -> Vec<Addr> {
    let innermost = frames.iter().find(|f| !f.in_file("/asyncio/futures.py"));
    let Some(frame) = innermost.filter(|f| f.in_file("/asyncio/tasks.py")) else { return Vec::new() };
    let variable = |name| scene.local(frame, name);
    match frame.code.name.as_str() {
        "_wait" => variable("fs").map(|all| members(scene.heap, all)).unwrap_or_default(),
        "wait_for" => variable("fut").into_iter().collect(),
        _ => Vec::new(),
    }
}

fn first_will_do(scene: &Scene, frames: &[FrameScene]) -> bool {
    let frame = frames.iter().find(|f| f.is("/asyncio/tasks.py", &["_wait"]));
    let condition = frame.and_then(|f| scene.local(f, "return_when"));
    condition.and_then(|c| scene.heap.checked_str(c)).is_some_and(|c| c != "ALL_COMPLETED")
}

/// Of a list, tuple or set.
fn members(heap: &Heap, container: Addr) -> Vec<Addr> {
    let Some(ty) = heap.type_of(container) else { return Vec::new() };
    let items = match ty.name.as_str() {
        "set" | "frozenset" => heap.set(container, MAX_FUTURES),
        _ if ty.is_list() || ty.is_tuple() => heap.items(container, &ty, MAX_FUTURES),
        _ => None,
    };
    items.unwrap_or_default().0
}
