//! What a finding means for the server that the process belongs to: will its supervisor notice, and when.

use super::advice::duration;
use crate::snapshot::{Process, Server};

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
        _ => Default::default(),
    }
}

fn since(server: &Server) -> String {
    server.heartbeat_age.map_or_else(|| "as ever".into(), |age| format!("the last {} ago", duration(age)))
}

fn heartbeat(server: &Server, by: &str) -> (Vec<String>, Vec<&'static str>) {
    let related = if is_stale(server) { vec!["gunicorn-stale"] } else { vec![] };
    let text = match (server.heartbeat_age, server.timeout) {
        (Some(age), Some(timeout)) if timeout > 0.0 && age < timeout => format!(
            "the last heartbeat of this worker is {} old: {by} kills it in {}, at {}",
            duration(age),
            duration(timeout - age),
            duration(timeout)
        ),
        (Some(age), Some(timeout)) if timeout > 0.0 => format!(
            "the last heartbeat of this worker is {} old, past the timeout of {}: {by} should have killed it",
            duration(age),
            duration(timeout)
        ),
        (Some(age), _) => {
            format!("the last heartbeat of this worker is {} old; {by} has no timeout", duration(age))
        }
        (None, _) => return (vec![], related),
    };
    (vec![text], related)
}
