//! A redis of its own for a test, on a free port of the loopback.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{DEADLINE, Outcome, tool};
use crate::server::free_port;

pub struct Redis {
    server: Child,
    pub port: u16,
}

impl Redis {
    /// Whether it can be had, see `tool`.
    pub fn is_here() -> bool {
        tool("redis-server").is_some()
    }

    /// Starts it; comes back when it can be connected to.
    pub fn start() -> Outcome<Redis> {
        let port = free_port()?;
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("redis-server: {e}"))?;
        let redis = Redis { server, port };
        let end = Instant::now() + DEADLINE;
        while let Err(error) = TcpStream::connect(("127.0.0.1", port)) {
            if Instant::now() > end {
                return Err(format!("redis-server does not answer: {error}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
