//! The threads of a process, and what they were last known to do. A thread that has not run since then still
//! does the same.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::reader::RawFrame;
use super::resolve::Resolver;
use super::tree::{EMPTY, StackId, Tree};
use crate::python::threads::{self, RawThread};
use crate::python::{Python, names, tids};
use crate::stdlib::asyncio;
use crate::target::cached::CachedMemory;
use crate::target::memory::Addr;
use crate::target::probe::ThreadProbe;
use crate::target::threads as os_threads;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On a CPU or ready to be; with the GIL, or in code that does without.
    Running,
    WaitingForGil,
    /// Asleep in a system call.
    Idle,
}

/// One thread in one sample.
#[derive(Clone, Debug)]
pub struct Sampled {
    pub tid: i32,
    pub ident: u64,
    /// As `threading` has it; `None` for a thread that it does not know.
    pub name: Option<Rc<str>>,
    pub main: bool,
    pub state: State,
    pub holds_gil: bool,
    /// It runs the garbage collector.
    pub collecting: bool,
    /// Without the frames that were not asked for (idle threads, unless `idle`).
    pub stack: StackId,
    /// State and stack are of this sample. If not, they could not be proven and are those of an earlier one.
    pub exact: bool,
}

pub struct Thread {
    pub tstate: Addr,
    /// Index into the interpreters.
    pub interp: usize,
    pub probe: Option<ThreadProbe>,
    /// Its run time and run count when it was last looked at.
    pub ran: Option<(u64, u64)>,
    /// Samples since it last ran.
    pub quiet: u32,
    /// `shown.stack` is what it is now: it has not run since that was read.
    pub read: bool,
    /// Number of the sample that it was last read for, from another CPU.
    pub taken: u64,
    /// A copy of its stack that cannot be told to be true, and how many copies in a row have been equal to it.
    pub doubtful: Vec<RawFrame>,
    pub agree: usize,
    /// Number of the sample that this was for.
    pub doubted: u64,
    pub shown: Sampled,
    /// The last stack as raw words and as nodes, both outermost first: what has not changed of it need not be
    /// looked up again.
    pub raw: Vec<RawFrame>,
    pub nodes: Vec<StackId>,
}

/// An interpreter, and the head of its list of threads when that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interp {
    pub addr: Addr,
    pub head: Addr,
    /// Where asyncio keeps its running tasks, once it is imported.
    pub tasks: Option<Addr>,
}

/// Reads anew which interpreters and threads there are; what is known of those that stay is kept.
pub fn list(
    pid: i32,
    other_namespace: bool,
    python: &Python,
    known: Vec<Thread>,
) -> (Vec<Interp>, Vec<Thread>) {
    let memory = CachedMemory::live(pid);
    let heap = python.heap(&memory);
    let (raw, problems) = threads::list_all(&heap, python.runtime);
    for problem in problems.iter().chain(raw.iter().flat_map(|i| &i.problems)) {
        log::debug!("{pid}: {problem}");
    }
    let outside: FxHashMap<i32, i32> = if other_namespace {
        os_threads::namespaced_tids(pid).into_iter().map(|(outside, inside)| (inside, outside)).collect()
    } else {
        FxHashMap::default()
    };
    let tasks: Vec<i32> = match other_namespace {
        true => outside.keys().copied().collect(),
        false => os_threads::tids(pid),
    };
    let tids = tids::of_threads(&heap, raw.iter().flat_map(|i| &i.threads), &tasks);
    let mut known: FxHashMap<(Addr, u64), Thread> =
        known.into_iter().map(|t| ((t.tstate, t.shown.ident), t)).collect();
    let mut all = Vec::new();
    let mut interps = Vec::new();
    for (index, interp) in raw.iter().enumerate() {
        let head = interp.threads.first().map_or(0, |t| t.tstate);
        interps.push(Interp { addr: interp.addr, head, tasks: asyncio::current_tasks(&heap, interp.addr) });
        let names = names::of_interpreter(&heap, interp.addr);
        for thread in &interp.threads {
            let inside = tids.get(&thread.tstate).copied();
            let tid = inside.map(|tid| outside.get(&tid).copied().unwrap_or(tid));
            let name = names.get(&thread.ident);
            let mut entry = known
                .remove(&(thread.tstate, thread.ident))
                .filter(|old| Some(old.shown.tid) == tid && old.probe.is_some())
                .unwrap_or_else(|| Thread::new(pid, index, thread, tid));
            entry.interp = index;
            if let Some(name) = name {
                entry.shown.main = name.main;
                if name.name.as_deref() != entry.shown.name.as_deref() {
                    entry.shown.name = name.name.as_deref().map(Rc::from);
                }
            }
            all.push(entry);
        }
    }
    (interps, all)
}

impl Thread {
    fn new(pid: i32, interp: usize, thread: &RawThread, tid: Option<i32>) -> Thread {
        Thread {
            tstate: thread.tstate,
            interp,
            probe: tid.and_then(|tid| ThreadProbe::open(pid, tid).ok()),
            ran: None,
            quiet: 0,
            read: false,
            taken: 0,
            doubtful: Vec::new(),
            agree: 0,
            doubted: 0,
            shown: Sampled {
                tid: tid.unwrap_or(0),
                ident: thread.ident,
                name: None,
                main: false,
                state: State::Idle,
                holds_gil: false,
                collecting: false,
                stack: EMPTY,
                exact: false,
            },
            raw: Vec::new(),
            nodes: Vec::new(),
        }
    }

    pub fn forget_stack(&mut self) {
        self.raw.clear();
        self.nodes.clear();
    }

    /// How many of these frames, given innermost first, are as they were the last time, counted from the outermost.
    pub fn unchanged(&self, raw: &[RawFrame]) -> usize {
        raw.iter().rev().zip(&self.raw).take_while(|(a, b)| a == b).count()
    }

    /// The node of its stack. What is as it was the last time is not looked up.
    pub fn intern(
        &mut self,
        resolver: &mut Resolver,
        python: &Python,
        tree: &mut Tree,
        raw: &[RawFrame],
    ) -> StackId {
        let same = self.unchanged(raw);
        self.raw.truncate(same);
        self.nodes.truncate(same);
        let new = &raw[..raw.len() - same];
        if new.iter().any(|frame| resolver.get(frame).is_none()) {
            resolver.learn(python, tree, new);
        }
        resolver.met(new);
        let mut stack = self.nodes.last().copied().unwrap_or(EMPTY);
        for frame in new.iter().rev() {
            if let Some(Some(id)) = resolver.get(frame) {
                stack = tree.push(stack, id);
            }
            self.raw.push(*frame);
            self.nodes.push(stack);
        }
        stack
    }
}
