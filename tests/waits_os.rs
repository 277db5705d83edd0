//! What threads wait for by their system calls, and which request they serve, against programs that know.

mod common;
#[allow(dead_code, reason = "the incidents use the rest")]
#[path = "incidents/venv.rs"]
mod venv;

use std::time::Instant;

use serde_json::Value;

use common::{Interpreter, Outcome, Program, dump_json, each_interpreter, list, process, text};

fn all(_: &Interpreter) -> bool {
    true
}

/// What is wrong with a thread's wait.
fn judge(thread: &Value, expected: &Value) -> Vec<String> {
    let wait = &thread["waits_on"];
    let detail = &wait["detail"];
    let mut wrong = Vec::new();
    let mut is = |what: &str, found: &Value, wanted: &Value| {
        if found != wanted {
            wrong.push(format!("{what} is {found}, not {wanted}"));
        }
    };
    for (key, wanted) in expected.as_object().into_iter().flatten() {
        match key.as_str() {
            "name" => {}
            "kind" | "call" | "deadline" | "label" => is(key, &wait[key], wanted),
            "activity" => is(key, &thread[key], wanted),
            "pid" => is(key, &wait["on"][0]["pid"], wanted),
            "peer_pid" => is(key, &detail["peer_process"]["pid"], wanted),
            "call_ends" => {
                let ends = text(wait, "call").ends_with(wanted.as_str().unwrap_or("?"));
                is(key, &Value::Bool(ends), &Value::Bool(true));
            }
            "ends_below" => {
                let left = wait["ends_in"].as_f64();
                let good = left.is_some_and(|left| left > 0.0 && left < wanted.as_f64().unwrap_or(0.0));
                is(&format!("ends_in {left:?} below {wanted}"), &Value::Bool(good), &Value::Bool(true));
            }
            "seconds" => {
                let off = detail[key].as_f64().map(|s| (s - wanted.as_f64().unwrap_or(0.0)).abs());
                is("seconds", &Value::Bool(off.is_some_and(|off| off < 1.0)), &Value::Bool(true));
            }
            "timeout" => is(key, &detail[key].as_f64().into(), &wanted.as_f64().into()),
            _ => is(key, &detail[key], wanted),
        }
    }
    if !expected["activity"].is_string() {
        is("activity", &thread["activity"], &"waiting".into());
    }
    wrong
}

fn judge_all(report: &Value, pid: i32, truth: &Value) -> Outcome {
    let process = process(report, pid)?;
    let mut wrong = Vec::new();
    for (tid, expected) in truth["waits"].as_object().into_iter().flatten() {
        let Some(thread) = list(process, "threads")
            .iter()
            .find(|t| t["tid"].as_i64().map(|t| t.to_string()).as_deref() == Some(tid.as_str()))
        else {
            wrong.push(format!("{}: not there", expected["name"]));
            continue;
        };
        let found = judge(thread, expected);
        if !found.is_empty() {
            wrong.push(format!(
                "{}: {}\n    {} {}",
                text(expected, "name"),
                found.join("; "),
                thread["waits_on"],
                thread["os"]["syscall"]
            ));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

#[test]
fn waits_by_system_call_are_what_the_program_says() {
    each_interpreter("waits_os", all, |interpreter| {
        let (program, truth) = Program::settled(interpreter, "os_waits.py", &[])?;
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let file = directory.path().join("waits.capture");
        let file = file.to_str().expect("UTF-8");
        // Some of these waits wake now and then (subprocess polls for its child): a look may meet one awake.
        let mut met = Ok(());
        for _ in 0..20 {
            let report = dump_json(program.pid(), &["--save", file])?;
            met = judge_all(&report, program.pid(), &truth);
            if met.is_ok() {
                break;
            }
        }
        met?;
        // The same from the capture.
        let again = common::hangscope(&["dump", "--capture", file, "--json"]);
        let again: Value = serde_json::from_slice(&again.stdout).map_err(|e| e.to_string())?;
        judge_all(&again, program.pid(), &truth).map_err(|e| format!("from the capture: {e}"))
    });
}

// ---------------------------------------------------------------- requests

const FRAMEWORKS: [&str; 9] =
    ["flask", "django", "asgi", "starlette", "fastapi", "fastapi_sync", "aiohttp", "tornado", "gunicorn"];

fn request_is_true(interpreter: &Interpreter, kind: &str) -> Outcome {
    let started = Instant::now();
    let program = Program::start(interpreter, "web.py", &[kind])?;
    let truth = program.line("READY ")?;
    let served = Instant::now();
    let tid = truth["tid"].as_i64().ok_or("no tid")?;
    // gunicorn's request is served by a child.
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).map_err(|e| e.to_string())?;
    let pid = status.lines().find_map(|l| l.strip_prefix("Tgid:")?.trim().parse().ok()).ok_or("no Tgid")?;
    for (extra, path) in [(&[][..], "/news/stream?***"), (&["--show-secrets"][..], "/news/stream?token=abc")]
    {
        let at_least = served.elapsed().as_secs_f64();
        let report = dump_json(pid, extra)?;
        let at_most = started.elapsed().as_secs_f64();
        let threads = list(process(&report, pid)?, "threads");
        let served: Vec<&Value> = threads.iter().filter(|t| !t["request"].is_null()).collect();
        let [thread] = served[..] else {
            return Err(format!("{kind}: {} threads serve a request: {threads:?}", served.len()));
        };
        let request = &thread["request"];
        let found = (thread["tid"].as_i64(), text(request, "method"), text(request, "path"));
        let framework = &request["framework"];
        let age = request["age"].as_f64();
        // The kernel's clocks of connections are milliseconds, and coarse ones.
        let aged = age.is_some();
        let wrong_age = age.is_some_and(|age| !(at_least - 0.1..=at_most + 0.1).contains(&age));
        if found != (Some(tid), "POST", path)
            || *framework != truth["framework"]
            || aged != truth["ages"].as_bool().unwrap_or(false)
            || wrong_age
        {
            return Err(format!("{kind}: {request} in thread {}, not {truth}", thread["tid"]));
        }
    }
    Ok(())
}

#[test]
fn requests_of_the_standard_library_are_found() {
    each_interpreter("requests", all, |interpreter| request_is_true(interpreter, "wsgiref"));
}

#[test]
fn requests_of_frameworks_are_found() {
    each_interpreter("frameworks", venv::has_servers, |interpreter| {
        let interpreter = venv::servers(interpreter)?;
        let wrong: Vec<String> =
            FRAMEWORKS.iter().filter_map(|kind| request_is_true(&interpreter, kind).err()).collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}
