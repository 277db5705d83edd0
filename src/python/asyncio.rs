//! `.AsyncioDebug`: from 3.14 on `_asyncio` says in a section of its own where a task keeps what
//! (`Py_AsyncioModuleDebugOffsets`, Modules/_asynciomodule.c). No dynamic symbol leads there: the section header of
//! the file does, of `_asyncio*.so` or of the interpreter that has it built in.
//!
//! As with the runtime's debug offsets nothing is believed unchecked; without it the const table stands.

use super::layout::Layout;
use super::locate::OpenImage;
use crate::elf::File;
use crate::target::maps::Mapping;
use crate::target::memory::{Addr, Memory};

const SECTION: &str = ".AsyncioDebug";
const WORDS: usize = 13;

/// Run-time address of the section; `image` is the interpreter's own.
pub fn locate(maps: &[Mapping], image: &str, open: OpenImage) -> Option<Addr> {
    let module = |m: &&Mapping| m.path.rsplit('/').next().is_some_and(|name| name.starts_with("_asyncio."));
    let first = |wanted: &dyn Fn(&&Mapping) -> bool| maps.iter().filter(|m| m.offset == 0).find(wanted);
    let mapping = first(&module).or_else(|| first(&|m| m.path == image))?;
    let bytes = open(mapping)?;
    let section = File::parse(&bytes)?.section(SECTION).filter(|s| s.size >= 8 * WORDS as u64)?;
    mapping.start.checked_add(section.offset)
}

/// Lays what stands there over the table. `None`, and nothing is changed, if it contradicts itself.
pub fn overlay(mem: &dyn Memory, at: Addr, layout: &mut Layout) -> Option<()> {
    let bytes = mem.bytes(at, 8 * WORDS).ok()?;
    let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("8 bytes"));
    let (task, interp, thread) = (word(0), word(7), word(9));
    let sane = |offsets: std::ops::Range<usize>, size: u64| offsets.into_iter().all(|i| word(i) < size);
    // The task object has less than 1 KiB, the interpreter state some hundred.
    if task > 1024 || interp > 16 << 20 || thread > 64 << 10 {
        return None;
    }
    if !sane(1..7, task) || !sane(8..9, interp) || !sane(10..13, thread) || word(10) < layout.tstate.size {
        return None;
    }
    let t = &mut layout.task;
    let (coro, awaited_by) = (word(5), word(2));
    // `task_num_cancels_requested` (and padding), `task_fut_waiter`, `task_coro` follow each other, `task_awaited_by,
    // task_state` too (FutureObj_HEAD).
    (t.cancels, t.fut_waiter) = (coro.checked_sub(16)?, coro.checked_sub(8)?);
    t.state = awaited_by + 8;
    (t.name, t.awaited_by, t.awaited_by_is_set, t.coro, t.node) =
        (word(1), awaited_by, word(4), coro, word(6));
    let a = &mut layout.asyncio;
    a.interp_tasks = word(8);
    let behind = |at: u64| at - layout.tstate.size.min(at);
    (a.running_loop, a.running_task, a.thread_tasks) = (behind(word(10)), behind(word(11)), behind(word(12)));
    Some(())
}
