//! The loop: sleeps to deadlines, samples each process, and adds up real intervals.

use rustc_hash::FxHashMap;

use super::follow::Follower;
use super::recording::{Process, Recording, Track};
use super::sampler::{Outcome, Sampler, SamplerOptions};
use super::threads::{Sampled, State};
use super::timeline::Timeline;
use super::tree::{Frame, FrameId};
use crate::target::access::AccessError;
use crate::target::clocks;
use crate::target::frozen::Seat;
use crate::target::proc;

/// Nobody waits longer for an answer to Ctrl-C.
const NAP: u64 = 100_000_000;
/// A sample that is later or takes longer is worth a word.
const STALLED: u64 = 20_000_000;
/// Everything but sampling is looked after at most this often: the end, signals, children.
const CHORES: u64 = 500_000;
/// As fast as it goes, nobody runs: so long until the next sample.
const NOBODY: u64 = 100_000;
/// How often it is looked whether an interpreter has started.
const STARTING: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Nanoseconds between samples; 0: as fast as it goes.
    pub period: u64,
    pub duration: Option<u64>,
    pub idle: bool,
    pub gil_only: bool,
    pub gil_wait: bool,
    /// Parts of names of threads.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub subprocesses: bool,
    /// Keep the order of samples.
    pub ordered: bool,
    pub show_secrets: bool,
    pub sampler: SamplerOptions,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All processes have.
    Targets,
    Duration,
    Asked,
}

pub struct Recorder {
    settings: Settings,
    pub recording: Recording,
    live: Vec<Live>,
    follower: Follower,
    seat: Seat,
    gil_wait: FrameId,
    began: u64,
    /// Processes that could not be read.
    pub refused: Vec<AccessError>,
    /// Threads that could not be stopped, and why.
    pub unpaused: Vec<String>,
}

/// A process that is sampled.
struct Live {
    sampler: Sampler,
    process: usize,
    tracks: FxHashMap<(i32, u64), Tracked>,
    last: u64,
}

struct Tracked {
    /// `None`: left out by its name.
    track: Option<usize>,
    name: Option<std::rc::Rc<str>>,
    /// Time of samples that could not be proven: goes to the next one that is.
    owed: u64,
}

impl Recorder {
    pub fn new(settings: Settings, roots: &[i32]) -> Recorder {
        let mut recording = Recording {
            period: settings.period,
            timeline: settings.ordered.then(Timeline::default),
            began_at: crate::target::host::epoch(),
            ..Recording::default()
        };
        let gil_wait = recording.tree.intern(Frame::label("<waiting for the GIL>"));
        let follower = Follower::new(roots, settings.subprocesses);
        Recorder {
            settings,
            recording,
            live: Vec::new(),
            follower,
            seat: Seat::default(),
            gil_wait,
            began: clocks::monotonic(),
            refused: Vec::new(),
            unpaused: Vec::new(),
        }
    }

    /// Attaches to a process that runs Python by now.
    pub fn attach(&mut self, pid: i32) -> Result<(), AccessError> {
        let sampler = Sampler::attach(pid, self.settings.sampler.clone())?;
        self.follower.known(pid);
        let now = clocks::monotonic();
        let facts = proc::process(pid)?;
        let command =
            if self.settings.show_secrets { facts.command } else { crate::mask::command(&facts.command) };
        self.recording.processes.push(Process {
            pid,
            parent: facts.parent,
            command: command.join(" "),
            version: sampler.python().sys.version(),
            begin: now.saturating_sub(self.began),
            end: u64::MAX,
        });
        let process = self.recording.processes.len() - 1;
        let tracks = FxHashMap::default();
        self.live.push(Live { sampler, process, tracks, last: now });
        Ok(())
    }

    /// Attaches as soon as it runs Python.
    pub fn expect(&mut self, pid: i32) {
        self.follower.expect(pid, clocks::monotonic());
    }

    pub fn processes(&self) -> usize {
        self.live.len()
    }

    /// Nanoseconds since it began.
    pub fn elapsed(&self) -> u64 {
        clocks::monotonic().saturating_sub(self.began)
    }

    /// Samples until the end. `watch` is called after every deadline and says whether to go on.
    pub fn run(&mut self, mut watch: impl FnMut(&Recorder) -> bool) -> End {
        log::debug!(
            "read {}",
            if self.settings.sampler.apart { "from another CPU" } else { "from the target's own CPU" }
        );
        clocks::be_punctual();
        self.began = clocks::monotonic();
        for live in &mut self.live {
            live.last = self.began;
        }
        let own = clocks::own_cpu();
        let end = self.rounds(&mut watch);
        self.recording.counts.own_cpu = clocks::own_cpu().saturating_sub(own);
        // Before the seat is left: on a crowded machine that takes its time.
        self.recording.length = self.elapsed();
        if self.recording.period == 0 {
            // What it came to: some formats count in samples.
            self.recording.period = self.recording.length / self.recording.counts.ticks.max(1);
        }
        self.seat.leave();
        for live in std::mem::take(&mut self.live) {
            self.count(&live.sampler);
        }
        for process in &mut self.recording.processes {
            process.end = process.end.min(self.recording.length);
        }
        end
    }

    fn rounds(&mut self, watch: &mut impl FnMut(&Recorder) -> bool) -> End {
        let period = self.settings.period;
        let until = self.settings.duration.map(|d| self.began + d);
        let mut deadline = self.began + period;
        let mut chores = 0;
        loop {
            let now = clocks::monotonic();
            if now >= chores {
                chores = now + CHORES;
                if !watch(self) {
                    return End::Asked;
                }
                if until.is_some_and(|until| now >= until) {
                    return End::Duration;
                }
                self.welcome(now);
                if self.live.is_empty() && !self.follower.is_waiting() && !self.follower.is_alive() {
                    return End::Targets;
                }
            }
            if self.live.is_empty() {
                clocks::sleep_until(now + STARTING);
                deadline = clocks::monotonic() + period;
                continue;
            }
            if period == 0 {
                if !self.live.iter().any(|live| live.sampler.any_runs()) {
                    clocks::sleep_until(now + NOBODY);
                }
                self.recording.counts.ticks += 1;
                self.sample_all();
                continue;
            }
            if now > deadline {
                // What has passed is not made up for in a burst.
                let passed = (now - deadline) / period + 1;
                self.recording.counts.missed += passed;
                deadline += passed * period;
            }
            let wake = deadline.min(now + NAP).min(until.unwrap_or(u64::MAX));
            if self.settings.sampler.apart {
                // Whoever sleeps so shortly comes late.
                while clocks::monotonic() < wake {
                    std::hint::spin_loop();
                }
            } else {
                clocks::sleep_until(wake);
            }
            let now = clocks::monotonic();
            if now < deadline {
                chores = now;
                continue;
            }
            self.recording.counts.ticks += 1;
            self.recording.counts.late += u64::from(now - deadline > period / 2);
            let late = now - deadline;
            deadline += period;
            self.sample_all();
            let took = clocks::monotonic() - now;
            if late.max(took) > STALLED {
                log::debug!("woken {late} ns late, and sampling took {took} ns");
            }
        }
    }

    /// Attaches to those who have begun to run Python.
    fn welcome(&mut self, now: u64) {
        for pid in self.follower.due(now) {
            if self.live.iter().any(|live| live.sampler.pid() == pid) {
                continue;
            }
            match self.attach(pid) {
                Ok(()) => {}
                Err(AccessError::Starting { .. } | AccessError::NotPython { .. }) => {
                    self.follower.later(pid, now);
                }
                Err(AccessError::Gone { .. } | AccessError::Zombie { .. }) => {}
                // It is just ending, or executing another program.
                Err(AccessError::Other { .. }) => self.follower.later(pid, now),
                Err(error) => {
                    if !self.refused.contains(&error) {
                        self.refused.push(error);
                    }
                }
            }
        }
    }

    fn sample_all(&mut self) {
        let mut index = 0;
        while let Some(live) = self.live.get_mut(index) {
            // When it began: how long it takes has to do with the stack, and must not weigh it.
            let at = clocks::monotonic();
            match live.sampler.sample(&mut self.recording.tree, &mut self.seat) {
                Outcome::Gone => {
                    let live = self.live.swap_remove(index);
                    self.count(&live.sampler);
                    let now = clocks::monotonic();
                    self.recording.processes[live.process].end = now.saturating_sub(self.began);
                    // It has ended, or it runs another program.
                    self.follower.expect(live.sampler.pid(), now);
                }
                Outcome::Sample | Outcome::Torn => {
                    self.add(index, at);
                    index += 1;
                }
            }
        }
    }

    fn add(&mut self, index: usize, now: u64) {
        let live = &mut self.live[index];
        let length = now.saturating_sub(live.last);
        live.last = now;
        let at = now.saturating_sub(self.began);
        let counts = &mut self.recording.counts;
        counts.samples += 1;
        let threads = live.sampler.threads();
        let (mut gil, mut gc, mut runs) = (false, false, false);
        for thread in threads {
            gil |= thread.holds_gil;
            gc |= thread.collecting;
            runs |= thread.state == State::Running;
            if !is_wanted(&self.settings, thread) {
                continue;
            }
            let tracked = live.tracks.entry((thread.tid, thread.ident)).or_insert_with(|| Tracked {
                track: None,
                name: Some("\0".into()),
                owed: 0,
            });
            if tracked.name != thread.name {
                tracked.name = thread.name.clone();
                if passes(&self.settings, thread.name.as_deref()) {
                    let track = *tracked.track.get_or_insert_with(|| {
                        self.recording.tracks.push(Track {
                            process: live.process,
                            tid: thread.tid,
                            name: None,
                            main: thread.main,
                        });
                        self.recording.tracks.len() - 1
                    });
                    self.recording.tracks[track].name = thread.name.clone();
                } else {
                    tracked.track = None;
                }
            }
            let Some(track) = tracked.track else { continue };
            if !thread.exact {
                tracked.owed += length;
                continue;
            }
            let mut stack = thread.stack;
            if stack == super::tree::EMPTY {
                continue;
            }
            if let (Some(seated), Some(top)) = (live.sampler.seated(), self.recording.tree.top(stack))
                && thread.holds_gil
            {
                self.recording.innermost.entry(top).or_default()[usize::from(seated)] += 1;
            }
            if thread.state == State::WaitingForGil && self.settings.gil_wait {
                stack = self.recording.tree.push(stack, self.gil_wait);
            }
            let owed = std::mem::take(&mut tracked.owed);
            self.recording.add(track, stack, at, length + owed);
        }
        let counts = &mut self.recording.counts;
        counts.gil += u64::from(gil);
        counts.gc += u64::from(gc);
        counts.idle += u64::from(!runs);
    }

    /// What one sampler says of its samples.
    fn count(&mut self, sampler: &Sampler) {
        let (stats, counts) = (sampler.stats(), &mut self.recording.counts);
        counts.stacks += stats.stacks;
        counts.torn += stats.torn;
        counts.retries += stats.retries;
        counts.apart += stats.apart;
        self.unpaused.extend(sampler.unpaused().map(ToString::to_string));
        let (calls, bytes) = sampler.cost();
        log::debug!("{}: {stats:?}; {calls} reads of memory, {bytes} bytes", sampler.pid());
    }

    /// Samples and torn stacks up to now, for the progress line.
    pub fn progress(&self) -> (u64, u64) {
        let torn: u64 = self.live.iter().map(|l| l.sampler.stats().torn).sum();
        (self.recording.counts.samples, self.recording.counts.torn + torn)
    }
}

/// Whether the state is one that counts.
fn is_wanted(settings: &Settings, thread: &Sampled) -> bool {
    if settings.gil_only {
        return thread.holds_gil;
    }
    match thread.state {
        State::Running => true,
        State::WaitingForGil => settings.idle || settings.gil_wait,
        State::Idle => settings.idle,
    }
}

fn passes(settings: &Settings, name: Option<&str>) -> bool {
    let name = name.unwrap_or("");
    let any = |parts: &[String]| parts.iter().any(|part| name.contains(part.as_str()));
    (settings.include.is_empty() || any(&settings.include)) && !any(&settings.exclude)
}
