//! Which locks a thread is inside of, frame by frame: what a live exit slot leads to is proved, what a
//! manager or a suspended generator has acquired by hand is likely.

use super::exits;
use super::locks::{self, Kind, LockObject};
use super::{Scene, ThreadScene, acquired};
use crate::python::objects::Heap;
use crate::snapshot::Certainty;
use crate::target::memory::Addr;

/// How deep managers may be made of each other.
const MAX_NESTING: u32 = 16;

/// One lock that a thread is inside of.
#[derive(Clone, Debug)]
pub struct Held {
    pub object: Addr,
    pub kind: Kind,
    /// Index of the frame that is inside.
    pub frame: usize,
    pub line: Option<u32>,
    pub certainty: Certainty,
}

impl Held {
    pub fn of(lock: &LockObject) -> Held {
        Held { object: lock.object, kind: lock.kind, frame: 0, line: None, certainty: Certainty::Proved }
    }
}

/// A lock that a manager stands for, and how certain that is.
pub type Managed = (LockObject, Certainty);

/// All locks that the frames of a thread are inside of, by live exit slots.
pub fn of_thread(scene: &Scene, thread: &ThreadScene) -> Vec<Held> {
    let mut found: Vec<Held> = Vec::new();
    let mut add = |index: usize, (lock, certainty): Managed, line: Option<u32>| {
        if !locks::released_by_wait(scene, thread, index, lock.object)
            && !acquired::is_given_back(scene, thread, index, lock.object)
            && !found.iter().any(|h| h.object == lock.object)
        {
            found.push(Held { frame: index, line, certainty, ..Held::of(&lock) });
        }
    };
    for (index, frame) in thread.frames.iter().enumerate() {
        let mut locks: Vec<(Managed, Option<u32>)> = Vec::new();
        for exit in exits::of_frame(scene.heap, frame) {
            let line = exits::line(scene, frame, &exit);
            locks.extend(of_manager(scene, exit.manager, 0).into_iter().map(|l| (l, line)));
        }
        // A generator that is suspended inside of a `with` holds, too, as long as its frame keeps it.
        for obj in scene.values(frame) {
            if scene.heap.type_of(obj).is_some_and(|t| t.name == "generator") {
                locks.extend(of_generator(scene, obj, 0).into_iter().map(|l| (l, None)));
            }
        }
        locks.into_iter().for_each(|(lock, line)| add(index, lock, line));
    }
    // One that a `for` goes through lies on the value stack, where old words lie as well.
    for (index, frame) in thread.frames.iter().enumerate() {
        for obj in exits::stack_slots(scene.heap, frame) {
            if scene.heap.type_of(obj).is_some_and(|t| t.name == "generator") {
                for (lock, _) in of_generator(scene, obj, 0) {
                    match lock.owner {
                        Some(owner) if owner == thread.raw.ident => {
                            add(index, (lock, Certainty::Proved), None)
                        }
                        Some(_) => {}
                        None => add(index, (lock, Certainty::Likely), None),
                    }
                }
            }
        }
    }
    found
}

/// From a context manager to the locks that it stands for: a manager may be made of a generator that is
/// inside of another one, or of an ExitStack.
pub fn of_manager(scene: &Scene, manager: Addr, depth: u32) -> Vec<Managed> {
    let heap = scene.heap;
    let proved = |lock: LockObject| (lock, Certainty::Proved);
    if depth > MAX_NESTING {
        return Vec::new();
    }
    if let Some(lock) = locks::lock(heap, manager).or_else(|| locks::semaphore(heap, manager)) {
        return vec![proved(lock)];
    }
    let Some(ty) = heap.type_of(manager) else { return Vec::new() };
    if matches!(ty.name.as_str(), "generator" | "coroutine" | "async_generator") {
        return of_generator(scene, manager, depth);
    }
    // Condition._lock; _GeneratorContextManager.gen.
    let [inner, generator] = heap.attrs(manager, ["_lock", "gen"]);
    if let Some(generator) = generator {
        return of_generator(scene, generator, depth + 1);
    }
    if let Some(managers) = exits::of_stack(heap, manager) {
        return managers.into_iter().flat_map(|m| of_manager(scene, m, depth + 1)).collect();
    }
    if let Some(inner) = inner.filter(|_| heap.is_a(&ty, "Condition")) {
        return locks::lock(heap, inner).into_iter().map(proved).collect();
    }
    // A class of the application's own: what its `__enter__` takes and leaves taken.
    likely(heap, acquired::of_manager(scene, manager))
}

/// The locks that a suspended generator or coroutine is inside of.
fn of_generator(scene: &Scene, generator: Addr, depth: u32) -> Vec<Managed> {
    let heap = scene.heap;
    let Some((frame, code, offset)) = locks::suspended_frame(heap, generator) else { return Vec::new() };
    let exits = exits::of_raw(heap, frame, code, offset);
    let mut found: Vec<Managed> =
        exits.into_iter().flat_map(|e| of_manager(scene, e.manager, depth + 1)).collect();
    found.extend(likely(heap, acquired::of_suspended(scene, frame, code, offset)));
    found
}

/// Inferred; a lock that is free by now is none.
fn likely(heap: &Heap, objects: Vec<Addr>) -> Vec<Managed> {
    let read = |object: Addr| locks::lock(heap, object).or_else(|| locks::semaphore(heap, object));
    let held = objects.into_iter().filter_map(read).filter(|l| l.locked && l.owner.is_none());
    held.map(|lock| (lock, Certainty::Likely)).collect()
}
