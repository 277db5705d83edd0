//! Commands that hangscope starts: with the limits it was given itself, in a process group of their own, and ended
//! when their time is over.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

/// How long a command has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(2);

/// Before anything raises it (probe.rs does): call it early.
pub fn open_files_limit() -> Option<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).ok()
}

/// Starts it in the foreground, where the terminal's keys reach it, with this limit of open files.
pub fn spawn_in_front(command: &mut Command, limit: Option<(u64, u64)>) -> io::Result<Child> {
    with_limit(command, limit).spawn()
}

/// A file without a name: it is gone with its last descriptor.
pub fn nameless_file() -> io::Result<File> {
    let path = std::env::temp_dir();
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_APPEND;
    match nix::fcntl::open(&path, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(fd) => Ok(fd.into()),
        // Not every file system can; memory always does.
        Err(_) => Ok(memfd_create(c"hangscope", MFdFlags::MFD_CLOEXEC)?.into()),
    }
}

/// The code that a shell would give it.
pub fn code(status: std::process::ExitStatus) -> u8 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8
}

pub fn terminate(child: &Child) {
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
}

/// Waits until it ends or `until` says that enough is enough; then it is killed.
pub fn wait_for(child: &mut Child, until: impl Fn() -> bool) -> io::Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if until() {
            child.kill()?;
            return child.wait();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn with_limit(command: &mut Command, limit: Option<(u64, u64)>) -> &mut Command {
    if let Some((soft, hard)) = limit {
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?));
        }
    }
    command
}

/// Starts it in a process group of its own, with this limit of open files: `select` knows 1,024 only.
pub fn spawn(command: &mut Command, limit: Option<(u64, u64)>) -> io::Result<Child> {
    with_limit(command.process_group(0), limit).spawn()
}

/// Waits until it ends, or `until` says that enough is enough; then its group is ended. `None`: it had to be ended.
pub fn wait(child: &mut Child, until: impl Fn() -> bool) -> io::Result<Option<std::process::ExitStatus>> {
    let group = Pid::from_raw(child.id() as i32);
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(asked.is_none().then_some(status));
        }
        match asked {
            None if until() => {
                let _ = killpg(group, Signal::SIGTERM);
                asked = Some(Instant::now());
            }
            Some(at) if at.elapsed() > GRACE => {
                let _ = killpg(group, Signal::SIGKILL);
                child.wait()?;
                return Ok(None);
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_command_that_does_not_end_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; sleep 600 & wait; sleep 600"]).stdout(Stdio::piped());
        let mut child = spawn(&mut command, open_files_limit()).unwrap();
        let mut out = child.stdout.take().unwrap();
        let began = Instant::now();
        assert_eq!(wait(&mut child, || began.elapsed() > Duration::from_millis(50)).unwrap(), None);
        // Whoever had the pipe open is gone.
        assert_eq!(io::Read::read(&mut out, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_command_has_the_limit_that_it_was_given() {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n"]).stdout(Stdio::piped());
        let (_, hard) = open_files_limit().unwrap();
        let mut child = spawn(&mut command, Some((123, hard))).unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut text).unwrap();
        assert_eq!(wait(&mut child, || false).unwrap().unwrap().code(), Some(0));
        assert_eq!(text.trim(), "123");
    }
}
