//! Plain locks as signals: who waits has taken the lock itself, or made it, and waits until another thread releases
//! it, as `threading.Condition` does with a lock for each of those that wait. Nobody holds such a lock.

use super::flow::Shape;
use super::{FrameScene, Scene, ThreadScene, acquired, spoken};
use crate::python::opcodes::Op;
use crate::target::memory::Addr;

/// Whether a thread waits for a sign, if this is what it sleeps at.
pub fn is_one(scene: &Scene, thread: &ThreadScene, lock: Addr) -> bool {
    // The innermost may be no more than a helper that takes what it is given.
    let mut own = thread.frames.iter().filter(|f| scene.is_user(f)).take(2);
    own.any(|frame| is_made_here(scene, frame, lock) || is_made_taken(scene, frame, lock))
}

/// The function has made it for itself, and handed it to others, who find it in a container.
fn is_made_here(scene: &Scene, frame: &FrameScene, lock: Addr) -> bool {
    let Some(shape) = scene.shapes.of(scene, frame.raw.code) else { return false };
    let slot = |name: &String| scene.variables_of(frame.raw.code)?.names.iter().position(|n| n == name);
    let variable = scene.locals(frame).into_iter().find(|(_, value)| *value == lock);
    let Some(slot) = variable.and_then(|(name, _)| slot(&name)) else { return false };
    let stores: Vec<usize> = shape
        .instructions
        .iter()
        .enumerate()
        .filter(|(_, i)| i.op == Op::StoreFast && i.arg as usize == slot)
        .map(|(at, _)| at)
        .collect();
    !stores.is_empty()
        && stores.iter().all(|at| is_new_lock(scene, frame, &shape, *at))
        && scene.contained().contains_key(&lock)
}

/// The frame has taken it itself, and it lies where others find it: in a queue of those that wait, say. (In a dict of
/// locks it may be anybody's.)
pub fn is_handed_over(scene: &Scene, frame: &FrameScene, lock: Addr) -> bool {
    let own = scene.values(frame);
    let is_of_others =
        |at: &Addr| !own.contains(at) && scene.heap.type_of(*at).is_some_and(|ty| !ty.is_dict());
    scene.contained().get(&lock).is_some_and(|containers| containers.iter().any(is_of_others))
}

/// What is stored there comes straight from a call of `Lock()`.
fn is_new_lock(scene: &Scene, frame: &FrameScene, shape: &Shape, at: usize) -> bool {
    let names = scene.names(frame.raw.code);
    let mut before = shape.instructions[..at].iter().rev().filter(|i| i.op != Op::Precall);
    let is_call = before
        .next()
        .is_some_and(|i| matches!(i.op, Op::Call | Op::CallFunction | Op::CallMethod) && i.arg == 0);
    let name = before
        .find_map(|i| spoken::attribute(scene, i.op, i.arg).or_else(|| spoken::global(scene, i.op, i.arg)));
    let name = name.and_then(|name| names.get(name as usize));
    is_call && name.is_some_and(|n| matches!(n.as_str(), "Lock" | "allocate_lock"))
}

/// The object whose method waits takes the lock when it is made: `self.done = Lock(); self.done.acquire()`.
fn is_made_taken(scene: &Scene, frame: &FrameScene, lock: Addr) -> bool {
    let heap = scene.heap;
    let has = |object: Addr| {
        let attributes = heap.attributes(object, 64).unwrap_or_default();
        let slots = || heap.type_of(object).map(|ty| heap.slot_values(object, &ty)).unwrap_or_default();
        attributes.iter().any(|(_, value)| *value == lock) || slots().contains(&lock)
    };
    let init = |object: Addr| {
        let function = acquired::class_attribute(scene, object, "__init__")?;
        acquired::is_function(scene, function)
            .then(|| heap.ptr(function + heap.layout.function.code))
            .flatten()
    };
    let acquires = |code: Addr| scene.names(code).iter().any(|name| name == "acquire");
    scene.receiver(frame).filter(|own| has(*own)).and_then(init).is_some_and(acquires)
}
