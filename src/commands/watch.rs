//! `hangscope watch`: stays, and tells and keeps what lasts too long.

use std::io::Write;
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{UNREAD, USAGE, complain, complain_of, text_options};
use crate::cli::Watch;
use crate::duration::Duration as Span;
use crate::render::clean;
use crate::target::access::AccessError;
use crate::target::blocked::monotonic;
use crate::target::command;
use crate::target::find::{FindError, Selector};
use crate::watch::engine::{Engine, Event, Settings};
use crate::watch::exec::{Runner, words};
use crate::watch::follow::Follower;
use crate::watch::metrics::{Endpoint, Metrics};
use crate::watch::reports::{Limits, Reports};

/// Our own failure, where the exit code is otherwise the command's.
const OURS: u8 = 125;
/// How often to ask whether the command has ended, at least.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

pub fn run(args: &Watch) -> anyhow::Result<ExitCode> {
    let own = if args.command.is_empty() { None } else { Some(OURS) };
    match watch(args) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => match own {
            Some(code) => {
                complain(&format!("{error:#}"), None);
                Ok(ExitCode::from(code))
            }
            None => Err(error),
        },
    }
}

fn watch(args: &Watch) -> anyhow::Result<u8> {
    let limit = command::open_files_limit();
    if args.targets.is_empty() && args.command.is_empty() {
        complain_of(FindError::NothingAsked, args.shown.show_secrets);
        return Ok(USAGE);
    }
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)?;
    }
    let limits =
        Limits { reports: args.max_reports, bytes: args.max_size, cool_down: args.cool_down.as_secs_f64() };
    let reports = match &args.out {
        None => None,
        Some(dir) => {
            let open = Reports::open(dir, limits);
            Some(open.with_context(|| format!("reports cannot be kept in {}", dir.display()))?)
        }
    };
    let metrics = args.metrics.map(|address| (address, Metrics::default()));
    let endpoint = metrics.as_ref().map(|(address, metrics)| {
        Endpoint::serve(*address, metrics.clone())
            .map_err(|e| anyhow::anyhow!("metrics cannot be served on {address}: {e}"))
    });
    let endpoint = endpoint.transpose()?;
    let runner = match &args.exec {
        None => None,
        Some(text) => {
            let words = words(text).map_err(anyhow::Error::msg)?;
            Some(Runner::start(words, limit, |trouble| complain(&format!("--exec: {trouble}"), None))?)
        }
    };
    let mut child = Started::of(args, limit)?;
    let selector = match &child {
        Some(child) => Selector { pids: vec![child.pid()], subprocesses: true, ..Selector::default() },
        None => args.targets.selector(),
    };
    let settings = Settings {
        stall: args.stall.as_secs_f64(),
        awaiting: args.awaiting.map(|limit| limit.as_secs_f64()),
        look: args.look_options(),
        metrics: metrics.map(|(_, metrics)| metrics),
    };
    let mut engine = Engine::new(settings, Follower::new(selector), reports, runner)?;
    if let Some(endpoint) = &endpoint {
        note(&format!("metrics are served on http://{}/metrics", endpoint.address));
    }
    let mut teller = Teller { began: false, unread: false, stalls: 0, closed: None };
    let mut next = monotonic();
    let code = loop {
        engine.step(monotonic().as_secs_f64(), &mut |event| teller.tell(&event, args));
        if let Some(error) = teller.closed.take() {
            return Err(error.into());
        }
        if let Some(code) = child.as_mut().and_then(Started::ended) {
            break code;
        }
        match signal.load(SeqCst) {
            0 => {}
            number => {
                if let Some(child) = &mut child {
                    child.end(number as i32);
                }
                break 128 + number as u8;
            }
        }
        if args.once && teller.stalls > 0 && engine.is_settled() {
            break 0;
        }
        if child.is_none() && engine.is_at_end() {
            // Those that were there have ended; those that never were are what was asked for in vain.
            break if teller.began && !teller.unread { 0 } else { UNREAD };
        }
        if child.is_none() && !teller.began && !args.wait {
            break UNREAD;
        }
        next = sleep(next, args.interval, &signal);
    };
    engine.finish(&mut |event| teller.tell(&event, args));
    Ok(code)
}

/// Until the next poll is due; those that were missed are missed.
fn sleep(due: Duration, interval: Duration, signal: &AtomicUsize) -> Duration {
    let mut next = due + interval;
    let now = monotonic();
    if next < now {
        next = now;
    }
    loop {
        let now = monotonic();
        if now >= next || signal.load(SeqCst) != 0 {
            return next;
        }
        std::thread::sleep((next - now).min(LONGEST_SLEEP));
    }
}

/// The command that was started to be watched.
struct Started(Child);

impl Started {
    fn of(args: &Watch, limit: Option<(u64, u64)>) -> anyhow::Result<Option<Started>> {
        let Some((program, rest)) = args.command.split_first() else { return Ok(None) };
        let mut command = std::process::Command::new(program);
        command.args(rest);
        let child = command::spawn_in_front(&mut command, limit);
        let child = child.with_context(|| format!("cannot start {}", program.to_string_lossy()))?;
        Ok(Some(Started(child)))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Its exit code, once it has ended, as a shell would give it.
    fn ended(&mut self) -> Option<u8> {
        let status = self.0.try_wait().ok().flatten()?;
        Some(command::code(status))
    }

    /// Passes a signal on and waits for the end: the terminal has sent it SIGINT itself.
    fn end(&mut self, signal: i32) {
        if signal == SIGTERM {
            command::terminate(&self.0);
        }
        let began = monotonic();
        let _ = command::wait_for(&mut self.0, || monotonic() - began > Duration::from_secs(10));
    }
}

/// Says on stdout what stalls, and on stderr everything else.
struct Teller {
    /// Something has been watched, be it that it has ended since.
    began: bool,
    unread: bool,
    stalls: u64,
    /// Nobody reads our output any more.
    closed: Option<std::io::Error>,
}

impl Teller {
    fn tell(&mut self, event: &Event, args: &Watch) {
        match event {
            Event::Watching { pid, command } => {
                self.began = true;
                note(&format!("watching pid {pid} · {}", one_line(&command.join(" "))));
            }
            Event::Gone { pid } => note(&format!("pid {pid} has ended")),
            Event::Unreadable(error) => {
                self.unread = true;
                complain(&error.to_string(), error.remedy().as_deref());
            }
            Event::NotFound(error) => {
                let gone = matches!(error, FindError::Access(AccessError::Gone { .. }));
                if args.wait && !gone {
                    note(&format!("waiting: {error}"));
                } else {
                    complain_of(error.clone(), args.shown.show_secrets);
                }
            }
            Event::Trouble(text) => complain(text, None),
            Event::Stall { stall, at, file, refused } => {
                self.stalls += 1;
                let age = stall.age.map(|age| format!(" · for {}", Span(age))).unwrap_or_default();
                let kept = match (file, refused) {
                    (Some(file), _) => format!(" · {}", file.display()),
                    (None, Some(why)) => format!(" · not kept: {}", why.word()),
                    (None, None) => String::new(),
                };
                self.line(&format!("{at} {} · pid {}{age} · {}{kept}", stall.rule, stall.pid, stall.summary));
            }
            Event::Over { pid, rule, lasted, moved } => {
                let moved = match moved {
                    Some(true) => " · it moved meanwhile",
                    Some(false) => " · it stood at one place",
                    None => "",
                };
                self.line(&format!(
                    "{} {rule} · pid {pid} · over after {}{moved}",
                    crate::target::host::now(),
                    Span(*lasted)
                ));
            }
        }
    }

    fn line(&mut self, text: &str) {
        let mut out = anstream::stdout().lock();
        let written = writeln!(out, "{}", one_line(text)).and_then(|()| out.flush());
        self.closed = self.closed.take().or(written.err());
    }
}

/// One line that a terminal shows as it is, whatever the target has put into it.
fn one_line(text: &str) -> String {
    match text_options().unicode {
        true => clean::clean(text, true).into_owned(),
        false => clean::clean(&text.replace(" · ", " - "), false).into_owned(),
    }
}

/// A note on stderr.
fn note(text: &str) {
    anstream::eprintln!("hangscope: {}", one_line(text));
}
