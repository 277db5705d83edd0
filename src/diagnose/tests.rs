//! Every rule on a snapshot made by hand, and its healthy twin beside it.

use super::*;
use crate::snapshot::*;
use serde_json::{Value, json};

const PID: i32 = 100;

fn frame(module: &str, function: &str, user: bool) -> Frame {
    Frame {
        function: function.into(),
        qualname: None,
        module: Some(module.into()),
        file: Some(format!("/x/{module}.py").into()),
        path: None,
        line: Some(41),
        source: None,
        kind: FrameKind::Python,
        user,
        locals: None,
    }
}

/// Asleep for a minute, in the application's function of the thread's own name.
fn thread(tid: i32, name: &str) -> Thread {
    Thread {
        tid: Some(tid),
        ident: Some(0x7000 + tid as u64),
        name: Some(name.into()),
        daemon: Some(false),
        main: tid == PID,
        exiting: false,
        interpreter: Some(0),
        os: Some(ThreadOs { state: Some('S'), blocked_for: Some(60.0), ..ThreadOs::default() }),
        activity: Activity::Waiting,
        holds_gil: Some(false),
        event_loop: None,
        request: None,
        task: None,
        waits_on: None,
        holds: vec![],
        frames: vec![frame("server", name, true)],
        complete: true,
        read: Read::Frozen,
        problems: vec![],
    }
}

fn wait(kind: &str, call: &str, address: u64, on: &[i32], detail: Value) -> Wait {
    let actor =
        |tid: &i32| Actor { pid: Some(PID), tid: Some(*tid), thread: None, task: None, task_name: None };
    Wait {
        kind: kind.into(),
        address: Some(Address(address)),
        label: None,
        call: Some(call.into()),
        frame: Some(0),
        blocked_for: Some(60.0),
        deadline: Some("none".into()),
        ends_in: None,
        on: on.iter().map(actor).collect(),
        certainty: Certainty::Proved,
        detail,
    }
}

trait With: Sized {
    fn waits(self, wait: Wait) -> Self;
    fn on_loop(self, age: f64) -> Self;
    fn through(self, module: &str, function: &str) -> Self;
    fn holding(self, address: u64) -> Self;
    fn serving(self) -> Self;
    fn being(self, activity: Activity) -> Self;
}

impl With for Thread {
    fn waits(mut self, wait: Wait) -> Self {
        self.waits_on = Some(wait);
        self
    }
    fn on_loop(mut self, age: f64) -> Self {
        let state = if self.activity == Activity::Idle { "polling" } else { "blocked" };
        self.event_loop = Some(EventLoop {
            kind: "asyncio".into(),
            state: state.into(),
            iteration_age: Some(age),
            ready: Some(0),
            overdue: Some(0),
        });
        self
    }
    fn through(mut self, module: &str, function: &str) -> Self {
        self.frames.insert(0, frame(module, function, false));
        self
    }
    fn holding(mut self, address: u64) -> Self {
        self.holds.push(Lock {
            address: Address(address),
            kind: "lock".into(),
            name: None,
            frame: Some(0),
            line: Some(40),
            certainty: Certainty::Proved,
        });
        self
    }
    fn serving(mut self) -> Self {
        self.request = Some(Request {
            method: Some("GET".into()),
            path: Some("/x".into()),
            framework: Some("flask".into()),
            age: Some(60.0),
            ..Request::default()
        });
        self
    }
    fn being(mut self, activity: Activity) -> Self {
        self.activity = activity;
        if activity == Activity::Running {
            self.os.as_mut().unwrap().state = Some('R');
            self.os.as_mut().unwrap().blocked_for = None;
        }
        self
    }
}

fn process(pid: i32, threads: Vec<Thread>) -> Process {
    Process {
        pid,
        parent: Some(1),
        command: vec!["python".into()],
        executable: None,
        executable_replaced: None,
        cwd: None,
        python: None,
        followed: false,
        uptime: None,
        rss: None,
        open_fds: None,
        fd_limit: None,
        listens: Some(vec![]),
        connections: None,
        children: None,
        server: None,
        cpu_throttled: None,
        interpreters: vec![Interpreter {
            id: 0,
            gil: Some(Gil { holder: None, waiters: vec![] }),
            gc_collecting: None,
        }],
        threads,
        tasks: vec![],
        problems: vec![],
        kin: Default::default(),
    }
}

fn snapshot(processes: Vec<Process>) -> Snapshot {
    Snapshot { captured_at: String::new(), host: String::new(), looks: vec![], processes, skipped: vec![] }
}

/// All findings after two looks at the same.
fn found(threads: Vec<Thread>) -> Vec<Finding> {
    found_in(vec![process(PID, threads)])
}

fn found_in(processes: Vec<Process>) -> Vec<Finding> {
    let look = snapshot(processes);
    diagnose(&[look.clone(), look]).all().cloned().collect()
}

#[track_caller]
fn one(threads: Vec<Thread>) -> Finding {
    let found = found(threads);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

#[track_caller]
fn says(threads: Vec<Thread>, rule: &str, severity: Severity) -> Finding {
    let finding = one(threads);
    assert_eq!((finding.rule.as_str(), finding.severity), (rule, severity), "{finding:#?}");
    finding
}

#[track_caller]
fn is_healthy(threads: Vec<Thread>) {
    let found = found(threads);
    assert!(found.iter().all(|f| f.severity == Severity::Info), "{found:#?}");
}

use Severity::{Critical, Warning};

fn event(address: u64) -> Wait {
    wait("event", "threading.Event.wait", address, &[], Value::Null)
}

fn put(on: &[i32]) -> Wait {
    wait("queue", "queue.Queue.put", 0x50, on, json!({"operation": "put", "size": 1, "maxsize": 1}))
}

fn get(on: &[i32], size: i64) -> Wait {
    wait("queue", "queue.Queue.get", 0x50, on, json!({"operation": "get", "size": size, "maxsize": 0}))
}

fn lock(address: u64, on: &[i32]) -> Wait {
    wait("lock", "threading.Lock.acquire", address, on, Value::Null)
}

fn join(tid: i32) -> Wait {
    wait("thread", "threading.Thread.join", 0x60, &[tid], json!({"name": "worker", "alive": true}))
}

fn recv() -> Wait {
    wait(
        "socket",
        "socket.socket.recv",
        0x70,
        &[],
        json!({"fd": 7, "peer": "10.0.0.7:443", "tcp_state": "ESTABLISHED"}),
    )
}

fn sleep() -> Wait {
    let mut sleep = wait("sleep", "time.sleep", 0, &[], json!({"seconds": 500.0}));
    (sleep.deadline, sleep.ends_in) = (Some("at".into()), Some(440.0));
    sleep
}

fn main_thread() -> Thread {
    thread(PID, "MainThread")
}

fn worker() -> Thread {
    thread(107, "worker")
}

// ---------------------------------------------------------------- event loops

#[test]
fn what_blocks_a_loop_names_the_rule() {
    for (wait, rule) in [
        (sleep(), "loop-sleep"),
        (put(&[]), "loop-queue"),
        (get(&[], 0), "loop-queue"),
        (
            wait("future", "concurrent.futures._base.Future.result", 1, &[], json!({"state": "RUNNING"})),
            "loop-future-result",
        ),
        (lock(1, &[]), "loop-lock"),
        (event(1), "loop-event"),
        (wait("condition", "threading.Condition.wait", 1, &[], Value::Null), "loop-event"),
        (wait("barrier", "threading.Barrier.wait", 1, &[], Value::Null), "loop-event"),
        (wait("semaphore", "threading.Semaphore.acquire", 1, &[], json!({"value": 0})), "loop-event"),
        (join(107), "loop-join"),
        (wait("process", "multiprocessing.process.BaseProcess.join", 1, &[], Value::Null), "loop-join"),
        (
            wait("thread", "concurrent.futures.thread.ThreadPoolExecutor.shutdown", 1, &[], Value::Null),
            "loop-executor-shutdown",
        ),
        (wait("socket", "socket.getaddrinfo", 1, &[], Value::Null), "loop-dns"),
        (wait("socket", "socket.socket.connect", 1, &[], Value::Null), "loop-connect"),
        (wait("process", "os.system", 1, &[], Value::Null), "loop-subprocess"),
        (recv(), "loop-io"),
        (wait("file", "builtins.open", 1, &[], Value::Null), "loop-file"),
    ] {
        let blocked = says(
            vec![main_thread().waits(wait.clone()).on_loop(47.0), worker().waits(event(9))],
            rule,
            Critical,
        );
        assert!((blocked.frame, blocked.user_frame) == (Some(0), Some(0)));
        assert_eq!(blocked.blocked_for, Some(47.0));
        // The same, but only just now; and a loop that moves.
        says(vec![main_thread().waits(wait.clone()).on_loop(0.3), worker().waits(event(9))], rule, Warning);
        is_healthy(vec![main_thread().waits(wait).on_loop(0.005)]);
    }
}

#[test]
fn the_library_between_names_the_rule() {
    for (module, rule) in [
        ("requests.api", "loop-http"),
        ("urllib3.connectionpool", "loop-http"),
        ("http.client", "loop-http"),
        ("psycopg2.extensions", "loop-db"),
        ("redis.connection", "loop-db"),
        ("subprocess", "loop-subprocess"),
        ("logging", "loop-log"),
    ] {
        says(vec![main_thread().through(module, "f").waits(recv()).on_loop(2.0)], rule, Critical);
    }
    // Outside of the application's call it says nothing.
    let mut served = main_thread().waits(recv()).on_loop(2.0);
    served.frames.push(frame("http.client", "outer", false));
    says(vec![served], "loop-io", Critical);
}

#[test]
fn a_polling_loop_is_healthy() {
    is_healthy(vec![
        main_thread()
            .being(Activity::Idle)
            .waits(wait("poll", "select.epoll.poll", 0, &[], Value::Null))
            .on_loop(500.0),
    ]);
    is_healthy(vec![main_thread().being(Activity::Idle).on_loop(500.0)]);
}

#[test]
fn a_computing_loop() {
    says(vec![main_thread().being(Activity::Running).on_loop(3.0)], "loop-cpu", Critical);
    says(vec![main_thread().being(Activity::Running).on_loop(0.4)], "loop-cpu", Warning);
    is_healthy(vec![main_thread().being(Activity::Running).on_loop(0.02)]);
    let mut flooded = main_thread().being(Activity::Running).on_loop(0.5);
    flooded.event_loop.as_mut().unwrap().ready = Some(50_000);
    says(vec![flooded], "loop-flood", Warning);
}

#[test]
fn the_news_stream() {
    let mut threads = vec![main_thread().serving().on_loop(47.0).waits(Wait {
        call: Some("concurrent.futures.thread.ThreadPoolExecutor.shutdown".into()),
        ..join(107)
    })];
    threads.extend((107..112).map(|tid| {
        Thread { frames: vec![frame("rss", "fetch_feed", true)], ..thread(tid, &format!("pool_{tid}")) }
            .waits(recv())
    }));
    let mut process = process(PID, threads);
    process.listens =
        Some(vec![Listener { address: "127.0.0.1:8000".into(), backlog: Some(2048), queued: Some(12) }]);
    let found = found_in(vec![process]);
    let [finding] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(
        (finding.rule.as_str(), finding.severity, finding.certainty),
        ("loop-executor-shutdown", Critical, Certainty::Proved)
    );
    assert_eq!(finding.cause.len(), 2);
    assert_eq!((finding.cause[1].tid, finding.cause[1].alike), (Some(107), 4));
    assert!(finding.request.is_some());
    assert!(finding.evidence.iter().any(|e| e.starts_with("12 connections")), "{:?}", finding.evidence);
}

#[test]
fn the_full_queue() {
    let heartbeat = thread(120, "heartbeat").waits(sleep());
    let finding = says(
        vec![
            main_thread().serving().on_loop(9.0).waits(put(&[107])),
            thread(107, "drain_queue").waits(event(1)),
            heartbeat,
        ],
        "loop-queue",
        Critical,
    );
    assert_eq!(finding.cause.last().unwrap().tid, Some(107));
    assert_eq!(
        finding.evidence[0],
        "`Queue(maxsize=1)` is full (1 of 1); `drain_queue` (drain_queue, thread 107), which gets from it, waits in `Event.wait` at server.py:41"
    );
}

#[test]
fn a_loop_that_waits_for_itself() {
    let to_itself =
        wait("future", "concurrent.futures._base.Future.result", 1, &[PID], json!({"state": "PENDING"}));
    let finding = says(vec![main_thread().on_loop(0.2).waits(to_itself)], "loop-self-deadlock", Critical);
    assert_eq!(finding.cycle, Some(vec![0]));
}

// ---------------------------------------------------------------- deadlocks

#[test]
fn two_locks() {
    let left = thread(101, "left").holding(0xa).waits(lock(0xb, &[102]));
    let right = thread(102, "right").holding(0xb).waits(lock(0xa, &[101]));
    let finding =
        says(vec![main_thread().waits(join(101)), left.clone(), right.clone()], "lock-cycle", Critical);
    assert_eq!((finding.cycle, finding.certainty), (Some(vec![0, 1]), Certainty::Proved));
    // Who holds them is found from the holders, too.
    let alone = |mut t: Thread| {
        t.waits_on.as_mut().unwrap().on.clear();
        t
    };
    says(vec![alone(left.clone()), alone(right.clone())], "lock-cycle", Critical);
    // One of both has a timeout: that ends.
    let mut ends = right;
    ends.waits_on.as_mut().unwrap().deadline = Some("at".into());
    assert!(found(vec![left, ends]).iter().all(|f| f.cycle.is_none() && f.severity < Critical));
}

#[test]
fn a_likely_link_makes_the_cycle_likely() {
    let mut left = thread(101, "left").waits(lock(0xb, &[102]));
    left.waits_on.as_mut().unwrap().certainty = Certainty::Likely;
    let right = thread(102, "right").waits(lock(0xa, &[101]));
    assert_eq!(one(vec![left, right]).certainty, Certainty::Likely);
}

#[test]
fn mixed_cycles() {
    let future =
        wait("future", "concurrent.futures._base.Future.result", 1, &[107], json!({"state": "RUNNING"}));
    let finding = says(
        vec![main_thread().holding(0xa).waits(future), worker().waits(lock(0xa, &[PID]))],
        "lock-cycle",
        Critical,
    );
    assert_eq!(finding.cycle.unwrap().len(), 2);
    says(
        vec![main_thread().holding(0xa).waits(join(107)), worker().waits(lock(0xa, &[PID]))],
        "lock-cycle",
        Critical,
    );
    says(vec![worker().holding(0xa).waits(lock(0xa, &[107]))], "lock-self", Critical);
    says(vec![worker().waits(join(107))], "self-join", Critical);
}

#[test]
fn any_one_consumer_will_do() {
    // Of two consumers one waits for the putter, the other is at work.
    let threads =
        |other: Thread| vec![main_thread().waits(put(&[107, 108])), worker().waits(join(PID)), other];
    is_healthy(threads(thread(108, "other").being(Activity::Running)));
    let finding = one(threads(thread(108, "other").waits(join(PID))));
    assert_eq!((finding.rule.as_str(), finding.severity), ("lock-cycle", Critical));
}

#[test]
fn pool_waits_for_itself() {
    let queued = |on: &[i32]| {
        let detail = json!({"state": "PENDING", "queued_at": 0});
        wait("future", "concurrent.futures._base.Future.result", 1, on, detail)
    };
    let answer =
        wait("future", "concurrent.futures._base.Future.result", 2, &[107], json!({"state": "running"}));
    says(vec![main_thread().waits(answer), worker().waits(queued(&[107]))], "pool-self-wait", Critical);
    // A second worker is free.
    is_healthy(vec![worker().waits(queued(&[107, 108])), thread(108, "other").being(Activity::Idle)]);
}

#[test]
fn across_processes() {
    let mut parent = main_thread().waits(wait("process", "subprocess.Popen.wait", 0, &[], Value::Null));
    parent.waits_on.as_mut().unwrap().on =
        vec![Actor { pid: Some(200), tid: None, thread: None, task: None, task_name: None }];
    let mut child = Thread { main: true, ..thread(200, "MainThread") }.waits(wait(
        "pipe",
        "os.write",
        0,
        &[],
        Value::Null,
    ));
    child.waits_on.as_mut().unwrap().on =
        vec![Actor { pid: Some(PID), tid: None, thread: None, task: None, task_name: None }];
    let look = snapshot(vec![process(PID, vec![parent]), process(200, vec![child])]);
    let found = diagnose(std::slice::from_ref(&look));
    assert_eq!(found.global.len(), 1, "{found:#?}");
    assert_eq!(
        (found.global[0].rule.as_str(), &found.global[0].pids[..]),
        ("pipe-deadlock", &[PID, 200][..])
    );
}

fn task(id: u64) -> Task {
    Task {
        id: Address(id),
        name: Some(format!("t{id}")),
        event_loop: None,
        tid: Some(PID),
        coroutine: None,
        state: Some("waiting".into()),
        awaits: vec![],
        awaited_by: vec![],
        holds: vec![],
        frames: vec![frame("app", "wait", true)],
        waits_on: None,
        request: None,
        main: false,
        cancels: None,
    }
}

#[test]
fn a_task_that_waits_for_a_future_for_ever() {
    let future = |label: Option<&str>| Wait {
        label: label.map(str::to_owned),
        detail: json!({ "nobody": true, "quiet": true }),
        ..Wait::new("future", Some(0xf))
    };
    let found = |main, wait| {
        let mut process = process(PID, vec![main_thread().being(Activity::Idle).on_loop(10.0)]);
        process.tasks = vec![Task { main, waits_on: Some(wait), ..task(1) }];
        let found = found_in(vec![process]);
        assert!(found.iter().all(|f| f.rule == "lost-future"), "{found:#?}");
        found.first().map(|f| f.severity)
    };
    assert_eq!(found(true, future(Some("future answer"))), Some(Warning));
    assert_eq!(found(false, future(None)), Some(Warning));
    assert_eq!(found(true, future(None)), None, "`await asyncio.Future()`");
}

#[test]
fn tasks_in_a_circle() {
    let task = |id: u64, to: u64| Task { awaits: vec![Address(to)], ..task(id) };
    let mut process = process(PID, vec![main_thread().being(Activity::Idle).on_loop(1.0)]);
    process.tasks = vec![task(1, 2), task(2, 1)];
    let found = found_in(vec![process.clone()]);
    assert_eq!((found.len(), found[0].rule.as_str(), found[0].severity), (1, "await-cycle", Critical));
    process.tasks = vec![task(1, 2), task(2, 3)];
    assert_eq!(found_in(vec![process]), vec![]);
}

// ---------------------------------------------------------------- threads that suffer, or do not

#[test]
fn behind_a_lock() {
    let holder = |wait| worker().holding(0xa).waits(wait);
    says(vec![main_thread().waits(lock(0xa, &[107])), holder(event(1))], "lock-wait", Critical);
    says(vec![main_thread().waits(lock(0xa, &[107])), holder(recv())], "lock-wait", Critical);
    says(vec![main_thread().waits(lock(0xa, &[107])), holder(sleep())], "lock-wait", Warning);
    says(
        vec![main_thread().waits(lock(0xa, &[107])), worker().being(Activity::Running)],
        "lock-wait",
        Warning,
    );
    let slots = Wait { kind: "semaphore".into(), ..lock(0xa, &[107]) };
    is_healthy(vec![main_thread().waits(slots), worker().being(Activity::Running)]);
    let mut many = vec![main_thread().waits(lock(0xa, &[107])), holder(event(1))];
    many.extend((110..113).map(|tid| thread(tid, "follower").waits(lock(0xa, &[107]))));
    let jam = says(many, "traffic-jam", Critical);
    assert!(jam.evidence.iter().any(|e| e.starts_with("3 others")), "{:?}", jam.evidence);
}

#[test]
fn locks_without_a_holder() {
    let mut orphan = lock(0xa, &[]);
    // Nobody was found who has it: with nothing else alive that is the end, else it need not be.
    says(vec![main_thread().waits(orphan.clone())], "lock-orphan", Critical);
    let busy = worker().being(Activity::Running);
    says(vec![main_thread().waits(orphan.clone()), busy.clone()], "lock-orphan", Warning);
    // Somebody who can reach it may have it.
    orphan.detail = json!({"referenced_by": [{"thread": "worker"}]});
    says(vec![main_thread().waits(orphan.clone()), busy], "lock-wait", Warning);
    // The owner that it records is gone: that is proved.
    orphan.detail = json!({"owner": 4711});
    says(vec![main_thread().waits(orphan)], "lock-orphan", Critical);
}

#[test]
fn queues() {
    says(vec![main_thread().waits(put(&[107])), worker().waits(event(1))], "queue-full", Critical);
    is_healthy(vec![main_thread().waits(put(&[107])), worker().being(Activity::Running)]);
    says(vec![main_thread().waits(get(&[], 3))], "lost-wakeup", Critical);
    // Nobody is there who could put one in; a handler of signals might.
    says(vec![main_thread().waits(get(&[], 0))], "queue-starved", Critical);
    let mut handled = get(&[], 0);
    handled.detail["signals"] = json!(["SIGTERM"]);
    is_not_critical(vec![main_thread().waits(handled)]);
    is_healthy(vec![main_thread().waits(get(&[], 0)), worker().being(Activity::Idle)]);
    is_healthy(vec![main_thread().waits(get(&[107], 0)), worker().being(Activity::Idle)]);
    let join = wait(
        "queue",
        "queue.Queue.join",
        0x50,
        &[107],
        json!({"operation": "join", "size": 0, "unfinished": 1}),
    );
    assert_eq!(found(vec![main_thread().waits(join.clone()), worker().waits(get(&[], 0))]).len(), 1);
    is_healthy(vec![main_thread().waits(join), worker().being(Activity::Running)]);
}

#[test]
fn main_that_waits_while_others_work_is_at_most_a_warning() {
    for wait in [
        event(1),
        lock(1, &[]),
        get(&[], 0),
        wait("thread", "threading.Thread.join", 1, &[], Value::Null),
        recv(),
        sleep(),
    ] {
        let idle = thread(108, "server").being(Activity::Idle);
        is_not_critical(vec![main_thread().waits(wait.clone()), idle.clone()]);
        is_not_critical(vec![main_thread().waits(join(107)), worker().waits(event(1)), idle]);
    }
}

#[test]
fn a_process_in_which_nothing_moves_is_dead() {
    says(vec![main_thread().waits(event(1))], "event-never", Critical);
    says(vec![main_thread().waits(join(107)), worker().waits(event(1))], "join-endless", Critical);
    // It sleeps, it polls, it waits for somebody outside, it has handlers of signals.
    is_not_critical(vec![main_thread().waits(sleep())]);
    is_not_critical(vec![main_thread().waits(recv())]);
    is_not_critical(vec![main_thread().waits(event(1)), worker().waits(sleep())]);
    let mut handled = event(1);
    handled.detail = json!({"signals": ["SIGTERM"]});
    is_not_critical(vec![main_thread().waits(handled)]);
}

/// Who joins a consumer, of a queue that nobody is left to fill.
#[test]
fn a_forgotten_sentinel() {
    let idle = |tid| thread(tid, "consumer").being(Activity::Idle).waits(get(&[], 0));
    let look = |caught, more: Option<Thread>| {
        let threads =
            [main_thread().waits(join(107)), idle(107), idle(108)].into_iter().chain(more).collect();
        let mut process = process(PID, threads);
        process.kin.caught_signals = Some(caught);
        found_in(vec![process])
    };
    let said = look(0, None);
    assert_eq!((said.len(), said[0].rule.as_str(), said[0].severity), (1, "join-endless", Critical));
    assert!(said[0].evidence.iter().any(|e| e.starts_with("nobody is left")), "{said:#?}");
    // A handler of SIGTERM could put something in; so could whoever accepts connections, or runs.
    assert_eq!(look(1 << 14, None), []);
    let accepts = wait("socket", "socket.accept", 0, &[], json!({"operation": "accept"}));
    assert_eq!(look(0, Some(thread(109, "server").being(Activity::Idle).waits(accepts))), []);
    assert_eq!(look(0, Some(thread(109, "server").being(Activity::Running))), []);
    // A thread of an extension that sleeps: nobody knows what for.
    let mut native = thread(109, "helper");
    native.interpreter = None;
    native.frames.clear();
    native.os.as_mut().unwrap().syscall = Some(Syscall { name: "futex".into(), args: vec![] });
    assert_eq!(look(0, Some(native))[0].severity, Warning);
}

/// How long somebody waits for the GIL, two looks tell: it changes hands, or it does not.
#[test]
fn a_gil_that_stands() {
    let look = |at: f64, switches: u64| {
        let for_gil = Wait { blocked_for: None, deadline: None, ..wait("gil", "", 0, &[107], Value::Null) };
        let mut starved = main_thread().being(Activity::WaitingForGil).waits(for_gil);
        starved.os.as_mut().unwrap().blocked_for = Some(0.003);
        let mut process = process(PID, vec![starved, worker().being(Activity::Running)]);
        process.interpreters[0].gil = Some(Gil { holder: Some(107), waiters: vec![PID] });
        process.kin.gil_switches =
            vec![crate::kin::GilSwitches { interpreter: 0, count: switches, at: Address(0) }];
        Snapshot { looks: vec![Look { at, took: 0.0 }], ..snapshot(vec![process]) }
    };
    let found = |now: Snapshot| diagnose(&[look(0.0, 5), now]).all().cloned().collect::<Vec<_>>();
    let said = found(look(1.25, 5));
    assert_eq!((said.len(), said[0].rule.as_str(), said[0].severity), (1, "gil-hog", Warning));
    assert_eq!((said[0].blocked_for, said[0].cause[1].tid), (Some(1.25), Some(107)));
    assert_eq!(found(look(1.25, 6)), []);
    assert_eq!(found(look(0.25, 5)), []);
    assert!(gil::stands(&look(0.0, 5), &look(0.25, 5)));
    assert!(!gil::stands(&look(0.0, 5), &look(0.25, 6)));
}

/// Threads of one process are no processes.
#[test]
fn many_threads_that_stand_alike() {
    let threads = (101..105).map(|tid| {
        let mut thread = thread(tid, "client").serving();
        thread.waits_on = Some(Wait { address: Some(Address(tid as u64)), ..recv() });
        thread.name = Some(format!("client-{tid}"));
        thread
    });
    let finding = one(threads.collect());
    assert!(finding.summary.starts_with("4 threads stand alike"), "{}", finding.summary);
    assert!(finding.evidence[0].starts_with("pid 100; "), "{:?}", finding.evidence);
}

#[track_caller]
fn is_not_critical(threads: Vec<Thread>) {
    let found = found(threads);
    assert!(found.iter().all(|f| f.severity < Critical), "{found:#?}");
}

#[test]
fn healthy_shapes() {
    let idle = |tid| thread(tid, "pool").being(Activity::Idle).waits(get(&[], 0));
    // Pool workers at rest, consumers on an empty queue, a supervisor, accept, a timer thread.
    is_healthy(vec![main_thread().waits(sleep()), idle(107), idle(108)]);
    is_healthy(vec![main_thread().waits(wait("process", "os.waitpid", 0, &[], Value::Null))]);
    is_healthy(vec![main_thread().being(Activity::Idle).waits(wait(
        "socket",
        "socket.socket.accept",
        0,
        &[],
        json!({}),
    ))]);
    is_healthy(vec![main_thread().being(Activity::Idle), thread(107, "timer").waits(sleep())]);
    is_healthy(vec![main_thread().waits(wait("pipe", "builtins.input", 0, &[], json!({"fd": 0})))]);
    // Joining what works: it computes, sleeps shortly, or waits for work.
    is_healthy(vec![main_thread().waits(join(107)), worker().being(Activity::Running)]);
    is_healthy(vec![main_thread().waits(join(107)), worker().waits(sleep())]);
    is_healthy(vec![main_thread().waits(join(107)), idle(107)]);
    // Threads of no consequence.
    is_healthy(vec![
        main_thread().being(Activity::Idle),
        thread(107, "poller").waits(recv()),
        thread(108, "stop").waits(event(1)),
    ]);
}

#[test]
fn what_moves_between_two_looks_is_healthy() {
    let at = |address| {
        snapshot(vec![process(PID, vec![main_thread().waits(put(&[107])), worker().waits(event(address))])])
    };
    assert_eq!(diagnose(&[at(1), at(2)]).all().count(), 0);
    assert_eq!(diagnose(&[at(1), at(1)]).worst(), Some(Critical));
}

#[test]
fn requests_suffer() {
    says(
        vec![main_thread().being(Activity::Idle), worker().serving().waits(recv())],
        "socket-wait",
        Critical,
    );
    says(
        vec![main_thread().being(Activity::Idle), worker().serving().waits(event(1))],
        "event-never",
        Critical,
    );
    let mut ends = recv();
    (ends.deadline, ends.ends_in) = (Some("at".into()), Some(20.0));
    says(vec![worker().serving().waits(ends)], "socket-wait", Warning);
    let mut young = worker().serving().waits(recv());
    young.waits_on.as_mut().unwrap().blocked_for = Some(0.2);
    is_healthy(vec![young]);
}

#[test]
fn the_gil() {
    let mut process = process(
        PID,
        vec![main_thread().being(Activity::WaitingForGil).on_loop(4.0), worker().waits(sleep())],
    );
    process.interpreters[0].gil = Some(Gil { holder: Some(107), waiters: vec![PID] });
    let found = found_in(vec![process.clone()]);
    assert_eq!((found.len(), found[0].rule.as_str()), (1, "gil-blocked"), "{found:#?}");
    process.threads[1] = worker().being(Activity::Running);
    assert_eq!(found_in(vec![process])[0].rule, "gil-hog");
}

#[test]
fn garbage_is_survived() {
    let mut odd = main_thread().waits(wait("queue", "", 0, &[PID, PID, 0, -5], json!([1, "x", null])));
    odd.waits_on.as_mut().unwrap().frame = Some(9999);
    odd.frames.clear();
    odd.waits_on.as_mut().unwrap().blocked_for = Some(f64::NAN);
    found(vec![odd.clone(), odd]);
    assert_eq!(diagnose(&[]), Findings::default());
}
