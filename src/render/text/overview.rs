//! A tree of processes at a glance: one line each, with what is to be said of it.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{TextOptions, count, crowd, finding, process};
use crate::diagnose::{Finding, Severity, ranges};
use crate::duration::Duration;
use crate::render::page::Page;
use crate::render::report::{Report, ReportProcess};
use crate::render::style::Ink;
use crate::snapshot::{Activity, Process};

/// More lines than this are no glance.
const MOST: usize = 40;
/// Places, where there are many processes.
const PLACES: usize = 12;
/// Columns for a role or a command.
const NAME: usize = 32;

pub(super) fn write(page: &mut Page, report: &Report, options: &TextOptions) {
    let asked = report.processes.iter().filter(|p| !p.process.followed).count();
    let rows = crowd::crowds(&report.processes, options.group);
    if asked < 2 {
        return;
    }
    if rows.len() > MOST {
        by_place(page, report);
        return;
    }
    let names: Vec<String> = rows.iter().map(|(p, _)| page.shorten(&name(&p.process), NAME)).collect();
    let pid = |p: &ReportProcess| p.process.pid.to_string().len();
    let wide_pid = rows.iter().map(|(p, _)| pid(p)).max().unwrap_or(0);
    let wide_name = names.iter().map(|name| page.measure(name)).max().unwrap_or(0);
    page.put(Ink::Strong, &count(report.processes.len(), "process", "processes"));
    page.end_line();
    for ((reported, others), name) in rows.iter().zip(&names) {
        let target = &reported.process;
        let worst = worst(report, reported);
        let (mark, ink) = mark(page, worst.map(|finding| finding.severity));
        page.pad_to(2);
        page.put(ink, mark);
        let name_at = 5 + wide_pid;
        page.pad_to(name_at - 1 - pid(reported));
        page.put(Ink::Strong, &target.pid.to_string());
        page.pad_to(name_at + 1);
        page.put(Ink::Plain, name);
        let verdict_at = name_at + 3 + wide_name;
        page.pad_to(verdict_at);
        let mut text = verdict(target, worst);
        if !others.is_empty() {
            text += &format!(" (and {} more like it)", others.len());
        }
        page.prose(if worst.is_some() { ink } else { Ink::Plain }, verdict_at, &text);
    }
    page.gap();
}

/// So many processes that each has a line is no glance: a line for each place where some of them stand, the place
/// of most of them first.
fn by_place(page: &mut Page, report: &Report) {
    let mut groups: Vec<(Option<Severity>, String, Vec<i32>)> = Vec::new();
    let mut known: FxHashMap<(String, String), usize> = FxHashMap::default();
    for reported in report.processes.iter().filter(|p| !p.process.followed) {
        let target = &reported.process;
        let worst = worst(report, reported);
        let what = worst.map_or_else(|| state(target).to_owned(), |finding| finding.rule.clone());
        let text = format!("{what}{}", place(target));
        let at = *known.entry((name(target), text.clone())).or_insert(groups.len());
        if at == groups.len() {
            groups.push((worst.map(|f| f.severity), text, Vec::new()));
        }
        groups[at].2.push(target.pid);
        groups[at].0 = groups[at].0.max(worst.map(|f| f.severity));
    }
    groups.sort_by_key(|(severity, _, pids)| Reverse((*severity, pids.len())));
    page.put(Ink::Strong, &count(report.processes.len(), "process", "processes"));
    page.end_line();
    let left: usize = groups.iter().skip(PLACES).map(|(.., pids)| pids.len()).sum();
    for (severity, text, pids) in groups.iter().take(PLACES) {
        let (mark, ink) = mark(page, *severity);
        page.pad_to(2);
        page.put(ink, mark);
        page.pad_to(4);
        page.put(Ink::Strong, &format!("{:>4}", pids.len()));
        page.pad_to(9);
        let whose = page.shorten(&format!("pid {}", ranges(pids)), NAME);
        page.prose(ink, 11, &format!("{text} ({whose})"));
    }
    if left > 0 {
        page.pad_to(4);
        page.prose(Ink::Plain, 11, &format!("{left:>4} elsewhere"));
    }
    page.gap();
}

fn mark(page: &Page, severity: Option<Severity>) -> (&'static str, Ink) {
    match severity {
        Some(Severity::Critical) => (page.marks.critical, Ink::Critical),
        Some(Severity::Warning) => (page.marks.warning, Ink::Warning),
        _ => (" ", Ink::Plain),
    }
}

/// ` in fetch (job.py:4)`: where the main thread stands.
fn place(target: &Process) -> String {
    target
        .main_frame()
        .map(|f| format!(" in {} ({})", f.function, crate::diagnose::advice::place(f)))
        .unwrap_or_default()
}

/// What is worst of all that was found about a process, here or between several.
fn worst<'a>(report: &'a Report, reported: &'a ReportProcess) -> Option<&'a Finding> {
    let pid = reported.process.pid;
    // A chain ends where the culprit is, which need not suffer itself.
    let suffers = |f: &&Finding| f.pid == Some(pid) || f.pid.is_none() && f.pids.contains(&pid);
    let all = reported.findings.iter().chain(report.findings.iter().filter(suffers));
    all.filter(|finding| finding.severity > Severity::Info).max_by_key(|finding| finding.severity)
}

fn name(target: &Process) -> String {
    match &target.server {
        Some(server) => match &server.worker {
            Some(worker) => format!("{} {worker} {}", server.kind, server.role),
            None => format!("{} {}", server.kind, server.role),
        },
        // Which interpreter it is says less than its program.
        None => match target.command.split_first() {
            Some((program, rest)) if program.starts_with('/') && !rest.is_empty() => {
                let program = program.rsplit('/').next().unwrap_or(program);
                process::command_line(&[&[program.to_owned()], rest].concat())
            }
            _ => process::command_line(&target.command),
        },
    }
}

fn verdict(target: &Process, worst: Option<&Finding>) -> String {
    if let Some(finding) = worst {
        let since = finding::lasts(finding);
        let serving = finding.request.as_ref().map(|r| format!(", serving {}", r.words()));
        return format!("{}{since}{}", finding.rule, serving.unwrap_or_default());
    }
    if target.python.is_none() {
        return state(target).to_owned();
    }
    let of_tasks = target.tasks.iter().filter_map(|task| task.request.as_ref());
    let mut requests = target.threads.iter().filter_map(|t| t.request.as_ref()).chain(of_tasks);
    if let Some(first) = requests.next() {
        let age = first.age.map(|age| format!(" for {}", Duration(age))).unwrap_or_default();
        let more = requests.count();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return format!("serves {}{age}{more}", first.words());
    }
    let since = target.main_thread().and_then(|t| t.os.as_ref()?.blocked_for);
    let since = since.map(|s| format!(" {}", Duration(s))).unwrap_or_default();
    match state(target) {
        "running" => format!("running{}", place(target)),
        "waits" => format!("waits{since}{}", place(target)),
        other => format!("{other}{since}"),
    }
}

fn state(target: &Process) -> &'static str {
    if target.python.is_none() {
        return "no Python, or not read";
    }
    if target.threads.iter().any(|t| t.activity == Activity::Running && !t.frames.is_empty()) {
        return "running";
    }
    match target.main_thread().map(|t| t.activity) {
        Some(Activity::Waiting) => "waits",
        _ => "idle",
    }
}
