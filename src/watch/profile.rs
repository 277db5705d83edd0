//! A short profile of a stall while it lasts: where the time goes, for a loop that computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::profile::{EMPTY, Outcome, Sampler, SamplerOptions, Seat, StackId, Tree};
use crate::render::profile::{ProfileOptions, label};

/// Samples per second, and for how long at most.
const EVERY: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(2);

/// Samples one thread until dropped or for two seconds. In a thread of its own: a sample is taken from the
/// target's CPU.
pub struct Profiling {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<String>>>,
}

impl Profiling {
    pub fn start(pid: i32, tid: i32, apps: Vec<String>) -> std::io::Result<Profiling> {
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let work = move || sample(pid, tid, apps, &over);
        let thread = std::thread::Builder::new().name("profile".into()).spawn(work)?;
        Ok(Profiling { stop, thread: Some(thread) })
    }

    /// It has sampled for as long as it may.
    pub fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// One line per stack, outermost first, and how often; `None` if there was no sample.
    pub fn finish(mut self) -> Option<String> {
        self.stop.store(true, SeqCst);
        self.thread.take()?.join().ok().flatten()
    }
}

impl Drop for Profiling {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

fn sample(pid: i32, tid: i32, apps: Vec<String>, stop: &AtomicBool) -> Option<String> {
    let options = SamplerOptions { idle: true, gil_wait: true, apps, ..SamplerOptions::default() };
    let mut sampler = Sampler::attach(pid, options).ok()?;
    let (mut tree, mut seat) = (Tree::default(), Seat::default());
    let mut counts: FxHashMap<StackId, u64> = FxHashMap::default();
    let until = Instant::now() + LONGEST;
    while Instant::now() < until && !stop.load(SeqCst) {
        match sampler.sample(&mut tree, &mut seat) {
            Outcome::Gone => break,
            Outcome::Torn => {}
            Outcome::Sample => {
                let thread = sampler.threads().find(|t| t.tid == tid && t.stack != EMPTY);
                if let Some(thread) = thread {
                    *counts.entry(thread.stack).or_default() += 1;
                }
            }
        }
        std::thread::sleep(EVERY);
    }
    seat.leave();
    let labels = ProfileOptions::default();
    let line = |(stack, count): (&StackId, &u64)| {
        let mut frames: Vec<String> =
            tree.walk(*stack).map(|id| label(tree.frame(id), &labels).replace(';', ",")).collect();
        frames.reverse();
        format!("{} {count}\n", frames.join(";"))
    };
    let mut lines: Vec<String> = counts.iter().map(line).collect();
    lines.sort_unstable();
    (!lines.is_empty()).then(|| lines.concat())
}
