//! `_Py_DebugOffsets`: from 3.13 on the runtime begins with a table of its own offsets
//! (Include/internal/pycore_debug_offsets.h; pycore_runtime.h in 3.13).
//!
//! What it says is laid over the const table of the minor version, so that a patch release that
//! moved a field is read right. What it does not cover comes from the table. Nothing is believed
//! unchecked: cookie, version, and every offset against the size of its structure.

use super::layout::Layout;
use super::tables;
use crate::target::memory::{Addr, Fault, Memory};

pub const COOKIE: &[u8; 8] = b"xdebugpy";

/// The header was there but cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffsetsError {
    #[error("{0}")]
    Unreadable(#[from] Fault),
    #[error("the runtime does not begin with the debug cookie")]
    NoCookie,
    #[error("the debug offsets are of Python {0}.{1}, which this hangscope does not know")]
    UnknownVersion(u32, u32),
    #[error("the debug offsets contradict themselves: {name} = {offset} in a structure of {size} bytes")]
    OutOfStructure { name: &'static str, offset: u64, size: u64 },
}

/// Decodes the table at the start of `_PyRuntime`; the second value is `sys.hexversion`.
pub fn decode(mem: &dyn Memory, runtime: Addr) -> Result<(Layout, u32), OffsetsError> {
    let mut cookie = [0; 8];
    mem.read_into(runtime, &mut cookie)?;
    if &cookie != COOKIE {
        return Err(OffsetsError::NoCookie);
    }
    let version = mem.u64(runtime + 8)?;
    let free_threaded = mem.u64(runtime + 16)? != 0;
    let (major, minor) = ((version >> 24) as u32, (version >> 16) as u32 & 0xff);
    let base = match (major, tables::table(minor, free_threaded)) {
        (3, Some(base)) if minor >= 13 => base,
        _ => return Err(OffsetsError::UnknownVersion(major, minor)),
    };
    let mut words = Words { mem, at: runtime + 24, group_size: 0, wrong: None };
    let layout = overlay(base, &mut words)?;
    match words.wrong {
        None => Ok((layout, version as u32)),
        Some(wrong) => Err(wrong),
    }
}

/// The words of the table in their order.
struct Words<'a> {
    mem: &'a dyn Memory,
    at: Addr,
    group_size: u64,
    wrong: Option<OffsetsError>,
}

impl Words<'_> {
    fn next(&mut self) -> Result<u64, Fault> {
        let word = self.mem.u64(self.at)?;
        self.at += 8;
        Ok(word)
    }

    /// Begins a group; its first word is the size of the structure.
    fn size(&mut self, name: &'static str) -> Result<u64, Fault> {
        self.group_size = self.next()?;
        // The largest is the interpreter state with some hundred KiB.
        if self.group_size == 0 || self.group_size > 16 << 20 {
            self.fail(name, 0);
        }
        Ok(self.group_size)
    }

    /// An offset within the structure of the current group.
    fn field(&mut self, name: &'static str) -> Result<u64, Fault> {
        let offset = self.next()?;
        if offset >= self.group_size {
            self.fail(name, offset);
            return Ok(0);
        }
        Ok(offset)
    }

    fn skip(&mut self, n: u64) {
        self.at += 8 * n;
    }

    fn fail(&mut self, name: &'static str, offset: u64) {
        let size = self.group_size;
        self.wrong.get_or_insert(OffsetsError::OutOfStructure { name, offset, size });
    }
}

/// Reads the table in the order of the header. Where a minor version added words, the layout's own
/// minor says so: this is the one place where a version is asked for.
fn overlay(mut l: Layout, w: &mut Words) -> Result<Layout, Fault> {
    let (v14, v15) = (l.minor >= 14, l.minor >= 15);

    w.size("runtime_state")?;
    w.skip(1); // finalizing
    l.runtime.interpreters_head = w.field("interpreters_head")?;

    w.size("interpreter_state")?;
    l.interp.id = w.field("id")?;
    l.interp.next = w.field("next")?;
    l.interp.threads_head = w.field("threads_head")?;
    if v14 {
        w.skip(1); // threads_main
    }
    let gc = w.field("gc")?;
    l.interp.modules = w.field("imports_modules")?;
    l.interp.sysdict = w.field("sysdict")?;
    w.skip(1); // builtins
    l.interp.gil = w.field("ceval_gil")?;
    w.skip(4); // gil_runtime_state, …_enabled, …_locked, …_holder: those of the interpreter's own GIL
    if v14 {
        w.skip(2); // code_object_generation, tlbc_generation
    }

    l.tstate.size = w.size("thread_state")?;
    w.skip(1); // prev
    l.tstate.next = w.field("next")?;
    l.tstate.interp = w.field("interp")?;
    l.tstate.frame = w.field("current_frame")?;
    if v15 {
        w.skip(3); // base_frame, last_profiled_frame, last_profiled_frame_seq
    }
    l.tstate.thread_id = w.field("thread_id")?;
    l.tstate.native_thread_id = w.field("native_thread_id")?;
    l.tstate.datastack_chunk = w.field("datastack_chunk")?;
    // Include/cpython/pystate.h: `datastack_chunk, datastack_top, datastack_limit` follow each other.
    l.tstate.datastack_top = l.tstate.datastack_chunk + 8;
    w.skip(1); // status
    if v15 {
        w.skip(4); // holds_gil, gil_requested, current_exception, exc_state
        w.skip(1); // err_stackitem.exc_value
    }

    w.size("interpreter_frame")?;
    l.frame.previous = w.field("previous")?;
    l.frame.code = w.field("executable")?;
    l.frame.lasti = w.field("instr_ptr")?;
    // `localsplus` is the flexible tail: it may stand at the very end of the structure.
    l.frame.locals = w.next()?;
    if l.frame.locals > w.group_size {
        w.fail("localsplus", l.frame.locals);
    }
    l.frame.owner = w.field("owner")?;
    if v14 {
        l.frame.stack_pointer = w.field("stackpointer")?;
        let tlbc_index = w.field("tlbc_index")?;
        if l.free_threaded {
            l.frame.tlbc_index = tlbc_index;
        }
    }

    l.code.size = w.size("code_object")?;
    l.code.filename = w.field("filename")?;
    l.code.name = w.field("name")?;
    l.code.qualname = w.field("qualname")?;
    l.code.linetable = w.field("linetable")?;
    l.code.firstlineno = w.field("firstlineno")?;
    l.code.argcount = w.field("argcount")?;
    l.code.localsplusnames = w.field("localsplusnames")?;
    l.code.localspluskinds = w.field("localspluskinds")?;
    l.code.bytecode = w.field("co_code_adaptive")?;
    if v14 {
        let tlbc = w.field("co_tlbc")?;
        if l.free_threaded {
            l.code.tlbc = tlbc;
        }
    }

    l.object.size = w.size("pyobject")?;
    l.object.ob_type = w.field("ob_type")?;

    w.size("type_object")?;
    l.types.name = w.field("tp_name")?;
    w.skip(1); // tp_repr
    l.types.flags = w.field("tp_flags")?;
    if v15 {
        l.types.basicsize = w.field("tp_basicsize")?;
        l.types.dictoffset = w.field("tp_dictoffset")?;
        w.size("heap_type_object")?;
        l.types.cached_keys = w.field("ht_cached_keys")?;
        // Include/cpython/object.h: `ht_name, ht_slots, ht_qualname, ht_cached_keys` follow each other.
        l.types.qualname = l.types.cached_keys - 8;
    }

    w.size("tuple_object")?;
    l.tuple.items = w.next()?;
    l.object.ob_size = w.field("ob_size")?;
    w.size("list_object")?;
    l.list.items = w.field("ob_item")?;
    w.skip(1); // ob_size
    if v14 {
        w.size("set_object")?;
        l.set.used = w.field("used")?;
        l.set.table = w.field("table")?;
        l.set.mask = w.field("mask")?;
    }
    w.size("dict_object")?;
    l.dict.keys = w.field("ma_keys")?;
    l.dict.values = w.field("ma_values")?;
    w.size("float_object")?;
    l.float.value = w.field("ob_fval")?;
    w.size("long_object")?;
    l.int.tag = w.field("lv_tag")?;
    l.int.digits = w.field("ob_digit")?;
    w.size("bytes_object")?;
    w.skip(1); // ob_size
    l.bytes.data = w.field("ob_sval")?;
    w.size("unicode_object")?;
    l.unicode.state = w.field("state")?;
    l.unicode.length = w.field("length")?;
    l.unicode.ascii_data = w.field("asciiobject_size")?;
    if v15 {
        l.unicode.compact_data = w.field("compactunicodeobject_size")?;
    }
    w.size("gc")?;
    l.interp.gc_collecting = gc + w.field("collecting")?;
    if v15 {
        w.skip(3); // frame, generation_stats_size, generation_stats
    }
    if v14 {
        w.size("gen_object")?;
        w.skip(1); // gi_name
        l.generator.frame = w.field("gi_iframe")?;
        l.generator.state = w.field("gi_frame_state")?;
    }
    Ok(l)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::image::Image;

    fn header(version: u64, words: &[u64]) -> Image {
        let mut bytes = COOKIE.to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        bytes.resize(2048, 0xff);
        let mut image = Image::default();
        image.add(0x1000, bytes);
        image
    }

    #[test]
    fn an_unknown_version_and_garbage_are_refused() {
        let next = header(0x0310_00f0, &[0]);
        assert_eq!(decode(&next, 0x1000), Err(OffsetsError::UnknownVersion(3, 16)));
        let garbage = header(0x030e_0af0, &[0, 800, 1, u64::MAX]);
        assert!(matches!(decode(&garbage, 0x1000), Err(OffsetsError::OutOfStructure { .. })));
        let mut other = Image::default();
        other.add(0x1000, vec![0; 64]);
        assert_eq!(decode(&other, 0x1000), Err(OffsetsError::NoCookie));
    }
}
