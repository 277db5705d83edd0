//! Incident 2: an async handler puts into a full JoinableQueue whose consumer is paused.

use serde_json::{Value, json};

use crate::common::{Outcome, each_interpreter, hangscope, list, lossy, text};
use crate::judge::{actor, brief, check_says, findings, until_right, user_frame};
use crate::server::{Client, Server};
use crate::venv;

fn start(interpreter: &crate::common::Interpreter, app: &str) -> Outcome<Server> {
    let args = ["-m", "uvicorn", "--host=127.0.0.1", "--port={port}", "--loop=asyncio", app];
    Server::start(interpreter, &args, &[])
}

#[test]
fn hangs() {
    each_interpreter("full-queue", venv::typical, |interpreter| {
        let server = start(interpreter, "full_queue:app")?;
        let _client = Client::request(server.port, "POST", "/jobs")?;
        let pid = server.program.pid();
        server.until_hung(pid)?;
        if server.is_healthy() {
            return Err("GET /health is answered: it does not hang".into());
        }
        let port = server.port.to_string();
        let wrong = until_right(|| {
            let output = hangscope(&["dump", "--json", "--port", &port]);
            match serde_json::from_slice::<Value>(&output.stdout) {
                Ok(report) => differences(&report, pid),
                Err(e) => vec![format!("{e}: {}", lossy(&output.stderr))],
            }
        });
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        check_says(&["--port", &port], 1)
    });
}

#[test]
fn fixed() {
    each_interpreter("full-queue-fixed", venv::typical, |interpreter| {
        let server = start(interpreter, "full_queue_fixed:app")?;
        let answer = Client::request(server.port, "POST", "/jobs")?.rest()?;
        if !answer.starts_with("HTTP/1.1 503") || !server.is_healthy() {
            return Err(server.program.failed(&format!("the fix does not work: {answer}")));
        }
        check_says(&["--port", &server.port.to_string()], 0)
    });
}

/// All that the finding has to say.
fn differences(report: &Value, pid: i32) -> Vec<String> {
    let all = findings(report);
    let Some(finding) = all.iter().find(|finding| finding["rule"] == "loop-queue") else {
        return vec![format!("no loop-queue in {:?}", all.into_iter().map(brief).collect::<Vec<_>>())];
    };
    let Some(thread) = actor(report, &json!({ "pid": pid, "tid": pid })) else {
        return vec!["its thread is not in the report".into()];
    };
    let frames = list(thread, "frames");
    let at = |key: &str| finding[key].as_u64().and_then(|index| frames.get(index as usize));
    let wait = &thread["waits_on"];
    let consumer = list(finding, "cause").iter().find(|cause| cause["thread"] == "consumer");
    let consumer_line = consumer.and_then(|cause| actor(report, cause));
    let consumer_line = consumer_line.and_then(|thread| user_frame(list(thread, "frames")));
    let field = |frame: Option<&Value>, key: &str| frame.map_or(Value::Null, |frame| frame[key].clone());

    let mut wrong = Vec::new();
    for (what, found, expected) in [
        ("severity", finding["severity"].clone(), json!("critical")),
        ("tid", finding["tid"].clone(), json!(pid)),
        ("the blocking call", field(at("frame"), "function"), json!("put")),
        ("the user's function", field(at("user_frame"), "function"), json!("enqueue")),
        ("the user's line", field(at("user_frame"), "line"), json!(line_of("# stuck"))),
        ("the request's method", finding["request"]["method"].clone(), json!("POST")),
        ("the request's path", finding["request"]["path"].clone(), json!("/jobs")),
        ("waits_on.kind", wait["kind"].clone(), json!("queue")),
        ("operation", wait["detail"]["operation"].clone(), json!("put")),
        ("size", wait["detail"]["size"].clone(), json!(1)),
        ("maxsize", wait["detail"]["maxsize"].clone(), json!(1)),
        ("deadline", wait["deadline"].clone(), json!("none")),
        ("what the consumer waits on", field(consumer, "wait")["kind"].clone(), json!("event")),
        ("the consumer's line", field(consumer_line, "line"), json!(line_of("# culprit"))),
    ] {
        if found != expected {
            wrong.push(format!("{what} is {found}, expected {expected}"));
        }
    }
    // It logs as if all were well, and has nothing to do with it.
    if list(finding, "cause").iter().any(|cause| text(cause, "thread") == "heartbeat") {
        wrong.push("the heartbeat is blamed".into());
    }
    wrong
}

fn line_of(text: &str) -> usize {
    let source = std::fs::read_to_string(venv::fixtures().join("full_queue.py")).expect("it is there");
    source.lines().position(|line| line.contains(text)).expect("the line is there") + 1
}
