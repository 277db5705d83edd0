//! Many light samples of the stacks of a process, and what they add up to.
//!
//! # How to sample
//! ```no_run
//! # use hangscope::profile::{Sampler, SamplerOptions, Outcome, Tree, Seat};
//! # fn main() -> Result<(), hangscope::target::access::AccessError> {
//! let mut tree = Tree::default(); // frames and stacks, each once; shared by all samplers
//! let mut seat = Seat::default(); // where this thread of ours sits; one per sampling thread
//! let mut sampler = Sampler::attach(4242, SamplerOptions::default())?;
//! match sampler.sample(&mut tree, &mut seat) {
//!     Outcome::Sample => {
//!         for thread in sampler.threads() {
//!             // tid, name, state (running, waiting for the GIL, idle), holds_gil, collecting, stack
//!             let frames: Vec<_> = tree.walk(thread.stack).map(|id| tree.frame(id)).collect();
//!         }
//!     }
//!     Outcome::Torn => {} // nothing could be proven this time: the threads are those of the last sample
//!     Outcome::Gone => {} // the process has ended, or runs another program: attach anew, or stop
//! }
//! # Ok(()) }
//! ```
//! `sampler.stats()` counts what was exact, retried and torn. Call [`Seat::leave`] before doing anything that
//! takes longer than a sample: as long as it is held, this thread stays on the target's CPU.
//!
//! # Why a sample is exact
//! A thread cannot run while its reader runs on the same CPU. So the sampler stays pinned to the CPU of the
//! thread that runs, sleeps to its deadline, and wakes there, ahead of it. Before the read the thread's CPU is ours
//! (or it sleeps), after the read its run count is what it was: so it has not run in between. With the GIL in its
//! hands nobody else has changed a frame either; threads that run without are proven one by one in the same way.
//! What cannot be proven is torn: counted, not shown.
//!
//! Once we sit beside the thread that runs, two cheaper facts prove the same (place.rs): this CPU was ours alone from
//! before the read until after it, since we have not been switched out; and the word in which the kernel notes where
//! a thread runs, read last and in the same call, still names it. Had it run its own code elsewhere in between,
//! that word would name the other CPU, and could name ours again only after it had run here.
//!
//! # What a sample costs
//! When the process has used no CPU since a sample in which nobody ran, nothing has changed: one call, its CPU
//! clock. Else sleep, our own switches, one `process_vm_readv` of what the last samples needed, our switches again:
//! four, whatever the depth. Without that word (a C library other than glibc 2.35 or later) six: the thread's run count
//! and CPU come out of `/proc` then. With several threads the CPU clock of the process, and one short read of `/proc`
//! for each that has lately run; of all of them only when the sum of their CPU times does not explain that of the
//! process. Threads that have not run keep their state and stack.
//!
//! `--pause` stops the thread that runs instead, and no seat is taken.

/// Children that come and go.
pub mod follow;
/// On which CPU a thread says that it is.
mod place;
/// The fast walk of frames.
mod reader;
/// The loop: deadlines, processes, weights.
pub mod recorder;
/// What many samples add up to.
pub mod recording;
/// Frames to names and lines, each once.
mod resolve;
/// One process, sample by sample.
pub mod sampler;
/// The asyncio task at the root of a stack.
mod tasks;
/// The threads of a process, and what they were last known to do.
mod threads;
/// What happened when.
pub mod timeline;
/// Interned frames and stacks.
pub mod tree;

pub use crate::target::frozen::Seat;
pub use sampler::{Lines, Outcome, Sampler, SamplerOptions, Stats};
pub use threads::{Sampled, State};
pub use tree::{EMPTY, Frame, FrameId, StackId, Tree};
