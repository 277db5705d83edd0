//! Whether the code of a frame speaks of a method: `put`, `set`, `release`. That it does is a hint of who may end
//! a wait, and no more; a global of that name, or the `get` of a dict, is none.

use super::flow::{Shape, deref_slot};
use super::{FrameScene, Scene};
use crate::python::opcodes::Op;
use crate::target::memory::Addr;

/// `of`: the object that is waited for.
pub fn speaks_of(scene: &Scene, frame: &FrameScene, of: Addr, methods: &[&str]) -> bool {
    let names = scene.names(frame.raw.code);
    let is_wanted = |at: u32| names.get(at as usize).is_some_and(|n| methods.contains(&n.as_str()));
    if !(0..names.len() as u32).any(is_wanted) {
        return false;
    }
    let Some(shape) = scene.shapes.of(scene, frame.raw.code) else { return true };
    let (mut as_attribute, mut as_global) = (false, false);
    for (at, instruction) in shape.instructions.iter().enumerate() {
        match attribute(scene, instruction.op, instruction.arg) {
            Some(name) if is_wanted(name) => {
                as_attribute = true;
                let other = receiver(scene, frame, &shape, at).filter(|object| *object != of);
                if !other.is_some_and(|object| is_its_own(scene, object)) {
                    return true;
                }
            }
            _ => {}
        }
        as_global |= global(scene, instruction.op, instruction.arg).is_some_and(is_wanted);
    }
    // `super().put()` is neither.
    !as_attribute && !as_global
}

/// An object whose methods do nothing to another one.
fn is_its_own(scene: &Scene, object: Addr) -> bool {
    const OBJECTS: &[(&str, &str)] = &[
        ("threading", "Event"),
        ("threading", "Barrier"),
        ("threading", "Semaphore"),
        ("threading", "Thread"),
        ("queue", "Queue"),
        ("subprocess", "Popen"),
    ];
    let heap = scene.heap;
    heap.type_of(object).is_some_and(|ty| {
        let is = |(module, class): &(&str, &str)| heap.is_of(&ty, module, class);
        ty.is_dict() || ty.is_str() || ty.is_list() || OBJECTS.iter().any(is)
    })
}

/// Index of the name that is read of an object.
fn attribute(scene: &Scene, op: Op, arg: u32) -> Option<u32> {
    match op {
        // From 3.12 on the last bit says that it is a method.
        Op::LoadAttr if scene.heap.layout.minor >= 12 => Some(arg >> 1),
        Op::LoadAttr | Op::LoadMethod => Some(arg),
        _ => None,
    }
}

fn global(scene: &Scene, op: Op, arg: u32) -> Option<u32> {
    match op {
        // From 3.11 on the last bit asks for a NULL.
        Op::LoadGlobal if scene.heap.layout.minor >= 11 => Some(arg >> 1),
        Op::LoadGlobal | Op::LoadName | Op::StoreGlobal | Op::StoreName => Some(arg),
        _ => None,
    }
}

/// What the attribute is read of, as the variables are now: a variable, or an attribute of one.
fn receiver(scene: &Scene, frame: &FrameScene, shape: &Shape, at: usize) -> Option<Addr> {
    let before = shape.instructions.get(at.checked_sub(1)?)?;
    if let Some(name) = attribute(scene, before.op, before.arg) {
        let names = scene.names(frame.raw.code);
        let object = receiver(scene, frame, shape, at - 1)?;
        return scene.heap.attrs(object, [names.get(name as usize)?.as_str()])[0];
    }
    if let Some(name) = global(scene, before.op, before.arg) {
        let names = scene.names(frame.raw.code);
        return scene.heap.dict_get(frame.raw.globals, [names.get(name as usize)?.as_str()])[0];
    }
    let slot = match before.op {
        Op::LoadFast | Op::LoadFastCheck | Op::LoadFastBorrow => before.arg as usize,
        Op::LoadDeref => deref_slot(scene, frame.raw.code, before.arg),
        _ => return None,
    };
    scene.slot(frame, slot)
}
