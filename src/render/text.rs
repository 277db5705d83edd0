//! The report as text, like a doctor's note: the process in two lines, the verdict if anything is
//! wrong, then all stacks.
//!
//! Always with styles; whoever writes to something without colours strips them (anstream).

mod crowd;
mod finding;
mod group;
mod overview;
mod process;
mod recursion;
mod stack;
mod tasks;
mod thread;
mod verdict;
mod wait;

use super::page::Page;
use super::report::{Report, ReportProcess};
use super::style::Ink;
use crate::snapshot::Skipped;
use std::cmp::Reverse;
use std::io;

pub use tasks::write as write_tasks;

/// How the text report is to look.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Of the terminal; `None` if it goes elsewhere, and then nothing is wrapped or shortened.
    pub width: Option<usize>,
    /// The terminal shows UTF-8.
    pub unicode: bool,
    pub full_filenames: bool,
    /// Line numbers of frames.
    pub lineno: bool,
    /// Deep recursion is shown frame by frame.
    pub full_stacks: bool,
    /// Threads with the same stack are shown once.
    pub group: bool,
}

impl Default for TextOptions {
    fn default() -> TextOptions {
        TextOptions {
            width: None,
            unicode: true,
            full_filenames: false,
            lineno: true,
            full_stacks: false,
            group: true,
        }
    }
}

/// Writes the whole report, in one piece.
pub fn write(out: &mut dyn io::Write, report: &Report, options: &TextOptions) -> io::Result<()> {
    let mut page = Page::new(options.width, options.unicode);
    overview::write(&mut page, report, options);
    for finding in &report.findings {
        finding::write(&mut page, finding, None, options);
    }
    let mut processes = crowd::crowds(&report.processes, options.group);
    // The sick before the healthy, and otherwise as they were asked for.
    let worst = |p: &ReportProcess| p.findings.iter().map(|f| f.severity).max();
    processes.sort_by_key(|(process, _)| Reverse(worst(process)));
    for (process, others) in processes {
        process::write(&mut page, process, report, options);
        crowd::more(&mut page, &others);
    }
    skipped(&mut page, &report.skipped);
    out.write_all(page.into_text().as_bytes())
}

/// Only what is wrong: no stacks.
pub fn write_findings(out: &mut dyn io::Write, report: &Report, options: &TextOptions) -> io::Result<()> {
    let mut page = Page::new(options.width, options.unicode);
    for finding in &report.findings {
        finding::write(&mut page, finding, None, options);
    }
    for (process, others) in crowd::crowds(&report.processes, options.group) {
        // What concerns several processes was said above.
        let said = report.findings.iter().any(|f| f.pids.contains(&process.process.pid));
        verdict::write(&mut page, process, said, options);
        crowd::more(&mut page, &others);
    }
    skipped(&mut page, &report.skipped);
    out.write_all(page.into_text().as_bytes())
}

/// Other programs that are named in one line.
const MOST_BY_THE_WAY: usize = 8;

fn skipped(page: &mut Page, skipped: &[Skipped]) {
    let by_the_way: Vec<&Skipped> = skipped.iter().filter(|s| s.by_the_way).collect();
    if !by_the_way.is_empty() {
        let one = |s: &&Skipped| format!("{} {}", s.pid, process::command_line(&s.command));
        let all: Vec<String> = by_the_way.iter().take(MOST_BY_THE_WAY).map(one).collect();
        let more = by_the_way.len().saturating_sub(MOST_BY_THE_WAY);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        page.gap();
        page.prose(Ink::Faint, 2, &format!("below them, and no Python: {}{more}", all.join(", ")));
    }
    for target in skipped.iter().filter(|s| !s.by_the_way) {
        page.gap();
        let indent = page.marks.critical.chars().count() + 1;
        let mark = page.marks.warning;
        page.put(Ink::Warning, mark);
        page.put(Ink::Plain, " ");
        page.put(Ink::Strong, &target_name(target.pid));
        page.put(Ink::Warning, " not read");
        if target.command.is_empty() {
            page.end_line();
        } else {
            let separator = page.marks.separator;
            page.put(Ink::Faint, separator);
            page.fact(Ink::Plain, indent, &process::command_line(&target.command));
        }
        for line in target.reason.lines() {
            page.pad_to(indent);
            page.prose(Ink::Plain, indent, line);
        }
        if let Some(remedy) = &target.remedy {
            page.pad_to(indent);
            page.put(Ink::Label, "Do");
            for line in remedy.lines() {
                page.pad_to(indent + 4);
                page.prose(Ink::Plain, indent + 4, line);
            }
        }
    }
}

/// A port or a name that led to no process is skipped under the number 0.
fn target_name(pid: i32) -> String {
    if pid == 0 { "a target".to_owned() } else { format!("pid {pid}") }
}

/// `1 thread`, `8 threads`.
fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
