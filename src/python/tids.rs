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
    let offsets = KNOWN.into_iter().chain((0..FURTHEST).step_by(4));
    for offset in offsets {
        let tids: Vec<Option<i32>> = unknown
            .iter()
            .map(|t| heap.mem.i32(t.ident.checked_add(offset)?).ok().filter(|tid| tasks.contains(tid)))
            .collect();
        let mut known: Vec<i32> = tids.iter().flatten().copied().collect();
        known.sort_unstable();
        known.dedup();
        // A thread that has just ended, or not quite begun, may be missing; a wrong offset fits none.
        if !known.is_empty() && known.len() == tids.iter().flatten().count() && known.len() * 2 > tids.len() {
            found.extend(unknown.iter().zip(tids).filter_map(|(t, tid)| Some((t.tstate, tid?))));
            break;
        }
    }
    found
}
