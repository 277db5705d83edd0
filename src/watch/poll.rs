//! The cheap poll of one process: a handful of reads, many times a second.
//!
//! Of each thread its run count: a thread that slept then and has not run since still sleeps in the same call.
//! Of a thread with an event loop, if it has run, since when its iteration lasts. Everything else (which threads
//! there are, which of them run a loop) is looked at once a second.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use super::stall::{Suspect, What};
use crate::python::Python;
use crate::python::frames;
use crate::python::objects::Heap;
use crate::python::threads;
use crate::python::tids;
use crate::stdlib::asyncio::iteration::{self, Codes, Doing, Place};
use crate::target::access::{self, AccessError};
use crate::target::cached::CachedMemory;
use crate::target::direct::Direct;
use crate::target::facts::RawSyscall;
use crate::target::files::ProcDir;
use crate::target::memory::Addr;
use crate::target::probe::ThreadProbe;
use crate::target::{proc, threads as tasks};

/// How often threads and loops are searched for, seconds.
const REFRESH: f64 = 1.0;
/// A thread that runs no loop is asked again after this, twice as long each time.
const ASK_AGAIN: f64 = 1.0;
const ASK_AGAIN_MAX: f64 = 32.0;
/// The main thread is asked more often: it has the loop, if one has. What costs little, each time.
const ASK_MAIN_MAX: f64 = 4.0;
/// Threads without a loop are asked this many times per stall.
const PER_STALL: f64 = 8.0;

/// The process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

pub struct Poller {
    pub pid: i32,
    python: Python,
    memory: Direct,
    dir: ProcDir,
    /// The tasks as the process itself numbers them, if it does so differently.
    namespaced: bool,
    codes: Codes,
    gils: Vec<Addr>,
    threads: Vec<Watched>,
    refreshed: f64,
    others_polled: f64,
    others_every: f64,
}

/// One thread.
pub struct Watched {
    pub tid: i32,
    tstate: Option<Addr>,
    probe: ThreadProbe,
    ran: (u64, u64),
    /// The call it sleeps in since it last ran.
    pub call: Option<RawSyscall>,
    /// The first poll that saw it asleep as it is.
    pub asleep_since: Option<f64>,
    pub event_loop: Option<LoopNow>,
    /// The first poll that saw that it runs again and again.
    active_since: Option<f64>,
    last_ran: f64,
    ask_at: f64,
    ask_every: f64,
}

/// Where an event loop stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoopNow {
    place: Place,
    pub doing: Doing,
    /// At how many polls in a row it did just this.
    pub polls: u32,
}

impl Poller {
    pub fn attach(pid: i32, stall: f64, now: f64) -> Result<Poller, AccessError> {
        let mut facts = proc::process(pid)?;
        let (python, _) = crate::look::attach(pid, &mut facts, &CachedMemory::live(pid))?;
        let dir = ProcDir::process(pid).map_err(|_| access::missing(pid))?;
        let mut poller = Poller {
            pid,
            python,
            memory: Direct::new(pid),
            dir,
            namespaced: facts.ns_pid != pid,
            codes: Codes::default(),
            gils: Vec::new(),
            threads: Vec::new(),
            refreshed: f64::NEG_INFINITY,
            others_polled: f64::NEG_INFINITY,
            others_every: stall / PER_STALL,
        };
        poller.refresh(now);
        Ok(poller)
    }

    pub fn threads(&self) -> &[Watched] {
        &self.threads
    }

    pub fn thread(&self, tid: i32) -> Option<&Watched> {
        self.threads.iter().find(|t| t.tid == tid)
    }

    /// One poll; `now` is CLOCK_MONOTONIC.
    pub fn poll(&mut self, now: f64) -> Result<(), Gone> {
        if now - self.refreshed >= REFRESH {
            self.refresh(now);
        }
        let others = now - self.others_polled >= self.others_every;
        if others {
            self.others_polled = now;
        }
        let pause = self.others_every * PER_STALL;
        let heap = self.python.heap(&self.memory);
        let mut gone = false;
        for thread in &mut self.threads {
            if others || thread.event_loop.is_some() {
                gone |= thread.poll(&heap, &mut self.codes, now, pause).is_none() && thread.tid == self.pid;
            }
        }
        // The main thread may end before the others do.
        if gone || self.threads.is_empty() {
            self.threads.retain(|thread| thread.probe.ran().is_ok());
            if self.threads.is_empty() {
                return Err(Gone);
            }
        }
        Ok(())
    }

    /// Whether somebody holds a GIL just now; `None` where there is none.
    pub fn gil_held(&self) -> Option<bool> {
        let heap = Heap::new(&self.memory, &self.python.layout);
        let mut gils = self.gils.iter().filter_map(|gil| threads::gil_at(&heap, *gil)).peekable();
        gils.peek()?;
        Some(gils.any(|gil| gil.locked))
    }

    /// Makes sure that the loop of this thread is what it seems: the frame may be the remains of one that has ended.
    pub fn confirm(&mut self, tid: i32) -> bool {
        let heap = self.python.heap(&self.memory);
        let Some(thread) = self.threads.iter_mut().find(|t| t.tid == tid) else { return false };
        let (Some(tstate), Some(seen)) = (thread.tstate, thread.event_loop) else { return false };
        let live = seen.place.is_live(&heap, tstate, &mut self.codes);
        if !live {
            thread.event_loop = None;
        }
        live
    }

    /// Where this thread stands, as one number: the same code at the same instructions. `None`: it has no stack.
    pub fn stands_at(&self, tid: i32) -> Option<u64> {
        let heap = self.python.heap(&self.memory);
        let mut thread = frames::of(self.thread(tid)?.tstate?);
        frames::walk(&heap, &mut thread);
        let mut hasher = FxHasher::default();
        for frame in &thread.frames {
            (frame.code, frame.instruction).hash(&mut hasher);
        }
        (thread.complete && !thread.frames.is_empty()).then(|| hasher.finish())
    }

    /// Whether a thread without a loop has been at something for so long, with shorter pauses.
    pub fn is_active(&self, now: f64, stall: f64) -> bool {
        let active = |t: &Watched| t.tstate.is_some() && t.event_loop.is_none() && t.is_active(now, stall);
        self.threads.iter().any(active)
    }

    /// Whether this thread has not run for so long, or has ended.
    pub fn rests(&self, tid: i32, now: f64, pause: f64) -> bool {
        self.thread(tid).is_none_or(|t| t.asleep_since.is_some() && now - t.last_ran >= pause)
    }

    /// Whether what was suspected goes on.
    pub fn goes_on(&self, suspect: &Suspect) -> bool {
        self.thread(suspect.tid)
            .is_some_and(|thread| thread.suspicion() == Some((suspect.what, suspect.since)))
    }

    /// Which threads there are, and which of them run a loop.
    fn refresh(&mut self, now: f64) {
        self.refreshed = now;
        let tids = tasks::tids(self.pid);
        let known = self.threads.len();
        self.threads.retain(|t| {
            tids.binary_search_by_key(&(t.tid != self.pid, t.tid), |tid| (*tid != self.pid, *tid)).is_ok()
        });
        let new: Vec<i32> =
            tids.iter().copied().filter(|tid| !self.threads.iter().any(|t| t.tid == *tid)).collect();
        for tid in &new {
            if let Ok(probe) = ThreadProbe::below(&self.dir, self.pid, *tid) {
                self.threads.push(Watched::new(*tid, probe, now));
            }
        }
        let heap = self.python.heap(&self.memory);
        if !new.is_empty() || self.threads.len() != known || self.threads.iter().any(|t| t.tstate.is_none()) {
            let (interpreters, _) = threads::list_all(&heap, self.python.runtime);
            self.gils.clear();
            self.gils.extend(interpreters.iter().filter_map(|i| i.gil).map(|gil| gil.addr));
            self.gils.sort_unstable();
            self.gils.dedup();
            let raw = interpreters.iter().flat_map(|i| &i.threads);
            let (outside, inside) = self.numbers(&tids);
            let states = tids::of_threads(&heap, raw, &inside);
            for thread in &mut self.threads {
                let number = outside.iter().position(|tid| *tid == thread.tid).map(|at| inside[at]);
                thread.tstate =
                    states.iter().find(|(_, tid)| Some(**tid) == number).map(|(tstate, _)| *tstate);
            }
        }
        for thread in &mut self.threads {
            let (Some(tstate), None) = (thread.tstate, thread.event_loop) else { continue };
            let (is_due, is_main) = (now >= thread.ask_at, thread.tid == self.pid);
            if !is_due && !is_main {
                continue;
            }
            let place = iteration::find(&heap, tstate, &mut self.codes, is_due);
            thread.event_loop = place.map(|place| LoopNow { place, doing: Doing::Lost, polls: 0 });
            if is_due {
                thread.ask_at = now + thread.ask_every;
                let most = if is_main { ASK_MAIN_MAX } else { ASK_AGAIN_MAX };
                thread.ask_every = (thread.ask_every * 2.0).min(most);
            }
        }
    }

    /// The tasks in our numbering, and in the target's own.
    fn numbers(&self, tids: &[i32]) -> (Vec<i32>, Vec<i32>) {
        match self.namespaced {
            true => tasks::namespaced_tids(self.pid).into_iter().unzip(),
            false => (tids.to_vec(), tids.to_vec()),
        }
    }
}

impl Watched {
    fn new(tid: i32, probe: ThreadProbe, now: f64) -> Self {
        Watched {
            tid,
            tstate: None,
            probe,
            ran: (0, 0),
            call: None,
            asleep_since: None,
            event_loop: None,
            active_since: None,
            last_ran: f64::NEG_INFINITY,
            ask_at: now,
            ask_every: ASK_AGAIN,
        }
    }

    /// `None`: the thread has ended.
    fn poll(&mut self, heap: &Heap, codes: &mut Codes, now: f64, pause: f64) -> Option<()> {
        let ran = self.probe.ran().ok()?;
        // It slept after it had run so often, and has not run since.
        if ran == self.ran && self.asleep_since.is_some() {
            if let Some(event_loop) = &mut self.event_loop {
                event_loop.polls = event_loop.polls.saturating_add(1);
            }
            if now - self.last_ran >= pause {
                self.active_since = None;
            }
            return Some(());
        }
        let is_first = self.ran == (0, 0);
        self.ran = ran;
        if !is_first {
            self.active_since.get_or_insert(now);
            self.last_ran = now;
        }
        let doing = self.probe.doing();
        self.call = doing.syscall();
        self.asleep_since = self.call.map(|_| now);
        if let Some(event_loop) = &mut self.event_loop {
            let seen = event_loop.place.doing(heap, self.call.as_ref(), codes);
            let same = seen == event_loop.doing;
            event_loop.polls = if same { event_loop.polls.saturating_add(1) } else { 1 };
            event_loop.doing = seen;
            if seen == Doing::Lost {
                self.event_loop = None;
                (self.ask_at, self.ask_every) = (now, ASK_AGAIN);
            }
        }
        Some(())
    }

    /// It has been at something for as long as this, and has not slept for as long.
    fn is_active(&self, now: f64, stall: f64) -> bool {
        self.active_since.is_some_and(|since| now - since >= stall) && now - self.last_ran < stall
    }

    /// What may last too long, and since when: the iteration of its loop, or else its sleep.
    pub fn suspicion(&self) -> Option<(What, f64)> {
        // What runs no Python is nobody's concern here.
        self.tstate?;
        match self.event_loop {
            Some(_) => self.iteration().map(|start| (What::Loop, start)),
            None => self.asleep_since.map(|since| (What::Thread, since)),
        }
    }

    /// The start of the iteration that its loop is in, if it is in one.
    pub fn iteration(&self) -> Option<f64> {
        match self.event_loop?.doing {
            Doing::Since(start) => Some(start),
            Doing::Selecting | Doing::Lost => None,
        }
    }
}
