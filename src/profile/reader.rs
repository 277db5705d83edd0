//! The fast walk: the frames of one thread as raw words, out of pages that came in one call.
//!
//! The same facts as python/frames.rs; nothing is resolved here, for the window is open.

use crate::python::frames::MAX_HEAD;
use crate::python::layout::{Frames, Layout, NONE};
use crate::python::objects::USER_SPACE;
use crate::target::memory::Addr;
use crate::target::pages::Pages;

/// Chains beyond this are cut; a real one ends or faults before.
const MAX_FRAMES: usize = 200_000;
/// `FRAME_OWNED_BY_CSTACK` and what came after: frames that hold no Python code.
const OWNER_SHIM: u8 = 3;

/// All that tells one place in the code from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawFrame {
    pub code: Addr,
    pub instruction: i64,
    pub owner: u8,
    pub tlbc_index: u32,
}

/// Where a thread state names its innermost frame.
pub fn current_at(pages: &mut Pages, layout: &Layout, tstate: Addr) -> Option<Addr> {
    let t = &layout.tstate;
    let at = tstate + t.frame;
    match layout.frames {
        Frames::Interpreter { through_cframe: true, .. } => {
            pointer(pages.u64(at)?)?.checked_add(t.cframe_current_frame)
        }
        _ => Some(at),
    }
}

/// The innermost frame of a thread state; 0 if it runs no Python code.
fn current(pages: &mut Pages, layout: &Layout, tstate: Addr) -> Option<Addr> {
    match pages.u64(tstate + layout.tstate.frame)? {
        0 => Some(0),
        _ => {
            let at = current_at(pages, layout, tstate)?;
            pages.u64(at)
        }
    }
}

fn pointer(word: u64) -> Option<Addr> {
    (word.is_multiple_of(8) && word < USER_SPACE && word != 0).then_some(word)
}

/// Appends the frames of a thread, innermost first. `None` if the chain breaks off: then the thread ran.
pub fn walk(pages: &mut Pages, layout: &Layout, tstate: Addr, out: &mut Vec<RawFrame>) -> Option<()> {
    let innermost = current(pages, layout, tstate)?;
    walk_from(pages, layout, innermost, out)
}

/// The same, from this frame on.
pub fn walk_from(pages: &mut Pages, layout: &Layout, innermost: Addr, out: &mut Vec<RawFrame>) -> Option<()> {
    let f = &layout.frame;
    // Only what is looked at: a frame object of 3.8 has 360 bytes in front of its locals.
    let fields = [f.previous + 8, f.code + 8, f.lasti + 8];
    let optional = [f.owner, f.tlbc_index].map(|o| if o == NONE { 0 } else { o + 4 });
    let length = fields.into_iter().chain(optional).max()?.min(MAX_HEAD + 8) as usize;
    let word = |head: &[u8], at: u64| {
        u64::from_le_bytes(head[at as usize..at as usize + 8].try_into().expect("8 bytes"))
    };
    let half = |head: &[u8], at: u64| {
        u32::from_le_bytes(head[at as usize..at as usize + 4].try_into().expect("4 bytes"))
    };
    let mut at = innermost;
    // Brent: whether a loop was met is asked at powers of two only.
    let (mut mark, mut next_mark) = (0, 8);
    for step in 1..=MAX_FRAMES {
        if at == 0 {
            return Some(());
        }
        if at == mark {
            return None;
        }
        let head = pages.at(pointer(at)?, length)?;
        let instruction = match layout.frames {
            Frames::Objects { lasti_unit } => half(head, f.lasti) as i32 as i64 * lasti_unit,
            Frames::Interpreter { .. } => word(head, f.lasti) as i64,
        };
        let frame = RawFrame {
            code: layout.untag(word(head, f.code)),
            instruction,
            owner: if f.owner == NONE { 0 } else { head[f.owner as usize] },
            tlbc_index: if f.tlbc_index == NONE { 0 } else { half(head, f.tlbc_index) },
        };
        if step == next_mark {
            (mark, next_mark) = (at, next_mark * 2);
        }
        at = word(head, f.previous);
        if frame.owner < OWNER_SHIM {
            out.push(frame);
        }
    }
    None
}

/// The GIL's words, see python/threads.rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gil {
    pub addr: Addr,
    pub holder: Addr,
    pub locked: bool,
}

/// `None` where none is in use, or it cannot be read.
pub fn gil(pages: &mut Pages, layout: &Layout, runtime: Addr, interp: Addr) -> Option<Gil> {
    let g = &layout.gil;
    let addr = match layout.interp.gil {
        NONE => runtime + layout.runtime.gil,
        offset => pointer(pages.u64(interp + offset)?)?,
    };
    if g.enabled != NONE && pages.u32(addr + g.enabled)? == 0 {
        return None;
    }
    Some(Gil {
        addr,
        holder: pages.u64(addr + g.last_holder)?,
        // −1 before the first use.
        locked: pages.u32(addr + g.locked)? as i32 > 0,
    })
}

/// Whether the garbage collector runs in this interpreter.
pub fn collecting(pages: &mut Pages, layout: &Layout, runtime: Addr, interp: Addr) -> bool {
    let at = match layout.interp.gc_collecting {
        NONE => runtime + layout.runtime.gc_collecting,
        offset => interp + offset,
    };
    pages.u32(at).is_some_and(|word| word != 0)
}
