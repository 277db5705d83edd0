//! Whether the code of a frame speaks of a method: `put`, `set`, `release`. That it does is a hint of who may end
//! a wait, and no more; a global of that name, or the `get` of a dict, is none.

use super::acquired::{self, Body};
use super::flow::{Shape, deref_slot};
use super::{FrameScene, Scene, ThreadScene, exits, locks};
use crate::python::frames;
use crate::python::opcodes::{self, Instruction, Op};
use crate::target::memory::Addr;

/// `of`: the object that is waited for.
pub fn speaks_of(scene: &Scene, frame: &FrameScene, of: Addr, methods: &[&str]) -> bool {
    frame_speaks_of(scene, frame, of, methods, &|_, _| true)
}

/// The same of what the frame has not come to yet: what it has behind it, it does once more only if something
/// on its stack goes round in a loop. (`index`: of the frame.)
pub fn will_speak_of(scene: &Scene, thread: &ThreadScene, index: usize, of: Addr, methods: &[&str]) -> bool {
    let counts = |shape: &Shape, at| is_to_come(scene, thread, index, shape, at);
    frame_speaks_of(scene, &thread.frames[index], of, methods, &counts)
}

/// The instruction lies ahead, or is met once more.
fn is_to_come(scene: &Scene, thread: &ThreadScene, index: usize, shape: &Shape, at: usize) -> bool {
    lies_ahead(shape, thread.frames[index].offset, at)
        || thread.frames[index + 1..].iter().any(|outer| goes_round(scene, outer))
}

fn frame_speaks_of(
    scene: &Scene,
    frame: &FrameScene,
    of: Addr,
    methods: &[&str],
    counts: &dyn Fn(&Shape, usize) -> bool,
) -> bool {
    if !names_any(scene, frame.raw.code, methods) {
        return false;
    }
    let body = Body::of_frame(scene, frame.raw.addr, frame.raw.code, frame.raw.globals);
    body.is_none_or(|body| body_speaks_of(scene, &body, Some(frame.offset), of, methods, counts))
}

/// It stands in a loop: it may come to where it is once more.
fn goes_round(scene: &Scene, frame: &FrameScene) -> bool {
    let Some(shape) = scene.shapes.of(scene, frame.raw.code) else { return true };
    let Some(start) = opcodes::at(&shape.instructions, frame.offset) else { return true };
    shape.ahead(start).any(|at| at == start)
}

/// To be reached from there; or loaded already by the statement that waits, as `put` in `queue.put(made())`.
fn lies_ahead(shape: &Shape, offset: i64, wanted: usize) -> bool {
    let Some(start) = opcodes::at(&shape.instructions, offset) else { return true };
    let ends = |i: &Instruction| {
        let stores = matches!(i.op, Op::StoreFast | Op::StoreDeref | Op::StoreGlobal | Op::StoreName);
        stores || i.op == Op::PopTop || i.target.is_some() || !i.falls_through()
    };
    let code = &shape.instructions;
    let loaded = || wanted <= start && is_call(code[start].op) && !code[wanted..start].iter().any(ends);
    loaded() || shape.ahead(start).any(|at| at == wanted)
}

/// Some place of its code reads such a method of this very object.
pub fn surely_speaks_of(scene: &Scene, frame: &FrameScene, of: Addr, methods: &[&str]) -> bool {
    let body = Body::of_frame(scene, frame.raw.addr, frame.raw.code, frame.raw.globals);
    body.is_some_and(|body| reads_method(scene, &body, Some(frame.offset), of, methods, &|_, _| true))
}

/// A suspended generator will, when it goes on.
pub fn goes_on_to(scene: &Scene, generator: Addr, of: Addr, methods: &[&str]) -> bool {
    let Some((frame, code, offset)) = locks::suspended_frame(scene.heap, generator) else { return false };
    let body = frames::at(scene.heap, frame).and_then(|raw| Body::of_frame(scene, frame, code, raw.globals));
    let ahead = |shape: &Shape, at| lies_ahead(shape, offset, at);
    body.is_some_and(|body| reads_method(scene, &body, Some(offset), of, methods, &ahead))
}

/// A method that the frame calls of its own object (`self.dequeue()`) does.
pub fn calls_who_speaks_of(
    scene: &Scene,
    thread: &ThreadScene,
    index: usize,
    of: Addr,
    methods: &[&str],
) -> bool {
    let frame = &thread.frames[index];
    // What starts a thread calls nothing but that.
    let Some(own) = scene.receiver(frame).filter(|_| !frame.in_file("/threading.py")) else { return false };
    let Some(shape) = scene.shapes.of(scene, frame.raw.code) else { return false };
    let is_own =
        |i: &Instruction| matches!(i.op, Op::LoadFast | Op::LoadFastCheck | Op::LoadFastBorrow) && i.arg == 0;
    let object = |at: usize| shape.instructions.get(at.checked_sub(1)?).filter(|i| is_own(i)).map(|_| own);
    calls(scene, frame, &shape, of, methods, &object).any(|at| is_to_come(scene, thread, index, &shape, at))
}

/// A method that the frame calls of whatever object does, as far as that is known (`self.slots.leave()`).
pub fn calls_any_who_speaks_of(scene: &Scene, frame: &FrameScene, of: Addr, methods: &[&str]) -> bool {
    let body = Body::of_frame(scene, frame.raw.addr, frame.raw.code, frame.raw.globals);
    let Some((body, shape)) = body.zip(scene.shapes.of(scene, frame.raw.code)) else { return false };
    let start = opcodes::at(&shape.instructions, frame.offset);
    let object = |at: usize| receiver(scene, &body, &shape, start, at);
    calls(scene, frame, &shape, of, methods, &object).next().is_some()
}

/// Where the frame reads a method of Python that speaks so. `object`: of what it is read there.
fn calls<'a>(
    scene: &'a Scene,
    frame: &'a FrameScene,
    shape: &'a Shape,
    of: Addr,
    methods: &'a [&str],
    object: &'a dyn Fn(usize) -> Option<Addr>,
) -> impl Iterator<Item = usize> + 'a {
    let names = scene.names(frame.raw.code);
    let speaks = move |(at, i): (usize, &Instruction)| {
        let name = names.get(attribute(scene, i.op, i.arg)? as usize)?;
        let object = object(at)?;
        let method =
            acquired::class_attribute(scene, object, name).filter(|f| acquired::is_function(scene, *f))?;
        let method = Body::of_call(scene, method, vec![Some(object)])?;
        let speaks = names_any(scene, method.code, methods)
            && reads_method(scene, &method, None, of, methods, &|_, _| true);
        speaks.then_some(at)
    };
    shape.instructions.iter().enumerate().filter_map(speaks)
}

/// Some place of a code, of those that count, reads such a method of this very object.
fn reads_method(
    scene: &Scene,
    body: &Body,
    offset: Option<i64>,
    of: Addr,
    methods: &[&str],
    counts: &dyn Fn(&Shape, usize) -> bool,
) -> bool {
    let Some(shape) = scene.shapes.of(scene, body.code) else { return false };
    reads(scene, body, &shape, offset, methods).any(|(at, object)| object == Some(of) && counts(&shape, at))
}

/// Where a code reads one of these methods, and of which object, where that is known. `offset`: where it stands, if
/// it runs.
fn reads(
    scene: &Scene,
    body: &Body,
    shape: &Shape,
    offset: Option<i64>,
    methods: &[&str],
) -> impl Iterator<Item = (usize, Option<Addr>)> {
    let names = scene.names(body.code);
    let start = offset.and_then(|offset| opcodes::at(&shape.instructions, offset));
    let is_wanted = move |i: &Instruction| {
        let name = attribute(scene, i.op, i.arg).and_then(|name| names.get(name as usize));
        name.is_some_and(|n| methods.contains(&n.as_str()))
    };
    let places = shape.instructions.iter().enumerate().filter(move |(_, i)| is_wanted(i));
    places.map(move |(at, _)| (at, receiver(scene, body, shape, start, at)))
}

/// It stands at a call that is written as one, and no `with`.
pub fn is_at_call(scene: &Scene, frame: &FrameScene) -> bool {
    let shape = scene.shapes.of(scene, frame.raw.code);
    let at = shape.as_ref().and_then(|shape| opcodes::at(&shape.instructions, frame.offset));
    shape.zip(at).is_some_and(|(shape, at)| is_call(shape.instructions[at].op))
}

fn is_call(op: Op) -> bool {
    use Op::{Call, CallFunction, CallFunctionKw, CallKw, CallMethod, Precall};
    matches!(op, Call | CallFunction | CallFunctionKw | CallKw | CallMethod | Precall)
}

/// What the call returns in which the frame waits goes straight into another one, whose function is loaded already:
/// `handle(read())`.
pub fn hands_on(scene: &Scene, frame: &FrameScene) -> bool {
    use Op::{Call, CallFunction, CallFunctionKw, CallKw, CallMethod, LoadAttr, LoadGlobal, LoadMethod};
    let Some(shape) = scene.shapes.of(scene, frame.raw.code) else { return true };
    let Some(start) = opcodes::at(&shape.instructions, frame.offset) else { return true };
    let mut loaded = 0;
    for i in &shape.instructions[start + 1..] {
        match i.op {
            LoadAttr | LoadMethod | LoadGlobal => loaded += 1,
            Call | CallFunction | CallFunctionKw | CallKw | CallMethod if loaded == 0 => return true,
            Call | CallFunction | CallFunctionKw | CallKw | CallMethod => loaded -= 1,
            Op::PopTop | Op::StoreFast | Op::StoreDeref | Op::StoreGlobal | Op::StoreName => return false,
            _ if i.target.is_some() || !i.falls_through() => return false,
            _ => {}
        }
    }
    false
}

/// The same of a function, or a method, that may be called.
pub fn function_speaks_of(scene: &Scene, callable: Addr, of: Addr, methods: &[&str]) -> bool {
    let (heap, m) = (scene.heap, &scene.heap.layout.method);
    let bound = heap.type_of(callable).is_some_and(|ty| ty.name == "method");
    let body = match bound {
        true => heap
            .ptr(callable + m.func)
            .and_then(|f| Body::of_function(scene, f, vec![heap.ptr(callable + m.self_)])),
        false => Body::of_function(scene, callable, Vec::new()),
    };
    body.is_none_or(|body| {
        names_any(scene, body.code, methods) && body_speaks_of(scene, &body, None, of, methods, &|_, _| true)
    })
}

/// A variable of the frame, or an attribute of one, is such a method of the object: `reply = box.put`.
pub fn keeps_method(scene: &Scene, frame: &FrameScene, of: Addr, methods: &[&str]) -> bool {
    let heap = scene.heap;
    let own = scene.values(frame);
    let within = own.iter().flat_map(|value| heap.attributes(*value, 64).unwrap_or_default());
    let within: Vec<Addr> = within.map(|(_, value)| value).collect();
    own.into_iter().chain(within).any(|value| is_method(scene, value, of, methods))
}

/// This very object is such a method of the other one.
pub fn is_method(scene: &Scene, value: Addr, of: Addr, methods: &[&str]) -> bool {
    let (heap, m) = (scene.heap, &scene.heap.layout.method);
    let Some(ty) = heap.type_of(value) else { return false };
    let is_python = ty.name == "method";
    if !is_python && !ty.is_c_function() || heap.ptr(value + m.self_) != Some(of) {
        return false;
    }
    let Some(function) = heap.ptr(value + m.func) else { return false };
    let name = match is_python {
        true => {
            let code = heap.ptr(function + heap.layout.function.code);
            code.and_then(|c| heap.checked_str(heap.ptr(c + heap.layout.code.name)?))
        }
        false => exits::c_name(heap, function),
    };
    name.is_some_and(|name| methods.contains(&name.as_str()))
}

fn names_any(scene: &Scene, code: Addr, methods: &[&str]) -> bool {
    scene.names(code).iter().any(|name| methods.contains(&name.as_str()))
}

/// Some place of a code, of those that count, reads such a method, and not of another object that is known.
fn body_speaks_of(
    scene: &Scene,
    body: &Body,
    offset: Option<i64>,
    of: Addr,
    methods: &[&str],
    counts: &dyn Fn(&Shape, usize) -> bool,
) -> bool {
    let Some(shape) = scene.shapes.of(scene, body.code) else { return true };
    let mut as_attribute = false;
    for (at, object) in reads(scene, body, &shape, offset, methods) {
        as_attribute = true;
        let other = object.filter(|object| *object != of);
        if !other.is_some_and(|object| is_its_own(scene, object, methods)) && counts(&shape, at) {
            return true;
        }
    }
    let names = scene.names(body.code);
    let is_wanted = |at: u32| names.get(at as usize).is_some_and(|n| methods.contains(&n.as_str()));
    let as_global = |i: &Instruction| global(scene, i.op, i.arg).is_some_and(is_wanted);
    // `super().put()` is neither.
    !as_attribute && !shape.instructions.iter().any(as_global)
}

/// An object whose methods do nothing to another one. A condition may have its lock in common with others, but who
/// waits for it is its own.
fn is_its_own(scene: &Scene, object: Addr, methods: &[&str]) -> bool {
    const CONDITIONS: &[(&str, &str)] =
        &[("threading", "Condition"), ("multiprocessing.synchronize", "Condition")];
    const OBJECTS: &[(&str, &str)] = &[
        ("threading", "Event"),
        ("threading", "Barrier"),
        ("threading", "Semaphore"),
        ("threading", "Thread"),
        ("queue", "Queue"),
        ("subprocess", "Popen"),
        ("asyncio.locks", "Event"),
        ("asyncio.locks", "Lock"),
        ("asyncio.locks", "Condition"),
        ("asyncio.locks", "Semaphore"),
        ("asyncio.locks", "Barrier"),
        ("asyncio.queues", "Queue"),
    ];
    let heap = scene.heap;
    heap.type_of(object).is_some_and(|ty| {
        let is = |(module, class): &(&str, &str)| heap.is_of(&ty, module, class);
        let notifies = methods.contains(&"notify");
        ty.is_dict()
            || ty.is_str()
            || ty.is_list()
            || OBJECTS.iter().any(is)
            || notifies && CONDITIONS.iter().any(is)
    })
}

/// Index of the name that is read of an object.
pub fn attribute(scene: &Scene, op: Op, arg: u32) -> Option<u32> {
    match op {
        // From 3.12 on the last bit says that it is a method.
        Op::LoadAttr if scene.heap.layout.minor >= 12 => Some(arg >> 1),
        Op::LoadAttr | Op::LoadMethod => Some(arg),
        _ => None,
    }
}

pub fn global(scene: &Scene, op: Op, arg: u32) -> Option<u32> {
    match op {
        // From 3.11 on the last bit asks for a NULL.
        Op::LoadGlobal if scene.heap.layout.minor >= 11 => Some(arg >> 1),
        Op::LoadGlobal | Op::LoadName | Op::StoreGlobal | Op::StoreName => Some(arg),
        _ => None,
    }
}

/// What the attribute is read of, as the variables are now: a variable that stays what it is, or an attribute of
/// one. `start`: where it stands, if it runs.
pub fn receiver(scene: &Scene, body: &Body, shape: &Shape, start: Option<usize>, at: usize) -> Option<Addr> {
    let before = shape.instructions.get(at.checked_sub(1)?)?;
    let names = scene.names(body.code);
    if let Some(name) = attribute(scene, before.op, before.arg) {
        let object = receiver(scene, body, shape, start, at - 1)?;
        return scene.heap.attrs(object, [names.get(name as usize)?.as_str()])[0];
    }
    if let Some(name) = global(scene, before.op, before.arg) {
        return scene.heap.dict_get(body.globals, [names.get(name as usize)?.as_str()])[0];
    }
    let slot = match before.op {
        Op::LoadFast | Op::LoadFastCheck | Op::LoadFastBorrow => before.arg as usize,
        Op::LoadDeref => deref_slot(scene, body.code, before.arg),
        _ => return None,
    };
    let stores = |i: &Instruction| stores(scene, body, i, slot);
    let assigned = match start {
        Some(start) => shape.ahead(start).any(|at| stores(&shape.instructions[at])),
        None => shape.instructions.iter().any(stores),
    };
    body.variable(scene, slot).filter(|_| !assigned)
}

/// Whether the instruction gives this variable a value.
fn stores(scene: &Scene, body: &Body, instruction: &Instruction, slot: usize) -> bool {
    let arg = instruction.arg as usize;
    match instruction.op {
        Op::StoreFast => arg == slot,
        Op::StoreLoad => arg >> 4 == slot,
        Op::StoreTwo => arg >> 4 == slot || arg & 15 == slot,
        Op::StoreDeref => deref_slot(scene, body.code, instruction.arg) == slot,
        _ => false,
    }
}
