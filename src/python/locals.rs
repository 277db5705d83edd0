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
        let value = match slot & 3 {
            // A tagged int of 3.15: no object behind it.
            3 if heap.layout.tagged() => ((slot as i64) >> 2).to_string(),
            _ => {
                let Some(obj) = variables.value(heap, i, slot) else { continue };
                let Some(name) = heap.checked_str(*name) else { continue };
                let value = reprs::of_variable(heap, &name, obj, limits);
                out.push(Local { name, value, argument: i < variables.arguments });
                continue;
            }
        };
        if let Some(name) = heap.checked_str(*name) {
            out.push(Local { name, value, argument: i < variables.arguments });
        }
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
    /// How many of the first slots are arguments.
    pub arguments: usize,
}

impl Variables {
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
    let kinds = match c.localspluskinds {
        NONE => {
            names.extend(tuple(c.cellvars)?);
            names.extend(tuple(c.freevars)?);
            Vec::new()
        }
        at => heap.bytes(heap.ptr(code + at)?, MAX_LOCALS)?.0,
    };
    names.truncate(MAX_LOCALS);
    Some(Variables { names, kinds, first_cell, arguments })
}
