//! One process, sample by sample. What a sample is and why it is exact: see mod.rs.

use std::time::Duration;

use nix::errno::Errno;
use nix::sched::sched_getcpu;

use super::place::Places;
use super::reader::{self, Gil, RawFrame};
use super::resolve::Resolver;
use super::tasks::{self, Root};
use super::threads::{self, Interp, Sampled, State, Thread};
use super::tree::{EMPTY, Frame, FrameId, Tree};
use crate::look;
use crate::python::Python;
use crate::target::access::{self, AccessError};
use crate::target::cached::CachedMemory;
use crate::target::clocks::{CpuClock, monotonic, own_switches};
use crate::target::frozen::Seat;
use crate::target::memory::Addr;
use crate::target::pages::Pages;
use crate::target::parse::Doing;
use crate::target::pause::{Pause, PauseError};
use crate::target::probe::ThreadProbe;
use crate::target::proc;
use crate::target::syscalls::{self, Arch};

/// Whole reads of a process before its threads are proven one by one.
const TRIES: usize = 3;
/// Reads of one thread before it is called torn.
const TRIES_OF_A_THREAD: usize = 5;
/// A thread that has not run for so many samples is asked only when some CPU time is not explained.
const QUIET: u32 = 64;
/// How often what code objects are is compared, nanoseconds.
const COMPARE_EVERY: u64 = 100_000_000;
/// How often names are looked for while a thread has none, nanoseconds.
const NAMES_EVERY: u64 = 250_000_000;
/// And while the task of a thread is not known.
const LOST_EVERY: u64 = 20_000_000;
/// How long a thread may take to stop.
const PAUSE_DEADLINE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub struct SamplerOptions {
    /// Read the stacks of idle threads, too.
    pub idle: bool,
    /// Read the stacks of threads that wait for the GIL, too.
    pub gil_wait: bool,
    /// Root each stack at the asyncio task that its thread runs.
    pub tasks: bool,
    /// Stop running threads for the read, instead of keeping them from their CPU.
    pub pause: bool,
    pub lines: Lines,
    /// Installed packages that count as the application.
    pub apps: Vec<String>,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            idle: false,
            gil_wait: false,
            tasks: false,
            pause: false,
            lines: Lines::Current,
            apps: Vec::new(),
        }
    }
}

/// Which line a frame has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// The one it stands on.
    Current,
    /// The one where its function begins: all places of a function are one frame.
    First,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every thread is exact, or of an earlier sample and marked so.
    Sample,
    /// Nothing could be proven.
    Torn,
    /// The process has ended, or its memory is no longer that of the Python that was attached to.
    Gone,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub samples: u64,
    /// Nothing had run since the sample before.
    pub unchanged: u64,
    /// Reads that had to be done again.
    pub retries: u64,
    /// Samples in which threads were proven one by one.
    pub one_by_one: u64,
    /// Stacks that were needed and could not be proven.
    pub torn: u64,
    /// Stacks that were.
    pub stacks: u64,
}

/// What one read has found of a thread that must be looked at.
#[derive(Clone, Copy, Debug)]
struct Found {
    thread: usize,
    state: State,
    holds: bool,
    collecting: bool,
    ran: Option<(u64, u64)>,
    /// Its frames in `raw`; `None` if they are not wanted.
    frames: Option<(usize, usize)>,
    /// Its task in `roots`.
    root: Option<usize>,
}

/// A thread that does not run, and what will have changed if it did.
#[derive(Debug)]
struct Guard {
    thread: usize,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    /// Its run time and run count.
    Ran(u64, u64),
    /// The CPU that it says it is on, which is ours, and how often we had left that.
    Place { cpu: usize, switches: u64 },
    /// It is stopped until this is dropped.
    Paused { _pause: Pause },
}

/// Why a read is of no use.
enum Trouble {
    /// There are other threads than those we know.
    Threads,
    /// It ran while it was read.
    Moved,
    Gone,
}

pub struct Sampler {
    pid: i32,
    python: Python,
    options: SamplerOptions,
    clock: CpuClock,
    places: Option<Places>,
    pages: Pages,
    resolver: Resolver,
    interps: Vec<Interp>,
    threads: Vec<Thread>,
    other_namespace: bool,
    shown: Vec<Sampled>,
    found: Vec<Found>,
    raw: Vec<RawFrame>,
    roots: Vec<Root>,
    /// Why a thread could not be stopped, the last time.
    unpaused: Option<PauseError>,
    /// The process's CPU time when all was last known.
    last: Option<u64>,
    /// Index of the thread that ran in the last sample.
    runner: usize,
    /// The CPU that it was last seen on: with several processes the seat may be beside another's.
    runs_on: Option<usize>,
    /// Some thread did.
    any_runs: bool,
    gils: Vec<Option<Gil>>,
    gc: Option<FrameId>,
    stats: Stats,
    compare_at: u64,
    names_at: u64,
    list_again: bool,
    /// Of the last samples, how many could not be proven whole (0 to 256).
    unproven: u32,
}

impl Sampler {
    /// Finds the Python of a live process.
    pub fn attach(pid: i32, options: SamplerOptions) -> Result<Sampler, AccessError> {
        let mut facts = proc::process(pid)?;
        let memory = CachedMemory::live(pid);
        let python = look::attach(pid, &mut facts, &memory)?;
        let clock = CpuClock::of(pid).map_err(|errno| access::explain(pid, errno))?;
        let other_namespace = facts.ns_pid != pid;
        let (interps, threads) = threads::list(pid, other_namespace, &python, Vec::new());
        let resolver = Resolver::new(pid, &python, options.lines, &options.apps);
        Ok(Sampler {
            pid,
            resolver,
            options,
            clock,
            places: Places::of(pid, &memory),
            pages: Pages::new(pid),
            interps,
            threads,
            other_namespace,
            shown: Vec::new(),
            found: Vec::new(),
            raw: Vec::new(),
            roots: Vec::new(),
            unpaused: None,
            last: None,
            runner: 0,
            runs_on: None,
            any_runs: true,
            gils: Vec::new(),
            gc: None,
            stats: Stats::default(),
            compare_at: 0,
            names_at: 0,
            list_again: false,
            unproven: 0,
            python,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn python(&self) -> &Python {
        &self.python
    }

    /// The threads as of the last sample.
    pub fn threads(&self) -> &[Sampled] {
        &self.shown
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Why a thread could not be stopped.
    pub fn unpaused(&self) -> Option<&PauseError> {
        self.unpaused.as_ref()
    }

    /// Reads of memory, and bytes read.
    pub fn cost(&self) -> (u64, u64) {
        self.pages.cost()
    }

    pub fn sample(&mut self, tree: &mut Tree, seat: &mut Seat) -> Outcome {
        self.housekeeping();
        let mut one_by_one = self.unproven > 128 && !self.stats.samples.is_multiple_of(16);
        for attempt in 0..TRIES {
            // Of a thread that stands alone and ran, the clock tells nothing new.
            let mut now = None;
            if !self.any_runs || self.threads.len() != 1 {
                let Ok(time) = self.clock.now() else { return Outcome::Gone };
                now = Some(time);
            }
            if self.last.is_some() && self.last == now && !self.list_again && !self.any_runs {
                self.stats.samples += 1;
                self.stats.unchanged += 1;
                return Outcome::Sample;
            }
            self.pages.end_with(None);
            let mut guard = None;
            if !one_by_one && attempt == 0 {
                guard = self.guard_by_place(seat);
            }
            if !one_by_one && guard.is_none() {
                guard = self.guard(seat);
            }
            let paused = guard.as_ref().filter(|g| matches!(g.proof, Proof::Paused { .. })).map(|g| g.thread);
            match self.read(now, paused) {
                Ok(()) => match guard.and_then(|guard| self.covered(&guard)) {
                    Some(true) => {
                        self.unproven -= self.unproven / 16;
                        self.commit(tree, now);
                        return Outcome::Sample;
                    }
                    // It stood still, but others may have run.
                    Some(false) => one_by_one = true,
                    None => {}
                },
                Err(Trouble::Gone) => return Outcome::Gone,
                Err(Trouble::Threads) => {
                    self.relist();
                    continue;
                }
                Err(Trouble::Moved) => {}
            }
            self.choose_runner();
            if one_by_one {
                break;
            }
            self.stats.retries += 1;
        }
        if self.list_again || (self.found.is_empty() && !one_by_one) {
            // The list of threads changed every time.
            self.stats.samples += 1;
            self.stats.torn += 1;
            return Outcome::Torn;
        }
        self.unproven += (256 - self.unproven) / 16;
        self.one_by_one(tree, seat)
    }

    /// Before a read: sees to it that the thread that runs does not, as long as we do.
    ///
    /// It does not run now if it sleeps, or if its CPU is the one that we are on; and should it begin to,
    /// its run count will have grown. (Two equal answers of the CPU clock alone prove nothing: while the
    /// kernel makes up for interrupts or stolen time, that clock stands still; `update_rq_clock_task`,
    /// kernel/sched/core.c.)
    fn guard(&mut self, seat: &mut Seat) -> Option<Guard> {
        let probe = self.threads.get(self.runner)?.probe.as_ref()?;
        for _ in 0..2 {
            let ran = probe.ran().ok()?;
            let (state, cpu) = probe.with_stat(|stat| (stat.state, stat.cpu)).ok()?;
            self.runs_on = Some(cpu);
            if state == 'R' && self.options.pause {
                let pause = pause(probe, &mut self.unpaused)?;
                return Some(Guard { thread: self.runner, proof: Proof::Paused { _pause: pause } });
            }
            let still = state != 'R' || sched_getcpu().ok() == Some(cpu) && seat.is_on(cpu);
            if still {
                return Some(Guard { thread: self.runner, proof: Proof::Ran(ran.0, ran.1) });
            }
            if !seat.take(cpu) {
                return None;
            }
        }
        None
    }

    /// The same, if we have sat beside it since the last sample: whether it is here at all is told after the read.
    fn guard_by_place(&mut self, seat: &Seat) -> Option<Guard> {
        let thread = self.threads.get(self.runner).filter(|t| t.shown.state == State::Running)?;
        let word = self.places?.of_thread(thread.shown.ident)?;
        let cpu = seat.cpu().filter(|cpu| self.runs_on == Some(*cpu))?;
        let switches = own_switches()?;
        self.pages.end_with(Some(word));
        Some(Guard { thread: self.runner, proof: Proof::Place { cpu, switches } })
    }

    /// After a read: `None` if the thread has run, else whether that proves all that was read: with the GIL
    /// in its hands nobody else could change a frame.
    fn covered(&mut self, guard: &Guard) -> Option<bool> {
        let thread = &self.threads[guard.thread];
        let stood = match guard.proof {
            Proof::Paused { .. } => true,
            Proof::Ran(time, runs) => thread.probe.as_ref()?.ran().ok()? == (time, runs),
            Proof::Place { cpu, switches } => {
                self.pages.last_word() == Some(cpu as u32) && own_switches() == Some(switches)
            }
        };
        if !stood {
            return None;
        }
        let holds = |gil: &Option<Gil>| gil.is_some_and(|g| g.locked && g.holder == thread.tstate);
        let by_gil = self.gils.get(thread.interp).is_some_and(holds);
        let covers = |found: &Found| {
            found.thread == guard.thread
                || found.frames.is_none()
                || (by_gil && self.threads[found.thread].interp == thread.interp)
        };
        Some(self.found.iter().all(covers))
    }

    /// Whom to guard the next time.
    fn choose_runner(&mut self) {
        let runs = |f: &&Found| f.state == State::Running;
        let runner = self.found.iter().find(|f| f.holds).or_else(|| self.found.iter().find(runs));
        if let Some(found) = runner.or(self.found.first()) {
            self.runner = found.thread;
        }
    }

    fn housekeeping(&mut self) {
        let now = monotonic();
        if now >= self.compare_at {
            self.compare_at = now + COMPARE_EVERY;
            if self.resolver.compare(&self.python) {
                self.threads.iter_mut().for_each(Thread::forget_stack);
            }
        }
        // A child that was just forked has the tid of its parent's thread for a moment.
        let lost = self.threads.iter().any(|t| t.probe.is_none());
        let nameless = |t: &Thread| t.shown.name.is_none() && t.shown.tid != 0;
        let no_tasks = self.options.tasks && self.interps.iter().any(|i| i.tasks.is_none());
        let wants_list = || lost || no_tasks || self.threads.iter().any(nameless);
        if self.list_again || (now >= self.names_at && wants_list()) {
            self.names_at = now + if lost { LOST_EVERY } else { NAMES_EVERY };
            self.relist();
        }
    }

    fn relist(&mut self) {
        let known = std::mem::take(&mut self.threads);
        (self.interps, self.threads) = threads::list(self.pid, self.other_namespace, &self.python, known);
        self.list_again = false;
        self.last = None;
        self.runner = self.runner.min(self.threads.len().saturating_sub(1));
    }

    /// Reads all that may have changed since the last sample; `paused` is stopped by us.
    fn read(&mut self, now: Option<u64>, paused: Option<usize>) -> Result<(), Trouble> {
        self.found.clear();
        self.raw.clear();
        self.roots.clear();
        self.pages.refresh().map_err(|errno| match errno {
            Errno::ENOMEM | Errno::EAGAIN => Trouble::Moved,
            _ => Trouble::Gone,
        })?;
        let (layout, runtime) = (&self.python.layout, self.python.runtime);
        let head = self.pages.u64(runtime + layout.runtime.interpreters_head);
        if head != self.interps.first().map(|i| i.addr) {
            return Err(if head.is_none() { Trouble::Gone } else { Trouble::Threads });
        }
        self.gils.clear();
        for interp in &self.interps {
            if self.pages.u64(interp.addr + layout.interp.threads_head) != Some(interp.head) {
                return Err(Trouble::Threads);
            }
            self.gils.push(reader::gil(&mut self.pages, layout, runtime, interp.addr));
        }
        self.find_runners(now)?;
        for index in 0..self.found.len() {
            self.read_thread(index, paused)?;
        }
        Ok(())
    }

    /// Fills `found` with the threads that may have run since the last sample.
    fn find_runners(&mut self, now: Option<u64>) -> Result<(), Trouble> {
        let holds = |gils: &[Option<Gil>], t: &Thread| {
            gils.get(t.interp).copied().flatten().is_some_and(|g| g.locked && g.holder == t.tstate)
        };
        // A thread that stands alone has run if anything has.
        if let [only] = &self.threads[..] {
            self.found.push(Found::new(0, holds(&self.gils, only), None));
            return Ok(());
        }
        let mut explained = 0;
        for all in [false, true] {
            for (index, thread) in self.threads.iter_mut().enumerate() {
                let holds = holds(&self.gils, thread);
                if (thread.quiet < QUIET || holds) == all {
                    continue;
                }
                let Some(probe) = &thread.probe else { continue };
                let Ok(ran) = probe.ran() else {
                    self.list_again = true;
                    return Err(Trouble::Threads);
                };
                if thread.ran == Some(ran) && !holds {
                    thread.quiet = thread.quiet.saturating_add(1);
                    continue;
                }
                explained += ran.0.saturating_sub(thread.ran.map_or(0, |r| r.0));
                self.found.push(Found::new(index, holds, Some(ran)));
            }
            let total = self.last.zip(now).map(|(last, now)| now.saturating_sub(last));
            if total == Some(explained) || (total.is_none() && !self.stats.samples.is_multiple_of(16)) {
                break;
            }
        }
        Ok(())
    }

    fn read_thread(&mut self, index: usize, paused: Option<usize>) -> Result<(), Trouble> {
        let found = self.found[index];
        let thread = &self.threads[found.thread];
        let layout = &self.python.layout;
        let gil = self.gils[thread.interp];
        // Of one that is stopped /proc tells how it was stopped.
        let awake =
            paused == Some(found.thread) || found.holds && (found.ran.is_none() || found.ran != thread.ran);
        let state = if awake { State::Running } else { state(thread, gil, layout) };
        let collecting = found.holds && {
            let interp = self.interps[thread.interp].addr;
            reader::collecting(&mut self.pages, layout, self.python.runtime, interp)
        };
        let begin = self.raw.len();
        let mut frames = None;
        if self.wants(state) {
            reader::walk(&mut self.pages, layout, self.threads[found.thread].tstate, &mut self.raw)
                .ok_or(Trouble::Moved)?;
            frames = Some((begin, self.raw.len()));
        }
        let root = frames.and_then(|_| self.root(found.thread));
        self.found[index] = Found { state, collecting, frames, root, ..found };
        Ok(())
    }

    /// Reads the task that a thread runs.
    fn root(&mut self, thread: usize) -> Option<usize> {
        if !self.options.tasks {
            return None;
        }
        let thread = &self.threads[thread];
        let tasks = self.interps[thread.interp].tasks;
        self.roots.push(tasks::root(&mut self.pages, &self.python, thread.tstate, tasks)?);
        Some(self.roots.len() - 1)
    }

    fn wants(&self, state: State) -> bool {
        match state {
            State::Running => true,
            State::WaitingForGil => self.options.idle || self.options.gil_wait,
            State::Idle => self.options.idle,
        }
    }

    /// All that was read is of one moment.
    fn commit(&mut self, tree: &mut Tree, now: Option<u64>) {
        self.last = now;
        self.choose_runner();
        for thread in &mut self.threads {
            thread.shown.holds_gil = false;
            thread.shown.exact = true;
        }
        for found in std::mem::take(&mut self.found) {
            self.keep(tree, found);
        }
        self.finish();
    }

    fn keep(&mut self, tree: &mut Tree, found: Found) {
        let thread = &mut self.threads[found.thread];
        thread.quiet = 0;
        thread.ran = found.ran;
        thread.shown.state = found.state;
        thread.shown.holds_gil = found.holds;
        thread.shown.collecting = found.collecting;
        thread.shown.exact = true;
        thread.read = found.frames.is_some();
        thread.shown.stack = EMPTY;
        let Some((begin, end)) = found.frames else { return };
        let raw = &self.raw[begin..end];
        self.stats.stacks += 1;
        thread.shown.stack = intern(&mut self.resolver, &self.python, tree, thread, raw);
        if found.collecting {
            let gc = *self.gc.get_or_insert_with(|| tree.intern(Frame::label("<gc>")));
            thread.shown.stack = tree.push(thread.shown.stack, gc);
        }
        if self.options.tasks {
            let root = found.root.map(|index| &self.roots[index]);
            let label = Frame::label(root.map_or(tasks::NO_TASK, |root| &root.label));
            let base = tree.intern(label);
            let base = tree.push(EMPTY, base);
            // From the task's coroutine on; all of it if that has not begun, or is none of Python.
            let begins = thread.raw.iter().position(|frame| Some(frame.code) == root.map(|r| r.code));
            let below =
                begins.and_then(|index| index.checked_sub(1)).map_or(EMPTY, |index| thread.nodes[index]);
            thread.shown.stack = tree.rebase_above(base, thread.shown.stack, below);
        }
    }

    fn finish(&mut self) {
        self.stats.samples += 1;
        self.any_runs = self.threads.iter().any(|t| t.shown.state == State::Running);
        self.shown.clear();
        self.shown.extend(self.threads.iter().map(|t| t.shown.clone()));
    }

    /// Several threads run at once, or somebody else does: each by its own run count.
    fn one_by_one(&mut self, tree: &mut Tree, seat: &mut Seat) -> Outcome {
        self.stats.one_by_one += 1;
        self.last = None;
        let mut proven = 0;
        let found = std::mem::take(&mut self.found);
        for thread in &mut self.threads {
            thread.shown.holds_gil = false;
            // Who has run and is not proven below is not of this sample.
            thread.shown.exact = true;
        }
        for one in &found {
            if one.frames.is_none() && one.state != State::Running {
                self.raw.clear();
                self.keep(tree, *one);
                proven += 1;
                continue;
            }
            match self.prove(*one, seat) {
                Some(one) => {
                    self.keep(tree, one);
                    proven += 1;
                }
                None => {
                    self.stats.torn += 1;
                    self.threads[one.thread].shown.exact = false;
                }
            }
        }
        let torn = proven == 0 && !found.is_empty();
        self.found = found;
        self.finish();
        if torn { Outcome::Torn } else { Outcome::Sample }
    }

    /// Reads one thread while it provably does not run.
    fn prove(&mut self, found: Found, seat: &mut Seat) -> Option<Found> {
        for _ in 0..TRIES_OF_A_THREAD {
            let probe = self.threads[found.thread].probe.as_ref()?;
            let cpu = probe.cpu().ok()?;
            let ran = probe.ran().ok()?;
            let asleep = matches!(probe.doing(), Doing::Asleep(_));
            let mut stopped = None;
            if !asleep && self.options.pause {
                stopped = Some(pause(probe, &mut self.unpaused)?);
            }
            let held = asleep || stopped.is_some();
            let sits = held || (seat.take(cpu) && probe.cpu().ok()? == cpu);
            if !sits {
                continue;
            }
            // What it ran up to our coming is accounted for now that it does not run any more.
            let ran = if asleep { ran } else { probe.ran().ok()? };
            self.pages.refresh().ok()?;
            self.raw.clear();
            self.roots.clear();
            let thread = &self.threads[found.thread];
            let (layout, runtime) = (&self.python.layout, self.python.runtime);
            let interp = self.interps[thread.interp].addr;
            let gil = reader::gil(&mut self.pages, layout, runtime, interp);
            let holds = gil.is_some_and(|g| g.locked && g.holder == thread.tstate);
            let state = if asleep { state(thread, gil, layout) } else { State::Running };
            let collecting = holds && reader::collecting(&mut self.pages, layout, runtime, interp);
            let walked = reader::walk(&mut self.pages, layout, thread.tstate, &mut self.raw).is_some();
            let root = self.root(found.thread);
            let probe = self.threads[found.thread].probe.as_ref()?;
            let same = stopped.is_some() || probe.ran().ok()? == ran;
            let here = || probe.cpu().ok() == Some(cpu) && sched_getcpu().ok() == Some(cpu);
            if walked && same && (held || here()) {
                let frames = Some((0, self.raw.len()));
                return Some(Found { state, holds, collecting, ran: Some(ran), frames, root, ..found });
            }
            self.stats.retries += 1;
        }
        None
    }
}

impl Found {
    fn new(thread: usize, holds: bool, ran: Option<(u64, u64)>) -> Found {
        Found { thread, state: State::Idle, holds, collecting: false, ran, frames: None, root: None }
    }
}

/// Stops a running thread. Asked once more whether it sleeps: its system call would return early.
fn pause(probe: &ThreadProbe, unpaused: &mut Option<PauseError>) -> Option<Pause> {
    if matches!(probe.doing(), Doing::Asleep(_)) {
        return None;
    }
    match Pause::seize(probe.tid, PAUSE_DEADLINE) {
        Ok(pause) => Some(pause),
        Err(error) => {
            *unpaused = Some(error);
            None
        }
    }
}

impl Thread {
    fn forget_stack(&mut self) {
        self.raw.clear();
        self.nodes.clear();
    }
}

/// What `/proc` says that a thread does.
fn state(thread: &Thread, gil: Option<Gil>, layout: &crate::python::layout::Layout) -> State {
    match thread.probe.as_ref().map(|p| p.doing()) {
        Some(Doing::Running) => State::Running,
        Some(Doing::Asleep(call)) => {
            let waits = |g: Gil, futex: Addr| {
                let start = g.addr + layout.gil.cond;
                (start..start + layout.gil.cond_size).contains(&futex)
            };
            match (gil, syscalls::futex_address(Arch::HERE, &call)) {
                (Some(gil), Some(futex)) if waits(gil, futex) => State::WaitingForGil,
                _ => State::Idle,
            }
        }
        _ => State::Idle,
    }
}

/// The node of a stack. What is as it was the last time, counted from the outermost frame, is not looked up.
fn intern(
    resolver: &mut Resolver,
    python: &Python,
    tree: &mut Tree,
    thread: &mut Thread,
    raw: &[RawFrame],
) -> super::tree::StackId {
    let outermost_first = || raw.iter().rev();
    let same = outermost_first().zip(&thread.raw).take_while(|(a, b)| a == b).count();
    thread.raw.truncate(same);
    thread.nodes.truncate(same);
    let new = &raw[..raw.len() - same];
    if new.iter().any(|frame| resolver.get(frame).is_none()) {
        resolver.learn(python, tree, new);
    }
    resolver.met(new);
    let mut stack = thread.nodes.last().copied().unwrap_or(EMPTY);
    for frame in new.iter().rev() {
        if let Some(Some(id)) = resolver.get(frame) {
            stack = tree.push(stack, id);
        }
        thread.raw.push(*frame);
        thread.nodes.push(stack);
    }
    stack
}
