//! `importlib`: the lock of a module that is being imported, and the thread that imports it.

use serde_json::json;

use super::locks::actor;
use super::threading::Found;
use super::{Scene, Seen};
use crate::snapshot::Certainty;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_some()) {
        // `_ModuleLock.acquire` (Lib/importlib/_bootstrap.py), frozen into the interpreter.
        let at =
            thread.frames.iter().take(4).position(|f| f.is("<frozen importlib._bootstrap>", &["acquire"]));
        let Some((index, object)) = at.and_then(|i| Some((i, scene.receiver(&thread.frames[i])?))) else {
            continue;
        };
        let [owner, name] = scene.heap.attrs(object, ["owner", "name"]);
        // A list of idents while several wait, in some versions; an int else.
        let owner = owner.filter(|o| scene.heap.type_of(*o).is_some_and(|t| t.is_int()));
        let owner =
            owner.and_then(|o| scene.heap.int(o)).and_then(|ident| scene.thread_by_ident(ident as u64));
        let name = name.and_then(|n| scene.heap.checked_str(n));
        let found = Found {
            kind: "lock",
            call: "importlib._ModuleLock.acquire".into(),
            frame: index,
            object: Some(object),
            label: Some(format!("import lock of {}", name.as_deref().unwrap_or("a module"))),
            on: owner.map(|t| actor(scene, t)).into_iter().collect(),
            certainty: if owner.is_some() { Certainty::Proved } else { Certainty::Likely },
            detail: json!({ "owner": owner.and_then(|t| t.tid), "module": name, "import": true }),
        };
        seen.waits.insert(thread.raw.tstate, found.into_wait());
    }
}
