//! Which context managers a frame is inside of, proven by what the interpreter itself will do: the
//! exit function that it is bound to call lies on the frame's value stack, in a slot that the
//! exception table (3.11 on) or the block stack (before) shows to be live.
//!
//! A scan of all slots would find false ones: stale words above the live depth, and the exit function
//! of a manager that is only being entered (it is pushed before `__enter__` is called).

use super::asyncio::coroutines;
use super::{FrameScene, RawFrame, Scene};
use crate::python::layout::{Frames, LineTable, NONE};
use crate::python::objects::Heap;
use crate::python::opcodes;
use crate::target::memory::Addr;

/// `SETUP_FINALLY` of 3.8–3.10 (Include/opcode.h).
const SETUP_FINALLY: i32 = 122;
/// CO_MAXBLOCKS (Include/cpython/code.h).
const MAX_BLOCKS: i32 = 20;
const MAX_TABLE: usize = 1 << 20;

/// One `with` block that a frame is inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// `self` of the bound `__exit__` or `__aexit__`.
    pub manager: Addr,
    /// Byte offset of the handler. From 3.10 on it stands on the line of the `with` statement.
    pub handler: i64,
}

/// The blocks, innermost first.
pub fn of_frame(heap: &Heap, frame: &FrameScene) -> Vec<Exit> {
    of_raw(heap, frame.raw.addr, frame.raw.code, frame.offset)
}

/// The line of the `with` statement: its handler stands on it from 3.10 on, before that what sets up its block.
pub fn line(scene: &Scene, frame: &FrameScene, exit: &Exit) -> Option<u32> {
    if scene.heap.layout.line_table != LineTable::Lnotab {
        return frame.code.line(exit.handler);
    }
    let shape = scene.shapes.of(scene, frame.raw.code)?;
    let handler = opcodes::at(&shape.instructions, exit.handler)?;
    let with = shape.instructions.iter().find(|i| i.sets_up() && i.target == Some(handler))?;
    frame.code.line(with.offset)
}

/// Those of a suspended generator, and of what it awaits.
pub fn of_generator(heap: &Heap, generator: Addr) -> Vec<Exit> {
    let of = |raw: &RawFrame| {
        let start = raw.code.checked_add(heap.layout.code.bytecode)?;
        let offset = match heap.frames_are_objects() {
            true => raw.instruction,
            false => raw.instruction.wrapping_sub(start as i64),
        };
        Some(of_raw(heap, raw.addr, raw.code, offset))
    };
    coroutines::chain(heap, generator).frames.iter().filter_map(of).flatten().collect()
}

/// The same for a frame that is on no thread.
pub fn of_raw(heap: &Heap, frame: Addr, code: Addr, offset: i64) -> Vec<Exit> {
    let found = match heap.layout.frames {
        Frames::Objects { lasti_unit } => by_block_stack(heap, frame, lasti_unit),
        Frames::Interpreter { .. } => by_exception_table(heap, frame, code, offset),
    };
    found.unwrap_or_default()
}

/// Up to 3.10: each `with` has a block whose level is one above its exit function. The block is
/// pushed after `__enter__` has returned.
fn by_block_stack(heap: &Heap, frame: Addr, unit: i64) -> Option<Vec<Exit>> {
    let f = &heap.layout.frame;
    let count = heap.mem.i32(frame + f.block_count).ok()?;
    if !(0..=MAX_BLOCKS).contains(&count) {
        return None;
    }
    let stack = heap.ptr(frame + f.value_stack)?;
    let mut found = Vec::new();
    for i in (0..count as u64).rev() {
        let block = frame + f.block_stack + 12 * i;
        let word = |at| heap.mem.i32(block + at).ok();
        let (kind, handler, level) = (word(0)?, word(4)?, word(8)?);
        if kind == SETUP_FINALLY
            && let 1..=10_000 = level
            && let Some(exit) = heap.ptr(stack + 8 * (level as u64 - 1))
        {
            let handler = handler as i64 * unit;
            found.extend(bound_exit(heap, exit).map(|manager| Exit { manager, handler }));
        }
    }
    Some(found)
}

/// From 3.11 on: the handler that covers the current instruction knows how deep the stack is, and so
/// do the handlers that cover that handler. A handler that pushes the last instruction (`lasti`) and
/// whose top slot is an exit function belongs to a `with` that has been entered.
fn by_exception_table(heap: &Heap, frame: Addr, code: Addr, offset: i64) -> Option<Vec<Exit>> {
    let c = &heap.layout.code;
    let entries = entries(heap, code)?;
    let cover = |at: i64| entries.iter().find(|e| (e.start..e.end).contains(&at));
    let locals = heap.mem.i32(code + c.nlocalsplus).ok()?.max(0) as u64;
    let stack = frame + heap.layout.frame.locals + 8 * locals;
    let slot = |depth: u64| {
        let word = heap.mem.u64(stack + 8 * depth).ok()?;
        Some(heap.layout.untag(word)).filter(|p| *p != 0 && p % 8 == 0)
    };
    let mut found = Vec::new();
    let mut entry = cover(offset);
    // Later entries of the chain speak of the stack after unwinding: deeper ones are not there yet.
    let deepest = entry?.depth;
    let mut seen: Vec<i64> = Vec::new();
    while let Some(e) = entry.filter(|e| !seen.contains(&e.start)) {
        if e.lasti && e.depth <= deepest {
            let manager = if heap.layout.tagged() {
                // 3.14 on: the function in one slot, its `self` in the next; NULL if it is bound.
                e.depth.checked_sub(2).and_then(|below| {
                    let exit = slot(below)?;
                    match slot(below + 1) {
                        Some(manager) if is_exit_function(heap, exit) => Some(manager),
                        _ => bound_exit(heap, exit),
                    }
                })
            } else {
                e.depth.checked_sub(1).and_then(|top| bound_exit(heap, slot(top)?))
            };
            found.extend(manager.map(|manager| Exit { manager, handler: e.target }));
        }
        seen.push(e.start);
        entry = cover(e.target);
    }
    Some(found)
}

/// The exception table of a code object (3.11 on).
pub(super) fn entries(heap: &Heap, code: Addr) -> Option<Vec<Entry>> {
    let (table, _) = heap.bytes(heap.ptr(code + heap.layout.code.exceptiontable)?, MAX_TABLE)?;
    Some(parse(&table))
}

/// One handler: offsets in bytes.
pub(super) struct Entry {
    pub start: i64,
    pub end: i64,
    pub target: i64,
    depth: u64,
    lasti: bool,
}

/// Objects/exception_handling_notes.txt: start, length, target in code units, then depth and lasti;
/// six bits a byte, most significant first, bit 6 says that more follow, bit 7 begins an entry.
fn parse(table: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut at = 0;
    let mut number = || -> Option<i64> {
        let mut value = 0i64;
        loop {
            let byte = *table.get(at)?;
            at += 1;
            value = value.checked_shl(6)? | (byte & 63) as i64;
            if value > 1 << 40 {
                return None;
            }
            if byte & 64 == 0 {
                return Some(value);
            }
        }
    };
    while let (Some(start), Some(length), Some(target), Some(tail)) = (number(), number(), number(), number())
    {
        entries.push(Entry {
            start: start * 2,
            end: (start + length) * 2,
            target: target * 2,
            depth: (tail >> 1) as u64,
            lasti: tail & 1 == 1,
        });
    }
    entries
}

/// `self` of a bound method called `__exit__` or `__aexit__`, of Python or of C.
pub fn bound_exit(heap: &Heap, obj: Addr) -> Option<Addr> {
    let ty = heap.type_of(obj)?;
    let m = &heap.layout.method;
    match ty.name.as_str() {
        "method" => {
            let function = heap.ptr(obj + m.func)?;
            is_exit_function(heap, function).then(|| heap.ptr(obj + m.self_)).flatten()
        }
        _ if ty.is_c_function() => {
            // `m_ml` and `m_self` stand where a method has its function and its self.
            is_exit_name(&c_name(heap, heap.ptr(obj + m.func)?)?).then(|| heap.ptr(obj + m.self_)).flatten()
        }
        _ => None,
    }
}

/// The name of a method of C, and its `self`: `callable` as a frame has pushed it, and what it pushed next.
pub fn called(heap: &Heap, callable: Addr, next: Addr) -> Option<(String, Addr)> {
    let ty = heap.type_of(callable)?;
    match ty.name.as_str() {
        _ if ty.is_c_function() => {
            let m = &heap.layout.method;
            Some((c_name(heap, heap.ptr(callable + m.func)?)?, heap.ptr(callable + m.self_)?))
        }
        "method_descriptor" => {
            // The type that it is a method of is the first of `PyDescr_COMMON`.
            let of = heap.type_at(heap.ptr(callable + heap.layout.object.size)?)?;
            let name = c_name(heap, heap.ptr(callable + heap.layout.object.size + 24)?)?;
            heap.type_of(next).filter(|ty| heap.is_a(ty, &of.name)).map(|_| (name, next))
        }
        _ => None,
    }
}

/// A function or method descriptor of that name (3.14 on, where `self` is pushed separately).
fn is_exit_function(heap: &Heap, obj: Addr) -> bool {
    let name = || {
        let ty = heap.type_of(obj)?;
        match ty.name.as_str() {
            "function" => {
                let code = heap.ptr(obj + heap.layout.function.code)?;
                heap.checked_str(heap.ptr(code + heap.layout.code.name)?)
            }
            // `PyDescr_COMMON` (type, name, qualname), then the `PyMethodDef`.
            "method_descriptor" => c_name(heap, heap.ptr(obj + heap.layout.object.size + 24)?),
            _ => None,
        }
    };
    name().is_some_and(|n| is_exit_name(&n))
}

/// `ml_name`, the first field of a `PyMethodDef`.
pub(super) fn c_name(heap: &Heap, definition: Addr) -> Option<String> {
    let name = heap.mem.c_string(heap.mem.u64(definition).ok()?, 64).ok()?;
    String::from_utf8(name).ok()
}

fn is_exit_name(name: &str) -> bool {
    name == "__exit__" || name == "__aexit__"
}

/// The managers that an `ExitStack` or `AsyncExitStack` has entered.
pub fn of_stack(heap: &Heap, stack: Addr) -> Option<Vec<Addr>> {
    let callbacks = super::locks::deque(heap, heap.attrs(stack, ["_exit_callbacks"])[0]?, 64)?;
    // (is_sync, bound method)
    let manager = |pair: Addr| bound_exit(heap, *heap.tuple(pair, 4)?.get(1)?);
    Some(callbacks.into_iter().filter_map(manager).collect())
}

/// How far the value stack of a frame may reach, as slots: for searches that prove what they find.
pub fn stack_slots(heap: &Heap, frame: &FrameScene) -> Vec<Addr> {
    let words = stack_words(heap, frame).into_iter();
    words.map(|w| heap.layout.untag(w)).filter(|p| *p != 0 && p % 8 == 0).collect()
}

/// The same as it stands there.
pub fn stack_words(heap: &Heap, frame: &FrameScene) -> Vec<u64> {
    let c = &heap.layout.code;
    let size =
        heap.mem.i32(frame.raw.code + c.stacksize).ok().filter(|s| (0..=4096).contains(s)).unwrap_or(0);
    let start = match heap.layout.frames {
        Frames::Objects { .. } => heap.ptr(frame.raw.addr + heap.layout.frame.value_stack),
        Frames::Interpreter { .. } => {
            debug_assert_ne!(c.nlocalsplus, NONE);
            let locals = heap.mem.i32(frame.raw.code + c.nlocalsplus).ok().map(|n| n.max(0) as u64);
            locals.map(|n| frame.raw.addr + heap.layout.frame.locals + 8 * n)
        }
    };
    start.and_then(|at| heap.words(at, size as usize)).unwrap_or_default()
}
