//! The layouts as numbers: what 3.8–3.12 look like, and what the debug offsets of 3.13 on do not say.
//!
//! Every number was printed by `tools/offsets.py`, which lets the C compiler evaluate `offsetof`
//! against the interpreter's own internal headers; the test `tests/offsets.rs` runs it again and
//! compares wherever headers are installed. A Py_DEBUG build has the same numbers (`--debug`), and so
//! has aarch64 (`--cc aarch64-linux-gnu-gcc`): the one structure that differs there is glibc's mutex
//! inside the GIL, behind all the fields used here.
//!
//! `task` is private to `_asyncio`: `tools/dwarf-offsets.py` lets gdb print it from the debug information of
//! the installed builds (3.8–3.13: pyenv's own files; 3.14, 3.15: Debian's -dbg packages). From 3.14 on the
//! target's own `.AsyncioDebug` is laid over it (src/python/asyncio.rs), and over `asyncio`.

use super::layout::*;

/// The table of a minor version, or `None` for one that is not known.
pub fn table(minor: u32, free_threaded: bool) -> Option<Layout> {
    Some(match (minor, free_threaded) {
        (8, false) => V3_8,
        (9, false) => V3_9,
        (10, false) => V3_10,
        (11, false) => V3_11,
        (12, false) => V3_12,
        (13, false) => V3_13,
        (14, false) => V3_14,
        (15, false) => V3_15,
        (13, true) => free_threaded_of(V3_13),
        (14, true) => free_threaded_of(V3_14),
        (15, true) => free_threaded_of(V3_15),
        _ => return None,
    })
}

const V3_8: Layout = Layout {
    minor: 8,
    free_threaded: false,
    frames: Frames::Objects { lasti_unit: 1 },
    line_table: LineTable::Lnotab,
    instance_dict: InstanceDict::Offset,
    int_form: IntForm::SignedSize,
    str_state: StrState::Bits,
    gen_states: GenStates { created: -2, suspended: -1, awaiting: None, executing: 0, awaited_slot: 1 },
    runtime: Runtime { interpreters_head: 32, gil: 1152, gc_collecting: 544, main_thread: 72 },
    interp: Interp {
        id: 16,
        next: 0,
        threads_head: 8,
        modules: 56,
        sysdict: 72,
        gil: NONE,
        gc_collecting: NONE,
    },
    gil: GilStruct { last_holder: 8, locked: 16, switch_number: 24, cond: 32, cond_size: 48, enabled: NONE },
    tstate: ThreadState {
        size: 264,
        next: 8,
        interp: 16,
        frame: 24,
        thread_id: 176,
        dict: 152,
        ..ThreadState::none()
    },
    frame: Frame {
        previous: 24,
        code: 32,
        globals: 48,
        value_stack: 64,
        stack_pointer: 72,
        lasti: 104,
        block_count: 112,
        block_stack: 120,
        locals: 360,
        ..Frame::none()
    },
    code: Code {
        size: 176,
        argcount: 16,
        kwonlyargcount: 24,
        nlocals: 28,
        stacksize: 32,
        flags: 36,
        firstlineno: 40,
        bytecode: 48,
        consts: 56,
        names: 64,
        localsplusnames: 72,
        freevars: 80,
        cellvars: 88,
        filename: 104,
        name: 112,
        linetable: 120,
        ..Code::none()
    },
    object: Object { size: 16, ob_type: 8, ob_size: 16 },
    types: Type {
        name: 24,
        basicsize: 32,
        itemsize: 40,
        flags: 168,
        base: 256,
        dict: 264,
        dictoffset: 288,
        mro: 344,
        qualname: 864,
        cached_keys: 872,
    },
    unicode: Unicode { length: 16, state: 32, ascii_data: 48, compact_data: 72 },
    bytes: Bytes { data: 32 },
    int: Int { tag: 16, digits: 24 },
    float: Float { value: 16 },
    tuple: Items { items: 24 },
    list: Items { items: 24 },
    set: Set { used: 24, mask: 32, table: 40 },
    dict: Dict { used: 16, keys: 32, values: 40 },
    dict_keys: DictKeys { log2_size: 8, log2_index_bytes: NONE, kind: NONE, nentries: 32, indices: 40 },
    dict_values: DictValues { values: 0 },
    function: Function { code: 16, closure: 48 },
    cell: Cell { value: 16 },
    method: Method { func: 16, self_: 24 },
    generator: Generator { frame: 16, state: NONE, qualname: 56, running: 24 },
    module: Module { dict: 16 },
    task: Task {
        event_loop: 16,
        callback: 24,
        callbacks: 40,
        state: 72,
        fut_waiter: 104,
        coro: 112,
        name: 120,
        ..Task::none()
    },
    asyncio: Asyncio::none(),
};

const V3_9: Layout = Layout {
    minor: 9,
    runtime: Runtime { gil: 352, gc_collecting: NONE, ..V3_8.runtime },
    interp: Interp { id: 24, modules: 856, sysdict: 872, gc_collecting: 816, ..V3_8.interp },
    types: Type { qualname: 856, cached_keys: 864, ..V3_8.types },
    task: Task { state: 80, fut_waiter: 144, coro: 152, name: 160, ..V3_8.task },
    ..V3_8
};

const V3_10: Layout = Layout {
    minor: 10,
    frames: Frames::Objects { lasti_unit: 2 },
    line_table: LineTable::Ranges,
    tstate: ThreadState { size: 280, ..V3_9.tstate },
    frame: Frame {
        stack_pointer: 80,
        lasti: 96,
        block_count: 104,
        block_stack: 112,
        locals: 352,
        state: 108,
        ..V3_9.frame
    },
    types: Type { qualname: 864, cached_keys: 872, ..V3_9.types },
    function: Function { code: 48, closure: 72 },
    generator: Generator { qualname: 48, running: NONE, ..V3_9.generator },
    task: Task { state: 88, fut_waiter: 152, coro: 160, name: 168, ..V3_9.task },
    ..V3_9
};

const V3_11: Layout = Layout {
    minor: 11,
    frames: Frames::Interpreter { through_cframe: true, tagged: false },
    line_table: LineTable::Locations,
    instance_dict: InstanceDict::TwoWords,
    runtime: Runtime { interpreters_head: 40, gil: 360, gc_collecting: NONE, main_thread: 80 },
    interp: Interp {
        id: 48,
        next: 0,
        threads_head: 16,
        modules: 888,
        sysdict: 904,
        gil: NONE,
        gc_collecting: 848,
    },
    tstate: ThreadState {
        size: 360,
        next: 8,
        interp: 16,
        frame: 56,
        cframe_current_frame: 8,
        dict: 128,
        thread_id: 152,
        native_thread_id: 160,
        datastack_chunk: 296,
        datastack_top: 304,
        state: NONE,
    },
    frame: Frame {
        globals: 8,
        code: 32,
        previous: 48,
        lasti: 56,
        stack_pointer: 64,
        owner: 69,
        locals: 72,
        ..Frame::none()
    },
    code: Code {
        size: 192,
        consts: 24,
        names: 32,
        exceptiontable: 40,
        flags: 48,
        argcount: 56,
        kwonlyargcount: 64,
        stacksize: 68,
        firstlineno: 72,
        nlocalsplus: 76,
        nlocals: 80,
        localsplusnames: 96,
        localspluskinds: 104,
        filename: 112,
        name: 120,
        qualname: 128,
        linetable: 136,
        firsttraceable: 168,
        bytecode: 184,
        ..Code::none()
    },
    dict_keys: DictKeys { log2_size: 8, log2_index_bytes: 9, kind: 10, nentries: 24, indices: 32 },
    generator: Generator { frame: 80, state: 75, qualname: 40, running: NONE },
    task: Task { state: 88, cancels: 168, fut_waiter: 128, coro: 136, name: 144, ..V3_10.task },
    ..V3_10
};

const V3_12: Layout = Layout {
    minor: 12,
    instance_dict: InstanceDict::TaggedWord,
    int_form: IntForm::Tag,
    runtime: Runtime { interpreters_head: 40, gil: NONE, gc_collecting: NONE, main_thread: 64 },
    interp: Interp {
        id: 8,
        next: 0,
        threads_head: 72,
        modules: 944,
        sysdict: 352,
        gil: 384,
        gc_collecting: 312,
    },
    tstate: ThreadState {
        size: 288,
        cframe_current_frame: 0,
        dict: 112,
        thread_id: 136,
        native_thread_id: 144,
        datastack_chunk: 232,
        datastack_top: 240,
        ..V3_11.tstate
    },
    frame: Frame { code: 0, previous: 8, globals: 24, lasti: 56, owner: 70, ..V3_11.frame },
    code: Code {
        size: 200,
        argcount: 52,
        kwonlyargcount: 60,
        stacksize: 64,
        firstlineno: 68,
        nlocalsplus: 72,
        firsttraceable: 176,
        bytecode: 192,
        ..V3_11.code
    },
    types: Type { qualname: 872, cached_keys: 880, ..V3_11.types },
    unicode: Unicode { ascii_data: 40, compact_data: 56, ..V3_11.unicode },
    generator: Generator { frame: 72, state: 67, qualname: 32, running: NONE },
    ..V3_11
};

const V3_13: Layout = Layout {
    minor: 13,
    frames: Frames::Interpreter { through_cframe: false, tagged: false },
    instance_dict: InstanceDict::Inline,
    runtime: Runtime { interpreters_head: 632, main_thread: 656, ..V3_12.runtime },
    interp: Interp {
        id: 7272,
        next: 7264,
        threads_head: 7344,
        modules: 7656,
        sysdict: 7640,
        gil: 16,
        gc_collecting: 7600,
    },
    tstate: ThreadState {
        size: 312,
        frame: 72,
        cframe_current_frame: NONE,
        dict: 128,
        thread_id: 152,
        native_thread_id: 160,
        state: 40,
        ..V3_12.tstate
    },
    code: Code { size: 208, firsttraceable: 184, bytecode: 200, ..V3_12.code },
    dict_values: DictValues { values: 8 },
    gen_states: GenStates { created: -3, suspended: -2, awaiting: Some([-1, -1]), ..V3_12.gen_states },
    task: Task { state: 96, cancels: 104, fut_waiter: 112, coro: 120, name: 128, ..V3_12.task },
    asyncio: Asyncio { running_loop: 0, ..V3_12.asyncio },
    ..V3_12
};

const V3_14: Layout = Layout {
    minor: 14,
    frames: Frames::Interpreter { through_cframe: false, tagged: true },
    runtime: Runtime { interpreters_head: 808, main_thread: 832, ..V3_13.runtime },
    interp: Interp { id: 7280, next: 7272, modules: 7688, sysdict: 7672, ..V3_13.interp },
    tstate: ThreadState { size: 832, state: 44, ..V3_13.tstate },
    frame: Frame { owner: 74, locals: 80, ..V3_13.frame },
    code: Code { size: 216, firsttraceable: 192, bytecode: 208, ..V3_13.code },
    tuple: Items { items: 32 },
    task: Task {
        state: 104,
        cancels: 112,
        fut_waiter: 120,
        coro: 128,
        name: 136,
        awaited_by: 96,
        awaited_by_is_set: 109,
        node: 152,
        ..V3_13.task
    },
    asyncio: Asyncio { running_loop: 32, running_task: 40, thread_tasks: 48, interp_tasks: 10880 },
    ..V3_13
};

const V3_15: Layout = Layout {
    minor: 15,
    runtime: Runtime { interpreters_head: 936, main_thread: 960, ..V3_14.runtime },
    interp: Interp {
        id: 7272,
        next: 7264,
        threads_head: 7336,
        modules: 7592,
        sysdict: 7576,
        gil: 16,
        gc_collecting: 7512,
    },
    tstate: ThreadState {
        size: 888,
        dict: 152,
        thread_id: 176,
        native_thread_id: 184,
        datastack_chunk: 256,
        datastack_top: 264,
        state: 48,
        ..V3_14.tstate
    },
    types: Type { qualname: 880, cached_keys: 888, ..V3_14.types },
    gen_states: GenStates { created: 0, suspended: 1, awaiting: Some([2, 3]), executing: 4, awaited_slot: 2 },
    asyncio: Asyncio { running_loop: 136, running_task: 144, thread_tasks: 160, interp_tasks: 10856 },
    ..V3_14
};

/// The free-threaded build of the same version: the object header is 16 bytes longer, and a few
/// fields are there that otherwise are not.
const fn free_threaded_of(gil_build: Layout) -> Layout {
    const HEADER: u64 = 16;
    let mut l = gil_build;
    l.free_threaded = true;
    l.object = Object { size: 32, ob_type: 24, ob_size: 32 };
    l.gil = GilStruct { last_holder: 16, locked: 24, switch_number: 32, cond: 40, cond_size: 48, enabled: 0 };
    let moved = match l.minor {
        13 => 8,
        14 => 24,
        _ => 0,
    };
    l.interp.modules += moved;
    l.interp.sysdict += moved;
    // 3.14 on: each thread may run its own copy of the bytecode.
    let tlbc = if l.minor >= 14 { 8 } else { 0 };
    if l.minor >= 14 {
        l.frame.tlbc_index = 72;
        l.frame.owner = 78;
        l.code.tlbc = 224;
        l.str_state = StrState::BitsAfterInterned;
    }
    let c = l.code;
    l.code = Code {
        size: c.size + HEADER + tlbc,
        argcount: c.argcount + HEADER,
        kwonlyargcount: c.kwonlyargcount + HEADER,
        flags: c.flags + HEADER,
        stacksize: c.stacksize + HEADER,
        firstlineno: c.firstlineno + HEADER,
        firsttraceable: c.firsttraceable + HEADER,
        nlocals: c.nlocals + HEADER,
        nlocalsplus: c.nlocalsplus + HEADER,
        bytecode: c.bytecode + HEADER + tlbc,
        exceptiontable: c.exceptiontable + HEADER,
        consts: c.consts + HEADER,
        names: c.names + HEADER,
        localsplusnames: c.localsplusnames + HEADER,
        localspluskinds: c.localspluskinds + HEADER,
        filename: c.filename + HEADER,
        name: c.name + HEADER,
        qualname: c.qualname + HEADER,
        linetable: c.linetable + HEADER,
        ..c
    };
    let t = l.types;
    l.types = Type {
        name: t.name + HEADER,
        basicsize: t.basicsize + HEADER,
        itemsize: t.itemsize + HEADER,
        flags: t.flags + HEADER,
        dictoffset: t.dictoffset + HEADER,
        base: t.base + HEADER,
        dict: t.dict + HEADER,
        mro: t.mro + HEADER,
        qualname: t.qualname + HEADER,
        cached_keys: t.cached_keys + HEADER,
    };
    l.unicode = Unicode { length: 32, state: 48, ascii_data: 56, compact_data: 72 };
    l.bytes.data += HEADER;
    l.int = Int { tag: 32, digits: 40 };
    l.float.value += HEADER;
    l.tuple.items += HEADER;
    l.list.items += HEADER;
    l.set = Set { used: 40, mask: 48, table: 56 };
    l.dict = Dict { used: 32, keys: 48, values: 56 };
    l.function = Function { code: l.function.code + HEADER, closure: l.function.closure + HEADER };
    l.cell.value += HEADER;
    l.method = Method { func: 32, self_: 40 };
    l.generator = Generator { frame: 88, state: 83, qualname: 48, running: NONE };
    l.module.dict += HEADER;
    // The object header is all that is known to differ: no free-threaded `_asyncio` later than 3.13 was seen.
    let t = l.task;
    l.task = Task {
        event_loop: t.event_loop + HEADER,
        callback: t.callback + HEADER,
        callbacks: t.callbacks + HEADER,
        state: t.state + HEADER,
        cancels: t.cancels + HEADER,
        fut_waiter: t.fut_waiter + HEADER,
        coro: t.coro + HEADER,
        name: t.name + HEADER,
        ..t
    };
    if l.minor >= 14 {
        l.task.awaited_by += HEADER;
        l.task.awaited_by_is_set += HEADER;
        l.task.node += HEADER;
        l.asyncio.interp_tasks = if l.minor == 14 { 17304 } else { 17256 };
    }
    l
}
