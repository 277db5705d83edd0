//! One thread, or several that are alike: a line that says what it does and for how long, lines
//! for what is special about it, then its stack.

use super::group::{Group, more_like_it};
use super::{TextOptions, stack, wait};
use crate::duration::Duration;
use crate::render::page::Page;
use crate::render::style::Ink;
use crate::snapshot::{
    Activity, Certainty, EventLoop, Lock, Precision, Process, Read, Request, Thread, ThreadOs, Wait,
};

use std::collections::HashSet;

/// Threads with longer names do not push the others' states to the right.
const LONGEST_ALIGNED: usize = 46;
/// Lines that belong to the header.
const INDENT: usize = 2;
/// What threads that are alike wait for.
const MOST_EXAMPLES: usize = 6;

/// What the header lines of a process have in common.
pub(super) struct Table {
    /// Where the states begin; 0 if they are not aligned.
    column: usize,
}

impl Table {
    pub(super) fn new(page: &Page, process: &Process, groups: &[Group<'_>]) -> Table {
        // Lines of bare facts are a table anywhere.
        let bare = process.threads.iter().all(|thread| thread.frames.is_empty());
        if !page.is_wide() && !bare {
            return Table { column: 0 };
        }
        let widths = groups.iter().map(|group| page.measure(&title(group.first)));
        let widest = widths.filter(|&width| width <= LONGEST_ALIGNED).max();
        Table { column: widest.map_or(0, |width| width + 2) }
    }
}

pub(super) fn write(
    page: &mut Page,
    process: &Process,
    group: &Group<'_>,
    table: &Table,
    options: &TextOptions,
) {
    let thread = group.first;
    header(page, process, thread, table);
    if !group.others.is_empty() {
        let text = more_like_it(group, page.marks.ellipsis);
        below(page, Ink::Strong, &text);
    }
    if let Some(request) = &thread.request {
        below(page, Ink::Info, &format!("serves {}", request_line(request)));
    }
    if !thread.holds.is_empty() {
        let locks = thread.holds.iter().map(lock).collect::<Vec<_>>().join(", ");
        below(page, Ink::Wait, &format!("holds {locks}"));
    }

    let notes = wait_notes(page, group);
    let at = thread.waits_on.as_ref().and_then(|wait| wait.frame);
    let on_frame = at.filter(|&at| stack::shows(&thread.frames, at, options));
    if on_frame.is_none() {
        for note in &notes {
            below(page, Ink::Wait, note);
        }
    }
    stack::write(page, process, &thread.frames, on_frame.map(|at| (at, notes.as_slice())), options);
    if !thread.frames.is_empty() && !thread.complete {
        let text = format!("{} the stack goes on, but could not be read", page.marks.ellipsis);
        page.pad_to(4);
        page.fact(Ink::Warning, 4, &text);
    }
    for problem in &thread.problems {
        let text = format!("{} {problem}", page.marks.warning);
        below(page, Ink::Warning, &text);
    }
}

/// A line that belongs to the header, left of the frames.
fn below(page: &mut Page, ink: Ink, text: &str) {
    page.pad_to(INDENT);
    page.fact(ink, INDENT + 2, text);
}

/// What the thread waits for and, where that differs, what those that are alike wait for.
fn wait_notes(page: &Page, group: &Group<'_>) -> Vec<String> {
    let arrow = page.marks.arrow;
    let Some(wait) = &group.first.waits_on else { return Vec::new() };
    let timeless =
        |wait: &Wait| wait::note(&Wait { blocked_for: None, ends_in: None, ..wait.clone() }, arrow);
    let mut notes = vec![wait::note(wait, arrow)];
    let mut known = HashSet::from([timeless(wait)]);
    let mut others = Vec::new();
    for thread in &group.others {
        if let Some(wait) = thread.waits_on.as_ref().filter(|wait| known.insert(timeless(wait))) {
            others.push(format!("{}: {}", short_title(thread), wait::note(wait, arrow)));
        }
    }
    // On a terminal examples do.
    let shown = if page.width().is_some() { MOST_EXAMPLES } else { usize::MAX };
    let more = others.len().saturating_sub(shown);
    notes.extend(others.into_iter().take(shown));
    if more > 0 {
        notes.push(format!("and {more} more"));
    }
    notes
}

fn short_title(thread: &Thread) -> String {
    match (&thread.name, thread.tid) {
        (Some(name), _) => name.clone(),
        (None, Some(tid)) => tid.to_string(),
        (None, None) => "another".to_owned(),
    }
}

/// `Thread 4242 "MainThread"`.
pub(super) fn title(thread: &Thread) -> String {
    let name =
        thread.name.as_ref().map(|name| format!(" \"{}\"", name.replace('"', "\\\""))).unwrap_or_default();
    match (thread.tid, thread.ident) {
        (Some(tid), _) => format!("Thread {tid}{name}"),
        (None, Some(ident)) => format!("Thread ident {ident:#x}{name}"),
        (None, None) => format!("Thread ?{name}"),
    }
}

fn header(page: &mut Page, process: &Process, thread: &Thread, table: &Table) {
    let title = title(thread);
    let ink = if thread.activity == Activity::Idle { Ink::Plain } else { Ink::Strong };
    page.put(ink, &title);
    page.pad_to(table.column.max(page.column() + 2));
    let indent = if table.column > 0 { table.column } else { INDENT };
    page.items(indent, &facts(process, thread));
}

fn facts(process: &Process, thread: &Thread) -> Vec<(Ink, String)> {
    let mut items = vec![state(process, thread)];
    let interpreter = process.interpreters.iter().find(|one| Some(one.id) == thread.interpreter);
    if let Some(event_loop) = &thread.event_loop {
        let ink = if event_loop.state == "blocked" { Ink::Warning } else { Ink::Plain };
        items.push((ink, loop_line(event_loop)));
    }
    if thread.holds_gil == Some(true) {
        // Whoever holds it without running keeps everybody from running.
        let ink = if thread.activity == Activity::Running { Ink::Plain } else { Ink::Warning };
        items.push((ink, "holds the GIL".to_owned()));
        if interpreter.is_some_and(|one| one.gc_collecting == Some(true)) {
            items.push((Ink::Warning, "collects garbage".to_owned()));
        }
    }
    if thread.main && thread.name.as_deref() != Some("MainThread") {
        items.push((Ink::Plain, "main thread".to_owned()));
    }
    if thread.daemon == Some(true) {
        items.push((Ink::Faint, "daemon".to_owned()));
    }
    if let Some(id) = thread.interpreter.filter(|_| process.interpreters.len() > 1) {
        items.push((Ink::Faint, format!("interpreter {id}")));
    }
    if thread.frames.is_empty() && thread.interpreter.is_some() && thread.problems.is_empty() {
        items.push((Ink::Faint, "runs no Python now".to_owned()));
    }
    match thread.read {
        _ if thread.frames.is_empty() => {}
        Read::Frozen | Read::Seat | Read::Paused => {}
        Read::Moving => items.push((Ink::Faint, "on the move: read twice the same while it ran".to_owned())),
        Read::Torn => items
            .push((Ink::Warning, "torn: it ran while it was read, frames may not fit together".to_owned())),
    }
    items
}

/// What it does, for how long, and where.
fn state(process: &Process, thread: &Thread) -> (Ink, String) {
    let nothing = ThreadOs::default();
    let os = thread.os.as_ref().unwrap_or(&nothing);
    match os.state {
        Some('T') => return (Ink::Warning, format!("stopped{}", since(os))),
        Some('t') => return (Ink::Warning, format!("stopped by a tracer{}", since(os))),
        Some('Z' | 'X') => return (Ink::Faint, "has ended".to_owned()),
        _ => {}
    }
    let in_disk = if os.state == Some('D') { ", uninterruptible" } else { "" };
    match thread.activity {
        Activity::Running => {
            let spent = os.cpu_time.map(|spent| format!(", {} of CPU so far", Duration(spent)));
            (Ink::Good, format!("running{}", spent.unwrap_or_default()))
        }
        Activity::Waiting => (Ink::Wait, format!("blocked{}{}{in_disk}", since(os), place(os))),
        Activity::WaitingForGil => {
            let interpreters = process.interpreters.iter();
            let gil = interpreters
                .filter(|one| Some(one.id) == thread.interpreter)
                .find_map(|one| one.gil.as_ref());
            let holder = gil.and_then(|gil| gil.holder).filter(|&holder| Some(holder) != thread.tid);
            let holder = holder.map(|tid| format!(", held by {tid}")).unwrap_or_default();
            // Since when is not known: it asks again every few milliseconds.
            (Ink::Wait, format!("waits for the GIL{holder}"))
        }
        Activity::Idle => (Ink::Faint, format!("idle{}{}", since(os), place(os))),
        Activity::Unknown => match os.state {
            Some('R') => (Ink::Good, "running".to_owned()),
            Some('S') => (Ink::Plain, format!("asleep{}{}", since(os), place(os))),
            Some('D') => (Ink::Wait, format!("blocked{}{}{in_disk}", since(os), place(os))),
            Some('I') => (Ink::Faint, "idle kernel thread".to_owned()),
            Some(other) => (Ink::Plain, format!("state {other}{}", since(os))),
            None => (Ink::Faint, "state not known".to_owned()),
        },
    }
}

fn since(os: &ThreadOs) -> String {
    let Some(blocked_for) = os.blocked_for else { return String::new() };
    let least = if os.blocked_for_is == Some(Precision::AtLeast) { "at least " } else { "" };
    format!(" {least}{}", Duration(blocked_for))
}

/// ` in futex`, ` in recvfrom(fd=17)`, and the kernel's function where the call is not known.
fn place(os: &ThreadOs) -> String {
    if let Some(syscall) = &os.syscall {
        let fd = syscall.args.iter().find(|arg| arg.starts_with("fd="));
        return match fd {
            Some(fd) => format!(" in {}({fd})", syscall.name),
            None => format!(" in {}", syscall.name),
        };
    }
    match os.wchan.as_deref() {
        None | Some("" | "0") => String::new(),
        Some(wchan) => format!(" in the kernel's {wchan}"),
    }
}

/// `event loop (asyncio) blocked 47 s, 12 callbacks ready, 3 timers overdue`.
pub(super) fn loop_line(event_loop: &EventLoop) -> String {
    let mut text = format!("event loop ({}) {}", event_loop.kind, event_loop.state);
    if let Some(age) = event_loop.iteration_age.filter(|_| event_loop.state != "polling") {
        text += &format!(" {}", Duration(age));
    }
    if let Some(ready) = event_loop.ready.filter(|&ready| ready > 0) {
        text += &format!(", {ready} ready");
    }
    if let Some(overdue) = event_loop.overdue.filter(|&overdue| overdue > 0) {
        text += &format!(", {overdue} overdue");
    }
    text
}

/// `GET /news/stream (starlette, for 51 s)`.
pub(super) fn request_line(request: &Request) -> String {
    let words = request.words();
    let mut text = if words.is_empty() { "a request".to_owned() } else { words };
    let age = request.age.map(|age| format!("for {}", Duration(age)));
    let facts: Vec<String> = request.framework.iter().cloned().chain(age).collect();
    if !facts.is_empty() {
        text += &format!(" ({})", facts.join(", "));
    }
    text
}

/// `rlock orders (0x7f00)`, with a word where it is not certain.
fn lock(lock: &Lock) -> String {
    let name = lock.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let certainty = if lock.certainty == Certainty::Likely { ", likely" } else { "" };
    format!("{}{name} ({:#x}{certainty})", lock.kind, lock.address.0)
}
