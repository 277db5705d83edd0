//! Locks that a library asks for again and again, with a sleep in between: a file that somebody else has locked, a
//! key in Redis. What is slept in is the library's own loop, in a method by which a lock is taken.

use serde_json::json;

use super::os::On;
use super::retries::{self, After};
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::snapshot::{Certainty, Wait};
use crate::target::memory::Addr;

/// Attributes that say which lock it is.
const NAMES: [&str; 7] = ["lock_file", "_lock_file", "path", "filename", "_filename", "name", "key"];
const MAX_ATTRIBUTES: usize = 64;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in &scene.threads {
        let tstate = thread.raw.tstate;
        if seen.waits.get(&tstate).is_none_or(|wait| wait.kind != "sleep") {
            continue;
        }
        let Some((wait, path)) = lock(scene, thread) else { continue };
        seen.waits.insert(tstate, wait);
        if let (Some(path), Some(os)) = (path, seen.os.get_mut(&tstate)) {
            os.on = On::Locked { path };
        }
    }
}

/// The wait, and the file if the lock is one.
fn lock(scene: &Scene, thread: &ThreadScene) -> Option<(Wait, Option<String>)> {
    let own = thread.frames.iter().position(|f| scene.is_user(f))?;
    let library = &thread.frames[..own];
    let sleeper = library.first()?;
    if !matches!(retries::after(scene, sleeper, false), After::Again) {
        return None;
    }
    let takes = |f: &FrameScene| matches!(f.code.name.as_str(), "acquire" | "__enter__" | "lock");
    let (frame, object, class) = library.iter().enumerate().find_map(|(at, f)| {
        let object = scene.receiver(f).filter(|_| takes(f))?;
        let ty = scene.heap.type_of(object)?;
        let class = scene.heap.type_name(&ty);
        let word = class.rsplit('.').next().unwrap_or_default().to_lowercase();
        ["lock", "mutex", "semaphore"].iter().any(|kind| word.contains(kind)).then_some((at, object, class))
    })?;
    let name = name(scene, object).or_else(|| library.iter().find_map(|f| path(scene, f)));
    let plain = class.rsplit('.').next().unwrap_or(&class).to_owned();
    let began = library.iter().find_map(|f| began(scene, f));
    let wait = Wait {
        label: Some(name.as_ref().map_or_else(|| plain.clone(), |name| format!("{plain} {name}"))),
        call: Some(format!("{plain}.{}", library[frame].code.name)),
        frame: Some(frame),
        blocked_for: began,
        detail: json!({ "polled": true, "retried": true, "name": name }),
        certainty: Certainty::Likely,
        ..Wait::new("lock", Some(object))
    };
    Some((wait, name.filter(|name| name.starts_with('/'))))
}

/// What the library calls it: an attribute of the object, or of what that keeps its state in.
fn name(scene: &Scene, object: Addr) -> Option<String> {
    let heap = scene.heap;
    let of = |object: Addr| {
        let values = heap.attrs(object, NAMES).into_iter().flatten();
        let text = |value: Addr| {
            let ty = heap.type_of(value)?;
            heap.checked_str(value).or_else(|| {
                let (bytes, _) = ty.is_bytes().then(|| heap.bytes(value, 256)).flatten()?;
                String::from_utf8(bytes).ok()
            })
        };
        values.filter_map(text).find(|name| !name.is_empty())
    };
    of(object).or_else(|| {
        let parts = heap.attributes(object, MAX_ATTRIBUTES)?;
        parts.into_iter().find_map(|(key, value)| {
            let is_state = matches!(heap.name(key)?.as_ref(), "_context" | "_state" | "_local");
            is_state.then(|| of(value)).flatten()
        })
    })
}

/// Its file, where the object keeps its state elsewhere: a variable that says so.
fn path(scene: &Scene, frame: &FrameScene) -> Option<String> {
    let is_file = |name: &str| name.contains("file") || name.contains("path");
    let variables = scene.locals(frame).into_iter().filter(|(name, _)| is_file(name));
    variables.filter_map(|(_, value)| scene.heap.checked_str(value)).find(|path| path.starts_with('/'))
}

/// Since when, where a variable says so: `start_time = time.monotonic()`.
fn began(scene: &Scene, frame: &FrameScene) -> Option<f64> {
    let clocks = [scene.now.monotonic, scene.now.realtime];
    let variables = scene.locals(frame).into_iter().filter(|(name, _)| name.contains("start"));
    let float = |value: Addr| {
        scene.heap.type_of(value).filter(|ty| ty.name == "float")?;
        scene.heap.float(value)
    };
    variables.filter_map(|(_, value)| float(value)).find_map(|time| {
        clocks.into_iter().flatten().map(|now| now - time).find(|age| (0.0..1e7).contains(age))
    })
}
