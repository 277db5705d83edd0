//! What a finding means for the server that the process belongs to: will its supervisor notice, and when.
//! And what is to be said of a process as a whole.

use super::advice::place;
use super::{Finding, Severity};
use crate::duration::Duration;
use crate::snapshot::{Activity, Certainty, Process, Server, Thread};

/// A worker's supervisor in words: `gunicorn (pid 12)`.
fn supervisor(server: &Server) -> String {
    match server.supervisor {
        Some(pid) => format!("{} (pid {pid})", server.kind),
        None => server.kind.clone(),
    }
}

/// How old the heartbeat may be before it says anything: an idle worker of gunicorn gives one every half
/// timeout (gunicorn/workers/sync.py).
pub fn is_stale(server: &Server) -> bool {
    let limit = server.timeout.filter(|timeout| *timeout > 0.0);
    let late = server.heartbeat_age.zip(limit).is_some_and(|(age, timeout)| age > timeout / 2.0 + 1.0);
    late && server.role == "worker"
}

/// Sentences, and the rules that follow, about a thread of this worker that hangs.
///
/// Of a client that is `idle` only that it costs the worker its life.
pub fn consequences(
    process: &Process,
    main: bool,
    is_loop: bool,
    idle: bool,
) -> (Vec<String>, Vec<&'static str>) {
    let Some(server) = process.server.as_ref().filter(|s| s.heartbeat_from.is_some()) else {
        return Default::default();
    };
    if idle && server.heartbeat_from.as_deref() != Some("handler") {
        return Default::default();
    }
    let by = supervisor(server);
    match server.heartbeat_from.as_deref() {
        Some("handler") if main => heartbeat(server, &by),
        Some("event-loop") if is_loop => heartbeat(server, &by),
        Some("event-loop") => (
            vec![format!("the heartbeat comes from the event loop: {by} does not notice that this hangs")],
            vec![],
        ),
        Some("main-thread") if !main => (
            vec![format!(
                "the heartbeat comes from the main thread, {}: {by} does not notice that this hangs",
                since(server)
            )],
            vec!["gthread-blind"],
        ),
        Some("main-thread") => heartbeat(server, &by),
        Some("thread") => (
            vec![format!("{by} does not restart it: a thread of its own answers that this worker lives")],
            vec!["uvicorn-blind"],
        ),
        // It waits for its workers to end, and asks nothing.
        Some("none") if matches!(server.kind.as_str(), "hypercorn" | "uvicorn") && server.supervisor.is_some() => (
            vec![format!("{by} does not notice that this hangs: it only watches whether its workers live")],
            vec![],
        ),
        Some("none") if server.kind == "celery" && main => (
            vec!["until this task ends its worker takes no other; only a time limit (task_time_limit) would end it".into()],
            vec!["celery-stuck"],
        ),
        _ => Default::default(),
    }
}

fn since(server: &Server) -> String {
    server.heartbeat_age.map_or_else(|| "as ever".into(), |age| format!("the last {} ago", Duration(age)))
}

fn heartbeat(server: &Server, by: &str) -> (Vec<String>, Vec<&'static str>) {
    let related = if is_stale(server) { vec!["gunicorn-stale"] } else { vec![] };
    let text = match (server.heartbeat_age, server.timeout) {
        (Some(age), Some(timeout)) if timeout > 0.0 && age < timeout => format!(
            "the last heartbeat of this worker is {} old: {by} kills it in {}, at {}",
            Duration(age),
            Duration(timeout - age),
            Duration(timeout)
        ),
        (Some(age), Some(timeout)) if timeout > 0.0 => format!(
            "the last heartbeat of this worker is {} old, past the timeout of {}: {by} should have killed it",
            Duration(age),
            Duration(timeout)
        ),
        (Some(age), _) => {
            format!("the last heartbeat of this worker is {} old; {by} has no timeout", Duration(age))
        }
        (None, _) => return (vec![], related),
    };
    (vec![text], related)
}

/// Descriptors that are left below this share of the limit are few.
const FEW_LEFT: f64 = 0.95;

/// What no single thread tells. `known`: there is a finding that explains why it stands.
pub fn of_process(process: &Process, known: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let main = process.main_thread().or(process.threads.first());
    let state = main.and_then(|t| t.os.as_ref()?.state);
    if matches!(state, Some('T' | 't')) {
        let how = if state == Some('t') { "a debugger has stopped it" } else { "it was stopped by a signal" };
        found.push(finding(
            process,
            main,
            "stopped",
            Severity::Info,
            format!("the process stands still: {how}"),
            "let it go on: kill -CONT, or detach the debugger",
        ));
    }
    if let Some(server) = process.server.as_ref().filter(|s| is_stale(s) && !known && state != Some('T')) {
        let at =
            process.main_frame().map(|f| format!(" in `{}` at {}", f.function, place(f))).unwrap_or_default();
        let does = match main.map(|t| t.activity) {
            Some(Activity::Running) => "computes",
            _ => "stands",
        };
        let mut stale = finding(
            process,
            main,
            "gunicorn-stale",
            Severity::Warning,
            format!("the worker gives no sign of life: it {does}{at}"),
            "do long work outside of the request; a worker class with threads or a loop gives signs of life meanwhile",
        );
        (stale.evidence, _) = heartbeat(server, &supervisor(server));
        found.push(stale);
    }
    if let (Some(open), Some(limit)) = (process.open_fds, process.fd_limit)
        && open as f64 >= limit as f64 * FEW_LEFT
    {
        let sockets = process.connections.as_ref().map_or(0, Vec::len);
        let mut leak = finding(
            process,
            None,
            "fd-leak",
            Severity::Warning,
            format!("{open} of {limit} descriptors are open: soon nothing can be opened or accepted"),
            "see which connections or files are never closed; raise the limit (ulimit -n) until then",
        );
        leak.evidence.push(format!("{sockets} of them are sockets"));
        found.push(leak);
    }
    found
}

fn finding(
    process: &Process,
    thread: Option<&Thread>,
    rule: &str,
    severity: Severity,
    summary: String,
    advice: &str,
) -> Finding {
    Finding {
        rule: rule.into(),
        severity,
        summary,
        pids: vec![process.pid],
        pid: Some(process.pid),
        tid: thread.and_then(|t| t.tid),
        task: None,
        frame: thread.filter(|t| !t.frames.is_empty()).map(|_| 0),
        user_frame: thread.and_then(|t| t.frames.iter().position(|f| f.user)),
        blocked_for: None,
        blocked_for_is: None,
        certainty: Certainty::Proved,
        request: thread.and_then(|t| t.request.clone()),
        cause: Vec::new(),
        cycle: None,
        evidence: Vec::new(),
        advice: Some(advice.to_owned()),
        related: Vec::new(),
    }
}
