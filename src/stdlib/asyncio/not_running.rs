//! Threads that wait for what they have handed to a loop that nobody runs: `run_coroutine_threadsafe` to one whose
//! thread has ended, or was never started. Nothing is ever called that stands among its callbacks.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::search::{Freedom, Search};
use super::{labels, threadsafe};
use crate::python::code::Codes;
use crate::python::objects::Heap;
use crate::snapshot::Address;
use crate::stdlib::garbage::Garbage;
use crate::stdlib::{Scene, Seen, visible};
use crate::target::memory::Addr;

/// What sets a loop going.
const STARTS: &[&str] = &["run_forever", "run_until_complete"];

pub fn find(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let is_open = |w: &crate::snapshot::Wait| {
        w.kind == "future" && w.on.is_empty() && w.deadline.as_deref() != Some("at")
    };
    let waiting: Vec<(Addr, Addr)> = seen
        .waits
        .iter()
        .filter(|(_, w)| is_open(w))
        .filter_map(|(tstate, w)| Some((*tstate, w.address?.0)))
        .collect();
    if waiting.is_empty() {
        return;
    }
    let mut interpreters: Vec<Addr> = scene.threads.iter().map(|thread| thread.interp).collect();
    interpreters.sort_unstable();
    interpreters.dedup();
    let is_loop = |ty: &crate::python::objects::TypeInfo| scene.heap.is_a(ty, "BaseEventLoop");
    let loops = interpreters.into_iter().filter_map(|interp| Garbage::of(scene, interp));
    let loops: Vec<Addr> = loops.flat_map(|garbage| garbage.instances(is_loop)).collect();
    let loops: Vec<Addr> =
        loops.into_iter().filter(|l| !seen.running.contains_key(l) && is_at_rest(scene.heap, *l)).collect();
    for (tstate, future) in waiting {
        let Some(event_loop) = loops.iter().copied().find(|l| threadsafe::is_for(scene, *l, future)) else {
            continue;
        };
        if may_be_started(scene, codes, seen, tstate, event_loop) {
            continue;
        }
        let thread = scene.threads.iter().find(|thread| thread.raw.tstate == tstate);
        let name = thread.and_then(|thread| labels::named(scene, &thread.frames, event_loop));
        let Some(wait) = seen.waits.get_mut(&tstate) else { continue };
        wait.detail["nobody"] = json!(true);
        wait.detail["not_running"] = json!({ "event_loop": Address(event_loop), "name": name });
        if let Some(detail) = wait.detail.as_object_mut() {
            detail.remove("open");
        }
    }
}

/// No thread is inside of `run_forever` (Lib/asyncio/base_events.py).
fn is_at_rest(heap: &Heap, event_loop: Addr) -> bool {
    let [thread] = heap.attrs(event_loop, ["_thread_id"]);
    thread.and_then(|id| heap.type_of(id)).is_some_and(|ty| ty.name == "NoneType")
}

/// Another thread, or a task of another loop, gets at it and speaks of running it.
fn may_be_started(scene: &Scene, codes: &Codes, seen: &Seen, waiter: Addr, event_loop: Addr) -> bool {
    let stops: FxHashSet<Addr> = seen.running.keys().copied().collect();
    let mut search = Search::new(scene, FxHashSet::from_iter([event_loop]), &stops);
    let threads = scene.threads.iter().filter(|thread| thread.raw.tstate != waiter);
    let mut met: Vec<_> = threads.map(|thread| search.from_blocked(&thread.frames, Freedom::Named)).collect();
    for raw in seen.task_frames.values() {
        met.push(search.from(&visible(scene.heap, codes, raw), true, &[], Freedom::Named));
    }
    search.is_exhausted() || met.iter().any(|m| m.reached.contains(&event_loop) && search.speaks(m, STARTS))
}
