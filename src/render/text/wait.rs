//! What a thread or task waits for, in one line: on what, who must act, until when.

use crate::diagnose::advice::connection;
use crate::duration::Duration;
use crate::snapshot::{Actor, Certainty, Wait};
use serde_json::Value;

/// More than these are counted.
const MOST_ACTORS: usize = 4;

/// `waits to put into queue jobs (1 of 1 items), no deadline, 47 s`.
pub(super) fn note(wait: &Wait, arrow: &str) -> String {
    line(wait, arrow, wait.deadline.as_deref() == Some("none"))
}

/// As `note`, but for a chain of causes, which says at its end that there is no deadline.
pub(super) fn in_chain(wait: &Wait, arrow: &str) -> String {
    line(wait, arrow, wait.deadline.as_deref() == Some("none") && wait.kind == "socket")
}

fn line(wait: &Wait, arrow: &str, endless: bool) -> String {
    let mut text = on_what(wait, arrow);
    let on = actors(&wait.on);
    match wait.kind.as_str() {
        _ if on.is_empty() => {}
        // They are named already.
        "thread" | "task" | "process" | "socket" => {}
        "lock" | "gil" | "file" => text += &format!(", held by {on}"),
        _ => text += &format!(", needs {on}"),
    }
    text += &match (wait.ends_in, wait.kind.as_str()) {
        (Some(ends_in), _) if wait.is_retried() => format!(", asks again in {}", Duration(ends_in)),
        (Some(ends_in), _) => format!(", ends in {} at the latest", Duration(ends_in)),
        (None, "socket") if endless => ", no timeout".to_owned(),
        (None, "poll" | "cpu" | "gil") => String::new(),
        (None, _) if endless => ", no deadline".to_owned(),
        (None, _) => String::new(),
    };
    if let Some(blocked_for) = wait.blocked_for {
        text += &format!(", {}", Duration(blocked_for));
    }
    if wait.certainty == Certainty::Likely {
        text += " (likely)";
    }
    text
}

/// Who must act, in words: `"Thread-2", task 0x7f…`.
pub(super) fn actors(on: &[Actor]) -> String {
    let named = if on.len() > MOST_ACTORS + 1 { MOST_ACTORS } else { on.len() };
    let mut text = on[..named].iter().map(actor).collect::<Vec<_>>().join(", ");
    if on.len() > named {
        text += &format!(" or {} others", on.len() - named);
    }
    text
}

fn actor(actor: &Actor) -> String {
    match actor {
        Actor { task: Some(_), task_name: Some(name), .. } => format!("task {name}"),
        Actor { task: Some(task), .. } => format!("task {:#x}", task.0),
        Actor { thread: Some(name), tid: Some(tid), .. } => format!("{name} ({tid})"),
        Actor { thread: Some(name), .. } => name.clone(),
        Actor { tid: Some(tid), .. } => format!("thread {tid}"),
        Actor { pid: Some(pid), .. } => format!("pid {pid}"),
        _ => "somebody unknown".to_owned(),
    }
}

fn on_what(wait: &Wait, arrow: &str) -> String {
    let detail = &wait.detail;
    let name = name(wait);
    match wait.kind.as_str() {
        "lock" => format!("waits for lock{name}"),
        "semaphore" if detail["pool"].is_object() => {
            match (number(&detail["pool"], "out"), number(detail, "max")) {
                (Some(out), Some(max)) => {
                    format!("waits for a connection of the pool{name} ({out} of {max} are out)")
                }
                _ => format!("waits for a connection of the pool{name}"),
            }
        }
        "semaphore" => match (number(detail, "value"), number(detail, "max")) {
            (Some(value), Some(max)) => format!("waits for semaphore{name} ({value} of {max} left)"),
            (Some(value), None) => format!("waits for semaphore{name} ({value} left)"),
            _ => format!("waits for semaphore{name}"),
        },
        "condition" => format!("waits to be notified by condition{name}"),
        "event" => format!("waits for event{name} to be set"),
        "barrier" => match (number(detail, "waiting"), number(detail, "parties")) {
            (Some(here), Some(all)) => format!("waits at barrier{name}, where {here} of {all} are"),
            _ => format!("waits for the others at barrier{name}"),
        },
        "queue" => queue(wait, &name),
        "thread" => match word(detail, "name").or(wait.label.as_deref()) {
            Some(thread) => format!("waits for thread {thread} to end"),
            None => format!("waits for a thread to end{}", target(wait)),
        },
        "process" => {
            let command = word(detail, "command").map(|command| format!(" ({command})")).unwrap_or_default();
            match wait.on.first().and_then(|on| on.pid) {
                Some(pid) => format!("waits for process {pid}{command} to end"),
                None => format!("waits for a process{command} to end"),
            }
        }
        "future" if detail["database"].is_object() => database(&detail["database"]),
        "future" if number(detail, "futures").is_some_and(|n| n > 1) => {
            format!("waits for {}", wait.label.as_deref().unwrap_or("futures"))
        }
        "future" => match word(detail, "state") {
            Some(state) => format!("waits for future{name} ({})", state.to_ascii_lowercase()),
            None => format!("waits for future{name}"),
        },
        "task" => format!("awaits task{name}"),
        "socket" => socket(wait, arrow),
        "pipe" => format!("waits on pipe{name}"),
        "file" => match word(detail, "path") {
            Some(path) if detail["own"] == true => {
                format!("waits for the lock on {path} that another connection of this process has")
            }
            Some(path) if wait.on.is_empty() => format!("waits for file {path}"),
            Some(path) => format!("waits for the lock on {path}"),
            None => format!("waits for file{name}"),
        },
        "sleep" => match detail.get("seconds").and_then(Value::as_f64) {
            Some(seconds) => format!("sleeps {}", Duration(seconds)),
            None => "sleeps".to_owned(),
        },
        "gil" => "waits for the GIL".to_owned(),
        "poll" => format!("polls{}", in_call(wait)),
        "cpu" => match detail["spins"].as_array().map(|names| names.iter().filter_map(Value::as_str)) {
            Some(names) => {
                let names: Vec<&str> = names.collect();
                let until =
                    if names.is_empty() { "".into() } else { format!(", until {} changes", names.join(".")) };
                format!("goes round in a loop that does nothing{until}")
            }
            None => format!("computes{}", in_call(wait)),
        },
        "unknown" => format!("waits{}", in_call(wait)),
        // Words that were invented after this program.
        other => format!("waits for {other}{name}"),
    }
}

fn queue(wait: &Wait, name: &str) -> String {
    let detail = &wait.detail;
    let mut text = match word(detail, "operation") {
        Some("put") => format!("waits to put into queue{name}"),
        Some("get") => format!("waits to get from queue{name}"),
        Some("join") => format!("waits until all of queue{name} is done"),
        _ => format!("waits on queue{name}"),
    };
    let mut facts = Vec::new();
    match (number(detail, "size"), number(detail, "maxsize")) {
        (Some(size), Some(max)) if max > 0 => {
            facts.push(format!("{size} of {max} items{}", if size >= max { ", full" } else { "" }));
        }
        (Some(0), _) => facts.push("empty".to_owned()),
        (Some(size), _) => facts.push(format!("{size} items")),
        _ => {}
    }
    if let Some(unfinished) =
        number(detail, "unfinished").filter(|_| word(detail, "operation") == Some("join"))
    {
        facts.push(format!("{unfinished} unfinished"));
    }
    for (key, one) in [("consumers", "consumer"), ("producers", "producer")] {
        match detail.get(key) {
            Some(Value::Array(some)) if some.is_empty() => facts.push(format!("no {one}")),
            Some(Value::Array(some)) => facts.push(super::count(some.len(), one, key)),
            Some(Value::Number(some)) => facts.push(format!("{some} {key}")),
            _ => {}
        }
    }
    if !facts.is_empty() {
        text += &format!(" ({})", facts.join(", "));
    }
    text
}

/// `recv on fd 17 → 10.0.0.7:443, established`.
fn socket(wait: &Wait, arrow: &str) -> String {
    let detail = &wait.detail;
    let of_call = || wait.call.as_deref().and_then(|call| call.rsplit('.').next());
    let call = word(detail, "operation").or_else(of_call).unwrap_or("waits");
    let host = word(detail, "host");
    let mut text = match (word(detail, "phase"), host) {
        (Some("resolve"), Some(host)) => format!("asks for the address of {host}"),
        (Some("resolve"), None) => "asks for the address of a host".to_owned(),
        (Some("tls-handshake"), _) => format!("TLS handshake, {call}"),
        _ => call.to_owned(),
    };
    let host = host.filter(|_| word(detail, "phase") != Some("resolve"));
    if let Some(fd) = number(detail, "fd") {
        text += &format!(" on fd {fd}");
    }
    match (word(detail, "peer"), word(detail, "local")) {
        (Some(peer), _) => {
            text += &format!(" {arrow} ");
            text += &host.map(|host| format!("{host}, ")).unwrap_or_default();
            text += peer;
        }
        (None, Some(local)) => text += &format!(" at {local}"),
        (None, None) => {
            text += &wait.label.as_ref().map(|label| format!(" {arrow} {label}")).unwrap_or_default()
        }
    }
    if let Some(pid) = detail.get("peer_process").and_then(|process| number(process, "pid")) {
        text += &format!(" (pid {pid})");
    }
    if let Some(state) = word(detail, "tcp_state") {
        text += &format!(", {}", state.to_ascii_lowercase().replace('_', "-"));
    }
    text
}

/// `waits for asyncpg, app@10.0.0.7:5432/shop: select ?`.
fn database(database: &Value) -> String {
    let mut text = format!("waits for {}", word(database, "library").unwrap_or("the database"));
    if let Some(connection) = connection(database) {
        text += &format!(", {connection}");
    }
    if let Some(statement) = word(database, "statement") {
        text += &format!(": {statement}");
    }
    text
}

/// The label or, failing that, the address, with a space before it.
fn name(wait: &Wait) -> String {
    wait.label.as_ref().map(|label| format!(" {label}")).unwrap_or_else(|| target(wait))
}

fn target(wait: &Wait) -> String {
    wait.address.map(|address| format!(" {:#x}", address.0)).unwrap_or_default()
}

fn in_call(wait: &Wait) -> String {
    wait.call.as_ref().map(|call| format!(" in {call}")).unwrap_or_default()
}

fn word<'a>(detail: &'a Value, key: &str) -> Option<&'a str> {
    detail.get(key)?.as_str()
}

fn number(detail: &Value, key: &str) -> Option<i64> {
    detail.get(key)?.as_i64()
}

/// What ends the wait if nothing else does: `10.0.0.7:443 answers`.
pub(super) fn what_ends_it(wait: &Wait) -> Option<String> {
    let on = actors(&wait.on);
    let who = if on.is_empty() { "somebody" } else { &on };
    Some(match wait.kind.as_str() {
        "socket" if wait.detail["body"] == true => {
            format!("{} sends the rest", word(&wait.detail, "peer").unwrap_or("the client"))
        }
        "socket" => format!("{} answers", word(&wait.detail, "peer").unwrap_or("the other end")),
        "lock" => format!("{who} releases it"),
        "semaphore" => format!("{who} gives one back"),
        "event" => format!("{who} sets it"),
        "condition" => format!("{who} notifies it"),
        "queue" => match word(&wait.detail, "operation") {
            Some("put") => format!("{who} takes an item out"),
            Some("get") => format!("{who} puts an item in"),
            _ => format!("{who} finishes the items"),
        },
        "thread" => format!("{} ends", word(&wait.detail, "name").unwrap_or("the thread")),
        "process" => match wait.on.first().and_then(|on| on.pid) {
            Some(pid) => format!("process {pid} ends"),
            None => "the process ends".to_owned(),
        },
        "future" | "task" => "it is done".to_owned(),
        "pipe" if word(&wait.detail, "operation") == Some("open") => {
            "somebody opens the other end".to_owned()
        }
        "pipe" => "the other end of the pipe moves".to_owned(),
        "file" => "the file can be had".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wait(kind: &str, detail: Value) -> Wait {
        Wait { detail, ..Wait::new(kind, Some(0x7f00)) }
    }

    #[test]
    fn one_line_says_it() {
        let full = json!({ "operation": "put", "size": 1, "maxsize": 1, "consumers": [] });
        let mut queue = wait("queue", full);
        queue.deadline = Some("none".into());
        assert_eq!(
            note(&queue, "→"),
            "waits to put into queue 0x7f00 (1 of 1 items, full, no consumer), no deadline"
        );

        let peer = json!({ "fd": 17, "peer": "10.0.0.7:443", "tcp_state": "ESTABLISHED" });
        let mut socket = wait("socket", peer);
        socket.call = Some("socket.socket.recv".into());
        socket.deadline = Some("none".into());
        socket.blocked_for = Some(46.0);
        assert_eq!(note(&socket, "→"), "recv on fd 17 → 10.0.0.7:443, established, no timeout, 46 s");

        let mut lock = wait("lock", Value::Null);
        lock.on = vec![Actor {
            pid: Some(1),
            tid: Some(2),
            thread: Some("T-2".into()),
            task: None,
            task_name: None,
        }];
        lock.certainty = Certainty::Likely;
        assert_eq!(note(&lock, "→"), "waits for lock 0x7f00, held by T-2 (2) (likely)");

        let mut sleep = wait("sleep", json!({ "seconds": 30.0 }));
        sleep.ends_in = Some(12.2);
        assert_eq!(note(&sleep, "→"), "sleeps 30 s, ends in 12 s at the latest");
        assert_eq!(note(&wait("a-new-thing", Value::Null), "→"), "waits for a-new-thing 0x7f00");
    }
}
