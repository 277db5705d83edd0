//! The handlers of signals that the application has set, and which waits they could end: a service whose handler
//! sets `stop` is at rest in `stop.wait()`, but nothing else is any more alive for it.
//!
//! They stand in a table of C, `{ tripped; PyObject *func; } Handlers[NSIG]` (Modules/signalmodule.c; from 3.12 on in
//! `_PyRuntime`, Include/internal/pycore_signal.h), for which there is no symbol. It is known by its shape: an entry
//! for each signal, most of which have the default, which is the int 0 (`SIG_DFL`).

use rustc_hash::FxHashSet;
use serde_json::json;

use super::asyncio::search::{Found, Search};
use super::{Scene, Seen, spoken};
use crate::python::objects::Heap;
use crate::snapshot::Wait;
use crate::target::memory::Addr;

/// The variables of the library lie behind the runtime's state; the table has been within half of this.
const MAX_DISTANCE: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;
const PAGE: usize = 4096;
const ENTRY: usize = 16;
/// Those that are looked at; all but a few of them have the default.
const SIGNALS: usize = 31;
const TABLE: usize = (SIGNALS + 1) * ENTRY;
const LEAST_DEFAULTS: usize = 16;

/// Methods by which one handler could end what somebody else waits for, in another process, too.
pub const ACTS: &[&str] = &[
    "set",
    "put",
    "put_nowait",
    "notify",
    "notify_all",
    "release",
    "set_result",
    "set_exception",
    "send",
    "sendall",
    "write",
    "writelines",
    "send_bytes",
    "close",
    "terminate",
    "kill",
    "flush",
    "cancel",
    "shutdown",
    "stop",
    "join",
];

/// Says of each wait whether a handler could end it. The handlers, as far as they are known.
pub fn find(scene: &Scene, seen: &mut Seen) -> Vec<Addr> {
    if !seen.waits.values().any(is_wanted) {
        return Vec::new();
    }
    let Some(handlers) = handlers(scene.heap, scene.python.runtime) else { return Vec::new() };
    interrupted(scene, &handlers, seen);
    let wanted: FxHashSet<Addr> = seen.waits.values().filter_map(|w| Some(w.address?.0)).collect();
    let loops = FxHashSet::default();
    let mut search = Search::new(scene, wanted, &loops);
    let found: Vec<_> = handlers.iter().map(|handler| search.from_function(*handler)).collect();
    if search.is_exhausted() {
        return handlers;
    }
    seen.handlers_act = Some(found.iter().any(|found| search.speaks(found, ACTS)));
    for wait in seen.waits.values_mut().filter(|w| is_wanted(w)) {
        let methods = methods(wait);
        let ends = |(handler, found): (&Addr, &Found)| {
            let Some(object) = wait.address else { return search.speaks(found, ACTS) };
            found.reached.contains(&object.0)
                && search.speaks(found, methods)
                && (search.speaks_elsewhere(found, methods)
                    || spoken::function_speaks_of(scene, *handler, object.0, methods))
        };
        let may = handlers.iter().zip(&found).any(ends);
        if !wait.detail.is_object() {
            wait.detail = json!({});
        }
        wait.detail["by_signal"] = json!(may);
    }
    handlers
}

/// Names the handler in which a thread waits for a lock: it has interrupted what stands below it.
fn interrupted(scene: &Scene, handlers: &[Addr], seen: &mut Seen) {
    let (heap, f) = (scene.heap, &scene.heap.layout.function);
    let function = |handler: &Addr| match heap.type_of(*handler)?.name.as_str() {
        "method" => heap.ptr(handler + heap.layout.method.func),
        _ => Some(*handler),
    };
    let codes: FxHashSet<Addr> =
        handlers.iter().filter_map(function).filter_map(|handler| heap.ptr(handler + f.code)).collect();
    for thread in &scene.threads {
        let Some(wait) = seen.waits.get_mut(&thread.raw.tstate).filter(|w| w.kind == "lock") else {
            continue;
        };
        let handler = thread.frames.iter().find(|frame| codes.contains(&frame.raw.code));
        if let Some(handler) = handler.filter(|_| wait.detail.is_object()) {
            wait.detail["in_handler"] = json!(handler.code.name);
        }
    }
}

fn is_wanted(wait: &Wait) -> bool {
    const KINDS: &[&str] =
        &["event", "condition", "barrier", "semaphore", "lock", "queue", "thread", "future", "process"];
    KINDS.contains(&wait.kind.as_str())
}

/// What ends such a wait.
pub fn methods(wait: &Wait) -> &'static [&'static str] {
    match (wait.kind.as_str(), wait.detail["operation"].as_str()) {
        ("event", _) => &["set"],
        ("condition", _) => &["notify", "notify_all", "notifyAll"],
        ("barrier", _) => &["wait", "abort", "reset"],
        ("semaphore" | "lock", _) => &["release"],
        ("queue", Some("get")) => &["put", "put_nowait", "shutdown"],
        ("queue", Some("put")) => &["get", "get_nowait", "shutdown"],
        ("queue", _) => &["task_done", "shutdown"],
        // The last two are asyncio's own (asyncio/base_events.py, futures.py).
        ("future", _) => {
            &["set_result", "set_exception", "cancel", "_set_result_unless_cancelled", "_copy_future_state"]
        }
        _ => ACTS,
    }
}

/// The functions of Python among the handlers. `None`: the table was not found.
fn handlers(heap: &Heap, runtime: Addr) -> Option<Vec<Addr>> {
    let mut functions: Vec<Addr> = table(heap, runtime)?;
    functions.sort_unstable();
    functions.dedup();
    let is_function = |f: &Addr| {
        let name = heap.type_of(*f).map(|ty| ty.name.clone()).unwrap_or_default();
        !matches!(name.as_str(), "int" | "NoneType" | "builtin_function_or_method" | "Handlers")
    };
    functions.retain(is_function);
    Some(functions)
}

/// What stands in the table for each signal. A capture keeps the pages that the table is in, and no others.
fn table(heap: &Heap, runtime: Addr) -> Option<Vec<Addr>> {
    let mut at = runtime & !(PAGE as u64 - 1);
    let mut before: Vec<u8> = Vec::new();
    while at < runtime + MAX_DISTANCE {
        heap.mem.prefetch(&[(at, CHUNK)]);
        let mut page = vec![0u8; PAGE];
        if heap.mem.peek(at, &mut page).is_err() {
            before.clear();
            at += PAGE as u64;
            continue;
        }
        let first = at - before.len() as u64;
        before.extend_from_slice(&page);
        for start in (0..before.len().saturating_sub(TABLE)).step_by(8) {
            if let Some(found) = table_at(heap, &before[start..]) {
                let (from, end) = (first + start as u64, first + (start + TABLE) as u64);
                let pages = (from / PAGE as u64)..=(end / PAGE as u64);
                pages.for_each(|n| _ = heap.mem.read_into(n * PAGE as u64, &mut page));
                return Some(found);
            }
        }
        // One that reaches over the end.
        before.drain(..before.len().saturating_sub(TABLE));
        at += PAGE as u64;
    }
    None
}

fn table_at(heap: &Heap, bytes: &[u8]) -> Option<Vec<Addr>> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let entry = |signal: usize| (word(signal * ENTRY), word(signal * ENTRY + 8));
    // Quickly: two neighbours that have the same.
    let (first, second) = (entry(4).1, entry(5).1);
    if first == 0 || first % 8 != 0 || second == 0 || entry(0).1 != 0 {
        return None;
    }
    let entries: Vec<(u64, u64)> = (1..=SIGNALS).map(entry).collect();
    let is_entry =
        |(tripped, function): &(u64, u64)| *tripped as u32 <= 1 && *function != 0 && function % 8 == 0;
    if !entries.iter().all(is_entry) {
        return None;
    }
    let most = entries.iter().map(|e| e.1).max_by_key(|f| entries.iter().filter(|e| e.1 == *f).count())?;
    let defaults = entries.iter().filter(|e| e.1 == most).count();
    let is_default = |f: Addr| heap.type_of(f).is_some_and(|ty| ty.is_int()) && heap.int(f) == Some(0);
    (defaults >= LEAST_DEFAULTS && is_default(most))
        .then(|| entries.into_iter().map(|e| e.1).filter(|f| *f != most).collect())
}
