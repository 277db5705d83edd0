//! Interpreters and thread states: the linked lists below `_PyRuntime`, and the GIL.
//!
//! Part of the frozen window, so it reads raw words only; names and lines are resolved afterwards.

use super::frames::{self, RawFrame};
use super::layout::{Frames, Layout, NONE};
use super::objects::{Heap, USER_SPACE};
use serde::{Deserialize, Serialize};

use crate::target::memory::Addr;

const MAX_INTERPRETERS: usize = 1024;
const MAX_THREADS: usize = 20_000;

#[derive(Clone, Debug, PartialEq)]
pub struct RawInterpreter {
    pub addr: Addr,
    pub id: i64,
    pub gil: Option<RawGil>,
    pub gc_collecting: Option<bool>,
    pub threads: Vec<RawThread>,
    pub problems: Vec<String>,
}

/// The words of the GIL that change when it changes hands (Python/ceval_gil.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawGil {
    pub addr: Addr,
    /// Thread state of the last holder; stale unless `locked`.
    pub last_holder: Addr,
    pub locked: bool,
    /// Counts how often it went to another thread.
    pub switch_number: u64,
}

impl RawGil {
    /// Who waits for it sleeps on a futex in its condition variable (Python/ceval_gil.c).
    pub fn waits_here(&self, layout: &Layout, futex: Addr) -> bool {
        let start = self.addr + layout.gil.cond;
        (start..start + layout.gil.cond_size).contains(&futex)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RawThread {
    pub tstate: Addr,
    /// `threading.get_ident()`: the `pthread_t`.
    pub ident: u64,
    /// As the target sees it, where the thread state knows it (3.11 on).
    pub native_tid: Option<i32>,
    /// Innermost first.
    pub frames: Vec<RawFrame>,
    /// The chain of frames ended where a chain ends.
    pub complete: bool,
    pub problems: Vec<String>,
}

/// Addresses of all interpreter states.
pub fn interpreters(heap: &Heap, runtime: Addr) -> (Vec<Addr>, Vec<String>) {
    let head = runtime + heap.layout.runtime.interpreters_head;
    list(heap, head, heap.layout.interp.next, MAX_INTERPRETERS, "interpreters")
}

/// Follows a singly linked list whose first pointer stands at `head`.
fn list(heap: &Heap, head: Addr, next: u64, cap: usize, what: &str) -> (Vec<Addr>, Vec<String>) {
    let mut nodes: Vec<Addr> = Vec::new();
    let mut problems = Vec::new();
    let mut at = head;
    loop {
        match heap.mem.u64(at) {
            Ok(0) => break,
            Ok(node) if node % 8 != 0 || node >= USER_SPACE => {
                problems.push(format!("the list of {what} has a pointer that cannot be one, {node:#x}"));
                break;
            }
            // Quadratic only for lists that loop within a few nodes; the cap ends the others.
            Ok(node) if nodes.len() >= cap || nodes.iter().rev().take(64).any(|n| *n == node) => {
                problems.push(format!("the list of {what} does not end"));
                break;
            }
            Ok(node) => {
                nodes.push(node);
                match node.checked_add(next) {
                    Some(a) => at = a,
                    None => break,
                }
            }
            Err(fault) => {
                problems.push(format!("the list of {what} breaks off: {fault}"));
                break;
            }
        }
    }
    (nodes, problems)
}

/// The GIL that an interpreter uses; several may share one. `None` where there is none in use.
pub fn gil(heap: &Heap, runtime: Addr, interp: Addr) -> Option<RawGil> {
    let l = heap.layout;
    let addr = match l.interp.gil {
        NONE => runtime + l.runtime.gil,
        offset => heap.ptr(interp + offset)?,
    };
    if l.gil.enabled != NONE && heap.mem.u32(addr.checked_add(l.gil.enabled)?).ok()? == 0 {
        return None;
    }
    gil_at(heap, addr)
}

pub fn gil_at(heap: &Heap, addr: Addr) -> Option<RawGil> {
    let g = &heap.layout.gil;
    // One read: the three words belong together.
    let bytes = heap
        .mem
        .bytes(addr.checked_add(g.last_holder)?, (g.switch_number + 8 - g.last_holder) as usize)
        .ok()?;
    let word = |at: u64| {
        let at = (at - g.last_holder) as usize;
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
    };
    Some(RawGil {
        addr,
        last_holder: word(g.last_holder),
        // −1 before the first use.
        locked: word(g.locked) as u32 as i32 > 0,
        switch_number: word(g.switch_number),
    })
}

/// Reads every thread of every interpreter, without frames.
pub fn list_all(heap: &Heap, runtime: Addr) -> (Vec<RawInterpreter>, Vec<String>) {
    let (addrs, problems) = interpreters(heap, runtime);
    (addrs.into_iter().map(|addr| read_interpreter(heap, runtime, addr)).collect(), problems)
}

/// Reads every thread of every interpreter with its frames.
pub fn read(heap: &Heap, runtime: Addr) -> (Vec<RawInterpreter>, Vec<String>) {
    let (mut interps, problems) = list_all(heap, runtime);
    prefetch_stacks(heap, &interps);
    for interp in &mut interps {
        for thread in &mut interp.threads {
            frames::walk(heap, thread);
        }
    }
    (interps, problems)
}

fn read_interpreter(heap: &Heap, runtime: Addr, addr: Addr) -> RawInterpreter {
    let l = heap.layout;
    let collecting = match l.interp.gc_collecting {
        NONE => runtime + l.runtime.gc_collecting,
        offset => addr + offset,
    };
    let (states, mut problems) =
        list(heap, addr + l.interp.threads_head, l.tstate.next, MAX_THREADS, "threads");
    heap.mem.prefetch(&states.iter().map(|t| (*t, l.tstate.size as usize)).collect::<Vec<_>>());
    let mut threads = Vec::with_capacity(states.len());
    for tstate in states {
        match read_thread(heap, addr, tstate) {
            Some(t) => threads.push(t),
            None => problems.push(format!("the thread state at {tstate:#x} is not readable")),
        }
    }
    RawInterpreter {
        addr,
        id: heap.mem.i64(addr + l.interp.id).unwrap_or(-1),
        gil: gil(heap, runtime, addr),
        gc_collecting: heap.mem.u32(collecting).ok().map(|c| c != 0),
        threads,
        problems,
    }
}

/// The state without its frames. `None` if it does not belong to this interpreter.
fn read_thread(heap: &Heap, interp: Addr, tstate: Addr) -> Option<RawThread> {
    let t = &heap.layout.tstate;
    if heap.mem.u64(tstate + t.interp).ok()? != interp {
        return None;
    }
    let native_tid = match t.native_thread_id {
        NONE => None,
        offset => heap.mem.u64(tstate + offset).ok().and_then(|v| i32::try_from(v).ok()).filter(|v| *v > 0),
    };
    Some(RawThread {
        tstate,
        ident: heap.mem.u64(tstate + t.thread_id).ok()?,
        native_tid,
        frames: Vec::new(),
        complete: false,
        problems: Vec::new(),
    })
}

/// Brings the data stacks of all threads (3.11 on), or their innermost frames, in a few calls.
fn prefetch_stacks(heap: &Heap, interps: &[RawInterpreter]) {
    let l = heap.layout;
    let tstates = || interps.iter().flat_map(|i| &i.threads).map(|t| t.tstate);
    let word = |at: Addr| heap.ptr(at);
    if let Frames::Interpreter { through_cframe: true, .. } = l.frames {
        let cframes: Vec<_> = tstates().filter_map(|t| word(t + l.tstate.frame)).map(|c| (c, 64)).collect();
        heap.mem.prefetch(&cframes);
    }
    let mut ranges: Vec<_> =
        tstates().filter_map(|t| frames::current(heap, t)).map(|f| (f, l.frame.locals as usize)).collect();
    if l.tstate.datastack_chunk != NONE {
        for t in tstates() {
            if let (Some(chunk), Some(top)) =
                (word(t + l.tstate.datastack_chunk), word(t + l.tstate.datastack_top))
                && (chunk..chunk + (1 << 20)).contains(&top)
            {
                ranges.push((chunk, (top - chunk) as usize));
            }
        }
    }
    heap.mem.prefetch(&ranges);
}
