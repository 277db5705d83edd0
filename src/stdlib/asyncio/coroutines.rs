//! Coroutines, generators and asynchronous generators: their frames, and what each awaits.

use crate::python::frames::{self, RawFrame};
use crate::python::layout::{Frames, NONE};
use crate::python::objects::Heap;
use crate::target::memory::Addr;

/// A chain of awaits of this length is a loop, or past anybody's recursion limit.
const MAX_CHAIN: usize = 10_000;
/// No function has a value stack of so many bytes.
const MAX_STACK: u64 = 32 << 10;
/// `YIELD_FROM` of 3.8–3.10 (Include/opcode.h), which also does `await`.
const YIELD_FROM: u8 = 72;

/// From a task's coroutine down to what it waits for.
#[derive(Debug, Default)]
pub struct Chain {
    /// Innermost first.
    pub frames: Vec<RawFrame>,
    /// What the innermost one awaits: a future, a custom iterator; `None` for a bare `yield`.
    pub awaited: Option<Addr>,
    /// The innermost frame of the chain runs on some thread; what it calls stands there.
    pub executing: bool,
}

/// Where a generator stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Created,
    Suspended,
    Executing,
}

/// Follows a coroutine to its innermost frame.
pub fn chain(heap: &Heap, coroutine: Addr) -> Chain {
    let mut chain = Chain::default();
    let mut at = Some(coroutine);
    let mut seen: Vec<Addr> = Vec::new();
    while let Some(obj) = at {
        // Brent's mark would do; chains are short.
        if chain.frames.len() >= MAX_CHAIN || seen.contains(&obj) {
            break;
        }
        seen.push(obj);
        chain.awaited = Some(obj);
        let Some(ty) = heap.type_of(obj) else { break };
        at = match ty.name.as_str() {
            "coroutine" | "generator" | "async_generator" => {
                let Some((frame, stands)) = frame(heap, obj) else { break };
                chain.frames.push(frame);
                chain.awaited = None;
                match stands {
                    Stands::Suspended => awaited(heap, obj, &frame),
                    Stands::Created => None,
                    Stands::Executing => {
                        chain.executing = true;
                        None
                    }
                }
            }
            // The first field behind the header: `cw_coroutine`, `ags_gen`, `agt_gen`.
            "coroutine_wrapper" | "async_generator_asend" | "async_generator_athrow" => {
                heap.ptr(obj + heap.layout.object.size)
            }
            // `future` of a `futureiterobject`.
            "_asyncio.FutureIter" => {
                chain.awaited = heap.ptr(obj + heap.layout.object.size);
                None
            }
            // `async for` and `anext()` with a default await through this one (Objects/iterobject.c).
            "anext_awaitable" => heap.ptr(obj + heap.layout.object.size),
            _ => None,
        };
    }
    chain.frames.reverse();
    chain
}

/// The frame of one that has not ended, and whether it runs just now.
pub fn running(heap: &Heap, obj: Addr) -> Option<(RawFrame, bool)> {
    frame(heap, obj).map(|(frame, stands)| (frame, stands == Stands::Executing))
}

/// The frame of one that has not ended, and where it stands.
fn frame(heap: &Heap, obj: Addr) -> Option<(RawFrame, Stands)> {
    let (g, states) = (&heap.layout.generator, &heap.layout.gen_states);
    let frame = match heap.layout.frames {
        Frames::Objects { .. } => heap.ptr(obj + g.frame)?,
        Frames::Interpreter { .. } => obj + g.frame,
    };
    let byte = |at: Addr| heap.mem.u8(at).ok().map(|b| b as i8);
    let state = if g.state != NONE {
        byte(obj + g.state)?
    } else if heap.layout.frame.state != NONE {
        byte(frame + heap.layout.frame.state)?
    } else {
        let raw = frames::at(heap, frame)?;
        let stands = match (byte(obj + g.running)?, raw.instruction) {
            (1.., _) => Stands::Executing,
            (_, ..0) => Stands::Created,
            _ => Stands::Suspended,
        };
        return Some((raw, stands));
    };
    let stands = match state {
        s if s == states.created => Stands::Created,
        s if s == states.executing => Stands::Executing,
        s if s == states.suspended || states.awaiting.is_some_and(|a| a.contains(&s)) => Stands::Suspended,
        _ => return None,
    };
    Some((frames::at(heap, frame)?, stands))
}

/// The object that a suspended one delegates to; `None` if it is a plain `yield`.
fn awaited(heap: &Heap, obj: Addr, frame: &RawFrame) -> Option<Addr> {
    let l = heap.layout;
    match l.frames {
        Frames::Objects { .. } => {
            // The next instruction, in `co_code`, a bytes object.
            let code = heap.ptr(frame.code.checked_add(l.code.bytecode)?)?;
            let next = u64::try_from(frame.instruction.checked_add(2)?).ok()?;
            if heap.mem.u8(code + l.bytes.data + next).ok()? != YIELD_FROM {
                return None;
            }
            heap.ptr(top(heap, frame)?.checked_sub(8)?)
        }
        Frames::Interpreter { .. } => {
            match l.gen_states.awaiting {
                Some(states) => {
                    let state = heap.mem.u8(obj + l.generator.state).ok()? as i8;
                    states.contains(&state).then_some(())?;
                }
                // A RESUME follows each YIELD_VALUE; its argument is 2 after `yield from`, 3 after `await`
                // (with bit 2 for "in an except"). Its opcode may be a specialised or instrumented one.
                None => {
                    let resume = heap.mem.u8((frame.instruction as u64).checked_add(3)?).ok()?;
                    (resume & 3 >= 2).then_some(())?;
                }
            }
            let word = heap.mem.u64(top(heap, frame)?.checked_sub(8 * l.gen_states.awaited_slot)?).ok()?;
            Some(l.untag(word)).filter(|p| *p != 0 && p % 8 == 0)
        }
    }
}

/// Where the value stack of a suspended frame ends.
fn top(heap: &Heap, frame: &RawFrame) -> Option<Addr> {
    let f = &heap.layout.frame;
    let is_pointer = match heap.layout.frames {
        Frames::Objects { .. } => f.state == NONE,
        Frames::Interpreter { tagged, .. } => tagged,
    };
    if is_pointer {
        return heap.ptr(frame.addr + f.stack_pointer);
    }
    let depth = heap.mem.i32(frame.addr + f.stack_pointer).ok().filter(|d| *d > 0)?;
    let base = match heap.layout.frames {
        Frames::Objects { .. } => heap.ptr(frame.addr + f.value_stack)?,
        Frames::Interpreter { .. } => frame.addr + f.locals,
    };
    Some(base + 8 * depth as u64)
}

/// The objects on the value stack of a suspended frame.
pub fn stack(heap: &Heap, frame: &RawFrame) -> Option<Vec<Addr>> {
    let start = match heap.layout.frames {
        Frames::Objects { .. } => heap.ptr(frame.addr + heap.layout.frame.value_stack)?,
        Frames::Interpreter { .. } => {
            let locals = heap.mem.i32(frame.code + heap.layout.code.nlocalsplus).ok()?;
            frame.addr + heap.layout.frame.locals + 8 * u64::try_from(locals).ok()?
        }
    };
    let bytes = top(heap, frame)?.checked_sub(start).filter(|bytes| *bytes <= MAX_STACK)?;
    let words = heap.words(start, bytes as usize / 8)?.into_iter();
    Some(words.map(|w| heap.layout.untag(w)).filter(|p| *p != 0 && p % 8 == 0).collect())
}

/// `__qualname__` of a coroutine or generator.
pub fn qualname(heap: &Heap, obj: Addr) -> Option<String> {
    let ty = heap.type_of(obj)?;
    if !matches!(ty.name.as_str(), "coroutine" | "generator" | "async_generator") {
        // A custom awaitable, as Cython's coroutines are: its type is all there is.
        return Some(heap.type_name(&ty));
    }
    heap.checked_str(heap.ptr(obj + heap.layout.generator.qualname)?)
}
