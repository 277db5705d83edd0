//! `threading`: conditions, events, semaphores, barriers, joins.
//!
//! Such a wait ends in a lock of the standard library's own, which has no holder: what counts is the
//! call that the application made. So the frames are read from the innermost outwards, as long as they
//! belong to the standard library's waiting code, and the outermost of them says what it is.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::locks::{self, actor};
use super::spoken;
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::snapshot::{Actor, Certainty, Wait};
use crate::target::memory::Addr;

const NOTIFY: &[&str] = &["notify", "notify_all", "notifyAll"];

/// How a wait that was recognised by its frames is described.
pub struct Found {
    pub kind: &'static str,
    pub call: String,
    /// Index of the frame of that call.
    pub frame: usize,
    pub object: Option<Addr>,
    pub label: Option<String>,
    pub on: Vec<Actor>,
    pub certainty: Certainty,
    pub detail: serde_json::Value,
}

impl Found {
    pub fn into_wait(self) -> Wait {
        Wait {
            label: self.label,
            call: Some(self.call),
            frame: Some(self.frame),
            on: self.on,
            certainty: self.certainty,
            detail: self.detail,
            ..Wait::new(self.kind, self.object)
        }
    }
}

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_some()) {
        for (index, frame) in thread.frames.iter().enumerate().take(6) {
            if !frame.in_file("/threading.py") {
                break;
            }
            if let Some(mut found) = of_frame(scene, thread, index, frame) {
                if let Some(semaphore) = found.object.and_then(|o| locks::semaphore(scene.heap, o)) {
                    slots(scene, thread, seen, &semaphore, &mut found);
                }
                // An outer frame of the same module knows better: Event.wait above Condition.wait.
                seen.waits.insert(thread.raw.tstate, found.into_wait());
            }
        }
    }
}

/// Who has the slots of a semaphore; where nobody has, who speaks of giving one.
fn slots(
    scene: &Scene,
    thread: &ThreadScene,
    seen: &mut Seen,
    semaphore: &locks::LockObject,
    found: &mut Found,
) {
    let name = locks::named_object(scene, thread, semaphore.object);
    let has = locks::who_has(scene, seen, semaphore, name.as_deref());
    if has.on.is_empty() {
        // Who waits for a slot as well has none to give.
        let waits = |actor: &Actor| {
            let other = scene.threads.iter().find(|t| t.tid.is_some() && t.tid == actor.tid);
            other.is_some_and(|t| waits_for_slot(scene, t, semaphore.object))
        };
        found.on = others(scene, thread, semaphore.object, &["release"]);
        found.on.retain(|actor| !waits(actor));
        found.detail["slot"] = json!(gives_back(scene, thread, semaphore.object));
        found.certainty = Certainty::Likely;
    } else {
        (found.on, found.certainty) = (has.on, has.certainty);
        found.detail["signal"] = json!(has.signal);
    }
}

/// Who waits for a slot will give it back: it waits in a `with`, or its code releases the same semaphore.
pub fn gives_back(scene: &Scene, thread: &ThreadScene, semaphore: Addr) -> bool {
    const NEAR: usize = 3;
    const RELEASE: &[&str] = &["release"];
    // What stands below a forked child is its parent's.
    let forked = |f: &&FrameScene| f.in_file("/multiprocessing/process.py");
    let frames = || thread.frames.iter().take_while(|f| !forked(f));
    let own = || frames().filter(|f| scene.is_user(f)).take(NEAR);
    let Some(first) = own().next() else { return true };
    !spoken::is_at_call(scene, first)
        || own().any(|f| {
            f.code.name == "__enter__"
                || spoken::surely_speaks_of(scene, f, semaphore, RELEASE)
                || spoken::calls_any_who_speaks_of(scene, f, semaphore, RELEASE)
        })
}

fn waits_for_slot(scene: &Scene, thread: &ThreadScene, semaphore: Addr) -> bool {
    let own = thread.frames.iter().take_while(|f| f.in_file("/threading.py"));
    own.filter(|f| matches!(f.code.name.as_str(), "acquire" | "__enter__"))
        .any(|f| scene.receiver(f) == Some(semaphore))
}

fn of_frame(scene: &Scene, thread: &ThreadScene, index: usize, frame: &FrameScene) -> Option<Found> {
    if frame.code.name == "_shutdown" {
        return Some(at_exit(scene, thread, index));
    }
    let object = scene.receiver(frame)?;
    let heap = scene.heap;
    let ty = heap.type_of(object)?;
    let class = heap.type_name(&ty);
    let name = locks::named_object(scene, thread, object);
    let label = |what: &str| Some(name.as_ref().map_or_else(|| what.to_owned(), |n| format!("{what} {n}")));
    let plain = class.rsplit('.').next().unwrap_or(&class).to_owned();
    let found = |kind, method: &str, on: Vec<Actor>, certainty, detail| Found {
        kind,
        call: format!("threading.{plain}.{method}"),
        frame: index,
        object: Some(object),
        label: label(&plain),
        on,
        certainty,
        detail,
    };
    let count = |value: Option<Addr>| value.and_then(|v| heap.int(v));
    match frame.code.name.as_str() {
        "wait" if heap.is_a(&ty, "Condition") => {
            let on = wakers(scene, thread, object, NOTIFY);
            let waiters = heap.attrs(object, ["_waiters"])[0].and_then(|w| heap.size(w));
            Some(found("condition", "wait", on, Certainty::Likely, json!({ "waiters": waiters })))
        }
        "wait_for" if heap.is_a(&ty, "Condition") => {
            let on = wakers(scene, thread, object, NOTIFY);
            Some(found("condition", "wait_for", on, Certainty::Likely, json!({})))
        }
        "wait" if heap.is_a(&ty, "Event") => {
            let own = shut_down_by_itself(scene, thread, index);
            let on = own.clone().unwrap_or_else(|| wakers(scene, thread, object, &["set"]));
            let certainty = if own.is_some() { Certainty::Proved } else { Certainty::Likely };
            let flag = heap.attrs(object, ["_flag"])[0].and_then(|f| heap.int(f)).map(|f| f != 0);
            Some(found("event", "wait", on, certainty, json!({ "set": flag })))
        }
        "wait" | "_wait" | "_enter" if heap.is_a(&ty, "Barrier") => {
            let [parties, here] = heap.attrs(object, ["_parties", "_count"]);
            let detail = json!({ "parties": count(parties), "waiting": count(here) });
            // Who is there already waits for the others.
            let here = |actor: &Actor| {
                let thread = scene.threads.iter().find(|t| t.tid == actor.tid);
                thread.is_some_and(|t| {
                    let is_it =
                        |f: &FrameScene| f.in_file("/threading.py") && scene.receiver(f) == Some(object);
                    t.frames.iter().take(4).any(is_it)
                })
            };
            let mut on = others(scene, thread, object, &["wait"]);
            on.retain(|actor| !here(actor));
            Some(found("barrier", "wait", on, Certainty::Likely, detail))
        }
        "acquire" | "__enter__" if heap.is_a(&ty, "Semaphore") => {
            let [value, initial] = heap.attrs(object, ["_value", "_initial_value"]);
            let detail = json!({ "value": count(value), "max": count(initial) });
            Some(found("semaphore", "acquire", Vec::new(), Certainty::Likely, detail))
        }
        "join" | "_wait_for_tstate_lock" | "_join_os_thread" if heap.is_a(&ty, "Thread") => {
            Some(join(scene, thread, index, object))
        }
        _ => None,
    }
}

/// `server.shutdown()` from within a handler: it waits for `serve_forever`, which is below it on the same stack
/// (Lib/socketserver.py).
fn shut_down_by_itself(scene: &Scene, thread: &ThreadScene, index: usize) -> Option<Vec<Actor>> {
    let server =
        |f: &FrameScene, name: &str| f.is("/socketserver.py", &[name]).then(|| scene.receiver(f)).flatten();
    let shut_down = server(thread.frames.get(index + 1)?, "shutdown")?;
    let serves = |f: &FrameScene| server(f, "serve_forever") == Some(shut_down);
    thread.frames[index + 1..].iter().any(serves).then(|| vec![actor(scene, thread)])
}

/// A join: the thread object names its thread.
fn join(scene: &Scene, thread: &ThreadScene, index: usize, object: Addr) -> Found {
    let heap = scene.heap;
    let target = scene.thread_of(object);
    let name = heap.attrs(object, ["_name"])[0].and_then(|n| heap.checked_str(n));
    let on = target.map(|t| actor(scene, t)).into_iter().collect();
    let _ = thread;
    Found {
        kind: "thread",
        call: "threading.Thread.join".into(),
        frame: index,
        object: Some(object),
        label: Some(name.clone().map_or_else(|| "a thread".into(), |n| format!("thread {n}"))),
        on,
        certainty: if target.is_some() { Certainty::Proved } else { Certainty::Likely },
        detail: json!({ "name": name, "alive": target.is_some() }),
    }
}

/// The interpreter ends and waits for threads that are no daemons: all that are left, and first, where
/// its lock proves it, the one that is joined just now.
fn at_exit(scene: &Scene, thread: &ThreadScene, index: usize) -> Found {
    let parked = locks::parked(scene, thread);
    let is_joined = |t: &&ThreadScene| {
        let own = t.known.as_ref().and_then(|k| scene.heap.attrs(k.object, ["_tstate_lock"])[0]);
        let lock = own.and_then(|l| locks::lock(scene.heap, l));
        parked.zip(lock).is_some_and(|(parked, lock)| parked.is_at(lock.key))
    };
    let left = |t: &&ThreadScene| {
        t.raw.tstate != thread.raw.tstate
            && t.known.as_ref().is_some_and(|k| k.daemon == Some(false) && !k.main)
    };
    let joined = scene.threads.iter().find(is_joined);
    let mut on: Vec<Actor> = joined.iter().map(|t| actor(scene, t)).collect();
    let rest =
        scene.threads.iter().filter(left).filter(|t| joined.is_none_or(|j| j.raw.tstate != t.raw.tstate));
    on.extend(rest.map(|t| actor(scene, t)));
    Found {
        kind: "thread",
        call: "threading._shutdown".into(),
        frame: index,
        object: None,
        label: Some("threads that are no daemons".into()),
        certainty: if joined.is_some() || on.len() == 1 { Certainty::Proved } else { Certainty::Likely },
        detail: json!({ "name": on.first().and_then(|a| a.thread.clone()), "alive": !on.is_empty(), "exit": true }),
        on,
    }
}

/// Threads that were given such a method of the object, to be called when they are done (`reply = box.put`), or in
/// whose mail it lies.
pub fn promisers(scene: &Scene, thread: &ThreadScene, object: Addr, methods: &[&str]) -> Vec<Actor> {
    let keeps = |thread: &ThreadScene, index: usize| {
        spoken::keeps_method(scene, &thread.frames[index], object, methods)
    };
    let found = reaching(scene, thread, object, keeps);
    named(scene, if found.is_empty() { readers(scene, thread, object) } else { found })
}

/// Who might notify a condition, or set an event. Who waits for it as well has to be woken first, unless the time that
/// it has runs out; who is inside of a `with` whose end wakes never comes there while it waits, be it this very thread.
fn wakers(scene: &Scene, thread: &ThreadScene, object: Addr, methods: &[&str]) -> Vec<Actor> {
    let waits = |t: &ThreadScene| {
        let wait = |f: &&FrameScene| f.is("/threading.py", &["wait"]) && scene.receiver(f) == Some(object);
        let frame = t.frames.iter().take(2).find(wait);
        let timeout = frame.and_then(|f| scene.local(f, "timeout"));
        timeout.is_some_and(|t| scene.heap.type_of(t).is_some_and(|ty| ty.name == "NoneType"))
    };
    let leaves = |t: &&ThreadScene| {
        let exits = t.frames.iter().flat_map(|f| super::exits::of_frame(scene.heap, f));
        let mut generators = exits.filter_map(|exit| scene.heap.attrs(exit.manager, ["gen"])[0]);
        generators.any(|g| spoken::goes_on_to(scene, g, object, methods))
    };
    let inside: Vec<Actor> =
        scene.threads.iter().filter(|t| waits(t)).filter(leaves).map(|t| actor(scene, t)).collect();
    let mut on = others(scene, thread, object, methods);
    on.retain(|a| {
        let other = scene.threads.iter().find(|t| t.tid.is_some() && t.tid == a.tid);
        !other.is_some_and(waits)
    });
    on.extend(inside);
    on
}

/// Threads other than this one whose frames can reach the object and speak of one of these methods: who
/// may end the wait. None of that is proven.
pub fn others(scene: &Scene, thread: &ThreadScene, object: Addr, methods: &[&str]) -> Vec<Actor> {
    let speaks = |object: Addr| {
        let says = |thread: &ThreadScene, index: usize| {
            spoken::will_speak_of(scene, thread, index, object, methods)
                || spoken::keeps_method(scene, &thread.frames[index], object, methods)
                || spoken::calls_who_speaks_of(scene, thread, index, object, methods)
        };
        reaching(scene, thread, object, says)
    };
    let mut found = speaks(object);
    if found.is_empty() {
        // One of many, by its key: `pending[id].set()`.
        let containers = scene.contained().get(&object).into_iter().flatten();
        found = containers.flat_map(|container| speaks(*container)).collect();
    }
    if found.is_empty() {
        found = readers(scene, thread, object);
    }
    named(scene, found)
}

/// Threads (indices) that read the queue in which a message lies that leads to this object.
fn readers(scene: &Scene, thread: &ThreadScene, object: Addr) -> Vec<u32> {
    let reads = |queue: &Addr| {
        let gets = |thread: &ThreadScene, index: usize| {
            spoken::will_speak_of(scene, thread, index, *queue, &["get", "get_nowait"])
        };
        reaching(scene, thread, *queue, gets)
    };
    scene.mail().get(&object).into_iter().flatten().flat_map(reads).collect()
}

/// Other threads (indices) with such a frame that can reach the object.
fn reaching(
    scene: &Scene,
    thread: &ThreadScene,
    object: Addr,
    fits: impl Fn(&ThreadScene, usize) -> bool,
) -> Vec<u32> {
    let frames = scene.reach().get(&object).into_iter().flatten();
    let other = |(t, f): &&(u32, u32)| {
        let other = &scene.threads[*t as usize];
        other.raw.tstate != thread.raw.tstate && fits(other, *f as usize)
    };
    frames.filter(other).map(|(t, _)| *t).collect()
}

fn named(scene: &Scene, mut threads: Vec<u32>) -> Vec<Actor> {
    let mut met = FxHashSet::default();
    threads.retain(|t| met.insert(*t));
    threads.into_iter().map(|t| actor(scene, &scene.threads[t as usize])).collect()
}
