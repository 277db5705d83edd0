//! Whether a task that has read a part of a message is the only one who could ever write on that connection: if
//! so, and the other side reads as well, each waits for the other. Read after the window.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::futures;
use super::search::{Freedom, Search};
use super::wakers::{self, Above};
use crate::python::code::Codes;
use crate::snapshot::{Address, Task};
use crate::stdlib::{FrameScene, Scene, Seen, ThreadScene, visible};
use crate::target::memory::Addr;

/// Connections that this is asked of: each needs a walk from everybody.
const MAX_CONNECTIONS: usize = 8;

pub fn find(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let partial = |t: &Task| t.waits_on.as_ref().is_some_and(|w| w.detail["partial"] == true);
    let asked: Vec<usize> = (0..seen.tasks.len()).filter(|i| partial(&seen.tasks[*i])).collect();
    for at in asked.into_iter().take(MAX_CONNECTIONS) {
        let alone = is_alone(scene, codes, seen, at).unwrap_or(false);
        if let Some(wait) = &mut seen.tasks[at].waits_on {
            wait.detail["alone"] = json!(alone);
        }
    }
}

fn is_alone(scene: &Scene, codes: &Codes, seen: &Seen, at: usize) -> Option<bool> {
    let heap = scene.heap;
    let task = &seen.tasks[at];
    let detail = &task.waits_on.as_ref()?.detail;
    let transport: Address = serde_json::from_value(detail["transport"].clone()).ok()?;
    let fd = i32::try_from(detail["fd"].as_i64()?).ok()?;
    let loops: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).collect();
    let mut search = Search::new(scene, [transport.0].into_iter().collect(), &loops);
    let above = Above::new(&seen.tasks).of(at);
    for (other, task) in seen.tasks.iter().enumerate().filter(|(i, _)| *i != at && !above.contains(i)) {
        let raw = seen.task_frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
        let frames: Vec<FrameScene> = visible(heap, codes, raw);
        let callbacks = futures::future(heap, task.id.0).map(|f| futures::callbacks(heap, &f));
        let suspended = seen.tasks[other].waits_on.is_some();
        let found = search.from(&frames, suspended, &callbacks.unwrap_or_default(), Freedom::Named);
        if !found.reached.is_empty() {
            return Some(false);
        }
    }
    // A thread whose loop sleeps does what its tasks and handles do.
    let polls = |t: &&ThreadScene| seen.loops.get(&t.raw.tstate).is_some_and(|l| l.state == "polling");
    for thread in scene.threads.iter().filter(|t| !polls(t)) {
        let once = thread.frames.iter().rposition(|f| f.is("/asyncio/base_events.py", &["_run_once"]));
        let frames = &thread.frames[..once.unwrap_or(thread.frames.len())];
        if !search.from(frames, false, &[], Freedom::All).reached.is_empty() {
            return Some(false);
        }
    }
    for event_loop in &loops {
        let sources = wakers::sources(heap, *event_loop, Some(fd));
        if sources.hidden {
            return None;
        }
        let reaches = |handle: &Addr| !search.from(&[], false, &[*handle], Freedom::All).reached.is_empty();
        if sources.handles.iter().any(reaches) {
            return Some(false);
        }
    }
    Some(!search.is_exhausted())
}
