//! `--exec`: runs a command for each stall, with the report's path as its last argument.
//!
//! No shell sees any of it. One command runs at a time, each has a time limit, a few may wait in line, and all are
//! waited for.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::target::command;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the last ones may take once watching ends.
const LAST: Duration = Duration::from_secs(5);
/// Commands that wait for their turn.
const WAITING: usize = 64;

/// What a command is told.
#[derive(Clone, Debug)]
pub struct Call {
    pub report: PathBuf,
    pub rule: String,
    pub pid: i32,
}

pub struct Runner {
    calls: Option<SyncSender<Call>>,
    thread: Option<JoinHandle<()>>,
    ending: Arc<AtomicBool>,
}

/// The words of a command as a shell would part them, and nothing else that a shell does.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    match shlex::split(text) {
        Some(words) if words.first().is_some_and(|first| !first.is_empty()) => Ok(words),
        Some(_) => Err("the command is empty".into()),
        None => Err("a quote is not closed".into()),
    }
}

impl Runner {
    /// `words`: program and arguments; `limit`: of open files; `say` gets what went wrong.
    pub fn start(
        words: Vec<String>,
        limit: Option<(u64, u64)>,
        say: impl Fn(String) + Send + 'static,
    ) -> std::io::Result<Runner> {
        let (calls, queue) = sync_channel(WAITING);
        let ending = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ending);
        let work = move || work(&words, limit, &queue, &ended, &say);
        let thread = std::thread::Builder::new().name("exec".into()).spawn(work)?;
        Ok(Runner { calls: Some(calls), thread: Some(thread), ending })
    }

    /// `false`: too many wait already.
    pub fn call(&self, call: Call) -> bool {
        let sent = self.calls.as_ref().map(|calls| calls.try_send(call));
        !matches!(sent, Some(Err(TrySendError::Full(_))))
    }
}

impl Drop for Runner {
    /// Those in line still run, but not for long.
    fn drop(&mut self) {
        self.ending.store(true, SeqCst);
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(
    words: &[String],
    limit: Option<(u64, u64)>,
    queue: &Receiver<Call>,
    ending: &AtomicBool,
    say: &dyn Fn(String),
) {
    let mut end: Option<Instant> = None;
    for call in queue {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&call.report).stdin(Stdio::null());
        // Results of ours go to stdout; what the command says is none.
        command.stdout(std::io::stderr());
        command.env("HANGSCOPE_REPORT", &call.report).env("HANGSCOPE_RULE", &call.rule);
        command.env("HANGSCOPE_PID", call.pid.to_string());
        let mut child = match command::spawn(&mut command, limit) {
            Ok(child) => child,
            Err(error) => {
                say(format!("cannot run {}: {error}", words[0]));
                continue;
            }
        };
        let began = Instant::now();
        let over = std::cell::Cell::new(end);
        let enough = || {
            if over.get().is_none() && ending.load(SeqCst) {
                over.set(Some(Instant::now() + LAST));
            }
            began.elapsed() > LIMIT || over.get().is_some_and(|over| Instant::now() > over)
        };
        match command::wait(&mut child, enough) {
            Ok(Some(status)) if !status.success() => say(format!("{}: {status}", words[0])),
            Ok(Some(_)) => {}
            Ok(None) => say(format!("{} took too long and was ended", words[0])),
            Err(error) => say(format!("{}: {error}", words[0])),
        }
        end = over.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command() {
        assert_eq!(words("notify --to 'a b' $HOME;x").unwrap(), ["notify", "--to", "a b", "$HOME;x"]);
        assert!(words("  ").is_err() && words("a 'b").is_err() && words("''").is_err());
    }

    #[test]
    fn a_command_gets_the_path_and_no_shell_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let said = Arc::new(std::sync::Mutex::new(Vec::new()));
        let sink = Arc::clone(&said);
        let list = words("cp --").unwrap();
        let hostile = dir.path().join("a $(touch x); 'b");
        std::fs::write(&hostile, "report").unwrap();
        // `cp -- REPORT` alone fails: its complaint tells that it ran and how.
        let runner = Runner::start(list, None, move |text| sink.lock().unwrap().push(text)).unwrap();
        assert!(runner.call(Call { report: hostile, rule: "loop-sleep".into(), pid: 7 }));
        drop(runner);
        let said = said.lock().unwrap().join("\n");
        assert!(said.starts_with("cp: exit status: 1"), "{said}");
        assert!(!dir.path().join("x").exists());
    }
}
