//! The rule catalogue: id, what it is recognised by, how bad it usually is, and what to do. The first
//! rule that matches names the finding; how bad it is in the end, the consequence decides (`judge`).
//!
//! In advice, `{object}` is what is waited for, `{culprit}` who is at the end of the chain.

use super::Severity::{self, Critical, Info, Warning};
use super::case::Case;
use super::waits::{
    Fate, has_dying_workers, has_library, is_full, is_locked_file, is_lost_wakeup, is_queued, nobody_can,
    number, word,
};
use crate::snapshot::Wait;

pub struct Rule {
    pub id: &'static str,
    /// Never worse than this, unless an event loop or a request has suffered past its limit.
    pub usual: Severity,
    pub when: fn(&Case) -> bool,
    pub advice: &'static str,
}

pub const HTTP: &[&str] = &["requests", "urllib3", "urllib.request", "http.client", "httpx", "httpcore"];
const DATABASES: &[&str] = &[
    "psycopg",
    "psycopg2",
    "pymysql",
    "MySQLdb",
    "mysql.connector",
    "sqlite3",
    "redis",
    "pymongo",
    "sqlalchemy",
    "cx_Oracle",
    "oracledb",
    "pyodbc",
    "cassandra",
];

/// A cycle. Asked first, for whoever takes part in one.
pub static CYCLES: &[Rule] = &[
    Rule {
        id: "native-mutex",
        usual: Critical,
        when: |c| c.in_cycle(is_native),
        advice: "native code waits for a mutex that only this circle could free: it must give up the GIL before it takes a mutex, and take none twice",
    },
    Rule {
        id: "loop-self-deadlock",
        usual: Critical,
        when: |c| {
            let mut tids = c.members().map(|party| party.tid());
            let first = tids.next();
            let by_loop =
                c.kind() == "future" || c.wait().is_some_and(|w| w.detail["event_loop"].is_string());
            let own = by_loop
                && c.is_loop(c.head())
                && c.cycle_len() <= 2
                && tids.all(|tid| Some(tid) == first)
                && !c.waits_for_pool();
            own || c.closes_over_loop() && c.kind() != "lock"
        },
        advice: "await it, or wait for it in a thread: the loop's own thread can never finish what it waits for",
    },
    Rule {
        id: "loop-lock",
        usual: Critical,
        when: |c| c.in_cycle(|w| w.detail["across_await"] == true) || c.closes_over_loop(),
        advice: "hold no lock of threads across an `await`: the task that has {object} cannot go on while its own loop waits for that; use asyncio.Lock, or release it before the `await`",
    },
    Rule {
        id: "pool-self-wait",
        usual: Critical,
        when: |c| {
            // One who waits is among those who would have to do it.
            let own = |party: &super::waits::Party| {
                party.wait().is_some_and(|w| {
                    w.kind == "future" && is_queued(w) && w.on.iter().any(|on| on.tid == party.tid())
                })
            };
            c.members().any(own)
                || c.cycle_len() == 1 && c.kind() == "future"
                || c.in_cycle(|w| w.detail["queued_setter"].is_string())
        },
        advice: "do not wait inside a pool for work of the same pool: use a second pool, or hand the result on with add_done_callback",
    },
    Rule {
        id: "self-join",
        usual: Critical,
        when: |c| c.cycle_len() == 1 && c.kind() == "thread",
        advice: "a thread cannot join itself",
    },
    Rule {
        id: "http-pool-exhausted",
        usual: Critical,
        when: |c| c.in_cycle(is_http_pool),
        advice: "{culprit} has the connections of {object} itself: read its responses to the end, or close them, before it asks for more",
    },
    Rule {
        id: "dbpool-exhausted",
        usual: Critical,
        when: |c| c.in_cycle(|w| w.is_for_pool()),
        advice: "{culprit} has the connections of {object} itself: use one connection for all of it, or give it back first",
    },
    Rule {
        id: "self-request",
        usual: Critical,
        when: |c| {
            !c.writes_both_ways()
                && (c.cycle_len() == 1 && c.kind() == "socket" || c.members().any(asks_itself))
        },
        advice: "call the function itself instead of sending a request to the own server; or give the server more workers or threads, so that another one can answer",
    },
    Rule {
        id: "event-never",
        usual: Critical,
        when: |c| c.cycle_len() == 1 && matches!(c.kind(), "event" | "condition"),
        advice: "what would set {object} goes on only when this call returns, further down on the same stack: call it from another thread",
    },
    Rule {
        id: "queue-join",
        usual: Critical,
        when: |c| c.cycle_len() == 1 && c.kind() == "queue",
        advice: "{culprit} itself has taken an item of {object} that it has not called done: say task_done() before join()",
    },
    Rule {
        id: "file-lock",
        usual: Critical,
        when: |c| c.cycle_len() == 1 && c.kind() == "file",
        advice: "this very process has {object} locked, through another descriptor or connection: give that back first",
    },
    Rule {
        id: "lock-self",
        usual: Critical,
        when: |c| c.cycle_len() == 1,
        advice: "{culprit} holds {object} already: use an RLock, or call what needs it outside of the `with`",
    },
    Rule {
        id: "mp-feeder",
        usual: Critical,
        when: |c| c.cycle_crosses() && c.cycle_has_frame("multiprocessing.queues", "_feed"),
        advice: "get everything from the queue before you join the child",
    },
    Rule {
        id: "pipe-deadlock",
        usual: Critical,
        when: |c| c.cycle_crosses() && c.in_cycle(|w| w.kind == "pipe"),
        advice: "read and write at the same time: communicate() instead of wait() or write(), or a thread that empties the pipe",
    },
    Rule {
        id: "process-cycle",
        usual: Critical,
        when: |c| {
            let of_locks = c.in_cycle(is_behind_session) && c.in_cycle(|w| w.kind == "lock");
            c.cycle_crosses()
                && !of_locks
                && c.in_cycle(|w| matches!(w.kind.as_str(), "queue" | "process" | "socket"))
        },
        advice: "one of them must act first: tell the other that nothing more will come (a sentinel, or close the end that you do not use) before you wait for it",
    },
    Rule {
        id: "await-cycle",
        usual: Critical,
        when: |c| c.cycle_of_tasks(),
        advice: "let one of the tasks go on without the other: these wait for each other",
    },
    Rule {
        id: "lock-cycle",
        usual: Critical,
        when: |_| true,
        advice: "take the locks in one order everywhere, and hold none while waiting for another thread",
    },
];

/// On the loop's thread or beside it.
const GIL_BLOCKED: Rule = Rule {
    id: "gil-blocked",
    usual: Critical,
    when: |c| c.is_gil() && c.root_sleeps(),
    advice: "{culprit} sleeps with the GIL held: the extension it calls must release it",
};
const GIL_HOG: Rule = Rule {
    id: "gil-hog",
    usual: Warning,
    when: |c| c.is_gil(),
    advice: "{culprit} keeps the GIL: do it in a process, or in smaller steps",
};

/// Who suffers is an event loop.
pub static LOOPS: &[Rule] = &[
    Rule {
        id: "loop-sleep",
        usual: Critical,
        when: |c| c.kind() == "sleep" && !c.is_database() && c.call_ends(&["sleep"]),
        advice: "use `await asyncio.sleep()` instead of time.sleep",
    },
    Rule {
        id: "loop-self-deadlock",
        usual: Critical,
        when: |c| c.kind() == "future" && c.second().is_some_and(|to| to == c.head()),
        advice: "await the coroutine instead of asking run_coroutine_threadsafe's future for its result",
    },
    Rule {
        id: "loop-executor-shutdown",
        usual: Critical,
        when: |c| {
            c.call_is(&["Executor.shutdown", "ThreadPoolExecutor.shutdown", "ProcessPoolExecutor.shutdown"])
                || c.library_call("concurrent.futures", "shutdown")
        },
        advice: "keep one long-lived executor instead of a `with` block in async code; when a client goes, cancel its futures and call shutdown(wait=False, cancel_futures=True)",
    },
    Rule {
        id: "loop-log",
        usual: Warning,
        when: |c| c.library(&["logging"]),
        advice: "log through a QueueHandler: a handler must not block the loop",
    },
    Rule {
        id: "loop-http",
        usual: Critical,
        when: |c| (c.is_io() || c.wait().is_some_and(is_http_pool)) && c.library(HTTP),
        advice: "use an async client (httpx.AsyncClient, aiohttp), with a timeout",
    },
    Rule {
        id: "loop-db",
        usual: Critical,
        when: |c| c.is_database(),
        advice: "use the async driver, or call it in a thread: `await asyncio.to_thread(...)`",
    },
    Rule {
        id: "loop-dns",
        usual: Critical,
        when: |c| {
            c.phase() == "resolve"
                || c.call_ends(&["getaddrinfo", "gethostbyname", "gethostbyname_ex", "getnameinfo"])
        },
        advice: "use `await loop.getaddrinfo()`",
    },
    Rule {
        id: "loop-connect",
        usual: Critical,
        when: |c| {
            c.kind() == "socket"
                && (c.call_ends(&["connect", "create_connection", "do_handshake"])
                    || c.tcp_state("SYN_SENT")
                    || c.phase() == "tls-handshake")
        },
        advice: "connect with asyncio.open_connection, with a timeout",
    },
    Rule {
        id: "loop-subprocess",
        usual: Critical,
        when: |c| c.library(&["subprocess"]) || c.call_ends(&["system", "waitpid", "wait4"]),
        advice: "use asyncio.create_subprocess_exec; `communicate()` and `wait()` are awaited there",
    },
    Rule {
        id: "loop-queue",
        usual: Critical,
        when: |c| c.kind() == "queue",
        advice: "use asyncio.Queue, or put and get with a timeout in a thread",
    },
    Rule {
        id: "loop-future-result",
        usual: Critical,
        when: |c| c.kind() == "future",
        advice: "use `await asyncio.wrap_future(future)`",
    },
    Rule {
        id: "loop-join",
        usual: Critical,
        when: |c| matches!(c.kind(), "thread" | "process"),
        advice: "use `await asyncio.to_thread(….join)`",
    },
    Rule {
        id: "loop-event",
        usual: Critical,
        when: |c| matches!(c.kind(), "event" | "condition" | "barrier" | "semaphore"),
        advice: "use asyncio's own Event, Condition or Semaphore; from threads set it with loop.call_soon_threadsafe",
    },
    Rule {
        id: "loop-lock",
        usual: Critical,
        when: |c| c.kind() == "lock",
        advice: "shorten what {culprit} does while it holds {object}, or use asyncio.Lock",
    },
    Rule {
        id: "loop-nested",
        usual: Critical,
        when: |c| c.is_nested_loop(),
        advice: "await it directly: a second loop on the loop's thread stops the first",
    },
    GIL_BLOCKED,
    GIL_HOG,
    Rule {
        id: "loop-file",
        usual: Warning,
        when: |c| c.kind() == "file" || c.os_state() == Some('D'),
        advice: "do the file access in a thread: `await asyncio.to_thread(...)`",
    },
    Rule {
        id: "loop-flood",
        usual: Warning,
        when: |c| c.is_computing() && c.ready() > 1000,
        advice: "limit how much is scheduled at once: a semaphore, or a bounded queue",
    },
    Rule {
        id: "loop-cpu",
        usual: Warning,
        when: |c| c.is_computing(),
        advice: "move the computation into a process pool, or into a thread (asyncio.to_thread) if it releases the GIL",
    },
    // By the mechanism alone: whatever it is, it blocks.
    Rule {
        id: "loop-io",
        usual: Critical,
        when: |c| matches!(c.kind(), "socket" | "pipe"),
        advice: "use streams of asyncio, or a thread; and set a timeout",
    },
    Rule {
        id: "loop-blocked",
        usual: Critical,
        when: |_| true,
        advice: "call what blocks in a thread: `await asyncio.to_thread(...)`",
    },
];

/// Everybody else.
pub static OTHERS: &[Rule] = &[
    Rule {
        id: "exit-hang",
        usual: Warning,
        when: |c| {
            c.has_frame("threading", "_shutdown")
                || c.has_frame("concurrent.futures.thread", "_python_exit")
                || c.has_frame("multiprocessing.util", "_exit_function")
                || c.is_exiting()
                || c.party().thread().is_some_and(|t| t.exiting)
        },
        advice: "the program has ended and waits for {culprit}: make that a daemon thread, or tell it to stop",
    },
    Rule {
        id: "cancel-ignored",
        usual: Warning,
        when: |c| c.ignores_cancel(),
        advice: "{culprit} was asked to end and went on: raise CancelledError again where it is caught, and await nothing without a timeout while tidying up",
    },
    Rule {
        id: "server-open",
        usual: Warning,
        when: |c| c.is_closing(),
        advice: "from Python 3.12 on wait_closed() waits until every connection has gone: close those that are left (Server.close_clients() and abort_clients() from 3.13 on), or wait with a timeout",
    },
    Rule {
        id: "import-lock",
        usual: Warning,
        when: |c| {
            c.kind() == "lock"
                && (c.library(&["importlib._bootstrap", "_frozen_importlib"]) || c.wait_is("lock", "import"))
        },
        advice: "do not wait for other threads while a module is being imported",
    },
    Rule {
        id: "anyio-exhausted",
        usual: Critical,
        when: |c| c.wait().and_then(|w| w.call.as_deref()).is_some_and(is_limiter),
        advice: "raise the limiter's total_tokens, or see why {culprit} does not come back",
    },
    Rule {
        id: "pool-workers-die",
        usual: Critical,
        when: |c| c.wait().is_some_and(has_dying_workers),
        advice: "the pool replaces its workers for ever: read what they print on standard error when they end, and mend that; concurrent.futures.ProcessPoolExecutor raises BrokenProcessPool instead",
    },
    Rule {
        id: "mp-result-lost",
        usual: Critical,
        when: |c| c.is_alone() && c.says("nobody") && c.call_starts("multiprocessing"),
        advice: "who should have sent it is gone: get with a timeout, watch that the process is alive, or use ProcessPoolExecutor, which notices",
    },
    Rule {
        id: "loop-not-woken",
        usual: Critical,
        when: |c| c.party().task().is_some() && c.is_unwoken(),
        advice: "another thread has touched an object of the loop without waking it: use loop.call_soon_threadsafe",
    },
    Rule {
        id: "dbpool-close",
        usual: Critical,
        when: |c| c.wait().is_some_and(is_closing_pool),
        advice: "give every connection back (release(), `async with`) before the pool is closed, or put asyncio.wait_for() around close() and call terminate() when that is over",
    },
    Rule {
        id: "http-pool-exhausted",
        usual: Critical,
        when: |c| c.wait().is_some_and(is_http_pool),
        advice: "all connections that the HTTP client may open are in use: read responses to the end or close them, set timeouts, allow more (maxsize); see what {culprit} does with its own",
    },
    Rule {
        id: "dbpool-exhausted",
        usual: Critical,
        when: |c| c.is_pool(),
        advice: "give connections back sooner, with `with`; set a timeout on the pool; see what {culprit} does with its connection",
    },
    Rule {
        id: "mp-dead-holder",
        usual: Critical,
        when: |c| {
            matches!(c.kind(), "lock" | "semaphore") && c.says("orphan") && c.call_starts("multiprocessing")
        },
        advice: "the process that took {object} has ended without releasing it: restart the group",
    },
    Rule {
        id: "fork-lock",
        usual: Critical,
        when: |c| c.kind() == "lock" && c.is_alone() && c.says("forked"),
        advice: "the lock was held by another thread at the moment of the fork: use the `spawn` or `forkserver` start method, or fork before threads start",
    },
    Rule {
        id: "lock-orphan",
        usual: Critical,
        // Of one that processes share, all would have to be searched: then it says so itself.
        when: |c| {
            // What libraries lock lies outside of the process; a sign nobody holds.
            let shared = c.call_starts("multiprocessing") || c.says("polled") || c.says("signal");
            c.kind() == "lock" && c.is_alone() && !c.is_referenced() && !shared && !c.says("unsearched")
        },
        advice: "take locks with `with`: whoever took {object} has left without releasing it",
    },
    Rule {
        id: "semaphore-leaked",
        usual: Critical,
        when: |c| c.kind() == "semaphore" && c.is_alone() && !c.is_count(),
        advice: "take slots with `with`: nobody who is still there has one of {object} to give back",
    },
    Rule {
        id: "traffic-jam",
        usual: Critical,
        when: |c| matches!(c.kind(), "lock" | "semaphore") && c.followers >= 2 && !c.is_count(),
        advice: "shorten what {culprit} does while it holds {object}",
    },
    Rule {
        id: "native-mutex",
        usual: Warning,
        when: |c| c.wait().is_some_and(is_native),
        advice: "the mutex is one of native code: see what {culprit} does while it has it",
    },
    Rule {
        id: "lock-wait",
        usual: Critical,
        when: |c| {
            matches!(c.kind(), "lock" | "semaphore") && !c.is_count() && !(c.is_alone() && c.says("signal"))
        },
        advice: "shorten what {culprit} does while it holds {object}, and never wait without a timeout in there",
    },
    Rule {
        id: "lost-wakeup",
        usual: Critical,
        when: |c| c.root_wait().is_some_and(is_lost_wakeup),
        advice: "put items in with put(): what goes into the deque inside of the queue wakes nobody",
    },
    Rule {
        id: "queue-full",
        usual: Critical,
        when: |c| c.kind() == "queue" && c.operation() == "put",
        advice: "put with a timeout and handle queue.Full; watch that {culprit} is alive",
    },
    Rule {
        id: "task-done-missing",
        usual: Warning,
        when: |c| {
            c.kind() == "queue"
                && c.operation() == "join"
                && c.wait().is_some_and(|w| number(w, "size").is_none_or(|s| s == 0))
        },
        advice: "call task_done() once for every item that was taken: in a `finally`",
    },
    Rule {
        id: "queue-join",
        usual: Warning,
        when: |c| c.kind() == "queue" && c.operation() == "join",
        advice: "see why {culprit} takes no more items",
    },
    Rule {
        id: "queue-starved",
        usual: Critical,
        when: |c| c.kind() == "queue",
        advice: "see why {culprit} puts nothing in; get with a timeout, and watch that the producers are alive",
    },
    Rule {
        id: "pool-exhausted",
        usual: Warning,
        when: |c| c.kind() == "future" && c.wait().is_some_and(is_queued),
        advice: "all workers of the pool are busy: {culprit} is one of them; more workers, or timeouts in what they do",
    },
    Rule {
        id: "lost-future",
        usual: Critical,
        when: |c| c.kind() == "future" && (c.is_alone() || c.says("promise")),
        advice: "nobody is known who could complete {object}: set its result or exception on every path",
    },
    Rule {
        id: "pipe-deadlock",
        usual: Critical,
        when: |c| {
            c.kind() == "process" && c.is_unread()
                || c.kind() == "pipe" && c.waits_for_own_process()
                || c.is_held_up()
        },
        advice: "both ends of the pipe are open in this process: close the one you do not use",
    },
    Rule {
        id: "join-endless",
        usual: Critical,
        when: |c| matches!(c.kind(), "thread" | "process" | "future" | "task"),
        advice: "see why {culprit} does not end; join with a timeout",
    },
    Rule {
        id: "event-never",
        usual: Critical,
        when: |c| {
            let is_sign = c.kind() == "lock" && c.is_alone() && c.says("signal");
            matches!(c.kind(), "event" | "condition" | "barrier") || is_sign || c.is_count()
        },
        advice: "see who should set {object}, and on which path it is forgotten; wait with a timeout",
    },
    GIL_BLOCKED,
    GIL_HOG,
    Rule {
        id: "handler-sleep",
        usual: Warning,
        when: |c| c.kind() == "sleep" && super::judge::request(c).is_some(),
        advice: "a handler that sleeps keeps a thread or a whole worker from serving: let the client ask again, or do it in a background job",
    },
    Rule {
        id: "accept-backlog",
        usual: Warning,
        when: |c| c.is_client_idle() && c.keeps_others_waiting() || c.is_not_accepted(),
        advice: "one silent client keeps everybody else out: serve each connection in a thread of its own (ThreadingHTTPServer), the TLS handshake too, and set a timeout on what was accepted",
    },
    Rule {
        id: "busy-loop",
        usual: Warning,
        when: |c| c.is_computing() && c.wait().is_some_and(|w| w.detail["spins"].is_array()),
        advice: "wait for an Event, a Condition or a Queue instead of asking again and again: the loop takes a whole CPU, and the GIL from whoever is to end it",
    },
    Rule {
        id: "client-idle",
        usual: Info,
        when: |c| c.is_client_idle(),
        advice: "nothing is wrong with the application: no request has come on this connection; a proxy in front that reads whole requests first keeps such clients away from the workers",
    },
    Rule {
        id: "client-slow",
        usual: Warning,
        when: |c| c.kind() == "socket" && c.says("inbound"),
        advice: "the handler waits for its own client: buffer requests and answers in a proxy in front, or set a timeout on the connection",
    },
    Rule {
        id: "subtask-wait",
        usual: Warning,
        when: |c| c.library(&["celery.result"]) && c.has_frame("celery.app.trace", "trace_task"),
        advice: "never wait for a task inside of a task: no worker may be left to run it; use a chain or a chord, whose last part goes on with the results",
    },
    Rule {
        id: "db-wait",
        usual: Critical,
        when: |c| c.is_database(),
        advice: "see what the database does for this connection; set a statement timeout",
    },
    Rule {
        id: "dns-wait",
        usual: Critical,
        when: |c| c.phase() == "resolve",
        advice: "the name server does not answer, and getaddrinfo knows no timeout: see /etc/resolv.conf (`options timeout: attempts:`), and keep what was resolved",
    },
    Rule {
        id: "peer-unreachable",
        usual: Warning,
        when: |c| c.kind() == "socket" && (c.tcp_state("SYN_SENT") || c.retransmits() > 0),
        advice: "what is sent to the peer is not even acknowledged: it is down, or a firewall drops it; set a timeout",
    },
    Rule {
        id: "file-lock",
        usual: Warning,
        when: |c| c.wait().is_some_and(is_locked_file),
        advice: "see why {culprit} keeps {object} locked",
    },
    Rule {
        id: "disk-stall",
        usual: Warning,
        when: |c| c.os_state() == Some('D'),
        advice: "the disk or the network file system does not answer",
    },
    Rule {
        id: "pipe-wait",
        usual: Warning,
        when: |c| c.kind() == "pipe",
        advice: "see why the other end of the pipe does not move",
    },
    Rule {
        id: "tls-wait",
        usual: Critical,
        when: |c| c.kind() == "socket" && c.phase() == "tls-handshake",
        advice: "the peer has accepted the connection but does not answer the TLS handshake: is it the right port, is the peer stuck? Set a timeout on the socket before the handshake",
    },
    Rule {
        id: "socket-wait",
        usual: Critical,
        when: |c| c.kind() == "socket",
        advice: "set a timeout: the peer may never answer",
    },
];

/// The first rule that fits.
pub fn find(case: &Case) -> Option<&'static Rule> {
    let rules = match (&case.cycle, case.is_loop(case.head())) {
        (Some(_), _) => CYCLES,
        (None, true) => LOOPS,
        (None, false) => OTHERS,
    };
    let first = |case: &Case| rules.iter().find(|rule| (rule.when)(case));
    match is_named_by_root(case) {
        true => first(&case.of_root()).or_else(|| first(case)),
        false if case.cycle.is_none() => first(&case.of_awaited()),
        false => first(case),
    }
}

/// Tasks wait for tasks wait for tasks: what is wrong is what the last of them waits for. So it is with threads
/// that wait for the end of one who will never get a lock.
pub fn is_named_by_root(case: &Case) -> bool {
    if case.party().thread().is_some() {
        let lost = |w: &crate::snapshot::Wait| match w.kind.as_str() {
            "future" => case.chain.len() > 1 && w.detail["left_behind"] == true,
            "lock" | "semaphore" => w.on.is_empty() && case.chain.len() > 1,
            // Both ends of it are in this very process.
            "pipe" => case.chain.len() > 1 && case.of_root().waits_for_own_process(),
            _ => false,
        };
        return case.cycle.is_none()
            && !case.is_loop(case.head())
            && (matches!(case.kind(), "future" | "thread")
                || case.kind() == "process" && case.of_root().says("forked"))
            && case.fate >= Fate::Endless
            && case.root_wait().is_some_and(lost);
    }
    let hands_on = || {
        case.of_awaited().wait().is_some_and(|w| !is_queued(w) && !w.call.as_deref().is_some_and(is_limiter))
    };
    case.cycle.is_none()
        && case.party().task().is_some()
        && case.chain.len() > 1
        && !case.is_unread_by_child()
        && !case.ignores_cancel()
        && !case.is_closing()
        && !case.is_stopping()
        && (case.fate >= Fate::Endless && hands_on() || case.is_at_work())
}

/// Waits for a lock inside of a database, which a session has that is known.
pub fn is_behind_session(wait: &Wait) -> bool {
    wait.detail["blockers"].as_array().is_some_and(|blockers| !blockers.is_empty())
}

/// A pool of connections of an HTTP client.
fn is_http_pool(wait: &Wait) -> bool {
    const CLIENTS: &[&str] = &["urllib3", "aiohttp", "httpcore"];
    wait.is_for_pool() && wait.detail["pool"]["library"].as_str().is_some_and(|l| CLIENTS.contains(&l))
}

/// A pool of connections that is being closed, and waits for those that are out.
fn is_closing_pool(wait: &Wait) -> bool {
    wait.detail["pool"]["closing"] == true
}

/// Waits for an answer on a connection that its process has made to itself.
fn asks_itself(party: &super::waits::Party) -> bool {
    let peer = |w: &Wait| w.detail["peer_process"]["pid"].as_i64();
    party.wait().is_some_and(|w| {
        w.kind == "socket" && w.detail["inbound"] == false && peer(w) == Some(i64::from(party.pid()))
    })
}

/// A mutex of an extension, or of a library below it.
fn is_native(wait: &Wait) -> bool {
    wait.detail["native"] == true
}

/// What limits a pool of threads is worth its own name.
pub fn is_limiter(call: &str) -> bool {
    call.starts_with("anyio.CapacityLimiter")
}

/// Helpers that the tables read like sentences with.
impl Case<'_, '_> {
    fn library(&self, modules: &[&str]) -> bool {
        has_library(self.graph.parties[self.head()].frames(), modules)
    }

    /// Other threads can reach the lock: one of them may hold it.
    fn is_referenced(&self) -> bool {
        let by = || self.wait()?.detail.get("referenced_by")?.as_array();
        by().is_some_and(|by| !by.is_empty())
    }

    /// In a call of a database's client: through the frames of a driver, or a method of its C code.
    fn is_database(&self) -> bool {
        let module = |m: &str| self.call().strip_prefix(m).is_some_and(|rest| rest.starts_with('.'));
        self.wait().is_some_and(|wait| wait.detail["database"].is_object())
            || self.is_io() && self.library(DATABASES)
            || DATABASES.iter().any(|m| module(m))
            || self.is_pool() && !self.wait().is_some_and(is_http_pool)
    }

    /// Waits for the answer of a server that it has asked, by a client's library.
    pub fn is_call(&self) -> bool {
        let is_request =
            self.wait().is_some_and(|w| w.detail["database"].is_object() || w.detail["url"].is_string())
                || self.library(HTTP);
        self.kind() == "socket" && is_request && !self.is_consumer()
    }

    /// The task that had the future has ended.
    pub fn is_of_dead_task(&self) -> bool {
        self.wait().is_some_and(|w| w.detail["died"].is_object())
    }

    /// A connection on both ends of which somebody writes, and nobody reads.
    pub fn writes_both_ways(&self) -> bool {
        let sends = |w: &Wait| w.kind == "socket" && word(w, "operation") == Some("send");
        self.members().filter(|party| party.wait().is_some_and(sends)).count() > 1
    }

    /// All of a cycle wait for slots of one semaphore.
    pub fn is_for_one_more(&self) -> bool {
        let first = self.wait().and_then(|w| w.address);
        self.kind() == "semaphore" && first.is_some() && !self.in_cycle(|w| w.address != first)
    }

    /// Waits for a child whose output it does not read.
    pub fn is_unread(&self) -> bool {
        self.wait().is_some_and(|w| w.detail["unread"].as_array().is_some_and(|u| !u.is_empty()))
    }

    /// Cannot get rid of what it writes: only a process that is a Python has the other end.
    pub fn is_held_up(&self) -> bool {
        let reader = self.second().map(|at| self.graph.parties[at].process);
        let pid = self.party().pid();
        self.writes_to_pipe()
            && self.cycle.is_none()
            && reader.is_some_and(|p| p.pid != pid && p.python.is_some() && p.kin.held_up.contains(&pid))
            && !self.has_frame("multiprocessing.queues", "_feed")
    }

    /// Into a pipe, or a pair of sockets that stands for one.
    fn writes_to_pipe(&self) -> bool {
        let family = || self.wait().and_then(|w| word(w, "family")).unwrap_or_default();
        match self.kind() {
            "pipe" => self.operation() == "write",
            "socket" => family().starts_with("unix") && self.operation() == "send",
            _ => false,
        }
    }

    /// Cannot write to a child, which does something else.
    pub fn is_unread_by_child(&self) -> bool {
        let reader = self.second().map(|at| self.graph.parties[at].process);
        self.writes_to_pipe()
            && self.cycle.is_none()
            && reader.is_some_and(|p| p.python.is_some() && p.parent == Some(self.party().pid()))
    }

    /// A thread that can reach the other end speaks of reading: it may come to that.
    pub fn is_read_now_and_then(&self) -> bool {
        let Some(reader) = self.second().map(|at| self.graph.parties[at].process) else { return false };
        let fds = self.wait().map(|w| super::acting::descriptors(w, reader.pid)).unwrap_or_default();
        let reaches = |tid: &&i32| {
            let its = reader.kin.fds.iter().find(|(t, _)| t == *tid);
            its.is_none_or(|(_, its)| fds.iter().any(|fd| its.has(*fd)))
        };
        reader.kin.readers.iter().any(|tid| reaches(&tid))
    }

    /// What a database was asked.
    pub fn statement(&self) -> Option<&str> {
        self.wait()?.detail["database"]["statement"].as_str()
    }

    /// Has asked a database for whatever may come some day.
    pub fn is_consumer(&self) -> bool {
        const CONSUMERS: &[&str] =
            &["BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX", "XREAD", "XREADGROUP"];
        CONSUMERS.contains(&self.verb().as_str()) || self.is_subscriber()
    }

    /// Has asked for whatever others will publish.
    pub fn is_subscriber(&self) -> bool {
        matches!(self.verb().as_str(), "SUBSCRIBE" | "PSUBSCRIBE" | "LISTEN")
            || self.is_database() && self.call_ends(&["listen", "get_message", "notifies"])
    }

    /// The first word of what a database was asked.
    fn verb(&self) -> String {
        let first = self.statement().and_then(|s| s.split_whitespace().next());
        first.unwrap_or_default().to_ascii_uppercase()
    }

    /// Waits for a pool of connections.
    pub fn is_pool(&self) -> bool {
        self.wait().is_some_and(|wait| wait.is_for_pool())
    }

    /// Whoever listens there is known, and does not even acknowledge: its queue of connections is full.
    pub fn is_not_accepted(&self) -> bool {
        self.kind() == "socket" && self.tcp_state("SYN_SENT") && self.wait().is_some_and(|w| !w.on.is_empty())
    }

    /// Waits for a client that has asked for nothing yet.
    pub fn is_client_idle(&self) -> bool {
        self.chain.len() == 1
            && self.kind() == "socket"
            && self.says("inbound")
            && self.operation() == "recv"
            && super::judge::request(self).is_none()
    }

    /// Others wait to be accepted, and this thread is the one that would.
    pub fn keeps_others_waiting(&self) -> bool {
        let process = self.party().process;
        let queued = process.listens.iter().flatten().any(|l| l.queued.is_some_and(|queued| queued > 0));
        let is_python = |t: &&crate::snapshot::Thread| !t.frames.is_empty();
        let alone = process.threads.iter().filter(is_python).count() == 1;
        queued && (alone || self.party().thread().is_some_and(|t| t.main))
    }

    /// Who is waited for was stopped, by a signal or a debugger.
    pub fn is_behind_stopped(&self) -> bool {
        self.chain.len() > 1 && self.graph.parties[self.root()].is_stopped()
    }

    /// Who is waited for computes.
    pub fn is_behind_work(&self) -> bool {
        let root = self.graph.parties[self.root()].thread();
        self.chain.len() > 1 && root.is_some_and(|t| t.activity == crate::snapshot::Activity::Running)
    }

    /// Sendings in a row that the peer has not acknowledged.
    fn retransmits(&self) -> u64 {
        self.wait().and_then(|wait| wait.detail["tcp"]["retransmits"].as_u64()).unwrap_or(0)
    }

    fn is_alone(&self) -> bool {
        self.chain.len() == 1 && self.wait().is_some_and(|wait| wait.on.is_empty())
    }

    fn root_wait(&self) -> Option<&crate::snapshot::Wait> {
        self.graph.parties[self.root()].wait()
    }

    /// Nobody can end it, and that is certain.
    pub fn is_hopeless(&self) -> bool {
        self.fate == Fate::Stuck && nobody_can(&self.graph.parties[self.root()])
            || self.root_wait().is_some_and(is_lost_wakeup)
            || self.fate == Fate::Stuck && self.wait().is_some_and(is_full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_well_formed() {
        for table in [CYCLES, LOOPS, OTHERS] {
            for (at, rule) in table.iter().enumerate() {
                assert!(rule.id.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", rule.id);
                assert!(!table[..at].iter().any(|other| other.id == rule.id), "{}", rule.id);
            }
        }
    }
}
