//! Workers below a supervisor, with real servers: who notices that one hangs, and who does not.

use std::cell::RefCell;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;

use crate::common::{Interpreter, Outcome, Program, each_interpreter, hangscope, list, lossy, text};
use crate::gunicorn::{nothing_above_info, only_finding, outcome, text_of, with_report};
use crate::judge::until_right;
use crate::redis::Redis;
use crate::server::{Client, Server, Silent};
use crate::venv;

/// A request to `path` that hangs, and what has to be said of it.
fn hangs(
    interpreter: &Interpreter,
    args: &[&str],
    path: &str,
    rule: &str,
    says: impl Fn(&Value, &Value) -> Option<String>,
) -> Outcome {
    let silent = Silent::start()?;
    let address = silent.address.to_string();
    let server = Server::start(&venv::servers(interpreter)?, args, &[("SILENT", &address)])?;
    let port = server.port.to_string();
    // The other worker may still be importing, inside of its event loop.
    let idle = until_right(|| nothing_above_info(&["--port", &port]).err().into_iter().collect());
    outcome(idle).map_err(|reason| format!("idle: {reason}"))?;
    let _client = Client::request(server.port, "GET", path)?;
    outcome(until_right(|| {
        with_report(&["--port", &port], |report, _| {
            let mut wrong = Vec::new();
            let Some(finding) = only_finding(report, rule, &mut wrong) else { return wrong };
            if text(&finding["request"], "path") != path {
                wrong.push(format!("the request: {}", finding["request"]));
            }
            wrong.extend(says(report, finding).map(|what| format!("{what}: {finding:#}")));
            wrong
        })
    }))
}

#[test]
fn django_under_gunicorn() {
    let args = ["-m", "gunicorn", "--bind=127.0.0.1:{port}", "--timeout=60", "stuck_web:django_app"];
    each_interpreter("gunicorn-django", venv::has_servers, |interpreter| {
        hangs(interpreter, &args, "/silent/7", "socket-wait", |_, finding| {
            let said = text_of(&finding["evidence"]);
            let right = finding["request"]["framework"] == "django" && said.contains("kills it in");
            (!right).then(|| "framework and heartbeat".to_owned())
        })
    });
}

#[test]
fn a_worker_that_asks_itself() {
    let args = ["-m", "gunicorn", "--bind=127.0.0.1:{port}", "--timeout=60", "stuck_web:django_app"];
    each_interpreter("gunicorn-itself", venv::has_servers, |interpreter| {
        hangs(interpreter, &args, "/itself", "self-request", |_, finding| {
            let right = finding["severity"] == "critical" && finding["certainty"] == "likely";
            (!right).then(|| "how bad, and how sure".to_owned())
        })
    });
}

#[test]
fn a_worker_that_computes_past_half_its_timeout() {
    let args = ["-m", "gunicorn", "--bind=127.0.0.1:{port}", "--timeout=16", "stuck_web:django_app"];
    each_interpreter("gunicorn-stale", venv::has_servers, |interpreter| {
        hangs(interpreter, &args, "/work", "gunicorn-stale", |_, finding| {
            let right = text_of(&finding["evidence"]).contains("kills it in")
                && text(finding, "summary").contains("`work`");
            (!right).then(|| "what it says".to_owned())
        })
    });
}

#[test]
fn top_shows_what_any_worker_does() {
    let args =
        ["-m", "gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", "--timeout=600", "stuck_web:django_app"];
    each_interpreter("top-gunicorn", venv::has_servers, |interpreter| {
        let server = Server::start(&venv::servers(interpreter)?, &args, &[])?;
        let _client = Client::request(server.port, "GET", "/work")?;
        let pid = server.program.pid().to_string();
        // The supervisor, its idle worker and the one that computes, as soon as both are there.
        outcome(until_right(|| {
            let output = hangscope(&["top", "--once", "-s", "--delay", "0.5", &pid]);
            let said = lossy(&output.stdout) + &lossy(&output.stderr);
            let mut rows = said.lines().skip_while(|line| !line.contains("Function (file:line)"));
            let first = rows.nth(1).unwrap_or_default();
            let right = output.status.success()
                && said.contains(&format!("pid {pid} and 2 more"))
                && first.contains("work (stuck_web.py:");
            if right { Vec::new() } else { vec![said] }
        }))
    });
}

#[test]
fn uvicorn_does_not_notice() {
    let args = [
        "-m",
        "uvicorn",
        "--host=127.0.0.1",
        "--port={port}",
        "--workers=2",
        "--log-level=warning",
        "stuck_web:fastapi_app",
    ];
    each_interpreter("uvicorn-blind", venv::has_servers, |interpreter| {
        hangs(interpreter, &args, "/sleep", "loop-sleep", |_, finding| {
            let blind = list(finding, "related").iter().any(|rule| rule == "uvicorn-blind");
            (!blind || finding["severity"] != "critical").then(|| "related".to_owned())
        })
    });
}

/// Its workers are spawned: their parent is no Python server by its own command line.
#[test]
fn hypercorn_does_not_notice() {
    let args = ["-m", "hypercorn", "--bind=127.0.0.1:{port}", "--workers=2", "stuck_web:make_fastapi()"];
    each_interpreter("hypercorn", venv::has_servers, |interpreter| {
        hangs(interpreter, &args, "/sleep", "loop-sleep", |report, finding| {
            let mut roles: Vec<String> = list(report, "processes")
                .iter()
                .map(|p| format!("{} {}", text(&p["server"], "kind"), text(&p["server"], "role")))
                .collect();
            roles.sort();
            let right = roles == ["hypercorn supervisor", "hypercorn worker", "hypercorn worker"]
                && text_of(&finding["evidence"]).contains("only watches whether its workers live")
                && finding["request"]["age"].as_f64().is_some_and(|age| age > 0.0);
            (!right).then(|| format!("{roles:?}"))
        })
    });
}

#[test]
fn connections_that_nobody_accepts() {
    let args = [
        "-m",
        "uvicorn",
        "--host=127.0.0.1",
        "--port={port}",
        "--log-level=warning",
        "stuck_web:fastapi_app",
    ];
    each_interpreter("accept-backlog", venv::has_servers, |interpreter| {
        let waiting = RefCell::new(Vec::new());
        hangs(interpreter, &args, "/sleep", "loop-sleep", |report, finding| {
            let listens = &list(report, "processes")[0]["listens"][0];
            let address = text(listens, "address");
            if waiting.borrow().is_empty() {
                waiting.borrow_mut().extend((0..3).filter_map(|_| TcpStream::connect(address).ok()));
            }
            let said = format!("3 connections wait in the listen queue of {address}");
            let queues = list(finding, "related").iter().any(|rule| rule == "accept-backlog");
            let right = queues && text_of(&finding["evidence"]).contains(&said) && listens["queued"] == 3;
            (!right).then(|| format!("{said}, {listens}"))
        })
    });
}

#[test]
fn a_task_of_celery() {
    if !Redis::is_here() {
        return;
    }
    each_interpreter("celery-stuck", venv::has_servers, |interpreter| {
        let redis = Redis::start()?;
        let silent = Silent::start()?;
        let address = silent.address.to_string();
        let broker = format!("redis://127.0.0.1:{}/0", redis.port);
        let python = venv::servers(interpreter)?;
        let command = |args: &[&str]| {
            let mut command = Command::new(&python.command[0]);
            command.args(args).envs([("BROKER", &broker), ("SILENT", &address)]);
            command.current_dir(venv::fixtures()).process_group(0);
            command
        };
        let worker = ["-m", "celery", "-A", "stuck_celery", "worker", "--concurrency=2", "--loglevel=ERROR"];
        let worker = Program::spawn(command(&worker), "celery worker".into(), None)?;
        let _group = Group(worker.pid());
        worker.line("READY ")?;
        let pid = worker.pid().to_string();
        let target = ["--pid", &pid, "--subprocesses"];
        nothing_above_info(&target).map_err(|reason| format!("idle: {reason}"))?;

        let send = "import stuck_celery; stuck_celery.report.delay('a customer of ours')";
        let sent = command(&["-c", send]).output().map_err(|e| e.to_string())?;
        if !sent.status.success() {
            return Err(crate::common::lossy(&sent.stderr));
        }
        outcome(until_right(|| {
            with_report(&target, |report, _| {
                let mut wrong = Vec::new();
                let Some(finding) = only_finding(report, "socket-wait", &mut wrong) else { return wrong };
                let request = &finding["request"];
                let right = request["framework"] == "celery"
                    && text(request, "path").starts_with("shop.report[")
                    && request["age"].as_f64().is_some_and(|age| age > 4.0)
                    && list(finding, "related").iter().any(|rule| rule == "celery-stuck");
                if !right {
                    wrong.push(format!("{finding:#}"));
                }
                let roles: Vec<&str> =
                    list(report, "processes").iter().map(|p| text(&p["server"], "role")).collect();
                if roles != ["consumer", "pool worker", "pool worker"] {
                    wrong.push(format!("roles: {roles:?}"));
                }
                wrong
            })
        }))
    });
}

/// Ends a whole group of processes.
pub struct Group(pub i32);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.0), nix::sys::signal::SIGKILL);
    }
}
