//! Futures that a task had in its hands when it ended with an exception that nobody has asked for since: the
//! frames of its traceback still have them. `fut.set_result(work(job))`, and `work` raised.

use rustc_hash::FxHashMap;
use serde_json::json;

use super::futures;
use crate::python::code::Codes;
use crate::python::frames::{self, RawFrame};
use crate::python::layout::Frames;
use crate::python::objects::Heap;
use crate::snapshot::{Certainty, Wait};
use crate::stdlib::garbage::Garbage;
use crate::stdlib::{FrameScene, Scene, Seen, visible};
use crate::target::memory::Addr;

/// Frames of one traceback that are looked at.
const MAX_FRAMES: usize = 256;
/// Items or attributes of an object that a frame has: a job, of which the future is a part.
const MAX_PARTS: usize = 16;

pub fn find(scene: &Scene, seen: &mut Seen) {
    // Nobody is known who would act, and no callback of the loop leads there either.
    let is_wanted = |detail: &serde_json::Value| {
        detail["callbacks"] == 0 && (detail["may_come"] == true || detail["nobody"] == true)
    };
    let mut wanted: FxHashMap<Addr, Vec<usize>> = FxHashMap::default();
    for (i, task) in seen.tasks.iter().enumerate() {
        let is_open = |w: &&Wait| matches!(w.kind.as_str(), "future" | "barrier") && w.on.is_empty();
        let Some(wait) = task.waits_on.as_ref().filter(is_open) else { continue };
        if let Some(address) = wait.address.filter(|_| wait.deadline.is_none() && is_wanted(&wait.detail)) {
            wanted.entry(address.0).or_default().push(i);
        }
    }
    if wanted.is_empty() {
        return;
    }
    let mut interpreters: Vec<Addr> = scene.threads.iter().map(|thread| thread.interp).collect();
    interpreters.sort_unstable();
    interpreters.dedup();
    for garbage in interpreters.into_iter().filter_map(|interp| Garbage::of(scene, interp)) {
        for task in garbage.instances(|ty| scene.heap.is_a(ty, "_asyncio.Task")) {
            let Some(exception) = futures::exception(scene.heap, task) else { continue };
            tell(scene, seen, &wanted, task, exception);
        }
    }
}

fn tell(scene: &Scene, seen: &mut Seen, wanted: &FxHashMap<Addr, Vec<usize>>, task: Addr, exception: Addr) {
    let heap = scene.heap;
    let raw = traceback(heap, exception);
    let mut codes = Codes::default();
    codes.load(heap, raw.iter().map(|f| f.code));
    let frames = visible(heap, &codes, &raw);
    // The frame that has it, itself or as a part of a job; what its own object keeps is not in its hands.
    let of_frame = |frame: &FrameScene| {
        let own = scene.receiver(frame);
        scene.values(frame).into_iter().filter(move |value| Some(*value) != own)
    };
    let held = frames.iter().flat_map(of_frame).flat_map(|value| parts(heap, value));
    let mut waiters: Vec<usize> = held.filter_map(|value| wanted.get(&value)).flatten().copied().collect();
    // A barrier has as many parties as it was made for: who knows it is one of them, however he does.
    let is_barrier = |at: &&usize| seen.tasks[**at].waits_on.as_ref().is_some_and(|w| w.kind == "barrier");
    let own = frames.iter().filter_map(|frame| scene.receiver(frame)).flat_map(|own| parts(heap, own));
    waiters.extend(own.filter_map(|value| wanted.get(&value)).flatten().filter(is_barrier));
    // In the last one of the application's own it went wrong.
    let last = frames.iter().rfind(|frame| scene.is_user(frame)).or(frames.last());
    let Some(last) = last.filter(|_| !waiters.is_empty()) else { return };
    let died = json!({
        "task": futures::task(heap, task).and_then(|t| t.name),
        "exception": heap.type_of(exception).map(|ty| heap.type_name(&ty)),
        "function": last.code.name.to_string(),
        "file": last.code.file.as_ref().map(|f| f.to_string()),
        "line": last.code.line(last.offset),
    });
    for waiter in waiters {
        let Some(wait) = &mut seen.tasks[waiter].waits_on else { continue };
        wait.certainty = Certainty::Likely;
        wait.detail["may_come"] = json!(false);
        wait.detail["nobody"] = json!(true);
        wait.detail["died"] = died.clone();
    }
}

/// An object, and what it is made of.
fn parts(heap: &Heap, value: Addr) -> Vec<Addr> {
    let mut parts = vec![value];
    let Some(ty) = heap.type_of(value) else { return parts };
    if ty.is_tuple() || ty.is_list() {
        parts.extend(heap.items(value, &ty, MAX_PARTS).unwrap_or_default().0);
    } else if ty.is_heap_type() {
        parts.extend(heap.attributes(value, MAX_PARTS).unwrap_or_default().into_iter().map(|(_, part)| part));
        parts.extend(heap.slot_values(value, &ty));
    }
    parts
}

/// The frames of an exception's traceback, outermost first. `PyTracebackObject { tb_next, tb_frame, … }`
/// (Include/cpython/traceback.h) is one of the first fields of a `PyBaseExceptionObject`.
fn traceback(heap: &Heap, exception: Addr) -> Vec<RawFrame> {
    let size = heap.layout.object.size;
    let is_traceback = |at: &Addr| heap.type_of(*at).is_some_and(|ty| ty.name == "traceback");
    let fields = heap.words(exception + size, 4).unwrap_or_default();
    let mut at = fields.into_iter().find(is_traceback);
    let mut found = Vec::new();
    while let Some(traceback) = at.filter(|_| found.len() < MAX_FRAMES) {
        let Some(&[next, frame]) = heap.words(traceback + size, 2).as_deref() else { break };
        let frame = match heap.layout.frames {
            Frames::Objects { .. } => Some(frame),
            // `f_back, f_frame` (Include/internal/pycore_frame.h)
            Frames::Interpreter { .. } => heap.ptr(frame + size + 8),
        };
        found.extend(frame.and_then(|frame| frames::at(heap, frame)));
        at = Some(next).filter(is_traceback);
    }
    found
}
