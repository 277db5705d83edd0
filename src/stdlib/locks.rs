//! Locks: which one a thread sleeps on, and who is inside of which.
//!
//! The lock waited for is exact: the futex of the system call is the semaphore that the lock object
//! points to, or, where locks are one byte (Lock from 3.13.1 on, RLock from 3.14 on), the wait entry
//! on the waiter's own C stack names the parked address. Holders come from live exit slots
//! (exits.rs) and from the owner field of an RLock.

use std::rc::Rc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::holders::{self, Held};
use super::spoken;
use super::{FrameScene, Scene, Seen, ThreadScene, acquired, batons, exits};
use crate::python::layout::Frames;
use crate::python::objects::{Heap, TypeInfo};
use crate::snapshot::{Actor, Address, Certainty, Lock, Wait};
use crate::target::memory::Addr;

/// How many of the innermost frames are searched for the object that a thread waits on.
const NEAR: usize = 8;
/// Most attributes of one object that are looked at in such a search.
const MAX_ATTRIBUTES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Lock,
    RLock,
    Semaphore,
}

impl Kind {
    /// The report's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Lock => "lock",
            Kind::RLock => "rlock",
            Kind::Semaphore => "semaphore",
        }
    }
}

/// A lock object, read.
#[derive(Clone, Copy, Debug)]
pub struct LockObject {
    pub object: Addr,
    pub kind: Kind,
    /// What a waiter's futex or parked address is equal to.
    pub key: Addr,
    pub locked: bool,
    /// `threading.get_ident()` of an RLock's owner, while it is held.
    pub owner: Option<u64>,
}

/// Reads an object as a lock, if it is one (Modules/_threadmodule.c). Which of its two layouts it has
/// is told by its size, not by the version: 3.13.1 changed it within a minor version.
pub fn lock(heap: &Heap, object: Addr) -> Option<LockObject> {
    let ty = heap.type_of(object)?;
    let kind = match ty.name.as_str() {
        "_thread.lock" => Kind::Lock,
        "_thread.RLock" => Kind::RLock,
        _ => return None,
    };
    let body = object + heap.layout.object.size;
    let mem = heap.mem;
    let size = ty.basicsize.checked_sub(heap.layout.object.size)?;
    Some(match (kind, size) {
        // PyThread_type_lock lock_lock; PyObject *in_weakreflist; char locked;
        (Kind::Lock, 24) => LockObject {
            object,
            kind,
            key: heap.ptr(body)?,
            locked: mem.u8(body + 16).ok()? != 0,
            owner: None,
        },
        // PyMutex lock;
        (Kind::Lock, 8) => {
            LockObject { object, kind, key: body, locked: mem.u8(body).ok()? & 1 != 0, owner: None }
        }
        // PyThread_type_lock rlock_lock; unsigned long rlock_owner; unsigned long rlock_count;
        (Kind::RLock, 32) => {
            let (owner, count) = (mem.u64(body + 8).ok()?, mem.u64(body + 16).ok()?);
            let owner = (count > 0).then_some(owner);
            LockObject { object, kind, key: heap.ptr(body)?, locked: count > 0, owner }
        }
        // _PyRecursiveMutex { PyMutex mutex; unsigned long long thread; size_t level; }
        (Kind::RLock, 24) => {
            let locked = mem.u8(body).ok()? & 1 != 0;
            let owner = mem.u64(body + 8).ok().filter(|o| locked && *o != 0);
            LockObject { object, kind, key: body, locked, owner }
        }
        _ => return None,
    })
}

/// A `threading.Semaphore`: its slots are held by threads, like a lock. None while all are free.
pub fn semaphore(heap: &Heap, object: Addr) -> Option<LockObject> {
    let ty = heap.type_of(object).filter(|ty| heap.is_a(ty, "Semaphore"))?;
    // That of multiprocessing is made of a SemLock, and that of asyncio is held by tasks.
    let [condition, value] = heap.attrs(object, ["_cond", "_value"]);
    let condition = heap.type_of(condition?)?;
    heap.is_a(&condition, "Condition").then_some(())?;
    let locked = heap.int(value?)? == 0;
    let _ = ty;
    Some(LockObject { object, kind: Kind::Semaphore, key: 0, locked, owner: None })
}

/// What a sleeping thread waits at: its futex, and, for locks of one byte, the parked address.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    pub futex: Addr,
    /// `wait_entry.addr` (Python/parking_lot.c): the semaphore follows it.
    pub address: Option<Addr>,
}

pub fn parked(scene: &Scene, thread: &ThreadScene) -> Option<Parked> {
    let futex = thread.futex()?;
    let address = scene.heap.mem.u64(futex.checked_sub(8)?).ok().filter(|a| *a != 0);
    Some(Parked { futex, address })
}

impl Parked {
    pub fn is_at(&self, key: Addr) -> bool {
        self.futex == key || self.address == Some(key)
    }
}

/// An object found near a thread, and the name it goes by there.
#[derive(Clone, Debug)]
pub struct Near {
    pub object: Addr,
    pub name: Option<String>,
    /// Index of the frame.
    pub frame: usize,
}

/// Searches variables, value stacks, methods' selves and one level of attributes of the innermost
/// frames for an object that `wanted` accepts. What is accepted must prove itself: stale slots are
/// searched as well.
pub fn find_near<T>(
    scene: &Scene,
    thread: &ThreadScene,
    wanted: impl Fn(Addr) -> Option<T>,
) -> Option<(T, Near)> {
    let heap = scene.heap;
    let mut seen: Vec<Addr> = Vec::new();
    for (index, frame) in thread.frames.iter().take(NEAR).enumerate() {
        let mut here: Vec<(Option<String>, Addr)> =
            scene.locals(frame).into_iter().map(|(name, obj)| (Some(name), obj)).collect();
        here.extend(exits::stack_slots(heap, frame).into_iter().map(|obj| (None, obj)));
        for (name, obj) in here {
            if seen.contains(&obj) {
                continue;
            }
            seen.push(obj);
            let hit = |object, name: Option<String>| Near { object, name, frame: index };
            if let Some(found) = wanted(obj) {
                return Some((found, hit(obj, name.or_else(|| global_name(scene, frame, obj)))));
            }
            let Some(ty) = heap.type_of(obj) else { continue };
            if ty.name == "method" || ty.is_c_function() {
                let Some(receiver) = heap.ptr(obj + heap.layout.method.self_) else { continue };
                if let Some(found) = wanted(receiver) {
                    return Some((found, hit(receiver, named_object(scene, thread, receiver))));
                }
            } else if !ty.is_dict() && !ty.is_list() && !ty.is_tuple() && !ty.is_str() && !ty.is_type() {
                for (key, value) in heap.attributes(obj, MAX_ATTRIBUTES).unwrap_or_default() {
                    if let Some(found) = wanted(value) {
                        let attribute = heap.checked_str(key).unwrap_or_else(|| "?".into());
                        let name = name.map(|n| format!("{n}.{attribute}"));
                        return Some((found, hit(value, name.or(Some(attribute)))));
                    }
                }
            }
        }
    }
    None
}

/// What the innermost frames call an object: a variable, an attribute of one, a global.
pub fn named_object(scene: &Scene, thread: &ThreadScene, object: Addr) -> Option<String> {
    let heap = scene.heap;
    // Their variables are called `cm`, whatever it is.
    let own = thread.frames.iter().filter(|f| !f.in_file("/contextlib.py"));
    for frame in own.take(NEAR) {
        let locals = scene.locals(frame);
        if let Some((name, _)) = locals.iter().find(|(_, value)| *value == object) {
            if name != "self" {
                return Some(name.clone());
            }
            continue;
        }
        for (name, value) in &locals {
            if let Some(attributes) = heap.attributes(*value, MAX_ATTRIBUTES)
                && let Some((key, _)) = attributes.iter().find(|(_, v)| *v == object)
            {
                return Some(format!("{name}.{}", heap.checked_str(*key)?));
            }
        }
        if let Some(name) = global_name(scene, frame, object) {
            return Some(name);
        }
    }
    None
}

/// The global variable of a frame's module that holds this very object, or whose attribute does, if
/// the frame's code speaks of it.
pub fn global_name(scene: &Scene, frame: &FrameScene, object: Addr) -> Option<String> {
    let at = (frame.raw.code, object);
    if let Some(known) = scene.global_names.borrow().get(&at) {
        return known.clone();
    }
    let name = search_globals(scene, frame, object);
    scene.global_names.borrow_mut().insert(at, name.clone());
    name
}

fn search_globals(scene: &Scene, frame: &FrameScene, object: Addr) -> Option<String> {
    let heap = scene.heap;
    let globals = frame.raw.globals;
    if !heap.type_of(globals)?.is_dict() {
        return None;
    }
    let (entries, _) = heap.dict(globals, 4096)?;
    if let Some((key, _)) = entries.iter().find(|(_, value)| *value == object) {
        return heap.checked_str(*key);
    }
    let spoken_of = scene.names(frame.raw.code);
    entries.iter().find_map(|(key, value)| {
        let name = heap.name(*key).filter(|k| spoken_of.iter().any(|s| **s == **k))?;
        let attributes = heap.attributes(*value, MAX_ATTRIBUTES)?;
        let (attribute, _) = attributes.iter().find(|(_, v)| *v == object)?;
        Some(format!("{name}.{}", heap.checked_str(*attribute)?))
    })
}

/// Frame, code and instruction offset of a generator that is not running.
pub fn suspended_frame(heap: &Heap, generator: Addr) -> Option<(Addr, Addr, i64)> {
    let (l, g) = (heap.layout, &heap.layout.generator);
    let frame = match l.frames {
        Frames::Objects { .. } => heap.ptr(generator + g.frame)?,
        Frames::Interpreter { .. } => {
            let state = heap.mem.u8(generator + g.state).ok()? as i8;
            // Completed generators have no frame any more; 3.15 counts from 0, the others below.
            let suspended = if l.minor >= 15 { (1..=3).contains(&state) } else { (-3..0).contains(&state) };
            if !suspended {
                return None;
            }
            generator + g.frame
        }
    };
    let f = &l.frame;
    let code = l.untag(heap.mem.u64(frame + f.code).ok()?);
    if heap.type_of(code)?.name != "code" {
        return None;
    }
    let offset = match l.frames {
        Frames::Objects { lasti_unit } => heap.mem.i32(frame + f.lasti).ok()? as i64 * lasti_unit,
        Frames::Interpreter { .. } => {
            heap.mem.i64(frame + f.lasti).ok()?.wrapping_sub((code + l.code.bytecode) as i64)
        }
    };
    Some((frame, code, offset))
}

/// A thread in `Condition.wait` shows the `with` of the condition in an outer frame, but has released
/// its lock.
pub fn released_by_wait(scene: &Scene, thread: &ThreadScene, frame: usize, lock: Addr) -> bool {
    thread.frames[..frame].iter().any(|inner| {
        inner.is("/threading.py", &["wait"])
            && scene
                .receiver(inner)
                .and_then(|condition| scene.heap.attrs(condition, ["_lock"])[0])
                .is_some_and(|l| l == lock)
    })
}

/// Objects in a `collections.deque`, at most `cap` (Modules/_collectionsmodule.c): blocks of 64 between
/// a left and a right link.
pub fn deque(heap: &Heap, object: Addr, cap: usize) -> Option<Vec<Addr>> {
    let ty = heap.type_of(object)?;
    if !heap.is_a(&ty, "collections.deque") {
        return None;
    }
    let length = usize::try_from(heap.size(object)?).ok()?;
    let body = object + heap.layout.object.size + 8;
    let (mut block, mut index) = (heap.ptr(body)?, heap.mem.u64(body + 16).ok()?);
    let mut items = Vec::new();
    while items.len() < length.min(cap) {
        if index >= 64 {
            block = heap.ptr(block + 8 + 64 * 8)?;
            index = 0;
        }
        items.push(heap.mem.u64(block + 8 + 8 * index).ok()?);
        index += 1;
    }
    Some(items)
}

/// Fills in who holds what, and, for each thread that sleeps at a lock and nothing else, that wait.
pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in &scene.threads {
        for held in holders::of_thread(scene, thread) {
            let name = named_object(scene, thread, held.object);
            add_hold(seen, thread, &held, name);
        }
    }
    for thread in &scene.threads {
        let Some(parked) = parked(scene, thread) else { continue };
        let at_it = |object| lock(scene.heap, object).filter(|l| parked.is_at(l.key));
        let Some((lock, near)) = find_near(scene, thread, at_it) else { continue };
        // A Condition's own RLock is taken in threading.py as well, and has an owner.
        let is_signal = is_signal(thread) && lock.owner.is_none();
        let Found { on, certainty, signal } = if is_signal {
            Found { on: Vec::new(), certainty: Certainty::Proved, signal: false }
        } else if lock.kind == Kind::Lock && batons::is_one(scene, thread, lock.object) {
            Found { on: Vec::new(), certainty: Certainty::Likely, signal: true }
        } else {
            who_has(scene, seen, &lock, near.name.as_deref())
        };
        let type_name = match lock.kind {
            Kind::RLock => "RLock",
            Kind::Lock | Kind::Semaphore => "Lock",
        };
        let label = match &near.name {
            Some(name) => format!("{type_name} {name}"),
            None => format!("{type_name} at {:#x}", lock.object),
        };
        // The owner that an RLock records has ended if no thread has this ident.
        let owner_gone = lock.owner.is_some() && on.is_empty();
        let owner = on.first().and_then(|a| a.tid).filter(|_| !signal);
        let unknown = on.is_empty() && !owner_gone && !is_signal && !signal;
        let referenced_by = if unknown { references(scene, thread, &lock) } else { Vec::new() };
        seen.waits.insert(
            thread.raw.tstate,
            Wait {
                label: Some(label),
                call: Some(format!("threading.{type_name}.acquire")),
                frame: Some(0),
                on,
                certainty,
                detail: serde_json::json!({
                    "owner": owner, "locked": lock.locked, "owner_gone": owner_gone, "signal": signal,
                    "referenced_by": referenced_by,
                }),
                ..Wait::new("lock", Some(lock.object))
            },
        );
    }
}

/// Other threads that do not wait for a lock, and may have it: they can reach it, and what they have called may have
/// taken it.
fn references(scene: &Scene, waiter: &ThreadScene, lock: &LockObject) -> Vec<Actor> {
    let others = scene.threads.iter().filter(|t| {
        let waits = || parked(scene, t).is_some_and(|parked| parked.is_at(lock.key));
        let may_have = |f: &FrameScene| acquired::may_have(scene, f, lock.object);
        t.raw.tstate != waiter.raw.tstate && reached_by(scene, lock.object, t).any(may_have) && !waits()
    });
    others.take(8).map(|t| actor(scene, t)).collect()
}

/// Who has a lock or a slot of a semaphore, or, if it is a signal, who gives it.
pub struct Found {
    pub on: Vec<Actor>,
    pub certainty: Certainty,
    /// Nobody holds it: those of `on` will release it without having acquired it.
    pub signal: bool,
}

/// The owner that it records, else those that a `with` proves, else those that the bytecode infers.
pub fn who_has(scene: &Scene, seen: &mut Seen, lock: &LockObject, name: Option<&str>) -> Found {
    let found = |on, certainty| Found { on, certainty, signal: false };
    if let Some(ident) = lock.owner {
        let Some(owner) = scene.thread_by_ident(ident) else {
            return found(Vec::new(), Certainty::Proved);
        };
        // Idents are used again: a thread that never came near the lock has only inherited the ident of
        // one that ended with it.
        if !holds(seen, owner, lock.object) && !reaches(scene, owner, lock.object) {
            return found(Vec::new(), Certainty::Likely);
        }
        if !holds(seen, owner, lock.object) {
            let held = Held { frame: 0, line: None, ..Held::of(lock) };
            let name = named_object(scene, owner, lock.object).or_else(|| name.map(str::to_owned));
            add_hold(seen, owner, &held, name);
            // Which frame took it is not known.
            if let Some(lock) = seen.holds.get_mut(&owner.raw.tstate).and_then(|h| h.last_mut()) {
                (lock.frame, lock.line) = (None, None);
            }
        }
        return found(vec![actor(scene, owner)], Certainty::Proved);
    }
    for certainty in [Certainty::Proved, Certainty::Likely] {
        let has = |t: &&ThreadScene| {
            let holds = seen.holds.get(&t.raw.tstate).into_iter().flatten();
            holds.into_iter().any(|l| l.address.0 == lock.object && l.certainty == certainty)
        };
        let on: Vec<Actor> = scene.threads.iter().filter(has).map(|t| actor(scene, t)).collect();
        if !on.is_empty() {
            // Of two who are inside of a lock at most one has it.
            let sure = lock.kind != Kind::Lock || on.len() == 1;
            return found(on, if sure { certainty } else { Certainty::Likely });
        }
    }
    // Somebody was given the method by which to release it.
    let given: Vec<Actor> = scene
        .threads
        .iter()
        .filter(|t| !parked(scene, t).is_some_and(|parked| parked.is_at(lock.key)))
        .filter(|t| {
            let keeps = |f: &FrameScene| spoken::keeps_method(scene, f, lock.object, &["release"]);
            reached_by(scene, lock.object, t).any(keeps)
        })
        .map(|t| actor(scene, t))
        .collect();
    if !given.is_empty() {
        return Found { on: given, certainty: Certainty::Likely, signal: true };
    }
    let verdict = acquired::of_lock(scene, lock.object);
    // Nobody but one can hold a lock: of two that may, neither is named.
    let plausible = lock.kind == Kind::Semaphore || verdict.holders.len() == 1;
    // One who has it counts for more than one who would give it back, unless he waits for it himself: then it is
    // a signal.
    let has = |taken: &acquired::Taken| {
        !parked(scene, &scene.threads[taken.thread]).is_some_and(|parked| parked.is_at(lock.key))
    };
    let is_handed_over = |taken: &acquired::Taken| {
        let frame = &scene.threads[taken.thread].frames[taken.frame];
        !has(taken) && batons::is_handed_over(scene, frame, lock.object)
    };
    if lock.kind == Kind::Lock && verdict.holders.iter().any(is_handed_over) {
        return Found { on: Vec::new(), certainty: Certainty::Likely, signal: true };
    }
    let held = plausible
        && lock.kind == Kind::Lock
        && verdict.holders.iter().all(has)
        && !verdict.holders.is_empty();
    if !verdict.signallers.is_empty() && !held {
        let on = verdict.signallers.iter().map(|t| actor(scene, &scene.threads[*t])).collect();
        return Found { on, certainty: Certainty::Likely, signal: true };
    }
    let mut on = Vec::new();
    for taken in verdict.holders.iter().filter(|_| plausible) {
        let thread = &scene.threads[taken.thread];
        let held =
            Held { frame: taken.frame, line: taken.line, certainty: Certainty::Likely, ..Held::of(lock) };
        let name = named_object(scene, thread, lock.object).or_else(|| name.map(str::to_owned));
        add_hold(seen, thread, &held, name);
        on.push(actor(scene, thread));
    }
    // That nobody has it is no more than that nobody was found.
    found(on, Certainty::Likely)
}

/// Most objects that are looked into from one thread's frames.
const MAX_REACHED: usize = 4_000;

/// Whether the frames of a thread lead to an object, through attributes and containers a few steps deep.
fn reaches(scene: &Scene, thread: &ThreadScene, object: Addr) -> bool {
    let heap = scene.heap;
    let mut level: Vec<Addr> = Vec::new();
    for frame in thread.frames.iter().filter(|f| !f.in_file("/threading.py")) {
        level.extend(scene.values(frame));
        level.extend(exits::stack_slots(heap, frame));
        level.extend_from_slice(&named_globals(scene, frame));
    }
    let mut seen: FxHashSet<Addr> = FxHashSet::default();
    for _ in 0..4 {
        let mut next = Vec::new();
        for at in level {
            if at == object {
                return true;
            }
            if seen.len() >= MAX_REACHED {
                // Not known: it may.
                return true;
            }
            if !seen.insert(at) {
                continue;
            }
            let Some(ty) = heap.type_of(at) else { continue };
            match ty.name.as_str() {
                name if name == "method" || ty.is_c_function() => {
                    next.extend(heap.ptr(at + heap.layout.method.self_));
                }
                "function" => {
                    let closure = heap.ptr(at + heap.layout.function.closure);
                    let cells = closure.and_then(|c| heap.tuple(c, 64)).unwrap_or_default();
                    next.extend(cells.into_iter().filter_map(|c| heap.cell(c)));
                }
                _ if ty.is_dict() => {
                    next.extend(heap.dict(at, 256).unwrap_or_default().0.into_iter().map(|e| e.1));
                }
                _ if ty.is_list() || ty.is_tuple() => {
                    next.extend(heap.items(at, &ty, 256).unwrap_or_default().0);
                }
                _ if ty.is_str() || ty.is_bytes() || ty.is_int() || ty.is_type() => {}
                _ => next
                    .extend(heap.attributes(at, MAX_ATTRIBUTES).unwrap_or_default().into_iter().map(|e| e.1)),
            }
        }
        level = next;
    }
    false
}

/// The frames of a thread that can reach an object.
fn reached_by<'a, 's>(
    scene: &'a Scene<'s>,
    object: Addr,
    thread: &'a ThreadScene<'s>,
) -> impl Iterator<Item = &'a FrameScene<'s>> {
    let frames = scene.reach().get(&object).into_iter().flatten();
    let own = frames.filter(|(t, _)| scene.threads[*t as usize].raw.tstate == thread.raw.tstate);
    own.map(|(_, f)| &thread.frames[*f as usize])
}

fn holds(seen: &Seen, thread: &ThreadScene, object: Addr) -> bool {
    seen.holds.get(&thread.raw.tstate).into_iter().flatten().any(|l| l.address.0 == object)
}

/// Locks that `threading` uses as signals have no holder: a waiter's own lock in a Condition, the lock
/// that a thread releases when it ends (up to 3.12).
fn is_signal(thread: &ThreadScene) -> bool {
    thread.frames.first().is_some_and(|f| f.in_file("/threading.py"))
}

pub fn actor(scene: &Scene, thread: &ThreadScene) -> Actor {
    Actor { pid: Some(scene.pid), tid: thread.tid, thread: thread.name(), task: None, task_name: None }
}

fn add_hold(seen: &mut Seen, thread: &ThreadScene, held: &Held, name: Option<String>) {
    seen.holds.entry(thread.raw.tstate).or_default().push(Lock {
        address: Address(held.object),
        kind: held.kind.word().to_owned(),
        name,
        frame: Some(held.frame),
        line: held.line,
        certainty: held.certainty,
    });
}

/// Whether a frame's code names an attribute and the frame can reach the object: by a variable, an
/// attribute of one, or a global that the code names.
pub fn uses(scene: &Scene, thread: usize, frame: usize, object: Addr, attributes: &[&str]) -> bool {
    scene.reach().get(&object).is_some_and(|frames| frames.contains(&(thread as u32, frame as u32)))
        && spoken::speaks_of(scene, &scene.threads[thread].frames[frame], object, attributes)
}

/// `co_names`: globals and attributes that the code speaks of.
pub fn names_of(heap: &Heap, code: Addr) -> Option<Vec<String>> {
    let names = heap.tuple(heap.ptr(code + heap.layout.code.names)?, 1024)?;
    Some(names.into_iter().filter_map(|n| heap.checked_str(n)).collect())
}

/// Objects that frames can reach in one or two steps, with the frames that do.
pub type Reach = FxHashMap<Addr, Vec<(u32, u32)>>;

/// Bounds of the search: a process of thousands of threads must not cost seconds.
const REACH_FRAMES: usize = 8_000;
const REACH_OBJECTS: usize = 200_000;
/// Frames of one thread that are searched, from the innermost.
const REACH_DEPTH: usize = 40;

/// Made once for a scene, when somebody first asks who else uses an object.
pub fn reach(scene: &Scene) -> Reach {
    let heap = scene.heap;
    let mut found = Reach::default();
    let mut frames = 0;
    // Objects and globals are shared by many frames: each is looked into once.
    let mut inside: FxHashMap<Addr, Vec<Addr>> = FxHashMap::default();
    for (t, thread) in scene.threads.iter().enumerate() {
        for (f, frame) in thread.frames.iter().enumerate().take(REACH_DEPTH) {
            frames += 1;
            if frames > REACH_FRAMES || found.len() > REACH_OBJECTS {
                return found;
            }
            // But for what it was started with.
            if frame.in_file("/threading.py") && frame.code.name != "run" {
                continue;
            }
            let at = (t as u32, f as u32);
            let mut values = scene.values(frame);
            values.extend_from_slice(&named_globals(scene, frame));
            for value in values {
                found.entry(value).or_default().push(at);
                let parts = inside.entry(value).or_insert_with(|| {
                    // A method leads to its object.
                    let owner = |value: Addr| {
                        let is_method = |ty: &TypeInfo| ty.name == "method" || ty.is_c_function();
                        let method = heap.type_of(value).is_some_and(|ty| is_method(&ty));
                        method.then(|| heap.ptr(value + heap.layout.method.self_)).flatten()
                    };
                    if let Some(owner) = owner(value) {
                        return vec![owner];
                    }
                    let entries = heap.attributes(value, MAX_ATTRIBUTES).unwrap_or_default();
                    let slots = heap.type_of(value).filter(|ty| ty.is_heap_type());
                    let slots = slots.map(|ty| heap.slot_values(value, &ty)).unwrap_or_default();
                    let attributes = entries.into_iter().map(|(_, v)| v).chain(slots);
                    attributes.flat_map(|v| [Some(v), owner(v)]).flatten().collect()
                });
                for part in parts {
                    found.entry(*part).or_default().push(at);
                }
            }
        }
    }
    found
}

/// Objects that are in containers which frames can reach, with those containers.
pub fn contained(scene: &Scene) -> FxHashMap<Addr, Vec<Addr>> {
    const MOST_ITEMS: usize = 1024;
    let mut found: FxHashMap<Addr, Vec<Addr>> = FxHashMap::default();
    let mut containers: Vec<Addr> = scene.reach().keys().copied().collect();
    containers.sort_unstable();
    for container in containers {
        for item in scene.items(container, MOST_ITEMS).unwrap_or_default() {
            found.entry(item).or_default().push(container);
        }
        if found.len() > REACH_OBJECTS {
            break;
        }
    }
    found
}

/// The globals that a frame's code names.
pub fn named_globals(scene: &Scene, frame: &FrameScene) -> Rc<[Addr]> {
    let read = || {
        let names = scene.names(frame.raw.code);
        let Some((entries, _)) = scene.heap.dict(frame.raw.globals, 4096) else { return Rc::default() };
        let named = |(key, value): &(Addr, Addr)| {
            scene.heap.name(*key).is_some_and(|k| names.iter().any(|n| **n == *k)).then_some(*value)
        };
        entries.iter().filter_map(named).collect()
    };
    let mut known = scene.named_globals.borrow_mut();
    Rc::clone(known.entry((frame.raw.globals, frame.raw.code)).or_insert_with(read))
}
