//! One finding: the verdict in a line, the few frames that matter, the chain of causes, since when
//! and until when, and what to do.

use super::{TextOptions, stack, thread, wait};
use crate::diagnose::{Cause, Finding, Severity, leaves_it_open};
use crate::duration::Duration;
use crate::render::page::Page;
use crate::render::style::Ink;
use crate::snapshot::{Certainty, Frame, Precision, Process, Wait};

/// Where the text of a labelled line begins.
const LABELLED: usize = 9;
/// Longer names are cut; the stack below has them whole.
const LONGEST_NAME: usize = 32;
const LONGEST_FUNCTION: usize = 32;
/// With less room on the right the sides of a chain are put below each other.
const LEAST_RIGHT: usize = 44;
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

/// ` for 47 s`; empty where that is not known.
pub(super) fn lasts(finding: &Finding) -> String {
    let Some(seconds) = finding.blocked_for else { return String::new() };
    let least = if finding.blocked_for_is == Some(Precision::AtLeast) { "at least " } else { "" };
    format!(" for {least}{}", Duration(seconds))
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
    page.put(ink, &lasts(finding));
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
        let links = || cycle.iter().filter_map(|&at| finding.cause.get(at));
        let mut pids = links().filter_map(|cause| cause.pid);
        let pid = pids.next();
        let what = if pids.any(|other| Some(other) != pid) {
            "ACROSS PROCESSES"
        } else if links().all(|cause| cause.task.is_some()) {
            "TASKS"
        } else if links().any(|cause| cause.task.is_some()) {
            "THREADS AND TASKS"
        } else {
            "THREADS"
        };
        return format!("DEADLOCK OF {} {what}", cycle.len());
    }
    match rule {
        "lock-cycle" | "await-cycle" => "DEADLOCK".to_owned(),
        "lock-self" | "loop-self-deadlock" | "pool-self-wait" | "self-join" => "WAITS FOR ITSELF".to_owned(),
        "lock-orphan" | "fork-lock" => "LOCK WITHOUT A HOLDER".to_owned(),
        "loop-cpu" => "EVENT LOOP BUSY".to_owned(),
        "loop-flood" => "EVENT LOOP FLOODED".to_owned(),
        "loop-not-woken" => "EVENT LOOP NOT WOKEN".to_owned(),
        "gil-blocked" => "GIL HELD BY A SLEEPER".to_owned(),
        _ if rule.starts_with("loop-") => "EVENT LOOP BLOCKED".to_owned(),
        _ => rule.replace('-', " ").to_uppercase(),
    }
}

/// A piece of text and the column where it begins.
type Piece = (usize, Ink, String);

/// One link of the chain: on the left who, on the right where and on what.
struct Link {
    indent: usize,
    tree: &'static str,
    /// What stands in the tree's place on further lines.
    below: &'static str,
    /// The name, and how many are alike.
    left: Vec<(Ink, String)>,
}

impl Link {
    fn start(&self) -> usize {
        2 + self.indent
    }

    fn text_start(&self, page: &Page) -> usize {
        self.start() + page.measure(self.tree)
    }

    fn end(&self, page: &Page) -> usize {
        self.text_start(page) + self.left.iter().map(|(_, text)| page.measure(text)).max().unwrap_or(0)
    }

    /// Writes the left and the right side next to each other or, stacked, below each other.
    fn write(&self, page: &mut Page, right: &[Vec<Piece>], stacked: bool) {
        let right_from = if stacked { self.left.len() } else { 0 };
        for at in 0..self.left.len().max(right_from + right.len()) {
            page.pad_to(self.start());
            let is_cycle = self.below.trim_end() != "";
            let ink = if is_cycle { Ink::Critical } else { Ink::Faint };
            page.put(ink, if at == 0 { self.tree } else { self.below.trim_end() });
            if let Some((ink, text)) = self.left.get(at) {
                page.pad_to(self.text_start(page));
                page.put(*ink, text);
            }
            for (column, ink, text) in
                at.checked_sub(right_from).and_then(|at| right.get(at)).into_iter().flatten()
            {
                page.pad_to(*column);
                page.put(*ink, text);
            }
            page.end_line();
        }
    }
}

fn chain(page: &mut Page, finding: &Finding, process: Option<&Process>, options: &TextOptions) {
    let cycle = finding.cycle.as_deref().filter(|cycle| cycle.len() > 1).unwrap_or(&[]);
    let links: Vec<Link> =
        (0..finding.cause.len()).map(|at| link(page, finding, process, cycle, at)).collect();
    let beside = links.iter().map(|link| link.end(page) + 2).max().unwrap_or(0);
    let stacked = page.room() < beside.saturating_add(LEAST_RIGHT);
    let start = if stacked { 6 } else { beside };
    let frames = finding.cause.iter().filter_map(|cause| cause.frame.as_ref());
    let widths = frames.map(|frame| page.measure(stack::function(frame)));
    let widest = widths.filter(|&width| width <= LONGEST_FUNCTION).max().unwrap_or(0);

    for (at, (cause, link)) in finding.cause.iter().zip(&links).enumerate() {
        let mut right = Vec::new();
        if let Some(frame) = &cause.frame {
            place(page, frame, process, (start, start + widest + 2), options, &mut right);
        }
        // That the first waits for the second is what the summary says.
        let said = at == 0 && links.len() > 1 && cycle.is_empty();
        let note = match &cause.wait {
            _ if !cause.summary.is_empty() => Some(cause.summary.clone()),
            Some(wait) if !said => Some(wait::in_chain(wait, page.marks.arrow)),
            _ => None,
        };
        let column = if cause.frame.is_some() { start + 2 } else { start };
        for line in note.iter().flat_map(|note| page.wrap(note, column)) {
            right.push(vec![(column, Ink::Wait, line)]);
        }
        link.write(page, &right, stacked);
        if cycle.contains(&at) {
            let side = page.marks.cycle_side.trim_end();
            page.pad_to(2);
            page.put(Ink::Critical, side);
            page.end_line();
        }
    }
    if let Some(first) = cycle.first().and_then(|&at| finding.cause.get(at)) {
        let last = page.marks.cycle_last;
        page.pad_to(2);
        page.put(Ink::Critical, last);
        page.put(Ink::Faint, " back to ");
        page.put(Ink::Strong, &name(first, process));
        page.end_line();
    }
}

/// The frame and its source line, the file below the function where there is no room beside it.
fn place(
    page: &Page,
    frame: &Frame,
    process: Option<&Process>,
    (start, file_start): (usize, usize),
    options: &TextOptions,
    lines: &mut Vec<Vec<Piece>>,
) {
    let (ink, place) = if frame.user { (Ink::User, Ink::UserPlace) } else { (Ink::Plain, Ink::Faint) };
    let function = stack::function(frame);
    let number = frame.line.filter(|_| options.lineno).map(|line| format!(":{line}")).unwrap_or_default();
    let file = stack::file(frame, process, options);
    let mut column = file_start.max(start + page.measure(function) + 2);
    let mut line = vec![(start, ink, function.to_owned())];
    if column + page.measure(&file) + number.len() > page.room() {
        lines.push(std::mem::take(&mut line));
        column = start + 2;
    }
    let room = page.room().saturating_sub(column + number.len());
    line.push((column, place, page.shorten_path(&file, room) + &number));
    lines.push(line);
    if let Some(source) = frame.source.as_deref().filter(|source| !source.is_empty()) {
        let room = page.room().saturating_sub(start + 2);
        lines.push(vec![(start + 2, Ink::Plain, page.shorten(source, room))]);
    }
}

fn link(page: &Page, finding: &Finding, process: Option<&Process>, cycle: &[usize], at: usize) -> Link {
    let marks = page.marks;
    let cause = &finding.cause[at];
    let (indent, tree, below) = match at {
        _ if cycle.first() == Some(&at) => (0, marks.cycle_first, marks.cycle_side),
        _ if cycle.contains(&at) => (0, marks.cycle_next, marks.cycle_side),
        0 => (0, "", ""),
        _ => (2 * (at - 1).min(DEEPEST), marks.branch, ""),
    };
    let mut left = vec![(Ink::Strong, page.shorten(&name(cause, process), LONGEST_NAME))];
    if cause.alike > 0 {
        left.push((Ink::Faint, format!("(and {} more like it)", cause.alike)));
    }
    Link { indent, tree, below, left }
}

/// The thread, the task or the process; with the pid where that is not the process at hand.
fn name(cause: &Cause, process: Option<&Process>) -> String {
    let here = process.is_some_and(|process| cause.pid == Some(process.pid));
    let who = match (&cause.thread, cause.task, cause.tid) {
        (_, Some(task), _) => {
            let name = cause.task_name.as_ref();
            Some(name.map_or_else(|| format!("task {:#x}", task.0), |name| format!("task {name}")))
        }
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

/// Until when: by itself, or when who does what.
fn ending(page: &mut Page, finding: &Finding) {
    // Who has begun to sleep anew, or to poll, since the wait for it began, frees nobody by the end of that; nor does who
    // begins anew himself.
    let begins_anew = |at: usize, wait: &Wait| {
        let lasts = wait.blocked_for.zip(wait.ends_in).map(|(since, left)| since + left + 1.0);
        let is_over = || lasts.is_some_and(|lasts| finding.blocked_for.is_some_and(|b| b > lasts));
        let goes_round = ["goes_on", "again"].iter().any(|key| wait.detail[*key] == true);
        wait.is_retried() || at > 0 && (wait.kind == "poll" || goes_round || is_over())
    };
    // When another process has done what it does now, it may do what is waited for, or not.
    let known = finding
        .cause
        .windows(2)
        .position(|pair| pair[0].wait.as_ref().is_some_and(leaves_it_open) && pair[0].pid != pair[1].pid);
    let known = known.map_or(finding.cause.len(), |at| at + 1);
    let all = || finding.cause[..known].iter().enumerate();
    let waits = || all().filter_map(|(at, c)| c.wait.as_ref().filter(|wait| !begins_anew(at, wait)));
    // Any link that gives up ends the chain.
    let earliest = waits().filter_map(|wait| wait.ends_in).min_by(f64::total_cmp);
    // Whoever has a deadline that counts is in no cycle.
    let text = if finding.cycle.as_ref().is_some_and(|cycle| cycle.len() == 1) {
        "never: it waits for itself".to_owned()
    } else if finding.cycle.is_some() {
        "never: each waits for the next".to_owned()
    } else if let Some(ends_in) = earliest.filter(|ends_in| *ends_in > 0.0) {
        format!("by itself, in {} at the latest", Duration(ends_in))
    } else if earliest.is_some() {
        "its deadline has passed, and it goes on".to_owned()
    } else if finding.rule == "loop-not-woken" {
        "when something else wakes its event loop".to_owned()
    } else if finding.rule == "server-open" {
        "when the last of its connections has gone".to_owned()
    } else {
        // Of items that nobody has called done, no further item is the end.
        let deserted = waits().next_back().is_some_and(|wait| wait.detail["deserted"] == true);
        let first = finding.rule == "task-done-missing" && !deserted;
        let last = if first { waits().next() } else { waits().next_back() };
        let Some(last) = last else { return };
        let endless = last.deadline.as_deref() == Some("none");
        let says = |key: &str| last.detail.get(key).and_then(serde_json::Value::as_bool) == Some(true);
        let none_left = last.detail["setters"].as_array().is_some_and(Vec::is_empty);
        let hopeless = none_left || ["nobody", "orphan", "owner_gone", "deserted"].into_iter().any(says);
        match (wait::what_ends_it(last), endless) {
            _ if hopeless && last.certainty == Certainty::Proved => {
                "never: nobody is left who could".to_owned()
            }
            // What was searched for, and not found.
            _ if hopeless => "never, as it seems: nobody is left who could".to_owned(),
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
                blocked_for_is: None,
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
