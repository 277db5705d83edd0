//! `hangscope watch` on real programs and a real server: what it catches, what it leaves alone, and what it leaves
//! behind.

mod common;
#[allow(dead_code, reason = "the incidents use the rest")]
#[path = "incidents/server.rs"]
mod server;
#[allow(dead_code, reason = "the incidents use the rest")]
#[path = "incidents/venv.rs"]
mod venv;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::{DEADLINE, Interpreter, Outcome, Program, binary, interpreters, list, lossy, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use server::{Server, get};

/// A `hangscope watch` that runs; dropped, it is killed.
struct Watch {
    child: Child,
    lines: Receiver<String>,
    /// Everything that was said on either stream.
    said: Arc<Mutex<String>>,
}

impl Watch {
    fn start(args: &[&str]) -> Watch {
        let mut command = Command::new(binary());
        command.arg("watch").args(args).env("NO_COLOR", "1").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("hangscope starts");
        let (sender, lines) = channel();
        let said = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for stream in streams {
            let (sender, said) = (sender.clone(), Arc::clone(&said));
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    *said.lock().unwrap() += &format!("{line}\n");
                    let _ = sender.send(line);
                }
            });
        }
        Watch { child, lines, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// The next line that has all of these in it.
    fn line(&self, wanted: &[&str]) -> Outcome<String> {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted.iter().all(|part| line.contains(part)) => return Ok(line),
                Ok(_) => {}
                Err(error) => {
                    let ended = if error == RecvTimeoutError::Timeout { "in time" } else { "before its end" };
                    return Err(format!("no line with {wanted:?} {ended}; it said:\n{}", self.said()));
                }
            }
        }
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
        self.ended()
    }

    fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status;
            }
            assert!(Instant::now() < end, "it does not end; it said:\n{}", self.said());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python() -> Interpreter {
    let all = interpreters();
    let wanted = all.iter().find(|i| i.label == "3.12");
    wanted.or(all.last()).expect("there is an interpreter").clone()
}

fn program(interpreter: &Interpreter, args: &[&str]) -> Program {
    let program = Program::start(interpreter, "incidents/watched.py", args).expect("it starts");
    program.line("READY ").expect("it is ready");
    program
}

/// The path that a line of a stall ends in.
fn report_of(line: &str) -> PathBuf {
    PathBuf::from(line.rsplit(" · ").next().expect("it has parts"))
}

fn json(path: &Path) -> Value {
    let file = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&file).expect("it is JSON")
}

fn size_of(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn a_stall_among_health_is_caught_with_its_line_and_its_culprit() {
    let interpreter = python();
    for event_loop in ["uvloop", "asyncio"] {
        let out = tempfile::tempdir().unwrap();
        let args = ["-m", "uvicorn", "watched:app", "--port", "{port}", "--loop", event_loop];
        let server = Server::start(&interpreter, &args, &[]).expect("the server starts");
        let port = server.port.to_string();
        let watch =
            Watch::start(&["--port", &port, "--cool-down", "0", "--out", out.path().to_str().unwrap()]);
        watch.line(&["watching pid"]).unwrap();
        for _ in 0..20 {
            get(server.port, "/health").expect("it is healthy");
        }
        // 1.2 s; longer only where the machine was too busy to look in time.
        let mut caught = None;
        for seconds in [1.2, 2.4, 4.8] {
            let mut client =
                server::Client::request(server.port, "GET", &format!("/stall?seconds={seconds}")).unwrap();
            let over = watch.line(&["· over after"]);
            client.until("slept").ok();
            let mut files = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().path());
            // Where it was too busy for a whole look, the report has no more than that it stands.
            let profile = files.find(|file| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                name.ends_with(".folded") && name.contains("loop-sleep")
            });
            if over.is_ok() && profile.is_some() {
                caught = profile;
                break;
            }
        }
        let Some(profile) = caught else { panic!("{event_loop}: {}", watch.said()) };
        for _ in 0..20 {
            get(server.port, "/health").expect("it is healthy again");
        }
        let said = watch.said();
        let file = profile.with_extension("1.txt");
        let is_ours = |line: &&str| line.ends_with(&file.display().to_string());
        let stall = said.lines().find(is_ours).unwrap_or_else(|| panic!("{event_loop}: {said}"));
        assert!(stall.contains(" loop-sleep · pid "), "{stall}");
        let note = fs::read_to_string(&file).unwrap();
        assert!(note.contains("time.sleep(seconds)") && note.contains("EVENT LOOP BLOCKED"), "{note}");
        assert!(!note.contains('\x1b'), "{note}");

        let report = json(&file.with_extension("json"));
        let process = &list(&report, "processes")[0];
        let finding = &list(process, "findings")[0];
        assert_eq!(text(finding, "rule"), "loop-sleep", "{finding}");
        assert!(finding["blocked_for"].as_f64().is_some_and(|age| age >= 1.0), "{event_loop}: {finding}");
        let thread =
            list(process, "threads").iter().find(|t| t["tid"] == finding["tid"]).expect("it is there");
        let user = &list(thread, "frames")[finding["user_frame"].as_u64().expect("a line of ours") as usize];
        assert_eq!(text(user, "function"), "stall");
        assert_eq!(text(&finding["request"], "path").split('?').next(), Some("/stall"), "{finding}");

        // The capture says the same on another machine.
        let capture = file.with_extension("capture");
        let again = common::hangscope(&["dump", "--capture", capture.to_str().unwrap()]);
        assert!(lossy(&again.stdout).contains("time.sleep(seconds)"), "{}", lossy(&again.stderr));
        // What it was doing, sample by sample, and how long it took.
        let samples = fs::read_to_string(&profile).unwrap();
        assert!(samples.lines().any(|line| line.contains("stall (") && line.contains(';')), "{samples}");
        let end = json(&profile.with_extension("over.json"));
        assert!(end["lasted"].as_f64().is_some_and(|lasted| lasted >= 1.0), "{end}");
        // Where there was time for another look, it slept at the same place.
        assert_ne!(end["moved"], Value::Bool(true), "{end}");
        assert!(end["places"][0].as_str().is_some_and(|place| place.starts_with("stall ")), "{end}");
        // Health is no stall.
        let stalls = said.lines().filter(|l| l.contains(" · for ")).count();
        assert_eq!(
            stalls,
            said.lines().filter(|l| l.contains("loop-sleep · pid") && l.contains(" · for ")).count()
        );
    }
}

#[test]
fn a_request_in_a_worker_thread_is_caught_while_the_loop_serves_others() {
    let server =
        Server::start(&python(), &["-m", "uvicorn", "watched:app", "--port", "{port}"], &[]).unwrap();
    let watch = Watch::start(&["--port", &server.port.to_string(), "--stall", "300ms"]);
    watch.line(&["watching pid"]).unwrap();
    let _client = server::Client::request(server.port, "GET", "/slow?seconds=60").unwrap();
    let line = watch.line(&["request-stall · pid", " · for "]).unwrap();
    assert!(line.contains("GET /slow"), "{line}");
    assert!(line.contains("slow "), "{line}");
    assert!(get(server.port, "/health").is_ok());
}

#[test]
fn a_request_that_computes_or_sleeps_in_small_steps_is_caught_and_a_stream_is_not() {
    let server =
        Server::start(&python(), &["-m", "uvicorn", "watched:app", "--port", "{port}"], &[]).unwrap();
    let watch = Watch::start(&["--port", &server.port.to_string(), "--stall", "500ms"]);
    watch.line(&["watching pid"]).unwrap();
    for (path, function) in [("/compute", "compute "), ("/steps", "steps ")] {
        let mut client = server::Client::request(server.port, "GET", &format!("{path}?seconds=12")).unwrap();
        let line = watch.line(&["request-stall", " · for ", path]).unwrap();
        assert!(line.contains(function), "{line}");
        watch.line(&["request-stall", "· over after"]).unwrap();
        client.until("}").unwrap();
    }
    let mut stream = server::Client::request(server.port, "GET", "/stream?seconds=3").unwrap();
    let chunks = stream.rest().unwrap();
    assert!(chunks.contains("chunk"), "{chunks}");
    assert!(!watch.said().contains("/stream"), "{}", watch.said());
}

#[test]
fn a_request_that_awaits_is_caught_where_that_is_asked_for() {
    let server =
        Server::start(&python(), &["-m", "uvicorn", "watched:app", "--port", "{port}"], &[]).unwrap();
    let port = server.port.to_string();
    let [asked, not_asked] = [&["--await", "500ms"][..], &[]]
        .map(|args| Watch::start(&[&["--port", &port, "--stall", "500ms"], args].concat()));
    for watch in [&asked, &not_asked] {
        watch.line(&["watching pid"]).unwrap();
    }
    let client = server::Client::request(server.port, "GET", "/await?seconds=600").unwrap();
    let line = asked.line(&["request-stall", " · for "]).unwrap();
    assert!(line.contains("GET /await") && line.contains("awaits in awaits "), "{line}");
    // Once, for all that it lasts.
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!(asked.said().matches(" · for ").count(), 1, "{}", asked.said());
    assert!(!not_asked.said().contains(" · for "), "{}", not_asked.said());
    drop(client);
}

#[test]
fn one_stall_of_1_2_s_at_a_random_moment_is_caught() {
    let out = tempfile::tempdir().unwrap();
    let server =
        Server::start(&python(), &["-m", "uvicorn", "watched:app", "--port", "{port}"], &[]).unwrap();
    let mut watch = Watch::start(&[
        "--port",
        &server.port.to_string(),
        "--cool-down",
        "0",
        "--out",
        out.path().to_str().unwrap(),
    ]);
    watch.line(&["watching pid"]).unwrap();
    // Health, for a time that nobody has chosen to suit the polls.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let healthy = std::time::Duration::from_millis(1000 + u64::from(now.subsec_nanos()) % 3000);
    let until = Instant::now() + healthy;
    while Instant::now() < until {
        get(server.port, "/health").expect("it is healthy");
    }
    // 1.2 s; longer only where the machine was too busy to look in time.
    let (mut told, mut caught) = (0, false);
    for seconds in [1.2, 2.4, 4.8] {
        let mut client =
            server::Client::request(server.port, "GET", &format!("/stall?seconds={seconds}")).unwrap();
        let line = watch.line(&[" · for "]).unwrap_or_else(|e| panic!("after {healthy:?}: {e}"));
        told += 1;
        watch.line(&["over after"]).unwrap();
        client.until("slept").unwrap();
        let note = fs::read_to_string(report_of(&line)).unwrap();
        caught = line.contains(" loop-sleep ")
            && note.contains("time.sleep(seconds)")
            && note.contains("GET /stall");
        if caught {
            break;
        }
    }
    assert!(caught, "{}", watch.said());
    get(server.port, "/health").expect("it is healthy again");
    assert_eq!(watch.end(Signal::SIGTERM).code(), Some(143));
    // And nothing else: not its start, not the busy time before.
    assert_eq!(watch.said().matches(" · for ").count(), told, "{}", watch.said());
}

#[test]
fn a_wait_for_a_lock_is_caught_with_its_holder() {
    let program = program(&python(), &["lock"]);
    let watch = Watch::start(&[&program.pid().to_string(), "--stall", "300ms"]);
    let line = watch.line(&[" · for "]).unwrap();
    assert!(line.contains("lock-wait") && line.contains("waiter") && line.contains("holder"), "{line}");
}

#[test]
fn health_is_left_alone_under_every_interpreter() {
    common::each_interpreter(
        "health_is_left_alone",
        |_| true,
        |interpreter| {
            let program = program(interpreter, &["healthy"]);
            let mut watch =
                Watch::start(&[&program.pid().to_string(), "--stall", "400ms", "--interval", "5ms"]);
            watch.line(&["watching pid"])?;
            // Longer than the limit, and than the first patrol.
            std::thread::sleep(std::time::Duration::from_millis(1800));
            let status = watch.end(Signal::SIGTERM);
            let said = watch.said();
            if status.code() != Some(143) {
                return Err(format!("{status}: {said}"));
            }
            match said.contains(" · for ") {
                true => Err(said),
                false => Ok(()),
            }
        },
    );
}

#[test]
fn a_stuck_loop_is_caught_under_every_interpreter() {
    common::each_interpreter(
        "a_stuck_loop_is_caught",
        |_| true,
        |interpreter| {
            let program = program(interpreter, &["stuck"]);
            let mut watch = Watch::start(&["--stall", "200ms", "--once", &program.pid().to_string()]);
            let line = watch.line(&[" · for "])?;
            if !line.contains(" loop-") {
                return Err(line);
            }
            match watch.ended().code() {
                Some(0) => Ok(()),
                other => Err(format!("{other:?}: {}", watch.said())),
            }
        },
    );
}

#[test]
fn stalls_of_loops_that_asyncio_knows_nothing_of_are_caught() {
    common::each_interpreter("stalls_of_other_loops", venv::has_servers, |interpreter| {
        let interpreter = venv::loops(interpreter)?;
        for (kind, how) in
            [("trio", "compute"), ("trio", "sleep"), ("gevent", "compute"), ("gevent", "sleep")]
        {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("now");
            let args = [kind, how, file.to_str().unwrap()];
            let program = Program::start(&interpreter, "incidents/other_loops.py", &args)?;
            program.line("READY ")?;
            let pid = program.pid().to_string();
            let watch = Watch::start(&["--stall", "800ms", "--metrics", "127.0.0.1:0", &pid]);
            let port = port_of(&watch)?;
            // Its loop is known, and healthy for longer than the limit.
            let seen = format!("hangscope_loop_lag_seconds_count{{pid=\"{pid}\"}} ");
            let polls = || -> Outcome<u64> {
                let text = get(port, "/metrics")?;
                let count = text.lines().find_map(|line| line.strip_prefix(&seen)?.parse().ok());
                Ok(count.unwrap_or(0))
            };
            program.until("its loop", || Ok(polls()? > 0))?;
            std::thread::sleep(std::time::Duration::from_millis(1500));
            if watch.said().contains(" · for ") {
                return Err(format!("{kind}, healthy: {}", watch.said()));
            }
            fs::write(&file, "").unwrap();
            let line = watch.line(&[" loop-", " · for "]).map_err(|e| format!("{kind}, {how}: {e}"))?;
            let function = if how == "compute" { "compute" } else { "sleep" };
            if !line.contains(function) {
                return Err(format!("{kind}, {how}: {line}"));
            }
        }
        Ok(())
    });
}

/// Where its metrics are served.
fn port_of(watch: &Watch) -> Outcome<u16> {
    let served = watch.line(&["metrics are served on http://127.0.0.1:"])?;
    let port = served.rsplit(':').next().and_then(|end| end.trim_end_matches("/metrics").parse().ok());
    port.ok_or(served)
}

#[test]
fn many_stalls_fill_no_disk() {
    let program = program(&python(), &["stalls"]);
    let out = tempfile::tempdir().unwrap();
    let args = ["--stall", "20ms", "--interval", "2ms", "--cool-down", "0", "--max-size", "400K", "--out"];
    let pid = program.pid().to_string();
    let mut watch = Watch::start(&[&args[..], &[out.path().to_str().unwrap(), &pid]].concat());
    watch.line(&["not kept: max-size"]).unwrap();
    for _ in 0..30 {
        watch.line(&["not kept"]).unwrap();
    }
    assert_eq!(watch.end(Signal::SIGTERM).code(), Some(143));
    let size = size_of(out.path());
    assert!(size <= 400 << 10, "{size}");
    assert!(
        fs::read_dir(out.path()).unwrap().any(|e| e.unwrap().path().extension().is_some_and(|e| e == "txt"))
    );
}

#[test]
fn a_command_is_run_with_the_report() {
    let program = program(&python(), &["stalls"]);
    let (out, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let exec = format!("cp -t '{}'", copies.path().display());
    let args = ["--stall", "20ms", "--interval", "2ms", "--max-reports", "1", "--exec", &exec];
    let pid = program.pid().to_string();
    let mut watch = Watch::start(&[&args[..], &["--out", out.path().to_str().unwrap(), &pid]].concat());
    let line = watch.line(&[".1.txt"]).unwrap();
    let report = report_of(&line);
    let copy = copies.path().join(report.file_name().unwrap());
    program.until("the copy", || Ok(copy.exists())).unwrap();
    watch.line(&["not kept: max-reports"]).unwrap();
    // It waits for what it has started.
    assert_eq!(watch.end(Signal::SIGINT).code(), Some(130));
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&report).unwrap());
    assert_eq!(fs::read_dir(copies.path()).unwrap().count(), 1);
}

#[test]
fn a_restart_is_followed() {
    let mark = format!("mark-{}", std::process::id());
    let first = program(&python(), &["healthy", &mark]);
    let watch = Watch::start(&["--name", &mark, "--stall", "200ms"]);
    watch.line(&[&format!("watching pid {}", first.pid())]).unwrap();
    let old = first.pid();
    drop(first);
    watch.line(&[&format!("pid {old} has ended")]).unwrap();
    let second = program(&python(), &["stuck", &mark]);
    // It waits for our next line, and we for its: which of the rules says so is not the matter here. The two come on
    // two streams, in whatever order.
    let (watched, pid) = (format!("watching pid {}", second.pid()), format!("pid {} ", second.pid()));
    let is_stall = |line: &str| line.contains(&pid) && line.contains(" · for ");
    let said = || watch.said();
    let caught = || Ok(said().contains(&watched) && said().lines().any(is_stall));
    second.until("its stall", caught).unwrap_or_else(|e| panic!("{e}: {}", said()));
}

#[test]
fn ends_and_exit_codes() {
    let healthy = program(&python(), &["healthy"]);
    let pid = healthy.pid().to_string();
    let mut watch = Watch::start(&[&pid]);
    watch.line(&["watching pid"]).unwrap();
    drop(healthy);
    watch.line(&["has ended"]).unwrap();
    assert_eq!(watch.ended().code(), Some(0), "{}", watch.said());
    assert_eq!(Watch::start(&[&pid]).ended().code(), Some(3));
    assert_eq!(Watch::start(&[]).ended().code(), Some(2));
    assert_eq!(Watch::start(&["--exec", "a", &pid]).ended().code(), Some(2));
    let own = python().command[0].to_string_lossy().into_owned();
    assert_eq!(Watch::start(&["--", &own, "-c", "raise SystemExit(7)"]).ended().code(), Some(7));
    assert_eq!(Watch::start(&["--", "/nowhere/python"]).ended().code(), Some(125));
}

#[test]
fn a_command_is_started_watched_and_ended() {
    let file = venv::fixtures().join("watched.py");
    let own = python().command[0].to_string_lossy().into_owned();
    let mut watch = Watch::start(&["--stall", "200ms", "--", &own, file.to_str().unwrap(), "lock"]);
    let line = watch.line(&["watching pid"]).unwrap();
    let pid: i32 = line.split("pid ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    watch.line(&["lock-wait", " · for "]).unwrap();
    assert_eq!(watch.end(Signal::SIGTERM).code(), Some(143), "{}", watch.said());
    assert!(common::state(pid, pid).is_none(), "it runs on");
}

#[test]
fn metrics_tell_of_pools_and_descriptors() {
    let program = program(&python(), &["pool"]);
    let pid = program.pid();
    let watch = Watch::start(&["--metrics", "127.0.0.1:0", &pid.to_string()]);
    let port = port_of(&watch).unwrap();
    let wanted = format!("hangscope_executor_queue_depth{{pid=\"{pid}\"}} 5\n");
    program.until(&wanted, || Ok(get(port, "/metrics")?.contains(&wanted))).unwrap();
    let text = get(port, "/metrics").unwrap();
    // Who does not ask for OpenMetrics gets what everybody understands.
    assert!(text.contains("text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("# TYPE hangscope_polls_total counter\n"), "{text}");
    if let Some(promtool) = common::tool("promtool") {
        let body = text.split("\r\n\r\n").nth(1).expect("a body");
        let mut command = Command::new(promtool);
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut check = command.spawn().expect("it starts");
        check.stdin.take().expect("piped").write_all(body.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", lossy(&output.stderr));
    }
    let fds = format!("hangscope_open_fds{{pid=\"{pid}\"}} ");
    assert!(text.lines().any(|l| l.starts_with(&fds)), "{text}");
    assert!(get(port, "/nothing").unwrap().starts_with("HTTP/1.1 404"));
    assert!(get(port, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn prometheus_scrapes_it() {
    let Some(prometheus) = common::tool("prometheus") else { return };
    let program = program(&python(), &["stalls"]);
    let pid = program.pid().to_string();
    let watch = Watch::start(&["--stall", "20ms", "--interval", "2ms", "--metrics", "127.0.0.1:0", &pid]);
    let served = watch.line(&["metrics are served on http://"]).unwrap();
    let address = served.split("http://").nth(1).unwrap().trim_end_matches("/metrics").to_owned();
    watch.line(&[" · for "]).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: hangscope, static_configs: [{{targets: ['{address}']}}]}}]\n"
    );
    fs::write(&config, text).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(prometheus);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let _server = Program::spawn(command, "prometheus".into(), None).unwrap();
    let ask = |query: &str| -> Outcome<Vec<Value>> {
        let answer = get(port, &format!("/api/v1/query?query={query}"))?;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let from = body.find('{').ok_or("no JSON")?;
        let to = body.rfind('}').ok_or("no JSON")?;
        let answer: Value = serde_json::from_str(&body[from..=to]).map_err(|e| format!("{e}: {body}"))?;
        Ok(list(&answer["data"], "result").to_vec())
    };
    let value = |query: &str| {
        let found = ask(query).ok()?;
        found.first()?["value"][1].as_str()?.parse::<f64>().ok()
    };
    for (query, least) in [
        ("sum(hangscope_stalls_total)", 1.0),
        ("hangscope_loop_lag_seconds_count", 10.0),
        ("hangscope_polls_total", 10.0),
        ("hangscope_targets", 1.0),
        ("hangscope_open_fds", 3.0),
        ("hangscope_gil_held_ratio", 0.0),
        ("hangscope_blocked_threads", 0.0),
        ("up", 1.0),
    ] {
        program.until(query, || Ok(value(query).is_some_and(|value| value >= least))).unwrap();
    }
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let disk = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(disk.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this user may not mount a small disk");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }
    let _mount = Unmount(disk.path().to_owned());
    let program = program(&python(), &["stalls"]);
    let args = ["--stall", "20ms", "--interval", "2ms", "--cool-down", "0", "--out"];
    let pid = program.pid().to_string();
    let mut watch = Watch::start(&[&args[..], &[disk.path().to_str().unwrap(), &pid]].concat());
    watch.line(&["cannot be written", "No space left"]).unwrap();
    watch.line(&[" · for "]).unwrap();
    assert_eq!(watch.end(Signal::SIGTERM).code(), Some(143));
    // No half file: each JSON that is there is whole.
    for entry in fs::read_dir(disk.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            json(&path);
        }
    }
}
