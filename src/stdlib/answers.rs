//! Answers that clients wait for inside of an extension, which polls for them below any Python frame: a call of gRPC,
//! a request of ZeroMQ. Only that what is waited for is an answer tells them from a server at rest.

use serde_json::json;

use super::{FrameScene, Scene, Seen, ThreadScene, exits, locks, spoken};
use crate::python::objects::Heap;
use crate::python::opcodes;
use crate::snapshot::{Certainty, Wait};
use crate::target::memory::Addr;
use crate::target::syscalls::{self, Arch};

/// Frames between the call and what it sleeps in: `Condition.wait`, and two of gRPC's own.
const NEAR: usize = 6;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_some()) {
        let innermost = thread.frames.iter().take(NEAR).enumerate();
        let of_grpc = innermost.filter_map(|(at, f)| of_grpc(scene, at, f)).next();
        if let Some(wait) = of_grpc.or_else(|| of_zmq(scene, thread)) {
            seen.waits.insert(thread.raw.tstate, wait);
        }
    }
}

/// A call with one answer (grpc/_channel.py): its deadline is a variable, and since when it runs stands in its state.
fn of_grpc(scene: &Scene, at: usize, frame: &FrameScene) -> Option<Wait> {
    let heap = scene.heap;
    let (state, deadline) = match () {
        _ if frame.is("/grpc/_channel.py", &["_blocking"]) => {
            (scene.local(frame, "state")?, scene.local(frame, "deadline"))
        }
        _ if frame.is("/grpc/_channel.py", &["result"]) => {
            let [state, deadline] = heap.attrs(scene.receiver(frame)?, ["_state", "_deadline"]);
            (state?, deadline)
        }
        _ => return None,
    };
    let [since] = heap.attrs(state, ["rpc_start_time"]);
    // Of `time.time()`.
    let deadline = deadline.and_then(|d| number(heap, d));
    // Objects with slots.
    let call = scene.receiver(frame).and_then(|call| Some((call, heap.type_of(call)?)));
    let method = call.map_or([None; 2], |(call, ty)| heap.named_slots(call, &ty, ["_method", "_target"]));
    let [method, target] = method.map(|text| text.and_then(|t| text_of(heap, t)));
    let url = method.map(|method| format!("{}{method}", target.as_deref().unwrap_or_default()));
    Some(Wait {
        call: Some(format!("grpc.{}", if frame.code.name == "result" { "Future.result" } else { "Call" })),
        frame: Some(at),
        // `time.perf_counter()`, which is the monotonic clock.
        blocked_for: since.and_then(|s| number(heap, s)).zip(scene.now.monotonic).map(|(s, now)| now - s),
        deadline: Some(if deadline.is_some() { "at" } else { "none" }.to_owned()),
        ends_in: deadline.zip(scene.now.realtime).map(|(end, now)| (end - now).max(0.0)),
        detail: json!({ "operation": "recv", "library": "grpc", "peer": target, "url": url }),
        ..Wait::new("socket", None)
    })
}

/// What a REQ socket receives is the reply to what it has sent; any other may wait for whatever comes.
fn of_zmq(scene: &Scene, thread: &ThreadScene) -> Option<Wait> {
    let heap = scene.heap;
    let call = syscalls::name(Arch::HERE, thread.syscall?.number)?;
    let frame = thread.frames.first().filter(|_| matches!(call, "poll" | "ppoll" | "select" | "pselect6"))?;
    let socket = if frame.in_file("/zmq/sugar/socket.py") {
        scene.receiver(frame).filter(|_| frame.code.name.starts_with("recv"))?
    } else {
        called(scene, frame).filter(|name| name.starts_with("recv"))?;
        let of_zmq = |o: &Addr| heap.attrs(*o, ["_type_name"])[0].is_some();
        let mut all: Vec<Addr> = exits::stack_slots(heap, frame).into_iter().filter(of_zmq).collect();
        all.dedup();
        <[Addr; 1]>::try_from(all).ok()?[0]
    };
    let [kind] = heap.attrs(socket, ["_type_name"]);
    heap.checked_str(kind?).filter(|kind| kind == "REQ")?;
    let name = locks::named_object(scene, thread, socket);
    Some(Wait {
        label: Some(name.map_or_else(|| "zmq.REQ".into(), |name| format!("zmq.REQ {name}"))),
        call: Some("zmq.Socket.recv".to_owned()),
        frame: Some(0),
        certainty: Certainty::Likely,
        detail: json!({ "operation": "recv", "library": "zmq" }),
        ..Wait::new("socket", Some(socket))
    })
}

/// The method of a socket that the frame calls just now: the last one that it has loaded.
fn called(scene: &Scene, frame: &FrameScene) -> Option<String> {
    let shape = scene.shapes.of(scene, frame.raw.code)?;
    let at = opcodes::at(&shape.instructions, frame.offset)?;
    let names = scene.names(frame.raw.code);
    let before = shape.instructions[..at].iter().rev().filter_map(|i| spoken::attribute(scene, i.op, i.arg));
    let mut names = before.filter_map(|name| names.get(name as usize));
    names.find(|name| name.starts_with("recv") || name.starts_with("send")).cloned()
}

fn number(heap: &Heap, object: Addr) -> Option<f64> {
    heap.type_of(object).filter(|ty| ty.name == "float").and_then(|_| heap.float(object))
}

fn text_of(heap: &Heap, object: Addr) -> Option<String> {
    let is_bytes = || heap.type_of(object).is_some_and(|ty| ty.is_bytes());
    heap.checked_str(object)
        .or_else(|| String::from_utf8(heap.bytes(object, 1024)?.0).ok().filter(|_| is_bytes()))
}
