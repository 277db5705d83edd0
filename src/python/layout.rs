//! Where things stand in the memory of one CPython build: offsets, and the few ways in which builds
//! behave differently. One value, no generics over versions: code asks the layout, never the version.
//!
//! All offsets are bytes from the start of the structure. [`NONE`] stands for a field that this build
//! does not have; whoever needs such a field asks for the behaviour that implies it first.

use serde::Serialize;

/// A field that does not exist in this build.
pub const NONE: u64 = u64::MAX;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layout {
    pub minor: u32,
    pub free_threaded: bool,
    pub frames: Frames,
    pub line_table: LineTable,
    pub instance_dict: InstanceDict,
    pub int_form: IntForm,
    pub str_state: StrState,
    pub gen_states: GenStates,
    pub runtime: Runtime,
    pub interp: Interp,
    pub gil: GilStruct,
    pub tstate: ThreadState,
    pub frame: Frame,
    pub code: Code,
    pub object: Object,
    pub types: Type,
    pub unicode: Unicode,
    pub bytes: Bytes,
    pub int: Int,
    pub float: Float,
    pub tuple: Items,
    pub list: Items,
    pub set: Set,
    pub dict: Dict,
    pub dict_keys: DictKeys,
    pub dict_values: DictValues,
    pub function: Function,
    pub cell: Cell,
    pub method: Method,
    pub generator: Generator,
    pub module: Module,
    pub task: Task,
    pub asyncio: Asyncio,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Frames {
    /// `PyFrameObject`s on the heap, linked by `f_back`; `f_lasti` counts units of `lasti_unit` bytes.
    Objects { lasti_unit: i64 },
    /// `_PyInterpreterFrame`s on the data stack, found through `tstate->cframe` (3.11, 3.12) or
    /// directly; the last instruction is a pointer. `tagged`: references carry tags in their two low bits.
    Interpreter { through_cframe: bool, tagged: bool },
}

/// How instruction offsets become lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LineTable {
    /// `co_lnotab`, up to 3.9 (Objects/lnotab_notes.txt).
    Lnotab,
    /// `co_linetable` of 3.10 (PEP 626).
    Ranges,
    /// `co_linetable` from 3.11 on (Objects/locations.md, later InternalDocs/code_objects.md).
    Locations,
}

/// Where an instance keeps its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum InstanceDict {
    /// `tp_dictoffset`.
    Offset,
    /// 3.11: values pointer at −32, dict pointer at −24.
    TwoWords,
    /// 3.12: one word at −24; its low bit tells values from dict.
    TaggedWord,
    /// 3.13 on: dict pointer before the object, values inline behind `tp_basicsize`.
    Inline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum IntForm {
    /// Sign and number of digits in `ob_size`.
    SignedSize,
    /// `lv_tag`: sign in two bits, digits from bit 3 on.
    Tag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum StrState {
    /// One word: interned 0–1, kind 2–4, compact 5, ascii 6.
    Bits,
    /// Free-threaded 3.14 on: `interned` has a byte of its own, then kind 0–2, compact 3, ascii 4.
    BitsAfterInterned,
}

/// What a generator (coroutine, asynchronous generator) says of where it stands: `gi_frame_state` from
/// 3.11 on, `f_state` of its frame in 3.10. Before, only `gi_running` tells (Include/internal/pycore_frame.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GenStates {
    pub created: i8,
    pub suspended: i8,
    /// Suspended in `await` or `yield from`; `None` where only the bytecode tells.
    pub awaiting: Option<[i8; 2]>,
    pub executing: i8,
    /// Which slot, counted down from the top of the value stack, holds what is awaited.
    pub awaited_slot: u64,
}

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub struct $name { $(pub $field: u64),* }
        impl $name {
            /// No field exists.
            pub const fn none() -> Self { $name { $($field: NONE),* } }
        }
    )*};
}

offsets! {
    /// `_PyRuntimeState`. `gil` (≤ 3.11) and `gc_collecting` (3.8) moved to the interpreter later.
    Runtime { interpreters_head, gil, gc_collecting, main_thread }
    /// `PyInterpreterState`. `gil` is a pointer (3.12 on).
    Interp { id, next, threads_head, modules, sysdict, gil, gc_collecting }
    /// `struct _gil_runtime_state` (pycore_gil.h). `enabled` exists in free-threaded builds.
    GilStruct { last_holder, locked, switch_number, cond, cond_size, enabled }
    /// `PyThreadState`. `frame` is the frame, `cframe` or `current_frame`, by [`Frames`].
    ThreadState { size, next, interp, frame, cframe_current_frame, thread_id, native_thread_id,
                  datastack_chunk, datastack_top, dict, state }
    /// `PyFrameObject` or `_PyInterpreterFrame`. `lasti` is `f_lasti`, `prev_instr` or `instr_ptr`.
    Frame { previous, code, globals, lasti, locals, stack_pointer, value_stack, block_count, block_stack,
            owner, tlbc_index, state }
    /// `PyCodeObject`. `bytecode` is the bytes object `co_code` up to 3.10, the code itself after.
    Code { size, argcount, kwonlyargcount, flags, stacksize, firstlineno, firsttraceable, nlocals, nlocalsplus,
           bytecode, tlbc, exceptiontable, consts, names, localsplusnames, localspluskinds, cellvars,
           freevars, filename, name, qualname, linetable }
    Object { size, ob_type, ob_size }
    /// `PyTypeObject` and `PyHeapTypeObject`.
    Type { name, basicsize, itemsize, flags, dictoffset, base, dict, mro, qualname, cached_keys }
    /// `PyASCIIObject` and its two bigger forms.
    Unicode { length, state, ascii_data, compact_data }
    Bytes { data }
    Int { tag, digits }
    Float { value }
    Items { items }
    Set { used, mask, table }
    Dict { used, keys, values }
    /// `PyDictKeysObject`. Up to 3.10 `log2_size` is `dk_size`, the number of slots itself.
    DictKeys { log2_size, log2_index_bytes, kind, nentries, indices }
    DictValues { values }
    Function { code, closure }
    Cell { value }
    Method { func, self_ }
    /// `running` is `gi_running` (up to 3.9).
    Generator { frame, state, qualname, running }
    Module { dict }
    /// `TaskObj` of `_asyncio`; its head is `FutureObj` (Modules/_asynciomodule.c). `cancels` is
    /// `task_num_cancels_requested` (3.11 on).
    Task { event_loop, callback, callbacks, state, cancels, fut_waiter, coro, name, awaited_by, awaited_by_is_set, node }
    /// What the interpreter itself keeps for asyncio (3.13 on). Those of a thread are counted from the end
    /// of its `PyThreadState`, which grew within 3.13 and 3.14.
    Asyncio { running_loop, running_task, thread_tasks, interp_tasks }
}

impl Layout {
    /// References on the frame carry tag bits.
    pub fn tagged(&self) -> bool {
        matches!(self.frames, Frames::Interpreter { tagged: true, .. })
    }

    /// Removes tag bits; 3.14's `NULL` reference becomes 0.
    pub fn untag(&self, word: u64) -> u64 {
        if self.tagged() { word & !3 } else { word }
    }
}
