//! Who awaits whom.

use rustc_hash::FxHashMap;

use super::World;
use super::futures::{self, Future};
use crate::python::objects::Heap;
use crate::target::memory::Addr;

/// Futures that are followed from one task on.
const MAX_REACHED: usize = 64;

/// For each task those that it awaits, by index.
pub fn between(heap: &Heap, world: &World) -> Vec<Vec<usize>> {
    let mut awaits: Vec<Vec<usize>> = vec![Vec::new(); world.tasks.len()];
    let mut waiting: FxHashMap<Addr, Vec<usize>> = FxHashMap::default();
    for (i, task) in world.tasks.iter().enumerate() {
        let Some(future) = task.object.waits_for else { continue };
        match world.by_addr.get(&future) {
            Some(other) => awaits[i].push(*other),
            None => waiting.entry(future).or_default().push(i),
        }
    }
    // From each task along the callbacks to the futures that somebody waits for.
    let mut completes: FxHashMap<Addr, Vec<Future>> = FxHashMap::default();
    for (i, task) in world.tasks.iter().enumerate() {
        let mut seen: Vec<Addr> = Vec::new();
        let mut left = vec![task.object.future.clone()];
        while let Some(future) = left.pop() {
            if waiting.is_empty() || seen.contains(&future.addr) || seen.len() > MAX_REACHED {
                continue;
            }
            seen.push(future.addr);
            for other in waiting.get(&future.addr).into_iter().flatten() {
                if *other != i && !awaits[*other].contains(&i) {
                    awaits[*other].push(i);
                }
            }
            for callback in futures::callbacks(heap, &future) {
                let next = completes.entry(callback).or_insert_with(|| reached(heap, callback));
                left.extend(next.iter().filter(|f| f.is_pending()).cloned());
            }
        }
    }
    // What a task says itself (3.14 on) also holds while the other one does something else inside of its
    // TaskGroup: it is used only where nothing else is known.
    let bare: Vec<bool> = awaits.iter().map(Vec::is_empty).collect();
    for (i, task) in world.tasks.iter().enumerate() {
        for by in &task.object.awaited_by {
            if let Some(other) = world.by_addr.get(by)
                && bare[*other]
                && world.tasks[*other].object.waits_for.is_some_and(|f| is_gathering(heap, f))
            {
                awaits[*other].push(i);
            }
        }
    }
    awaits
}

fn is_gathering(heap: &Heap, future: Addr) -> bool {
    heap.type_of(future).is_some_and(|t| t.name == "_GatheringFuture")
}

fn reached(heap: &Heap, callback: Addr) -> Vec<Future> {
    // These two look back, at what their future is made from.
    match futures::function_name(heap, callback).as_deref() {
        Some("_outer_done_callback" | "_call_check_cancel") => Vec::new(),
        _ => futures::completes(heap, callback),
    }
}
