//! What many samples add up to: time by thread and stack, and, where a format wants it, the order of things.
//! Plain data; memory grows with different stacks only.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::timeline::{Span, Timeline};
use super::tree::{FrameId, StackId, Tree};

/// One thread of one process.
#[derive(Clone, Debug)]
pub struct Track {
    pub process: usize,
    pub tid: i32,
    pub name: Option<Rc<str>>,
    pub main: bool,
}

impl Track {
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} ({})", self.tid),
            None => format!("thread {}", self.tid),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: Option<i32>,
    pub command: String,
    pub version: String,
    /// Nanoseconds since the recording began.
    pub begin: u64,
    pub end: u64,
}

impl Process {
    pub fn label(&self) -> String {
        format!("process {}: {}", self.pid, self.command)
    }
}

/// Time in one stack of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub nanos: u64,
    pub samples: u64,
}

#[derive(Debug, Default)]
pub struct Recording {
    pub tree: Tree,
    pub processes: Vec<Process>,
    pub tracks: Vec<Track>,
    pub sums: FxHashMap<(usize, StackId), Sum>,
    /// Between two samples, nanoseconds.
    pub period: u64,
    /// Seconds since the epoch.
    pub began_at: f64,
    pub length: u64,
    /// The order, if it is wanted.
    pub timeline: Option<Timeline>,
    /// How often a frame was innermost in samples read from another CPU, and in those from the seat in between.
    pub innermost: FxHashMap<FrameId, [u64; 2]>,
    pub counts: Counts,
}

/// What is said at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Deadlines that were met.
    pub ticks: u64,
    /// Deadlines that passed before the one before was done with.
    pub missed: u64,
    /// Woken later than half a period.
    pub late: u64,
    /// Samples of processes.
    pub samples: u64,
    /// Stacks, and those that could not be proven.
    pub stacks: u64,
    pub torn: u64,
    /// Stacks that were read from another CPU.
    pub apart: u64,
    pub retries: u64,
    /// Samples of processes in which somebody held the GIL, the collector ran, nobody ran.
    pub gil: u64,
    pub gc: u64,
    pub idle: u64,
    /// CPU time of hangscope itself while sampling, nanoseconds.
    pub own_cpu: u64,
}

impl Recording {
    /// Adds a sample: the thread had this stack for `length` up to `end`.
    pub fn add(&mut self, track: usize, stack: StackId, end: u64, length: u64) {
        let sum = self.sums.entry((track, stack)).or_default();
        sum.nanos += length;
        sum.samples += 1;
        if let Some(timeline) = &mut self.timeline {
            timeline.add(track, Span { start: end.saturating_sub(length), length, stack });
        }
    }

    /// Sums over all threads, as whole numbers of periods, of stacks that are rooted at their process
    /// (if there are several, or `processes`) and thread (if `threads`). At least 1 for each.
    pub fn counted(&mut self, threads: bool) -> Vec<(StackId, u64)> {
        let mut sums: FxHashMap<StackId, u64> = FxHashMap::default();
        let by_track: Vec<((usize, StackId), Sum)> = self.sums.iter().map(|(k, v)| (*k, *v)).collect();
        let mut bases: FxHashMap<usize, StackId> = FxHashMap::default();
        for ((track, stack), sum) in by_track {
            let base = *bases.entry(track).or_insert_with(|| {
                let mut base = super::tree::EMPTY;
                let t = &self.tracks[track];
                if self.processes.len() > 1 {
                    let label = self.processes[t.process].label();
                    let frame = self.tree.intern(super::tree::Frame::label(label));
                    base = self.tree.push(base, frame);
                }
                if threads {
                    let frame = self.tree.intern(super::tree::Frame::label(t.label()));
                    base = self.tree.push(base, frame);
                }
                base
            });
            let stack = if base == super::tree::EMPTY { stack } else { self.tree.rebase(base, stack) };
            *sums.entry(stack).or_default() += sum.nanos;
        }
        let period = self.period.max(1);
        let mut sums: Vec<(StackId, u64)> =
            sums.into_iter().map(|(stack, nanos)| (stack, ((nanos + period / 2) / period).max(1))).collect();
        sums.sort_unstable();
        sums
    }

    /// The functions that were innermost for the longest time: name, file, nanoseconds.
    pub fn top_functions(&self, count: usize) -> Vec<(String, String, u64)> {
        let mut by_function: FxHashMap<(&str, &str), u64> = FxHashMap::default();
        for ((_, stack), sum) in &self.sums {
            if let Some(frame) = self.tree.top(*stack) {
                let frame = self.tree.frame(frame);
                *by_function.entry((&frame.function, &frame.short)).or_default() += sum.nanos;
            }
        }
        let mut sorted: Vec<_> =
            by_function.into_iter().map(|((f, s), n)| (f.to_owned(), s.to_owned(), n)).collect();
        sorted.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.cmp(b)));
        sorted.truncate(count);
        sorted
    }

    /// How much of all time is in other innermost functions than exact samples taken in between say, of how many of
    /// those, and how much of that is to be expected of so few by chance.
    pub fn distortion(&self) -> Option<(f64, u64, f64)> {
        let mut by_function: FxHashMap<(&str, &str), [f64; 2]> = FxHashMap::default();
        let mut total = [0.0; 2];
        for (frame, counts) in &self.innermost {
            let frame = self.tree.frame(*frame);
            let sums = by_function.entry((&frame.function, &frame.short)).or_default();
            for (index, count) in counts.iter().enumerate() {
                sums[index] += *count as f64;
                total[index] += *count as f64;
            }
        }
        if total[0] == 0.0 || total[1] < 100.0 {
            return None;
        }
        let shares = by_function.values().map(|[a, b]| (a / total[0], b / total[1]));
        let off: f64 = shares.map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0;
        let exact = by_function.values().map(|[_, b]| b / total[1]);
        // The mean deviation of a share that is normally distributed.
        let deviation = |p: f64| (p * (1.0 - p) / total[1] * 2.0 / std::f64::consts::PI).sqrt();
        let chance: f64 = exact.map(deviation).sum::<f64>() / 2.0;
        Some((off, total[1] as u64, chance))
    }

    pub fn total(&self) -> u64 {
        self.sums.values().map(|s| s.nanos).sum()
    }
}
