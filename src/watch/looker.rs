//! Looks that can wait a moment, in a thread of their own: they lead into other processes and may take a second,
//! and meanwhile everybody else has to be polled.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::engine::Seen;
use super::reports::WriteError;
use super::write::{self, Files};
use crate::diagnose::diagnose;
use crate::look::Options;
use crate::render::report::Report;
use crate::snapshot::Snapshot;
use crate::target::blocked::monotonic;

/// Whom to look at, and what for.
pub(super) struct Ask {
    pub pid: i32,
    pub why: Why,
    /// Into other processes, too, where a wait leads there.
    pub follow: bool,
    /// An earlier look at the same process: what moved between them counts.
    pub first: Option<Arc<Snapshot>>,
    /// It will do without what takes a search of all memory.
    pub quick: bool,
    pub options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A stall goes on, which is number so and so.
    Again(u64),
    Patrol,
}

pub(super) struct Answer {
    pub pid: i32,
    pub why: Why,
    pub quick: bool,
    /// When the look ended, CLOCK_MONOTONIC.
    pub at: f64,
    /// The process has ended, or cannot be read any more.
    pub seen: Option<(Seen, Report)>,
    /// The report's files, of a look that is written anyway.
    pub files: Option<Result<Files, WriteError>>,
    /// Seconds of a CPU.
    pub took: f64,
}

pub(super) struct Looker {
    asks: Sender<Ask>,
    answers: Receiver<Answer>,
}

impl Looker {
    pub fn start() -> std::io::Result<Looker> {
        let (asks, queue) = channel();
        let (sender, answers) = channel();
        let work = move || {
            for ask in queue {
                if sender.send(answer(ask)).is_err() {
                    break;
                }
            }
        };
        // Not waited for at the end: what is not written by then has come too late.
        std::thread::Builder::new().name("looker".into()).spawn(work)?;
        Ok(Looker { asks, answers })
    }

    /// `false`: it has died.
    pub fn ask(&self, ask: Ask) -> bool {
        self.asks.send(ask).is_ok()
    }

    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn answer(ask: Ask) -> Answer {
    let Ask { pid, why, follow, first, quick, options } = ask;
    let (seen, took) = Seen::look(pid, follow, &Options { quick, ..options });
    let at = monotonic().as_secs_f64();
    let seen = seen.map(|mut seen| {
        let mut looks: Vec<Snapshot> = first.iter().map(|first| Snapshot::clone(first)).collect();
        looks.push(seen.snapshot.clone());
        let findings = diagnose(&looks);
        if let Some(first) = first {
            seen.snapshot.looks.splice(0..0, first.looks.iter().cloned());
        }
        let report = Report::new(seen.snapshot.clone()).with(findings);
        (seen, report)
    });
    let written = seen.as_ref().filter(|_| matches!(why, Why::Again(_)));
    let files = written.map(|(seen, report)| write::files(report, &seen.capture));
    Answer { pid, why, quick, at, seen, files, took }
}
