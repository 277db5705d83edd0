//! The frozen window: reads all stacks of a process so that each is proven to be of one moment.
//!
//! Every attempt reads everything anew. What counts is which threads provably stood still meanwhile
//! (target/frozen.rs); with a GIL it is enough that its last holder did and that it did not change
//! hands. A thread that was proven once is kept; what could not be proven after all attempts is
//! marked as such.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::python::code::Codes;
use crate::python::names::{self, ThreadName};
use crate::python::objects::Heap;
use crate::python::reprs::Limits;
use crate::python::threads::{self, RawGil, RawInterpreter, RawThread};
use crate::python::{Python, locals, tids};
use crate::snapshot::{Local, Read};
use crate::stdlib::os::Now;
use crate::stdlib::{self, Scene, Seen};
use crate::target::blocked::monotonic;
use crate::target::cached::CachedMemory;
use crate::target::facts::RawSyscall;
use crate::target::frozen::{self, Seat, Start, Still};
use crate::target::memory::Addr;
use crate::target::parse::Doing;
use crate::target::pause::Pause;
use crate::target::probe::{Standing, ThreadProbe};
use crate::target::syscalls::{self, Arch};

/// A window that succeeds at all succeeds within a few attempts; a thread that is never caught in
/// this time is said not to have been.
const ATTEMPTS: usize = 60;
const BUDGET: Duration = Duration::from_millis(250);
/// After so many attempts the window is made shorter: tasks are not read in it any more...
const ATTEMPTS_WITH_TASKS: usize = 6;
/// ...and then nothing but stacks is.
const ATTEMPTS_WITH_WAITS: usize = 16;
/// Nobody is kept from its CPU for longer than this.
const LONG_READING: Duration = Duration::from_millis(2);
/// How long whoever seems to run without the GIL is watched for waiting for it.
const GIL_WAITERS: Duration = Duration::from_millis(12);
/// With `--pause`, how long a thread may take to stop.
const PAUSE_DEADLINE: Duration = Duration::from_millis(100);

/// What was read, and how exactly.
#[derive(Debug, Default)]
pub struct Stacks {
    pub interpreters: Vec<RawInterpreter>,
    pub reads: FxHashMap<Addr, Read>,
    /// Locals by frame address.
    pub locals: Locals,
    /// The tid (as the target sees it) of each thread state.
    pub tids: FxHashMap<Addr, i32>,
    /// Code objects: they do not change, so each is read once over all attempts.
    pub codes: Codes,
    /// What `threading` knows, by interpreter and ident.
    pub names: Names,
    /// What the threads wait on and hold.
    pub seen: Seen,
    /// Whose waits were over when the window was, and whose stack is not of the moment of what was read.
    pub stale: Vec<Addr>,
    pub doubted: Vec<Addr>,
    /// Where each task stood during the accepted attempt.
    pub standings: FxHashMap<i32, Standing>,
    /// The clocks when `seen` was read.
    pub now: Now,
    pub problems: Vec<String>,
    /// What must be said of how it was read.
    pub notes: Vec<String>,
    pub attempts: usize,
    /// How long the reading took in the last attempt.
    pub reading: Duration,
}

/// Thread names by interpreter state and ident.
pub type Names = FxHashMap<Addr, FxHashMap<u64, ThreadName>>;

pub struct Window<'a> {
    pub pid: i32,
    pub python: &'a Python,
    pub memory: &'a CachedMemory,
    pub probes: &'a [ThreadProbe],
    /// The tid that `/proc` knows by the one that the target knows.
    pub tid_of: &'a dyn Fn(i32) -> i32,
    /// The tasks as the target numbers them.
    pub tasks: &'a [i32],
    pub locals: Option<Limits>,
    pub pause: bool,
    /// Also read what threads wait on and hold.
    pub waits: bool,
    /// Without what takes a search of all memory.
    pub quick: bool,
}

/// Who must stand still for an attempt to count.
enum Keeper {
    /// The GIL's words before the read, and its last holder's task, if it has one.
    Gil { before: RawGil, holder: Option<i32> },
    /// One thread of a free-threaded build.
    Thread { tstate: Addr, tid: i32 },
}

/// Unproven threads as the attempt before read them. Who is read twice the same was met at one point
/// of its way. The values count as well: a new call may lie in the frame of an old one.
#[derive(Default)]
struct Previous(FxHashMap<Addr, (RawThread, Values)>);

/// By thread state and frame. By frame alone would mix threads that are proven by different attempts: up to
/// 3.10 the frame object of a call that has ended serves the next call of the same function, in any thread.
pub type Locals = FxHashMap<(Addr, Addr), Vec<Local>>;

/// The locals of each frame of one thread.
type Values = Vec<Option<Vec<Local>>>;

impl Previous {
    fn is(&self, thread: &RawThread, locals: &Locals) -> bool {
        self.0.get(&thread.tstate).is_some_and(|(old, values)| {
            let now = thread.frames.iter().map(|f| locals.get(&(thread.tstate, f.addr)));
            old == thread && values.iter().map(Option::as_ref).eq(now)
        })
    }

    fn keep(&mut self, thread: &RawThread, locals: &Locals) {
        let values = thread.frames.iter().map(|f| locals.get(&(thread.tstate, f.addr)).cloned()).collect();
        self.0.insert(thread.tstate, (thread.clone(), values));
    }
}

impl Window<'_> {
    pub fn read(&self) -> Stacks {
        let mut stacks = self.scout();
        let began = Instant::now();
        let mut seat = Seat::default();
        let mut previous = Previous::default();
        for attempt in 0..ATTEMPTS {
            if attempt > 1 && began.elapsed() > BUDGET {
                break;
            }
            if attempt > 0 && attempt % 8 == 0 {
                // Somebody ends or is born all the time: let it have the CPU for a moment.
                seat.leave();
                std::thread::sleep(Duration::from_micros(200));
            }
            stacks.attempts = attempt + 1;
            self.attempt(&mut stacks, &mut seat, &mut previous);
            if stacks.interpreters.iter().flat_map(|i| &i.threads).all(|t| is_exact(&stacks.reads, t)) {
                break;
            }
        }
        seat.leave();
        self.find_gil_waiters(&mut stacks);
        if self.waits && stacks.attempts > ATTEMPTS_WITH_TASKS {
            self.read_left_out(&mut stacks);
        }
        if self.waits && !self.quick {
            self.read_slowly(&mut stacks);
        }
        stacks
    }

    /// What was left out of the window of a process that is too busy to stand still for all of it:
    /// each object is read as it is met.
    fn read_left_out(&self, stacks: &mut Stacks) {
        if stacks.attempts > ATTEMPTS_WITH_WAITS {
            stacks.now = now();
        }
        let heap = self.python.heap(self.memory);
        let tid = |tstate| stacks.tids.get(&tstate).map(|tid| (self.tid_of)(*tid));
        let before = self.standings();
        let call = |tid| before.get(&tid)?.doing.syscall();
        let (codes, names) = (&mut stacks.codes, &mut stacks.names);
        let seen = read_waits(
            &heap,
            self.python,
            self.pids(),
            codes,
            names,
            &stacks.interpreters,
            &tid,
            &call,
            stacks.now,
            true,
        );
        if stacks.attempts > ATTEMPTS_WITH_WAITS {
            let after = self.standings();
            stacks.seen = seen;
            stacks.stale = self.stale(&stacks.interpreters, &stacks.tids, &before, &after);
            let stood =
                |tid| before.get(&tid).zip(after.get(&tid)).is_some_and(|(b, a)| b.is_proof_against(a));
            let moved = stacks.tids.iter().filter(|(_, tid)| !stood((self.tid_of)(**tid)));
            stacks.doubted = moved.map(|(tstate, _)| *tstate).collect();
            stacks.doubt(self.tid_of);
            stacks.note("what threads wait on is not of one moment with the stacks: it is too busy".into());
            return;
        }
        stacks.seen.tasks = seen.tasks;
        stacks.seen.task_frames = seen.task_frames;
        stacks.seen.loops = seen.loops;
        stacks.seen.running = seen.running;
        stacks.seen.current = seen.current;
        stacks.note("the tasks are not of one moment with the stacks: the process is too busy".into());
    }

    fn read_slowly(&self, stacks: &mut Stacks) {
        let heap = self.python.heap(self.memory);
        let tid = |tstate| stacks.tids.get(&tstate).map(|tid| (self.tid_of)(*tid));
        let call = |tid| stacks.standings.get(&tid)?.doing.syscall();
        let (python, codes, names) = (self.python, &stacks.codes, &stacks.names);
        let scene = Scene::new(
            &heap,
            python,
            self.pids(),
            codes,
            &stacks.interpreters,
            names,
            &tid,
            &call,
            stacks.now,
        );
        stdlib::read_slowly(&scene, codes, &mut stacks.seen);
        let fresh = Fresh(self.memory);
        stdlib::spare_woken(&Heap::new(&fresh, &self.python.layout), &mut stacks.seen);
    }

    /// Who waits for the GIL wakes every 5 ms to ask for it, and may be met just then, "running"; on a
    /// loaded machine it stands in line for a CPU for a while. So whoever seems to run without the GIL
    /// while somebody holds it is looked at a few times more.
    fn find_gil_waiters(&self, stacks: &mut Stacks) {
        let until = Instant::now() + GIL_WAITERS;
        let mut suspects: Vec<(&ThreadProbe, RawGil)> = Vec::new();
        for interp in &stacks.interpreters {
            let Some(gil) = interp.gil.filter(|g| g.locked) else { continue };
            for thread in interp.threads.iter().filter(|t| t.tstate != gil.last_holder) {
                let probe = stacks.tids.get(&thread.tstate).and_then(|tid| self.probe(*tid));
                let runs = |p: &&ThreadProbe| {
                    stacks.standings.get(&p.tid).is_some_and(|s| s.doing == Doing::Running)
                };
                suspects.extend(probe.filter(runs).map(|p| (p, gil)));
            }
        }
        while !suspects.is_empty() && Instant::now() < until {
            suspects.retain(|(probe, gil)| {
                let Ok(standing) = probe.standing() else { return false };
                let waits = self.waits_for(gil, &standing);
                if waits {
                    stacks.standings.insert(probe.tid, standing);
                }
                // Asleep somewhere else: it was not the GIL that it was about to wait for.
                !waits && standing.doing == Doing::Running
            });
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    /// Which threads there are, and their tasks; also brings the pages that the first attempt needs.
    fn scout(&self) -> Stacks {
        let heap = self.python.heap(self.memory);
        let (interpreters, problems) = threads::list_all(&heap, self.python.runtime);
        let tids = tids::of_threads(&heap, interpreters.iter().flat_map(|i| &i.threads), self.tasks);
        Stacks { interpreters, tids, problems, ..Stacks::default() }
    }

    /// A thread that has run since its call was noted waits no more for what that call says: it may have
    /// got its lock since, and would seem to wait for itself. Those that ask for the GIL wake every 5 ms.
    fn stale(
        &self,
        interpreters: &[RawInterpreter],
        tids: &FxHashMap<Addr, i32>,
        before: &FxHashMap<i32, Standing>,
        after: &FxHashMap<i32, Standing>,
    ) -> Vec<Addr> {
        let mut stale = Vec::new();
        for interp in interpreters {
            for thread in &interp.threads {
                let Some(tid) = tids.get(&thread.tstate).map(|tid| (self.tid_of)(*tid)) else { continue };
                let (Some(b), Some(a)) = (before.get(&tid), after.get(&tid)) else { continue };
                let for_gil = || interp.gil.is_some_and(|gil| self.waits_for(&gil, b));
                if !b.is_proof_against(a) && !for_gil() {
                    stale.push(thread.tstate);
                }
            }
        }
        stale
    }

    /// Asleep until the GIL is free.
    fn waits_for(&self, gil: &RawGil, standing: &Standing) -> bool {
        let futex = standing.doing.syscall().and_then(|call| syscalls::futex_address(Arch::HERE, &call));
        futex.is_some_and(|futex| gil.waits_here(&self.python.layout, futex))
    }

    /// As we number it, and as it numbers itself.
    fn pids(&self) -> (i32, i32) {
        let main = self.probes.iter().position(|p| p.tid == self.pid);
        (self.pid, main.map_or(self.pid, |at| self.tasks[at]))
    }

    fn probe(&self, target_tid: i32) -> Option<&ThreadProbe> {
        let tid = (self.tid_of)(target_tid);
        self.probes.iter().find(|p| p.tid == tid)
    }

    fn standings(&self) -> FxHashMap<i32, Standing> {
        self.probes.iter().filter_map(|p| Some((p.tid, p.standing().ok()?))).collect()
    }

    /// Whether the keeper has stood still until now.
    fn proof(
        &self,
        pause: &Option<Pause>,
        probe: Option<&ThreadProbe>,
        keeper: &Option<Keeper>,
        start: Option<&Start>,
    ) -> Option<Read> {
        let held = match (pause, probe, start) {
            (Some(_), ..) => Some(Read::Paused),
            (None, Some(probe), Some(start)) => frozen::finish(probe, start).map(|still| match still {
                Still::Asleep => Read::Frozen,
                Still::Seat => Read::Seat,
            }),
            // Nobody has held the GIL yet, or its last holder has ended.
            (None, None, _) if keeper.as_ref().is_some_and(|k| k.tid().is_none()) => Some(Read::Frozen),
            _ => None,
        };
        held.filter(|_| match keeper {
            Some(Keeper::Gil { before, .. }) => self.fresh_gil(before.addr) == Some(*before),
            _ => true,
        })
    }

    fn attempt(&self, stacks: &mut Stacks, seat: &mut Seat, previous: &mut Previous) {
        // What /proc says of each thread belongs to the same window as its frames.
        seat.leave();
        let before = self.standings();
        let keeper = self.keeper(stacks);
        let (probe, mut pause) = (keeper.as_ref().and_then(|k| self.probe(k.tid()?)), None);
        if self.pause
            && let Some(probe) = probe
            && before.get(&probe.tid).is_some_and(|s| s.doing == Doing::Running)
        {
            pause = Pause::seize(probe.tid, PAUSE_DEADLINE).map_err(|why| stacks.note(why.to_string())).ok();
        }
        let start: Option<Start> = match (&pause, probe) {
            (None, Some(probe)) => frozen::start(probe, Some(seat)),
            _ => None,
        };

        self.memory.refresh();
        // All that the attempt before needed is copied by now. If this one needs nothing else, that copy is
        // the moment; reading takes its time then, and nobody has to stand still for it.
        let mut copy = self.proof(&pause, probe, &keeper, start.as_ref());
        let after_copy = copy.is_some().then(|| self.standings());
        if copy.is_some() && stacks.reading > LONG_READING {
            drop(pause.take());
            seat.leave();
        }
        if self.memory.is_recording() {
            // A capture has the bytes of the last attempt only: those of code objects must be among them.
            stacks.codes = Codes::default();
        }
        let began = Instant::now();
        let heap = self.python.heap(self.memory);
        let (interpreters, problems) = threads::read(&heap, self.python.runtime);
        let locals = self.locals.map(|limits| read_locals(&heap, &interpreters, limits));
        if self.waits && stacks.attempts <= ATTEMPTS_WITH_WAITS {
            let tid = |tstate| stacks.tids.get(&tstate).map(|tid| (self.tid_of)(*tid));
            let call = |tid| before.get(&tid)?.doing.syscall();
            let names = &mut stacks.names;
            let moment = now();
            stacks.now = moment;
            stacks.seen = read_waits(
                &heap,
                self.python,
                self.pids(),
                &mut stacks.codes,
                names,
                &interpreters,
                &tid,
                &call,
                moment,
                stacks.attempts <= ATTEMPTS_WITH_TASKS,
            );
        }
        stacks.reading = began.elapsed();
        if self.memory.went_beyond_copy() {
            copy = None;
        }
        let held = copy.or_else(|| self.proof(&pause, probe, &keeper, start.as_ref()));
        drop(pause);
        seat.leave();
        self.memory.end_window();
        let after = match after_copy {
            Some(standings) if copy.is_some() => standings,
            _ => self.standings(),
        };
        log::debug!(
            "attempt {}: read in {:?}, {}",
            stacks.attempts,
            stacks.reading,
            match (copy, held) {
                (Some(_), _) => "from a copy of one moment",
                (None, Some(_)) => "at one moment",
                _ => "while it ran",
            }
        );

        // A thread that was born meanwhile is not in the table of tasks yet.
        let new = interpreters.iter().flat_map(|i| &i.threads).any(|t| !stacks.tids.contains_key(&t.tstate));
        if new {
            stacks.tids = tids::of_threads(&heap, interpreters.iter().flat_map(|i| &i.threads), self.tasks);
        }
        let asleep = |tstate: Addr| {
            let tid = (self.tid_of)(*stacks.tids.get(&tstate)?);
            let (b, a) = (before.get(&tid)?, after.get(&tid)?);
            b.is_proof_against(a).then_some(Read::Frozen)
        };
        stacks.stale = self.stale(&interpreters, &stacks.tids, &before, &after);
        let kept = |gil: Option<RawGil>, thread: &RawThread| match &keeper {
            Some(Keeper::Gil { before, .. }) => gil.is_some_and(|g| g.addr == before.addr),
            Some(Keeper::Thread { tstate, .. }) => thread.tstate == *tstate,
            None => false,
        };

        // Proven now, or proven before and kept from then, or as it was read, marked.
        let mut reads = FxHashMap::default();
        let mut merged = interpreters;
        // What this attempt saw of them is of no moment, even where one before has proven the stack.
        stacks.doubted.clear();
        let mut locals = locals.unwrap_or_default();
        for interp in &mut merged {
            let gil = interp.gil;
            for thread in &mut interp.threads {
                let now = asleep(thread.tstate).or_else(|| held.filter(|_| kept(gil, thread)));
                if now.is_none() {
                    stacks.doubted.push(thread.tstate);
                }
                let read = match now {
                    Some(read) => read,
                    None => match stacks.proven(thread.tstate) {
                        Some((old, read)) => {
                            for at in old.frames.iter().map(|f| (old.tstate, f.addr)) {
                                if let Some(values) = stacks.locals.get(&at) {
                                    locals.insert(at, values.clone());
                                }
                            }
                            *thread = old.clone();
                            read
                        }
                        None if previous.is(thread, &locals) => Read::Moving,
                        None => Read::Torn,
                    },
                };
                if matches!(read, Read::Moving | Read::Torn) {
                    previous.keep(thread, &locals);
                }
                reads.insert(thread.tstate, read);
            }
        }
        stacks.doubt(self.tid_of);
        stacks.interpreters = merged;
        stacks.reads = reads;
        stacks.locals = locals;
        stacks.problems = problems;
        stacks.standings = before;
    }

    /// Whom to watch in this attempt: the GIL of the interpreter that is least proven, or, without a
    /// GIL, one thread that runs and is not proven yet.
    fn keeper(&self, stacks: &Stacks) -> Option<Keeper> {
        let unproven = |i: &RawInterpreter| i.threads.iter().filter(|t| !is_exact(&stacks.reads, t)).count();
        let interp = stacks.interpreters.iter().max_by_key(|i| unproven(i))?;
        match interp.gil {
            Some(gil) => {
                let before = self.fresh_gil(gil.addr)?;
                let holder = stacks.tids.get(&before.last_holder).copied();
                if holder.is_none() && before.locked {
                    // Held by a thread that we do not know yet: the next attempt will.
                    return None;
                }
                Some(Keeper::Gil { before, holder })
            }
            None => {
                // In turn, so that one that cannot be caught does not cost the others their chance.
                let left: Vec<&RawThread> =
                    interp.threads.iter().filter(|t| !is_exact(&stacks.reads, t)).collect();
                let thread = left.get(stacks.attempts % left.len().max(1))?;
                let tid = *stacks.tids.get(&thread.tstate)?;
                Some(Keeper::Thread { tstate: thread.tstate, tid })
            }
        }
    }

    /// The GIL's words as they stand now, around the cache.
    fn fresh_gil(&self, addr: Addr) -> Option<RawGil> {
        let fresh = Fresh(self.memory);
        threads::gil_at(&Heap::new(&fresh, &self.python.layout), addr)
    }
}

impl Keeper {
    fn tid(&self) -> Option<i32> {
        match self {
            Keeper::Gil { holder, .. } => *holder,
            Keeper::Thread { tid, .. } => Some(*tid),
        }
    }
}

impl Stacks {
    fn note(&mut self, problem: String) {
        if !self.notes.contains(&problem) {
            self.notes.push(problem);
        }
    }

    /// Takes back what was seen of threads that moved meanwhile.
    pub fn doubt(&mut self, tid_of: &dyn Fn(i32) -> i32) {
        for tstate in &self.stale {
            // Who runs is not asleep anywhere: what it does says its stack, which is proven for itself.
            if self.seen.waits.get(tstate).is_none_or(|wait| wait.kind != "cpu") {
                self.seen.waits.remove(tstate);
            }
            self.seen.os.remove(tstate);
        }
        for tstate in &self.doubted {
            self.seen.doubt(*tstate, self.tids.get(tstate).map(|tid| tid_of(*tid)));
        }
    }

    /// Each stack is of one moment.
    pub fn are_exact(&self) -> bool {
        let mut threads = self.interpreters.iter().flat_map(|i| &i.threads).peekable();
        threads.peek().is_some() && threads.all(|t| is_exact(&self.reads, t))
    }

    /// The thread as an earlier attempt proved it.
    fn proven(&self, tstate: Addr) -> Option<(&RawThread, Read)> {
        let read = self.reads.get(&tstate).copied().filter(|r| r.is_exact())?;
        let thread = self.interpreters.iter().flat_map(|i| &i.threads).find(|t| t.tstate == tstate)?;
        Some((thread, read))
    }
}

fn is_exact(reads: &FxHashMap<Addr, Read>, thread: &RawThread) -> bool {
    reads.get(&thread.tstate).is_some_and(|r| r.is_exact())
}

/// The clocks that timeouts count by.
pub fn now() -> Now {
    let realtime = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok();
    Now { monotonic: Some(monotonic().as_secs_f64()), realtime: realtime.map(|r| r.as_secs_f64()) }
}

/// Everything that `stdlib` makes of the threads at this moment.
#[allow(clippy::too_many_arguments)]
pub fn read_waits(
    heap: &Heap,
    python: &Python,
    pids: (i32, i32),
    codes: &mut Codes,
    names: &mut Names,
    interpreters: &[RawInterpreter],
    tid: &dyn Fn(Addr) -> Option<i32>,
    syscall: &dyn Fn(i32) -> Option<RawSyscall>,
    now: Now,
    tasks: bool,
) -> Seen {
    codes.load(heap, interpreters.iter().flat_map(|i| &i.threads).flat_map(|t| &t.frames).map(|f| f.code));
    *names = interpreters.iter().map(|i| (i.addr, names::of_interpreter(heap, i.addr))).collect();
    let scene = Scene::new(heap, python, pids, codes, interpreters, names, tid, syscall, now);
    stdlib::read(&scene, codes, tasks)
}

pub fn read_locals(heap: &Heap, interps: &[RawInterpreter], limits: Limits) -> Locals {
    let threads = interps.iter().flat_map(|i| &i.threads);
    let frames = threads.flat_map(|t| t.frames.iter().map(|f| (t.tstate, f)));
    frames.filter_map(|(t, f)| Some(((t, f.addr), locals::of_frame(heap, f, limits)?))).collect()
}

/// Memory around the cache.
struct Fresh<'a>(&'a CachedMemory);

impl crate::target::memory::Memory for Fresh<'_> {
    fn read_into(&self, addr: Addr, buf: &mut [u8]) -> Result<(), crate::target::memory::Fault> {
        self.0.fresh(addr, buf)
    }
}
