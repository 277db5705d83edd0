//! `Server.wait_closed()`: from 3.12 on it waits until the last connection of a closed server has gone
//! (Lib/asyncio/base_events.py), which is up to the handlers and their clients.

use rustc_hash::FxHashSet;
use serde_json::json;

use super::World;
use super::waits::{MAX_ACTORS, actor};
use crate::python::objects::Heap;
use crate::snapshot::{Certainty, Wait};
use crate::stdlib::{FrameScene, Scene, exits};
use crate::target::memory::Addr;

/// Connections of one loop that are looked at.
const MAX_CONNECTIONS: usize = 4_096;

/// For the tasks that handle the connections; where none is known, for the first connection itself.
pub fn wait(scene: &Scene, world: &World, frame: &FrameScene) -> Option<Wait> {
    let heap = scene.heap;
    let server = scene.receiver(frame)?;
    let [event_loop, sockets] = heap.attrs(server, ["_loop", "_sockets"]);
    // One that still listens is waited for as long as it likes.
    if sockets.is_some_and(|s| heap.type_of(s).is_none_or(|t| t.name != "NoneType")) {
        return None;
    }
    let connections = connections(heap, event_loop?, server);
    let first = *connections.first()?;
    let tasks: Vec<usize> = (0..world.tasks.len())
        .filter(|i| connections.iter().any(|c| c.handler == Some(world.tasks[*i].object.future.addr)))
        .collect();
    let closing = json!({ "connections": connections.len() });
    let wait = if tasks.is_empty() {
        let detail = json!({ "fd": first.fd, "operation": "recv", "closing": closing });
        Wait { detail, ..Wait::new("socket", Some(server)) }
    } else {
        let names = tasks.iter().take(3).filter_map(|i| world.tasks[*i].object.name.clone());
        let names: Vec<String> = names.collect();
        Wait {
            label: (!names.is_empty()).then(|| names.join(", ")),
            on: tasks.iter().take(MAX_ACTORS).map(|i| actor(scene, world, *i)).collect(),
            detail: json!({ "tasks": tasks.len(), "closing": closing }),
            ..Wait::new("task", Some(server))
        }
    };
    Some(Wait { call: Some("asyncio.Server.wait_closed".to_owned()), ..wait })
}

/// uvicorn was told to stop, and asks ten times a second whether its requests have ended (uvicorn/server.py).
pub fn stopping(scene: &Scene, world: &World, frames: &[FrameScene]) -> Option<Wait> {
    const NAMES: &[&str] = &["shutdown", "_wait_tasks_to_complete"];
    let heap = scene.heap;
    let at = frames.iter().position(|f| !f.is("/asyncio/tasks.py", &["sleep"]))?;
    let frame = frames.get(at).filter(|f| at > 0 && f.is("/uvicorn/server.py", NAMES))?;
    let state = heap.attrs(scene.receiver(frame)?, ["server_state"])[0]?;
    let [tasks, connections] = heap.attrs(state, ["tasks", "connections"]);
    let (tasks, count) = heap.set(tasks?, MAX_CONNECTIONS)?;
    let open: Vec<usize> = tasks.iter().filter_map(|task| world.by_addr.get(task).copied()).collect();
    let names = open.iter().take(3).filter_map(|i| world.tasks[*i].object.name.clone());
    let names: Vec<String> = names.collect();
    let connections = connections.and_then(|c| Some(heap.set(c, MAX_CONNECTIONS)?.1)).unwrap_or(count);
    let inner: Vec<usize> = open.iter().flat_map(|i| below(scene, world, *i)).collect();
    (!open.is_empty()).then(|| Wait {
        label: (!names.is_empty()).then(|| names.join(", ")),
        call: Some("uvicorn.Server.shutdown".to_owned()),
        frame: Some(at),
        // First those that say where the application stands.
        on: inner.iter().chain(&open).take(MAX_ACTORS).map(|i| actor(scene, world, *i)).collect(),
        certainty: if inner.is_empty() { Certainty::Proved } else { Certainty::Likely },
        detail: json!({ "tasks": count, "stopping": { "connections": connections } }),
        ..Wait::new("task", Some(state))
    })
}

/// The tasks of a group that a request's task is inside of, where the application's own code runs in these alone:
/// Starlette streams its answers so.
fn below(scene: &Scene, world: &World, index: usize) -> Vec<usize> {
    let heap = scene.heap;
    let is_own = |i: &usize| world.tasks[*i].frames.iter().any(|f| scene.is_user(f));
    if is_own(&index) {
        return Vec::new();
    }
    let managers = world.tasks[index].frames.iter().flat_map(|f| exits::of_frame(heap, f));
    let is_a = |manager: Addr, class: &str| heap.type_of(manager).is_some_and(|ty| ty.name == class);
    // Starlette wraps the group into a generator.
    let inner = |manager: Addr| {
        let wraps = is_a(manager, "_AsyncGeneratorContextManager");
        let generator = wraps.then(|| heap.attrs(manager, ["gen"])[0]).flatten();
        generator.map_or_else(Vec::new, |generator| exits::of_generator(heap, generator))
    };
    let managers = managers
        .flat_map(|e| inner(e.manager).into_iter().map(|e| e.manager).chain([e.manager]))
        .filter(|manager| is_a(*manager, "TaskGroup"));
    let groups: Vec<Addr> = managers.collect();
    let tasks = groups.into_iter().filter_map(|group| heap.attrs(group, ["_tasks"])[0]);
    let tasks = tasks.flat_map(|set| heap.set(set, MAX_ACTORS).unwrap_or_default().0);
    tasks.filter_map(|task| world.by_addr.get(&task).copied()).filter(is_own).collect()
}

#[derive(Clone, Copy)]
struct Connection {
    fd: Option<i64>,
    /// The task that was made for it.
    handler: Option<Addr>,
}

/// The open connections of a server, by the transports of its loop: `_transports` is a `WeakValueDictionary`.
fn connections(heap: &Heap, event_loop: Addr, server: Addr) -> Vec<Connection> {
    let data = heap.attrs(event_loop, ["_transports"])[0].and_then(|all| heap.attrs(all, ["data"])[0]);
    let entries = data.filter(|d| heap.type_of(*d).is_some_and(|t| t.is_dict()));
    let entries = entries.and_then(|d| heap.dict(d, MAX_CONNECTIONS)).unwrap_or_default().0;
    let mut seen = FxHashSet::default();
    // `wr_object` is the first field of a weak reference.
    let transports = entries.into_iter().filter_map(|(_, r)| heap.ptr(r + heap.layout.object.size));
    let mut found: Vec<Connection> = Vec::new();
    for transport in transports.filter(|t| seen.insert(*t)) {
        let [of, fd, mut protocol] = heap.attrs(transport, ["_server", "_sock_fd", "_protocol"]);
        if of != Some(server) {
            continue;
        }
        if let Some(inner) = protocol.and_then(|p| heap.attrs(p, ["_app_protocol"])[0]) {
            protocol = Some(inner);
        }
        // The protocol of streams keeps it (3.12 on), and that of aiohttp.
        let tasks = protocol.map(|p| heap.attrs(p, ["_task", "_task_handler"]));
        let handler = tasks.and_then(|tasks| tasks.into_iter().flatten().next());
        found.push(Connection { fd: fd.and_then(|fd| heap.int(fd)), handler });
    }
    found
}
