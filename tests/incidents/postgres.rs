//! A PostgreSQL of its own for a test: on loopback, in a temporary directory, as an unprivileged user,
//! ended with the test.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{DEADLINE, Outcome, lossy, search_path, tool};
use crate::server::free_port;

/// `nobody`; PostgreSQL refuses to run as root.
const USER: u32 = 65534;

pub struct Postgres {
    server: Child,
    directory: PathBuf,
    pub port: u16,
}

impl Postgres {
    /// Whether it can be had, see `tool`.
    pub fn is_here() -> bool {
        tool("postgres").is_some()
    }

    /// Starts it, and runs this script.
    pub fn start(script: &str) -> Outcome<Postgres> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::SeqCst);
        let directory = std::env::temp_dir().join(format!("hangscope-postgres-{}-{n}", std::process::id()));
        std::fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&directory, Some(USER), Some(USER)).map_err(|e| e.to_string())?;
        }
        let data = directory.join("data");
        let made = unprivileged("initdb", &directory)
            .args(["--no-sync", "--auth=trust", "--username=app", "-D"])
            .arg(&data)
            .output()
            .map_err(|e| format!("initdb (is PostgreSQL installed?): {e}"))?;
        if !made.status.success() {
            return Err(format!("initdb: {}{}", lossy(&made.stdout), lossy(&made.stderr)));
        }
        let port = free_port()?;
        let server = unprivileged("postgres", &directory)
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "log_min_messages=fatal"])
            .args(["-p", &port.to_string(), "-k"])
            .arg(&directory)
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("postgres: {e}"))?;
        let postgres = Postgres { server, directory, port };
        let end = Instant::now() + DEADLINE;
        while let Err(error) = postgres.run("select 1") {
            if Instant::now() > end {
                return Err(format!("postgres does not answer: {error}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        postgres.run(script)?;
        Ok(postgres)
    }

    /// One script; what it printed.
    pub fn run(&self, script: &str) -> Outcome<String> {
        let output = command("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "app"])
            .args(["-p", &self.port.to_string(), "-c", script, "postgres"])
            .output()
            .map_err(|e| format!("psql: {e}"))?;
        if output.status.success() { Ok(lossy(&output.stdout)) } else { Err(lossy(&output.stderr)) }
    }

    /// With a password, which must not be shown anywhere.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://app:{SECRET}@127.0.0.1:{}/postgres", self.port)
    }
}

pub const SECRET: &str = "s3cr3t-of-the-database";

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, clients and all.
        let _ = kill(Pid::from_raw(self.server.id() as i32), Signal::SIGQUIT);
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

fn unprivileged(program: &str, directory: &Path) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = command("setpriv");
        let user = USER.to_string();
        command.args([&format!("--reuid={user}"), &format!("--regid={user}")]);
        // The server goes when the test does, whatever happens to that.
        command.args(["--clear-groups", "--pdeathsig=QUIT", program]);
        command
    } else {
        command(program)
    };
    command.current_dir(directory).env("HOME", directory);
    command
}
