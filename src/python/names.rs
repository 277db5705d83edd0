//! What the module `threading` knows of threads: their names, and which are daemons.

use rustc_hash::FxHashMap;

use super::objects::{Heap, MAX_ENTRIES};
use super::sysinfo;
use crate::target::memory::Addr;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ThreadName {
    pub name: Option<String>,
    pub daemon: Option<bool>,
    pub main: bool,
    /// It has come to the end of the program, and does what is left to do.
    pub exiting: bool,
    /// The `Thread` object.
    pub object: Addr,
}

/// By ident, from `threading._active` of one interpreter. Empty where `threading` was never imported.
pub fn of_interpreter(heap: &Heap, interp: Addr) -> FxHashMap<u64, ThreadName> {
    let mut found = FxHashMap::default();
    let [Some(module)] = sysinfo::modules(heap, interp, ["threading"]) else { return found };
    let Some(dict) = heap.module_dict(module) else { return found };
    let [active, main, ends] = heap.dict_get(dict, ["_active", "_main_thread", "_SHUTTING_DOWN"]);
    let is_true = |object: Option<Addr>| object.and_then(|o| heap.int(o)) == Some(1);
    let Some(active) = active.filter(|a| heap.type_of(*a).is_some_and(|t| t.is_dict())) else { return found };
    let Some((entries, _)) = heap.dict(active, MAX_ENTRIES) else { return found };
    // Objects, and in front of them the pointer to their attributes.
    heap.mem.prefetch(
        &entries.iter().flat_map(|(k, v)| [(*k, 40), (v.saturating_sub(32), 160)]).collect::<Vec<_>>(),
    );
    for (ident, object) in entries {
        let Some(ident) = heap.type_of(ident).filter(|t| t.is_int()).and_then(|_| heap.int(ident)) else {
            continue;
        };
        let [name, daemon, stopped] = heap.attrs(object, ["_name", "_daemonic", "_is_stopped"]);
        let is_main = main == Some(object);
        found.insert(
            ident as u64,
            ThreadName {
                name: name.and_then(|n| heap.checked_str(n)),
                daemon: daemon.and_then(|d| heap.int(d)).map(|d| d != 0),
                main: is_main,
                // `threading._shutdown`: the first from 3.9 on, the second up to 3.12.
                exiting: is_main && (is_true(ends) || is_true(stopped)),
                object,
            },
        );
    }
    found
}
