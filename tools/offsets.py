#!/usr/bin/env python3
"""Print the structure offsets that src/python/tables.rs holds.

The numbers come from the C compiler: for every field a constant `offsetof` is
compiled against the interpreter's own internal headers (Py_BUILD_CORE) and read
back out of the object file, so nothing is run and a cross compiler does as well.

    tools/offsets.py                     every interpreter found, as a table
    tools/offsets.py --json              the same for the test tests/offsets.rs
    tools/offsets.py --debug             as a Py_DEBUG build would have them
    tools/offsets.py --free-threaded     as --disable-gil would (3.13+)
    tools/offsets.py --cc aarch64-linux-gnu-gcc    the same for another machine

Headers are looked for in pyenv's versions and, with --root DIR, below a Debian
root with the pythonX.Y-dev packages.  Needs gcc and objcopy (binutils).
"""
import argparse
import glob
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

# field name in tables.rs -> C expression, by the minor versions it holds for.
R, I, T = "_PyRuntimeState", "PyInterpreterState", "PyThreadState"
off = lambda t, f: f"offsetof({t}, {f})"
FIELDS = [
    # (name, first minor, last minor, expression)
    ("runtime.interpreters_head", 8, 15, off(R, "interpreters.head")),
    ("runtime.gil", 8, 11, off(R, "ceval.gil")),
    ("runtime.gc_collecting", 8, 8, off(R, "gc.collecting")),
    ("runtime.main_thread", 8, 15, off(R, "main_thread")),
    ("interp.id", 8, 15, off(I, "id")),
    ("interp.next", 8, 15, off(I, "next")),
    ("interp.threads_head", 8, 10, off(I, "tstate_head")),
    ("interp.threads_head", 11, 15, off(I, "threads.head")),
    ("interp.modules", 8, 11, off(I, "modules")),
    ("interp.modules", 12, 15, off(I, "imports.modules")),
    ("interp.sysdict", 8, 15, off(I, "sysdict")),
    ("interp.gil", 12, 15, off(I, "ceval.gil")),
    ("interp.gc_collecting", 9, 15, off(I, "gc.collecting")),
    ("gil.last_holder", 8, 15, off("struct _gil_runtime_state", "last_holder")),
    ("gil.locked", 8, 15, off("struct _gil_runtime_state", "locked")),
    ("gil.switch_number", 8, 15, off("struct _gil_runtime_state", "switch_number")),
    ("gil.cond", 8, 15, off("struct _gil_runtime_state", "cond")),
    ("gil.enabled", 13, 15, off("struct _gil_runtime_state", "enabled"), "ft"),
    ("gil.cond_size", 8, 15, "sizeof(((struct _gil_runtime_state *)0)->cond)"),

    ("tstate.size", 8, 15, f"sizeof({T})"),
    ("tstate.next", 8, 15, off(T, "next")),
    ("tstate.interp", 8, 15, off(T, "interp")),
    ("tstate.frame", 8, 10, off(T, "frame")),
    ("tstate.frame", 11, 12, off(T, "cframe")),
    ("tstate.frame", 13, 15, off(T, "current_frame")),
    ("tstate.cframe_current_frame", 11, 12, off("_PyCFrame", "current_frame")),
    ("tstate.thread_id", 8, 15, off(T, "thread_id")),
    ("tstate.native_thread_id", 11, 15, off(T, "native_thread_id")),
    ("tstate.datastack_chunk", 11, 15, off(T, "datastack_chunk")),
    ("tstate.datastack_top", 11, 15, off(T, "datastack_top")),
    ("tstate.dict", 8, 15, off(T, "dict")),
    ("tstate.state", 13, 15, off(T, "state")),
    ("frame.previous", 8, 10, off("PyFrameObject", "f_back")),
    ("frame.previous", 11, 15, off("_PyInterpreterFrame", "previous")),
    ("frame.code", 8, 12, off("{F}", "f_code")),
    ("frame.code", 13, 15, off("{F}", "f_executable")),
    ("frame.globals", 8, 15, off("{F}", "f_globals")),
    ("frame.lasti", 8, 10, off("PyFrameObject", "f_lasti")),
    ("frame.lasti", 11, 12, off("_PyInterpreterFrame", "prev_instr")),
    ("frame.lasti", 13, 15, off("_PyInterpreterFrame", "instr_ptr")),
    ("frame.locals", 8, 10, off("PyFrameObject", "f_localsplus")),
    ("frame.locals", 11, 15, off("_PyInterpreterFrame", "localsplus")),
    ("frame.stack_pointer", 8, 9, off("PyFrameObject", "f_stacktop")),
    ("frame.stack_pointer", 10, 10, off("PyFrameObject", "f_stackdepth")),
    ("frame.stack_pointer", 11, 13, off("_PyInterpreterFrame", "stacktop")),
    ("frame.stack_pointer", 14, 15, off("_PyInterpreterFrame", "stackpointer")),
    ("frame.value_stack", 8, 10, off("PyFrameObject", "f_valuestack")),
    ("frame.block_count", 8, 10, off("PyFrameObject", "f_iblock")),
    ("frame.block_stack", 8, 10, off("PyFrameObject", "f_blockstack")),
    ("frame.owner", 11, 15, off("_PyInterpreterFrame", "owner")),
    ("frame.tlbc_index", 14, 15, off("_PyInterpreterFrame", "tlbc_index"), "ft"),
    ("code.size", 8, 15, "sizeof(PyCodeObject)"),
    ("code.argcount", 8, 15, off("PyCodeObject", "co_argcount")),
    ("code.kwonlyargcount", 8, 15, off("PyCodeObject", "co_kwonlyargcount")),
    ("code.flags", 8, 15, off("PyCodeObject", "co_flags")),
    ("code.stacksize", 8, 15, off("PyCodeObject", "co_stacksize")),
    ("code.firsttraceable", 11, 15, off("PyCodeObject", "_co_firsttraceable")),
    ("code.firstlineno", 8, 15, off("PyCodeObject", "co_firstlineno")),
    ("code.nlocals", 8, 15, off("PyCodeObject", "co_nlocals")),
    ("code.nlocalsplus", 11, 15, off("PyCodeObject", "co_nlocalsplus")),
    ("code.bytecode", 8, 10, off("PyCodeObject", "co_code")),
    ("code.bytecode", 11, 15, off("PyCodeObject", "co_code_adaptive")),
    ("code.tlbc", 14, 15, off("PyCodeObject", "co_tlbc"), "ft"),
    ("code.exceptiontable", 11, 15, off("PyCodeObject", "co_exceptiontable")),
    ("code.consts", 8, 15, off("PyCodeObject", "co_consts")),
    ("code.names", 8, 15, off("PyCodeObject", "co_names")),
    ("code.localsplusnames", 8, 10, off("PyCodeObject", "co_varnames")),
    ("code.localsplusnames", 11, 15, off("PyCodeObject", "co_localsplusnames")),
    ("code.localspluskinds", 11, 15, off("PyCodeObject", "co_localspluskinds")),
    ("code.cellvars", 8, 10, off("PyCodeObject", "co_cellvars")),
    ("code.freevars", 8, 10, off("PyCodeObject", "co_freevars")),
    ("code.filename", 8, 15, off("PyCodeObject", "co_filename")),
    ("code.name", 8, 15, off("PyCodeObject", "co_name")),
    ("code.qualname", 11, 15, off("PyCodeObject", "co_qualname")),
    ("code.linetable", 8, 9, off("PyCodeObject", "co_lnotab")),
    ("code.linetable", 10, 15, off("PyCodeObject", "co_linetable")),
    ("object.size", 8, 15, "sizeof(PyObject)"),
    ("object.ob_type", 8, 15, off("PyObject", "ob_type")),
    ("object.ob_size", 8, 15, off("PyVarObject", "ob_size")),
    ("types.name", 8, 15, off("PyTypeObject", "tp_name")),
    ("types.basicsize", 8, 15, off("PyTypeObject", "tp_basicsize")),
    ("types.itemsize", 8, 15, off("PyTypeObject", "tp_itemsize")),
    ("types.flags", 8, 15, off("PyTypeObject", "tp_flags")),
    ("types.dictoffset", 8, 15, off("PyTypeObject", "tp_dictoffset")),
    ("types.base", 8, 15, off("PyTypeObject", "tp_base")),
    ("types.dict", 8, 15, off("PyTypeObject", "tp_dict")),
    ("types.mro", 8, 15, off("PyTypeObject", "tp_mro")),
    ("types.qualname", 8, 15, off("PyHeapTypeObject", "ht_qualname")),
    ("types.cached_keys", 8, 15, off("PyHeapTypeObject", "ht_cached_keys")),
    ("unicode.length", 8, 15, off("PyASCIIObject", "length")),
    ("unicode.state", 8, 15, off("PyASCIIObject", "state")),
    ("unicode.ascii_data", 8, 15, "sizeof(PyASCIIObject)"),
    ("unicode.compact_data", 8, 15, "sizeof(PyCompactUnicodeObject)"),
    ("bytes.data", 8, 15, off("PyBytesObject", "ob_sval")),
    ("int.tag", 8, 11, off("PyVarObject", "ob_size")),
    ("int.tag", 12, 15, off("PyLongObject", "long_value.lv_tag")),
    ("int.digits", 8, 11, off("struct _longobject", "ob_digit")),
    ("int.digits", 12, 15, off("PyLongObject", "long_value.ob_digit")),
    ("float.value", 8, 15, off("PyFloatObject", "ob_fval")),
    ("tuple.items", 8, 15, off("PyTupleObject", "ob_item")),
    ("list.items", 8, 15, off("PyListObject", "ob_item")),
    ("set.used", 8, 15, off("PySetObject", "used")),
    ("set.mask", 8, 15, off("PySetObject", "mask")),
    ("set.table", 8, 15, off("PySetObject", "table")),
    ("dict.used", 8, 15, off("PyDictObject", "ma_used")),
    ("dict.keys", 8, 15, off("PyDictObject", "ma_keys")),
    ("dict.values", 8, 15, off("PyDictObject", "ma_values")),
    ("dict_keys.log2_size", 11, 15, off("PyDictKeysObject", "dk_log2_size")),
    ("dict_keys.log2_index_bytes", 11, 15, off("PyDictKeysObject", "dk_log2_index_bytes")),
    ("dict_keys.kind", 11, 15, off("PyDictKeysObject", "dk_kind")),
    ("dict_keys.nentries", 11, 15, off("PyDictKeysObject", "dk_nentries")),
    ("dict_keys.indices", 11, 15, off("PyDictKeysObject", "dk_indices")),
    ("dict_keys.log2_size", 8, 10, off("PyDictKeysObject", "dk_size")),
    ("dict_keys.nentries", 8, 10, off("PyDictKeysObject", "dk_nentries")),
    ("dict_keys.indices", 8, 10, off("PyDictKeysObject", "dk_indices")),
    ("dict_values.values", 11, 15, off("PyDictValues", "values")),
    ("frame.state", 10, 10, off("PyFrameObject", "f_state")),
    ("function.code", 8, 15, off("PyFunctionObject", "func_code")),
    ("function.closure", 8, 15, off("PyFunctionObject", "func_closure")),
    ("cell.value", 8, 15, off("PyCellObject", "ob_ref")),
    ("method.func", 8, 15, off("PyMethodObject", "im_func")),
    ("method.self_", 8, 15, off("PyMethodObject", "im_self")),
    ("generator.frame", 8, 10, off("PyGenObject", "gi_frame")),
    ("generator.frame", 11, 15, off("PyGenObject", "gi_iframe")),
    ("generator.running", 8, 9, off("PyGenObject", "gi_running")),
    ("generator.qualname", 8, 15, off("PyGenObject", "gi_qualname")),
    ("asyncio.running_loop", 13, 15, off("_PyThreadStateImpl", "asyncio_running_loop") + f" - sizeof({T})"),
    ("asyncio.running_task", 14, 15, off("_PyThreadStateImpl", "asyncio_running_task") + f" - sizeof({T})"),
    ("asyncio.thread_tasks", 14, 15, off("_PyThreadStateImpl", "asyncio_tasks_head") + f" - sizeof({T})"),
    ("generator.state", 11, 15, off("PyGenObject", "gi_frame_state")),
    # Private to Objects/moduleobject.c up to 3.11: the first field after the header.
    ("module.dict", 8, 15, "sizeof(PyObject)"),
]
INCLUDES = """#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#include <frameobject.h>
#include <internal/pycore_pystate.h>
"""
# Dict keys are private to Objects/dict-common.h before 3.11; copied as a shape, not as text.
DICT_KEYS = "typedef struct { Py_ssize_t dk_refcnt, dk_size; void *dk_lookup; Py_ssize_t dk_usable, dk_nentries; char dk_indices[]; } HsDictKeys;\n#define PyDictKeysObject HsDictKeys\n"

def include_dirs(roots):
    pats = [os.path.expanduser("~/.pyenv/versions/*/include/python3.*")]
    for root in roots:
        pats += [f"{root}/usr/include/python3.*", f"{root}/opt/ft/*/include/python3.*"]
    for pat in pats:
        for d in sorted(glob.glob(pat)):
            m = re.search(r"python3\.(\d+)(t|d)?$", d)
            if m and 8 <= int(m[1]) <= 15 and m[2] != "d":
                yield int(m[1]), m[2] == "t", d

def offsets(headers, minor, args, threaded):
    fields = [f for f in FIELDS if f[1] <= minor <= f[2] and (len(f) < 5 or threaded)]
    frame = "PyFrameObject" if minor <= 10 else "_PyInterpreterFrame"
    source = INCLUDES
    if minor >= 9:
        source += "#include <internal/pycore_runtime.h>\n#include <internal/pycore_interp.h>\n"
    if minor >= 11:
        source += "#include <internal/pycore_frame.h>\n#include <internal/pycore_dict.h>\n"
    else:
        source += DICT_KEYS + "#include <internal/pycore_gil.h>\n"
    if minor == 12:
        # pycore_interp.h of 3.12 uses the GIL's struct without including it.
        source = source.replace("#include <stddef.h>", "#include <stddef.h>\n#include <internal/pycore_gil.h>")
    if minor >= 14:
        source += "#include <internal/pycore_interpframe_structs.h>\n#include <internal/pycore_genobject.h>\n"
    values = ",".join(f[3].replace("{F}", frame) for f in fields)
    # A section of its own: the headers have constants, too.
    source += f'__attribute__((section(".hsoff"), used)) const unsigned long hs_offsets[] = {{{values}}};\n'
    flags = ["-w", "-I", headers, "-I", headers + "/internal", "-I", os.path.dirname(headers)]
    # Debian keeps pyconfig.h below the multiarch directory.
    flags += [f"-I{d}" for d in glob.glob(os.path.dirname(headers) + "/x86_64-linux-gnu")]
    if args.debug:
        flags.append("-DPy_DEBUG=1")
    if threaded and not headers.endswith("t"):
        flags.append("-DPy_GIL_DISABLED=1")
    with tempfile.TemporaryDirectory() as tmp:
        c, o, b = (f"{tmp}/offsets.{suffix}" for suffix in ("c", "o", "bin"))
        with open(c, "w") as f:
            f.write(source)
        done = subprocess.run([args.cc, "-c", c, "-o", o, *flags], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        subprocess.run(
            ["objcopy", "-I", "elf64-little", "-O", "binary", "--only-section=.hsoff", o, b], check=True
        )
        with open(b, "rb") as f:
            data = f.read()
    names = [f[0] for f in fields]
    return dict(zip(names, struct.unpack(f"<{len(names)}Q", data[: 8 * len(names)])))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", action="store_true")
    ap.add_argument("--debug", action="store_true")
    ap.add_argument("--free-threaded", action="store_true")
    ap.add_argument("--cc", default="gcc")
    ap.add_argument("--root", action="append", default=[], help="a Debian root; may be given several times")
    args = ap.parse_args()
    columns = {}
    for minor, threaded, headers in include_dirs(args.root):
        threaded = threaded or args.free_threaded
        if threaded and minor < 13:
            continue
        try:
            columns[headers] = (minor, threaded, offsets(headers, minor, args, threaded))
        except RuntimeError as error:
            print(f"{headers}: {error}", file=sys.stderr)
    if args.json:
        json.dump([{"headers": h, "minor": m, "free_threaded": t, "offsets": o} for h, (m, t, o) in columns.items()], sys.stdout)
        return
    titles = [f"3.{minor}{'t' if threaded else ''}" for minor, threaded, _ in columns.values()]
    print(f"{'field':32}" + "".join(f"{t:>8}" for t in titles))
    for name in dict.fromkeys(field[0] for field in FIELDS):
        print(f"{name:32}" + "".join(f"{c.get(name, '-'):>8}" for _, _, c in columns.values()))


if __name__ == "__main__":
    main()
