//! From what was read to the `Process` of the data model. Pure over memory and source lines, so that a
//! capture goes the same way as a live process.

use rustc_hash::FxHashMap;

use super::window::{Locals, Stacks};
use crate::kin::{GilSwitches, Kin};
use crate::python::code::Codes;
use crate::python::frames::RawFrame;
use crate::python::layout::LineTable;
use crate::python::names::{self, ThreadName};
use crate::python::objects::Heap;
use crate::python::paths::Paths;
use crate::python::threads::{RawInterpreter, RawThread};
use crate::python::{Python, app};
use crate::snapshot::{
    self, Activity, Actor, Address, Frame, FrameKind, Gil, Interpreter, Process, Read, Thread, Wait,
};
use crate::stdlib::os::Now;
use crate::stdlib::{self, FrameScene, Scene, Seen, servers, web};
use crate::target::facts::{ProcessFacts, ThreadFacts};
use crate::target::memory::Addr;
use crate::target::sources::Sources;
use crate::text::Text;

/// What `/proc` alone tells: for processes whose memory may not be read.
pub fn of_facts(facts: &ProcessFacts, show_secrets: bool) -> Process {
    let command = if show_secrets { facts.command.clone() } else { crate::mask::command(&facts.command) };
    Process {
        pid: facts.pid,
        parent: facts.parent,
        command,
        executable: facts.executable.clone(),
        executable_replaced: facts.executable_replaced,
        cwd: facts.cwd.clone(),
        python: None,
        followed: facts.followed,
        uptime: facts.uptime,
        rss: facts.rss,
        open_fds: facts.open_fds,
        fd_limit: facts.fd_limit,
        listens: facts.listens.clone(),
        connections: facts.connections.clone(),
        children: facts.children.clone().map(|children| {
            let masked = |mut c: snapshot::Child| {
                if !show_secrets {
                    c.command = crate::mask::command(&c.command);
                }
                c
            };
            children.into_iter().map(masked).collect()
        }),
        server: None,
        cpu_throttled: None,
        interpreters: Vec::new(),
        threads: facts.threads.iter().map(|t| thread_without_python(facts, t)).collect(),
        tasks: Vec::new(),
        problems: facts.problems.clone(),
        kin: Kin {
            stack_end: facts.stack_end,
            caught_signals: facts.caught_signals,
            areas: facts.areas.clone(),
            semlocks: facts.semlocks.clone(),
            held_up: facts.held_up.clone(),
            ..Kin::default()
        },
    }
}

fn thread_without_python(process: &ProcessFacts, facts: &ThreadFacts) -> Thread {
    Thread {
        tid: Some(facts.tid),
        ident: None,
        name: Some(facts.comm.clone()),
        daemon: None,
        main: facts.tid == process.pid,
        exiting: false,
        interpreter: None,
        activity: activity(Some(facts), false),
        os: Some(facts.os.clone()),
        holds_gil: None,
        event_loop: None,
        request: None,
        task: None,
        waits_on: None,
        holds: Vec::new(),
        frames: Vec::new(),
        complete: true,
        read: Read::Frozen,
        problems: Vec::new(),
    }
}

/// What the thread is about, as far as its system call tells.
fn activity(facts: Option<&ThreadFacts>, waits_for_gil: bool) -> Activity {
    let Some(facts) = facts else { return Activity::Unknown };
    match facts.os.state {
        _ if waits_for_gil => Activity::WaitingForGil,
        Some('R') => Activity::Running,
        Some('S' | 'D' | 'I' | 'T' | 't') => match &facts.os.syscall {
            Some(s) if is_for_work(&s.name, facts) => Activity::Idle,
            _ => Activity::Waiting,
        },
        _ => Activity::Unknown,
    }
}

/// Calls in which a thread waits for work to come in, not for something it has begun.
fn is_for_work(name: &str, facts: &ThreadFacts) -> bool {
    match name {
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "accept" | "accept4" => true,
        // `time.sleep` was a select without descriptors up to 3.10.
        "select" | "pselect6" => facts.syscall.is_some_and(|s| s.args[0] > 0),
        _ => false,
    }
}

/// Everything together.
pub fn of_stacks(
    facts: &ProcessFacts,
    python: &Python,
    heap: &Heap,
    stacks: &mut Stacks,
    sources: &mut Sources,
    options: &super::Options,
) -> Process {
    let mut process = of_facts(facts, options.show_secrets);
    process.python = Some(snapshot::Python {
        version: python.sys.version(),
        implementation: python.sys.implementation.clone().unwrap_or_else(|| "cpython".into()),
        free_threaded: python.layout.free_threaded,
        debug: python.sys.abiflags.as_deref().map(|f| f.contains('d')),
    });
    process.problems.extend(stacks.problems.iter().chain(&stacks.notes).cloned());
    super::waits::settle(&mut stacks.seen, facts, &stacks.tids, options.show_secrets);
    super::waits::date_requests(&mut stacks.seen, facts);
    let now = Now { monotonic: facts.monotonic, realtime: facts.realtime };
    process.server =
        stacks.seen.part.as_ref().map(|part| servers::settle(part, facts.heartbeat, now, facts.parent));
    if !options.show_secrets {
        web::mask(&mut stacks.seen);
    }

    let mut codes = std::mem::take(&mut stacks.codes);
    let of_tasks = || stacks.seen.task_frames.values().flatten();
    let all_frames =
        || stacks.interpreters.iter().flat_map(|i| &i.threads).flat_map(|t| &t.frames).chain(of_tasks());
    codes.load(heap, all_frames().map(|f| f.code));
    let mut modules = Modules::load(heap, all_frames().map(|f| f.globals));

    let by_tid: FxHashMap<i32, &ThreadFacts> = facts.threads.iter().map(|t| (t.ns_tid, t)).collect();
    let sessions = super::waits::own_sessions(&stacks.seen, facts.pid);
    if !facts.held_up.is_empty() || !sessions.is_empty() {
        let of_tstate = |tstate: Addr| by_tid.get(stacks.tids.get(&tstate)?).copied();
        let tid = |tstate| of_tstate(tstate).map(|t| t.tid);
        let call = |tid| facts.threads.iter().find(|t| t.tid == tid)?.syscall;
        let pids = (facts.pid, facts.ns_pid);
        let scene =
            Scene::new(heap, python, pids, &codes, &stacks.interpreters, &stacks.names, &tid, &call, now);
        if !facts.held_up.is_empty() {
            process.kin.readers = stdlib::descriptors::readers(&scene);
            stacks.seen.fds = stdlib::descriptors::of_threads(&scene);
        }
        if !sessions.is_empty() {
            let owners = stdlib::databases::sessions::owners(&scene, &codes, &stacks.seen, &sessions);
            super::waits::name_owners(&mut stacks.seen, facts.pid, &owners);
        }
    }
    let of_tasks = || stacks.seen.task_frames.values().flatten();
    let mut resolver = Resolver {
        heap,
        codes: &codes,
        modules: &mut modules,
        paths: Paths::new(&python.sys, &options.apps),
        sources,
        show_secrets: options.show_secrets,
        locals: &stacks.locals,
        thread: 0,
        known: FxHashMap::default(),
    };
    // Where no frame is the application's own by its path, the application is an installed package.
    if options.apps.is_empty()
        && !stacks
            .interpreters
            .iter()
            .flat_map(|i| &i.threads)
            .flat_map(|t| &t.frames)
            .chain(of_tasks())
            .any(|f| resolver.is_user(f))
        && let Some(package) =
            stacks.interpreters.last().and_then(|i| app::find(heap, i.addr, &facts.command))
    {
        resolver.paths.add_app(&package);
    }

    let mut threads: Vec<Thread> = Vec::new();
    let mut seen: Vec<i32> = Vec::new();
    for interp in &mut stacks.interpreters {
        process.problems.extend(interp.problems.iter().cloned());
        let unread = || names::of_interpreter(heap, interp.addr);
        let names = stacks.names.get(&interp.addr).cloned().unwrap_or_else(unread);
        let gil_view = GilView::of(heap, interp, &by_tid, &stacks.tids);
        for at in 0..interp.threads.len() {
            let raw = &interp.threads[at];
            let facts_of = stacks.tids.get(&raw.tstate).and_then(|tid| by_tid.get(tid)).copied();
            seen.extend(facts_of.map(|f| f.tid));
            let read = stacks.reads.get(&raw.tstate).copied().unwrap_or(Read::Torn);
            let name = names.get(&raw.ident);
            resolver.thread = raw.tstate;
            let mut thread = thread(facts, interp, raw, facts_of, name, read, &gil_view, &mut resolver);
            add_seen(&mut thread, raw.tstate, &stacks.seen, facts.uptime);
            if loses_frames(heap, &thread) {
                thread.complete = false;
            }
            if !options.no_findings {
                settle_activity(&mut thread, raw.tstate, &stacks.seen, gil_view.gil.as_ref(), facts);
            }
            threads.push(thread);
            if !options.save {
                // With hundreds of threads twice all frames is what most memory goes to.
                interp.threads[at].frames = Vec::new();
            }
        }
        process.kin.gil_switches.extend(interp.gil.map(|gil| GilSwitches {
            interpreter: interp.id,
            count: gil.switch_number,
            at: Address(gil.addr.saturating_add(heap.layout.gil.switch_number)),
        }));
        process.interpreters.push(Interpreter {
            id: interp.id,
            gil: gil_view.gil,
            gc_collecting: interp.gc_collecting,
        });
    }
    // The list of thread states begins with the youngest; people expect main first, then by age.
    threads.reverse();
    threads.sort_by_key(|t| (!t.main, t.interpreter));
    process.interpreters.reverse();
    threads.extend(
        facts.threads.iter().filter(|t| !seen.contains(&t.tid)).map(|t| thread_without_python(facts, t)),
    );
    process.threads = threads;
    process.tasks = stacks.seen.tasks.clone();
    resolver.thread = 0;
    for task in &mut process.tasks {
        let frames = stacks.seen.task_frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
        let shown = stdlib::visible(heap, &codes, frames);
        task.frames = shown.iter().map(|f| resolver.frame(f)).collect();
    }
    name_tasks(&mut process);
    process.problems.extend(stacks.seen.problems.iter().cloned());
    process.kin.runtime = Some(snapshot::Address(python.runtime));
    process.kin.fds = std::mem::take(&mut stacks.seen.fds);
    process.kin.jobs = std::mem::take(&mut stacks.seen.jobs);
    process.kin.queued_work = stacks.seen.queued_work;
    process.kin.handlers_act = stacks.seen.handlers_act;
    process.kin.bystanders = std::mem::take(&mut stacks.seen.bystanders);
    process
}

/// Waits name the tasks that they need by their addresses.
fn name_tasks(process: &mut Process) {
    let names: FxHashMap<Address, String> =
        process.tasks.iter().filter_map(|t| Some((t.id, t.name.clone()?))).collect();
    let of_threads = process.threads.iter_mut().filter_map(|t| t.waits_on.as_mut());
    let of_tasks = process.tasks.iter_mut().filter_map(|t| t.waits_on.as_mut());
    for actor in of_threads.chain(of_tasks).flat_map(|wait| &mut wait.on) {
        actor.task_name = actor.task.and_then(|task| names.get(&task).cloned());
    }
}

/// While a cancelled coroutine unwinds, 3.8 and 3.9 lose frames below it, the event loop's included
/// (`gen_send_ex` clears `f_back` early): such a stack ends without being at its root.
fn loses_frames(heap: &Heap, thread: &Thread) -> bool {
    let root = thread.frames.last().map(|f| f.function.as_str());
    heap.layout.line_table == LineTable::Lnotab
        && thread.event_loop.is_some()
        && root.is_some_and(|f| f != "<module>" && f != "_bootstrap")
}

/// What `stdlib` knows of a thread beyond its frames.
fn add_seen(thread: &mut Thread, tstate: Addr, seen: &Seen, uptime: Option<f64>) {
    thread.waits_on = seen.waits.get(&tstate).cloned();
    if let Some(wait) = &mut thread.waits_on {
        // Since when it has slept is the kernel's to say.
        let asleep_for = || thread.os.as_ref()?.blocked_for.filter(|_| !wait.asks_again());
        wait.blocked_for = wait.blocked_for.or_else(asleep_for);
    }
    thread.holds = seen.holds.get(&tstate).cloned().unwrap_or_default();
    thread.event_loop = seen.loops.get(&tstate).cloned();
    if let Some(running) = &mut thread.event_loop {
        // The number that tells when it began was met on its way to another one.
        running.iteration_age = running.iteration_age.filter(|age| uptime.is_none_or(|up| *age <= up + 1.0));
    }
    thread.request = seen.requests.get(&tstate).cloned();
    thread.task = seen.current.get(&tstate).map(|t| snapshot::Address(*t));
}

/// With its wait known, what the thread is about is known better than by the name of its call.
fn settle_activity(thread: &mut Thread, tstate: Addr, seen: &Seen, gil: Option<&Gil>, facts: &ProcessFacts) {
    match thread.activity {
        // Whatever its frames wait for is over: they could go on. Since when is not known, for it asks again
        // every few milliseconds.
        Activity::WaitingForGil => {
            let holder = gil.and_then(|g| g.holder);
            let actor = |tid| Actor {
                pid: Some(facts.pid),
                tid: Some(tid),
                thread: None,
                task: None,
                task_name: None,
            };
            thread.waits_on =
                Some(Wait { on: holder.map(actor).into_iter().collect(), ..Wait::new("gil", None) });
        }
        // It may have woken up since the window, which is what the report is about.
        Activity::Idle | Activity::Waiting | Activity::Running
            if thread.waits_on.as_ref().is_some_and(|wait| wait.kind != "cpu") =>
        {
            let for_work = seen.os.get(&tstate).is_some_and(|os| os.for_work);
            let idle = for_work || is_idle(thread);
            thread.activity = if idle { Activity::Idle } else { Activity::Waiting };
        }
        _ => {}
    }
}

/// Whether it waits for work to come in: a consumer of an empty queue or a pool worker, outside of any
/// request and any event loop.
fn is_idle(thread: &Thread) -> bool {
    let Some(wait) = &thread.waits_on else { return false };
    let is_busy =
        thread.request.is_some() || thread.event_loop.as_ref().is_some_and(|l| l.state == "blocked");
    match wait.kind.as_str() {
        "queue" => {
            let size = wait.detail.get("size").and_then(serde_json::Value::as_i64);
            wait.detail["operation"] == "get" && size.unwrap_or(0) == 0 && !is_busy
        }
        "poll" => thread.event_loop.as_ref().is_some_and(|l| l.state == "polling"),
        _ => false,
    }
}

#[allow(clippy::too_many_arguments)]
fn thread(
    process: &ProcessFacts,
    interp: &RawInterpreter,
    raw: &RawThread,
    facts: Option<&ThreadFacts>,
    name: Option<&ThreadName>,
    read: Read,
    gil: &GilView,
    resolver: &mut Resolver,
) -> Thread {
    let tid = facts.map(|f| f.tid);
    let holds_gil = gil.gil.as_ref().map(|g| tid.is_some() && g.holder == tid);
    let waits_for_gil = tid.is_some_and(|t| gil.gil.as_ref().is_some_and(|g| g.waiters.contains(&t)));
    let main = match name {
        Some(n) => n.main,
        None => facts.is_some_and(|f| f.tid == process.pid),
    };
    Thread {
        tid,
        ident: Some(raw.ident),
        name: name.and_then(|n| n.name.clone()),
        daemon: name.and_then(|n| n.daemon),
        main: main && interp.id == 0,
        exiting: name.is_some_and(|n| n.exiting) && interp.id == 0,
        interpreter: Some(interp.id),
        activity: activity(facts, waits_for_gil),
        os: facts.map(|f| f.os.clone()),
        holds_gil,
        event_loop: None,
        request: None,
        task: None,
        waits_on: None,
        holds: Vec::new(),
        frames: stdlib::visible(resolver.heap, resolver.codes, &raw.frames)
            .iter()
            .map(|f| resolver.frame(f))
            .collect(),
        complete: raw.complete,
        read,
        problems: raw.problems.clone(),
    }
}

/// The GIL of an interpreter, in tids.
struct GilView {
    gil: Option<Gil>,
}

impl GilView {
    fn of(
        heap: &Heap,
        interp: &RawInterpreter,
        by_tid: &FxHashMap<i32, &ThreadFacts>,
        tids: &FxHashMap<Addr, i32>,
    ) -> Self {
        let Some(raw) = interp.gil else { return GilView { gil: None } };
        let tid_of = |tstate: &Addr| by_tid.get(tids.get(tstate)?).map(|f| f.tid);
        let waits = |f: &ThreadFacts| {
            f.os.syscall.as_ref().is_some_and(|s| s.name == "futex")
                && f.syscall.is_some_and(|s| raw.waits_here(heap.layout, s.args[0]))
        };
        let mut waiters: Vec<i32> = interp
            .threads
            .iter()
            .filter_map(|t| by_tid.get(tids.get(&t.tstate)?))
            .filter(|f| waits(f))
            .map(|f| f.tid)
            .collect();
        waiters.sort_unstable();
        let holder = if raw.locked { tid_of(&raw.last_holder) } else { None };
        GilView { gil: Some(Gil { holder, waiters }) }
    }
}

/// `__name__` of the globals that frames run in.
struct Modules {
    names: FxHashMap<Addr, Option<Text>>,
}

impl Modules {
    fn load(heap: &Heap, globals: impl Iterator<Item = Addr>) -> Self {
        let mut all: Vec<Addr> = globals.filter(|g| *g != 0 && g % 8 == 0).collect();
        all.sort_unstable();
        all.dedup();
        let d = &heap.layout.dict;
        heap.mem.prefetch(&all.iter().map(|g| (*g, 64)).collect::<Vec<_>>());
        let keys: Vec<_> =
            all.iter().filter_map(|g| Some((heap.ptr(g.checked_add(d.keys)?)?, 1024))).collect();
        heap.mem.prefetch(&keys);
        let read = |g: &Addr| {
            heap.type_of(*g).filter(|t| t.is_dict())?;
            // The import system puts it there first of all.
            let (first, _) = heap.dict(*g, 8)?;
            let early = first.iter().find(|(k, _)| heap.checked_str(*k).is_some_and(|k| k == "__name__"));
            let value = early.map(|e| e.1).or_else(|| heap.dict_get(*g, ["__name__"])[0])?;
            heap.checked_str(value).map(Text::from)
        };
        Modules { names: all.iter().map(|g| (*g, read(g))).collect() }
    }
}

struct Resolver<'a, 'h> {
    heap: &'a Heap<'h>,
    codes: &'a Codes,
    modules: &'a mut Modules,
    paths: Paths,
    sources: &'a mut Sources,
    show_secrets: bool,
    locals: &'a Locals,
    /// Whose frames these are: its thread state; 0 for those of tasks.
    thread: Addr,
    /// Frames, without their locals, by code object, offset and globals: threads stand at the same places.
    known: FxHashMap<(Addr, i64, Addr), Frame>,
}

impl Resolver<'_, '_> {
    fn is_user(&self, raw: &RawFrame) -> bool {
        let file = self.codes.get(raw.code).and_then(|c| c.file.as_deref());
        file.is_some_and(|f| self.paths.is_user(f))
    }

    fn frame(&mut self, scene: &FrameScene) -> Frame {
        let at = (scene.raw.code, scene.offset, scene.raw.globals);
        let mut frame = match self.known.get(&at) {
            Some(frame) => frame.clone(),
            None => {
                let frame = self.without_locals(scene);
                self.known.insert(at, frame.clone());
                frame
            }
        };
        frame.locals = self.locals.get(&(self.thread, scene.raw.addr)).cloned();
        frame
    }

    fn without_locals(&mut self, FrameScene { raw, code, offset }: &FrameScene) -> Frame {
        let line = code.line(*offset);
        let file = code.file.as_deref();
        let source = file.zip(line).and_then(|(f, l)| self.sources.line(f, l));
        Frame {
            function: code.name.clone(),
            qualname: code.qualname.clone(),
            module: self.modules.names.get(&raw.globals).cloned().flatten(),
            path: file.and_then(|f| self.sources.path(f)),
            source: source
                .map(|s| if self.show_secrets { s } else { crate::mask::source(s.as_str()).into() }),
            user: file.is_some_and(|f| self.paths.is_user(f)),
            file: code.file.clone(),
            line,
            kind: FrameKind::Python,
            locals: None,
        }
    }
}
