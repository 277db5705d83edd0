//! Reports made by hand, one per thing that the text report must show well. Shared by the snapshot
//! tests and by `cargo run --example report`.

mod incidents;

use hangscope::render::report::Report;
use hangscope::snapshot::*;
use serde_json::Value;

/// All samples, by name.
pub fn all() -> Vec<(&'static str, Report)> {
    let mut samples: Vec<(&'static str, Report)> = [
        ("healthy", healthy as fn() -> Snapshot),
        ("many-threads", many_threads),
        ("hostile", hostile),
        ("foreign-scripts", foreign_scripts),
        ("locals", locals),
        ("recursion", recursion),
        ("torn", torn),
        ("no-access", no_access),
        ("skipped", skipped),
    ]
    .map(|(name, make)| (name, Report::new(make())))
    .into();
    samples.push(("news-stream", incidents::news_stream()));
    samples.push(("deadlock", incidents::deadlock()));
    samples.push(("workers", incidents::workers()));
    samples.push(("across-processes", incidents::across_processes()));
    samples
}

pub fn snapshot(processes: Vec<Process>) -> Snapshot {
    Snapshot {
        captured_at: "2025-11-03T02:58:11.482Z".into(),
        host: "web-3".into(),
        looks: vec![Look { at: 0.0, took: 0.001_234 }],
        processes,
        skipped: vec![],
    }
}

pub fn process(pid: i32, command: &str, threads: Vec<Thread>) -> Process {
    Process {
        pid,
        parent: Some(1),
        command: command.split(' ').map(str::to_owned).collect(),
        executable: Some("/usr/bin/python3.12".into()),
        executable_replaced: Some(false),
        cwd: Some("/srv/news".into()),
        python: Some(Python {
            version: "3.12.1".into(),
            implementation: "cpython".into(),
            free_threaded: false,
            debug: Some(false),
        }),
        followed: false,
        uptime: Some(11_540.0),
        rss: Some(212 << 20),
        open_fds: Some(41),
        fd_limit: Some(1024),
        listens: Some(vec![]),
        connections: Some(vec![]),
        children: Some(vec![]),
        server: None,
        cpu_throttled: Some(false),
        interpreters: vec![Interpreter {
            id: 0,
            gil: Some(Gil { holder: None, waiters: vec![] }),
            gc_collecting: Some(false),
        }],
        threads,
        tasks: vec![],
        problems: vec![],
        kin: Default::default(),
    }
}

/// A thread that sleeps in a system call.
pub fn thread(tid: i32, name: &str, activity: Activity, syscall: &str, blocked_for: f64) -> Thread {
    Thread {
        tid: Some(tid),
        ident: Some(0x7f2e_4400_0000 + tid as u64 * 0x1000),
        name: Some(name.into()),
        daemon: Some(false),
        main: name == "MainThread",
        interpreter: Some(0),
        os: Some(ThreadOs {
            state: Some('S'),
            wchan: None,
            syscall: Some(Syscall { name: syscall.into(), args: vec![] }),
            cpu_time: Some(1.5),
            blocked_for: Some(blocked_for),
            blocked_for_is: Some(Precision::Exact),
        }),
        activity,
        holds_gil: Some(false),
        event_loop: None,
        request: None,
        task: None,
        waits_on: None,
        holds: vec![],
        frames: vec![],
        complete: true,
        exiting: false,
        read: Read::Frozen,
        problems: vec![],
    }
}

pub fn running(tid: i32, name: &str, cpu_time: f64) -> Thread {
    let mut thread = thread(tid, name, Activity::Running, "", 0.0);
    thread.os = Some(ThreadOs { state: Some('R'), cpu_time: Some(cpu_time), ..ThreadOs::default() });
    thread.holds_gil = Some(true);
    thread.read = Read::Seat;
    thread
}

/// A frame of the standard library or an installed package.
pub fn library(qualname: &str, module: &str, line: u32) -> Frame {
    let installed = ["uvicorn", "starlette", "anyio", "requests", "urllib3"];
    let root = match installed.iter().any(|name| module.starts_with(name)) {
        true => "/srv/news/.venv/lib/python3.12/site-packages",
        false => "/usr/lib/python3.12",
    };
    let file = format!("{root}/{}.py", module.replace('.', "/"));
    Frame {
        function: qualname.rsplit('.').next().unwrap().into(),
        qualname: Some(qualname.into()),
        module: Some(module.into()),
        file: Some(file.as_str().into()),
        path: Some(file.into()),
        line: Some(line),
        source: None,
        kind: FrameKind::Python,
        user: false,
        locals: None,
    }
}

/// A frame of the application.
pub fn own(qualname: &str, module: &str, line: u32, source: &str) -> Frame {
    let file = format!("/srv/news/{}.py", module.replace('.', "/"));
    Frame {
        user: true,
        file: Some(file.as_str().into()),
        path: Some(file.into()),
        source: Some(source.into()),
        ..library(qualname, module, line)
    }
}

pub fn wait(kind: &str, frame: usize, detail: Value) -> Wait {
    Wait {
        kind: kind.into(),
        address: Some(Address(0x7f2e_5c1a_0b40)),
        label: None,
        call: None,
        frame: Some(frame),
        blocked_for: None,
        deadline: Some("none".into()),
        ends_in: None,
        on: vec![],
        certainty: Certainty::Proved,
        detail,
    }
}

pub fn actor(pid: i32, tid: i32, name: &str) -> Actor {
    Actor { pid: Some(pid), tid: Some(tid), thread: Some(name.into()), task: None, task_name: None }
}

pub fn idle_worker(tid: i32, name: &str, blocked_for: f64) -> Thread {
    let mut worker = thread(tid, name, Activity::Idle, "futex", blocked_for);
    worker.frames = vec![
        library("_worker", "concurrent.futures.thread", 81),
        library("Thread.run", "threading", 982),
        library("Thread._bootstrap_inner", "threading", 1045),
        library("Thread._bootstrap", "threading", 1002),
    ];
    worker
}

fn polling_main(tid: i32) -> Thread {
    let mut main = thread(tid, "MainThread", Activity::Idle, "epoll_wait", 0.31);
    main.event_loop = Some(EventLoop {
        kind: "asyncio".into(),
        state: "polling".into(),
        iteration_age: Some(0.31),
        ready: Some(0),
        overdue: Some(0),
    });
    main.frames = vec![
        library("EpollSelector.select", "selectors", 468),
        library("BaseEventLoop._run_once", "asyncio.base_events", 1949),
        library("BaseEventLoop.run_forever", "asyncio.base_events", 639),
        library("Runner.run", "asyncio.runners", 118),
        library("run", "uvicorn.main", 587),
        own("<module>", "serve", 12, "uvicorn.run(app, port=8000)"),
    ];
    main
}

fn healthy() -> Snapshot {
    let mut cruncher = running(4250, "resize", 12.4);
    cruncher.frames = vec![
        own("Resizer.resize", "images.resize", 61, "rows.append(self.kernel @ row)"),
        own("Resizer.loop", "images.resize", 33, "self.resize(self.jobs.get())"),
        library("Thread.run", "threading", 982),
    ];
    let mut contender = thread(4251, "stats", Activity::WaitingForGil, "futex", 0.0031);
    contender.daemon = Some(true);
    contender.frames =
        vec![own("flush", "stats", 20, "for key in self.counts:"), library("Timer.run", "threading", 1431)];
    let mut native = thread(4260, "grpc_event_eng", Activity::Unknown, "epoll_wait", 12.0);
    native.interpreter = None;
    let mut other = native.clone();
    (other.tid, other.name) = (Some(4261), Some("grpc_timer".into()));
    let mut process = process(
        4242,
        "python serve.py --port 8000",
        vec![
            idle_worker(4255, "ThreadPoolExecutor-0_0", 12.0),
            native,
            other,
            contender,
            cruncher,
            polling_main(4242),
        ],
    );
    process.interpreters[0].gil = Some(Gil { holder: Some(4250), waiters: vec![4251] });
    process.listens =
        Some(vec![Listener { address: "127.0.0.1:8000".into(), backlog: Some(2048), queued: Some(0) }]);
    snapshot(vec![process])
}

fn many_threads() -> Snapshot {
    let mut threads = vec![polling_main(5000)];
    threads
        .extend((1..200).map(|n| idle_worker(5000 + n, &format!("worker-{n}"), 30.0 + f64::from(n) / 10.0)));
    for n in 0..6 {
        let mut fetcher = thread(
            6000 + 7 * n,
            ["ansa", "dpa", "afp", "efe", "kyodo", "tass"][n as usize],
            Activity::Waiting,
            "recvfrom",
            46.0,
        );
        fetcher.os.as_mut().unwrap().syscall.as_mut().unwrap().args = vec![format!("fd={}", 17 + n)];
        fetcher.frames = vec![
            library("SSLSocket.read", "ssl", 1134),
            library("get", "requests.api", 73),
            own("fetch_feed", "app.services.rss", 31, "body = requests.get(url).content"),
        ];
        let peer = serde_json::json!({ "fd": 17 + n, "peer": format!("10.0.0.{}:443", 7 + n), "tcp_state": "ESTABLISHED" });
        let mut on = wait("socket", 0, peer);
        on.call = Some("ssl.SSLSocket.recv".into());
        fetcher.waits_on = Some(on);
        threads.push(fetcher);
    }
    snapshot(vec![process(5000, "python -m news.worker --threads 200", threads)])
}

fn hostile() -> Snapshot {
    let mut evil =
        thread(4242, "x\x1b]0;owned\x07\x1b[2J\nThread 1 \"fake\"", Activity::Waiting, "read", 3.0);
    let mut frame =
        own("f\u{202e}gnp.exe", "m\u{9b}31m", 7, "print('\x1b[31m') # \u{2066}hidden\u{2069}\ttab");
    frame.locals = Some(vec![Local {
        name: "a\r".into(),
        value: "'\x1b[1A\x1b[2K\u{200b}\u{7f}\0'".into(),
        argument: true,
    }]);
    evil.frames = vec![frame, library("run\x08\x08", "thread\ning", 1)];
    evil.problems = vec!["name is not UTF-8: \x1b(0 \u{fffd}".into()];
    let mut process = process(4242, "python -c \x1b[5m\nimport\u{85}os", vec![evil]);
    process.problems = vec!["\x1b[31mred\u{2028}".into()];
    process.listens =
        Some(vec![Listener { address: "/tmp/\x1b[7m.sock".into(), backlog: None, queued: Some(3) }]);
    let mut snapshot = snapshot(vec![process]);
    snapshot.skipped = vec![Skipped {
        pid: 7,
        command: vec!["\x1bc".into()],
        reason: "gone\r\n".into(),
        remedy: Some("none\u{202d}".into()),
        by_the_way: false,
    }];
    snapshot
}

fn foreign_scripts() -> Snapshot {
    let mut worker = thread(4243, "Größenänderung-名前-👩‍💻", Activity::Waiting, "futex", 3.0);
    worker.frames = vec![
        own("Straße.überqueren", "stadt.straße", 12, "ампель.ждать()  # 青になるまで"),
        own("処理する", "stadt.処理", 7, "Straße().überqueren()"),
        library("Thread.run", "threading", 982),
    ];
    let mut plain = idle_worker(4244, "pool-1", 3.0);
    plain.frames.insert(0, library("x", "threading", 1));
    snapshot(vec![process(4242, "python -m stadt --größe 3", vec![worker, plain])])
}

fn locals() -> Snapshot {
    let local =
        |name: &str, value: &str, argument| Local { name: name.into(), value: value.into(), argument };
    let mut main = thread(4242, "MainThread", Activity::Waiting, "clock_nanosleep", 12.0);
    let mut charge = own("Order.charge", "shop.orders", 88, "time.sleep(self.backoff(attempt))");
    charge.locals = Some(vec![
        local("self", "<shop.orders.Order at 0x7f2e5c1a0b40>", true),
        local("amount", "1999", true),
        local("idempotency_key_of_the_request", "'7f3c'", true),
        local("attempt", "4", false),
        local(
            "response",
            "{'status': 'pending', 'retry_after': 30, 'links': ['https://pay.example/charges/91', 'https://pay.example/refunds/91'], 'trace': None}",
            false,
        ),
        local("token", "***", false),
    ]);
    main.frames = vec![charge, own("<module>", "__main__", 4, "main()")];
    main.frames[1].file = Some("/srv/news/run.py".into());
    let mut sleep = wait("sleep", 0, serde_json::json!({ "seconds": 30.0 }));
    (sleep.ends_in, sleep.deadline) = (Some(18.0), Some("at".into()));
    main.waits_on = Some(sleep);
    let mut process = process(4242, "python /srv/news/run.py", vec![main]);
    process.cwd = Some("/".into());
    snapshot(vec![process])
}

fn recursion() -> Snapshot {
    let mut main = running(4242, "MainThread", 3.0);
    main.frames = vec![library("len_hint", "operator", 3)];
    for _ in 0..300 {
        main.frames.push(own("Walker.visit_child", "tree.walk", 41, "return self.visit(child)"));
        main.frames.push(own(
            "Walker.visit",
            "tree.walk",
            33,
            "return [self.visit_children(c) for c in node]",
        ));
        main.frames.push(own("Walker.visit_children", "tree.walk", 37, "return self.visit_child(node)"));
    }
    main.frames.push(own("<module>", "tree.walk", 50, "Walker().visit(root)"));
    let mut fib = thread(4243, "fib", Activity::WaitingForGil, "futex", 0.004);
    fib.frames = (0..40).map(|n| own("fib", "fib", 3 + n % 2, "return fib(n - 1) + fib(n - 2)")).collect();
    let mut process = process(4242, "python -m tree.walk", vec![main, fib]);
    process.interpreters[0].gil = Some(Gil { holder: Some(4242), waiters: vec![4243] });
    snapshot(vec![process])
}

fn torn() -> Snapshot {
    let mut torn = running(4242, "MainThread", 61.0);
    (torn.read, torn.complete) = (Read::Torn, false);
    torn.frames = vec![own("parse", "feed.parser", 19, "yield token"), library("loads", "json", 346)];
    torn.problems = vec!["frame 2 of the stack points to 0x10, which is not mapped".into()];
    torn.holds_gil = None;
    let mut moving = running(4243, "worker", 61.0);
    (moving.read, moving.holds_gil) = (Read::Moving, None);
    moving.frames = vec![own("parse", "feed.parser", 21, "stack.pop()")];
    let mut stopped = thread(4244, "stopped", Activity::Unknown, "", 0.0);
    stopped.os = Some(ThreadOs { state: Some('T'), ..ThreadOs::default() });
    stopped.frames = vec![library("Thread.run", "threading", 982)];
    let mut disk = thread(4245, "disk", Activity::Waiting, "read", 9.0);
    disk.os.as_mut().unwrap().state = Some('D');
    disk.os.as_mut().unwrap().syscall.as_mut().unwrap().args = vec!["fd=9".into(), "count=65536".into()];
    disk.frames = vec![own("load", "feed.store", 5, "return file.read()")];
    let mut young = thread(4246, "young", Activity::Waiting, "futex", 0.3);
    young.os.as_mut().unwrap().blocked_for_is = Some(Precision::AtLeast);
    let mut process = process(4242, "python feed.py", vec![torn, moving, stopped, disk, young]);
    process.python.as_mut().unwrap().free_threaded = true;
    process.interpreters[0].gil = None;
    process.problems = vec![
        "the listening sockets: /proc/4242/net is not readable".into(),
        "2 of 9 threads: the list of thread states ended early at 0x7f2e5c1a0b40, where the next one should be".into(),
    ];
    snapshot(vec![process])
}

fn no_access() -> Snapshot {
    let mut threads: Vec<Thread> =
        (0..6).map(|n| thread(4242 + n, "python3", Activity::Unknown, "futex", 47.0)).collect();
    for thread in &mut threads {
        (thread.ident, thread.interpreter, thread.holds_gil, thread.daemon) = (None, None, None, None);
    }
    threads[0].main = true;
    threads[0].os.as_mut().unwrap().syscall = None;
    threads[0].os.as_mut().unwrap().wchan = Some("ep_poll".into());
    threads[5].name = Some("ThreadPoolExecu".into());
    threads[5].os.as_mut().unwrap().state = Some('R');
    let mut process = process(4242, "python -m uvicorn app.main:app --port 8000", threads);
    process.python = None;
    process.interpreters = vec![];
    (process.open_fds, process.fd_limit, process.listens) = (None, Some(1024), None);
    process.problems = vec!["its memory: process_vm_readv was refused (EPERM), because pid 4242 belongs to another user (www-data) and this process lacks CAP_SYS_PTRACE".into()];
    snapshot(vec![process])
}

fn skipped() -> Snapshot {
    let mut snapshot = snapshot(vec![]);
    let skipped = |pid, command: &str, reason: &str, remedy: Option<&str>| Skipped {
        pid,
        command: command.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        reason: reason.into(),
        remedy: remedy.map(str::to_owned),
        by_the_way: false,
    };
    snapshot.skipped = vec![
        skipped(4711, "nginx: worker process", "not a Python process", None),
        skipped(
            4712,
            "python -m celery -A shop.tasks worker --loglevel INFO --concurrency 8 --queues orders,mail,reports",
            "its memory may not be read: kernel.yama.ptrace_scope is 1, and pid 4712 is no descendant of this process",
            Some("run hangscope as root, or: sudo sysctl kernel.yama.ptrace_scope=0"),
        ),
        skipped(4713, "", "has ended", None),
    ];
    snapshot
}
