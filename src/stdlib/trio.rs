//! trio: since when the present iteration of its loop runs.
//!
//! `run` (trio/_core/_run.py) drives the generator `unrolled_run`, which is suspended while the selector waits and
//! takes the clock's time into its variable `now` once it goes on. That clock is `time.perf_counter()`, on Linux the
//! monotonic clock, plus a random offset that it keeps.

use super::asyncio::coroutines;
use super::asyncio::iteration::{Codes, Doing, Known};
use crate::python::frames::{self, RawFrame};
use crate::python::objects::Heap;
use crate::target::memory::Addr;

/// How the path of the file that has both ends.
pub const FILE: &str = "/trio/_core/_run.py";

/// A loop that runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    frame: Addr,
    code: Addr,
    generator: Addr,
    /// Of its clock to the monotonic one, seconds.
    offset: f64,
}

impl Run {
    /// The loop that this frame of `run` drives; `runner` and `generator` are the offsets of its variables.
    pub fn of(heap: &Heap, frame: &RawFrame, runner: u64, generator: u64) -> Option<Run> {
        let local = |offset: u64| {
            let value = heap.layout.untag(heap.mem.u64(frame.addr + offset).ok()?);
            (value != 0).then_some(value)
        };
        let clock = attribute(heap, local(runner)?, "clock")?;
        // Another clock runs as it likes.
        heap.type_of(clock).filter(|ty| ty.name == "SystemClock")?;
        let offset = heap.float(attribute(heap, clock, "offset")?).filter(|offset| offset.is_finite())?;
        let generator = local(generator)?;
        heap.type_of(generator).filter(|ty| ty.name == "generator")?;
        Some(Run { frame: frame.addr, code: frame.code, generator, offset })
    }

    pub fn doing(&self, heap: &Heap, codes: &mut Codes) -> Doing {
        if frames::at(heap, self.frame).is_none_or(|f| f.code != self.code) {
            return Doing::Lost;
        }
        let Some((frame, runs)) = coroutines::running(heap, self.generator) else { return Doing::Lost };
        if !runs {
            return Doing::Selecting;
        }
        let Known::TrioLoop { now } = codes.of(heap, frame.code) else { return Doing::Lost };
        let Ok(value) = heap.mem.u64(frame.addr + now) else { return Doing::Lost };
        match heap.layout.untag(value) {
            // Its first iteration has not come so far.
            0 => Doing::Selecting,
            time => {
                let start = codes.time(heap, time).map(|time| time - self.offset);
                start.filter(|start| *start > 0.0).map_or(Doing::Lost, Doing::Since)
            }
        }
    }
}

/// An attribute in a slot or a dict: trio's classes have had both.
fn attribute(heap: &Heap, obj: Addr, name: &str) -> Option<Addr> {
    let ty = heap.type_of(obj)?;
    heap.named_slots(obj, &ty, [name])[0].or_else(|| heap.attrs(obj, [name])[0])
}
