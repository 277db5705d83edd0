//! Locks that a loop takes one after the other: `for lock in locks: lock.acquire()`.
//!
//! The variable has another value by now, but the loop's iterator still knows what it has given. For each
//! such object the body is followed once more, as if the variable were that object.

use super::super::flow::deref_slot;
use super::super::{FrameScene, Scene, exits, spoken};
use super::{Analysis, Body, Event, FREE, Part, UNCLEAR, Variable};
use crate::python::layout::Frames;
use crate::python::objects::Heap;
use crate::python::opcodes::{self, Instruction, Op};
use crate::target::memory::Addr;

/// Objects that a loop has been through.
const MAX_PASSED: usize = 128;

/// `Some`: a loop around the frame's place has taken this lock in an earlier round; with the line, if known.
pub fn taken_by(scene: &Scene, frame: &FrameScene, now: &Analysis, lock: Addr) -> Option<Option<u32>> {
    let code = &now.shape.instructions;
    let at = opcodes::at(code, frame.offset)?;
    let around = |(head, i): &(usize, &Instruction)| {
        i.op == Op::ForIter && *head < at && i.target.is_some_and(|end| at < end)
    };
    let heads: Vec<usize> = code.iter().enumerate().filter(around).map(|(head, _)| head).collect();
    if heads.is_empty() {
        return None;
    }
    let passed = passed(scene.heap, &exits::stack_words(scene.heap, frame));
    heads.into_iter().find_map(|head| {
        let variable = variable(&now.body, scene, code.get(head + 1)?)?;
        let current = match variable {
            Variable::Slot(slot) => now.body.variable(scene, slot)?,
            Variable::Name(name) => {
                let names = scene.names(now.body.code);
                scene.heap.dict_get(now.body.globals, [names.get(name as usize)?.as_str()])[0]?
            }
        };
        // The iterator is the one whose last object the variable has.
        let given = passed.iter().find(|given| given.last() == Some(&current))?;
        given[..given.len() - 1].iter().find_map(|object| {
            let body = Body::of_frame(scene, frame.raw.addr, frame.raw.code, frame.raw.globals)?;
            let round = Analysis::new(scene, Body { instead: Some((variable, *object)), ..body })?;
            let end = code[head].target?;
            let inside = || round.events.iter().filter(|(i, _)| (head + 2..end).contains(*i));
            // What the body itself assigns was something else then.
            let assigned = |base: &u32| {
                inside().flat_map(|e| e.1).any(|e| matches!(e, Event::Store { base: b } if b == base))
            };
            let takes = |(i, events): (&usize, &Vec<Event>)| {
                let this = |e: &Event| {
                    matches!(e, Event::Acquire { object, base, .. } if *object == lock && !assigned(base))
                };
                events.iter().any(this).then_some(*i)
            };
            let took = inside().filter_map(takes).min()?;
            // Behind the store of the variable, until the next round begins.
            let part = Part { from: head + 2, until: Some(head) };
            let (states, _) = round.flow(scene, lock, FREE, 0, part);
            let held = states[head] != 0 && states[head] & (FREE | UNCLEAR) == 0;
            held.then(|| frame.code.line(code[took].offset))
        })
    })
}

/// `lock.acquire(); taken.append(lock)`: a container of the frame has what was taken, each round something else.
pub fn collected_by(scene: &Scene, frame: &FrameScene, now: &Analysis, lock: Addr) -> Option<Option<u32>> {
    let code = &now.shape.instructions;
    let at = opcodes::at(code, frame.offset)?;
    let names = scene.names(now.body.code);
    let speaks = |i: usize, wanted: &[&str]| {
        let name = spoken::attribute(scene, code[i].op, code[i].arg).and_then(|n| names.get(n as usize));
        name.is_some_and(|name| wanted.contains(&name.as_str()))
    };
    let slot = |i: usize| match code[i].op {
        Op::LoadFast | Op::LoadFastCheck | Op::LoadFastBorrow => Some(code[i].arg),
        Op::StoreLoad => Some(code[i].arg & 15),
        _ => None,
    };
    let acquires = (1..code.len() - 1).filter(|i| speaks(*i, &["acquire"]));
    acquires.filter_map(|i| Some((i, slot(i - 1)?))).find_map(|(acquire, variable)| {
        let keeps = |i: &usize| speaks(*i, &["append", "appendleft", "add"]) && slot(i + 1) == Some(variable);
        let keep = (acquire + 1..code.len() - 1).find(keeps)?;
        // It has come there.
        now.shape.ahead(acquire).any(|n| n == at).then_some(())?;
        let container = spoken::receiver(scene, &now.body, &now.shape, Some(at), keep)?;
        let is_in = scene.items(container, MAX_PASSED)?.contains(&lock);
        is_in.then(|| frame.code.line(code[acquire].offset))
    })
}

/// What the instruction behind the head of a loop stores to.
fn variable(body: &Body, scene: &Scene, store: &Instruction) -> Option<Variable> {
    match store.op {
        Op::StoreFast => Some(Variable::Slot(store.arg as usize)),
        Op::StoreLoad => Some(Variable::Slot(store.arg as usize >> 4)),
        Op::StoreDeref => Some(Variable::Slot(deref_slot(scene, body.code, store.arg))),
        Op::StoreName | Op::StoreGlobal => Some(Variable::Name(store.arg)),
        _ => None,
    }
}

/// For each iterator over a list or a tuple among these words of a value stack, what it has given so far
/// (Objects/listobject.c, Objects/tupleobject.c: `it_index`, `it_seq`). From 3.15 on the sequence itself
/// lies there, and the index above it as a tagged number.
fn passed(heap: &Heap, words: &[u64]) -> Vec<Vec<Addr>> {
    let first = |sequence: Addr, count: u64| {
        let ty = heap.type_of(sequence).filter(|t| t.is_list() || t.is_tuple())?;
        let count = usize::try_from(count).ok().filter(|n| (1..=MAX_PASSED).contains(n))?;
        let (items, _) = heap.items(sequence, &ty, count)?;
        (items.len() == count).then_some(items)
    };
    let virtual_iterators =
        matches!(heap.layout.frames, Frames::Interpreter { .. }) && heap.layout.minor >= 15;
    let given = |(i, word): (usize, &u64)| {
        let object = heap.layout.untag(*word);
        let ty = heap.type_of(object)?;
        match ty.name.as_str() {
            "list_iterator" | "tuple_iterator" => {
                let index = object + heap.layout.object.size;
                first(heap.ptr(index + 8)?, heap.mem.u64(index).ok()?)
            }
            _ if virtual_iterators => {
                let tagged = words.get(i + 1).filter(|w| **w & 3 == 3)?;
                first(object, tagged >> 2)
            }
            _ => None,
        }
    };
    words.iter().enumerate().filter_map(given).collect()
}
