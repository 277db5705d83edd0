//! The other side of a connection where the process itself knows it by name: the URL that was asked for, the host that
//! is connected to or whose address is asked for. From the variables of the libraries' frames between the
//! application's call and the system call, whatever the library is called.

use serde_json::{Value, json};

use super::os::On;
use super::{FrameScene, Scene, Seen, exits};
use crate::target::memory::Addr;

/// Frames above the application's own that are searched.
const MAX_FRAMES: usize = 40;
/// A name is no longer than this (RFC 1035); nobody reads a longer URL.
const MAX_HOST: usize = 255;
const MAX_URL: usize = 400;

/// Variables and attributes that hold a host or a URL.
const HOSTS: [&str; 5] = ["server_hostname", "host", "hostname", "_host", "_dns_host"];
const URLS: [&str; 5] = ["url", "str_or_url", "full_url", "fullurl", "uri"];
/// Objects whose attributes are looked at as well.
const OBJECTS: [&str; 6] = ["self", "conn", "request", "req", "connection", "pool"];

/// What is known of the other side; added to the wait once its descriptor is known (look/waits.rs).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Remote {
    pub host: Option<String>,
    pub url: Option<String>,
    /// `resolve`, `tls-handshake`: not a word has been exchanged that the application knows of.
    pub phase: Option<&'static str>,
    /// What C code was given to find the address of, if that is what it does.
    pub resolved: Option<String>,
}

impl Remote {
    pub fn is_empty(&self) -> bool {
        *self == Remote::default()
    }

    /// Into the details of a wait.
    pub fn tell(&self, detail: &mut Value, shown: impl Fn(&str) -> String) {
        if !detail.is_object() {
            *detail = json!({});
        }
        detail["host"] = json!(self.host);
        detail["url"] = json!(self.url.as_deref().map(shown));
        if self.phase.is_some() || detail["phase"].is_null() {
            detail["phase"] = json!(self.phase);
        }
    }
}

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in &scene.threads {
        let tstate = thread.raw.tstate;
        let on_socket = seen
            .os
            .get(&tstate)
            .is_some_and(|os| !os.for_work && matches!(os.on, On::Fd { .. } | On::Poll { .. }));
        let database = seen.waits.get(&tstate).is_some_and(|wait| wait.detail["database"].is_object());
        if on_socket && !database {
            let remote = of_frames(scene, &thread.frames);
            if !remote.is_empty() {
                seen.remotes.insert(tstate, remote);
            }
        }
    }
}

/// From the innermost of these frames on.
pub fn of_frames(scene: &Scene, frames: &[FrameScene]) -> Remote {
    let mut remote = Remote::default();
    let innermost = frames.first();
    let frames = frames.iter().take(MAX_FRAMES);
    for (depth, frame) in frames.take_while(|f| !scene.is_user(f)).enumerate() {
        if remote.phase.is_none() {
            remote.phase = match frame.code.name.as_str() {
                // A function of C inside: its Python wrapper is the innermost frame.
                "getaddrinfo" if depth == 0 && frame.in_file("/socket.py") => Some("resolve"),
                "do_handshake" => Some("tls-handshake"),
                // asyncio and AnyIO drive it themselves: nothing else is awaited there.
                "_create_connection_transport" | "start_tls"
                    if depth == 0 && frame.in_file("/asyncio/base_events.py") =>
                {
                    Some("tls-handshake")
                }
                "wrap" if frame.in_file("/anyio/streams/tls.py") => Some("tls-handshake"),
                _ => None,
            };
        }
        // The innermost that says something: after a redirection it is another one than was asked for.
        of_frame(scene, frame, &mut remote);
        if remote.host.is_some() && remote.url.is_some() {
            break;
        }
    }
    remote.resolved = innermost.and_then(|frame| resolved_by_c(scene, frame));
    if remote.host.is_none() {
        remote.host = remote.url.as_deref().and_then(host_of).map(str::to_owned);
    }
    remote
}

/// Functions of `_socket` that ask for an address, with what they were given: no frame of Python is theirs, but
/// the caller's value stack has both.
fn resolved_by_c(scene: &Scene, frame: &FrameScene) -> Option<String> {
    const RESOLVERS: &[&str] = &["getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"];
    let heap = scene.heap;
    let slots = exits::stack_slots(heap, frame);
    let at = slots.iter().position(|slot| {
        let name = || {
            exits::called(heap, *slot, *slot)
                .filter(|_| heap.type_of(*slot).is_some_and(|t| t.is_c_function()))
        };
        name().is_some_and(|(name, _)| RESOLVERS.contains(&name.as_str()))
    })?;
    // Behind it may stand the NULL, or the module, of a call.
    slots[at + 1..].iter().take(2).find_map(|slot| host(scene, *slot))
}

fn of_frame(scene: &Scene, frame: &FrameScene, remote: &mut Remote) {
    let heap = scene.heap;
    for (name, obj) in scene.locals(frame) {
        let name = name.as_str();
        if HOSTS.contains(&name) {
            remote.host = remote.host.take().or_else(|| host(scene, obj));
        } else if name == "address" {
            let first = || host(scene, *heap.tuple(obj, 2)?.first()?);
            remote.host = remote.host.take().or_else(first);
        } else if URLS.contains(&name) {
            remote.url = remote.url.take().or_else(|| url(scene, obj));
        } else if OBJECTS.contains(&name) && heap.type_of(obj).is_some_and(|t| t.is_heap_type()) {
            for found in heap.attrs(obj, HOSTS).into_iter().flatten() {
                remote.host = remote.host.take().or_else(|| host(scene, found));
            }
            for found in heap.attrs(obj, URLS).into_iter().flatten() {
                remote.url = remote.url.take().or_else(|| url(scene, found));
            }
        }
    }
}

/// What may be a host's name or address, and nothing else.
fn host(scene: &Scene, obj: Addr) -> Option<String> {
    let text = text(scene, obj, MAX_HOST)?;
    let fits =
        |c: char| c.is_ascii_alphanumeric() || "-._:%[]".contains(c) || !c.is_ascii() && c.is_alphabetic();
    (!text.is_empty() && text.chars().all(fits)).then_some(text)
}

/// A URL with its scheme; a path alone says little.
fn url(scene: &Scene, obj: Addr) -> Option<String> {
    let heap = scene.heap;
    let whole = text(scene, obj, MAX_URL).or_else(|| {
        // httpx keeps it in parts: a named tuple of scheme, user, host, port, path, query.
        let [parts] = heap.attrs(obj, ["_uri_reference"]);
        let parts = heap.tuple(parts?, 6)?;
        let part = |i: usize| parts.get(i).and_then(|p| text(scene, *p, MAX_URL));
        let port = parts.get(3).and_then(|p| heap.int(*p)).map(|p| format!(":{p}")).unwrap_or_default();
        let query = part(5).map(|query| format!("?{query}")).unwrap_or_default();
        Some(format!("{}://{}{port}{}{query}", part(0)?, part(2)?, part(4).unwrap_or_default()))
    })?;
    let (scheme, rest) = whole.split_once("://")?;
    let fits = !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+');
    (fits && !rest.is_empty()).then_some(whole)
}

fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    match address.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => address.split(':').next(),
    }
    .filter(|host| !host.is_empty())
}

/// A `str`, or ASCII `bytes`, whole.
fn text(scene: &Scene, obj: Addr, most: usize) -> Option<String> {
    let heap = scene.heap;
    let ty = heap.type_of(obj)?;
    if ty.is_str() {
        return heap.str_cut(obj, most).map(|t| t.0);
    }
    let (bytes, _) = ty.is_bytes().then(|| heap.bytes(obj, most)).flatten()?;
    bytes.is_ascii().then(|| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url() {
        assert_eq!(host_of("https://user:pw@api.example:8443/v1?x=1"), Some("api.example"));
        assert_eq!(host_of("http://[::1]:80/"), Some("::1"));
        assert_eq!(host_of("http:///nothing"), None);
        assert_eq!(host_of("/v1/items"), None);
    }
}
