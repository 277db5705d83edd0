//! gevent: since when the present iteration of its loop runs.
//!
//! The hub's `run` has the loop in a variable, a `gevent.libev.corecext.loop`, which points to libev's own
//! `struct ev_loop`. libev takes the monotonic clock each time that epoll returns (`time_update`, ev.c) and keeps
//! it as `mn_now`, beside the wall clock and the difference of both, which tells such a struct from anything else.
//! While a greenlet runs, the hub's frame is on no stack: the loop is remembered from when it was.

use super::asyncio::iteration::Doing;
use crate::python::objects::Heap;
use crate::target::facts::RawSyscall;
use crate::target::memory::Addr;
use crate::target::syscalls::{self, Arch};

/// How the path of the file that has the hub ends.
pub const FILE: &str = "/gevent/hub.py";
const LOOP: &str = "gevent.libev.corecext.loop";

/// `struct ev_loop` (ev.c, ev_vars.h of libev 4.x, as gevent builds it on 64-bit Linux): `ev_rt_now`, `now_floor`,
/// `mn_now`, `rtmn_diff`, …, `pendingcnt`, …, `backend`, `activecnt`, `loop_done`, `backend_fd`. Seen on gevent 24.2
/// and 26.
const EV_NOW: usize = 0;
const EV_MONOTONIC: usize = 16;
const EV_DIFFERENCE: usize = 24;
/// One count per priority.
const EV_PENDING: std::ops::Range<usize> = 108..128;
const EV_BACKEND: usize = 176;
const EV_ACTIVE: usize = 180;
const EV_BACKEND_FD: usize = 188;
const EV_SIZE: usize = 192;
/// `EVBACKEND_EPOLL`
const EPOLL: i32 = 4;
/// The words of a `loop` among which the pointer to its `ev_loop` is.
const WORDS: std::ops::Range<u64> = 2..32;

/// A loop of gevent's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hub {
    /// Where the object keeps its `ev_loop`.
    object: Addr,
    word: u64,
    ev_loop: Addr,
}

/// What libev says of itself.
struct EvLoop {
    /// When epoll returned, on the monotonic clock.
    time: f64,
    /// Somebody waits for it: gevent's own watchers do not count. A timer that has expired is not active any more,
    /// but pending until its turn comes.
    is_awaited: bool,
    fd: i32,
}

impl Hub {
    /// The loop in this variable of `Hub.run`.
    pub fn of(heap: &Heap, slot: Addr) -> Option<Hub> {
        let object = heap.layout.untag(heap.mem.u64(slot).ok()?);
        heap.type_of(object).filter(|ty| heap.is_a(ty, LOOP))?;
        WORDS.into_iter().find_map(|word| {
            let ev_loop = heap.ptr(object + 8 * word)?;
            ev(heap, ev_loop).map(|_| Hub { object, word, ev_loop })
        })
    }

    pub fn doing(&self, heap: &Heap, call: Option<&RawSyscall>) -> Doing {
        if heap.ptr(self.object + 8 * self.word) != Some(self.ev_loop) {
            return Doing::Lost;
        }
        // What does not fit together was just being brought up to date.
        let Some(ev) = ev(heap, self.ev_loop) else { return Doing::Selecting };
        let is_epoll = |call: &RawSyscall| {
            let name = syscalls::name(Arch::HERE, call.number);
            matches!(name, Some("epoll_wait" | "epoll_pwait" | "epoll_pwait2"))
        };
        let selects = call.is_some_and(|call| is_epoll(call) && call.args[0] == ev.fd as u64);
        if selects || !ev.is_awaited { Doing::Selecting } else { Doing::Since(ev.time) }
    }

    pub fn is_live(&self, heap: &Heap) -> bool {
        heap.type_of(self.object).is_some_and(|ty| heap.is_a(&ty, LOOP))
            && heap.ptr(self.object + 8 * self.word) == Some(self.ev_loop)
    }
}

fn ev(heap: &Heap, at: Addr) -> Option<EvLoop> {
    let bytes = heap.mem.bytes(at, EV_SIZE).ok()?;
    let time = |at: usize| f64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let int = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let (now, monotonic, difference) = (time(EV_NOW), time(EV_MONOTONIC), time(EV_DIFFERENCE));
    let fits = monotonic > 0.0 && (now - monotonic - difference).abs() < 1e-3;
    let (active, fd) = (int(EV_ACTIVE), int(EV_BACKEND_FD));
    let is_one = fits && int(EV_BACKEND) == EPOLL && active >= 0 && fd >= 0;
    let is_pending = || EV_PENDING.step_by(4).any(|at| int(at) > 0);
    is_one.then(|| EvLoop { time: monotonic, is_awaited: active > 0 || is_pending(), fd })
}
