//! asyncio: which threads run an event loop and how it fares, all tasks, what each awaits.
//!
//! A task is read as the interpreter keeps it: its coroutine's frames down to the innermost `await`, and
//! the future that will wake it. Who can complete that future is learned from the callbacks that hang on
//! tasks and futures, which is how `gather`, `shield`, `wait_for` and `TaskGroup` work; no version is asked for.

mod across_await;
pub mod alone;
mod anyio;
pub mod blocked;
mod closing;
pub mod connections;
pub mod coroutines;
pub mod died;
mod edges;
mod executor;
pub mod futures;
pub mod iteration;
mod keepers;
mod labels;
mod loops;
pub mod not_running;
pub mod pools;
pub mod search;
mod tasks;
pub mod threadsafe;
mod tls;
pub mod tornado;
mod uv;
mod waits;
pub mod wakers;

use std::cell::OnceCell;

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::json;

use super::{FrameScene, Scene, Seen, ThreadScene, visible};
use super::{acquired, exits};
use crate::python::code::Codes;
use crate::python::frames::RawFrame;
use crate::python::layout::NONE;
use crate::python::objects::Heap;
use crate::python::{opcodes, sysinfo};
use crate::snapshot::{Address, Certainty, Lock, Task, Wait};
use crate::target::memory::Addr;
use futures::TaskObject;

/// A dict of running tasks has an entry for each loop, and those that were deleted.
const MAX_LOOPS: usize = 4096;

/// One task while it is looked at.
struct TaskScene<'a> {
    object: TaskObject,
    /// Innermost first.
    frames: Vec<FrameScene<'a>>,
    /// It runs on this thread (index into the scene's) just now.
    on: Option<usize>,
    /// The thread of its loop (index into the scene's).
    thread: Option<usize>,
    holds: Vec<Lock>,
}

/// All tasks, and what leads from one to another.
struct World<'a> {
    tasks: Vec<TaskScene<'a>>,
    by_addr: FxHashMap<Addr, usize>,
    /// Who is inside of an asyncio lock.
    holders: FxHashMap<Addr, Vec<usize>>,
    /// Whom each awaits.
    awaits: Vec<Vec<usize>>,
    anyio: OnceCell<FxHashMap<Addr, usize>>,
    /// Threads whose loop sleeps in its selector.
    asleep: FxHashSet<usize>,
}

impl World<'_> {
    fn anyio_workers(&self, scene: &Scene) -> &FxHashMap<Addr, usize> {
        self.anyio.get_or_init(|| anyio::workers(scene))
    }
}

/// The dict of asyncio in which the running task of each loop stands (where no thread knows its own: up to 3.13).
pub fn current_tasks(heap: &Heap, interp: Addr) -> Option<Addr> {
    let module = sysinfo::modules(heap, interp, ["asyncio.tasks"])[0]?;
    let found = heap.dict_get(heap.module_dict(module)?, ["_current_tasks"])[0]?;
    heap.type_of(found).filter(|t| t.is_dict())?;
    Some(found)
}

/// The task that runs in a thread, in a handful of reads; `tasks` is [`current_tasks`] of its interpreter.
pub fn current_task(heap: &Heap, tstate: Addr, tasks: Option<Addr>) -> Option<TaskObject> {
    let (size, a) = (heap.layout.tstate.size, &heap.layout.asyncio);
    let task = match a.running_task {
        NONE => {
            let event_loop = loops::running_loop(heap, tstate, None)?;
            let (entries, _) = heap.dict(tasks?, MAX_LOOPS)?;
            entries.into_iter().find(|(key, _)| *key == event_loop)?.1
        }
        offset => heap.ptr(tstate + size + offset)?,
    };
    futures::task(heap, task)
}

pub fn read(scene: &Scene, codes: &mut Codes, seen: &mut Seen) {
    let heap = scene.heap;
    let found = tasks::all(scene, seen);
    let running = loops::read(scene, &found.current, seen);
    let mut raw: Vec<(TaskObject, Vec<RawFrame>, Option<usize>)> = Vec::new();
    for object in found.tasks {
        let chain = object.coroutine.map(|c| coroutines::chain(heap, c)).unwrap_or_default();
        let mut frames = chain.frames;
        let mut on = None;
        if chain.executing
            && let Some(outermost) = frames.last()
        {
            // What it calls stands on the stack of the thread that runs it.
            for (i, thread) in scene.threads.iter().enumerate() {
                if let Some(at) = thread.raw.frames.iter().position(|f| f.addr == outermost.addr) {
                    frames = thread.raw.frames[..=at].to_vec();
                    on = Some(i);
                    break;
                }
            }
        }
        raw.push((object, frames, on));
    }
    codes.load(heap, raw.iter().flat_map(|t| &t.1).map(|f| f.code));

    let polls = |t: &ThreadScene| {
        seen.loops.get(&t.raw.tstate).is_some_and(|l| l.state == "polling" && l.ready.is_some_and(|n| n > 0))
    };
    let asleep = (0..scene.threads.len()).filter(|i| polls(&scene.threads[*i])).collect();
    let mut world = World {
        tasks: Vec::new(),
        by_addr: raw.iter().enumerate().map(|(i, t)| (t.0.future.addr, i)).collect(),
        holders: FxHashMap::default(),
        awaits: Vec::new(),
        anyio: OnceCell::new(),
        asleep,
    };
    for (i, (object, frames, on)) in raw.iter().enumerate() {
        let frames = visible(heap, codes, frames);
        let mut holds = held(scene, &frames, on.is_none());
        for lock in &holds {
            world.holders.entry(lock.address.0).or_default().push(i);
        }
        if on.is_none() {
            across_await::held(scene, &frames, &mut holds);
        }
        let thread = object.future.event_loop.and_then(|l| running.get(&l).copied()).or(*on);
        world.tasks.push(TaskScene { object: object.clone(), frames, on: *on, thread, holds });
    }
    world.awaits = edges::between(heap, &world);
    tell(scene, &world, &found.current, seen);
    across_await::name(scene, seen);
    seen.running = running;
    seen.task_frames = raw.into_iter().map(|(object, frames, _)| (object.future.addr, frames)).collect();
}

/// Puts it in the report's words.
fn tell(scene: &Scene, world: &World, current: &FxHashMap<Addr, Addr>, seen: &mut Seen) {
    let address = |i: &usize| Address(world.tasks[*i].object.future.addr);
    let mut awaited_by: Vec<Vec<Address>> = vec![Vec::new(); world.tasks.len()];
    // Up to 3.10 a task does not count how often it was cancelled.
    let mut cancelled = FxHashSet::default();
    for (i, awaits) in world.awaits.iter().enumerate() {
        let cancels = |f: &FrameScene| f.is("/asyncio/tasks.py", &["_cancel_and_wait"]);
        let has_cancelled = world.tasks[i].frames.iter().any(cancels);
        for other in awaits {
            awaited_by[*other].push(address(&i));
            if has_cancelled {
                cancelled.insert(*other);
            }
        }
    }
    for (i, task) in world.tasks.iter().enumerate() {
        let future = &task.object.future;
        let is_current = future.event_loop.is_some_and(|l| current.get(&l) == Some(&future.addr));
        let runs = task.on.is_some() || is_current;
        let cancels = task.object.cancels.or(cancelled.contains(&i).then_some(1));
        let mut waits_on =
            if runs { None } else { waits::of_task(scene, world, i).map(|w| doubted(world, w)) };
        if let Some(wait) = waits_on.as_mut().filter(|_| cancels.is_some_and(|n| n > 0))
            && goes_on(scene, &task.frames)
        {
            if !wait.detail.is_object() {
                wait.detail = json!({});
            }
            wait.detail["goes_on"] = json!(true);
        }
        seen.tasks.push(Task {
            id: Address(future.addr),
            name: task.object.name.clone(),
            event_loop: future.event_loop.map(Address),
            tid: task.thread.and_then(|t| scene.threads[t].tid),
            coroutine: task.object.coroutine.and_then(|c| coroutines::qualname(scene.heap, c)),
            state: Some(if runs { "running" } else { future.state }.to_owned()),
            awaits: world.awaits[i].iter().map(address).collect(),
            awaited_by: std::mem::take(&mut awaited_by[i]),
            holds: task.holds.clone(),
            frames: Vec::new(),
            waits_on,
            request: None,
            main: wakers::is_main(scene.heap, future),
            cancels,
        });
        if let Some(thread) = task.on.or(task.thread.filter(|_| is_current)) {
            seen.current.insert(scene.threads[thread].raw.tstate, future.addr);
        }
    }
    seen.tasks.sort_by_cached_key(|t| (t.tid, t.event_loop, order(t.name.as_deref()), t.id));
}

/// A task that was cancelled has caught that, and is in a loop of its own code again, not in what tidies up.
fn goes_on(scene: &Scene, frames: &[FrameScene]) -> bool {
    let own = frames.iter().find(|frame| scene.is_user(frame));
    own.is_some_and(|frame| {
        let shape = scene.shapes.of(scene, frame.raw.code);
        let at = shape.as_ref().and_then(|shape| opcodes::at(&shape.instructions, frame.offset));
        shape.zip(at).is_some_and(|(shape, at)| shape.is_in_plain_loop(at))
    })
}

/// Who has a lock through a manager of the application's own is likely to.
fn doubted(world: &World, wait: Wait) -> Wait {
    let is_likely = |l: &Lock| Some(l.address) == wait.address && l.certainty == Certainty::Likely;
    let holders = wait.address.and_then(|a| world.holders.get(&a.0)).into_iter().flatten();
    match holders.into_iter().any(|i| world.tasks[*i].holds.iter().any(is_likely)) {
        true => Wait { certainty: Certainty::Likely, ..wait },
        false => wait,
    }
}

/// `Task-9` before `Task-10`.
fn order(name: Option<&str>) -> (String, u64) {
    let name = name.unwrap_or_default();
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem.to_owned(), name[stem.len()..].parse().unwrap_or(0))
}

/// Who waits in `Condition.wait` has given its lock back, and wants it himself when he is woken.
fn given_back(scene: &Scene, frames: &[FrameScene]) -> Vec<Addr> {
    let waits = frames.iter().filter(|f| f.is("/asyncio/locks.py", &["wait"]));
    waits.filter_map(|f| scene.heap.attrs(scene.receiver(f)?, ["_lock"])[0]).collect()
}

/// The asyncio locks that these frames are inside of, proved by their exits.
fn held(scene: &Scene, frames: &[FrameScene], suspended: bool) -> Vec<Lock> {
    let heap = scene.heap;
    let mut found = Vec::new();
    let given_back = given_back(scene, frames);
    for (i, frame) in frames.iter().enumerate() {
        let mut inside: Vec<((Addr, &'static str), Option<u32>, Certainty)> = Vec::new();
        for exit in exits::of_frame(heap, frame) {
            let stack = exits::of_stack(heap, exit.manager).unwrap_or_else(|| vec![exit.manager]);
            for manager in stack {
                let line = exits::line(scene, frame, &exit);
                let own = locks_of(scene, manager, MAX_NESTING);
                if own.is_empty() {
                    inside.extend(wrapped(scene, manager).map(|lock| (lock, line, Certainty::Likely)));
                }
                inside.extend(own.into_iter().map(|lock| (lock, line, Certainty::Proved)));
            }
        }
        // One that was left in the middle of a lock holds it as long as somebody keeps it.
        let iterated =
            if suspended { coroutines::stack(heap, frame.raw).unwrap_or_default() } else { Vec::new() };
        for value in scene.values(frame).into_iter().chain(iterated) {
            if is_generator(heap, value) && !is_awaited(&frames[..i], heap, value) {
                let locks = of_left(scene, value, 2).into_iter();
                inside.extend(locks.map(|lock| (lock, None, Certainty::Proved)));
            }
        }
        for ((address, kind), line, certainty) in inside {
            if given_back.contains(&address) || found.iter().any(|l: &Lock| l.address.0 == address) {
                continue;
            }
            found.push(Lock {
                address: Address(address),
                kind: kind.to_owned(),
                name: None,
                frame: Some(i),
                line,
                certainty,
            });
        }
    }
    found
}

/// How deep managers may be made of each other.
const MAX_NESTING: u32 = 8;

/// The locks behind a context manager of asyncio, and the report's word for each.
fn locks_of(scene: &Scene, manager: Addr, depth: u32) -> Vec<(Addr, &'static str)> {
    let heap = scene.heap;
    let Some(ty) = heap.type_of(manager).filter(|t| t.is_heap_type()) else { return Vec::new() };
    match () {
        _ if heap.is_of(&ty, "asyncio.locks", "Lock") => vec![(manager, "asyncio-lock")],
        _ if heap.is_of(&ty, "asyncio.locks", "Semaphore") => vec![(manager, "semaphore")],
        _ if heap.is_of(&ty, tornado::LOCKS, "Lock") => vec![(manager, "asyncio-lock")],
        _ if heap.is_of(&ty, tornado::LOCKS, "Semaphore") => vec![(manager, "semaphore")],
        // `with await lock.acquire()`: of a lock, it has the semaphore inside.
        _ if heap.is_of(&ty, tornado::LOCKS, "_ReleasingContextManager") => {
            let semaphore = heap.attrs(manager, ["_obj"])[0];
            semaphore.map(|semaphore| (semaphore, "semaphore")).into_iter().collect()
        }
        _ if heap.is_of(&ty, "asyncio.locks", "Condition") => {
            heap.attrs(manager, ["_lock"])[0].map(|lock| (lock, "asyncio-lock")).into_iter().collect()
        }
        // `async with await lock` of old, and `@asynccontextmanager`: the lock stands in a suspended generator.
        _ if ty.name == "_AsyncGeneratorContextManager" => match heap.attrs(manager, ["gen"])[0] {
            Some(generator) => of_generator(scene, generator, Some(manager), depth),
            None => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// A manager of the application's own that takes a lock when it is entered, and gives it back when it is left.
fn wrapped(scene: &Scene, manager: Addr) -> Option<(Addr, &'static str)> {
    let heap = scene.heap;
    let says = |method: &str, word: &str| {
        let function = acquired::class_attribute(scene, manager, method)?;
        let code = heap.ptr(function + heap.layout.function.code)?;
        scene.names(code).iter().any(|name| name == word).then_some(())
    };
    says("__aenter__", "acquire")?;
    says("__aexit__", "release")?;
    let attributes = heap.attributes(manager, 64)?;
    let mut locks = attributes.into_iter().filter_map(|(_, value)| plain_lock(scene, value));
    locks.next().filter(|_| locks.next().is_none())
}

/// The locks that a suspended generator is inside of, by itself or through managers that are generators in turn.
fn of_generator(
    scene: &Scene,
    generator: Addr,
    manager: Option<Addr>,
    depth: u32,
) -> Vec<(Addr, &'static str)> {
    let exits = exits::of_generator(scene.heap, generator).into_iter();
    let others = exits.filter(|e| depth > 0 && Some(e.manager) != manager);
    others.flat_map(|e| locks_of(scene, e.manager, depth - 1)).collect()
}

/// Those that a generator is inside of that was left in the middle, and one that it iterates itself.
fn of_left(scene: &Scene, generator: Addr, depth: u32) -> Vec<(Addr, &'static str)> {
    let heap = scene.heap;
    let mut found = of_generator(scene, generator, None, MAX_NESTING);
    if depth > 0 {
        for frame in coroutines::chain(heap, generator).frames {
            let values = coroutines::stack(heap, &frame).unwrap_or_default().into_iter();
            found
                .extend(values.filter(|v| is_generator(heap, *v)).flat_map(|v| of_left(scene, v, depth - 1)));
        }
    }
    found
}

fn is_generator(heap: &Heap, value: Addr) -> bool {
    heap.type_of(value).is_some_and(|t| t.name == "async_generator")
}

/// A generator whose frame is among those that the task awaits: its own exits tell.
fn is_awaited(inner: &[FrameScene], heap: &Heap, generator: Addr) -> bool {
    coroutines::chain(heap, generator).frames.iter().any(|f| inner.iter().any(|i| i.raw.addr == f.addr))
}

fn plain_lock(scene: &Scene, value: Addr) -> Option<(Addr, &'static str)> {
    locks_of(scene, value, 0).pop()
}
