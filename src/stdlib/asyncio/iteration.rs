//! Since when an event loop's present iteration runs, in a handful of reads: for whoever asks many times a second.
//!
//! asyncio's own loops keep it in `end_time` of `BaseEventLoop._run_once` (Lib/asyncio/base_events.py): without a
//! value while the selector waits, the monotonic clock once it has returned. uvloop has no frame of its own; libuv
//! stamps its loop each time that epoll returns (`uv__update_time`, src/unix/linux.c), and again when a timer is
//! started, which makes the age a lower bound. Loops that asyncio knows nothing of are in rooms of their own:
//! [`crate::stdlib::trio`], [`crate::stdlib::gevent`].

use rustc_hash::FxHashMap;

use super::loops;
use crate::python::frames::{self, RawFrame};
use crate::python::locals;
use crate::python::objects::Heap;
use crate::stdlib::{gevent, trio};
use crate::target::facts::RawSyscall;
use crate::target::memory::Addr;
use crate::target::syscalls::{self, Arch};

/// `uv_loop_t` (libuv 1.x, whose ABI is fixed): the mutex inside of it differs by machine. Seen on x86-64.
const UV_BACKEND_FD: u64 = 64;
const UV_TIME: u64 = if cfg!(target_arch = "aarch64") { 552 } else { 544 };
/// The words of a `uvloop.Loop` among which the pointer to its `uv_loop_t` is.
const UV_WORDS: std::ops::Range<u64> = 2..12;

/// A stack deeper than this is not searched for a loop.
const MAX_DEPTH: usize = 2_000;
/// Code objects that are remembered not to be `_run_once`.
const MAX_CODES: usize = 8_192;

/// Where a loop keeps the start of its iteration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    RunOnce { frame: Addr, code: Addr, slot: Addr },
    Uv(UvLoop),
    Trio(trio::Run),
    Gevent(gevent::Hub),
}

/// A `uv_loop_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UvLoop(Addr);

/// What a loop does just now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Doing {
    /// Waits for something to do.
    Selecting,
    /// Runs what is ready, since then (CLOCK_MONOTONIC).
    Since(f64),
    /// The place shows no loop (any more).
    Lost,
}

/// What a code object is to us. Offsets are those of variables in its frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known {
    Other,
    /// asyncio's `_run_once`.
    RunOnce {
        end_time: u64,
    },
    /// trio's `run`, which drives the generator.
    TrioRun {
        runner: u64,
        generator: u64,
    },
    /// That generator, `unrolled_run`.
    TrioLoop {
        now: u64,
    },
    /// gevent's `Hub.run`.
    Hub {
        event_loop: u64,
    },
}

/// The code objects that were met.
#[derive(Debug, Default)]
pub struct Codes {
    known: FxHashMap<Addr, Known>,
    /// Address of the type `float`, once one was seen.
    float_type: Addr,
}

impl Codes {
    pub fn of(&mut self, heap: &Heap, code: Addr) -> Known {
        if self.known.len() > MAX_CODES {
            self.known.clear();
        }
        *self.known.entry(code).or_insert_with(|| known(heap, code).unwrap_or(Known::Other))
    }

    /// A time that a variable holds.
    pub fn time(&mut self, heap: &Heap, obj: Addr) -> Option<f64> {
        let ty = heap.ptr(obj.checked_add(heap.layout.object.ob_type)?)?;
        if ty != self.float_type {
            heap.type_at(ty).filter(|ty| ty.name == "float")?;
            self.float_type = ty;
        }
        heap.float(obj).filter(|time| time.is_finite() && *time > 0.0)
    }
}

fn known(heap: &Heap, code: Addr) -> Option<Known> {
    let text = |offset: u64| heap.checked_str(heap.ptr(code.checked_add(offset)?)?);
    let c = &heap.layout.code;
    let name = text(c.name)?;
    if !matches!(name.as_str(), "_run_once" | "run" | "unrolled_run") {
        return None;
    }
    let file = text(c.filename)?;
    let slot = |variable: &str| {
        let names = locals::variables(heap, code)?.names;
        let at = names.iter().position(|n| heap.checked_str(*n).as_deref() == Some(variable))?;
        Some(heap.layout.frame.locals + 8 * at as u64)
    };
    match name.as_str() {
        "_run_once" if file.ends_with("/asyncio/base_events.py") => {
            Some(Known::RunOnce { end_time: slot("end_time")? })
        }
        "run" if file.ends_with(trio::FILE) => {
            Some(Known::TrioRun { runner: slot("runner")?, generator: slot("gen")? })
        }
        "unrolled_run" if file.ends_with(trio::FILE) => Some(Known::TrioLoop { now: slot("now")? }),
        "run" if file.ends_with(gevent::FILE) => Some(Known::Hub { event_loop: slot("loop")? }),
        _ => None,
    }
}

/// The place of the loop that runs in this thread, if one does and has one. `deep`: also of loops that only the
/// stack tells of, which takes a walk.
pub fn find(heap: &Heap, tstate: Addr, codes: &mut Codes, deep: bool) -> Option<Place> {
    let Some(object) = loops::running_loop(heap, tstate, None) else {
        return if deep { by_stack(heap, tstate, codes, other) } else { None };
    };
    if let Some(uv) = uv_loop(heap, object) {
        return Some(Place::Uv(uv));
    }
    by_stack(heap, tstate, codes, run_once)
}

/// The outermost loop of a thread: the iteration that everybody waits for.
fn by_stack(
    heap: &Heap,
    tstate: Addr,
    codes: &mut Codes,
    place: fn(&Heap, &RawFrame, &mut Codes) -> Option<Place>,
) -> Option<Place> {
    let mut thread = frames::of(tstate);
    frames::walk(heap, &mut thread);
    thread.frames.iter().rev().take(MAX_DEPTH).find_map(|f| place(heap, f, codes))
}

fn run_once(heap: &Heap, frame: &RawFrame, codes: &mut Codes) -> Option<Place> {
    match codes.of(heap, frame.code) {
        Known::RunOnce { end_time } => {
            Some(Place::RunOnce { frame: frame.addr, code: frame.code, slot: frame.addr + end_time })
        }
        _ => None,
    }
}

fn other(heap: &Heap, frame: &RawFrame, codes: &mut Codes) -> Option<Place> {
    match codes.of(heap, frame.code) {
        Known::TrioRun { runner, generator } => {
            trio::Run::of(heap, frame, runner, generator).map(Place::Trio)
        }
        Known::Hub { event_loop } => gevent::Hub::of(heap, frame.addr + event_loop).map(Place::Gevent),
        _ => None,
    }
}

/// The `uv_loop_t` of a `uvloop.Loop`: it points back to the object (`uv_loop_t.data`).
pub fn uv_loop(heap: &Heap, object: Addr) -> Option<UvLoop> {
    let ty = heap.type_of(object)?;
    if !heap.is_a(&ty, "uvloop.loop.Loop") {
        return None;
    }
    let points_back = |at: &Addr| heap.mem.u64(*at).is_ok_and(|data| data == object);
    UV_WORDS.filter_map(|word| heap.ptr(object + 8 * word)).find(points_back).map(UvLoop)
}

impl UvLoop {
    pub fn address(self) -> Addr {
        self.0
    }

    /// The loop itself waits, not a callback in an epoll of its own.
    pub fn is_selecting(self, heap: &Heap, call: &RawSyscall) -> bool {
        let waits = matches!(syscalls::name(Arch::HERE, call.number), Some("epoll_wait" | "epoll_pwait"));
        waits && heap.mem.i32(self.0 + UV_BACKEND_FD).is_ok_and(|fd| fd >= 0 && fd as u64 == call.args[0])
    }

    /// When its poll returned, on the monotonic clock.
    pub fn time(self, heap: &Heap) -> Option<f64> {
        heap.mem.u64(self.0 + UV_TIME).ok().filter(|ms| (1..1 << 53).contains(ms)).map(|ms| ms as f64 / 1e3)
    }
}

impl Place {
    /// What the loop does; `call` is the system call that its thread sleeps in.
    pub fn doing(&self, heap: &Heap, call: Option<&RawSyscall>, codes: &mut Codes) -> Doing {
        match *self {
            Place::Uv(uv) if call.is_some_and(|call| uv.is_selecting(heap, call)) => Doing::Selecting,
            Place::Uv(uv) => uv.time(heap).map_or(Doing::Lost, Doing::Since),
            Place::Trio(run) => run.doing(heap, codes),
            Place::Gevent(hub) => hub.doing(heap, call),
            Place::RunOnce { frame, code, slot } => {
                if frames::at(heap, frame).is_none_or(|f| f.code != code) {
                    return Doing::Lost;
                }
                let Ok(value) = heap.mem.u64(slot) else { return Doing::Lost };
                match heap.layout.untag(value) {
                    0 => Doing::Selecting,
                    float => codes.time(heap, float).map_or(Doing::Lost, Doing::Since),
                }
            }
        }
    }

    /// Whether a loop really runs there: its frame may be the remains of one that has ended.
    pub fn is_live(&self, heap: &Heap, tstate: Addr, codes: &mut Codes) -> bool {
        match self {
            // While something else runs, the hub's frame is on no thread's stack.
            Place::Gevent(hub) => hub.is_live(heap),
            _ => find(heap, tstate, codes, true) == Some(*self),
        }
    }
}
