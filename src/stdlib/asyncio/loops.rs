//! Event loops: which thread runs one, and whether it polls, runs or is blocked.

use rustc_hash::FxHashMap;

use super::iteration::{self, Doing};
use super::{futures, uv};
use crate::python::layout::NONE;
use crate::python::objects::Heap;
use crate::python::{sysinfo, threads};
use crate::snapshot::EventLoop;
use crate::stdlib::{FrameScene, Scene, Seen, ThreadScene};
use crate::target::memory::Addr;

/// Timers past due are counted up to here.
const MAX_OVERDUE: u64 = 100_000;

/// The calls in which a loop waits for something to do.
const POLLS: &[&str] = &["epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"];

/// Fills in `seen.loops`; the thread (index into the scene's) of each loop object.
pub fn read(scene: &Scene, current: &FxHashMap<Addr, Addr>, seen: &mut Seen) -> FxHashMap<Addr, usize> {
    let mut running = FxHashMap::default();
    for (i, thread) in scene.threads.iter().enumerate() {
        let object = running_loop(scene.heap, thread.raw.tstate, Some(scene.ns_pid))
            .filter(|l| looks_like_loop(scene.heap, *l) && !is_in_other_greenlet(scene, thread, *l));
        if let Some(object) = object {
            running.insert(object, i);
        }
        let of_object = object.map(|o| of_asyncio(scene, thread, o, current.contains_key(&o)));
        if let Some(event_loop) = of_object.or_else(|| by_frames(scene, thread)) {
            seen.loops.insert(thread.raw.tstate, event_loop);
        }
    }
    running
}

/// The loop that asyncio says is running in this thread. A child that was forked by a callback has that of its
/// parent, with the parent's pid: none of its own.
pub(super) fn running_loop(heap: &Heap, tstate: Addr, ns_pid: Option<i32>) -> Option<Addr> {
    let l = heap.layout;
    if l.asyncio.running_loop != NONE {
        return heap.ptr(tstate + l.tstate.size + l.asyncio.running_loop);
    }
    let dict = heap.ptr(tstate + l.tstate.dict)?;
    heap.type_of(dict).filter(|t| t.is_dict())?;
    let found = heap.dict_get(dict, ["__asyncio_running_event_loop__"])[0]?;
    match heap.type_of(found)?.name.as_str() {
        // Up to 3.11: `PyRunningLoopHolder { rl_loop, rl_pid }` (Modules/_asynciomodule.c).
        "_RunningLoopHolder" => {
            let pid = heap.mem.i32(found + l.object.size + 8).ok()?;
            heap.ptr(found + l.object.size).filter(|_| ns_pid.is_none_or(|own| pid == own))
        }
        _ => Some(found),
    }
}

/// The main program goes on in a greenlet of its own, and calls the loop's when it likes (the synchronous interface of
/// playwright): whatever it is in, it does not keep the loop from anything.
fn is_in_other_greenlet(scene: &Scene, thread: &ThreadScene, object: Addr) -> bool {
    let runs_it = |f: &FrameScene| f.in_file("/asyncio/base_events.py") || f.in_file("/asyncio/runners.py");
    let outermost = thread.frames.last().filter(|_| thread.raw.complete);
    outermost
        .is_some_and(|f| f.code.name == "<module>" || f.in_file("/runpy.py") || f.in_file("<frozen runpy>"))
        && !thread.frames.iter().any(runs_it)
        && !scene.heap.type_of(object).is_some_and(|t| scene.heap.is_a(&t, "uvloop.loop.Loop"))
        && sysinfo::modules(scene.heap, thread.interp, ["greenlet"])[0].is_some()
}

fn looks_like_loop(heap: &Heap, obj: Addr) -> bool {
    heap.type_of(obj).is_some_and(|t| t.name != "NoneType" && !t.is_type())
}

fn of_asyncio(scene: &Scene, thread: &ThreadScene, object: Addr, has_task: bool) -> EventLoop {
    let heap = scene.heap;
    let is_uvloop = heap.type_of(object).is_some_and(|t| heap.is_a(&t, "uvloop.loop.Loop"));
    let uv = iteration::uv_loop(heap, object);
    let tornado = thread.frames.iter().any(|f| f.is("/tornado/platform/asyncio.py", &["start"]));
    let kind = match () {
        _ if is_uvloop => "uvloop",
        _ if tornado => "tornado",
        _ => "asyncio",
    };
    let [ready, scheduled] = heap.attrs(object, ["_ready", "_scheduled"]);
    // The oldest iteration on the stack is the one that everybody waits for.
    let once = thread.frames.iter().rposition(|f| f.is("/asyncio/base_events.py", &["_run_once"]));
    let polls = in_poll(thread)
        && match once {
            // The selector itself, not one that a callback uses.
            Some(once) => is_selector(&thread.frames[..once]),
            None => match uv.zip(thread.syscall.as_ref()) {
                // Its own epoll, not one that a callback waits in.
                Some((uv, call)) => uv.is_selecting(heap, call),
                // uvloop's own functions have no frames: nothing of Python stands above who started it.
                None => !has_task && (is_uvloop || thread.frames.first().is_some_and(is_select)),
            },
        };
    // Between two polls the time of libuv is still that of the poll before: it may have slept since.
    let in_libuv = || !has_task && thread.syscall.is_none() && runs_loop(scene, thread);
    let began = || match uv {
        Some(uv) => uv.time(heap).filter(|_| !in_libuv()),
        None => {
            let end_time = scene.local(&thread.frames[once?], "end_time")?;
            heap.type_of(end_time).filter(|t| t.name == "float")?;
            heap.float(end_time)
        }
    };
    let age = || Some(scene.now.monotonic? - began()?).filter(|age| age.is_finite()).map(|age| age.max(0.0));
    EventLoop {
        kind: kind.to_owned(),
        state: state(scene, thread, polls).to_owned(),
        iteration_age: if polls { None } else { age() },
        ready: ready.map_or_else(|| uv::ready(heap, object), |r| futures::deque_len(heap, r)),
        overdue: scheduled.and_then(|s| overdue(heap, s, scene.now.monotonic?)),
    }
}

/// Loops that asyncio knows nothing of.
fn by_frames(scene: &Scene, thread: &ThreadScene) -> Option<EventLoop> {
    const TRIO: &str = "/trio/_core/_run.py";
    let trio = |f: &FrameScene| f.is(TRIO, &["run", "unrolled_run"]);
    let gevent = |f: &FrameScene| f.is("/gevent/hub.py", &["run"]);
    let (kind, polls) = if thread.frames.iter().any(trio) {
        let innermost = thread.frames.first();
        ("trio", innermost.is_some_and(|f| f.in_file(TRIO) || f.code.file.as_deref().is_some_and(is_trio_io)))
    } else if thread.frames.iter().any(gevent) {
        ("gevent", thread.frames.first().is_some_and(gevent))
    } else if is_greenlet(scene, thread) && has_gevent(scene, thread) {
        // The hub that started it has frames of its own, on another stack.
        ("gevent", false)
    } else {
        return None;
    };
    let polls = polls && in_poll(thread);
    let iteration_age = if polls { None } else { age(scene, thread) };
    let state = state(scene, thread, polls).to_owned();
    Some(EventLoop { kind: kind.to_owned(), state, iteration_age, ready: None, overdue: None })
}

/// How long the present iteration of a loop has lasted that only the stack tells of.
fn age(scene: &Scene, thread: &ThreadScene) -> Option<f64> {
    let mut codes = iteration::Codes::default();
    let place = iteration::find(scene.heap, thread.raw.tstate, &mut codes, true)?;
    match place.doing(scene.heap, thread.syscall.as_ref(), &mut codes) {
        Doing::Since(start) => Some((scene.now.monotonic? - start).max(0.0)),
        Doing::Selecting | Doing::Lost => None,
    }
}

/// The stack of the main thread begins in a function: a main program begins in a module, or in what `-m` runs.
fn is_greenlet(scene: &Scene, thread: &ThreadScene) -> bool {
    let is_main = thread.known.as_ref().map_or(thread.tid == Some(scene.pid), |known| known.main);
    let outermost = thread.frames.last().filter(|_| thread.raw.complete && is_main);
    // A process that was forked by a thread begins where that thread did.
    let is_run =
        |f: &FrameScene| ["<frozen runpy>", "/runpy.py", "/threading.py"].iter().any(|file| f.in_file(file));
    outermost.is_some_and(|f| !f.code.name.starts_with('<') && !is_run(f))
}

fn has_gevent(scene: &Scene, thread: &ThreadScene) -> bool {
    sysinfo::modules(scene.heap, thread.interp, ["gevent.hub"])[0].is_some()
}

fn is_trio_io(file: &str) -> bool {
    file.contains("/trio/_core/_io_")
}

/// No callback stands above who runs the loop.
fn runs_loop(scene: &Scene, thread: &ThreadScene) -> bool {
    let runs = |name: &String| matches!(name.as_str(), "run_until_complete" | "run_forever");
    thread.frames.first().is_some_and(|f| scene.names(f.raw.code).iter().any(runs))
}

fn in_poll(thread: &ThreadScene) -> bool {
    thread.call().is_some_and(|call| POLLS.contains(&call))
}

fn is_select(frame: &FrameScene) -> bool {
    frame.is("/selectors.py", &["select"])
}

/// The frames above `_run_once` are those of a selector alone: asyncio's, or one that wraps it.
fn is_selector(frames: &[FrameScene]) -> bool {
    match frames {
        // A selector of C has no frame.
        [] => true,
        [innermost, rest @ ..] => {
            (is_select(innermost) || innermost.code.name == "select")
                && rest.iter().all(|f| f.code.name == "select")
        }
    }
}

fn state(scene: &Scene, thread: &ThreadScene, polls: bool) -> &'static str {
    let waits_for_gil = || {
        let gil = threads::gil(scene.heap, scene.python.runtime, thread.interp)?;
        Some(gil.waits_here(scene.heap.layout, thread.futex()?))
    };
    match thread.syscall {
        _ if polls => "polling",
        Some(_) if waits_for_gil() != Some(true) => "blocked",
        _ => "running",
    }
}

/// How many timers of the heap `_scheduled` are past due: below one that is not, none is.
fn overdue(heap: &Heap, scheduled: Addr, now: f64) -> Option<u64> {
    let ty = heap.type_of(scheduled).filter(|t| t.is_list())?;
    let size = u64::try_from(heap.size(scheduled)?).ok()?;
    if size == 0 {
        return Some(0);
    }
    let items = heap.mem.u64(scheduled + heap.layout.list.items).ok()?;
    debug_assert!(ty.is_list());
    let mut count = 0;
    let mut left = vec![0u64];
    while let Some(i) = left.pop() {
        if i >= size || count >= MAX_OVERDUE {
            continue;
        }
        let Some(when) = heap.ptr(items + 8 * i).and_then(|handle| super::waits::when(heap, handle)) else {
            continue;
        };
        if when <= now {
            count += 1;
            left.extend([2 * i + 1, 2 * i + 2]);
        }
    }
    Some(count)
}
