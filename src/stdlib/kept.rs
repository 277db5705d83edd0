//! Locks that no thread and no task is inside of, but a generator that something keeps: `for row in rows():` was
//! left half way, and the `with` of its body is still open. The collector's lists have every generator.

use serde_json::json;

use super::garbage::{self, Garbage, Keeper};
use super::{Scene, Seen, exits, holders, locks};
use crate::python::code::Codes;
use crate::python::frames;
use crate::snapshot::{Actor, Certainty, Wait};
use crate::target::memory::Addr;

pub fn find(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let waits = seen.tasks.iter().filter_map(|task| task.waits_on.as_ref()).chain(seen.waits.values());
    if !waits.into_iter().any(is_wanted) {
        return;
    }
    let in_tasks = garbage::in_tasks(scene, codes, seen);
    let actors: Vec<Actor> = seen.tasks.iter().map(|t| Actor::task(scene.pid, t.tid, t.id)).collect();
    let of_tasks = seen.tasks.iter_mut().filter_map(|task| task.waits_on.as_mut());
    let mut wanted: Vec<&mut Wait> =
        seen.waits.values_mut().chain(of_tasks).filter(|wait| is_wanted(wait)).collect();
    let mut interpreters: Vec<Addr> = scene.threads.iter().map(|thread| thread.interp).collect();
    interpreters.sort_unstable();
    interpreters.dedup();
    for interp in interpreters {
        let Some(garbage) = Garbage::of(scene, interp) else {
            wanted.iter_mut().for_each(|wait| wait.detail["unsearched"] = json!(true));
            continue;
        };
        let mut garbage = garbage.with_tasks(in_tasks.clone());
        for generator in garbage.instances(|ty| matches!(ty.name.as_str(), "generator" | "async_generator")) {
            let held = held(scene, generator);
            for wait in wanted.iter_mut().filter(|w| w.address.is_some_and(|a| held.contains(&a.0))) {
                tell(scene, &mut garbage, &actors, generator, wait);
            }
        }
    }
}

/// For a lock that nobody is known to have.
fn is_wanted(wait: &Wait) -> bool {
    let shared = wait.call.as_deref().is_some_and(|call| call.starts_with("multiprocessing"));
    matches!(wait.kind.as_str(), "lock" | "semaphore")
        && wait.on.is_empty()
        && !shared
        && wait.detail["owner_gone"] != true
}

/// Locks of threads and of tasks alike.
fn held(scene: &Scene, generator: Addr) -> Vec<Addr> {
    let mut found: Vec<Addr> =
        holders::of_manager(scene, generator, 0).into_iter().map(|(lock, _)| lock.object).collect();
    if let Some((frame, code, offset)) = locks::suspended_frame(scene.heap, generator) {
        found.extend(exits::of_raw(scene.heap, frame, code, offset).into_iter().map(|exit| exit.manager));
    }
    found
}

fn tell(scene: &Scene, garbage: &mut Garbage, tasks: &[Actor], generator: Addr, wait: &mut Wait) {
    let heap = scene.heap;
    let mut codes = Codes::default();
    let place = locks::suspended_frame(heap, generator).and_then(|(frame, code, _)| {
        codes.load(heap, std::iter::once(code));
        let raw = frames::at(heap, frame)?;
        let code = codes.get(code)?;
        Some((code.name.to_string(), code.file.as_ref()?.to_string(), code.line(code.offset(heap, &raw))))
    });
    let Some((name, file, line)) = place else { return };
    let keeper = garbage.keeper(generator);
    let holder = match keeper {
        Some(Keeper::Frame(thread, _)) => Some(locks::actor(scene, &scene.threads[thread])),
        Some(Keeper::Task(task)) => Some(tasks[task].clone()),
        _ => None,
    };
    if let Some(holder) = holder {
        wait.on = vec![holder];
        wait.certainty = Certainty::Likely;
    }
    let module = match &keeper {
        Some(Keeper::Module(name)) => Some(name.as_str()),
        _ => None,
    };
    let garbage = keeper == Some(Keeper::Nobody);
    wait.detail["kept_by"] =
        json!({ "generator": name, "file": file, "line": line, "module": module, "garbage": garbage });
}
