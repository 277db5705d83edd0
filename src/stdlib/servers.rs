//! Servers, workers and pools of processes: what part a process plays, who supervises it, and by what
//! sign of life. By the frames of the main thread, outermost first: a server stands below what it serves.

use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::snapshot::Server;
use crate::target::facts::Heartbeat;
use crate::target::memory::Addr;

/// What is known of a server from its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub server: Server,
    /// The descriptor by which it shows that it lives.
    pub heartbeat_fd: Option<i32>,
}

/// How the file of gunicorn's heartbeat is called (gunicorn/workers/workertmp.py).
pub const HEARTBEAT_FILE: &str = "wgunicorn-";

/// Part of a path, function, kind, role. A process of several kinds is the first of this list: a worker
/// that was spawned is a worker, not a child.
const PARTS: [(&str, &str, &str, &str); 26] = [
    ("/gunicorn/arbiter.py", "spawn_worker", "gunicorn", "worker"),
    ("/gunicorn/arbiter.py", "run", "gunicorn", "arbiter"),
    ("/uvicorn/supervisors/", "run", "uvicorn", "supervisor"),
    ("/uvicorn/_subprocess.py", "subprocess_started", "uvicorn", "worker"),
    ("/uvicorn/server.py", "run", "uvicorn", "server"),
    ("/hypercorn/asyncio/run.py", "asyncio_worker", "hypercorn", "worker"),
    ("/hypercorn/asyncio/run.py", "uvloop_worker", "hypercorn", "worker"),
    ("/hypercorn/trio/run.py", "trio_worker", "hypercorn", "worker"),
    ("/hypercorn/run.py", "run", "hypercorn", "supervisor"),
    ("/waitress/server.py", "run", "waitress", "server"),
    ("/billiard/pool.py", "workloop", "celery", "pool worker"),
    ("/celery/worker/worker.py", "start", "celery", "consumer"),
    ("/celery/beat.py", "start", "celery", "beat"),
    ("/rq/worker.py", "work", "rq", "worker"),
    ("/dramatiq/cli.py", "worker_process", "dramatiq", "worker"),
    ("/daphne/server.py", "run", "daphne", "server"),
    ("/django/core/management/commands/runserver.py", "inner_run", "django", "server"),
    ("/django/utils/autoreload.py", "restart_with_reloader", "django", "reloader"),
    ("/werkzeug/_reloader.py", "restart_with_reloader", "werkzeug", "reloader"),
    ("/werkzeug/serving.py", "run_simple", "werkzeug", "server"),
    ("/multiprocessing/forkserver.py", "main", "multiprocessing", "fork server"),
    ("/multiprocessing/resource_tracker.py", "main", "multiprocessing", "resource tracker"),
    ("/multiprocessing/managers.py", "_run_server", "multiprocessing", "manager"),
    ("/concurrent/futures/process.py", "_process_worker", "ProcessPoolExecutor", "pool worker"),
    ("/multiprocessing/pool.py", "worker", "multiprocessing", "pool worker"),
    ("/multiprocessing/process.py", "_bootstrap", "multiprocessing", "child"),
];

/// Whether a supervisor would see that such a worker hangs: (class, who gives the sign).
const GUNICORN_WORKERS: [(&str, &str, &str); 8] = [
    ("SyncWorker", "sync", "handler"),
    ("ThreadWorker", "gthread", "main-thread"),
    ("UvicornWorker", "uvicorn", "event-loop"),
    ("UvicornH11Worker", "uvicorn", "event-loop"),
    ("GeventWorker", "gevent", "event-loop"),
    ("EventletWorker", "eventlet", "event-loop"),
    ("TornadoWorker", "tornado", "event-loop"),
    ("GunicornWebWorker", "aiohttp", "event-loop"),
];

pub fn read(scene: &Scene, seen: &mut Seen) {
    // After a fork, the thread that forked is the main thread: the oldest is what it was.
    let main =
        scene.threads.iter().find(|t| t.tid == Some(scene.pid) || t.known.as_ref().is_some_and(|k| k.main));
    seen.part = main.and_then(|main| Room { scene }.part(main));
}

struct Room<'a, 's> {
    scene: &'a Scene<'s>,
}

impl Room<'_, '_> {
    fn part(&self, main: &ThreadScene) -> Option<Part> {
        let find = |(path, function, ..): &&(&str, &str, &str, &str)| {
            main.frames.iter().any(|f| is_at(f, path, function))
        };
        let (path, function, kind, role) = PARTS.iter().find(find)?;
        let server = Server {
            kind: (*kind).into(),
            role: (*role).into(),
            worker: None,
            timeout: None,
            heartbeat_age: None,
            heartbeat_from: None,
            supervisor: None,
        };
        let mut part = Part { server, heartbeat_fd: None };
        let frame = main.frames.iter().find(|f| is_at(f, path, function))?;
        match (*kind, *role) {
            ("gunicorn", "worker") => self.gunicorn(frame, &mut part),
            ("gunicorn", _) => {
                let timeout =
                    self.scene.receiver(frame).map(|arbiter| self.scene.heap.attrs(arbiter, ["timeout"]));
                part.server.timeout = timeout.and_then(|[t]| self.number(t?));
            }
            ("uvicorn", "worker") => {
                // The answer to the supervisor's ping comes from a thread that does nothing else.
                let pongs = |t: &ThreadScene| {
                    t.frames.iter().any(|f| is_at(f, "/uvicorn/supervisors/multiprocess.py", "always_pong"))
                };
                let by = if self.scene.threads.iter().any(pongs) { "thread" } else { "none" };
                part.server.heartbeat_from = Some(by.into());
            }
            (_, "worker" | "pool worker") => part.server.heartbeat_from = Some("none".into()),
            _ => {}
        }
        Some(part)
    }

    /// `Arbiter.spawn_worker` has the worker that it became (gunicorn/arbiter.py, gunicorn/workers/base.py).
    fn gunicorn(&self, frame: &FrameScene, part: &mut Part) {
        let heap = self.scene.heap;
        let Some(worker) = self.scene.local(frame, "worker") else { return };
        let [half, tmp] = heap.attrs(worker, ["timeout", "tmp"]);
        part.server.timeout = half.and_then(|t| self.number(t)).map(|half| 2.0 * half);
        let mut ty = heap.type_of(worker);
        for _ in 0..16 {
            let Some(t) = ty else { break };
            if let Some((_, name, from)) = GUNICORN_WORKERS.iter().find(|w| w.0 == t.name) {
                part.server.worker = Some((*name).into());
                part.server.heartbeat_from = Some((*from).into());
                break;
            }
            part.server.worker.get_or_insert(t.name.clone());
            ty = heap.type_at(t.base);
        }
        // `WorkerTmp._tmp` is a FileIO: an int follows the object's head (Modules/_io/fileio.c).
        let file = tmp.and_then(|tmp| heap.attrs(tmp, ["_tmp"])[0]);
        let file = file.filter(|file| heap.type_of(*file).is_some_and(|t| t.name == "_io.FileIO"));
        part.heartbeat_fd = file.and_then(|file| heap.mem.i32(file + heap.layout.object.size).ok());
    }

    fn number(&self, obj: Addr) -> Option<f64> {
        let heap = self.scene.heap;
        let number = match heap.type_of(obj)?.name.as_str() {
            "float" => heap.float(obj)?,
            "int" => heap.int(obj)? as f64,
            _ => return None,
        };
        Some(number).filter(|n| (0.0..1e9).contains(n))
    }
}

fn is_at(frame: &FrameScene, path: &str, function: &str) -> bool {
    frame.code.name == function && frame.code.file.as_deref().is_some_and(|f| f.contains(path))
}

/// With what `/proc` says of the heartbeat.
pub fn settle(part: &Part, heartbeat: Option<Heartbeat>, now: super::os::Now, parent: Option<i32>) -> Server {
    let mut server = part.server.clone();
    // Whoever was started by another one, by its own machinery; init has only taken in what it left.
    const STARTED: [&str; 6] =
        ["worker", "pool worker", "child", "fork server", "resource tracker", "manager"];
    if STARTED.contains(&server.role.as_str()) {
        server.supervisor = parent.filter(|pid| *pid > 1);
    }
    server.heartbeat_age = heartbeat.and_then(|h| age(h, now));
    server
}

/// From gunicorn 21 on the file's time of modification is that of the monotonic clock; before, the file
/// was only touched, which the wall clock dates.
fn age(heartbeat: Heartbeat, now: super::os::Now) -> Option<f64> {
    let (monotonic, realtime) = (now.monotonic?, now.realtime?);
    let age = if heartbeat.mtime <= monotonic + 1.0 {
        monotonic - heartbeat.mtime
    } else {
        realtime - heartbeat.ctime
    };
    Some(age.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_heartbeats() {
        let now = super::super::os::Now { monotonic: Some(5000.0), realtime: Some(1.7e9) };
        assert_eq!(age(Heartbeat { mtime: 4990.0, ctime: 1.7e9 - 10.0 }, now), Some(10.0));
        assert_eq!(age(Heartbeat { mtime: 1.6e9, ctime: 1.7e9 - 3.0 }, now), Some(3.0));
    }
}
