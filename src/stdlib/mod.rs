//! What Python's own modules mean: frame by frame, what each thread waits on and holds, with the
//! identity of each object. One room per module, named like it.
//!
//! All of it is read inside the frozen window, through the same memory as the frames, so that what is
//! said of two threads is of one moment. It is total: what does not check out is not said.

/// Locks taken by `acquire()`, inferred from the bytecode.
pub mod acquired;
/// Answers that clients wait for inside of extensions.
mod answers;
/// Event loops and tasks of asyncio.
pub mod asyncio;
mod batons;
/// Clients of databases.
pub mod databases;
/// Which descriptors a thread can reach.
pub mod descriptors;
/// Live exit slots: which context managers a frame is inside of.
pub mod exits;
/// What may come after each instruction.
mod flow;
/// `concurrent.futures`.
pub mod futures;
/// Who keeps an object alive.
pub mod garbage;
/// gevent's loop.
pub mod gevent;
/// Which locks each thread is inside of.
pub mod holders;
/// `importlib`.
pub mod importlib;
/// Locks that a generator has which something keeps.
pub mod kept;
/// Locks, by the futex that a thread sleeps on and by the frames that are inside of them.
pub mod locks;
/// `multiprocessing`.
pub mod multiprocessing;
/// What the system calls alone tell.
pub mod os;
/// Locks that libraries ask for again and again.
mod polled;
/// `queue`.
pub mod queue;
/// What a pool's workers wait for, and only work could end that its queue has.
mod queued;
/// The other side of a connection by name.
pub mod remote;
/// What another request could end.
mod requested;
/// Waits with a timeout that begin anew.
pub mod retries;
/// Servers and workers: what part this process plays.
pub mod servers;
/// Handlers of signals.
pub mod signals;
/// Loops that do nothing but ask.
mod spins;
/// Which methods the code of a frame speaks of.
pub mod spoken;
/// `threading`: conditions, events, semaphores, barriers, joins.
pub mod threading;
/// trio's loop.
pub mod trio;
/// Whether anybody could end what a thread waits for.
mod wakers;
/// Requests being served.
pub mod web;

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use acquired::Acquired;
use asyncio::coroutines;
use futures::Work;
use locks::Reach;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::kin::Descriptors;
use crate::python::Python;
use crate::python::code::{Code, Codes};
use crate::python::frames::RawFrame;
use crate::python::locals::{self, Variables};
use crate::python::names::ThreadName;
use crate::python::objects::{Heap, TypeInfo};
use crate::python::opcodes::{self, Instruction, Op};
use crate::python::paths::Paths;
use crate::python::threads::{RawInterpreter, RawThread};
use crate::snapshot::{Certainty, EventLoop, Lock, Request, Task, Wait};
use crate::target::facts::RawSyscall;
use crate::target::memory::Addr;
use crate::target::syscalls::{self, Arch};

/// Everything that the rooms look at: one process, at one moment.
pub struct Scene<'a> {
    pub heap: &'a Heap<'a>,
    pub python: &'a Python,
    pub threads: Vec<ThreadScene<'a>>,
    pub pid: i32,
    /// As the process itself knows it.
    pub ns_pid: i32,
    /// The clocks at this moment.
    pub now: os::Now,
    reach: OnceCell<Reach>,
    contained: OnceCell<FxHashMap<Addr, Vec<Addr>>>,
    mail: OnceCell<FxHashMap<Addr, Vec<Addr>>>,
    work: OnceCell<Work>,
    /// What code calls an object by a global name: threads stand at the same places, before the same locks.
    global_names: RefCell<FxHashMap<(Addr, Addr), Option<String>>>,
    named_globals: RefCell<NamedGlobals>,
    names: RefCell<FxHashMap<Addr, Rc<Vec<String>>>>,
    variables: RefCell<FxHashMap<Addr, Option<Rc<Known>>>>,
    shapes: flow::Shapes,
    acquired: Acquired,
    paths: Paths,
}

/// By the dict of globals and the code: what that code names.
type NamedGlobals = FxHashMap<(Addr, Addr), Rc<[Addr]>>;

/// The code that a frame has not been through, or may go through once more.
pub struct Rest {
    /// Constants that it may load: code of functions that it has not made yet among them.
    pub constants: Vec<Addr>,
    /// Names (`co_names`, by index) that only the code behind it reads.
    pub behind: FxHashSet<u32>,
}

/// Variables of a code object, with their names read.
struct Known {
    names: Vec<String>,
    variables: Variables,
}

pub struct ThreadScene<'a> {
    pub raw: &'a RawThread,
    /// Interpreter state it belongs to.
    pub interp: Addr,
    /// As our `/proc` numbers it.
    pub tid: Option<i32>,
    /// What `threading` knows of it.
    pub known: Option<ThreadName>,
    /// The call it sleeps in; `None` while it runs.
    pub syscall: Option<RawSyscall>,
    /// Innermost first; exactly the frames of the report, in their order.
    pub frames: Vec<FrameScene<'a>>,
}

pub struct FrameScene<'a> {
    pub raw: &'a RawFrame,
    pub code: Rc<Code>,
    /// Byte offset of the instruction it stands on.
    pub offset: i64,
}

/// What the rooms have found out, by thread state.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub waits: FxHashMap<Addr, Wait>,
    pub holds: FxHashMap<Addr, Vec<Lock>>,
    pub loops: FxHashMap<Addr, EventLoop>,
    pub requests: FxHashMap<Addr, Request>,
    /// Which thread (index into the scene's) runs an asyncio loop.
    pub running: FxHashMap<Addr, usize>,
    /// The task that a thread's event loop runs just now.
    pub current: FxHashMap<Addr, Addr>,
    /// Without their frames, which whoever resolves lines adds.
    pub tasks: Vec<Task>,
    /// Innermost first, by task.
    pub task_frames: FxHashMap<Addr, Vec<RawFrame>>,
    /// What the system call works on, of threads whose wait is told by nothing else.
    pub os: FxHashMap<Addr, os::OsWait>,
    /// Until when threads sleep by their system call; waits that have no deadline of their own get it.
    pub deadlines: FxHashMap<Addr, os::Deadline>,
    /// What part the process plays among others.
    pub part: Option<servers::Part>,
    /// The client's connection of a request, by thread.
    pub clients: FxHashMap<Addr, i32>,
    /// What the process knows of the other side of a connection that a thread waits for.
    pub remotes: FxHashMap<Addr, remote::Remote>,
    /// The same by task.
    pub task_remotes: FxHashMap<Addr, remote::Remote>,
    /// Descriptors that a thread can reach, by tid; where another process may wait for it.
    pub fds: Vec<(i32, Descriptors)>,
    /// The jobs that threads of pool workers are at, by tid.
    pub jobs: Vec<(i32, crate::kin::At)>,
    /// Work items in the queues of thread pools.
    pub queued_work: Option<u64>,
    /// Whether a handler of signals does anything by which somebody might go on; `None`: they are not known.
    pub handlers_act: Option<bool>,
    /// Threads that read standard input, and call nothing of the application's then.
    pub bystanders: Vec<i32>,
    pub problems: Vec<String>,
}

impl Seen {
    /// The stack of this thread is not of one moment: what it holds is not known, and who seemed to wait
    /// for it waits for it at most likely.
    pub fn doubt(&mut self, tstate: Addr, tid: Option<i32>) {
        self.holds.remove(&tstate);
        let waits = self.waits.values_mut().filter(|w| w.on.iter().any(|on| tid.is_some() && on.tid == tid));
        waits.for_each(|wait| wait.certainty = Certainty::Likely);
    }
}

/// Reads what each thread waits on and holds.
///
/// Without `tasks` those of asyncio are left out: there may be thousands, and a thread that runs does
/// not stand still for so long.
pub fn read(scene: &Scene, codes: &mut Codes, tasks: bool) -> Seen {
    let mut seen = Seen::default();
    // From the mechanism to the call that the application made: later rooms know better.
    locks::read(scene, &mut seen);
    threading::read(scene, &mut seen);
    queue::read(scene, &mut seen);
    futures::read(scene, &mut seen);
    seen.queued_work = futures::queued_work(scene);
    multiprocessing::read(scene, &mut seen);
    importlib::read(scene, &mut seen);
    if tasks {
        asyncio::read(scene, codes, &mut seen);
        multiprocessing::pool::read_tasks(scene, &mut seen);
    }
    web::read(scene, &mut seen);
    web::through_tasks(scene, codes, &mut seen);
    servers::read(scene, &mut seen);
    answers::read(scene, &mut seen);
    // Last: what the others have said stands.
    os::read(scene, &mut seen);
    retries::read(scene, &mut seen);
    polled::read(scene, &mut seen);
    spins::read(scene, &mut seen);
    databases::read(scene, &mut seen);
    databases::pools::read(scene, &mut seen, tasks);
    remote::read(scene, &mut seen);
    if seen.waits.values().any(leads_outside) {
        seen.fds = descriptors::of_threads(scene);
    }
    let job = |t: &ThreadScene| Some((t.tid?, multiprocessing::pool::job(scene, t)?));
    seen.jobs = scene.threads.iter().filter_map(job).collect();
    seen
}

/// What need not be of one moment with the stacks, and may take long: who could end the waits of tasks.
pub fn read_slowly(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    asyncio::threadsafe::find(scene, seen);
    asyncio::connections::find(scene, codes, seen);
    asyncio::alone::find(scene, codes, seen);
    asyncio::pools::find(scene, codes, seen);
    asyncio::tornado::find(scene, codes, seen);
    asyncio::wakers::find(scene, codes, seen);
    asyncio::died::find(scene, seen);
    databases::among_own_threads(scene, seen);
    kept::find(scene, codes, seen);
    wakers::find_owners(scene, seen);
    wakers::bystanders(scene, seen);
    requested::find(scene, seen);
    let handlers = signals::find(scene, seen);
    wakers::find(scene, &handlers, seen);
    queued::find(scene, seen);
    asyncio::not_running::find(scene, codes, seen);
    asyncio::blocked::find(scene, codes, &handlers, seen);
}

/// That nobody could wake a task was not so, where it has been woken while that was searched for. `heap`: as it is now.
pub fn spare_woken(heap: &Heap, seen: &mut Seen) {
    for task in &mut seen.tasks {
        let Some(wait) = task.waits_on.as_mut().filter(|w| w.detail["nobody"] == true) else { continue };
        let now = asyncio::futures::task(heap, task.id.0).and_then(|t| t.waits_for);
        let same = wait.kind != "future" || now == wait.address.map(|a| a.0);
        if !same || !now.and_then(|f| asyncio::futures::future(heap, f)).is_some_and(|f| f.is_pending()) {
            wait.detail["nobody"] = serde_json::json!(false);
            wait.detail["may_come"] = serde_json::json!(true);
        }
    }
}

/// Whether this wait may be for another process: which then may wait for this one.
fn leads_outside(wait: &Wait) -> bool {
    match wait.kind.as_str() {
        "process" | "pipe" | "socket" | "file" => true,
        // Read and write are settled after the window.
        "unknown" => true,
        "queue" | "lock" | "semaphore" | "event" | "condition" | "future" => {
            wait.call.as_deref().is_some_and(|call| call.starts_with("multiprocessing"))
        }
        _ => false,
    }
}

/// The frames of a thread as Python itself would show them: code that is readable, calls that have begun.
pub fn visible<'a>(heap: &Heap, codes: &Codes, frames: &'a [RawFrame]) -> Vec<FrameScene<'a>> {
    let show = |raw: &'a RawFrame| {
        let code = codes.get(raw.code)?;
        let offset = code.offset(heap, raw);
        (!code.is_incomplete(raw, offset)).then(|| FrameScene { raw, code: Rc::clone(code), offset })
    };
    frames.iter().filter_map(show).collect()
}

impl<'a> Scene<'a> {
    /// `pids`: as we number the process, and as it numbers itself. `tid` answers by thread state, `syscall` by tid.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        heap: &'a Heap<'a>,
        python: &'a Python,
        pids: (i32, i32),
        codes: &Codes,
        interpreters: &'a [RawInterpreter],
        names: &FxHashMap<Addr, FxHashMap<u64, ThreadName>>,
        tid: &dyn Fn(Addr) -> Option<i32>,
        syscall: &dyn Fn(i32) -> Option<RawSyscall>,
        now: os::Now,
    ) -> Self {
        let mut threads = Vec::new();
        for interp in interpreters {
            for raw in &interp.threads {
                let tid = tid(raw.tstate);
                threads.push(ThreadScene {
                    raw,
                    interp: interp.addr,
                    tid,
                    known: names.get(&interp.addr).and_then(|n| n.get(&raw.ident)).cloned(),
                    syscall: tid.and_then(syscall),
                    frames: visible(heap, codes, &raw.frames),
                });
            }
        }
        Scene {
            heap,
            python,
            threads,
            pid: pids.0,
            ns_pid: pids.1,
            now,
            reach: OnceCell::new(),
            contained: OnceCell::new(),
            mail: OnceCell::new(),
            work: OnceCell::new(),
            global_names: RefCell::default(),
            named_globals: RefCell::default(),
            names: RefCell::default(),
            variables: RefCell::default(),
            shapes: flow::Shapes::default(),
            acquired: Acquired::default(),
            paths: Paths::new(&python.sys, &[]),
        }
    }

    /// The value of a variable of a frame; cells are looked into.
    pub fn local(&self, frame: &FrameScene, name: &str) -> Option<Addr> {
        let known = self.variables(frame)?;
        // Up to 3.10 an argument that a closure uses has two slots: its own, empty, and its cell.
        let slots = known.names.iter().enumerate().filter(|(_, n)| *n == name);
        slots.map(|(i, _)| i).find_map(|i| {
            let at = frame.raw.addr + self.heap.layout.frame.locals + 8 * i as u64;
            known.variables.value(self.heap, i, self.heap.mem.u64(at).ok()?)
        })
    }

    /// All variables of a frame that hold an object: (name, object).
    pub fn locals(&self, frame: &FrameScene) -> Vec<(String, Addr)> {
        let Some(known) = self.variables(frame) else { return Vec::new() };
        let at = frame.raw.addr + self.heap.layout.frame.locals;
        let Some(slots) = self.heap.words(at, known.names.len()) else { return Vec::new() };
        let value = |(i, slot): (usize, u64)| {
            Some((known.names[i].clone(), known.variables.value(self.heap, i, slot)?))
        };
        slots.into_iter().enumerate().filter_map(value).collect()
    }

    /// The same without their names.
    pub fn values(&self, frame: &FrameScene) -> Vec<Addr> {
        let Some(known) = self.variables(frame) else { return Vec::new() };
        let at = frame.raw.addr + self.heap.layout.frame.locals;
        let Some(slots) = self.heap.words(at, known.names.len()) else { return Vec::new() };
        let value = |(i, slot)| known.variables.value(self.heap, i, slot);
        slots.into_iter().enumerate().filter_map(value).collect()
    }

    /// What a suspended frame has still got to do with: variables that it may read when it goes on, and what
    /// stands on its value stack. `None` if that cannot be told.
    pub fn values_ahead(&self, frame: &FrameScene) -> Option<Vec<Addr>> {
        self.ahead(frame, coroutines::stack(self.heap, frame.raw)?)
    }

    /// The same of a frame that waits for what it has called. How deep its value stack is nobody knows, so that old
    /// words count as well; functions among them have been called by now.
    pub fn values_when_it_goes_on(&self, frame: &FrameScene) -> Option<Vec<Addr>> {
        let mut stack = exits::stack_slots(self.heap, frame);
        let is_callable =
            |ty: &TypeInfo| matches!(ty.name.as_str(), "function" | "method") || ty.is_c_function();
        // An iterator is old where nothing iterates any more.
        let iterates = self.iterates_ahead(frame);
        let is_old = |ty: &TypeInfo| is_callable(ty) || !iterates && ty.is_c_iterator();
        stack.retain(|object| !self.heap.type_of(*object).is_some_and(|ty| is_old(&ty)));
        // But for those that leave its `with` blocks.
        stack.extend(exits::of_frame(self.heap, frame).into_iter().map(|exit| exit.manager));
        self.ahead(frame, stack)
    }

    /// The same where what lies on its value stack is of no use to it any more: it neither iterates, nor leaves a
    /// `with`, nor calls anything with what it has loaded before.
    pub fn values_it_names(&self, frame: &FrameScene) -> Option<Vec<Addr>> {
        let needs_stack = self.iterates_ahead(frame)
            || spoken::hands_on(self, frame)
            || !exits::of_frame(self.heap, frame).is_empty();
        if needs_stack { self.values_when_it_goes_on(frame) } else { self.ahead(frame, Vec::new()) }
    }

    fn iterates_ahead(&self, frame: &FrameScene) -> bool {
        let Some(shape) = self.shapes.of(self, frame.raw.code) else { return true };
        let Some(start) = opcodes::at(&shape.instructions, frame.offset) else { return true };
        shape.ahead(start).any(|at| matches!(shape.instructions[at].op, Op::ForIter | Op::Send))
    }

    /// What the code of a frame may still do.
    pub fn rest(&self, frame: &FrameScene) -> Option<Rest> {
        let heap = self.heap;
        let shape = self.shapes.of(self, frame.raw.code)?;
        let start = opcodes::at(&shape.instructions, frame.offset)?;
        let constants = heap.ptr(frame.raw.code + heap.layout.code.consts)?;
        let name = |i: &Instruction| {
            spoken::attribute(self, i.op, i.arg).or_else(|| spoken::global(self, i.op, i.arg))
        };
        let all: FxHashSet<u32> = shape.instructions.iter().filter_map(name).collect();
        let mut rest = Rest { constants: Vec::new(), behind: all };
        for at in shape.ahead(start) {
            let i = &shape.instructions[at];
            if i.op == Op::LoadConst {
                rest.constants.extend(heap.ptr(constants + heap.layout.tuple.items + 8 * u64::from(i.arg)));
            }
            name(i).inspect(|name| _ = rest.behind.remove(name));
        }
        Some(rest)
    }

    fn ahead(&self, frame: &FrameScene, stack: Vec<Addr>) -> Option<Vec<Addr>> {
        let heap = self.heap;
        let ahead = self.shapes.of(self, frame.raw.code)?.reads_ahead(self, frame.raw.code, frame.offset)?;
        let known = self.variables(frame)?;
        let slots = heap.words(frame.raw.addr + heap.layout.frame.locals, known.names.len())?;
        let value = |slot: usize| known.variables.value(heap, slot, *slots.get(slot)?);
        let mut values: Vec<Addr> = ahead.into_iter().filter_map(value).collect();
        for value in stack {
            // An iterator leads to what was in a variable, and cannot be looked into.
            if heap.type_of(value)?.is_c_iterator() {
                return None;
            }
            values.push(value);
        }
        Some(values)
    }

    /// The slots of a frame's code, read once for each code object.
    fn variables(&self, frame: &FrameScene) -> Option<Rc<Known>> {
        self.variables_of(frame.raw.code)
    }

    fn variables_of(&self, code: Addr) -> Option<Rc<Known>> {
        let mut all = self.variables.borrow_mut();
        let known = all.entry(code).or_insert_with(|| {
            let variables = locals::variables(self.heap, code)?;
            let name = |n: &Addr| self.heap.checked_str(*n).unwrap_or_default();
            Some(Rc::new(Known { names: variables.names.iter().map(name).collect(), variables }))
        });
        known.clone()
    }

    /// What all thread pools do.
    fn work(&self) -> &Work {
        self.work.get_or_init(|| Work::of_scene(self))
    }

    /// Who else can reach an object, by (thread, frame).
    pub fn reach(&self) -> &Reach {
        self.reach.get_or_init(|| locks::reach(self))
    }

    /// The objects in a container, at most so many; of a dict its values.
    pub fn items(&self, container: Addr, most: usize) -> Option<Vec<Addr>> {
        let heap = self.heap;
        let ty = heap.type_of(container)?;
        match ty.name.as_str() {
            _ if ty.is_dict() => Some(heap.dict(container, most)?.0.into_iter().map(|e| e.1).collect()),
            _ if ty.is_list() || ty.is_tuple() => heap.items(container, &ty, most).map(|i| i.0),
            "set" => heap.set(container, most).map(|s| s.0),
            "collections.deque" => locks::deque(heap, container, most),
            _ => None,
        }
    }

    /// What is in containers that frames can reach, by object.
    fn contained(&self) -> &FxHashMap<Addr, Vec<Addr>> {
        self.contained.get_or_init(|| locks::contained(self))
    }

    /// What the items of queues lead to, with those queues.
    fn mail(&self) -> &FxHashMap<Addr, Vec<Addr>> {
        self.mail.get_or_init(|| queue::mail(self))
    }

    /// `co_names` of a code object.
    pub fn names(&self, code: Addr) -> Rc<Vec<String>> {
        let mut known = self.names.borrow_mut();
        Rc::clone(
            known
                .entry(code)
                .or_insert_with(|| Rc::new(locks::names_of(self.heap, code).unwrap_or_default())),
        )
    }

    /// Whether a frame runs the application's own code.
    pub fn is_user(&self, frame: &FrameScene) -> bool {
        frame.code.file.as_deref().is_some_and(|f| self.paths.is_user(f))
    }

    /// The first argument, which methods call `self`.
    pub fn receiver(&self, frame: &FrameScene) -> Option<Addr> {
        self.local(frame, "self")
    }

    pub fn thread_by_ident(&self, ident: u64) -> Option<&ThreadScene<'a>> {
        self.threads.iter().find(|t| t.raw.ident == ident)
    }

    /// The thread that a `threading.Thread` object stands for, while it lives.
    pub fn thread_of(&self, object: Addr) -> Option<&ThreadScene<'a>> {
        self.threads.iter().find(|t| t.known.as_ref().is_some_and(|k| k.object == object))
    }
}

impl ThreadScene<'_> {
    pub fn name(&self) -> Option<String> {
        self.known.as_ref()?.name.clone()
    }

    /// The futex it sleeps on.
    pub fn futex(&self) -> Option<Addr> {
        syscalls::futex_address(Arch::HERE, &self.syscall?)
    }

    /// Name of the call it sleeps in.
    pub fn call(&self) -> Option<&'static str> {
        syscalls::name(Arch::HERE, self.syscall?.number)
    }
}

impl FrameScene<'_> {
    /// Whether this is `function` in a file that ends so (`/threading.py`): the standard library's
    /// modules lie where the target keeps them.
    pub fn is(&self, file_end: &str, functions: &[&str]) -> bool {
        functions.contains(&self.code.name.as_str()) && self.in_file(file_end)
    }

    pub fn in_file(&self, file_end: &str) -> bool {
        self.code.file.as_deref().is_some_and(|f| f.ends_with(file_end))
    }

    pub fn line(&self) -> Option<u32> {
        self.code.line(self.offset)
    }
}
