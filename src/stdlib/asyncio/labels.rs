//! What tasks call the objects that they wait for.

use rustc_hash::FxHashMap;

use crate::python::code::Codes;
use crate::snapshot::{Address, Wait};
use crate::stdlib::{FrameScene, Scene, Seen, locks, visible};
use crate::target::memory::Addr;

/// Objects that are named: each needs a search.
const MAX_NAMED: usize = 500;

/// Fills in the labels of waits for asyncio's own objects.
pub fn name(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let mut known: FxHashMap<Addr, Option<String>> = FxHashMap::default();
    for task in &mut seen.tasks {
        let Some(wait) = task.waits_on.as_mut().filter(|w| w.label.is_none() && is_named(w)) else {
            continue;
        };
        let Some(Address(object)) = wait.address else { continue };
        if !known.contains_key(&object) && known.len() < MAX_NAMED {
            let raw = seen.task_frames.get(&task.id.0);
            let frames = raw.map(|raw| visible(scene.heap, codes, raw)).unwrap_or_default();
            known.insert(object, of(scene, &frames, object, wait));
        }
        wait.label = known.get(&object).cloned().flatten();
    }
}

fn is_named(wait: &Wait) -> bool {
    matches!(wait.kind.as_str(), "lock" | "semaphore" | "event" | "condition" | "barrier" | "queue")
}

/// A variable, an attribute of one, or a global.
fn of(scene: &Scene, frames: &[FrameScene], object: Addr, wait: &Wait) -> Option<String> {
    let heap = scene.heap;
    let ty = heap.type_of(object)?;
    let class = ty.name.rsplit('.').next().unwrap_or("object");
    let class = match wait.detail.get("maxsize").and_then(|m| m.as_i64()).filter(|m| *m > 0) {
        Some(max) => format!("{class}(maxsize={max})"),
        None => class.to_owned(),
    };
    for frame in frames.iter().filter(|f| !f.in_file("/asyncio/locks.py") && !f.in_file("/asyncio/queues.py"))
    {
        let locals = scene.locals(frame);
        if let Some((name, _)) = locals.iter().find(|(_, value)| *value == object) {
            return Some(format!("{class} {name}"));
        }
        for (name, value) in &locals {
            let attributes = heap.attributes(*value, 256).unwrap_or_default();
            if let Some((key, _)) = attributes.iter().find(|(_, v)| *v == object) {
                return Some(format!("{class} {name}.{}", heap.checked_str(*key)?));
            }
        }
    }
    // Globals come last: their search is the longest.
    let global = frames.iter().find_map(|f| locks::global_name(scene, f, object));
    Some(global.map_or_else(|| class.clone(), |name| format!("{class} {name}")))
}
