//! One process: two lines about it, its findings, its stacks, and how they were read.

use super::thread::{self, Table};
use super::{TextOptions, count, finding, group};
use crate::duration::Duration;
use crate::render::bytes::Bytes;
use crate::render::page::Page;
use crate::render::report::{Report, ReportProcess};
use crate::render::style::Ink;
use crate::snapshot::{Activity, Process, Read, Thread};
use std::fmt::Write;

/// Of a terminal, at most.
const COMMAND_LINES: usize = 3;

pub(super) fn write(page: &mut Page, reported: &ReportProcess, report: &Report, options: &TextOptions) {
    let process = &reported.process;
    page.gap();
    header(page, process);
    for finding in &reported.findings {
        finding::write(page, finding, Some(process), options);
    }

    let (shown, native) = order(process);
    let groups = group::groups(&shown, options);
    let table = Table::new(page, process, &groups);
    // Without any stack there is one line per thread, and no need for air between them.
    let stacks = shown.iter().any(|thread| !thread.frames.is_empty());
    page.gap();
    for group in &groups {
        if stacks {
            page.gap();
        }
        thread::write(page, process, group, &table, options);
    }
    without_python(page, &native);
    footer(page, process, report);
    problems(page, process);
}

/// `python -c 'import x'`: as a shell would take it, but for what cannot be printed.
pub(super) fn command_line(command: &[String]) -> String {
    let mut line = String::new();
    for (at, word) in command.iter().enumerate() {
        if at > 0 {
            line.push(' ');
        }
        let harmless = |c: char| c.is_alphanumeric() || "_-+=./:,@%^~[]{}".contains(c);
        if !word.is_empty() && word.chars().all(harmless) {
            line.push_str(word);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(line, "'{}'", word.replace('\'', r"'\''"));
        }
    }
    line
}

pub(super) fn header(page: &mut Page, process: &Process) {
    page.put(Ink::Strong, &format!("pid {}", process.pid));
    let separator = page.marks.separator;
    page.put(Ink::Faint, separator);
    match (process.command.is_empty(), &process.executable) {
        (false, _) => {
            // A whole program may stand behind `-c`.
            let most = page.room().saturating_mul(COMMAND_LINES).saturating_sub(page.column());
            let command = page.shorten(&command_line(&process.command), most);
            page.fact(Ink::Strong, 2, &command);
        }
        (true, Some(executable)) => page.fact(Ink::Strong, 2, executable),
        (true, None) => page.fact(Ink::Faint, 2, "command not known"),
    }
    page.items(0, &facts(process));
}

fn facts(process: &Process) -> Vec<(Ink, String)> {
    let mut items = Vec::new();
    let mut plain = |text: String| items.push((Ink::Plain, text));
    match &process.python {
        Some(python) => {
            let kind = match (python.free_threaded, python.debug == Some(true)) {
                (false, false) => "",
                (true, false) => " free-threaded",
                (false, true) => " debug build",
                (true, true) => " free-threaded debug build",
            };
            let name = match python.implementation.to_ascii_lowercase().as_str() {
                "cpython" => "CPython".to_owned(),
                _ => python.implementation.clone(),
            };
            plain(format!("{name} {}{kind}", python.version));
        }
        None => plain("Python not read".to_owned()),
    }
    if let Some(server) = &process.server {
        let mut text = format!("{} {}", server.kind, server.role);
        if let Some(supervisor) = server.supervisor {
            text += &format!(" of pid {supervisor}");
        }
        if let Some(age) = server.heartbeat_age {
            text += &format!(", heartbeat {} old", Duration(age));
        }
        if let Some(timeout) = server.timeout {
            text += &format!(", timeout {}", Duration(timeout));
        }
        plain(text);
    }
    if let Some(uptime) = process.uptime {
        plain(format!("up {}", Duration(uptime)));
    }
    plain(count(process.threads.len(), "thread", "threads"));
    if process.interpreters.len() > 1 {
        plain(format!("{} interpreters", process.interpreters.len()));
    }
    if !process.tasks.is_empty() {
        plain(count(process.tasks.len(), "asyncio task", "asyncio tasks"));
    }
    match (process.open_fds, process.fd_limit) {
        (Some(open), Some(limit)) => {
            let ink =
                if open.saturating_mul(10) >= limit.saturating_mul(9) { Ink::Warning } else { Ink::Plain };
            items.push((ink, format!("{open} of {limit} fds")));
        }
        (Some(open), None) => items.push((Ink::Plain, format!("{open} fds"))),
        (None, _) => {}
    }
    if let Some(rss) = process.rss {
        items.push((Ink::Plain, Bytes(rss).to_string()));
    }
    for listener in process.listens.iter().flatten() {
        items.push((Ink::Plain, format!("listens on {}", listener.address)));
        if let Some(queued) = listener.queued.filter(|&queued| queued > 0) {
            let of = listener.backlog.map(|backlog| format!(" of {backlog}")).unwrap_or_default();
            items.push((Ink::Warning, format!("{queued}{of} wait to be accepted")));
        }
    }
    if let Some(children) = process.children.as_ref().filter(|children| !children.is_empty()) {
        items.push((Ink::Plain, count(children.len(), "child", "children")));
    }
    if process.cpu_throttled == Some(true) {
        items.push((Ink::Warning, "throttled by its cgroup".to_owned()));
    }
    if process.executable_replaced == Some(true) {
        items.push((Ink::Warning, "its executable was replaced on disk".to_owned()));
    }
    // Collecting garbage is told at the thread that does it, where that is known.
    for interpreter in &process.interpreters {
        let holder = interpreter.gil.as_ref().and_then(|gil| gil.holder);
        if interpreter.gc_collecting == Some(true) && holder.is_none() {
            items.push((Ink::Warning, "collects garbage".to_owned()));
        }
    }
    if process.followed {
        items.push((Ink::Info, "read because a finding led here".to_owned()));
    }
    items
}

/// The threads to show in full, in order, and those that have nothing to do with Python.
fn order(process: &Process) -> (Vec<&Thread>, Vec<&Thread>) {
    // Where no thread has a stack, the system's view is all there is: show it.
    let any_python = process.threads.iter().any(|thread| thread.interpreter.is_some());
    let (native, mut shown): (Vec<_>, Vec<_>) = process
        .threads
        .iter()
        .partition(|thread| any_python && thread.interpreter.is_none() && thread.frames.is_empty());
    shown.sort_by_key(|thread| {
        let class = match thread.activity {
            _ if thread.main && thread.interpreter.unwrap_or(0) == 0 => 0,
            _ if thread.holds_gil == Some(true) => 1,
            Activity::Running => 1,
            Activity::Waiting | Activity::WaitingForGil | Activity::Unknown => 2,
            Activity::Idle => 3,
        };
        (class, thread.interpreter, thread.tid.unwrap_or(i32::MAX))
    });
    (shown, native)
}

fn without_python(page: &mut Page, native: &[&Thread]) {
    if native.is_empty() {
        return;
    }
    page.gap();
    let list: Vec<String> = native
        .iter()
        .map(|thread| {
            let tid = thread.tid.map_or("?".to_owned(), |tid| tid.to_string());
            thread.name.as_ref().map_or(tid.clone(), |name| format!("{tid} {name}"))
        })
        .collect();
    let text = format!("{} without Python: {}", count(native.len(), "thread", "threads"), list.join(", "));
    page.fact(Ink::Faint, 2, &text);
}

/// How exact all of this is.
fn footer(page: &mut Page, process: &Process, report: &Report) {
    let with_stack = || process.threads.iter().filter(|thread| !thread.frames.is_empty());
    let all = with_stack().count();
    if process.python.is_none() || all == 0 {
        return;
    }
    let read_as = |read: Read| with_stack().filter(|thread| thread.read == read).count();
    let exact = with_stack().filter(|thread| thread.read.is_exact()).count();
    let (paused, moving, torn) = (read_as(Read::Paused), read_as(Read::Moving), read_as(Read::Torn));
    let mut text = match paused {
        0 => "read without stopping it".to_owned(),
        paused => format!("{} paused for it", count(paused, "thread was", "threads were")),
    };
    text += &match (exact == all, all) {
        (true, 1) => ", the stack is exact".to_owned(),
        (true, _) => format!(", all {all} stacks are exact"),
        (false, _) => format!(", {exact} of {all} stacks are exact"),
    };
    if moving > 0 {
        text +=
            &format!(", {} on the move", if moving == 1 { "1 was".into() } else { format!("{moving} were") });
    }
    if torn > 0 {
        text += &format!(", {} torn", if torn == 1 { "1 is".into() } else { format!("{torn} are") });
    }
    if let [look] = report.looks.as_slice() {
        text += &format!(", in {}", Duration(look.took));
    } else if report.looks.len() > 1 {
        text += &format!(", in {} looks", report.looks.len());
    }
    page.gap();
    page.prose(Ink::Faint, 0, &text);
}

pub(super) fn problems(page: &mut Page, process: &Process) {
    if process.problems.is_empty() {
        return;
    }
    page.gap();
    page.put(Ink::Warning, "Could not be read:");
    if let [problem] = process.problems.as_slice() {
        page.put(Ink::Plain, " ");
        page.prose(Ink::Plain, 2, problem);
        return;
    }
    page.end_line();
    for problem in &process.problems {
        page.pad_to(2);
        page.prose(Ink::Plain, 4, problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let line =
            |words: &[&str]| command_line(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        assert_eq!(line(&["python", "-m", "http.server", "8000"]), "python -m http.server 8000");
        assert_eq!(line(&["python", "-c", "print('a b')", ""]), r"python -c 'print('\''a b'\'')' ''");
    }
}
