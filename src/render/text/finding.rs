//! One finding: the verdict in a line, the few frames that matter, the chain of causes, since when
//! and until when, and what to do.

use super::{TextOptions, stack, thread, wait};
use crate::diagnose::{Cause, Finding, Severity};
use crate::render::duration::Duration;
use crate::render::page::Page;
use crate::render::style::Ink;
use crate::snapshot::{Certainty, Process};

/// Where the text of a labelled line begins.
const LABELLED: usize = 9;
/// Longer names are cut; the stack below has them whole.
const LONGEST_NAME: usize = 32;
const LONGEST_FUNCTION: usize = 32;
/// With less room the columns of a chain are put below each other.
const NARROW: usize = 72;
/// Deeper chains are not indented further.
const DEEPEST: usize = 5;

/// Writes the finding; `process` is the one it stands with, if it concerns only one.
pub(super) fn write(page: &mut Page, finding: &Finding, process: Option<&Process>, options: &TextOptions) {
    page.gap();
    verdict(page, finding);
    page.pad_to(2);
    page.prose(Ink::Strong, 2, &finding.summary);
    page.gap();
    if let Some(request) = &finding.request {
        page.pad_to(2);
        page.fact(Ink::Info, 2, &thread::request_line(request));
    }
    chain(page, finding, process, options);
    page.gap();
    ending(page, finding);
    labelled(page, "Do", finding.advice.iter());
    labelled(page, "Also", finding.evidence.iter());
    if !finding.related.is_empty() {
        labelled(page, "Hence", [&finding.related.join(", ")].into_iter());
    }
    page.gap();
}

fn verdict(page: &mut Page, finding: &Finding) {
    let marks = page.marks;
    let (ink, mark) = match finding.severity {
        Severity::Critical => (Ink::Critical, marks.critical),
        Severity::Warning => (Ink::Warning, marks.warning),
        Severity::Info => (Ink::Info, marks.info),
    };
    page.put(ink, mark);
    page.put(ink, " ");
    page.put(ink, &title(finding));
    if let Some(blocked_for) = finding.blocked_for {
        page.put(ink, &format!(" for {}", Duration(blocked_for)));
    }
    let certainty = match finding.certainty {
        Certainty::Proved => "proved",
        Certainty::Likely => "likely",
    };
    let rule = format!("{}, {certainty}", finding.rule);
    let start = page.prose_width().saturating_sub(page.measure(&rule));
    if start < page.column() + 2 && page.width().is_some() {
        page.end_line();
        page.pad_to(2);
    } else {
        page.pad_to(start.max(page.column() + 2));
    }
    page.put(Ink::Faint, &rule);
    page.end_line();
}

/// The rule's name as a headline. Most ids read well as they are.
fn title(finding: &Finding) -> String {
    let rule = finding.rule.as_str();
    if let Some(cycle) = finding.cycle.as_ref().filter(|cycle| cycle.len() > 1) {
        let what = if rule == "await-cycle" { "TASKS" } else { "THREADS" };
        let processes = cycle.iter().filter_map(|&at| finding.cause.get(at)?.pid).collect::<Vec<_>>();
        let across = processes.windows(2).any(|pair| pair[0] != pair[1]);
        return format!("DEADLOCK OF {} {}", cycle.len(), if across { "ACROSS PROCESSES" } else { what });
    }
    match rule {
        "lock-cycle" | "await-cycle" => "DEADLOCK".to_owned(),
        "lock-self" | "loop-self-deadlock" | "pool-self-wait" | "self-join" => "WAITS FOR ITSELF".to_owned(),
        "lock-orphan" | "fork-lock" => "LOCK WITHOUT A HOLDER".to_owned(),
        "loop-cpu" => "EVENT LOOP BUSY".to_owned(),
        "loop-flood" => "EVENT LOOP FLOODED".to_owned(),
        "gil-blocked" => "GIL HELD BY A SLEEPER".to_owned(),
        _ if rule.starts_with("loop-") => "EVENT LOOP BLOCKED".to_owned(),
        _ => rule.replace('-', " ").to_uppercase(),
    }
}

/// What one link of the chain has to show: on the left who, on the right where and on what.
struct Link {
    tree: &'static str,
    /// What stands in the tree's place on further lines.
    below: &'static str,
    indent: usize,
    name: String,
}

fn chain(page: &mut Page, finding: &Finding, process: Option<&Process>, options: &TextOptions) {
    let cycle = finding.cycle.as_deref().unwrap_or(&[]);
    let links: Vec<Link> =
        (0..finding.cause.len()).map(|at| link(page, finding, process, cycle, at)).collect();
    let name_end =
        |link: &Link| 2 + link.indent + 2 * usize::from(!link.tree.is_empty()) + page.measure(&link.name);
    let stacked = page.width().is_some_and(|width| width < NARROW);
    let where_ = match stacked {
        true => 6,
        false => links.iter().map(name_end).max().unwrap_or(0).min(LONGEST_NAME + 2 + 2 * DEEPEST) + 2,
    };
    let functions = finding.cause.iter().filter_map(|cause| cause.frame.as_ref());
    let functions = functions.map(|frame| page.measure(stack::function(frame)));
    let file = where_ + functions.filter(|&width| width <= LONGEST_FUNCTION).max().unwrap_or(0) + 2;

    for (cause, link) in finding.cause.iter().zip(&links) {
        let mut left = Left { link, alike: alike(cause), lines: 0, where_ };
        left.start(page);
        if stacked {
            page.end_line();
        }
        let mut written = stacked;
        if let Some(frame) = &cause.frame {
            if stacked {
                left.start(page);
            }
            let (function, place) =
                if frame.user { (Ink::User, Ink::UserPlace) } else { (Ink::Plain, Ink::Faint) };
            page.put(function, stack::function(frame));
            page.pad_to(if stacked { page.column() + 2 } else { file.max(page.column() + 2) });
            let line =
                frame.line.filter(|_| options.lineno).map(|line| format!(":{line}")).unwrap_or_default();
            let path = stack::file(frame, process, options);
            let full = page.column() + page.measure(&path) + line.len();
            if full > page.room() && page.column() > where_ + 2 {
                page.end_line();
                left.start(page);
                page.pad_to(where_ + 2);
            }
            let room = page.room().saturating_sub(page.column() + line.len());
            page.put_path(place, &path, room);
            page.put(place, &line);
            page.end_line();
            written = true;
            if let Some(source) = frame.source.as_deref().filter(|source| !source.is_empty()) {
                left.start(page);
                page.pad_to(where_ + 2);
                let room = page.room().saturating_sub(page.column());
                page.put_cut(Ink::Plain, source, room);
                page.end_line();
            }
        }
        if let Some(note) = note(page, cause) {
            if written {
                left.start(page);
                page.pad_to(where_ + if cause.frame.is_some() { 2 } else { 0 });
            }
            page.fact(Ink::Wait, where_ + 2, &note);
            written = true;
        }
        if !written {
            page.end_line();
        }
        if left.alike.is_some() {
            left.start(page);
            page.end_line();
        }
    }
    if let Some(first) = cycle.first().and_then(|&at| links.get(at)).filter(|_| cycle.len() > 1) {
        let (last, arrow) = (page.marks.cycle_last, page.marks.arrow);
        page.pad_to(2);
        page.put(Ink::Critical, last);
        page.put(Ink::Critical, &format!(" {arrow} {}", first.name));
        page.end_line();
    }
}

/// The left side of a link's lines: its name, then how many are alike, then only the tree.
struct Left<'a> {
    link: &'a Link,
    alike: Option<String>,
    lines: usize,
    where_: usize,
}

impl Left<'_> {
    fn start(&mut self, page: &mut Page) {
        let tree = if self.lines == 0 { self.link.tree } else { self.link.below };
        page.pad_to(2 + self.link.indent);
        page.put(if self.link.indent == 0 { Ink::Critical } else { Ink::Faint }, tree);
        if self.lines == 0 {
            page.put_cut(Ink::Strong, &self.link.name, LONGEST_NAME);
        } else if let Some(alike) = self.alike.take() {
            page.put(Ink::Faint, &alike);
        }
        self.lines += 1;
        // What is too wide for its column takes the line for itself.
        if page.column() + 2 > self.where_ && self.lines > 1 && page.column() > 2 + self.link.indent + 2 {
            page.end_line();
        }
        page.pad_to(self.where_);
    }
}

fn link(page: &Page, finding: &Finding, process: Option<&Process>, cycle: &[usize], at: usize) -> Link {
    let marks = page.marks;
    let cause = &finding.cause[at];
    let name = name(cause, process);
    if cycle.len() > 1 && cycle.contains(&at) {
        let tree = if cycle.first() == Some(&at) { marks.cycle_first } else { marks.cycle_next };
        return Link { tree, below: marks.cycle_side, indent: 0, name };
    }
    match at {
        0 => Link { tree: "", below: "", indent: 0, name },
        _ => Link { tree: marks.branch, below: "  ", indent: 2 * (at - 1).min(DEEPEST), name },
    }
}

/// The thread, the task or the process; with the pid where that is not the process at hand.
fn name(cause: &Cause, process: Option<&Process>) -> String {
    let here = process.is_some_and(|process| cause.pid == Some(process.pid));
    let who = match (&cause.thread, cause.task, cause.tid) {
        (_, Some(task), _) => Some(format!("task {:#x}", task.0)),
        (Some(name), None, _) => Some(name.clone()),
        (None, None, Some(tid)) => Some(format!("thread {tid}")),
        (None, None, None) => None,
    };
    match (who, cause.pid) {
        (Some(who), Some(pid)) if !here => format!("{who} (pid {pid})"),
        (Some(who), _) => who,
        (None, Some(pid)) => format!("pid {pid}"),
        (None, None) => "outside".to_owned(),
    }
}

fn alike(cause: &Cause) -> Option<String> {
    (cause.alike > 0).then(|| format!("(and {} more like it)", cause.alike))
}

fn note(page: &Page, cause: &Cause) -> Option<String> {
    match &cause.wait {
        _ if !cause.summary.is_empty() => Some(cause.summary.clone()),
        Some(wait) => Some(wait::note(wait, page.marks.arrow)),
        None => None,
    }
}

/// Until when: by itself, or when who does what.
fn ending(page: &mut Page, finding: &Finding) {
    let waits = || finding.cause.iter().filter_map(|cause| cause.wait.as_ref());
    // Any link that gives up ends the chain.
    let earliest = waits().filter_map(|wait| wait.ends_in).min_by(f64::total_cmp);
    let text = if let Some(ends_in) = earliest {
        format!("by itself, in {} at the latest", Duration(ends_in))
    } else if finding.cycle.is_some() {
        "never: each waits for the next".to_owned()
    } else {
        let Some(last) = waits().next_back() else { return };
        let endless = last.deadline.as_deref() == Some("none");
        match (wait::what_ends_it(last), endless) {
            (Some(ends), true) => format!("when {ends}; no deadline is set"),
            (Some(ends), false) => format!("when {ends}"),
            (None, true) => "no deadline is set".to_owned(),
            (None, false) => return,
        }
    };
    labelled(page, "Ends", [&text].into_iter());
}

fn labelled<'a>(page: &mut Page, label: &str, lines: impl Iterator<Item = &'a String>) {
    for (at, line) in lines.enumerate() {
        page.pad_to(2);
        page.put(Ink::Label, if at == 0 { label } else { "" });
        page.pad_to(LABELLED);
        page.prose(Ink::Plain, LABELLED, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_headlines() {
        let headline = |rule: &str| {
            title(&Finding {
                rule: rule.into(),
                severity: Severity::Critical,
                summary: String::new(),
                pids: vec![],
                pid: None,
                tid: None,
                task: None,
                frame: None,
                user_frame: None,
                blocked_for: None,
                certainty: Certainty::Proved,
                request: None,
                cause: vec![],
                cycle: None,
                evidence: vec![],
                advice: None,
                related: vec![],
            })
        };
        assert_eq!(headline("loop-executor-shutdown"), "EVENT LOOP BLOCKED");
        assert_eq!(headline("loop-cpu"), "EVENT LOOP BUSY");
        assert_eq!(headline("queue-full"), "QUEUE FULL");
        assert_eq!(headline("traffic-jam"), "TRAFFIC JAM");
    }
}
