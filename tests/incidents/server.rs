//! Servers under test, their clients, and the server that never answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::common::{Interpreter, Outcome, Program, system_call};
use crate::venv;

/// Accepts and never answers, never reads.
pub struct Silent {
    pub address: SocketAddr,
    end: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Silent {
    pub fn start() -> Outcome<Silent> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let accepting = std::thread::spawn(move || {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                kept.push(stream);
            }
        });
        Ok(Silent { address, end, accepting: Some(accepting) })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        // Wakes it up.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// A server that was started for a test; dropped, it ends with all its workers.
pub struct Server {
    pub program: Program,
    pub port: u16,
}

impl Server {
    /// Runs `python ARGS` in the directory of the incidents; `{port}` in ARGS is a free port. Comes
    /// back when `GET /health` is answered.
    pub fn start(interpreter: &Interpreter, args: &[&str], variables: &[(&str, &str)]) -> Outcome<Server> {
        let python = venv::of(interpreter)?;
        let port = free_port()?;
        let mut command = Command::new(&python.command[0]);
        command
            .args(args.iter().map(|arg| arg.replace("{port}", &port.to_string())))
            .envs(variables.iter().copied())
            .current_dir(venv::fixtures())
            .process_group(0);
        // SAFETY: two system calls, as a child may make them between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // Ten minutes, and not longer than the thread of the test, whatever happens to that.
                libc::alarm(600);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let what = format!("{} {}", interpreter.label, args.join(" "));
        let server = Server { program: Program::spawn(command, what, None)?, port };
        server.program.until("an answer to GET /health", || {
            if !server.program.is_alive() {
                return Err(server.program.failed("it ended"));
            }
            Ok(server.is_healthy())
        })?;
        Ok(server)
    }

    pub fn is_healthy(&self) -> bool {
        get(self.port, "/health").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Waits until the server lives, but answers nobody, because this thread of it sleeps in a lock.
    pub fn until_hung(&self, tid: i32) -> Outcome {
        let in_futex = || system_call(tid, tid).is_some_and(|call| call.number == libc::SYS_futex);
        self.program.until("the loop to be blocked", || {
            if !self.program.is_alive() {
                return Err(self.program.failed("it ended"));
            }
            // Twice, for it might have been the GIL.
            let first = in_futex();
            std::thread::sleep(Duration::from_millis(50));
            Ok(first && in_futex())
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Workers too: they are in its group, which was made for them.
        let _ = killpg(Pid::from_raw(self.program.pid()), Signal::SIGKILL);
    }
}

pub fn free_port() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}

pub fn get(port: u16, path: &str) -> Outcome<String> {
    let mut client = Client::request(port, "GET", path)?;
    client.rest()
}

/// One request whose answer is read as far as the test wants; dropped, the client goes away.
pub struct Client {
    stream: TcpStream,
}

impl Client {
    pub fn request(port: u16, method: &str, path: &str) -> Outcome<Client> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let send = || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes())?;
            Ok(Client { stream })
        };
        send().map_err(|e: std::io::Error| format!("{method} {path}: {e}"))
    }

    /// Reads until this is among what came.
    pub fn until(&mut self, wanted: &str) -> Outcome<String> {
        let mut came = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&came).contains(wanted) {
            match self.stream.read(&mut buffer) {
                Ok(count @ 1..) => came.extend_from_slice(&buffer[..count]),
                other => {
                    return Err(format!("no {wanted:?} ({other:?}) in {}", String::from_utf8_lossy(&came)));
                }
            }
        }
        Ok(String::from_utf8_lossy(&came).into_owned())
    }

    pub fn rest(&mut self) -> Outcome<String> {
        let mut came = Vec::new();
        self.stream.read_to_end(&mut came).map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&came).into_owned())
    }
}

/// Requests one after the other, from two clients, until dropped: enough to keep a server busy.
pub struct Load {
    end: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
    pub answers: Arc<Mutex<u64>>,
}

impl Load {
    pub fn start(port: u16, paths: &'static [&'static str]) -> Load {
        let end = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(0));
        let client = |_| {
            let (end, answers) = (Arc::clone(&end), Arc::clone(&answers));
            std::thread::spawn(move || {
                for path in paths.iter().cycle() {
                    if end.load(Ordering::SeqCst) {
                        break;
                    }
                    if get(port, path).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                        *answers.lock().unwrap() += 1;
                    }
                }
            })
        };
        Load { clients: (0..2).map(client).collect(), end, answers }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}
