//! One look at one process: facts, the frozen window, and what came out of it.

/// Joins what was read of several processes.
pub mod across;
pub mod capture;
/// Reads the processes that waits lead to.
pub mod follow;
pub mod process;
pub mod waits;
pub mod window;

use std::time::{Duration, Instant};

use crate::python::reprs::Limits;
use crate::python::{NotFound, Python};
use crate::snapshot::Process;
use crate::stdlib::os::Now;
use crate::stdlib::{self, Scene};
use crate::target::access::{self, AccessError};
use crate::target::cached::CachedMemory;
use crate::target::facts::ProcessFacts;
use crate::target::files::ProcDir;
use crate::target::find::{self, Looks};
use crate::target::live::LiveMemory;
use crate::target::maps::{self, Mapping};
use crate::target::memory::Addr;
use crate::target::probe::ThreadProbe;
use crate::target::sources::{self, Sources};
use crate::target::{proc, shared, threads};
use capture::CapturedProcess;
use window::{Stacks, Window};

/// A Python without an interpreter is taken to be starting for this long, seconds.
const STARTING: f64 = 5.0;
/// Whoever shares a GIL gives it away every 5 ms when it is asked for (`sys.setswitchinterval`).
const GIL_SHARED: Duration = Duration::from_millis(25);

/// What a look shall bring. The default is the plain one: stacks, no locals, nothing stopped.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// 0 none, 1 short, 2 or more long.
    pub locals: u8,
    pub show_secrets: bool,
    /// Installed packages that count as the application.
    pub apps: Vec<String>,
    pub pause: bool,
    /// Only stacks: neither waits nor findings.
    pub no_findings: bool,
    /// Keep what was read, for a capture.
    pub save: bool,
    /// No target: read because a wait led here.
    pub followed: bool,
    /// Without the search of all memory for who could end the waits of tasks.
    pub quick: bool,
}

impl Options {
    fn limits(&self) -> Option<Limits> {
        let limits = match self.locals {
            0 => return None,
            1 => Limits::SHORT,
            _ => Limits::LONG,
        };
        Some(Limits { show_secrets: self.show_secrets, ..limits })
    }
}

/// What one look at a process brought. A process whose memory cannot be read has its facts.
pub struct Looked {
    pub process: Process,
    /// Why it could not be read as asked.
    pub error: Option<AccessError>,
    pub captured: Option<CapturedProcess>,
}

/// Looks at a live process. The error is for one that is not there at all.
pub fn live(pid: i32, options: &Options) -> Result<Looked, AccessError> {
    let began = Instant::now();
    let mut facts = proc::process(pid)?;
    facts.followed = options.followed;
    let memory = CachedMemory::live(pid);
    if options.save {
        memory.record();
    }
    let python = attach(pid, &mut facts, &memory).map(|(python, _)| python);
    memory.end_attach();
    if let Ok(python) = &python {
        let located = &python.located;
        log::debug!("{pid}: attached after {:?}: {} in {}", began.elapsed(), located.how, located.image);
    }

    let dir = ProcDir::process(pid).map_err(|_| access::missing(pid))?;
    let probes: Vec<ThreadProbe> =
        threads::tids(pid).into_iter().filter_map(|tid| ThreadProbe::below(&dir, pid, tid).ok()).collect();
    let namespace = Namespace::of(pid, facts.ns_pid != pid);
    let python = match python {
        Ok(python) => python,
        Err(error) => return Ok(without_memory(facts, error, options)),
    };
    let tasks: Vec<i32> = probes.iter().map(|p| namespace.inside(p.tid)).collect();
    let mut stacks = Window {
        pid,
        python: &python,
        memory: &memory,
        probes: &probes,
        tid_of: &|tid| namespace.outside(tid),
        tasks: &tasks,
        locals: options.limits(),
        pause: options.pause,
        waits: !options.no_findings,
        quick: options.quick,
    }
    .read();
    if !stacks.are_exact() && memory.fresh(python.runtime, &mut [0; 8]).is_err() {
        // It ended, or became another program, while it was read: what was read does not belong together.
        let error = access::check(pid).err().unwrap_or(AccessError::Starting { pid });
        return Ok(without_memory(facts, error, options));
    }
    let now = if stacks.now.monotonic.is_some() { stacks.now } else { window::now() };
    (facts.monotonic, facts.realtime) = (now.monotonic, now.realtime);
    log::debug!("{pid}: stacks after {:?}, {} attempts", began.elapsed(), stacks.attempts);

    let standings = probes.iter().filter_map(|p| Some((p, *stacks.standings.get(&p.tid)?)));
    facts.threads = threads::thread_facts_of(pid, standings, None);
    waits::look(&stacks.seen, &mut facts);
    log::debug!("{pid}: descriptors after {:?}", began.elapsed());
    let mut sources = Sources::live(pid, facts.cwd.clone());
    let heap = python.heap(&memory);
    let process = process::of_stacks(&facts, &python, &heap, &mut stacks, &mut sources, options);
    let (calls, bytes) = memory.cost();
    log::debug!("{pid}: done after {:?}; {calls} reads of memory, {} KiB", began.elapsed(), bytes / 1024);
    let captured = options.save.then(|| CapturedProcess::new(&facts, &python, &stacks, &memory, &process));
    Ok(Looked { process, error: None, captured })
}

/// What `/proc` alone tells, and why it is no more.
fn without_memory(mut facts: ProcessFacts, error: AccessError, options: &Options) -> Looked {
    facts.threads = threads::thread_facts(facts.pid, None);
    if facts.followed {
        waits::look_bare(&mut facts);
    }
    let process = process_without_memory(&facts, options);
    let captured = options.save.then(|| CapturedProcess::of_facts(&facts));
    Looked { process, error: Some(error), captured }
}

fn process_without_memory(facts: &ProcessFacts, options: &Options) -> Process {
    let mut process = process::of_facts(facts, options.show_secrets);
    if facts.followed {
        waits::settle_bare(&mut process, facts, options.show_secrets);
    }
    process
}

/// The same report from a capture.
pub fn captured(captured: &CapturedProcess, options: &Options) -> Result<Process, String> {
    let memory = CachedMemory::image(captured.memory.clone());
    let Some(located) = &captured.located else {
        return Ok(process_without_memory(&captured.facts, options));
    };
    let python = match &captured.sys {
        Some(sys) => Python::proven(&memory, located, sys.clone(), captured.hash)?,
        None => Python::understand(&memory, located)?,
    };
    let heap = python.heap(&memory);
    let mut stacks = Stacks::of_capture(captured, &python, &heap, options);
    let mut sources = Sources::Captured(captured.sources.clone());
    Ok(process::of_stacks(&captured.facts, &python, &heap, &mut stacks, &mut sources, options))
}

/// Whether a GIL has changed hands since this look at the process, or does so in a moment.
pub fn gil_moves(process: &Process) -> bool {
    let memory = LiveMemory::new(process.pid);
    let count = |at: Addr| {
        let mut word = [0; 8];
        memory.read_into(at, &mut word).ok().map(|_| u64::from_le_bytes(word))
    };
    let until = Instant::now() + GIL_SHARED;
    loop {
        if process.kin.gil_switches.iter().any(|s| count(s.at.0).is_some_and(|now| now != s.count)) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Finds the interpreter of a live process, by its maps; tells why where there is none.
pub fn attach(
    pid: i32,
    facts: &mut ProcessFacts,
    memory: &CachedMemory,
) -> Result<(Python, Vec<Mapping>), AccessError> {
    if matches!(facts.state, Some('Z' | 'X')) {
        return Err(access::explain(pid, nix::errno::Errno::ESRCH));
    }
    let maps = maps::read(pid).map_err(|e| access::explain(pid, errno(&e)))?;
    access::check(pid)?;
    facts.areas = shared::areas(&maps);
    facts.stack_end = maps.iter().find(|m| m.path == "[stack]").map(|m| m.end);
    let open = |mapping: &Mapping| sources::image(pid, mapping);
    let found = Python::attach(memory, &maps, facts.executable.as_deref(), &open);
    found.map(|python| (python, maps)).map_err(|NotFound { tried }| {
        let young = facts.uptime.is_some_and(|up| up < STARTING);
        // Where it stands by now: it may have ended meanwhile, or executed another program.
        match access::check(pid) {
            Err(error) => error,
            Ok(()) if young && find::looks_like_python(pid) == Looks::Python => AccessError::Starting { pid },
            Ok(()) => {
                AccessError::NotPython { pid, command: crate::mask::command(&facts.command).join(" "), tried }
            }
        }
    })
}

fn errno(error: &std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Translates tids between our pid namespace and the target's.
struct Namespace {
    /// (outside, inside); empty where both are the same.
    tids: Vec<(i32, i32)>,
}

impl Namespace {
    fn of(pid: i32, differs: bool) -> Self {
        let tids = if differs { threads::namespaced_tids(pid) } else { Vec::new() };
        Namespace { tids }
    }

    fn inside(&self, tid: i32) -> i32 {
        self.tids.iter().find(|t| t.0 == tid).map_or(tid, |t| t.1)
    }

    fn outside(&self, tid: i32) -> i32 {
        self.tids.iter().find(|t| t.1 == tid).map_or(tid, |t| t.0)
    }
}

impl Stacks {
    /// The stacks as the capture's memory has them.
    fn of_capture(
        captured: &CapturedProcess,
        python: &Python,
        heap: &crate::python::objects::Heap,
        options: &Options,
    ) -> Stacks {
        let (mut interpreters, problems) = crate::python::threads::read(heap, python.runtime);
        let mut stacks = Stacks {
            reads: captured.reads.iter().map(|(a, r)| (a.0, *r)).collect(),
            tids: captured.tids.iter().map(|(a, t)| (a.0, *t)).collect(),
            stale: captured.stale.iter().map(|a| a.0).collect(),
            doubted: captured.doubted.iter().map(|a| a.0).collect(),
            notes: captured.notes.clone(),
            problems,
            ..Stacks::default()
        };
        let facts = &captured.facts;
        let outside = |inside| facts.threads.iter().find(|t| t.ns_tid == inside).map_or(inside, |t| t.tid);
        let tids = stacks.tids.clone();
        let tid = |tstate| tids.get(&tstate).map(|inside| outside(*inside));
        let call = |tid| facts.threads.iter().find(|t| t.tid == tid)?.syscall;
        let now = Now { monotonic: facts.monotonic, realtime: facts.realtime };
        let pids = (facts.pid, facts.ns_pid);
        if !options.no_findings {
            stacks.seen = window::read_waits(
                heap,
                python,
                pids,
                &mut stacks.codes,
                &mut stacks.names,
                &interpreters,
                &tid,
                &call,
                now,
                true,
            );
            stacks.doubt(&outside);
        }
        for thread in interpreters.iter_mut().flat_map(|i| &mut i.threads) {
            if let Some(kept) = captured.threads.iter().find(|t| t.tstate == thread.tstate) {
                *thread = kept.clone();
            }
        }
        if !options.no_findings {
            let (codes, names) = (&stacks.codes, &stacks.names);
            let scene = Scene::new(heap, python, pids, codes, &interpreters, names, &tid, &call, now);
            stdlib::read_slowly(&scene, codes, &mut stacks.seen);
        }
        stacks.locals =
            options.limits().map(|l| window::read_locals(heap, &interpreters, l)).unwrap_or_default();
        stacks.interpreters = interpreters;
        stacks
    }
}
