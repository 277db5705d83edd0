//! Which task of the kernel a thread state stands for.
//!
//! From 3.11 on the thread state knows. Before, it has the `pthread_t` only, and that points to the C
//! library's descriptor, which begins with fields of its own: the tid stands at an offset that depends
//! on library and machine. The offset is not believed but found: it must name a task of this process
//! for every thread, each a different one.

use rustc_hash::FxHashMap;

use super::objects::Heap;
use super::threads::RawThread;
use crate::target::memory::Addr;

/// `struct pthread.tid`: glibc on x86-64, glibc on aarch64 (there at `pthread_t`'s start stands a
/// shorter header), musl on x86-64.
const KNOWN: [u64; 3] = [720, 208, 48];
/// No descriptor has it further behind.
const FURTHEST: u64 = 1024;

/// The tid, as the target sees it, of each thread state. `tasks` are all tasks of the process.
pub fn of_threads<'a>(
    heap: &Heap,
    threads: impl Iterator<Item = &'a RawThread> + Clone,
    tasks: &[i32],
) -> FxHashMap<Addr, i32> {
    let mut found: FxHashMap<Addr, i32> =
        threads.clone().filter_map(|t| Some((t.tstate, t.native_tid?))).collect();
    let unknown: Vec<&RawThread> = threads.filter(|t| t.native_tid.is_none()).collect();
    if unknown.is_empty() {
        return found;
    }
    heap.mem.prefetch(&unknown.iter().map(|t| (t.ident, FURTHEST as usize)).collect::<Vec<_>>());
    // A thread that has entered other interpreters has a state in each: by ident, not by state.
    let mut idents: Vec<u64> = unknown.iter().map(|t| t.ident).collect();
    idents.sort_unstable();
    idents.dedup();
    for offset in KNOWN.into_iter().chain((0..FURTHEST).step_by(4)) {
        let tid = |ident: &u64| heap.mem.i32(ident.checked_add(offset)?).ok().filter(|tid| tasks.contains(tid));
        let tids: FxHashMap<u64, i32> = idents.iter().filter_map(|i| Some((*i, tid(i)?))).collect();
        let mut distinct: Vec<i32> = tids.values().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        // A thread that has just ended, or not quite begun, may be missing; a wrong offset fits none.
        if distinct.len() == tids.len() && tids.len() * 2 > idents.len() {
            found.extend(unknown.iter().filter_map(|t| Some((t.tstate, *tids.get(&t.ident)?))));
            break;
        }
    }
    found
}
