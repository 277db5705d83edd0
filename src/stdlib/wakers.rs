//! Whether anybody is left who could end what a thread waits for: set its event, notify its condition, complete its
//! future. For each other thread, and each handler of signals, the objects are walked that it can get at, as for
//! the tasks of a loop (asyncio/wakers.rs). Only where nobody is found, and nothing was left out of the search, is it
//! said that nobody could.
//!
//! And the other way round: threads that could wake each other are no deadlock as long as anybody else gets at what
//! they wait for. A pool at rest looks just so.
//!
//! Of the main thread it is said only that others may: it may be parked for good while they work.

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::json;

use super::asyncio::search::{Found, Freedom, Search};
use super::os::On;
use super::{Scene, Seen, ThreadScene, locks, signals};
use crate::snapshot::{Certainty, Wait};
use crate::target::memory::Addr;

/// What puts an item into a queue.
const PUTS: &[&str] = &["put", "put_nowait", "shutdown"];
/// Code that speaks of these may call any method of what it gets at...
const ANY_METHOD: &[&str] = &["getattr", "methodcaller", "__getattribute__"];
/// ...and of these, anything.
const BY_NAME: &[&str] = &[
    "eval",
    "exec",
    "globals",
    "modules",
    "import_module",
    "__import__",
    "__dict__",
    "get_objects",
    "get_referrers",
];

pub fn find(scene: &Scene, handlers: &[Addr], seen: &mut Seen) {
    let in_circle = in_circle(scene, seen);
    let is_main = |t: &ThreadScene| t.known.as_ref().is_none_or(|k| k.main);
    let address = |t: &ThreadScene, fits: fn(&Wait) -> bool| {
        Some((t.raw.tstate, seen.waits.get(&t.raw.tstate).filter(|w| fits(w))?.address?.0))
    };
    // What libraries wait for in threads of their own is for them to know.
    let own = || scene.threads.iter().filter(|t| calls_itself(scene, t));
    // An object that nothing but the wait has is there to be waited for: `Event().wait()` parks a thread.
    let is_kept = |t: &ThreadScene, object: Addr| {
        locks::named_object(scene, t, object).is_some() || scene.contained().contains_key(&object)
    };
    let alone: Vec<(Addr, Addr)> = own()
        .filter_map(|t| {
            address(t, if is_main(t) { is_open_meeting } else { is_open })
                .filter(|(_, object)| is_kept(t, *object))
        })
        .collect();
    let mut circular: Vec<(Addr, Addr)> = scene
        .threads
        .iter()
        .filter(|t| in_circle.contains(&t.raw.tstate))
        .filter_map(|t| address(t, is_inferred))
        .collect();
    // Slots that are not given back by who took them are a count of something that others add to.
    circular.extend(scene.threads.iter().filter_map(|t| address(t, is_count)));
    circular.extend(scene.threads.iter().filter(|t| is_main(t)).filter_map(|t| address(t, is_unknown)));
    // Who is joined, is to deliver something, or has a lock, and waits for an item.
    let joined: FxHashSet<i32> = seen
        .waits
        .values()
        .filter(|w| matches!(w.kind.as_str(), "thread" | "future" | "lock") || is_join(w))
        .flat_map(needed)
        .collect();
    let is_joined = |t: &&ThreadScene| t.tid.is_some_and(|tid| joined.contains(&tid));
    circular.extend(scene.threads.iter().filter(is_joined).filter_map(|t| address(t, is_unknown)));
    if alone.is_empty() && circular.is_empty() {
        return;
    }
    let loops = FxHashSet::default();
    let queues = seen.waits.values().filter(|w| takes(w)).filter_map(|w| Some(w.address?.0));
    let objects = alone.iter().chain(&circular).map(|w| w.1).chain(queues).collect();
    let mut search = Search::new(scene, objects, &loops);
    let mut found: Vec<(Addr, Found)> = Vec::new();
    for thread in scene.threads.iter().filter(|t| t.tid.is_none_or(|tid| !seen.bystanders.contains(&tid))) {
        let freedom = if calls_itself(scene, thread) { Freedom::Named } else { Freedom::All };
        let met = match thread.syscall {
            Some(_) => search.from_blocked(&thread.frames, freedom),
            None => search.from(&thread.frames, false, &[], freedom),
        };
        found.push((thread.raw.tstate, met));
    }
    found.extend(handlers.iter().map(|handler| (0, search.from_function(*handler))));
    // What a loop will run, and what stands in the queues of pools, may be anything; and whoever is at a prompt may
    // type anything.
    let hidden = search.is_exhausted()
        || seen.loops.keys().any(|tstate| !in_circle.contains(tstate))
        || seen.queued_work.is_some_and(|n| n > 0)
        || scene.threads.iter().any(is_at_prompt);
    // What an extension keeps is not seen.
    let gets_anything = |found: &Found| found.met_opaque || search.speaks(found, BY_NAME);
    let starves = |seen: &Seen, wait: &Wait, behind: &FxHashSet<Addr>| {
        let at_it = |t: &Addr| seen.waits.get(t).is_some_and(|w| takes(w) && w.address == wait.address);
        let Some(queue) = wait.address.filter(|_| takes(wait) && wait.on.is_empty()) else { return false };
        let others = found.iter().filter(|(other, _)| !behind.contains(other) && !at_it(other));
        !others.into_iter().any(|(_, met)| gets_at(&search, met, queue.0, PUTS))
    };
    for (tstate, object) in circular {
        let behind = behind(scene, seen, tstate, object, &starves);
        let methods = seen.waits.get(&tstate).map(signals::methods).unwrap_or_default();
        let may = |(other, found): &(Addr, Found)| {
            let acts = found.calls || search.speaks(found, methods);
            let gets = found.reached.contains(&object) && acts || gets_anything(found);
            gets && !behind.contains(other) && !in_circle.contains(other)
        };
        let others: Vec<Addr> = found.iter().filter(|one| may(one)).map(|(other, _)| *other).collect();
        let name = |tstate: &Addr| scene.threads.iter().find(|t| t.raw.tstate == *tstate)?.name();
        log::debug!("{object:#x}: {:?} get at it", others.iter().map(name).collect::<Vec<_>>());
        let open = hidden || !others.is_empty();
        if let Some(wait) = seen.waits.get_mut(&tstate) {
            wait.detail["open"] = json!(open);
        }
        let is_main = scene.threads.iter().any(|t| t.raw.tstate == tstate && is_main(t));
        if is_main && !open {
            // Those who would end it, had they anything to do.
            let would = |thread: &&ThreadScene| {
                let is_it = |(other, found): &(Addr, Found)| {
                    *other == thread.raw.tstate && gets_at(&search, found, object, methods)
                };
                behind.contains(&thread.raw.tstate) && found.iter().any(is_it)
            };
            let idle: Vec<&ThreadScene> = scene.threads.iter().filter(would).collect();
            shut_out(scene, seen, tstate, &idle);
        }
    }
    for (tstate, object) in alone.into_iter().filter(|_| !hidden) {
        let behind = behind(scene, seen, tstate, object, &starves);
        let Some(wait) = seen.waits.get_mut(&tstate) else { continue };
        let methods = signals::methods(wait);
        let may = |(other, found): &(Addr, Found)| {
            !behind.contains(other) && gets_at(&search, found, object, methods)
        };
        if !found.iter().any(may) && wait.detail["by_request"].is_null() {
            wait.detail["deserted"] = json!(true);
        }
    }
}

/// Whether who has met this may end a wait for the object.
pub fn gets_at(search: &Search, found: &Found, object: Addr, methods: &[&str]) -> bool {
    let speaks = |names| search.speaks(found, names);
    let gets = found.reached.contains(&object) && (speaks(methods) || speaks(ANY_METHOD));
    // What an extension keeps is not seen.
    gets || found.met_opaque || speaks(BY_NAME)
}

/// Threads that wait for what somebody types, and then call no code of the application's but what they are
/// in: nobody waits for anything else that these do.
pub fn bystanders(scene: &Scene, seen: &mut Seen) {
    let reads = |t: &&ThreadScene| {
        let os = seen.os.get(&t.raw.tstate);
        os.is_some_and(|os| matches!(os.on, On::Fd { fd: 0, operation: "read" }))
    };
    let loops = FxHashSet::default();
    let mut search = Search::new(scene, FxHashSet::default(), &loops);
    let calls_nothing = |t: &&ThreadScene| {
        let found = search.from_reader(&t.frames);
        let acts = [signals::ACTS, ANY_METHOD, BY_NAME].iter().any(|names| search.speaks(&found, names));
        !found.calls && !found.met_opaque && !acts
    };
    let found = scene.threads.iter().filter(reads).filter(calls_nothing).filter_map(|t| t.tid).collect();
    seen.bystanders = found;
}

/// Of Python itself, which has no frame there, or of the `code` module.
fn is_at_prompt(thread: &ThreadScene) -> bool {
    let first = thread.frames.iter().find(|f| !f.in_file("/_pyrepl/"));
    first.is_none_or(|f| f.is("/code.py", &["raw_input"]))
}

/// An RLock records its owner by a number that is given out again. That it is the thread which has the number now
/// is likely if it gets at the lock at all.
pub fn find_owners(scene: &Scene, seen: &mut Seen) {
    for wait in seen.waits.values_mut().filter(|w| w.kind == "lock" && w.on.is_empty()) {
        let Some(address) = wait.address.map(|a| a.0) else { continue };
        let owner = locks::lock(scene.heap, address).and_then(|lock| scene.thread_by_ident(lock.owner?));
        let Some(owner) = owner else { continue };
        let loops = FxHashSet::default();
        let mut search = Search::new(scene, FxHashSet::from_iter([address]), &loops);
        if search.from(&owner.frames, false, &[], Freedom::All).reached.contains(&address) {
            wait.on = vec![locks::actor(scene, owner)];
            wait.certainty = Certainty::Likely;
            wait.detail["owner"] = json!(owner.tid);
        }
    }
}

/// Threads that wait, directly or through others, for themselves.
fn in_circle(scene: &Scene, seen: &Seen) -> FxHashSet<Addr> {
    let by_tid: FxHashMap<i32, Addr> =
        scene.threads.iter().filter_map(|t| Some((t.tid?, t.raw.tstate))).collect();
    let next = |thread: &Addr| -> Vec<Addr> {
        let on = seen.waits.get(thread).into_iter().flat_map(|wait| &wait.on);
        on.filter_map(|on| by_tid.get(&on.tid?).copied()).collect()
    };
    let comes_back = |start: &Addr| {
        let mut met: FxHashSet<Addr> = FxHashSet::default();
        let mut left = next(start);
        while let Some(at) = left.pop() {
            if at == *start {
                return true;
            }
            if met.insert(at) {
                left.extend(next(&at));
            }
        }
        false
    };
    seen.waits.keys().copied().filter(comes_back).collect()
}

fn is_unknown(wait: &Wait) -> bool {
    is_open(wait) || wait.on.is_empty() && takes(wait)
}

fn is_count(wait: &Wait) -> bool {
    wait.kind == "semaphore" && wait.detail["slot"] == false
}

/// Who is named here is one who could end it, and perhaps not the only one: anybody who gets at the object may.
fn is_inferred(wait: &Wait) -> bool {
    // What a loop will call next is known.
    if !wait.detail["event_loop"].is_null() {
        return false;
    }
    let is_sign = match wait.kind.as_str() {
        "event" | "condition" | "barrier" | "semaphore" => true,
        "queue" => wait.detail["operation"] != "join",
        "lock" => wait.detail["signal"] == true,
        "future" => wait.detail["promise"] == true,
        _ => false,
    };
    let shared = wait.call.as_deref().is_some_and(|call| call.starts_with("multiprocessing"));
    is_sign && wait.certainty == Certainty::Likely && wait.detail.is_object() && !shared
}

/// A thread waits for a sign that others would give if they got an item: those that wait for one.
fn shut_out(scene: &Scene, seen: &mut Seen, tstate: Addr, wakers: &[&ThreadScene]) {
    let idle: Vec<&ThreadScene> = wakers
        .iter()
        .copied()
        .filter(|t| seen.waits.get(&t.raw.tstate).is_some_and(|w| takes(w) && w.on.is_empty()))
        .collect();
    let is_sign = |w: &Wait| matches!(w.kind.as_str(), "event" | "condition" | "barrier" | "future");
    let Some(wait) = seen.waits.get_mut(&tstate).filter(|w| is_sign(w) && !idle.is_empty()) else { return };
    wait.on = idle.iter().map(|t| locks::actor(scene, t)).collect();
    wait.certainty = Certainty::Likely;
    for thread in idle {
        if let Some(wait) = seen.waits.get_mut(&thread.raw.tstate) {
            wait.detail["open"] = json!(false);
        }
    }
}

/// The threads that it waits for; of a pool of processes, the one that hands the work out, which may not come to it.
fn needed(wait: &Wait) -> impl Iterator<Item = i32> {
    let feeder = wait.detail["feeder"]["tid"].as_i64();
    let feeder = feeder.and_then(|tid| i32::try_from(tid).ok());
    wait.on.iter().filter_map(|on| on.tid).chain(feeder)
}

/// Until all items have been called done.
fn is_join(wait: &Wait) -> bool {
    wait.kind == "queue" && wait.detail["operation"] == "join"
}

/// In `get` of an empty queue of threads.
fn takes(wait: &Wait) -> bool {
    wait.kind == "queue"
        && wait.detail["operation"] == "get"
        && wait.call.as_deref().is_some_and(|call| call.starts_with("queue."))
}

/// Threads that can do nothing before this one goes on: who waits for the same object, who waits for one of
/// them, and who waits for an item that nobody but those could put in, as far as that is known (`starves`).
pub fn behind(
    scene: &Scene,
    seen: &Seen,
    tstate: Addr,
    object: Addr,
    starves: &dyn Fn(&Seen, &Wait, &FxHashSet<Addr>) -> bool,
) -> FxHashSet<Addr> {
    let same = seen.waits.iter().filter(|(_, wait)| wait.address.is_some_and(|a| a.0 == object));
    let mut found: FxHashSet<Addr> = same.map(|(thread, _)| *thread).collect();
    found.insert(tstate);
    let tids = |found: &FxHashSet<Addr>| -> FxHashSet<Option<i32>> {
        scene.threads.iter().filter(|t| found.contains(&t.raw.tstate)).map(|t| t.tid).collect()
    };
    loop {
        let known = tids(&found);
        let waits = |wait: &Wait| {
            let is_known = |tid: i32| known.contains(&Some(tid));
            let needs_all = matches!(wait.kind.as_str(), "thread" | "lock");
            let any = needed(wait).any(is_known);
            any && (needs_all || needed(wait).all(is_known))
        };
        let more: Vec<Addr> = seen
            .waits
            .iter()
            .filter(|(t, w)| !found.contains(*t) && (waits(w) || starves(seen, w, &found)))
            .map(|(t, _)| *t)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Nobody who would have to act is known.
fn is_open(wait: &Wait) -> bool {
    let shared = wait.call.as_deref().is_some_and(|call| call.starts_with("multiprocessing"));
    (matches!(wait.kind.as_str(), "event" | "condition" | "barrier" | "semaphore" | "future") || needs_consumer(wait))
        && wait.on.is_empty()
        && wait.detail.is_object()
        // Of the pools of databases it is known otherwise.
        && wait.detail["pool"].is_null()
        && !shared
}

/// Nobody parks its main thread at one of these.
fn is_open_meeting(wait: &Wait) -> bool {
    (matches!(wait.kind.as_str(), "barrier" | "future") || needs_consumer(wait)) && is_open(wait)
}

/// Items have to be taken, or called done.
fn needs_consumer(wait: &Wait) -> bool {
    wait.kind == "queue" && matches!(wait.detail["operation"].as_str(), Some("put" | "join"))
}

/// The application's own code has called what it waits in, and goes on with what it names. A library that waits for
/// work may call anything.
fn calls_itself(scene: &Scene, thread: &ThreadScene) -> bool {
    let waits = |f: &&super::FrameScene| f.in_file("/threading.py") || f.in_file("/queue.py");
    thread.frames.iter().find(|f| !waits(f)).is_some_and(|f| scene.is_user(f))
}
