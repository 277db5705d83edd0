//! One process, sample by sample. What a sample is and why it is exact: see mod.rs.

/// Reading from another CPU.
mod apart;
/// Who is seen to call whom.
mod links;
/// The seat.
mod seated;

use nix::errno::Errno;

use apart::Apart;

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
use crate::target::clocks::{CpuClock, monotonic};
use crate::target::frozen::Seat;
use crate::target::memory::Addr;
use crate::target::pages::Pages;
use crate::target::parse::Doing;
use crate::target::pause::PauseError;
use crate::target::proc;
use crate::target::syscalls::{self, Arch};

/// A thread that has not run for so many samples is asked only when some CPU time is not explained.
const QUIET: u32 = 64;
/// How often what code objects are is compared, nanoseconds.
const COMPARE_EVERY: u64 = 100_000_000;
/// How often names are looked for while a thread has none, nanoseconds.
const NAMES_EVERY: u64 = 250_000_000;
/// And while the task of a thread is not known: in a child that was just forked soon, then ever more rarely.
const LOST_FIRST: u64 = 1_000_000;
const LOST_EVERY: u64 = 20_000_000;

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
    /// Read from another CPU, beside threads that run on. Not with `pause` or `tasks`.
    pub apart: bool,
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
            apart: false,
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
    /// Stacks that were read from another CPU.
    pub apart: u64,
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
    lost_pause: u64,
    list_again: bool,
    /// Of the last samples, how many could not be proven whole (0 to 256).
    unproven: u32,
    /// If it reads from another CPU.
    apart: Option<Apart>,
}

impl Sampler {
    /// Finds the Python of a live process.
    pub fn attach(pid: i32, options: SamplerOptions) -> Result<Sampler, AccessError> {
        let mut facts = proc::process(pid)?;
        let memory = CachedMemory::live(pid);
        let (python, maps) = look::attach(pid, &mut facts, &memory)?;
        let clock = CpuClock::of(pid).map_err(|errno| access::explain(pid, errno))?;
        let other_namespace = facts.ns_pid != pid;
        let (interps, threads) = threads::list(pid, other_namespace, &python, Vec::new());
        let resolver = Resolver::new(pid, &python, options.lines, &options.apps);
        let apart = (options.apart && !options.pause && !options.tasks).then(Apart::default);
        Ok(Sampler {
            pid,
            resolver,
            options,
            clock,
            places: Places::of(&maps, &memory),
            pages: Pages::new(pid),
            interps,
            threads,
            other_namespace,
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
            lost_pause: LOST_FIRST,
            list_again: false,
            unproven: 0,
            apart,
            python,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn python(&self) -> &Python {
        &self.python
    }

    /// Some thread ran in the last sample.
    pub fn any_runs(&self) -> bool {
        self.any_runs
    }

    /// The threads as of the last sample.
    pub fn threads(&self) -> impl Iterator<Item = &Sampled> {
        self.threads.iter().map(|t| &t.shown)
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// If it reads from another CPU: whether the last sample was one of those from the seat all the same.
    pub fn seated(&self) -> Option<bool> {
        self.apart.as_ref().map(|apart| apart.seated)
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
        match self.apart {
            Some(_) => self.sample_apart(tree, seat),
            None => self.sample_seated(tree, seat),
        }
    }

    fn housekeeping(&mut self) {
        let now = monotonic();
        if now >= self.compare_at {
            self.compare_at = now + COMPARE_EVERY;
            let changed = self.resolver.compare(&self.python);
            if !changed.is_empty() {
                self.threads.iter_mut().for_each(Thread::forget_stack);
                if let Some(apart) = &mut self.apart {
                    apart.forget(&changed);
                }
            }
        }
        // A child that was just forked has the tid of its parent's thread for a moment.
        let lost = self.threads.iter().any(|t| t.probe.is_none());
        let nameless = |t: &Thread| t.shown.name.is_none() && t.shown.tid != 0;
        let no_tasks = self.options.tasks && self.interps.iter().any(|i| i.tasks.is_none());
        let wants_list = || lost || no_tasks || self.threads.iter().any(nameless);
        if self.list_again || (now >= self.names_at && wants_list()) {
            self.names_at = now + if lost { self.lost_pause } else { NAMES_EVERY };
            if lost {
                self.lost_pause = (self.lost_pause * 2).min(LOST_EVERY);
            }
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
        // Another program was executed: also where that came before any interpreter was seen.
        let Some(head) = head else { return Err(Trouble::Gone) };
        if Some(head) != self.interps.first().map(|i| i.addr) {
            return Err(Trouble::Threads);
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
            self.keep_proven(tree, found);
        }
        self.finish();
    }

    fn keep_proven(&mut self, tree: &mut Tree, found: Found) {
        if let (Some(apart), Some((begin, end))) = (&mut self.apart, found.frames) {
            apart.learn(&self.raw[begin..end]);
        }
        self.keep(tree, found);
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
        thread.shown.stack = thread.intern(&mut self.resolver, &self.python, tree, raw);
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
    }
}

impl Found {
    fn new(thread: usize, holds: bool, ran: Option<(u64, u64)>) -> Found {
        Found { thread, state: State::Idle, holds, collecting: false, ran, frames: None, root: None }
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
