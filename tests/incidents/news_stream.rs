//! Incident 1: the executor of a news stream is closed on the event loop's thread.

use serde_json::Value;

use crate::common::{
    Interpreter, Outcome, dump_json, each_interpreter, hangscope, list, lossy, process, system_call, text,
};
use crate::judge::{actor, brief, check_says, findings, until_right, user_frame};
use crate::server::{Client, Server, Silent};
use crate::venv;

fn uvicorn(loop_: &'static str, workers: &'static str, app: &'static str) -> Vec<&'static str> {
    let same = ["-m", "uvicorn", "--host=127.0.0.1", "--port={port}", "--http=h11", "--log-level=warning"];
    [&same[..], &[loop_, workers, app]].concat()
}

#[test]
fn one_worker() {
    hangs("news-stream", &venv::LABELS, &uvicorn("--loop=asyncio", "--workers=1", "news_stream:app"));
}

#[test]
fn two_workers() {
    hangs("news-stream-two", &["3.9", "3.12"], &uvicorn("--loop=asyncio", "--workers=2", "news_stream:app"));
}

#[test]
fn uvloop() {
    hangs(
        "news-stream-uvloop",
        &["3.9", "3.12", "3.13.0"],
        &uvicorn("--loop=uvloop", "--workers=1", "news_stream:app"),
    );
}

#[test]
fn fixed() {
    let args = uvicorn("--loop=asyncio", "--workers=1", "news_stream_fixed:app");
    each_interpreter("news-stream-fixed", venv::typical, |interpreter| {
        let silent = Silent::start()?;
        let server = Server::start(interpreter, &args, &[("FEED", &format!("http://{}/", silent.address))])?;
        let port = server.port.to_string();
        for _ in 0..3 {
            listen_and_leave(&server)?;
            server.program.until("GET /health to be answered", || Ok(server.is_healthy()))?;
        }
        check_says(&["--port", &port], 0)?;
        // What people verified by hand: the loop is in its selector, not in shutdown. It may be met on its
        // way there.
        let mut last = String::new();
        let rests = server.program.until("the loop to poll", || {
            let report = dump_json(server.program.pid(), &[])?;
            let main = main_thread(&report, server.program.pid())?;
            last = format!("the loop is {}: {}", main["event_loop"]["state"], main["frames"]);
            let in_shutdown = list(main, "frames").iter().any(|frame| frame["function"] == "shutdown");
            Ok(!in_shutdown && main["event_loop"]["state"] == "polling")
        });
        rests.map_err(|reason| format!("{reason}; {last}"))
    });
}

/// A client that reads the first event and goes away; the pid of who served it.
fn listen_and_leave(server: &Server) -> Outcome<i32> {
    let mut client = Client::request(server.port, "GET", "/news/stream")?;
    let came = client.until("}\n\n")?;
    let event = came.split("data: ").nth(1).and_then(|text| text.lines().next()).unwrap_or_default();
    let event: Value = serde_json::from_str(event).map_err(|e| format!("{e} in {came:?}"))?;
    event["pid"].as_i64().and_then(|pid| pid.try_into().ok()).ok_or_else(|| format!("no pid in {came:?}"))
}

fn main_thread(report: &Value, pid: i32) -> Outcome<&Value> {
    let threads = list(process(report, pid)?, "threads");
    threads.iter().find(|thread| thread["tid"] == pid).ok_or_else(|| "no main thread".into())
}

fn hangs(name: &str, labels: &[&str], args: &[&str]) {
    let wanted = |interpreter: &Interpreter| {
        venv::typical(interpreter) && labels.contains(&interpreter.label.as_str())
    };
    each_interpreter(name, wanted, |interpreter| {
        let silent = Silent::start()?;
        let address = silent.address.to_string();
        let server = Server::start(interpreter, args, &[("FEED", &format!("http://{address}/"))])?;
        let pid = listen_and_leave(&server)?;
        server.until_hung(pid)?;
        // The workers' connections are made before the loop hangs; their requests may still be under way.
        server.program.until("five workers to wait for their feeds", || {
            let tids = crate::common::tids(pid);
            let polling = tids.iter().filter_map(|tid| system_call(pid, *tid));
            Ok(polling.filter(|call| call.number == nix::libc::SYS_poll).count() >= 5)
        })?;
        if !args.contains(&"--workers=2") && server.is_healthy() {
            return Err("GET /health is answered: it does not hang".into());
        }

        let port = server.port.to_string();
        let mut wrong = until_right(|| {
            let output = hangscope(&["dump", "--json", "--port", &port]);
            match serde_json::from_slice::<Value>(&output.stdout) {
                Ok(report) => differences(&report, pid, &address, interpreter.minor),
                Err(e) => vec![format!("{e}: {}", lossy(&output.stderr))],
            }
        });
        wrong.extend(check_says(&["--port", &port], 1).err());
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}

/// All that the finding has to say.
fn differences(report: &Value, pid: i32, silent: &str, minor: u32) -> Vec<String> {
    let all = findings(report);
    let Some(finding) = all.iter().find(|finding| finding["rule"] == "loop-executor-shutdown") else {
        return vec![format!(
            "no loop-executor-shutdown in {:?}",
            all.into_iter().map(brief).collect::<Vec<_>>()
        )];
    };
    let mut wrong = Vec::new();
    let mut same = |what: &str, found: &Value, expected: Value| {
        if *found != expected {
            wrong.push(format!("{what} is {found}, expected {expected}"));
        }
    };
    same("severity", &finding["severity"], "critical".into());
    same("certainty", &finding["certainty"], "proved".into());
    same("pid", &finding["pid"], pid.into());
    same("tid", &finding["tid"], pid.into());
    let victim = serde_json::json!({ "pid": pid, "tid": pid });
    let Some(thread) = actor(report, &victim) else { return vec!["its thread is not in the report".into()] };
    same("waits_on.kind", &thread["waits_on"]["kind"], "thread".into());
    same("event_loop.state", &thread["event_loop"]["state"], "blocked".into());
    // While a cancelled coroutine unwinds, 3.8 and 3.9 lose all frames below it, the loop's included: six are
    // left, and they must not be taken for the whole.
    same("complete", &thread["complete"], (minor > 9).into());

    let frames = list(thread, "frames");
    let at = |key: &str| finding[key].as_u64().and_then(|index| frames.get(index as usize));
    let call = at("frame").map_or("", |frame| text(frame, "function"));
    if !["shutdown", "join", "_wait_for_tstate_lock"].contains(&call) {
        wrong.push(format!("frame is {call:?}, which is not the blocking call"));
    }
    // 3.8 and 3.9 name the last line of the body, where the `with` ends.
    let with = line_of("    with ThreadPoolExecutor(");
    let last = if minor < 10 { line_of("# end of the with") } else { with };
    match at("user_frame") {
        Some(frame) if text(frame, "function") != "event_generator" => {
            wrong.push(format!("user_frame is {frame}"));
        }
        Some(frame) if !frame["line"].as_u64().is_some_and(|line| (with..=last).contains(&line)) => {
            wrong.push(format!("user_frame is at line {}, expected {with}", frame["line"]));
        }
        Some(_) => (),
        None => wrong.push("no user_frame".into()),
    }
    if !finding["blocked_for"].as_f64().is_some_and(|seconds| 0.0 < seconds && seconds < 120.0) {
        wrong.push(format!("blocked_for is {}", finding["blocked_for"]));
    }

    match list(finding, "cause").last() {
        None => wrong.push("no cause".into()),
        Some(last) => {
            let worker = text(last, "thread");
            let wait = &last["wait"];
            if !worker.starts_with("feed_") || wait["kind"] != "socket" || wait["detail"]["peer"] != silent {
                wrong.push(format!("the cause ends at {last}, not at a worker that waits for {silent}"));
            }
            let worker = actor(report, last).and_then(|thread| user_frame(list(thread, "frames")));
            let expected = line_of("return requests.get");
            if worker.is_none_or(|frame| frame["line"] != expected) {
                wrong.push(format!("the worker stands at line {expected}, shown at {worker:?}"));
            }
        }
    }

    // Where frames are lost while the generator unwinds, so may be the way to the request.
    let request = &finding["request"];
    let right = request["method"] == "GET" && request["path"] == "/news/stream";
    if !right && (minor >= 10 || !request.is_null()) {
        wrong.push(format!("request is {request}"));
    }
    wrong
}

fn line_of(text: &str) -> u64 {
    let source = std::fs::read_to_string(venv::fixtures().join("news_stream.py")).expect("it is there");
    source.lines().position(|line| line.contains(text)).expect("the line is there") as u64 + 1
}
