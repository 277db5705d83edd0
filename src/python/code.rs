//! Code objects: names, files, line tables. They do not change while they live, so they are read
//! after the frozen window, each once, all of a look in a few system calls.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::frames::RawFrame;
use super::layout::{Frames, LineTable, NONE};
use super::lines;
use super::objects::Heap;
use crate::target::memory::Addr;
use crate::text::Text;

/// A line table of this size belongs to a function of a million lines.
const MAX_LINE_TABLE: usize = 8 << 20;
/// And this is what it compiles to, at most.
const MAX_BYTECODE: i64 = 1 << 28;
/// No function has more names than this that we would show.
pub const MAX_NAMES: usize = 4096;

#[derive(Debug)]
pub struct Code {
    pub addr: Addr,
    pub name: Text,
    pub qualname: Option<Text>,
    pub file: Option<Text>,
    pub first_line: i32,
    line_format: LineTable,
    line_table: Vec<u8>,
    /// Address of the first instruction, where instructions are pointed to.
    first_instruction: Addr,
    /// Array of copies of the bytecode, by thread (free-threaded 3.14 on).
    copies: Addr,
    /// First instruction that counts as "the function has begun", bytes.
    first_traceable: i64,
    /// Of the bytecode.
    length: i64,
}

impl Code {
    /// Byte offset of the instruction a frame stands on; below 0 if none has run yet.
    pub fn offset(&self, heap: &Heap, frame: &RawFrame) -> i64 {
        match heap.layout.frames {
            Frames::Objects { .. } => frame.instruction,
            Frames::Interpreter { .. } => {
                let start = self.bytecode(heap, frame.tlbc_index).unwrap_or(self.first_instruction);
                frame.instruction.wrapping_sub(start as i64)
            }
        }
    }

    /// Where the copy that a thread runs begins; index 0 is the code object's own.
    fn bytecode(&self, heap: &Heap, index: u32) -> Option<Addr> {
        if self.copies == 0 || index == 0 {
            return Some(self.first_instruction);
        }
        // `_PyCodeArray { Py_ssize_t size; char *entries[]; }` (Include/cpython/code.h)
        let size = heap.mem.u64(self.copies).ok()?;
        if index as u64 >= size {
            return None;
        }
        heap.mem.u64(self.copies + 8 + 8 * index as u64).ok().filter(|p| *p != 0)
    }

    /// Whether an instruction may stand there, or right before the first one.
    pub fn has(&self, offset: i64) -> bool {
        (-2..self.length).contains(&offset)
    }

    pub fn line(&self, offset: i64) -> Option<u32> {
        lines::line_at(self.line_format, &self.line_table, self.first_line, offset)
    }

    /// `_PyFrame_IsIncomplete`: the frame was pushed, but the call has not begun. Such a frame is
    /// not on the stack as Python sees it. Frames of generators (owner 1) are never incomplete.
    pub fn is_incomplete(&self, frame: &RawFrame, offset: i64) -> bool {
        frame.owner != 1 && offset < self.first_traceable
    }
}

/// Code objects by address.
#[derive(Debug, Default)]
pub struct Codes {
    known: FxHashMap<Addr, Option<Rc<Code>>>,
    /// Address of the type object `code`, once one was seen.
    code_type: Addr,
}

impl Codes {
    pub fn get(&self, addr: Addr) -> Option<&Rc<Code>> {
        self.known.get(&addr)?.as_ref()
    }

    /// Reads all that are not known yet, level by level: objects, then what they point to.
    pub fn load(&mut self, heap: &Heap, addrs: impl Iterator<Item = Addr>) {
        let mut new: Vec<Addr> = addrs.filter(|a| !self.known.contains_key(a)).collect();
        new.sort_unstable();
        new.dedup();
        let c = &heap.layout.code;
        heap.mem.prefetch(&new.iter().map(|a| (*a, c.size as usize)).collect::<Vec<_>>());
        let parts: Vec<(Addr, usize)> = new
            .iter()
            .flat_map(|a| {
                [(c.filename, 160), (c.name, 96), (c.qualname, 128), (c.linetable, 640)].map(|p| (*a, p))
            })
            .filter(|(_, (offset, _))| *offset != NONE)
            .filter_map(|(a, (offset, len))| Some((heap.ptr(a.checked_add(offset)?)?, len)))
            .collect();
        heap.mem.prefetch(&parts);
        for addr in new {
            let code = self.read(heap, addr).map(Rc::new);
            self.known.insert(addr, code);
        }
    }

    fn read(&mut self, heap: &Heap, addr: Addr) -> Option<Code> {
        let (mem, c) = (heap.mem, &heap.layout.code);
        let ty = heap.ptr(addr.checked_add(heap.layout.object.ob_type)?)?;
        if ty != self.code_type {
            // From 3.13 on a frame may execute something else than code (None in a shim).
            if heap.type_at(ty)?.name != "code" {
                return None;
            }
            self.code_type = ty;
        }
        let text = |offset: u64| heap.checked_str(heap.ptr(addr + offset)?).map(Text::from);
        let table = heap.ptr(addr + c.linetable)?;
        let (line_table, _) = heap.bytes(table, MAX_LINE_TABLE)?;
        let first_traceable = match c.firsttraceable {
            NONE => i64::MIN,
            offset => mem.i32(addr + offset).ok()? as i64 * 2,
        };
        let (units, unit) = match heap.layout.frames {
            Frames::Objects { .. } => (heap.ptr(addr + c.bytecode), 1),
            Frames::Interpreter { .. } => (Some(addr), 2),
        };
        // Captures of old do not have it.
        let count = units.and_then(|units| mem.i64(units + heap.layout.object.ob_size).ok());
        let count = count.unwrap_or(MAX_BYTECODE);
        Some(Code {
            addr,
            name: text(c.name)?,
            qualname: if c.qualname == NONE { None } else { text(c.qualname) },
            file: heap.checked_str(heap.ptr(addr + c.filename)?).map(|f| heap.whole_path(f).into()),
            first_line: mem.i32(addr + c.firstlineno).ok()?,
            line_format: heap.layout.line_table,
            line_table,
            first_instruction: addr + c.bytecode,
            copies: if c.tlbc == NONE { 0 } else { mem.u64(addr + c.tlbc).unwrap_or(0) },
            first_traceable,
            length: count.clamp(0, MAX_BYTECODE) * unit,
        })
    }
}
