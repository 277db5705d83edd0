//! What the interpreter says of itself: `sys.hexversion`, prefixes, path. It also proves a layout:
//! who finds `sys.hexversion` through the list of interpreters has read the offsets right.

use serde::{Deserialize, Serialize};

use super::hash::StrHash;
use super::objects::Heap;
use super::threads;
use crate::target::memory::Addr;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SysInfo {
    pub hexversion: u32,
    pub implementation: Option<String>,
    /// `t` free-threaded, `d` debug.
    pub abiflags: Option<String>,
    pub prefix: Option<String>,
    pub exec_prefix: Option<String>,
    pub base_prefix: Option<String>,
    pub base_exec_prefix: Option<String>,
    /// `sys._stdlib_dir`, 3.11 on.
    pub stdlib_dir: Option<String>,
    pub platlibdir: Option<String>,
    pub path: Vec<String>,
}

impl SysInfo {
    /// The zipped standard library of an application that PyInstaller has packed: the code objects in such
    /// a one name their files without a directory (`threading.py`).
    pub fn frozen_library(&self) -> Option<&str> {
        self.path.iter().map(String::as_str).find(|p| p.ends_with("/base_library.zip"))
    }

    /// `3.12.1`, with `a1`, `b2`, `rc1` where it is no final release (Include/patchlevel.h).
    pub fn version(&self) -> String {
        let h = self.hexversion;
        let (major, minor, micro, level, serial) =
            (h >> 24, h >> 16 & 255, h >> 8 & 255, h >> 4 & 15, h & 15);
        let level = match level {
            0xa => format!("a{serial}"),
            0xb => format!("b{serial}"),
            0xc => format!("rc{serial}"),
            _ => String::new(),
        };
        format!("{major}.{minor}.{micro}{level}")
    }

    pub fn minor(&self) -> u32 {
        self.hexversion >> 16 & 255
    }
}

/// The module objects of the main interpreter by name.
pub fn modules<const N: usize>(heap: &Heap, interp: Addr, wanted: [&str; N]) -> [Option<Addr>; N] {
    match heap.ptr(interp + heap.layout.interp.modules) {
        Some(dict) if heap.type_of(dict).is_some_and(|t| t.is_dict()) => heap.dict_get(dict, wanted),
        _ => [None; N],
    }
}

/// Reads `sys` of the main interpreter, and proves `hash` on its keys. The error says which step failed.
pub fn read(heap: Heap, runtime: Addr, hash: Option<StrHash>) -> Result<(SysInfo, Option<StrHash>), String> {
    let (interps, problems) = threads::interpreters(&heap, runtime);
    // The list begins with the youngest; the main interpreter is its last.
    let main = *interps.last().ok_or_else(|| {
        problems
            .first()
            .cloned()
            .unwrap_or_else(|| "the runtime has no interpreter (yet, or any more)".into())
    })?;
    let dict = heap
        .ptr(main + heap.layout.interp.sysdict)
        .filter(|d| heap.type_of(*d).is_some_and(|t| t.is_dict()))
        .ok_or("the dict of `sys` is none there")?;
    let heap = heap.with_hash(hash, dict);
    let [
        hexversion,
        implementation,
        abiflags,
        prefix,
        exec_prefix,
        base_prefix,
        base_exec_prefix,
        stdlib,
        plat,
        path,
    ] = heap.dict_get(
        dict,
        [
            "hexversion",
            "implementation",
            "abiflags",
            "prefix",
            "exec_prefix",
            "base_prefix",
            "base_exec_prefix",
            "_stdlib_dir",
            "platlibdir",
            "path",
        ],
    );
    let hexversion = hexversion
        .and_then(|h| heap.int(h))
        .and_then(|h| u32::try_from(h).ok())
        .ok_or("sys.hexversion is not an int there")?;
    let text = |obj: Option<Addr>| obj.and_then(|o| heap.checked_str(o));
    let implementation = implementation.and_then(|i| text(heap.attrs(i, ["name"])[0]));
    let entries = path.and_then(|p| {
        let ty = heap.type_of(p).filter(|t| t.is_list())?;
        heap.items(p, &ty, 256).map(|(items, _)| items)
    });
    let sys = SysInfo {
        hexversion,
        implementation,
        abiflags: text(abiflags),
        prefix: text(prefix),
        exec_prefix: text(exec_prefix),
        base_prefix: text(base_prefix),
        base_exec_prefix: text(base_exec_prefix),
        stdlib_dir: text(stdlib),
        platlibdir: text(plat),
        path: entries.unwrap_or_default().into_iter().filter_map(|e| heap.checked_str(e)).collect(),
    };
    Ok((sys, heap.proven_hash()))
}
