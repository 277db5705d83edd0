//! uvloop's transports: objects of Cython without attributes, each with a handle of libuv, which knows the
//! descriptor and points back. All handles of a loop are in its `handle_queue`.

use super::wakers::Sources;
use super::{futures, iteration};
use crate::python::objects::{Heap, TypeInfo};
use crate::target::memory::Addr;

/// `uv_loop_t.handle_queue` (include/uv.h of libuv 1.x, whose ABI is fixed).
const LOOP_HANDLES: u64 = 16;
/// `uv_loop_t.active_reqs.count`.
const LOOP_REQUESTS: u64 = 32;
/// `uv_handle_t`: type, link in that queue. `uv_stream_t`: `io_watcher.fd` (include/uv/unix.h).
const HANDLE_TYPE: u64 = 16;
const HANDLE_LINK: u64 = 32;
const STREAM_FD: u64 = 184;
/// `UV_NAMED_PIPE`, `UV_TCP`.
const STREAMS: [i32; 2] = [7, 12];

const MAX_HANDLES: usize = 8_192;
/// Fields of an object that are looked at: a transport has some twenty.
const MAX_FIELDS: u64 = 64;
/// The words of a handle's object among which the pointer to the handle is.
const WORDS: std::ops::Range<u64> = 2..8;

/// All handles of a loop of uvloop, each with its object: `data`, the first field. `None`: it is another loop, or
/// there are too many.
fn handles(heap: &Heap, event_loop: Addr) -> Option<Vec<(Addr, Addr)>> {
    let head = iteration::uv_loop(heap, event_loop)?.address() + LOOP_HANDLES;
    let mut found = Vec::new();
    let mut at = head;
    for _ in 0..MAX_HANDLES {
        at = heap.ptr(at)?;
        if at == head {
            return Some(found);
        }
        let handle = at.checked_sub(HANDLE_LINK)?;
        // Those of libuv's own have none.
        found.extend(heap.ptr(handle).map(|object| (handle, object)));
    }
    None
}

/// All open streams of a loop of uvloop: descriptor and transport.
pub fn streams(heap: &Heap, event_loop: Addr) -> Vec<(i32, Addr)> {
    let all = handles(heap, event_loop).unwrap_or_default().into_iter();
    all.filter_map(|(handle, object)| Some((descriptor(heap, handle)?, object))).collect()
}

/// All that can happen on a loop of uvloop without any task: what is ready, its handles, those for signals. `None`
/// if there may be more: a request, like that for an address, is no handle.
pub fn sources(heap: &Heap, event_loop: Addr) -> Option<Sources> {
    let uv = iteration::uv_loop(heap, event_loop)?;
    let requests = heap.mem.i32(uv.address() + LOOP_REQUESTS).ok()?;
    let ty = heap.type_of(event_loop)?;
    let is_dict = |o: Addr| heap.type_of(o).is_some_and(|t| t.is_dict());
    let (dicts, others): (Vec<Addr>, Vec<Addr>) =
        fields(heap, event_loop, &ty).into_iter().partition(|o| is_dict(*o));
    let deques = others.into_iter().filter(|o| futures::deque_len(heap, *o).is_some());
    // What is called is a handle; only signals have theirs in a dict.
    let is_handle = |o: &Addr| heap.type_of(*o).is_some_and(|t| t.name == "uvloop.loop.Handle");
    let entries = |dict: &Addr| heap.dict(*dict, MAX_HANDLES).unwrap_or_default().0;
    let values = dicts.iter().flat_map(entries).map(|(_, value)| value);
    let (signals, values): (Vec<Addr>, Vec<Addr>) = values.partition(is_handle);
    let objects = handles(heap, event_loop)?.into_iter().map(|(_, object)| object);
    let all = objects.filter(|o| *o != event_loop).chain(deques).chain(values).chain(signals.iter().copied());
    (requests == 0).then(|| Sources {
        handles: all.collect(),
        signals: signals.iter().copied().collect(),
        hidden: false,
    })
}

/// How many callbacks are ready.
pub fn ready(heap: &Heap, event_loop: Addr) -> Option<u64> {
    futures::deque_len(heap, ready_queue(heap, event_loop)?)
}

pub fn ready_handles(heap: &Heap, event_loop: Addr, most: usize) -> Vec<Addr> {
    ready_queue(heap, event_loop).map(|queue| futures::deque(heap, queue, most)).unwrap_or_default()
}

/// The only deque of a loop of uvloop.
fn ready_queue(heap: &Heap, event_loop: Addr) -> Option<Addr> {
    let ty = heap.type_of(event_loop).filter(|t| heap.is_a(t, "uvloop.loop.Loop"))?;
    fields(heap, event_loop, &ty).into_iter().find(|field| futures::deque_len(heap, *field).is_some())
}

/// The descriptor of a transport of uvloop; below TLS, that of the connection itself.
pub fn socket_of(heap: &Heap, transport: Addr) -> Option<i32> {
    let ty = heap.type_of(transport).filter(|t| t.name.starts_with("uvloop."))?;
    if ty.name.ends_with("_SSLProtocolTransport") {
        let protocol = field(heap, transport, &ty, "SSLProtocol")?;
        let ty = heap.type_of(protocol)?;
        let inner = field(heap, protocol, &ty, "TCPTransport")
            .or_else(|| field(heap, protocol, &ty, "UnixTransport"));
        return plain(heap, inner?);
    }
    plain(heap, transport)
}

fn plain(heap: &Heap, transport: Addr) -> Option<i32> {
    let points_back = |at: &Addr| heap.mem.u64(*at).is_ok_and(|data| data == transport);
    let handle = WORDS.filter_map(|word| heap.ptr(transport + 8 * word)).find(points_back)?;
    descriptor(heap, handle)
}

fn descriptor(heap: &Heap, handle: Addr) -> Option<i32> {
    let int = |at: u64| heap.mem.i32(handle.checked_add(at)?).ok();
    int(HANDLE_TYPE).filter(|kind| STREAMS.contains(kind))?;
    int(STREAM_FD).filter(|fd| *fd >= 0)
}

/// What stands in the fields of an object of Cython.
pub fn fields(heap: &Heap, object: Addr, ty: &TypeInfo) -> Vec<Addr> {
    let head = heap.layout.object.size;
    let count = (ty.basicsize.saturating_sub(head) / 8).min(MAX_FIELDS);
    let words = heap.words(object + head, count as usize).unwrap_or_default();
    words.into_iter().filter(|w| *w != 0 && w % 8 == 0).collect()
}

/// The field that holds an object of this class of uvloop's.
fn field(heap: &Heap, object: Addr, ty: &TypeInfo, class: &str) -> Option<Addr> {
    let is = |o: &Addr| heap.type_of(*o).is_some_and(|t| t.name.strip_prefix("uvloop.loop.") == Some(class));
    fields(heap, object, ty).into_iter().find(is)
}
