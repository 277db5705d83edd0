//! Where each version keeps its tasks.

use rustc_hash::{FxHashMap, FxHashSet};

use super::futures::{self, TaskObject};
use crate::python::layout::NONE;
use crate::python::objects::{Heap, MAX_ENTRIES};
use crate::python::sysinfo;
use crate::stdlib::{Scene, Seen};
use crate::target::memory::Addr;

/// More tasks than this are not read: the report would be of no use, and its making would take seconds.
const MAX_TASKS: usize = 20_000;

#[derive(Default)]
pub struct Found {
    pub tasks: Vec<TaskObject>,
    /// Which task each loop runs just now.
    pub current: FxHashMap<Addr, Addr>,
}

/// All tasks that are not done, of all loops.
pub fn all(scene: &Scene, seen: &mut Seen) -> Found {
    let heap = scene.heap;
    let mut found = Found::default();
    let mut addrs: Vec<Addr> = Vec::new();
    let mut interpreters: Vec<Addr> = scene.threads.iter().map(|t| t.interp).collect();
    interpreters.dedup();
    for interp in interpreters {
        let [Some(module)] = sysinfo::modules(heap, interp, ["asyncio.tasks"]) else { continue };
        let Some(dict) = heap.module_dict(module) else { continue };
        let [all, scheduled, eager, current] =
            heap.dict_get(dict, ["_all_tasks", "_scheduled_tasks", "_eager_tasks", "_current_tasks"]);
        addrs.extend(all.into_iter().chain(scheduled).flat_map(|set| weak_set(heap, set)));
        let eager = eager.filter(|e| heap.type_of(*e).is_some_and(|t| t.name == "set"));
        addrs.extend(eager.and_then(|set| heap.set(set, MAX_TASKS)).unwrap_or_default().0);
        let current = current.filter(|c| heap.type_of(*c).is_some_and(|t| t.is_dict()));
        found.current.extend(current.and_then(|c| heap.dict(c, 4096)).unwrap_or_default().0);
        let at = heap.layout.asyncio.interp_tasks;
        if at != NONE {
            addrs.extend(linked(heap, interp + at));
        }
    }
    let a = &heap.layout.asyncio;
    for thread in &scene.threads {
        let at = |offset: u64| thread.raw.tstate + heap.layout.tstate.size + offset;
        if a.thread_tasks != NONE {
            addrs.extend(linked(heap, at(a.thread_tasks)));
        }
        if a.running_task != NONE
            && let (Some(event_loop), Some(task)) =
                (heap.ptr(at(a.running_loop)), heap.ptr(at(a.running_task)))
        {
            found.current.insert(event_loop, task);
        }
    }
    let mut unique = FxHashSet::default();
    addrs.retain(|a| unique.insert(*a));
    if addrs.len() > MAX_TASKS {
        seen.problems.push(format!("{} asyncio tasks: only {MAX_TASKS} were read", addrs.len()));
        addrs.truncate(MAX_TASKS);
    }
    let size = 192;
    heap.mem.prefetch(&addrs.iter().map(|a| (*a, size)).collect::<Vec<_>>());
    let coroutine = |a: &Addr| Some((heap.ptr(a + heap.layout.task.coro)?, 256));
    heap.mem.prefetch(&addrs.iter().filter_map(coroutine).collect::<Vec<_>>());
    found.tasks = addrs.iter().filter_map(|a| futures::task(heap, *a)).collect();
    found.tasks.retain(|t| t.future.is_pending());
    found.current.retain(|_, task| found.tasks.iter().any(|t| t.future.addr == *task));
    found
}

/// Objects that a `weakref.WeakSet` refers to: attribute `data`, a set of weak references.
fn weak_set(heap: &Heap, set: Addr) -> Vec<Addr> {
    let read = || {
        let data =
            heap.attrs(set, ["data"])[0].filter(|d| heap.type_of(*d).is_some_and(|t| t.name == "set"))?;
        let (references, _) = heap.set(data, MAX_ENTRIES)?;
        heap.mem.prefetch(&references.iter().map(|r| (*r, 48)).collect::<Vec<_>>());
        // `wr_object` is the first field of a weak reference.
        Some(references.into_iter().filter_map(|r| heap.ptr(r + heap.layout.object.size)).collect())
    };
    read().unwrap_or_default()
}

/// Tasks in one of 3.14's circular lists; `head` is a node, too.
fn linked(heap: &Heap, head: Addr) -> Vec<Addr> {
    let mut found = Vec::new();
    let mut at = head;
    // A head that was never used is zero; one that is none does not come back to itself.
    while let Some(next) = heap.ptr(at) {
        if next == head || found.len() > MAX_TASKS || heap.ptr(next + 8) != Some(at) {
            break;
        }
        found.extend(next.checked_sub(heap.layout.task.node));
        at = next;
    }
    found
}
