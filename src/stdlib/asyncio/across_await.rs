//! Locks of `threading` that a suspended task is inside of: no stack of a thread shows them, and whoever wants
//! one on the loop's own thread waits for ever.

use crate::snapshot::{Actor, Address, Certainty, Lock};
use crate::stdlib::{FrameScene, Scene, Seen, exits, holders};
use serde_json::json;

/// Adds those that the live exits of its frames lead to.
pub fn held(scene: &Scene, frames: &[FrameScene], holds: &mut Vec<Lock>) {
    for (at, frame) in frames.iter().enumerate() {
        for exit in exits::of_frame(scene.heap, frame) {
            for (lock, certainty) in holders::of_manager(scene, exit.manager, 0) {
                if holds.iter().any(|known| known.address.0 == lock.object) {
                    continue;
                }
                holds.push(Lock {
                    address: Address(lock.object),
                    kind: lock.kind.word().to_owned(),
                    name: None,
                    frame: Some(at),
                    line: frame.code.line(exit.handler),
                    certainty,
                });
            }
        }
    }
}

/// The threads that wait for such a lock wait for the task.
pub fn name(scene: &Scene, seen: &mut Seen) {
    for wait in seen.waits.values_mut().filter(|w| matches!(w.kind.as_str(), "lock" | "semaphore")) {
        // A slot of a semaphore may be with others, too.
        if wait.kind == "semaphore" && !wait.on.is_empty() {
            continue;
        }
        let Some(address) = wait.address else { continue };
        let has = |lock: &&Lock| lock.address == address && lock.certainty == Certainty::Proved;
        let holder = seen.tasks.iter().find(|task| task.holds.iter().any(|lock| has(&lock)));
        if let Some(task) = holder {
            wait.on = vec![Actor::task(scene.pid, task.tid, task.id)];
            wait.certainty = Certainty::Proved;
            wait.detail["across_await"] = json!(true);
        }
    }
}
