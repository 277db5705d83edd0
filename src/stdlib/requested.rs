//! What another request could end: a long poll waits for a message that somebody else sends. No thread is at that
//! code yet; it stands beside the code that waits, in its module or in the class of its object.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::{FrameScene, Scene, Seen, ThreadScene, signals, spoken};
use crate::target::memory::Addr;

/// Frames of the application's own, from the innermost on, whose surroundings are searched.
const NEAR: usize = 4;
/// Functions of one module or class.
const MAX_FUNCTIONS: usize = 1024;

/// Names, for each wait of a request of which nobody is known who would end it, a function that could.
pub fn find(scene: &Scene, seen: &mut Seen) {
    for thread in &scene.threads {
        // While a loop's own thread waits, no other request comes to that loop.
        if !seen.requests.contains_key(&thread.raw.tstate) || seen.loops.contains_key(&thread.raw.tstate) {
            continue;
        }
        let Some(wait) = seen.waits.get_mut(&thread.raw.tstate) else { continue };
        let is_sign = matches!(wait.kind.as_str(), "event" | "condition" | "future" | "queue" | "semaphore");
        let Some(object) = wait.address.filter(|_| is_sign && wait.on.is_empty() && wait.detail.is_object())
        else {
            continue;
        };
        let methods = signals::methods(wait);
        if let Some(name) = function(scene, thread, object.0, methods) {
            wait.detail["by_request"] = json!(name);
        }
    }
}

fn function(scene: &Scene, thread: &ThreadScene, object: Addr, methods: &[&str]) -> Option<String> {
    let heap = scene.heap;
    // What it is in itself, it does when it goes on.
    let own: FxHashSet<Addr> = thread.frames.iter().map(|f| f.raw.code).collect();
    let named = |function: &Addr| {
        let code = heap.ptr(function + heap.layout.function.code).filter(|code| !own.contains(code))?;
        let ends = spoken::function_speaks_of(scene, *function, object, methods);
        let name = || heap.checked_str(heap.ptr(code + heap.layout.code.name)?);
        ends.then(name).flatten()
    };
    let frames = thread.frames.iter().filter(|f| scene.is_user(f)).take(NEAR);
    frames.flat_map(|frame| functions(scene, frame)).find_map(|function| named(&function))
}

/// The functions of a frame's module, of the classes in there, and of the class of its object.
fn functions(scene: &Scene, frame: &FrameScene) -> Vec<Addr> {
    let heap = scene.heap;
    let values = |dict: Addr| {
        let entries = heap.dict(dict, MAX_FUNCTIONS).unwrap_or_default().0;
        entries.into_iter().map(|(_, value)| value).collect::<Vec<_>>()
    };
    let is_function = |object: &Addr| heap.type_of(*object).is_some_and(|ty| ty.name == "function");
    let of_class = |class: Addr| heap.ptr(class + heap.layout.types.dict).map(values).unwrap_or_default();
    let is_class = |object: &Addr| {
        heap.type_of(*object).is_some_and(|ty| ty.is_type())
            && heap.type_at(*object).is_some_and(|ty| ty.is_heap_type() && !ty.name.contains('.'))
    };
    let globals = if frame.raw.globals == 0 { Vec::new() } else { values(frame.raw.globals) };
    let own = scene.receiver(frame).and_then(|object| Some(heap.type_of(object)?.addr));
    let classes = globals.iter().copied().filter(is_class).chain(own);
    let methods: Vec<Addr> = classes.flat_map(of_class).collect();
    globals.into_iter().chain(methods).filter(is_function).collect()
}
