//! Incident 4: workers of gunicorn that are killed, and nobody knows over what.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Interpreter, Outcome, each_interpreter, hangscope, list, lossy, process, text};
use crate::judge::{brief, check_says, until_right};
use crate::postgres::{Postgres, SECRET};
use crate::server::{Client, Server, get};
use crate::venv;

/// Two sync workers, each of which serves one connection at a time.
const SYNC: [&str; 7] = [
    "-m",
    "gunicorn",
    "--bind=127.0.0.1:{port}",
    "--workers=2",
    "--timeout=120",
    "--log-level=warning",
    "orders:app",
];
const THREADS: [&str; 8] = [
    "-m",
    "gunicorn",
    "--bind=127.0.0.1:{port}",
    "--workers=1",
    "--threads=2",
    "--timeout=120",
    "--log-level=warning",
    "orders:app",
];

/// An order whose document takes the database ten minutes, as a checkpoint on a slow disk may.
const ORDERS: &str = "
    create table papers (id int primary key, customer text, document text);
    insert into papers values (7, 'ada', repeat('x', 1000000));
    create function slowly(document text) returns text language plpgsql stable as
        $$ begin perform pg_sleep(600); return document; end $$;
    create view orders as select id, customer, slowly(document) as document from papers;
";

fn wanted(interpreter: &Interpreter) -> bool {
    venv::has_servers(interpreter)
}

#[test]
fn slow_read_of_a_large_column() {
    if !Postgres::is_here() {
        return;
    }
    each_interpreter("gunicorn-database", wanted, |interpreter| {
        let postgres = Postgres::start(ORDERS)?;
        let url = postgres.url("postgresql+psycopg2");
        let server = Server::start(&venv::servers(interpreter)?, &SYNC, &[("DATABASE", &url)])?;
        let _client = Client::request(server.port, "GET", "/orders/7/document?token=of-a-user")?;
        let wrong = until_right(|| {
            with_report(&["--port", &server.port.to_string()], |report, printed| {
                let mut wrong = Vec::new();
                let Some(finding) = only_finding(report, "db-wait", &mut wrong) else { return wrong };
                let mut expect = |what: &str, holds: bool| {
                    if !holds {
                        wrong.push(format!("{what}: {finding:#}"));
                    }
                };
                let request = &finding["request"];
                expect("severity", finding["severity"] == "critical");
                expect("method", request["method"] == "GET");
                expect("path", text(request, "path").starts_with("/orders/7/document"));
                expect("its age", request["age"].as_f64().is_some_and(|age| (4.0..120.0).contains(&age)));
                let said = text_of(&finding["evidence"]);
                expect("the statement", said.contains("SELECT orders.document"));
                expect("the server's own word", said.contains("postgres: app postgres 127.0.0.1"));
                expect("where it leads", said.contains(&format!("app@127.0.0.1:{}/postgres", postgres.port)));
                expect("the heartbeat", said.contains("kills it in"));
                expect("no secret", !printed.contains(SECRET) && !printed.contains("of-a-user"));
                let worker = process(report, finding["pid"].as_i64().unwrap_or(0) as i32);
                let server_of = worker.map(|worker| worker["server"].clone()).unwrap_or_default();
                let beat = server_of["heartbeat_age"].as_f64().zip(request["age"].as_f64());
                expect(
                    "the heartbeat is as old as the request",
                    beat.is_some_and(|(b, r)| (b - r).abs() < 2.0),
                );
                expect("its timeout", server_of["timeout"] == 120.0 && server_of["role"] == "worker");
                expect("its supervisor", server_of["supervisor"] == server.program.pid());
                let frame = finding["user_frame"].as_u64().map(|at| worker_frame(report, finding, at));
                expect("the line", frame.is_some_and(|f| text(&f, "source").contains("order.document")));
                wrong
            })
        });
        let wrong = [wrong, check_says(&["--port", &server.port.to_string()], 1).err().into_iter().collect()];
        outcome(wrong.concat())
    });
}

#[test]
fn fixed() {
    if !Postgres::is_here() {
        return;
    }
    each_interpreter("gunicorn-fixed", wanted, |interpreter| {
        let postgres = Postgres::start(ORDERS)?;
        let url = postgres.url("postgresql+psycopg2");
        let variables = [("DATABASE", url.as_str()), ("FIXED", "1")];
        let server = Server::start(&venv::servers(interpreter)?, &SYNC, &variables)?;
        for _ in 0..3 {
            let answer = get(server.port, "/orders/7/document")?;
            if !answer.starts_with("HTTP/1.1 503") {
                return Err(format!("the fix does not: {answer}"));
            }
        }
        nothing_above_info(&["--port", &server.port.to_string()])
    });
}

#[test]
fn silent_connection() {
    each_interpreter("gunicorn-silent", wanted, |interpreter| {
        let server = Server::start(&venv::servers(interpreter)?, &SYNC, &[])?;
        let silent = TcpStream::connect(("127.0.0.1", server.port)).map_err(|e| e.to_string())?;
        let client = silent.local_addr().map_err(|e| e.to_string())?.to_string();
        let wrong = until_right(|| {
            with_report(&["--port", &server.port.to_string()], |report, _| {
                let mut wrong = Vec::new();
                let Some(finding) = only_finding(report, "client-idle", &mut wrong) else { return wrong };
                let said = text_of(&finding["evidence"]);
                if finding["severity"] != "info" || !finding["request"].is_null() {
                    wrong.push(format!("not a hung handler: {finding:#}"));
                }
                if !said.contains("not one byte has come") || !said.contains("kills it in") {
                    wrong.push(format!("evidence: {said}"));
                }
                if !text(finding, "summary").contains(&client) {
                    wrong.push(format!("it does not name {client}: {}", finding["summary"]));
                }
                wrong
            })
        });
        let wrong =
            [wrong, nothing_above_info(&["--port", &server.port.to_string()]).err().into_iter().collect()];
        outcome(wrong.concat())
    });
}

#[test]
fn kept_alive_connection() {
    each_interpreter("gunicorn-kept-alive", wanted, |interpreter| {
        let server = Server::start(&venv::servers(interpreter)?, &THREADS, &[])?;
        let port = server.port.to_string();
        // One is between two requests, one in the midst of its second: neither handler hangs.
        let between = keep_alive(server.port, b"")?;
        let midst = keep_alive(server.port, b"GET /hea")?;
        let hung = Client::request(server.port, "GET", "/slow")?;
        let wrong = until_right(|| {
            with_report(&["--port", &port], |report, _| {
                let mut wrong = Vec::new();
                let mut of = |rule: &str| match all_findings(report).into_iter().find(|f| f["rule"] == rule) {
                    Some(finding) => Some(finding.clone()),
                    None => {
                        wrong.push(format!("no {rule}"));
                        None
                    }
                };
                let (idle, slow) = (of("client-idle"), of("handler-sleep"));
                if let Some(idle) = idle
                    && (idle["severity"] != "info" || !text_of(&idle["evidence"]).contains("bytes have come"))
                {
                    wrong.push(format!("{idle:#}"));
                }
                if let Some(slow) = slow {
                    let said = text_of(&slow["evidence"]);
                    let blind = list(&slow, "related").iter().any(|rule| rule == "gthread-blind");
                    if slow["request"]["path"] != "/slow" || !blind || !said.contains("does not notice") {
                        wrong.push(format!("{slow:#}"));
                    }
                    if !slow["request"]["age"].as_f64().is_some_and(|age| (4.0..120.0).contains(&age)) {
                        wrong.push(format!("age of the request: {}", slow["request"]));
                    }
                }
                wrong
            })
        });
        drop((between, midst, hung));
        outcome(wrong)
    });
}

/// A connection that has had one answer, and of whose next request only this has come.
fn keep_alive(port: u16, next: &[u8]) -> Outcome<TcpStream> {
    let exchange = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")?;
        let mut came = Vec::new();
        let mut buffer = [0; 1024];
        while !came.ends_with(b"}\n") {
            match stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => came.extend_from_slice(&buffer[..count]),
            }
        }
        stream.write_all(next)?;
        Ok(stream)
    };
    exchange().map_err(|e: std::io::Error| format!("kept-alive connection: {e}"))
}

// ---------------------------------------------------------------- reports

/// Runs `dump --json`, and gives the report and how it was printed.
pub fn with_report(target: &[&str], judge: impl Fn(&Value, &str) -> Vec<String>) -> Vec<String> {
    let output = hangscope(&[&["dump", "--json", "--locals"], target].concat());
    match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(report) => judge(&report, &lossy(&output.stdout)),
        Err(e) => vec![format!("{e}: {}", lossy(&output.stderr))],
    }
}

pub fn all_findings(report: &Value) -> Vec<&Value> {
    crate::judge::findings(report)
}

/// The one finding there is.
pub fn only_finding<'a>(report: &'a Value, rule: &str, wrong: &mut Vec<String>) -> Option<&'a Value> {
    // What is only worth knowing may stand beside it.
    let counts = |f: &&Value| f["severity"] != "info" || f["rule"] == rule;
    let all: Vec<&Value> = all_findings(report).into_iter().filter(counts).collect();
    match all[..] {
        [one] if one["rule"] == rule => Some(one),
        _ => {
            let threads = list(report, "processes").iter().flat_map(|p| list(p, "threads"));
            let waits: Vec<String> = threads.map(|t| t["waits_on"].to_string()).collect();
            let all: Vec<String> = all.iter().map(|f| brief(f)).collect();
            wrong.push(format!("not one {rule}: {all:?}; {waits:#?}"));
            None
        }
    }
}

pub fn worker_frame(report: &Value, finding: &Value, at: u64) -> Value {
    let found = crate::judge::actor(report, finding).map(|thread| list(thread, "frames"));
    found.and_then(|frames| frames.get(at as usize)).cloned().unwrap_or_default()
}

/// All sentences of a list.
pub fn text_of(list: &Value) -> String {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

/// `check` ends well, and says nothing worse than info.
pub fn nothing_above_info(target: &[&str]) -> Outcome {
    check_says(target, 0)?;
    let output = hangscope(&[&["check", "--json"], target].concat());
    let report: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    let bad: Vec<String> =
        all_findings(&report).into_iter().filter(|f| f["severity"] != "info").map(brief).collect();
    if bad.is_empty() { Ok(()) } else { Err(format!("a healthy server: {bad:?}")) }
}

pub fn outcome(wrong: Vec<String>) -> Outcome {
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
