//! Which connection a suspended task waits for, where a protocol stands between the two: the future or the event
//! that the task waits for hangs on the protocol of a transport, whose descriptor the loop's selector watches
//! (Lib/asyncio/selector_events.py, sslproto.py).
//!
//! Read after the window, as the objects are met.

use rustc_hash::{FxHashMap, FxHashSet};

use super::waits::socket_of;
use super::{futures, uv};
use crate::python::code::Codes;
use crate::python::objects::Heap;
use crate::snapshot::Wait;
use crate::stdlib::{FrameScene, Scene, Seen, remote, visible};
use crate::target::memory::Addr;

/// Descriptors of one loop that are looked at.
const MAX_WATCHED: usize = 4_096;
/// Attributes of one object, and fields of one of C, that are looked at.
const MAX_PARTS: usize = 64;
const MAX_FIELDS: u64 = 128;

/// Instead of an operation: both sides are still at their handshake.
const HANDSHAKE: &str = "handshake";

/// A descriptor that a loop's selector watches, with the handles of its reader and writer.
pub struct Watched {
    pub fd: Option<i32>,
    pub handles: Vec<Addr>,
}

/// All descriptors of a loop; `None`: its selector is not one of Python's.
pub fn watched(heap: &Heap, event_loop: Addr, cap: usize) -> Option<Vec<Watched>> {
    let selector = heap.attrs(event_loop, ["_selector"])[0]?;
    let keys = heap.attrs(selector, ["_fd_to_key"])[0]?;
    let entries = heap.type_of(keys).filter(|t| t.is_dict()).and_then(|_| heap.dict(keys, cap));
    let of = |(fd, key): (Addr, Addr)| {
        // SelectorKey(fileobj, fd, events, data); data is the reader and the writer.
        let data = heap.tuple(key, 4).and_then(|k| k.get(3).copied());
        let handles = data.and_then(|d| heap.tuple(d, 2)).unwrap_or_default();
        Watched { fd: heap.int(fd).and_then(|fd| i32::try_from(fd).ok()), handles }
    };
    Some(entries.unwrap_or_default().0.into_iter().map(of).collect())
}

/// Tells tasks that wait for a future or an event whose connection that is.
pub fn find(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let heap = scene.heap;
    let wanted: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| wanted(t.waits_on.as_ref()?)).collect();
    if !wanted.is_empty() {
        let loops: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).collect();
        // By what is waited for: the connections that would end it.
        let mut found: FxHashMap<Addr, Vec<(i32, &'static str)>> = FxHashMap::default();
        let search = Search { heap, wanted: &wanted };
        let mut add = |fd: i32, ended: Vec<(Addr, &'static str)>| {
            for (object, operation) in ended {
                let known = found.entry(object).or_default();
                if !known.iter().any(|(other, _)| *other == fd) {
                    known.push((fd, operation));
                }
            }
        };
        for one in loops.iter().filter_map(|l| watched(heap, *l, MAX_WATCHED)).flatten() {
            let ended = one.handles.iter().flat_map(|handle| search.of_handle(*handle));
            one.fd.into_iter().for_each(|fd| add(fd, ended.clone().collect()));
        }
        for (fd, transport) in loops.iter().flat_map(|l| uv::streams(heap, *l)) {
            add(fd, search.of_uv(transport));
        }
        for wait in seen.tasks.iter_mut().filter_map(|t| t.waits_on.as_mut()) {
            let connection = self::wanted(wait).and_then(|object| found.get(&object));
            // One of several: which of them, nobody knows.
            if let Some(&[(fd, operation)]) = connection.map(Vec::as_slice) {
                on_connection(wait, fd, operation);
            }
        }
    }
    let frames = &seen.task_frames;
    for task in &mut seen.tasks {
        let raw = frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
        let is_open = |w: &&mut Wait| self::wanted(w).is_some() || w.kind == "socket";
        if let Some(wait) = task.waits_on.as_mut().filter(is_open)
            && let Some((fd, frame)) = body(scene, &visible(heap, codes, raw))
        {
            on_connection(wait, fd, "recv");
            (wait.frame, wait.detail["body"]) = (Some(frame), true.into());
        }
    }
    for task in &mut seen.tasks {
        // The event of asyncio says less than whoever waits for it.
        let raw = frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
        if let Some(wait) = task.waits_on.as_mut().filter(|w| w.kind == "socket" && w.call.is_none()) {
            wait.frame = visible(heap, codes, raw).iter().position(|f| !f.in_file("/asyncio/locks.py"));
        }
    }
    for task in seen.tasks.iter().filter(|t| t.waits_on.as_ref().is_some_and(|w| w.kind == "socket")) {
        let of_task = frames.get(&task.id.0).map(|raw| visible(heap, codes, raw)).unwrap_or_default();
        let remote = remote::of_frames(scene, &of_task);
        if !remote.is_empty() {
            seen.task_remotes.insert(task.id.0, remote);
        }
    }
}

/// A handler that reads the body of its request, of which not all has come: the client's connection, and the frame that
/// waits. aiohttp's stream knows its protocol; uvicorn's cycle is asked by what Starlette has for that.
fn body(scene: &Scene, frames: &[FrameScene]) -> Option<(i32, usize)> {
    let heap = scene.heap;
    let member = |object: Addr, name: &str| {
        let slot = || heap.named_slots(object, &*heap.type_of(object)?, [name])[0];
        heap.attrs(object, [name])[0].or_else(slot)
    };
    let of_aiohttp = |f: &FrameScene| {
        let protocol = member(scene.receiver(f)?, "_protocol")?;
        heap.type_of(protocol).filter(|ty| heap.is_a(ty, "RequestHandler"))?;
        member(protocol, "transport")
    };
    let reads = || frames.iter().any(|f| f.is("/starlette/requests.py", &["stream", "body", "form"]));
    let (at, transport) = frames.iter().enumerate().find_map(|(at, f)| {
        let file = f.code.file.as_deref()?;
        let transport = match f.code.name.as_str() {
            "_wait" if file.ends_with("/aiohttp/streams.py") => of_aiohttp(f),
            "receive" if file.contains("/uvicorn/protocols/http/") && reads() => {
                member(scene.receiver(f)?, "transport")
            }
            _ => None,
        };
        Some((at, transport?))
    })?;
    Some((i32::try_from(socket_of(heap, transport)?).ok()?, at))
}

/// What a task waits for that nobody has been found for as yet.
fn wanted(wait: &Wait) -> Option<Addr> {
    let open = match wait.kind.as_str() {
        "event" => true,
        "future" => wait.on.is_empty() && wait.detail["executor"] != true,
        _ => false,
    };
    wait.address.filter(|_| open && wait.detail["done"] != true).map(|address| address.0)
}

fn on_connection(wait: &mut Wait, fd: i32, operation: &str) {
    wait.kind = "socket".into();
    if wait.call.as_deref().is_some_and(|call| call.starts_with("asyncio.")) {
        wait.call = None;
    }
    if !wait.detail.is_object() {
        wait.detail = serde_json::json!({});
    }
    wait.detail["fd"] = fd.into();
    wait.detail["operation"] = if operation == HANDSHAKE { "recv" } else { operation }.into();
    if operation == HANDSHAKE {
        wait.detail["phase"] = "tls-handshake".into();
    }
}

struct Search<'a> {
    heap: &'a Heap<'a>,
    wanted: &'a FxHashSet<Addr>,
}

impl Search<'_> {
    /// What would be ended when this handle runs, and by which operation.
    fn of_handle(&self, handle: Addr) -> Vec<(Addr, &'static str)> {
        let heap = self.heap;
        let mut found = Vec::new();
        let Some(ty) = heap.type_of(handle).filter(|t| t.name != "NoneType") else { return found };
        let [callback, args] = heap.named_slots(handle, &ty, ["_callback", "_args"]);
        let Some(callback) = callback else { return found };
        let transport = heap
            .type_of(callback)
            .filter(|t| t.name == "method")
            .and_then(|_| heap.ptr(callback + heap.layout.method.self_));
        if let Some((protocol, inbound)) = transport.and_then(|t| self.protocol(t)) {
            self.of_object(protocol, 1, &mut found);
            found.retain(|(_, operation)| !inbound || *operation == "send");
            return found;
        }
        // `add_reader` with a function of the driver's own: its free variables and arguments.
        let free = futures::closure(heap, callback).into_iter().map(|(_, value)| value);
        let given = args.and_then(|a| heap.tuple(a, MAX_PARTS)).unwrap_or_default();
        found.extend(free.chain(given).filter(|o| self.wanted.contains(o)).map(|o| (o, "recv")));
        found
    }

    /// The protocol at the end of a transport, and whether a client has opened that: what comes from clients is
    /// nobody's answer, but what is sent to them has to go.
    fn protocol(&self, transport: Addr) -> Option<(Addr, bool)> {
        let heap = self.heap;
        let [protocol, server] = heap.attrs(transport, ["_protocol", "_server"]);
        let inbound = server.is_some_and(|s| heap.type_of(s).is_some_and(|t| t.name != "NoneType"));
        let protocol = protocol?;
        match heap.attrs(protocol, ["_app_protocol", "_sslcontext"]) {
            [Some(inner), Some(_)] => Some((inner, inbound)),
            _ => Some((protocol, inbound)),
        }
    }

    /// The same for a transport of uvloop: its protocol is one of its fields, or behind that of TLS.
    fn of_uv(&self, transport: Addr) -> Vec<(Addr, &'static str)> {
        let heap = self.heap;
        let mut found = Vec::new();
        let Some(ty) = heap.type_of(transport).filter(|t| t.name.starts_with("uvloop.")) else {
            return found;
        };
        let mut inbound = false;
        let mut left: Vec<Addr> = uv::fields(heap, transport, &ty);
        let mut behind = Vec::new();
        while let Some(field) = left.pop() {
            // Whoever waits until the connection is made: `_waiter` of either.
            if self.wanted.contains(&field) {
                found.push((field, if behind.contains(&field) { HANDSHAKE } else { "connect" }));
                continue;
            }
            let Some(ty) = heap.type_of(field) else { continue };
            match ty.name.strip_prefix("uvloop.loop.") {
                Some("Server") => inbound = true,
                Some("SSLProtocol") if behind.is_empty() => {
                    behind = uv::fields(heap, field, &ty);
                    left.extend(&behind);
                }
                Some(_) => {}
                None => self.of_object(field, 1, &mut found),
            }
        }
        found.retain(|(_, operation)| !inbound || *operation == "send");
        found
    }

    fn of_object(&self, object: Addr, depth: u32, found: &mut Vec<(Addr, &'static str)>) {
        let heap = self.heap;
        let Some(ty) = heap.type_of(object).filter(|t| t.is_heap_type() && !t.is_type()) else { return };
        let mut parts: Vec<(Addr, &'static str)> = Vec::new();
        for (name, value) in heap.attributes(object, MAX_PARTS).unwrap_or_default() {
            let name = heap.checked_str(name).unwrap_or_default();
            let writes = name.contains("drain") || name.contains("writ");
            parts.push((value, if writes { "send" } else { "recv" }));
        }
        // What C or Cython keeps, slots among it: each field may be a pointer.
        let head = heap.layout.object.size;
        let fields = (ty.basicsize.saturating_sub(head) / 8).min(MAX_FIELDS);
        let words = heap.words(object + head, fields as usize).unwrap_or_default();
        parts.extend(words.into_iter().filter(|w| self.wanted.contains(w)).map(|w| (w, "recv")));
        for (part, operation) in parts {
            if self.wanted.contains(&part) {
                found.push((part, operation));
            } else if depth > 0 {
                self.of_object(part, depth - 1, found);
            }
        }
    }
}
