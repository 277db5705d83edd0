//! Who keeps an object alive: a thread's frames, a task's, a module's variables, or nobody but garbage that no
//! collection has met yet. By the collector's own lists (Modules/gcmodule.c, Python/gc.c) and its own
//! argument: what is referred to only from within is dead.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Scene, Seen, visible};
use crate::python::code::Codes;
use crate::python::layout::NONE;
use crate::python::objects::{Heap, TypeInfo};
use crate::target::memory::Addr;

/// Most objects that are walked; a larger heap is left alone.
const MAX_OBJECTS: usize = 300_000;
/// Most objects that may lead to one before it is taken to be in use.
const MAX_CLOSURE: usize = 3000;
/// Most words of one object.
const MAX_WORDS: usize = 4096;

/// The objects of one interpreter that can be part of a cycle.
pub struct Garbage<'a, 's> {
    scene: &'a Scene<'s>,
    objects: Vec<Addr>,
    /// `gc.isenabled()`.
    pub enabled: bool,
    /// By object: which objects refer to it, once for each reference. Made when first asked for.
    referrers: FxHashMap<Addr, Vec<Addr>>,
    /// Objects that stand in frames: (thread, frame).
    in_frames: FxHashMap<Addr, (usize, usize)>,
    /// By `in_tasks`.
    in_tasks: FxHashMap<Addr, usize>,
}

/// Who keeps an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Keeper {
    /// Indices of the thread and its frame.
    Frame(usize, usize),
    /// Index of the task.
    Task(usize),
    /// A variable of this module.
    Module(String),
    /// `gc.garbage`, where collections with DEBUG_SAVEALL put what they find.
    Uncollectable,
    /// Only objects that refer to each other.
    Nobody,
}

impl<'a, 's> Garbage<'a, 's> {
    /// `None`: the lists are not where they should be, or too long. Of the younger objects some may be left out: their
    /// lists change while the process runs.
    pub fn of(scene: &'a Scene<'s>, interp: Addr) -> Option<Self> {
        let (heads, enabled) = heads(scene.heap, scene.python.runtime, interp)?;
        let (oldest, younger) = heads.split_last()?;
        let mut objects = Vec::new();
        walk(scene.heap, *oldest, &mut objects)?;
        for head in younger {
            let before = objects.len();
            if walk(scene.heap, *head, &mut objects).is_none() {
                objects.truncate(before);
            }
        }
        Some(Garbage {
            scene,
            objects,
            enabled,
            referrers: FxHashMap::default(),
            in_frames: FxHashMap::default(),
            in_tasks: FxHashMap::default(),
        })
    }

    /// The same with the variables of suspended tasks.
    pub fn with_tasks(self, in_tasks: FxHashMap<Addr, usize>) -> Self {
        Garbage { in_tasks, ..self }
    }

    /// The objects whose type fits.
    pub fn instances(&self, fits: impl Fn(&TypeInfo) -> bool) -> Vec<Addr> {
        let heap = self.scene.heap;
        let mut known: FxHashMap<Addr, bool> = FxHashMap::default();
        let is = |object: &&Addr| {
            let Some(ty) = heap.ptr(**object + 8) else { return false };
            *known.entry(ty).or_insert_with(|| heap.type_at(ty).is_some_and(|t| fits(&t)))
        };
        self.objects.iter().filter(is).copied().collect()
    }

    /// `None`: somebody, but it is not known who.
    pub fn keeper(&mut self, object: Addr) -> Option<Keeper> {
        if self.referrers.is_empty() {
            self.index();
        }
        let mut closure: Vec<Addr> = vec![object];
        let mut met: FxHashSet<Addr> = closure.iter().copied().collect();
        let mut at = 0;
        while at < closure.len() {
            let this = closure[at];
            at += 1;
            if let Some(task) = self.in_tasks.get(&this) {
                return Some(Keeper::Task(*task));
            }
            if let Some((thread, frame)) = self.in_frames.get(&this) {
                return Some(Keeper::Frame(*thread, *frame));
            }
            if let Some(module) = self.module(this) {
                // That list is the collector's own, not the application's.
                return Some(if module == "gc" { Keeper::Uncollectable } else { Keeper::Module(module) });
            }
            if closure.len() > MAX_CLOSURE {
                return None;
            }
            for referrer in self.referrers.get(&this).into_iter().flatten() {
                if met.insert(*referrer) {
                    closure.push(*referrer);
                }
            }
        }
        for &this in &closure {
            // Frames and what runs in them refer to more than can be seen here.
            let name = self.scene.heap.type_of(this)?.name.clone();
            if matches!(name.as_str(), "frame" | "generator" | "coroutine" | "async_generator") {
                return None;
            }
            let within = self.referrers.get(&this).into_iter().flatten().filter(|r| met.contains(r)).count();
            if self.references(this)? > within as u64 {
                return None;
            }
        }
        Some(Keeper::Nobody)
    }

    /// `ob_refcnt`; its upper half has other uses from 3.12 on.
    fn references(&self, object: Addr) -> Option<u64> {
        self.scene.heap.mem.u32(object).ok().map(u64::from)
    }

    /// The module whose variables this dict has.
    fn module(&self, dict: Addr) -> Option<String> {
        let heap = self.scene.heap;
        heap.type_of(dict).filter(|t| t.is_dict())?;
        let [name, spec, builtins] = heap.dict_get(dict, ["__name__", "__spec__", "__builtins__"]);
        spec.or(builtins).and(name).and_then(|name| heap.checked_str(name))
    }

    fn index(&mut self) {
        for (t, thread) in self.scene.threads.iter().enumerate() {
            for (f, frame) in thread.frames.iter().enumerate() {
                // Not those of the value stack, which may be left over.
                for object in self.scene.values(frame) {
                    self.in_frames.entry(object).or_insert((t, f));
                }
            }
        }
        let objects = std::mem::take(&mut self.objects);
        let known: FxHashSet<Addr> = objects.iter().copied().collect();
        for &object in &objects {
            for to in referents(self.scene.heap, object) {
                if known.contains(&to) {
                    self.referrers.entry(to).or_default().push(object);
                }
            }
        }
        self.objects = objects;
    }
}

/// The variables of suspended tasks, with the task's place in `Seen::tasks`.
pub fn in_tasks(scene: &Scene, codes: &Codes, seen: &Seen) -> FxHashMap<Addr, usize> {
    let mut found = FxHashMap::default();
    for (i, task) in seen.tasks.iter().enumerate() {
        let frames = seen.task_frames.get(&task.id.0).map(|raw| visible(scene.heap, codes, raw));
        for object in frames.iter().flatten().flat_map(|frame| scene.values(frame)) {
            found.entry(object).or_insert(i);
        }
    }
    found
}

/// What an object refers to, once for each reference; its type is left out.
fn referents(heap: &Heap, object: Addr) -> Vec<Addr> {
    let Some(ty) = heap.type_of(object) else { return Vec::new() };
    let size = heap.layout.object.size;
    let mut to: Vec<Addr> = Vec::new();
    if ty.is_dict() {
        let (entries, _) = heap.dict(object, MAX_WORDS).unwrap_or_default();
        to.extend(entries.into_iter().flat_map(|(key, value)| [key, value]));
    } else if ty.is_list() || ty.is_tuple() {
        to.extend(heap.items(object, &ty, MAX_WORDS).map(|i| i.0).unwrap_or_default());
    } else if ty.name.ends_with("deque") {
        to.extend(super::locks::deque(heap, object, MAX_WORDS).unwrap_or_default());
    } else if ty.name == "set" || ty.name == "frozenset" {
        to.extend(heap.set(object, MAX_WORDS).map(|s| s.0).unwrap_or_default());
    } else if ty.is_type() || ty.name == "module" {
        // Their own memory is full of what is no reference; their dicts matter.
        to.extend(heap.module_dict(object));
        to.extend(heap.ptr(object + heap.layout.types.dict).filter(|_| ty.is_type()));
    } else {
        let mut words = (ty.basicsize.saturating_sub(size) / 8) as usize;
        if ty.itemsize > 0 {
            let items = heap.size(object).map_or(0, |n| n.unsigned_abs().min(MAX_WORDS as u64));
            words += (items * ty.itemsize / 8) as usize;
        }
        let body = heap.words(object + size, words.min(MAX_WORDS)).unwrap_or_default();
        // A weak reference does not keep what it refers to, only its callback.
        let skip = usize::from(is_weak(heap, &ty));
        to.extend(body.into_iter().skip(skip));
        to.extend(heap.managed_attributes(object, &ty));
    }
    to.retain(|p| *p != 0 && p % 8 == 0);
    to
}

fn is_weak(heap: &Heap, ty: &TypeInfo) -> bool {
    heap.is_a(ty, "weakref") || heap.is_a(ty, "weakref.ReferenceType") || heap.is_a(ty, "weakproxy")
}

/// The heads of the collector's lists, and whether it is enabled. They stand before `collecting`:
/// `int enabled, debug`; the generations, each two pointers and two ints; (up to 3.13) a pointer to the
/// first of them; the permanent one; three counts for each of three.
fn heads(heap: &Heap, runtime: Addr, interp: Addr) -> Option<(Vec<Addr>, bool)> {
    const GENERATION: u64 = 24;
    if heap.layout.free_threaded {
        return None;
    }
    let collecting = match heap.layout.interp.gc_collecting {
        NONE => runtime + heap.layout.runtime.gc_collecting,
        offset => interp + offset,
    };
    let with_pointer = collecting.checked_sub(3 * 24 + GENERATION + 8 + 3 * GENERATION)?;
    let without = collecting.checked_sub(3 * 24 + GENERATION + 3 * GENERATION)?;
    let start = match heap.ptr(with_pointer + 3 * GENERATION) {
        Some(first) if first == with_pointer => with_pointer,
        _ => without,
    };
    let heads: Vec<Addr> = (0..3).map(|n| start + n * GENERATION).collect();
    // A list that goes round.
    let goes_round = |head: &Addr| {
        let next = heap.mem.u64(*head).ok().map(|n| n & !3)?;
        (heap.mem.u64(next + 8).ok()? & !3 == *head).then_some(())
    };
    goes_round(heads.last()?)?;
    // Up to 3.13: a pointer, then `int trash_delete_nesting, enabled, debug`, and four bytes to align.
    let before = if heap.layout.minor <= 13 { 12 } else { 8 };
    let enabled = heap.mem.i32(start - before).ok().filter(|e| matches!(e, 0 | 1))?;
    Some((heads, enabled == 1))
}

fn walk(heap: &Heap, head: Addr, objects: &mut Vec<Addr>) -> Option<()> {
    let mut at = heap.mem.u64(head).ok()? & !3;
    while at != head {
        if objects.len() >= MAX_OBJECTS || at % 8 != 0 || at == 0 {
            return None;
        }
        // `PyGC_Head` is two words (Include/internal/pycore_gc.h).
        objects.push(at + 16);
        at = heap.mem.u64(at).ok()? & !3;
    }
    Some(())
}
