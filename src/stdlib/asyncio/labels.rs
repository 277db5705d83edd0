//! What tasks call the objects that they wait for.

use rustc_hash::FxHashMap;

use super::anyio::BACKEND;
use super::keepers::key_name;
use crate::python::code::Codes;
use crate::snapshot::{Address, Wait};
use crate::stdlib::{FrameScene, Scene, Seen, locks, visible};
use crate::target::memory::Addr;

/// Objects that are named: each needs a search.
const MAX_NAMED: usize = 500;

/// Entries of a dict in which a future is looked for.
const MAX_KEYS: usize = 4_096;

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
    let kinds = ["lock", "semaphore", "event", "condition", "barrier", "queue"];
    kinds.contains(&wait.kind.as_str()) || wait.kind == "future" && wait.call.is_none()
}

/// A variable, an attribute of one, or a global.
fn of(scene: &Scene, frames: &[FrameScene], object: Addr, wait: &Wait) -> Option<String> {
    let heap = scene.heap;
    if wait.kind == "future" {
        return under_key(scene, frames, object);
    }
    let ty = heap.type_of(object)?;
    let class = ty.name.rsplit('.').next().unwrap_or("object");
    let class = match wait.detail.get("maxsize").and_then(|m| m.as_i64()).filter(|m| *m > 0) {
        Some(max) => format!("{class}(maxsize={max})"),
        None => class.to_owned(),
    };
    Some(named(scene, frames, object).map_or_else(|| class.clone(), |name| format!("{class} {name}")))
}

/// The name of an object in these frames.
pub fn named(scene: &Scene, frames: &[FrameScene], object: Addr) -> Option<String> {
    const OWN: [&str; 4] = ["/asyncio/locks.py", "/asyncio/queues.py", "/tornado/locks.py", BACKEND];
    let heap = scene.heap;
    // Those of AnyIO wrap one of asyncio's.
    let is_it = |value: Addr| {
        let wraps = || heap.type_of(value).filter(|ty| ty.name == "Event");
        value == object
            || wraps().is_some_and(|ty| heap.named_slots(value, &ty, ["_event"])[0] == Some(object))
    };
    for frame in frames.iter().filter(|f| !OWN.iter().any(|file| f.in_file(file))) {
        let locals = scene.locals(frame);
        if let Some((name, _)) = locals.iter().find(|(_, value)| is_it(*value)) {
            return Some(name.clone());
        }
        for (name, value) in &locals {
            let attributes = heap.attributes(*value, 256).unwrap_or_default();
            if let Some((key, _)) = attributes.iter().find(|(_, v)| is_it(*v)) {
                return Some(format!("{name}.{}", heap.checked_str(*key)?));
            }
        }
    }
    // Globals come last: their search is the longest.
    frames.iter().find_map(|f| locks::global_name(scene, f, object))
}

/// A future that stands in a dict, from where others would take it: `self.inflight['ACME']`.
fn under_key(scene: &Scene, frames: &[FrameScene], future: Addr) -> Option<String> {
    let heap = scene.heap;
    let key_of = |dict: Addr| {
        heap.type_of(dict).filter(|ty| ty.is_dict())?;
        let (key, _) = heap.dict(dict, MAX_KEYS)?.0.into_iter().find(|(_, value)| *value == future)?;
        Some(key_name(heap, key))
    };
    let frame = frames.iter().find(|frame| scene.is_user(frame))?;
    for (name, value) in scene.locals(frame) {
        if let Some(key) = key_of(value) {
            return Some(format!("{name}[{key}]"));
        }
        let attributes = heap.attributes(value, 256).unwrap_or_default();
        if let Some((attribute, key)) = attributes.into_iter().find_map(|(a, v)| Some((a, key_of(v)?))) {
            return Some(format!("{name}.{}[{key}]", heap.checked_str(attribute)?));
        }
    }
    None
}
