//! Pools of connections: how large, how many are out, with whom, and who waits.

use serde_json::{Value, json};

use rustc_hash::{FxHashMap, FxHashSet};

use super::super::asyncio::search::Search;
use super::super::garbage::{Garbage, Keeper};
use super::super::{FrameScene, Scene, Seen, ThreadScene, locks};
use super::kinds;
use crate::python::objects::TypeInfo;
use crate::snapshot::{Address, Certainty, Wait};
use crate::target::memory::Addr;

/// Most connections whose holders are looked for.
const MAX_HOLDERS: usize = 64;

/// Waits for a lock inside of a pool are waits for the pool. To learn who has its connections takes long:
/// only where `thorough`.
pub fn read(scene: &Scene, seen: &mut Seen, thorough: bool) {
    let mut found: Vec<(usize, &'static str, usize, Addr)> = Vec::new();
    for (t, thread) in scene.threads.iter().enumerate() {
        let lock_like =
            |w: &Wait| matches!(w.kind.as_str(), "condition" | "lock" | "queue" | "event" | "semaphore");
        if !seen.waits.get(&thread.raw.tstate).is_some_and(lock_like) {
            continue;
        }
        if let Some((library, frame, pool)) = pool_of(scene, thread) {
            found.push((t, library, frame, pool));
        }
    }
    if found.is_empty() {
        return;
    }
    let mut garbage = thorough.then(|| Garbage::of(scene, scene.threads[found[0].0].interp)).flatten();
    let mut holders: Vec<(Addr, Vec<Holder>)> = Vec::new();
    for (t, library, frame, pool) in &found {
        let thread = &scene.threads[*t];
        if !holders.iter().any(|h| h.0 == *pool) {
            let mut some = garbage.as_mut().map(|g| holders_of(scene, g, *pool)).unwrap_or_default();
            if some.is_empty() && thorough {
                some = by_reach(scene, library, *pool);
            }
            holders.push((*pool, some));
        }
        let known = &holders.iter().find(|h| h.0 == *pool).expect("it was just put there").1;
        let measured = kinds::measure(scene.heap, library, *pool);
        let others = found.iter().filter(|f| f.3 == *pool).count() as i64;
        let Some(wait) = seen.waits.get_mut(&thread.raw.tstate) else { continue };
        let class =
            scene.heap.type_of(*pool).map(|ty| ty.name.rsplit('.').next().unwrap_or(&ty.name).to_owned());
        wait.kind = "semaphore".into();
        wait.address = Some(Address(*pool));
        wait.call = Some(format!("{library}.{}", thread.frames[*frame].code.name));
        wait.frame = Some(*frame);
        wait.on.clear();
        for holder in known {
            if let Holder::Thread(t, _) = holder {
                let actor = locks::actor(scene, &scene.threads[*t]);
                if !wait.on.contains(&actor) {
                    wait.on.push(actor);
                }
            }
        }
        let out = measured.out;
        let all_known = out.is_some_and(|out| out as usize == known.len());
        let dead = known.iter().all(|h| matches!(h, Holder::Nobody | Holder::Uncollectable));
        // Nothing runs that would allocate anything, and so start a collection.
        let asleep = scene.threads.iter().all(|t| t.syscall.is_some());
        let enabled = garbage.as_ref().map(|g| g.enabled);
        let nobody = all_known && dead && !known.is_empty();
        let proved = nobody && (asleep || enabled == Some(false));
        wait.certainty = if proved { Certainty::Proved } else { Certainty::Likely };
        wait.label = class.clone();
        wait.detail = json!({
            "value": 0,
            "max": measured.size,
            "nobody": nobody,
            "pool": {
                "library": library,
                "class": class,
                "size": measured.size,
                "out": out,
                "waiting": measured.waiting.unwrap_or(others),
                "gc_enabled": enabled,
                "holders": known.iter().map(|h| h.describe(scene)).collect::<Vec<_>>(),
            },
        });
        seen.os.remove(&thread.raw.tstate);
    }
}

/// Threads that can reach one of the connections that are out, each by its nearest frame.
fn by_reach(scene: &Scene, library: &str, pool: Addr) -> Vec<Holder> {
    const DEPTH: usize = 4;
    const MAX_OBJECTS: usize = 300;
    let heap = scene.heap;
    let out = kinds::out(heap, library, pool);
    let stops: FxHashSet<Addr> = [pool].into_iter().collect();
    let mut search = Search::new(scene, FxHashSet::default(), &stops);
    let mut nearest: FxHashMap<Addr, (usize, usize, usize)> = FxHashMap::default();
    let mut holders = Vec::new();
    for (t, thread) in scene.threads.iter().enumerate() {
        for (f, frame) in thread.frames.iter().enumerate() {
            let locals = scene.locals(frame);
            // A method of the pool, or who was given it, and what it has handed out.
            let is_connection = |(name, value): &(String, Addr)| {
                matches!(name.as_str(), "conn" | "connection")
                    && heap.type_of(*value).is_some_and(|ty| ty.is_heap_type())
            };
            if out.is_empty() && locals.iter().any(|l| l.1 == pool) && locals.iter().any(is_connection) {
                holders.push(Holder::Thread(t, f));
                break;
            }
            if out.is_empty() {
                continue;
            }
            let roots: Vec<Addr> = locals.into_iter().map(|l| l.1).collect();
            for (object, step) in search.near(&roots, DEPTH, MAX_OBJECTS) {
                if out.contains(&object) {
                    let best = nearest.entry(object).or_insert((step, t, f));
                    *best = (*best).min((step, t, f));
                }
            }
        }
    }
    holders.extend(nearest.into_values().map(|(_, t, f)| Holder::Thread(t, f)));
    holders.truncate(MAX_HOLDERS);
    holders
}

/// Who has one of the connections.
enum Holder {
    Thread(usize, usize),
    Module(String),
    Uncollectable,
    Nobody,
    Unknown,
}

impl Holder {
    fn describe(&self, scene: &Scene) -> Value {
        match self {
            Holder::Thread(t, f) => {
                let thread = &scene.threads[*t];
                let frame = &thread.frames[*f];
                json!({
                    "by": "thread",
                    "tid": thread.tid,
                    "thread": thread.name(),
                    "function": frame.code.name.to_string(),
                    "file": frame.code.file.as_ref().map(ToString::to_string),
                    "line": frame.line(),
                })
            }
            Holder::Module(name) => json!({ "by": "module", "module": name }),
            Holder::Uncollectable => json!({ "by": "gc.garbage" }),
            Holder::Nobody => json!({ "by": "garbage" }),
            Holder::Unknown => json!({ "by": null }),
        }
    }
}

fn pool_of(scene: &Scene, thread: &ThreadScene) -> Option<(&'static str, usize, Addr)> {
    for (at, frame) in thread.frames.iter().enumerate().take(16) {
        if let Some(library) = kinds::of_frame(frame, kinds::OF_THREADS) {
            return Some((library, outermost(&thread.frames, at, library), scene.receiver(frame)?));
        }
    }
    None
}

/// The last frame of the library on the way to the application.
pub fn outermost(frames: &[FrameScene], from: usize, library: &str) -> usize {
    let of_library =
        |f: &FrameScene| f.code.file.as_deref().is_some_and(|file| file.contains(&format!("/{library}/")));
    let rest = frames[from..].iter().take_while(|f| of_library(f)).count();
    from + rest.max(1) - 1
}

/// The connections of a pool that are out, by whoever keeps them.
fn holders_of(scene: &Scene, garbage: &mut Garbage, pool: Addr) -> Vec<Holder> {
    let heap = scene.heap;
    // What is handed out knows the pool that it goes back to.
    let is_handle = |ty: &TypeInfo| {
        let name = ty.name.rsplit('.').next().unwrap_or(&ty.name);
        name == "_ConnectionFairy"
            || ["psycopg.Connection", "BaseConnection"].iter().any(|base| heap.is_a(ty, base))
                && ty.is_heap_type()
            || matches!(name, "PooledDedicatedDBConnection" | "PooledSharedDBConnection")
    };
    let pool_of = |object: &Addr| {
        let [own] = heap.attrs(*object, ["_pool"]);
        let slot = || {
            let slots = heap.slots(*object, 32);
            slots.into_iter().find(|(name, _)| name == "_pool").map(|s| s.1)
        };
        own.or_else(slot)
    };
    let idle: Vec<Addr> = {
        let [queue] = heap.attrs(pool, ["_pool"]);
        queue.and_then(|q| locks::deque(heap, q, 1024)).unwrap_or_default()
    };
    let out =
        garbage.instances(is_handle).into_iter().filter(|o| pool_of(o) == Some(pool) && !idle.contains(o));
    let out: Vec<Addr> = out.take(MAX_HOLDERS).collect();
    let holder = |object: Addr| match garbage.keeper(object) {
        Some(Keeper::Frame(t, f)) => Holder::Thread(t, f),
        Some(Keeper::Module(name)) => Holder::Module(name),
        Some(Keeper::Uncollectable) => Holder::Uncollectable,
        Some(Keeper::Nobody) => Holder::Nobody,
        // No tasks were asked for.
        Some(Keeper::Task(_)) | None => Holder::Unknown,
    };
    out.into_iter().map(holder).collect()
}
