//! Locks: which one a thread sleeps on, and who is inside of which.
//!
//! The lock waited for is exact: the futex of the system call is the semaphore that the lock object
//! points to, or, where locks are one byte (Lock from 3.13.1 on, RLock from 3.14 on), the wait entry
//! on the waiter's own C stack names the parked address. Holders come from live exit slots
//! (exits.rs) and from the owner field of an RLock.

use rustc_hash::FxHashMap;

use super::exits::{self, Exit};
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::python::layout::Frames;
use crate::python::objects::Heap;
use crate::snapshot::{Actor, Address, Certainty, Lock, Wait};
use crate::target::memory::Addr;

/// How many of the innermost frames are searched for the object that a thread waits on.
const NEAR: usize = 8;
/// How deep managers may be made of each other.
const MAX_NESTING: u32 = 16;
/// Most attributes of one object that are looked at in such a search.
const MAX_ATTRIBUTES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Lock,
    RLock,
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
            if matches!(ty.name.as_str(), "method" | "builtin_function_or_method") {
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
    for frame in thread.frames.iter().take(NEAR) {
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
        let name = heap.checked_str(*key).filter(|k| spoken_of.contains(k))?;
        let attributes = heap.attributes(*value, MAX_ATTRIBUTES)?;
        let (attribute, _) = attributes.iter().find(|(_, v)| *v == object)?;
        Some(format!("{name}.{}", heap.checked_str(*attribute)?))
    })
}

/// One lock that a thread is inside of.
#[derive(Clone, Debug)]
pub struct Held {
    pub object: Addr,
    pub kind: Kind,
    /// Index of the frame that is inside.
    pub frame: usize,
    pub line: Option<u32>,
}

/// All locks that the frames of a thread are inside of, by live exit slots.
fn held_by(scene: &Scene, thread: &ThreadScene) -> Vec<Held> {
    let mut found: Vec<Held> = Vec::new();
    for (index, frame) in thread.frames.iter().enumerate() {
        let mut locks: Vec<(LockObject, Option<u32>)> = Vec::new();
        for exit in exits::of_frame(scene.heap, frame) {
            let line = with_line(scene.heap, frame, &exit);
            locks.extend(of_manager(scene.heap, exit.manager, 0).into_iter().map(|l| (l, line)));
        }
        // A generator that is suspended inside of a `with` holds, too, as long as its frame keeps it.
        for obj in scene.values(frame) {
            if scene.heap.type_of(obj).is_some_and(|t| t.name == "generator") {
                locks.extend(of_generator(scene.heap, obj, 0).into_iter().map(|l| (l, None)));
            }
        }
        for (lock, line) in locks {
            if !released_by_wait(scene, thread, index, lock.object)
                && !found.iter().any(|h| h.object == lock.object)
            {
                found.push(Held { object: lock.object, kind: lock.kind, frame: index, line });
            }
        }
    }
    found
}

/// The line of the `with` statement: its handler stands on it from 3.10 on.
fn with_line(heap: &Heap, frame: &FrameScene, exit: &Exit) -> Option<u32> {
    match heap.layout.line_table {
        crate::python::layout::LineTable::Lnotab => None,
        _ => frame.code.line(exit.handler),
    }
}

/// From a context manager to the locks that it stands for: a manager may be made of a generator that is
/// inside of another one, or of an ExitStack.
fn of_manager(heap: &Heap, manager: Addr, depth: u32) -> Vec<LockObject> {
    if depth > MAX_NESTING {
        return Vec::new();
    }
    if let Some(lock) = lock(heap, manager) {
        return vec![lock];
    }
    let Some(ty) = heap.type_of(manager) else { return Vec::new() };
    if matches!(ty.name.as_str(), "generator" | "coroutine" | "async_generator") {
        return of_generator(heap, manager, depth);
    }
    // Condition._lock; Semaphore and Barrier use their Condition; _GeneratorContextManager.gen;
    // ExitStack._exit_callbacks.
    let [inner, generator, callbacks] = heap.attrs(manager, ["_lock", "gen", "_exit_callbacks"]);
    if let Some(generator) = generator {
        return of_generator(heap, generator, depth + 1);
    }
    if let Some(callbacks) = callbacks {
        let exits = deque(heap, callbacks, 64).unwrap_or_default();
        let managers = exits.into_iter().filter_map(|pair| {
            // (is_sync, bound method)
            let items = heap.tuple(pair, 4)?;
            exits::bound_exit(heap, *items.get(1)?)
        });
        return managers.flat_map(|m| of_manager(heap, m, depth + 1)).collect();
    }
    match inner.filter(|_| heap.is_a(&ty, "Condition")) {
        Some(lock_object) => lock(heap, lock_object).into_iter().collect(),
        // What a manager of the application's own does in `__enter__` is not known.
        None => Vec::new(),
    }
}

/// The locks that a suspended generator or coroutine is inside of.
fn of_generator(heap: &Heap, generator: Addr, depth: u32) -> Vec<LockObject> {
    let Some((frame, code, offset)) = suspended_frame(heap, generator) else { return Vec::new() };
    let exits = exits::of_raw(heap, frame, code, offset);
    exits.into_iter().flat_map(|e| of_manager(heap, e.manager, depth + 1)).collect()
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
fn released_by_wait(scene: &Scene, thread: &ThreadScene, frame: usize, lock: Addr) -> bool {
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
    let mut holders: FxHashMap<Addr, Vec<usize>> = FxHashMap::default();
    for (i, thread) in scene.threads.iter().enumerate() {
        for held in held_by(scene, thread) {
            holders.entry(held.object).or_default().push(i);
            let name = named_object(scene, thread, held.object);
            add_hold(seen, thread, &held, name, Certainty::Proved);
        }
    }
    for thread in &scene.threads {
        let Some(parked) = parked(scene, thread) else { continue };
        let at_it = |object| lock(scene.heap, object).filter(|l| parked.is_at(l.key));
        let Some((lock, near)) = find_near(scene, thread, at_it) else { continue };
        let mut on: Vec<Actor> = Vec::new();
        let mut certainty = Certainty::Proved;
        if let Some(owner) = lock.owner.and_then(|ident| scene.thread_by_ident(ident)) {
            on.push(actor(scene, owner));
            let held = Held { object: lock.object, kind: lock.kind, frame: 0, line: None };
            let known = seen
                .holds
                .get(&owner.raw.tstate)
                .is_some_and(|h| h.iter().any(|l| l.address.0 == lock.object));
            if !known {
                let name = named_object(scene, owner, lock.object).or_else(|| near.name.clone());
                add_owner(seen, owner, &held, name);
            }
        } else if let Some(threads) = holders.get(&lock.object) {
            on.extend(threads.iter().map(|i| actor(scene, &scene.threads[*i])));
        } else if !is_signal(thread)
            && let Some((holder, frame)) = likely_holder(scene, thread, lock.object)
        {
            certainty = Certainty::Likely;
            on.push(actor(scene, holder));
            let line = holder.frames.get(frame).and_then(|f| f.line());
            let held = Held { object: lock.object, kind: lock.kind, frame, line };
            add_hold(seen, holder, &held, near.name.clone(), Certainty::Likely);
        }
        let type_name = match lock.kind {
            Kind::Lock => "Lock",
            Kind::RLock => "RLock",
        };
        let label = match &near.name {
            Some(name) => format!("{type_name} {name}"),
            None => format!("{type_name} at {:#x}", lock.object),
        };
        let owner = on.first().and_then(|a| a.tid);
        seen.waits.insert(
            thread.raw.tstate,
            Wait {
                kind: "lock".into(),
                address: Some(Address(lock.object)),
                label: Some(label),
                call: Some(format!("threading.{type_name}.acquire")),
                frame: Some(0),
                blocked_for: None,
                deadline: None,
                ends_in: None,
                on,
                certainty,
                detail: serde_json::json!({ "owner": owner, "locked": lock.locked }),
            },
        );
    }
}

/// Locks that `threading` uses as signals have no holder: a waiter's own lock in a Condition, the lock
/// that a thread releases when it ends (up to 3.12).
fn is_signal(thread: &ThreadScene) -> bool {
    thread.frames.first().is_some_and(|f| f.in_file("/threading.py"))
}

pub fn actor(scene: &Scene, thread: &ThreadScene) -> Actor {
    Actor { pid: Some(scene.pid), tid: thread.tid, thread: thread.name(), task: None }
}

fn add_hold(seen: &mut Seen, thread: &ThreadScene, held: &Held, name: Option<String>, certainty: Certainty) {
    let line = held.line;
    seen.holds.entry(thread.raw.tstate).or_default().push(Lock {
        address: Address(held.object),
        kind: match held.kind {
            Kind::Lock => "lock".into(),
            Kind::RLock => "rlock".into(),
        },
        name,
        frame: Some(held.frame),
        line,
        certainty,
    });
}

/// Held by its owner field: which frame took it is not known.
fn add_owner(seen: &mut Seen, thread: &ThreadScene, held: &Held, name: Option<String>) {
    add_hold(seen, thread, held, name, Certainty::Proved);
    if let Some(lock) = seen.holds.get_mut(&thread.raw.tstate).and_then(|h| h.last_mut()) {
        (lock.frame, lock.line) = (None, None);
    }
}

/// Who has taken a lock by `acquire()`: nothing on the stack proves it. The one other thread that has a
/// frame which names both this lock and `acquire`, and is not itself waiting for it there.
fn likely_holder<'s, 'a>(
    scene: &'s Scene<'a>,
    waiter: &ThreadScene,
    object: Addr,
) -> Option<(&'s ThreadScene<'a>, usize)> {
    let mut found = None;
    for (index, thread) in scene.threads.iter().enumerate().filter(|(_, t)| t.raw.tstate != waiter.raw.tstate)
    {
        let waits_here = parked(scene, thread)
            .zip(lock(scene.heap, object))
            .is_some_and(|(parked, lock)| parked.is_at(lock.key));
        if waits_here {
            continue;
        }
        let frame = (0..thread.frames.len()).find(|f| uses(scene, index, *f, object, &["acquire"]));
        if let Some(frame) = frame {
            if found.is_some() {
                // Two that may: neither is named.
                return None;
            }
            found = Some((thread, frame));
        }
    }
    found
}

/// Whether a frame's code names an attribute and the frame can reach the object: by a variable, an
/// attribute of one, or a global that the code names.
pub fn uses(scene: &Scene, thread: usize, frame: usize, object: Addr, attributes: &[&str]) -> bool {
    scene.reach().get(&object).is_some_and(|frames| frames.contains(&(thread as u32, frame as u32)))
        && speaks_of(scene, &scene.threads[thread].frames[frame], attributes)
}

/// Whether the code of a frame names one of these attributes.
pub fn speaks_of(scene: &Scene, frame: &FrameScene, attributes: &[&str]) -> bool {
    scene.names(frame.raw.code).iter().any(|n| attributes.contains(&n.as_str()))
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
    let mut globals: FxHashMap<(Addr, Addr), Vec<Addr>> = FxHashMap::default();
    for (t, thread) in scene.threads.iter().enumerate() {
        for (f, frame) in thread.frames.iter().enumerate().take(REACH_DEPTH) {
            frames += 1;
            if frames > REACH_FRAMES || found.len() > REACH_OBJECTS {
                return found;
            }
            if frame.in_file("/threading.py") {
                continue;
            }
            let at = (t as u32, f as u32);
            let mut values = scene.values(frame);
            let key = (frame.raw.globals, frame.raw.code);
            values.extend_from_slice(globals.entry(key).or_insert_with(|| named_globals(scene, frame)));
            for value in values {
                found.entry(value).or_default().push(at);
                let parts = inside.entry(value).or_insert_with(|| {
                    let entries = heap.attributes(value, MAX_ATTRIBUTES).unwrap_or_default();
                    entries.into_iter().map(|(_, v)| v).collect()
                });
                for part in parts {
                    found.entry(*part).or_default().push(at);
                }
            }
        }
    }
    found
}

/// The globals that a frame's code names.
pub fn named_globals(scene: &Scene, frame: &FrameScene) -> Vec<Addr> {
    let names = scene.names(frame.raw.code);
    let Some((entries, _)) = scene.heap.dict(frame.raw.globals, 4096) else { return Vec::new() };
    let named = |(key, value): &(Addr, Addr)| {
        scene.heap.checked_str(*key).is_some_and(|k| names.contains(&k)).then_some(*value)
    };
    entries.iter().filter_map(named).collect()
}
