//! asyncio tasks against what live interpreters say of them: `fixtures/programs/tasks.py` writes down its own
//! tasks, chains of awaits, locks and loops, and stands still.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use common::{Interpreter, Program, dump_json, each_interpreter, list, process, text};

fn all(_: &Interpreter) -> bool {
    true
}

#[test]
fn tasks_are_what_the_interpreter_says() {
    each_interpreter("tasks", all, |interpreter| {
        let (program, truth) = Program::settled(interpreter, "tasks.py", &[])?;
        let report = dump_json(program.pid(), &[])?;
        let process = process(&report, program.pid())?;
        let mut wrong = compare_tasks(list(&truth, "tasks"), list(process, "tasks"));
        wrong.extend(compare_loops(&truth, list(process, "threads")));
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}

fn compare_tasks(expected: &[Value], found: &[Value]) -> Vec<String> {
    let found: BTreeMap<&str, &Value> = found.iter().map(|t| (text(t, "id"), t)).collect();
    let mut wrong = Vec::new();
    for task in expected {
        let Some(other) = found.get(text(task, "id")) else {
            wrong.push(format!("task {} ({}) is missing", task["name"], task["coroutine"]));
            continue;
        };
        if let Some(difference) = compare_task(task, other) {
            wrong.push(difference);
        }
    }
    for (id, task) in found {
        if !expected.iter().any(|t| text(t, "id") == id) {
            wrong.push(format!("task {id} ({}, {}) does not exist", task["name"], task["coroutine"]));
        }
    }
    wrong
}

fn compare_task(expected: &Value, found: &Value) -> Option<String> {
    let mut notes = String::new();
    let mut differ = |what: &str, expected: &Value, found: &Value| {
        if expected != found {
            let _ = write!(notes, "\n    {what} is {found}, expected {expected}");
        }
    };
    for key in ["name", "coroutine", "loop"] {
        differ(key, &expected[key], &found[key]);
    }
    let running = expected["running"] == true;
    differ("state", &(if running { "running" } else { "pending" }).into(), &found["state"]);
    let wanted = list(expected, "chain");
    // Python cannot look into the `asend` of an asynchronous generator: hangscope can.
    let known = wanted.iter().position(|f| f[0] == "?").unwrap_or(wanted.len());
    let chain: Vec<Value> = list(found, "frames")
        .iter()
        .rev()
        .map(|f| Value::from(vec![f["function"].clone(), if running { 0.into() } else { f["line"].clone() }]))
        .collect();
    let cut = if known < wanted.len() { &chain[..known.min(chain.len())] } else { &chain[..] };
    differ("chain", &wanted[..known].to_vec().into(), &cut.to_vec().into());
    if known < wanted.len() {
        let functions: Vec<&Value> = chain.iter().map(|f| &f[0]).collect();
        differ(
            "what stands behind `asend`",
            &true.into(),
            &functions.ends_with(&[&"middle".into(), &"innermost".into()]).into(),
        );
    }
    let wait = &found["waits_on"];
    if let Some(kind) = expected.get("wait") {
        differ("waits_on.kind", kind, &wait["kind"]);
    }
    if let Some(address) = expected.get("address") {
        differ("waits_on.address", address, &wait["address"]);
    }
    let sorted = |values: Vec<&Value>| {
        let mut texts: Vec<&str> = values.into_iter().filter_map(Value::as_str).collect();
        texts.sort_unstable();
        Value::from(texts)
    };
    if let Some(awaits) = expected.get("awaits") {
        differ("awaits", awaits, &sorted(list(found, "awaits").iter().collect()));
    }
    if let Some(on) = expected.get("on") {
        differ("waits_on.on", on, &sorted(list(wait, "on").iter().map(|a| &a["task"]).collect()));
    }
    if let Some(holds) = expected.get("holds") {
        differ("holds", holds, &sorted(list(found, "holds").iter().map(|l| &l["address"]).collect()));
    }
    (!notes.is_empty()).then(|| format!("task {} ({}){notes}", expected["name"], expected["coroutine"]))
}

fn compare_loops(truth: &Value, threads: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |what: String, ok: bool| {
        if !ok {
            wrong.push(what);
        }
    };
    for thread in threads {
        let tid = thread["tid"].to_string();
        let expected = &truth["current"][&tid];
        let event_loop = &thread["event_loop"];
        check(
            format!("thread {tid}: task is {}, expected {expected}", thread["task"]),
            thread["task"] == *expected,
        );
        if expected.is_null() {
            check(format!("thread {tid} runs no loop, but has {event_loop}"), event_loop.is_null());
            continue;
        }
        check(
            format!("thread {tid}: loop is {event_loop}"),
            event_loop["kind"] == "asyncio"
                && event_loop["state"] == "blocked"
                && event_loop["overdue"].is_u64()
                && event_loop["iteration_age"].as_f64().is_some_and(|age| age < 600.0),
        );
        if thread["tid"] == truth["main"] {
            check(
                format!("ready is {}, expected {}", event_loop["ready"], truth["ready"]),
                event_loop["ready"] == truth["ready"],
            );
        }
    }
    wrong
}
