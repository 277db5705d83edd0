//! What a suspended task waits for, from its innermost frames and the objects in them.

use serde_json::json;

use super::{World, anyio, closing, executor, futures, pools, tls, uv};
use crate::python::objects::Heap;
use crate::snapshot::{Actor, Address, Certainty, Wait};
use crate::stdlib::{FrameScene, Scene, databases, exits, os};
use crate::target::memory::Addr;

/// Tasks that are named as those who must act.
pub const MAX_ACTORS: usize = 64;

pub fn of_task(scene: &Scene, world: &World, index: usize) -> Option<Wait> {
    let task = &world.tasks[index];
    // Without a future it stands in line to be run.
    let future = task.object.waits_for?;
    let state = futures::future(scene.heap, future).map_or("pending", |f| f.state);
    let done = state != "pending";
    let sleeps = task.thread.is_some_and(|t| world.asleep.contains(&t));
    // It is woken, and stands in line as well.
    if done && !sleeps {
        return None;
    }
    let mut wait = anyio::limiter(scene, world, &task.frames)
        .or_else(|| closing::stopping(scene, world, &task.frames))
        .or_else(|| by_frame(scene, world, &task.frames))
        .or_else(|| {
            on_tasks(scene, world, index).map(|wait| executor::beside(scene, &task.frames, future, wait))
        })
        .or_else(|| executor::wait(scene, &task.frames, future))
        .or_else(|| anyio::worker(scene, world, future))
        .unwrap_or_else(|| Wait { detail: json!({ "state": state }), ..Wait::new("future", Some(future)) });
    databases::of_task(scene, &task.frames, &mut wait);
    pools::of_task(scene, &task.frames, &mut wait);
    // The loop sleeps, though this one could go on: nobody has woken it.
    if done {
        wait.detail["done"] = json!(true);
        wait.on.clear();
    } else if sleeps && wait.on.is_empty() {
        // What would go on is in line, and the loop does not know.
        wait.detail["unwoken"] = json!(true);
    }
    let limits = limits(scene, &task.frames);
    if let (Some(over), Some(now)) = (limits.over, scene.now.monotonic)
        && let Some(detail) = wait.detail.as_object_mut()
    {
        detail.insert("overdue".into(), json!((now - over).max(0.0)));
    }
    if let Some(deadline) = limits.nearest
        && wait.ends_in.is_none()
        && let Some(ends_in) = seconds_to(scene, deadline)
    {
        wait.deadline = Some("at".to_owned());
        wait.ends_in = Some(ends_in);
    }
    Some(wait)
}

/// The primitives of asyncio, by the innermost frame that is not that of a future itself.
fn by_frame(scene: &Scene, world: &World, frames: &[FrameScene]) -> Option<Wait> {
    let heap = scene.heap;
    let at = frames.iter().position(|f| !f.is("/asyncio/futures.py", &["__await__", "__iter__"]))?;
    // What is made of another primitive: `Queue.join` of an event, a barrier of a condition.
    let compound = |f: &FrameScene| {
        f.is("/asyncio/queues.py", &["join"]) || f.is("/asyncio/locks.py", &["_block", "_wait"])
    };
    let inner = frames[at..].iter().take(4).take_while(|f| f.in_file("/asyncio/locks.py") || compound(f));
    let at = inner.enumerate().find(|(_, f)| compound(f)).map_or(at, |(i, _)| at + i);
    let frame = &frames[at];
    let object = || scene.receiver(frame);
    let name = frame.code.name.as_str();
    let file = frame.code.file.as_deref()?;
    let file = file.rsplit_once("/asyncio/").map(|(_, file)| file)?;
    let with = |kind: &str, call: &str, address: Option<Addr>| Wait {
        call: Some(format!("asyncio.{call}")),
        frame: Some(at),
        ..Wait::new(kind, address)
    };
    let number = |obj: Addr, attr: &str| {
        let value = heap.attrs(obj, [attr])[0]?;
        heap.type_of(value).filter(|t| t.is_int()).and_then(|_| heap.int(value))
    };
    Some(match (file, name) {
        ("locks.py", "acquire" | "wait" | "_block" | "_wait") => {
            let lock = object()?;
            let ty = heap.type_of(lock)?;
            let is = |class: &str| heap.is_of(&ty, "asyncio.locks", class);
            let class = ty.name.clone();
            match name {
                "acquire" if is("Semaphore") => {
                    let (on, max) = (holders(scene, world, lock), number(lock, "_bound_value"));
                    // Who has taken a slot without a `with` is not known, and may be the one to give one back.
                    let all = on.is_empty() || max == i64::try_from(on.len()).ok();
                    Wait {
                        certainty: if all { Certainty::Proved } else { Certainty::Likely },
                        detail: json!({ "value": number(lock, "_value"), "max": max }),
                        on,
                        ..with("semaphore", &format!("{class}.acquire"), Some(lock))
                    }
                }
                "acquire" => {
                    let lock = if is("Condition") { heap.attrs(lock, ["_lock"])[0]? } else { lock };
                    let on = holders(scene, world, lock);
                    let owner = on.first().and_then(|a| a.task);
                    let detail = json!({ "owner": owner });
                    Wait { on, detail, ..with("lock", &format!("{class}.acquire"), Some(lock)) }
                }
                "wait" if is("Event") => with("event", &format!("{class}.wait"), Some(lock)),
                "wait" if is("Condition") => with("condition", &format!("{class}.wait"), Some(lock)),
                _ if is("Barrier") => Wait {
                    detail: json!({ "parties": number(lock, "_parties"), "waiting": number(lock, "_count") }),
                    ..with("barrier", &format!("{class}.wait"), Some(lock))
                },
                _ => return None,
            }
        }
        ("queues.py", "get" | "put" | "join") => {
            let queue = object()?;
            let [items, unfinished] = heap.attrs(queue, ["_queue", "_unfinished_tasks"]);
            let size = items.and_then(|q| heap.size(q));
            let unfinished = unfinished.and_then(|n| heap.int(n));
            let detail = json!({ "operation": name, "size": size, "maxsize": number(queue, "_maxsize"), "unfinished": unfinished });
            Wait { detail, ..with("queue", &format!("Queue.{name}"), Some(queue)) }
        }
        ("tasks.py", "sleep") => {
            let seconds = scene.local(frame, "delay").and_then(|d| seconds(heap, d));
            let when = scene.local(frame, "h").and_then(|h| when(heap, h));
            let ends_in = when.and_then(|when| seconds_to(scene, when));
            let detail = json!({ "seconds": seconds });
            Wait { deadline: Some("at".to_owned()), ends_in, detail, ..with("sleep", "sleep", None) }
        }
        ("streams.py", "_wait_for_data" | "_drain_helper") => {
            let stream = object()?;
            let mut transport = heap.attrs(stream, ["_transport"])[0];
            if let Some(tls) = transport.and_then(|t| heap.attrs(t, ["_ssl_protocol"])[0]) {
                transport = heap.attrs(tls, ["_transport"])[0];
            }
            // Of a child: what is written goes to its standard input.
            let input = transport.and_then(|t| input_of_child(heap, t));
            transport = input.or(transport);
            let socket = transport.and_then(|t| socket_of(heap, t));
            let pipe = transport.and_then(|t| heap.attrs(t, ["_fileno"])[0]).and_then(|fd| heap.int(fd));
            let (call, kind, operation) = match (name, pipe) {
                ("_drain_helper", None) => ("StreamWriter.drain", "socket", "send"),
                ("_drain_helper", Some(_)) => ("StreamWriter.drain", "pipe", "write"),
                (_, None) => ("StreamReader.read", "socket", "recv"),
                (_, Some(_)) => ("StreamReader.read", "pipe", "read"),
            };
            let fd = socket.or(pipe);
            let mut detail = json!({ "fd": fd, "operation": operation });
            if input.is_some() {
                detail["unread"] = json!(full_outputs(heap, stream));
            }
            if has_part(scene, stream, frames.get(at + 1)) {
                detail["partial"] = json!(true);
                detail["transport"] = json!(transport.map(Address));
            }
            Wait { detail, ..with(kind, call, Some(stream)) }
        }
        ("base_subprocess.py", "_wait") | ("subprocess.py", "wait") => {
            let transport = object()?;
            let pid = number(transport, "_pid").and_then(|p| i32::try_from(p).ok());
            let on = pid.map(os::process);
            let detail = json!({ "unread": unread(scene, &frames[at..]) });
            Wait { on: on.into_iter().collect(), detail, ..with("process", "subprocess.Process.wait", None) }
        }
        ("base_events.py", "wait_closed") => Wait { frame: Some(at), ..closing::wait(scene, world, frame)? },
        ("base_events.py", "_create_connection_transport" | "start_tls") => {
            Wait { frame: Some(at), ..tls::handshake(scene, frame)? }
        }
        ("selector_events.py" | "proactor_events.py", sock) if sock.starts_with("sock_") => {
            // The first field of a `PySocketSockObject`.
            let socket = scene.local(frame, "sock").or_else(|| scene.local(frame, "conn"));
            let fd =
                socket.and_then(|s| heap.mem.i32(s + heap.layout.object.size).ok()).filter(|fd| *fd >= 0);
            let operations = ["recv", "send", "connect", "accept"];
            let operation = operations.into_iter().find(|o| sock["sock_".len()..].starts_with(o));
            let detail = json!({ "fd": fd, "operation": operation });
            Wait { detail, ..with("socket", &format!("loop.{sock}"), socket) }
        }
        _ => return None,
    })
}

/// `BaseSubprocessTransport._pipes[0].pipe` (Lib/asyncio/base_subprocess.py).
fn input_of_child(heap: &Heap, transport: Addr) -> Option<Addr> {
    let pipes = heap.attrs(transport, ["_pipes"])[0]?;
    let (entries, _) = heap.type_of(pipes).filter(|t| t.is_dict()).and_then(|_| heap.dict(pipes, 8))?;
    let (_, proto) = entries.into_iter().find(|(number, _)| heap.int(*number) == Some(0))?;
    heap.attrs(proto, ["pipe"])[0]
}

/// The descriptor of a transport's socket.
pub fn socket_of(heap: &Heap, transport: Addr) -> Option<i64> {
    let own = heap.attrs(transport, ["_sock_fd"])[0].and_then(|fd| heap.int(fd));
    own.or_else(|| uv::socket_of(heap, transport).map(i64::from))
}

/// A part of what is to be read as a whole has come: the other side is not at rest.
fn has_part(scene: &Scene, stream: Addr, reader: Option<&FrameScene>) -> bool {
    let whole = ["readexactly", "readuntil"];
    let buffer = || scene.heap.attrs(stream, ["_buffer"])[0].and_then(|b| scene.heap.size(b));
    reader.is_some_and(|f| f.is("/asyncio/streams.py", &whole)) && buffer().is_some_and(|size| size > 0)
}

/// The outputs of a child of which the loop has stopped reading, as its buffer is full (Lib/asyncio/streams.py,
/// `StreamReader.feed_data`).
fn unread(scene: &Scene, frames: &[FrameScene]) -> Vec<&'static str> {
    let of = |frame: &FrameScene| frame.is("/asyncio/subprocess.py", &["wait"]);
    let process = frames.iter().find(|f| of(f)).and_then(|f| scene.receiver(f));
    process.map_or_else(Vec::new, |process| full_outputs(scene.heap, process))
}

/// `process`: its object, or its protocol.
fn full_outputs(heap: &Heap, process: Addr) -> Vec<&'static str> {
    let streams = heap.attrs(process, ["stdout", "stderr"]);
    let is_full = |stream: Addr| heap.attrs(stream, ["_paused"])[0].and_then(|p| heap.int(p)) == Some(1);
    let names = ["stdout", "stderr"].into_iter().zip(streams);
    names.filter(|(_, stream)| stream.is_some_and(is_full)).map(|(name, _)| name).collect()
}

/// The tasks that are proved to be inside of a lock.
fn holders(scene: &Scene, world: &World, lock: Addr) -> Vec<Actor> {
    let holders = world.holders.get(&lock).map_or(&[][..], Vec::as_slice);
    holders.iter().take(MAX_ACTORS).map(|i| actor(scene, world, *i)).collect()
}

pub fn actor(scene: &Scene, world: &World, index: usize) -> Actor {
    let task = &world.tasks[index];
    let tid = task.thread.and_then(|t| scene.threads[t].tid);
    Actor::task(scene.pid, tid, Address(task.object.future.addr))
}

/// Other tasks, awaited directly or through `gather`, `wait_for` and their kind.
fn on_tasks(scene: &Scene, world: &World, index: usize) -> Option<Wait> {
    let awaits = &world.awaits[index];
    let first = world.tasks[*awaits.first()?].object.future.addr;
    let task = &world.tasks[index];
    let at = task
        .frames
        .iter()
        .position(|f| f.in_file("/asyncio/tasks.py") || f.in_file("/asyncio/taskgroups.py"));
    let call = at.map(|at| match task.frames[at].code.name.as_str() {
        "__aexit__" | "_aexit" => "asyncio.TaskGroup".to_owned(),
        "_wait" => "asyncio.wait".to_owned(),
        name => format!("asyncio.{name}"),
    });
    let starts = |f: &FrameScene| f.is(anyio::BACKEND, &["start"]);
    let call = call.or_else(|| task.frames.iter().any(starts).then(|| "anyio.TaskGroup.start".to_owned()));
    let group = at.map(|at| &task.frames[at]).filter(|f| f.in_file("/asyncio/taskgroups.py"));
    let aborting = group.and_then(|f| scene.heap.attrs(scene.receiver(f)?, ["_aborting"])[0]);
    let aborting = aborting.and_then(|a| scene.heap.int(a)).map(|a| a != 0);
    let returns = at.and_then(|at| scene.local(&task.frames[at], "return_when"));
    let first_will_do = returns.and_then(|r| scene.heap.checked_str(r)).is_some_and(|r| r != "ALL_COMPLETED");
    let actor = |i: &usize| {
        let task = &world.tasks[*i];
        Actor {
            pid: None,
            tid: None,
            thread: None,
            task: Some(Address(task.object.future.addr)),
            task_name: None,
        }
    };
    let names: Vec<&str> =
        awaits.iter().take(3).filter_map(|i| world.tasks[*i].object.name.as_deref()).collect();
    let more = awaits.len() - names.len().min(awaits.len());
    let label = match (names.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(names.join(", ")),
        (false, more) => Some(format!("{} and {more} more", names.join(", "))),
    };
    Some(Wait {
        label,
        call,
        frame: at,
        on: awaits.iter().take(MAX_ACTORS).map(actor).collect(),
        detail: json!({ "tasks": awaits.len(), "first": first_will_do, "aborting": aborting }),
        ..Wait::new("task", Some(first))
    })
}

/// On the loop's clock.
#[derive(Default)]
struct Limits {
    /// When the nearest `timeout()` or `wait_for()` around ends it.
    nearest: Option<f64>,
    /// When the first of those was over that have cancelled the task, and that it is still inside of.
    over: Option<f64>,
}

fn limits(scene: &Scene, frames: &[FrameScene]) -> Limits {
    let heap = scene.heap;
    let mut limits = Limits::default();
    let first = |old: Option<f64>, when: f64| Some(old.map_or(when, |old| old.min(when)));
    // Up to 3.11 `wait_for` has cancelled what it waits for, and waits for its end.
    let cancels = frames.iter().any(|f| f.is("/asyncio/tasks.py", &["_cancel_and_wait"]));
    for frame in frames {
        let mut add = |when: Option<f64>, is_over: bool| match when {
            Some(when) if is_over => limits.over = first(limits.over, when),
            Some(when) => limits.nearest = first(limits.nearest, when),
            None => {}
        };
        if frame.is("/asyncio/tasks.py", &["wait_for", "_wait"]) && !cancels {
            // Up to 3.11, and `asyncio.wait`.
            add(scene.local(frame, "timeout_handle").and_then(|h| when(heap, h)), false);
        } else if frame.is("/aiohttp/client.py", &["_request"]) {
            add(scene.local(frame, "handle").and_then(|h| when(heap, h)), false);
        }
        for exit in exits::of_frame(heap, frame) {
            add(timeout(heap, exit.manager), is_over(heap, exit.manager));
            // `anyio.fail_after()` is a generator with a scope inside.
            let generator = heap
                .type_of(exit.manager)
                .filter(|t| t.name == "_GeneratorContextManager")
                .and_then(|_| heap.attrs(exit.manager, ["gen"])[0]);
            for inner in generator.into_iter().flat_map(|g| exits::of_generator(heap, g)) {
                add(timeout(heap, inner.manager), false);
            }
        }
    }
    limits
}

/// Its time is over, and it has cancelled the task: `asyncio.Timeout` (Lib/asyncio/timeouts.py), async_timeout's.
fn is_over(heap: &Heap, manager: Addr) -> bool {
    let [state] = heap.attrs(manager, ["_state"]);
    let value = state.and_then(|s| heap.attrs(s, ["_value_"])[0]).and_then(|v| heap.checked_str(v));
    value.is_some_and(|v| v == "expiring" || v == "TIMEOUT")
}

/// When a context manager gives up, on the loop's clock: `asyncio.timeout`, async_timeout's, AnyIO's.
fn timeout(heap: &Heap, manager: Addr) -> Option<f64> {
    heap.type_of(manager).filter(|t| t.name == "Timeout" || t.name == "CancelScope")?;
    let [when, deadline] = heap.attrs(manager, ["_when", "_deadline"]);
    when.or(deadline).and_then(|w| seconds(heap, w))
}

/// `_when` of a `TimerHandle`.
pub fn when(heap: &Heap, handle: Addr) -> Option<f64> {
    let ty = heap.type_of(handle).filter(|t| t.name == "TimerHandle")?;
    let [when] = heap.named_slots(handle, &ty, ["_when"]);
    seconds(heap, when?)
}

/// From now on, of a time on the loop's clock.
pub fn seconds_to(scene: &Scene, when: f64) -> Option<f64> {
    scene.now.monotonic.map(|now| (when - now).max(0.0))
}

/// A float or int.
fn seconds(heap: &Heap, obj: Addr) -> Option<f64> {
    let ty = heap.type_of(obj)?;
    match ty.name.as_str() {
        "float" => heap.float(obj).filter(|f| f.is_finite()),
        "int" => heap.int(obj).map(|i| i as f64),
        _ => None,
    }
}
