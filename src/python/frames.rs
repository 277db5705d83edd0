//! Chains of frames, as raw words: what must be read while the thread stands still.

use super::layout::{Frames, NONE};
use super::objects::{Heap, USER_SPACE};
use super::threads::RawThread;
use serde::{Deserialize, Serialize};

use crate::target::memory::Addr;

/// `sys.setrecursionlimit` can be raised, but a chain of a million frames is a loop.
const MAX_FRAMES: usize = 1_000_000;
/// What stands in front of a frame's locals is shorter; its fields begin below this.
pub const MAX_HEAD: u64 = 128;
/// `FRAME_OWNED_BY_CSTACK` (3.12, 3.13) and what came after it: frames that hold no Python code.
const OWNER_SHIM: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawFrame {
    pub addr: Addr,
    /// Code object (untagged).
    pub code: Addr,
    pub globals: Addr,
    /// `f_lasti` in bytes (objects) or the instruction pointer (interpreter frames).
    pub instruction: i64,
    /// Which copy of the bytecode runs (free-threaded 3.14 on).
    pub tlbc_index: u32,
    /// Who owns the frame (Include/internal/pycore_interpframe_structs.h); 0 where frames are objects.
    pub owner: u8,
}

/// The innermost frame of a thread state, or `None` if it runs no Python code.
pub fn current(heap: &Heap, tstate: Addr) -> Option<Addr> {
    let t = &heap.layout.tstate;
    match heap.layout.frames {
        Frames::Interpreter { through_cframe: true, .. } => {
            heap.ptr(heap.ptr(tstate + t.frame)?.checked_add(t.cframe_current_frame)?)
        }
        _ => heap.ptr(tstate + t.frame),
    }
}

/// Fills in the frames of a thread. What breaks off is kept as far as it goes, with the reason.
pub fn walk(heap: &Heap, thread: &mut RawThread) {
    let mut at = current(heap, thread.tstate);
    // Whether a loop was met is asked at powers of two only (Brent): cheap, and it ends.
    // Frames that are left out count, too: a loop may be made of nothing else.
    let (mut mark, mut next_mark, mut steps) = (0, 8, 0);
    while let Some(addr) = at {
        if addr == mark || steps >= MAX_FRAMES {
            thread.problems.push("the chain of frames does not end".into());
            return;
        }
        let Some((frame, previous)) = read(heap, addr) else {
            thread.problems.push(format!("the chain of frames breaks off at {addr:#x}"));
            return;
        };
        if frame.owner < OWNER_SHIM {
            thread.frames.push(frame);
        }
        steps += 1;
        if steps == next_mark {
            (mark, next_mark) = (addr, next_mark * 2);
        }
        at = match previous {
            0 => None,
            p if p % 8 != 0 => {
                thread.problems.push(format!("the chain of frames breaks off at {p:#x}"));
                return;
            }
            p => Some(p),
        };
    }
    thread.complete = true;
}

/// A thread of which nothing is known yet but where its state stands.
pub fn of(tstate: Addr) -> RawThread {
    RawThread {
        tstate,
        ident: 0,
        native_tid: None,
        frames: Vec::new(),
        complete: false,
        problems: Vec::new(),
    }
}

/// One frame, wherever it belongs to: of a suspended coroutine, too.
pub fn at(heap: &Heap, addr: Addr) -> Option<RawFrame> {
    read(heap, addr).map(|(frame, _)| frame)
}

fn read(heap: &Heap, addr: Addr) -> Option<(RawFrame, Addr)> {
    if addr >= USER_SPACE {
        return None;
    }
    let f = &heap.layout.frame;
    // One copy of the head: its fields are of one moment then.
    let mut head = [0u8; MAX_HEAD as usize + 8];
    let len = f.locals.min(MAX_HEAD) as usize;
    heap.mem.read_into(addr, &mut head[..len]).ok()?;
    let word = |at: u64| -> u64 {
        let at = at as usize;
        u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"))
    };
    let half = |at: u64| -> u32 {
        let at = at as usize;
        u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"))
    };
    let instruction = match heap.layout.frames {
        Frames::Objects { lasti_unit } => half(f.lasti) as i32 as i64 * lasti_unit,
        Frames::Interpreter { .. } => word(f.lasti) as i64,
    };
    let frame = RawFrame {
        addr,
        // What cannot be one is none, so that offsets can be added to it.
        code: Some(heap.layout.untag(word(f.code))).filter(|c| *c < USER_SPACE).unwrap_or(0),
        globals: word(f.globals),
        instruction,
        tlbc_index: if f.tlbc_index == NONE { 0 } else { half(f.tlbc_index) },
        owner: if f.owner == NONE { 0 } else { head[f.owner as usize] },
    };
    Some((frame, word(f.previous)))
}
