//! A task that waits for a TLS handshake: of a connection that it makes, or of one that it turns into a TLS one
//! (Lib/asyncio/base_events.py, `_create_connection_transport` and `start_tls`; sslproto.py).

use serde_json::json;

use super::waits::{seconds_to, socket_of, when};
use crate::snapshot::Wait;
use crate::stdlib::{FrameScene, Scene};

/// `frame` is the one that awaits the protocol's word that the connection is made.
pub fn handshake(scene: &Scene, frame: &FrameScene) -> Option<Wait> {
    let heap = scene.heap;
    let protocol = match frame.code.name.as_str() {
        "start_tls" => scene.local(frame, "ssl_protocol")?,
        _ => heap.attrs(scene.local(frame, "transport")?, ["_ssl_protocol"])[0]?,
    };
    let [transport, timeout] = heap.attrs(protocol, ["_transport", "_handshake_timeout_handle"]);
    let fd = transport.and_then(|t| socket_of(heap, t));
    let ends_in = timeout.and_then(|h| when(heap, h)).and_then(|when| seconds_to(scene, when));
    Some(Wait {
        call: Some(format!(
            "asyncio.{}",
            if frame.code.name == "start_tls" { "start_tls" } else { "create_connection" }
        )),
        deadline: ends_in.map(|_| "at".to_owned()),
        ends_in,
        detail: json!({ "fd": fd, "operation": "recv" }),
        ..Wait::new("socket", Some(protocol))
    })
}
