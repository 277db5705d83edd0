//! By which names the application gets at an object that nobody uses any more: `self.last[1]`, which has a response,
//! which has a connection.

use std::collections::VecDeque;

use rustc_hash::FxHashSet;

use super::futures;
use crate::python::objects::Heap;
use crate::stdlib::{FrameScene, Scene};
use crate::target::memory::Addr;

/// Objects that are looked at, and how many steps from a variable.
const MAX_OBJECTS: usize = 3_000;
const DEPTH: usize = 7;
const MAX_PARTS: usize = 256;

/// How an object is reached, but for what is private to libraries on the way, and the class of what has it there.
pub struct Kept {
    pub path: String,
    pub class: String,
    pub function: String,
}

struct Step {
    object: Addr,
    path: String,
    /// What the last public name leads to.
    named: Addr,
    depth: usize,
    is_private: bool,
}

/// The shortest way from the application's own frames that does not lead through `but`.
pub fn of(scene: &Scene, frames: &[FrameScene], wanted: Addr, but: Addr) -> Option<Kept> {
    let heap = scene.heap;
    let mut seen: FxHashSet<Addr> = FxHashSet::from_iter([but]);
    for frame in frames.iter().filter(|frame| scene.is_user(frame)) {
        let own = scene.locals(frame).into_iter();
        let step = |(path, object)| Step { object, path, named: object, depth: 0, is_private: false };
        let mut left: VecDeque<Step> = own.map(step).collect();
        while let Some(step) = left.pop_front() {
            if step.object == wanted {
                let class = heap.type_of(step.named).map(|ty| heap.type_name(&ty)).unwrap_or_default();
                let class = class.rsplit('.').next().unwrap_or_default().to_owned();
                let function = frame.code.qualname.as_ref().unwrap_or(&frame.code.name).to_string();
                return Some(Kept { path: step.path, class, function });
            }
            if step.depth == DEPTH || seen.len() > MAX_OBJECTS || !seen.insert(step.object) {
                continue;
            }
            left.extend(parts(heap, step.object).into_iter().map(|(name, object)| {
                // What a library calls private names nothing to the reader; an attribute of `self` does.
                let is_private = step.is_private || step.depth > 0 && name.starts_with("._");
                let path = if is_private { step.path.clone() } else { format!("{}{name}", step.path) };
                let named = if is_private { step.named } else { object };
                Step { object, path, named, depth: step.depth + 1, is_private }
            }));
        }
    }
    None
}

/// What an object has, each as it is written behind its name.
fn parts(heap: &Heap, object: Addr) -> Vec<(String, Addr)> {
    let Some(ty) = heap.type_of(object).filter(|ty| !ty.is_type() && ty.name != "module") else {
        return Vec::new();
    };
    let numbered =
        |items: Vec<Addr>| items.into_iter().enumerate().map(|(i, o)| (format!("[{i}]"), o)).collect();
    if ty.is_dict() {
        let entries = heap.dict(object, MAX_PARTS).unwrap_or_default().0;
        return entries
            .into_iter()
            .map(|(key, value)| (format!("[{}]", key_name(heap, key)), value))
            .collect();
    }
    if ty.is_tuple() || ty.is_list() {
        return numbered(heap.items(object, &ty, MAX_PARTS).unwrap_or_default().0);
    }
    if ty.name == "collections.deque" {
        return numbered(futures::deque(heap, object, MAX_PARTS));
    }
    if ty.name == "set" {
        let items = heap.set(object, MAX_PARTS).unwrap_or_default().0;
        return items.into_iter().map(|item| ("[…]".to_owned(), item)).collect();
    }
    if !ty.is_heap_type() || futures::future(heap, object).is_some() {
        return Vec::new();
    }
    let attributes = heap.attributes(object, MAX_PARTS).unwrap_or_default().into_iter();
    let named = attributes.filter_map(|(name, value)| Some((heap.checked_str(name)?, value)));
    named.chain(heap.slots(object, MAX_PARTS)).map(|(name, value)| (format!(".{name}"), value)).collect()
}

/// A key as it is written.
pub fn key_name(heap: &Heap, key: Addr) -> String {
    let number = || heap.type_of(key).filter(|ty| ty.is_int()).and_then(|_| heap.int(key));
    let text = heap.checked_str(key).map(|text| format!("'{text}'"));
    text.or_else(|| Some(number()?.to_string())).unwrap_or_else(|| "…".into())
}
