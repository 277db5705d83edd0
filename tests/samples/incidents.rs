//! Samples with findings.

use super::*;
use hangscope::diagnose::{Cause, Finding, Severity};
use hangscope::render::report::ReportProcess;

fn finding(rule: &str, summary: &str, cause: Vec<Cause>) -> Finding {
    Finding {
        rule: rule.into(),
        severity: Severity::Critical,
        summary: summary.into(),
        pids: vec![4242],
        pid: Some(4242),
        tid: Some(4242),
        task: None,
        frame: Some(0),
        user_frame: Some(2),
        blocked_for: None,
        blocked_for_is: None,
        certainty: Certainty::Proved,
        request: None,
        cause,
        cycle: None,
        evidence: vec![],
        advice: None,
        related: vec![],
    }
}

fn cause(tid: i32, thread: &str, frame: Frame, wait: Option<Wait>) -> Cause {
    Cause {
        pid: Some(4242),
        tid: Some(tid),
        thread: Some(thread.into()),
        task: None,
        task_name: None,
        summary: String::new(),
        wait,
        frame: Some(frame),
        alike: 0,
    }
}

/// The picture of CONTRACT.md.
pub fn news_stream() -> Report {
    let request = Request {
        method: Some("GET".into()),
        path: Some("/news/stream".into()),
        framework: Some("starlette".into()),
        age: Some(51.2),
        ..Request::default()
    };
    let generator = own(
        "event_generator",
        "app.api.routes.stream",
        88,
        "with ThreadPoolExecutor(max_workers=5) as pool:",
    );
    let fetch = own("fetch_feed", "app.services.rss", 31, "requests.get(url)");

    let mut recv = wait(
        "socket",
        0,
        serde_json::json!({ "fd": 17, "peer": "10.0.0.7:443", "tcp_state": "ESTABLISHED" }),
    );
    recv.call = Some("ssl.SSLSocket.recv".into());
    recv.blocked_for = Some(46.3);
    let mut join = wait("thread", 1, serde_json::json!({ "name": "ThreadPoolExecutor-0_2", "alive": true }));
    join.on = vec![actor(4242, 4251, "ThreadPoolExecutor-0_2")];

    let mut main = thread(4242, "MainThread", Activity::Waiting, "futex", 47.1);
    main.event_loop = Some(EventLoop {
        kind: "asyncio".into(),
        state: "blocked".into(),
        iteration_age: Some(47.3),
        ready: Some(12),
        overdue: Some(1),
    });
    main.request = Some(request.clone());
    main.waits_on = Some(join.clone());
    main.frames = vec![
        library("Thread._wait_for_tstate_lock", "threading", 1167),
        library("Thread.join", "threading", 1147),
        library("ThreadPoolExecutor.shutdown", "concurrent.futures.thread", 235),
        library("Executor.__exit__", "concurrent.futures._base", 647),
        generator.clone(),
        library("StreamingResponse.stream_response", "starlette.responses", 246),
        library("Handle._run", "asyncio.events", 88),
        library("BaseEventLoop._run_once", "asyncio.base_events", 1987),
        library("BaseEventLoop.run_forever", "asyncio.base_events", 639),
        library("Server.run", "uvicorn.server", 62),
        library("<module>", "uvicorn.__main__", 4),
    ];
    let mut threads = vec![main];
    for n in 0..5 {
        let mut worker =
            thread(4249 + n, &format!("ThreadPoolExecutor-0_{n}"), Activity::Waiting, "recvfrom", 46.3);
        worker.os.as_mut().unwrap().syscall.as_mut().unwrap().args = vec!["fd=17".into()];
        worker.waits_on = Some(recv.clone());
        worker.frames = vec![
            library("SSLSocket.read", "ssl", 1134),
            library("SSLSocket.recv_into", "ssl", 1275),
            library("HTTPConnectionPool._make_request", "urllib3.connectionpool", 534),
            library("get", "requests.api", 73),
            fetch.clone(),
            library("_WorkItem.run", "concurrent.futures.thread", 58),
            library("_worker", "concurrent.futures.thread", 83),
            library("Thread._bootstrap", "threading", 1002),
        ];
        threads.push(worker);
    }
    let mut process = process(4242, "python -m uvicorn app.main:app --port 8000", threads);
    process.listens =
        Some(vec![Listener { address: "127.0.0.1:8000".into(), backlog: Some(2048), queued: Some(12) }]);

    let victim = cause(4242, "MainThread", generator, Some(join));
    let mut worker = cause(4251, "ThreadPoolExecutor-0_2", fetch, Some(recv));
    worker.alike = 4;
    let mut found = finding(
        "loop-executor-shutdown",
        "MainThread serves nobody: ThreadPoolExecutor.shutdown(wait=True) joins ThreadPoolExecutor-0_2",
        vec![victim, worker],
    );
    found.blocked_for = Some(47.1);
    found.request = Some(request);
    found.evidence = vec!["12 connections wait in the listen queue of 127.0.0.1:8000".into()];
    found.advice = Some(
        "keep one executor outside the generator; on disconnect cancel its futures and call \
         shutdown(wait=False, cancel_futures=True); give requests.get a timeout"
            .into(),
    );
    found.related = vec!["accept-backlog".into(), "traffic-jam".into()];
    let mut report = Report::new(snapshot(vec![process]));
    report.processes[0].findings.push(found);
    report
}

/// Somebody waits for one of three who wait for each other.
pub fn deadlock() -> Report {
    let names = ["transfer-a", "transfer-b", "transfer-c"];
    let frame = |n: usize| own("Account.transfer", "bank.accounts", 40 + n as u32, "with other.lock:");
    let mut threads = vec![];
    let mut causes = vec![];
    let wait_for = |n: usize| {
        let mut on = wait("lock", 0, Value::Null);
        on.address = Some(Address(0x7f2e_5c1a_0b40 + n as u64 * 0x40));
        on.on = vec![actor(4242, 4243 + n as i32, names[n])];
        on
    };
    let mut victim = thread(4242, "MainThread", Activity::Waiting, "futex", 61.0);
    victim.frames = vec![own("report", "bank.report", 9, "with ACCOUNTS.lock:")];
    victim.waits_on = Some(wait_for(0));
    causes.push(cause(4242, "MainThread", victim.frames[0].clone(), victim.waits_on.clone()));
    threads.push(victim);
    for (n, name) in names.iter().enumerate() {
        let mut one = thread(4243 + n as i32, name, Activity::Waiting, "futex", 62.0);
        one.frames = vec![frame(n), library("Thread.run", "threading", 982)];
        one.waits_on = Some(wait_for((n + 1) % 3));
        one.holds = vec![Lock {
            address: Address(0x7f2e_5c1a_0b40 + n as u64 * 0x40),
            kind: "lock".into(),
            name: Some(format!("accounts[{n}].lock")),
            frame: Some(0),
            line: Some(38),
            certainty: Certainty::Proved,
        }];
        causes.push(cause(4243 + n as i32, name, frame(n), one.waits_on.clone()));
        threads.push(one);
    }
    let mut found =
        finding("lock-cycle", "three transfers hold a lock each and wait for that of the next", causes);
    found.cycle = Some(vec![1, 2, 3]);
    found.blocked_for = Some(62.0);
    found.advice = Some("take the locks of both accounts in one order, e.g. by account number".into());
    let mut report = Report::new(snapshot(vec![process(4242, "python -m bank", threads)]));
    report.processes[0].findings.push(found);
    report
}

/// A finding of the whole fleet, and one that is only likely.
/// Workers under their supervisor: one is stuck, one is at a request, two are idle.
pub fn workers() -> Report {
    let mut report = news_stream();
    let server = |role: &str, supervisor: Option<i32>| Server {
        kind: "gunicorn".into(),
        role: role.into(),
        worker: supervisor.map(|_| "uvicorn".into()),
        timeout: Some(30.0),
        heartbeat_age: None,
        heartbeat_from: None,
        supervisor,
    };
    report.processes[0].process.server = Some(server("worker", Some(4240)));
    let mut more = Vec::new();
    for pid in [4240, 4241, 4243, 4244] {
        let main = thread(pid, "MainThread", Activity::Idle, "epoll_wait", 2.5);
        let mut worker = process(pid, "gunicorn -w 4 -k uvicorn.workers.UvicornWorker app:app", vec![main]);
        worker.server = Some(server("worker", Some(4240)));
        more.push(worker);
    }
    more[0].server = Some(server("arbiter", None));
    more[1].threads[0].request = Some(Request {
        method: Some("GET".into()),
        path: Some("/news/list".into()),
        framework: Some("fastapi".into()),
        age: Some(0.02),
        ..Request::default()
    });
    let more = more.into_iter().map(|process| ReportProcess { process, findings: vec![] });
    report.processes.extend(more);
    report.processes.sort_by_key(|reported| reported.process.pid);
    report
}

pub fn across_processes() -> Report {
    let mut put =
        wait("queue", 0, serde_json::json!({ "operation": "put", "size": 1, "maxsize": 1, "consumers": [] }));
    (put.label, put.ends_in, put.deadline) = (Some("jobs".into()), Some(29.7), Some("at".into()));
    put.certainty = Certainty::Likely;
    let mut lock = wait("file", 0, serde_json::json!({ "path": "/var/lib/news/index.lock" }));
    lock.on = vec![Actor { pid: Some(991), tid: None, thread: None, task: None, task_name: None }];
    let mut victim =
        cause(4242, "MainThread", own("submit", "app.jobs", 14, "JOBS.put(job, timeout=30)"), Some(put));
    victim.task = Some(Address(0x7f2e_5c1a_0000));
    let worker = cause(
        4300,
        "indexer",
        own("Index.lock", "app.index", 70, "fcntl.flock(self.fd, LOCK_EX)"),
        Some(lock),
    );
    let mut holder = cause(991, "", own("f", "m", 1, ""), None);
    (holder.pid, holder.tid, holder.thread, holder.frame) = (Some(991), None, None, None);
    holder.summary = "vim /var/lib/news/index.lock has it locked, for 2 h 5 min".into();
    let mut found = finding(
        "queue-full",
        "submit waits for room in a queue that nobody empties",
        vec![victim, Cause { pid: Some(4300), ..worker }, holder],
    );
    (found.severity, found.certainty, found.pids) =
        (Severity::Warning, Certainty::Likely, vec![4242, 4300, 991]);
    let mut report = Report::new(snapshot(vec![]));
    report.findings.push(found);
    let mut info =
        finding("client-idle", "2 workers wait for the next request on kept-alive connections", vec![]);
    info.severity = Severity::Info;
    report.findings.push(info);
    report
}
