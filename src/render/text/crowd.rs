//! Processes of one program whose threads all stand alike are shown once: two hundred hung workers are
//! one fact.

use crate::diagnose::ranges;
use crate::duration::Duration;
use crate::render::page::Page;
use crate::render::report::ReportProcess;
use crate::render::style::Ink;
use crate::snapshot::Process;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// So many are still shown one by one.
const SINGLY: usize = 3;

/// Each process that is shown, with those that look just like it.
pub(super) fn crowds(processes: &[ReportProcess], group: bool) -> Vec<(&ReportProcess, Vec<&ReportProcess>)> {
    let mut sizes: HashMap<u64, usize> = HashMap::new();
    let prints: Vec<u64> = processes.iter().map(|p| fingerprint(&p.process)).collect();
    prints.iter().for_each(|print| *sizes.entry(*print).or_default() += 1);
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut found: Vec<(&ReportProcess, Vec<&ReportProcess>)> = Vec::new();
    for (process, print) in processes.iter().zip(&prints) {
        let plain = group && process.findings.is_empty() && process.process.problems.is_empty();
        match places.get(print) {
            Some(&at) if plain && sizes[print] > SINGLY => found[at].1.push(process),
            _ => {
                if plain {
                    places.insert(*print, found.len());
                }
                found.push((process, Vec::new()));
            }
        }
    }
    found
}

/// What a reader would compare: the program, and of each thread its name, its stack, and its wait.
fn fingerprint(process: &Process) -> u64 {
    let mut hasher = DefaultHasher::new();
    process.command.hash(&mut hasher);
    process.python.as_ref().map(|p| &p.version).hash(&mut hasher);
    process.followed.hash(&mut hasher);
    for thread in &process.threads {
        (thread.main, format!("{:?}", thread.activity)).hash(&mut hasher);
        for frame in &thread.frames {
            (&frame.function, &frame.file, frame.line).hash(&mut hasher);
            format!("{:?}", frame.locals).hash(&mut hasher);
        }
        let wait = thread.waits_on.as_ref();
        wait.map(|w| (&w.kind, &w.call, w.detail.get("peer").map(|p| p.to_string()))).hash(&mut hasher);
        (thread.request.is_some(), thread.holds.len()).hash(&mut hasher);
    }
    hasher.finish()
}

/// `and 198 more like it: pid 29738-29935, blocked 30 s to 32 s`.
pub(super) fn more(page: &mut Page, others: &[&ReportProcess]) {
    if others.is_empty() {
        return;
    }
    let pids: Vec<i32> = others.iter().map(|p| p.process.pid).collect();
    let mut text = format!("and {} more like it: pid {}", others.len(), ranges(&pids));
    let main = |p: &&ReportProcess| p.process.main_thread()?.os.as_ref()?.blocked_for;
    let ages = others.iter().filter_map(main);
    let (least, most) = ages.fold((f64::INFINITY, 0.0_f64), |(l, m), age| (l.min(age), m.max(age)));
    if least.is_finite() {
        text += &format!(", blocked {} to {}", Duration(least), Duration(most));
    }
    page.gap();
    page.prose(Ink::Strong, 2, &text);
}
