//! Only what is wrong, for `check`: the findings of a process, or one line that there are none.

use super::{TextOptions, count, finding, process};
use crate::diagnose::Severity;
use crate::render::page::Page;
use crate::render::report::ReportProcess;
use crate::render::style::Ink;
use crate::snapshot::{Activity, Process};

pub(super) fn write(page: &mut Page, reported: &ReportProcess, said: bool, options: &TextOptions) {
    let target = &reported.process;
    if reported.findings.iter().any(|finding| finding.severity > Severity::Info) {
        page.gap();
        process::header(page, target);
        for finding in &reported.findings {
            finding::write(page, finding, Some(target), options);
        }
        return;
    }
    page.put(Ink::Strong, &format!("pid {}", target.pid));
    let separator = page.marks.separator;
    page.put(Ink::Faint, separator);
    match &target.python {
        Some(_) if said => {
            page.put(Ink::Warning, "see above: ");
            page.put(Ink::Plain, &about(target));
        }
        Some(_) => {
            page.put(Ink::Info, "nothing found: ");
            page.put(Ink::Plain, &about(target));
        }
        None => page.put(Ink::Warning, "not read"),
    }
    if !target.command.is_empty() {
        page.put(Ink::Faint, separator);
        let most = page.room().saturating_sub(page.column());
        let command = page.shorten(&process::command_line(&target.command), most.max(24));
        page.fact(Ink::Faint, 2, &command);
    } else {
        page.end_line();
    }
}

/// `8 threads, 1 runs, event loop polls`.
fn about(target: &Process) -> String {
    let python = || target.threads.iter().filter(|t| t.interpreter.is_some());
    let mut about = count(python().count(), "thread", "threads");
    let of = |activity: Activity| python().filter(|t| t.activity == activity).count();
    for (activity, word) in
        [(Activity::Running, "running"), (Activity::Idle, "idle"), (Activity::Waiting, "waiting")]
    {
        if of(activity) > 0 {
            about += &format!(", {} {word}", of(activity));
        }
    }
    if python().any(|t| t.event_loop.as_ref().is_some_and(|l| l.state == "polling")) {
        about += ", event loop polls";
    }
    about
}
