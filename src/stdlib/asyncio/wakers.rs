//! Who could end what a task waits for: set its event, put into its queue, complete its future.
//!
//! All that can ever run again on a loop is known: its other tasks, its timers, what waits at its
//! descriptors and for its signals, and the other threads. From each of these the objects are walked that it
//! can get at; one that gets at the event and whose code speaks of `set` may set it. That is an inference:
//! who is found is "likely", and only if nobody is found, and nothing was left out of the search, is it said
//! that nobody could.
//!
//! It is read after the window, each object as it is met: a thousand tasks would make the window long.

use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};
use serde_json::json;

use super::search::{Freedom, Search};
use super::{connections, futures, labels, uv};
use crate::python::code::Codes;
use crate::python::objects::Heap;
use crate::python::opcodes;
use crate::snapshot::{Actor, Address, Certainty, Task, Wait};
use crate::stdlib::{FrameScene, Scene, Seen, exits, locks, spoken, visible};
use crate::target::memory::Addr;

/// With more waits than this only the first are explained.
const MAX_TARGETS: usize = 2_000;
/// Tasks that are searched; of the rest nothing is known.
const MAX_TASKS: usize = 2_000;
/// Actors that are named for one wait.
const MAX_ACTORS: usize = 64;
/// Handles of one kind that are looked at.
const MAX_HANDLES: usize = 10_000;

/// One object that tasks wait for in one way.
#[derive(Default)]
struct Target {
    /// What ends the wait; none: whoever has it can.
    methods: &'static [&'static str],
    /// Tasks (index) that wait.
    waiters: Vec<usize>,
    /// Tasks (index) and threads (index) that may.
    tasks: Vec<usize>,
    threads: Vec<usize>,
    /// Timers, descriptors and signals that may.
    callbacks: usize,
    /// Of these, handlers of signals.
    signals: usize,
    /// Of those who wait, who would end it for the others: consumers of a full queue that put into it.
    takers: Vec<usize>,
    /// Of those who get, who never returns: `while True`.
    endless: FxHashSet<usize>,
}

/// What can happen on a loop without any task.
#[derive(Default)]
pub(super) struct Sources {
    pub handles: Vec<Addr>,
    /// Those among them that are called for signals.
    pub signals: FxHashSet<Addr>,
    /// Not all of it could be read: uvloop keeps its own.
    pub hidden: bool,
}

/// What was not searched to the end, and may lead anywhere.
#[derive(Default)]
struct Open {
    /// Tasks (index).
    tasks: Vec<usize>,
    /// Handlers of signals.
    signals: bool,
    /// Anything else.
    many: bool,
}

type Key = (Addr, &'static [&'static str]);

pub fn find(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    labels::name(scene, codes, seen);
    let mut targets: FxHashMap<Key, Target> = FxHashMap::default();
    for (i, task) in seen.tasks.iter().enumerate() {
        if let Some(key) = task.waits_on.as_ref().and_then(key).filter(|_| targets.len() < MAX_TARGETS) {
            let target = targets.entry(key).or_insert_with(|| Target { methods: key.1, ..Target::default() });
            target.waiters.push(i);
        }
    }
    if targets.is_empty() {
        return;
    }
    let raw = std::mem::take(&mut seen.task_frames);
    let frames = |t: &Task| raw.get(&t.id.0).map(|raw| visible(scene.heap, codes, raw)).unwrap_or_default();
    let frames: Vec<Vec<FrameScene>> = seen.tasks.iter().map(frames).collect();
    let loops: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).collect();
    let sources: FxHashMap<Addr, Sources> =
        loops.iter().map(|l| (*l, sources(scene.heap, *l, None))).collect();
    let wanted: FxHashSet<Addr> = targets.keys().map(|k| k.0).collect();
    let mut search = Search::new(scene, wanted, &loops).by_names();

    let running: FxHashSet<Addr> = seen.current.values().copied().collect();
    let places: Vec<u64> = frames.iter().map(|frames| place(frames)).collect();
    let mut open = Open { many: seen.tasks.len() > MAX_TASKS, ..Open::default() };
    for (i, frames) in frames.iter().enumerate().take(MAX_TASKS) {
        let callbacks = futures::future(scene.heap, seen.tasks[i].id.0)
            .map(|f| futures::callbacks(scene.heap, &f))
            .unwrap_or_default();
        let suspended = !running.contains(&seen.tasks[i].id.0);
        let found = search.from(frames, suspended, &callbacks, Freedom::Named);
        open.tasks.extend(found.exhausted.then_some(i));
        each_hit(&mut targets, &search, &found, |target, key| {
            let awaits = seen.tasks[i].waits_on.as_ref().and_then(self::key);
            // Who stands at the same place for a future of its own is in the same need.
            let alike = |waiter: &usize| key.1.is_empty() && places[*waiter] == places[i];
            // Only the frames speak of it, and of that of something else: `self.done.set()`.
            let of_other = || {
                !key.1.is_empty()
                    && !search.speaks_elsewhere(&found, key.1)
                    && !frames.iter().any(|f| spoken::speaks_of(scene, f, key.0, key.1))
            };
            let gave_back = || super::given_back(scene, frames).contains(&key.0);
            if awaits != Some(key) && !gave_back() && !of_other() && !target.waiters.iter().any(alike) {
                target.tasks.push(i);
            }
        });
    }
    for (i, thread) in scene.threads.iter().enumerate() {
        let polls = seen.loops.get(&thread.raw.tstate).is_some_and(|l| l.state == "polling");
        if polls || seen.current.contains_key(&thread.raw.tstate) {
            continue;
        }
        // A loop does nothing but what its tasks and handles do: of its thread only the callback counts
        // that it runs just now.
        let once = thread.frames.iter().rposition(|f| f.is("/asyncio/base_events.py", &["_run_once"]));
        let found =
            search.from(&thread.frames[..once.unwrap_or(thread.frames.len())], false, &[], Freedom::All);
        open.many |= found.exhausted;
        each_hit(&mut targets, &search, &found, |target, _| target.threads.push(i));
    }
    open.many |= sources.values().any(|of_loop| of_loop.hidden);
    for of_loop in sources.values() {
        for handle in &of_loop.handles {
            let found = search.from(&[], false, &[*handle], Freedom::All);
            let is_signal = of_loop.signals.contains(handle);
            *(if is_signal { &mut open.signals } else { &mut open.many }) |= found.exhausted;
            each_hit(&mut targets, &search, &found, |target, _| {
                target.callbacks += 1;
                target.signals += usize::from(is_signal);
            });
        }
    }
    for (key, target) in targets.iter_mut().filter(|(key, _)| key.1.contains(&"get")) {
        let takes = |f: &FrameScene| spoken::surely_speaks_of(scene, f, key.0, key.1);
        target.takers.extend(target.waiters.iter().filter(|at| frames[**at].iter().any(takes)));
    }
    for (_, target) in targets.iter_mut().filter(|(key, _)| key.1.contains(&"put")) {
        let stays = |f: &FrameScene| {
            let shape = scene.shapes.of(scene, f.raw.code).filter(|_| scene.is_user(f));
            shape.is_some_and(|s| opcodes::at(&s.instructions, f.offset).is_some_and(|at| !s.may_return(at)))
        };
        target.endless.extend(target.waiters.iter().filter(|at| frames[**at].iter().any(stays)));
    }
    tell(scene, seen, &targets, &sources, &search, &open);
    drop(frames);
    seen.task_frames = raw;
}

/// Which functions, and at which instructions, as one number.
fn place(frames: &[FrameScene]) -> u64 {
    let mut hasher = FxHasher::default();
    frames.iter().for_each(|f| (f.raw.code, f.offset).hash(&mut hasher));
    hasher.finish()
}

fn each_hit(
    targets: &mut FxHashMap<Key, Target>,
    search: &Search,
    found: &super::search::Found,
    mut hit: impl FnMut(&mut Target, Key),
) {
    for (key, target) in targets.iter_mut() {
        if found.reached.contains(&key.0)
            && (target.methods.is_empty() || search.speaks(found, target.methods))
        {
            hit(target, *key);
        }
    }
}

/// What a wait is for and what would end it; `None` where that is known already, or is no one's business.
fn key(wait: &Wait) -> Option<Key> {
    let address = wait.address?.0;
    let says = |key: &str| wait.detail.get(key).is_some_and(|v| v == true);
    // Nobody has to come before a deadline; but whoever wants a lock wants it now.
    let wants = matches!(wait.kind.as_str(), "lock" | "semaphore");
    if !wait.on.is_empty()
        || wait.deadline.as_deref() == Some("at") && !wants
        || says("may_come")
        || says("done")
        || says("unwoken")
        || wait.is_for_pool()
    {
        return None;
    }
    let operation = wait.detail.get("operation").and_then(|o| o.as_str());
    let methods: &'static [&'static str] = match (wait.kind.as_str(), operation) {
        ("event", _) => &["set"],
        ("condition", _) => &["notify", "notify_all"],
        ("barrier", _) => &["wait", "abort"],
        ("semaphore" | "lock", _) => &["release"],
        ("queue", Some("get")) => &["put", "put_nowait", "shutdown"],
        ("queue", Some("put")) => &["get", "get_nowait", "shutdown"],
        ("queue", Some("join")) => &["task_done", "shutdown"],
        ("future", _) if wait.detail.get("executor").is_none() => &[],
        _ => return None,
    };
    Some((address, methods))
}

/// Timers, ready callbacks, readers and writers but for those of one descriptor, signal handlers.
pub(super) fn sources(heap: &Heap, event_loop: Addr, but: Option<i32>) -> Sources {
    let [ready, scheduled, signals] = heap.attrs(event_loop, ["_ready", "_scheduled", "_signal_handlers"]);
    let (Some(ready), Some(scheduled)) = (ready, scheduled) else {
        return uv::sources(heap, event_loop).unwrap_or(Sources { hidden: true, ..Sources::default() });
    };
    let mut handles = futures::deque(heap, ready, MAX_HANDLES);
    let timers = heap.type_of(scheduled).and_then(|ty| heap.items(scheduled, &ty, MAX_HANDLES));
    handles.extend(timers.unwrap_or_default().0);
    let values = |dict: Addr| {
        let entries = heap.type_of(dict).filter(|t| t.is_dict()).and_then(|_| heap.dict(dict, MAX_HANDLES));
        entries.unwrap_or_default().0.into_iter().map(|(_, value)| value)
    };
    let signals: FxHashSet<Addr> = signals.into_iter().flat_map(values).collect();
    handles.extend(&signals);
    let watched = connections::watched(heap, event_loop, MAX_HANDLES);
    let hidden = watched.is_none();
    let watched = watched.into_iter().flatten().filter(|w| w.fd.is_none() || w.fd != but);
    handles.extend(watched.flat_map(|w| w.handles));
    let lives = |handle: &Addr| {
        let Some(ty) = heap.type_of(*handle).filter(|t| t.name != "NoneType") else { return false };
        let [callback, cancelled] = heap.named_slots(*handle, &ty, ["_callback", "_cancelled"]);
        let is_true = cancelled.is_some_and(|c| heap.int(c) == Some(1));
        // The loop's own pipe, through which other threads wake it.
        let own = callback.is_some_and(|c| {
            heap.type_of(c).is_some_and(|t| t.name == "method")
                && heap.ptr(c + heap.layout.method.self_) == Some(event_loop)
                && heap
                    .ptr(c + heap.layout.method.func)
                    .and_then(|f| futures::function_name(heap, f))
                    .is_some_and(|n| &*n == "_read_from_self")
        });
        !is_true && !own
    };
    handles.retain(lives);
    Sources { handles, signals, hidden }
}

fn tell(
    scene: &Scene,
    seen: &mut Seen,
    targets: &FxHashMap<Key, Target>,
    sources: &FxHashMap<Addr, Sources>,
    search: &Search,
    open: &Open,
) {
    let of_task = |task: &Task| Actor::task(scene.pid, task.tid, task.id);
    let actors: Vec<Actor> = seen.tasks.iter().map(of_task).collect();
    let name = |task: &Task| task.name.clone().or(task.coroutine.clone()).unwrap_or_default();
    let names: Vec<String> = seen.tasks.iter().map(name).collect();
    let above = Above::new(&seen.tasks);
    let awaited: Vec<Option<Key>> = seen.tasks.iter().map(|t| t.waits_on.as_ref().and_then(key)).collect();
    for (i, task) in seen.tasks.iter_mut().enumerate() {
        let of_loop = task.event_loop.and_then(|l| sources.get(&l.0));
        let quiet = of_loop.is_some_and(|s| s.handles.is_empty() && !s.hidden);
        let Some(wait) = &mut task.waits_on else { continue };
        let Some(key) = key(wait) else { continue };
        let Some(target) = targets.get(&key) else { continue };
        // Who awaits this one can do nothing until it is done.
        let above = above.of(i);
        let may: Vec<usize> =
            target.tasks.iter().copied().filter(|t| *t != i && !above.contains(t)).collect();
        // What C code keeps cannot be seen: an object of an extension may know a bare future.
        let opaque = wait.kind == "future" && search.met_opaque();
        let behind = |t: usize| t == i || above.contains(&t) || awaited[t] == Some(key);
        let others_hidden = open.many || opaque || open.tasks.iter().any(|t| !behind(*t));
        let hidden = others_hidden || open.signals;
        let nobody = !hidden && may.is_empty() && target.threads.is_empty() && target.callbacks == 0;
        wait.detail["nobody"] = json!(nobody);
        wait.detail["callbacks"] = json!(target.callbacks);
        wait.detail["quiet"] = json!(quiet);
        if target.endless.contains(&i) {
            wait.detail["endless"] = json!(true);
        }
        if nobody && !target.takers.is_empty() {
            let names: Vec<&str> = target.takers.iter().map(|at| names[*at].as_str()).collect();
            wait.detail["takers"] = json!(names);
        }
        let left_to_signals = |t: &Target| t.threads.is_empty() && t.callbacks == t.signals;
        // Who waits for a sign that only this one gives can do nothing before, either.
        let waits_for_it = |t: &usize| {
            let other = awaited[*t].and_then(|key| targets.get(&key));
            other
                .is_some_and(|o| left_to_signals(o) && o.tasks.iter().all(|t| *t == i) && !o.tasks.is_empty())
        };
        let but_signals = left_to_signals(target) && may.iter().all(waits_for_it);
        if but_signals && (target.signals > 0 || open.signals) && !others_hidden {
            wait.detail["by_signal"] = json!(true);
        }
        wait.certainty = Certainty::Likely;
        // Callbacks are no parties: who may be woken by one has nobody to blame.
        if target.callbacks > 0 || hidden || may.len() > MAX_ACTORS {
            wait.detail["may_come"] = json!(true);
            continue;
        }
        // Who gets waits for work; it is somebody's fault only if those who put wait for the same.
        let gets = key.1.contains(&"put");
        let joins = |other: usize| awaited[other].is_some_and(|k| k.0 == key.0);
        if gets && (!quiet || !target.threads.is_empty() || may.iter().any(|t| joins(*t))) {
            continue;
        }
        let threads = target.threads.iter().map(|t| locks::actor(scene, &scene.threads[*t]));
        let tasks = may.iter().map(|t| actors[*t].clone());
        wait.on = tasks.chain(threads).take(MAX_ACTORS).collect();
    }
}

/// Who awaits whom, directly and through others.
pub(super) struct Above {
    awaited_by: Vec<Vec<usize>>,
}

impl Above {
    pub fn new(tasks: &[Task]) -> Self {
        let by_id: FxHashMap<Address, usize> = tasks.iter().enumerate().map(|(i, t)| (t.id, i)).collect();
        // Who waits for the first of several may go on without this one.
        let needs = |i: &usize| {
            let first = tasks[*i].waits_on.as_ref().and_then(|w| w.detail.get("first"));
            first.and_then(|f| f.as_bool()) != Some(true)
        };
        let above =
            |t: &Task| t.awaited_by.iter().filter_map(|id| by_id.get(id).copied()).filter(needs).collect();
        Above { awaited_by: tasks.iter().map(above).collect() }
    }

    pub fn of(&self, task: usize) -> FxHashSet<usize> {
        let mut found = FxHashSet::default();
        let mut left = vec![task];
        while let Some(at) = left.pop() {
            left.extend(self.awaited_by[at].iter().filter(|by| found.insert(**by)));
        }
        found
    }
}

/// Whether a task is the one that the loop runs until it is done.
pub fn is_main(heap: &Heap, task: &futures::Future) -> bool {
    let callbacks = futures::callbacks(heap, task);
    let of_uvloop = |c: Addr| {
        heap.type_of(c).filter(|t| t.name.ends_with("cython_function_or_method"))?;
        // It begins as a `PyCFunctionObject`, which has its definition where a method has its function.
        exits::c_name(heap, heap.ptr(c + heap.layout.method.func)?).filter(|name| name == "done_cb")
    };
    callbacks.into_iter().any(|c| {
        futures::function_name(heap, c).as_deref() == Some("_run_until_complete_cb") || of_uvloop(c).is_some()
    })
}
