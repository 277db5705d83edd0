//! Arguments and locals of a frame. Read inside the frozen window: they change with every step.

use super::frames::RawFrame;
use super::layout::NONE;
use super::objects::Heap;
use super::reprs::{self, Limits};
use crate::snapshot::Local;
use crate::target::memory::Addr;

/// More than any function that people look at.
const MAX_LOCALS: usize = 256;

// Bits of `co_flags` (Include/cpython/code.h).
const VARARGS: u32 = 4;
const VARKEYWORDS: u32 = 8;
// Bits of `co_localspluskinds` (Include/internal/pycore_code.h).
const HIDDEN: u8 = 0x10;
const CELL: u8 = 0x40;
const FREE: u8 = 0x80;

/// The variables of a frame that have a value, in the order of the code object. `None` if the code
/// object is not readable.
pub fn of_frame(heap: &Heap, frame: &RawFrame, limits: Limits) -> Option<Vec<Local>> {
    let variables = variables(heap, frame.code)?;
    let slots = heap.words(frame.addr + heap.layout.frame.locals, variables.names.len())?;
    let mut out = Vec::new();
    for (i, (name, slot)) in variables.names.iter().zip(slots).enumerate() {
        let Some(name) = heap.checked_str(*name) else { continue };
        let value = if slot & 3 == 3 && heap.layout.tagged() {
            // A tagged int of 3.15: no object behind it.
            ((slot as i64) >> 2).to_string()
        } else {
            let Some(obj) = variables.value(heap, i, slot) else { continue };
            reprs::of_variable(heap, &name, obj, limits)
        };
        out.push(Local { name, value, argument: variables.is_argument(i) });
    }
    Some(out)
}

/// The variable slots of a code object.
pub struct Variables {
    /// `str` objects.
    pub names: Vec<Addr>,
    /// By slot, from 3.11 on.
    kinds: Vec<u8>,
    /// The first slot that holds a cell, up to 3.10.
    first_cell: usize,
    /// By slot; slots behind its end are none.
    is_argument: Vec<bool>,
}

impl Variables {
    pub fn is_argument(&self, i: usize) -> bool {
        self.is_argument.get(i).copied().unwrap_or(false)
    }

    /// The object in a slot; cells are looked into. `None` if the variable has no value.
    pub fn value(&self, heap: &Heap, i: usize, slot: u64) -> Option<Addr> {
        let obj = heap.layout.untag(slot);
        if obj == 0 {
            return None;
        }
        let may_be_cell = match self.kinds.get(i) {
            Some(kind) if kind & HIDDEN != 0 => return None,
            Some(kind) => kind & (CELL | FREE) != 0,
            None => i >= self.first_cell,
        };
        // An argument that becomes a cell is still the plain object until the call has begun.
        if may_be_cell && heap.type_of(obj).is_some_and(|t| t.name == "cell") {
            return heap.cell(obj);
        }
        Some(obj)
    }
}

pub fn variables(heap: &Heap, code: Addr) -> Option<Variables> {
    let c = &heap.layout.code;
    let int = |at: u64| heap.mem.i32(code.checked_add(at)?).ok();
    let flags = int(c.flags)? as u32;
    let arguments = int(c.argcount)?.max(0) as usize
        + int(c.kwonlyargcount)?.max(0) as usize
        + (flags & VARARGS != 0) as usize
        + (flags & VARKEYWORDS != 0) as usize;
    let tuple = |at: u64| heap.tuple(heap.ptr(code + at)?, MAX_LOCALS);
    let mut names = tuple(c.localsplusnames)?;
    let first_cell = names.len();
    let mut is_argument: Vec<bool> = (0..names.len()).map(|i| i < arguments).collect();
    let kinds = match c.localspluskinds {
        NONE => {
            // An argument that a closure uses moves to a cell of the same name.
            for cell in tuple(c.cellvars)? {
                let name = heap.checked_str(cell);
                let argument =
                    names[..first_cell.min(arguments)].iter().any(|n| heap.checked_str(*n) == name);
                is_argument.push(argument);
                names.push(cell);
            }
            names.extend(tuple(c.freevars)?);
            Vec::new()
        }
        at => heap.bytes(heap.ptr(code + at)?, MAX_LOCALS)?.0,
    };
    names.truncate(MAX_LOCALS);
    Some(Variables { names, kinds, first_cell, is_argument })
}
