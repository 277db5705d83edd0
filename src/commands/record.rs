//! `hangscope record`: samples into a file.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;

use super::output::{Output, Written};
use super::{UNREAD, USAGE, complain, complain_of, nothing_found};
use crate::cli::{ProfileFormat, Rate, Record};
use crate::profile::recorder::{End, Recorder, Settings};
use crate::profile::recording::Recording;
use crate::profile::{Lines, SamplerOptions};
use crate::render::profile::ProfileOptions;
use crate::render::{chrome, flamegraph, folded, gecko, html, pprof, record_summary, speedscope};
use crate::target::access::AccessError;
use crate::target::{command, find};

/// With a command of the user's, what is wrong with us is told apart from what is wrong with it.
const OURS: u8 = 125;
/// Nanoseconds between samples below which a seat would take too much of the target's time.
const SEATED: u64 = 200_000;
const PROGRESS_EVERY: u64 = 200_000_000;

pub fn run(args: &Record) -> anyhow::Result<ExitCode> {
    let failed = if args.command.is_empty() { UNREAD } else { OURS };
    if args.targets.is_empty() && args.command.is_empty() {
        complain(
            "what is to be recorded?",
            Some("hangscope record --pid PID, or hangscope record -- python app.py"),
        );
        return Ok(ExitCode::from(USAGE));
    }
    let limit = command::open_files_limit();
    let found = match args.command.is_empty() {
        true => match find::find(&args.targets.selector()) {
            Ok(found) => Some(found),
            Err(error) => return Ok(nothing_found(error, args.show_secrets)),
        },
        false => None,
    };
    let mut unread = false;
    let mut pids = Vec::new();
    if let Some(found) = found {
        unread = !found.errors.is_empty();
        pids = found.pids;
        for error in found.errors {
            complain_of(error, args.show_secrets);
        }
    }

    let format = format(args);
    let path = args.output.clone().unwrap_or_else(|| default_name(format));
    if path == Path::new("-") && !format.is_text() && std::io::stdout().is_terminal() {
        complain("this format is no text: it is not written to a terminal", Some("give a file: -o FILE"));
        return Ok(ExitCode::from(USAGE));
    }
    let output = match Output::open(&path) {
        Ok(output) => output,
        Err(error) => {
            complain(
                &format!("{} cannot be written: {error}", path.display()),
                Some("give another file: -o FILE"),
            );
            return Ok(ExitCode::from(failed));
        }
    };

    // Before anything else is opened: the child gets none of it.
    let mut child = None;
    if !args.command.is_empty() {
        match command::spawn_in_front(Command::new(&args.command[0]).args(&args.command[1..]), limit) {
            Ok(started) => {
                pids.push(started.id() as i32);
                child = Some(started);
            }
            Err(error) => {
                let name = args.command[0].to_string_lossy();
                complain(&format!("{name} cannot be started: {error}"), None);
                // As shells have it.
                let missing = error.kind() == std::io::ErrorKind::NotFound;
                return Ok(ExitCode::from(if missing { 127 } else { 126 }));
            }
        }
    }
    let signals = Signals::watch(child.as_ref().map(Child::id))?;

    let mut recorder = Recorder::new(settings(args, format), &pids);
    let mut starting = Vec::new();
    for &pid in &pids {
        if child.is_some() {
            recorder.expect(pid);
            continue;
        }
        match recorder.attach(pid) {
            Ok(()) => {}
            Err(error @ AccessError::Starting { .. }) => {
                recorder.expect(pid);
                starting.push(error);
            }
            Err(error) => {
                unread = true;
                complain(&error.to_string(), error.remedy().as_deref());
            }
        }
    }
    if recorder.processes() == 0 && starting.is_empty() && child.is_none() {
        return Ok(ExitCode::from(UNREAD));
    }

    let mut progress = Progress::new(args);
    let mut ended = None;
    let end = recorder.run(|recorder| {
        progress.show(recorder);
        if let Some(child) = &mut child
            && ended.is_none()
        {
            ended = child.try_wait().ok().flatten();
        }
        signals.first() == 0 && (ended.is_none() || (args.targets.subprocesses && recorder.processes() > 0))
    });
    progress.clear();
    for error in &recorder.refused {
        unread = true;
        complain(&error.to_string(), error.remedy().as_deref());
    }
    for error in &recorder.unpaused {
        complain(error, None);
    }
    if recorder.recording.processes.is_empty() {
        if child.is_none() {
            for error in starting {
                complain(&error.to_string(), error.remedy().as_deref());
            }
            return Ok(ExitCode::from(UNREAD));
        }
        complain("the command ended before a Python in it could be read", None);
    }

    let recording = &mut recorder.recording;
    let written = write(recording, output, format, args);
    let code = match written {
        Ok(written) => {
            let asked = match args.rate {
                Rate::PerSecond(rate) => Some(rate),
                Rate::Max => None,
            };
            let mut summary = record_summary::text(recording, asked, end == End::Targets);
            if recording.sums.is_empty() && !recording.processes.is_empty() {
                summary.push_str(uncounted(recording, args));
            }
            match &written {
                Written::To(file) => summary.push_str(&format!("written to {}\n", file.display())),
                Written::Stdout => {}
                Written::Elsewhere(file, error) => {
                    complain(&format!("{} could not be written: {error}", path.display()), None);
                    summary.push_str(&format!("written to {} instead\n", file.display()));
                }
            }
            anstream::eprint!("{summary}");
            match written {
                Written::Elsewhere(..) => failed,
                _ if unread => failed,
                _ => 0,
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            complain(&format!("{} could not be written: {error}", path.display()), None);
            failed
        }
    };
    Ok(match child {
        None => match signals.first() {
            signal if code == 0 && signal != 0 => ExitCode::from(128 + signal as u8),
            _ => ExitCode::from(code),
        },
        Some(mut child) => {
            let status = match ended {
                Some(status) => status,
                None => child.wait().context("cannot wait for the command")?,
            };
            ExitCode::from(command::code(status))
        }
    })
}

/// Why there is nothing in the file.
fn uncounted(recording: &Recording, args: &Record) -> &'static str {
    match args {
        _ if recording.counts.samples == 0 => "it was over before the first sample was due\n",
        _ if !args.include.is_empty() || !args.exclude.is_empty() => {
            "no thread was counted: none that ran has a name that --include and --exclude let pass\n"
        }
        _ if args.gil => "no thread was counted: none was seen to hold the GIL\n",
        _ if !args.idle => "no thread was counted: none was seen to run; -i counts idle ones, too\n",
        _ => "no thread was counted: none was seen to have a stack\n",
    }
}

fn settings(args: &Record, format: ProfileFormat) -> Settings {
    let lines = match (args.nolineno, args.function) {
        (true, _) => Lines::None,
        (_, true) => Lines::First,
        _ => Lines::Current,
    };
    let period = match args.rate {
        Rate::PerSecond(rate) => 1_000_000_000 / u64::from(rate),
        Rate::Max => 0,
    };
    Settings {
        period,
        duration: args.duration.map(|d| d.as_nanos() as u64),
        idle: args.idle,
        gil_only: args.gil,
        gil_wait: args.gil_wait,
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        subprocesses: args.targets.subprocesses,
        ordered: format.is_ordered(),
        show_secrets: args.show_secrets,
        sampler: SamplerOptions {
            idle: args.idle,
            gil_wait: args.gil_wait,
            tasks: args.tasks,
            pause: args.pause,
            apart: period < SEATED && crate::target::host::cpus() > 1,
            lines,
            apps: Vec::new(),
        },
    }
}

fn format(args: &Record) -> ProfileFormat {
    let by_name = || args.output.as_deref().and_then(ProfileFormat::of);
    let stdout = args.output.as_deref() == Some(Path::new("-"));
    let default = if stdout { ProfileFormat::Folded } else { ProfileFormat::Flamegraph };
    args.format.or_else(by_name).unwrap_or(default)
}

fn default_name(format: ProfileFormat) -> PathBuf {
    let now = crate::target::host::file_stamp();
    format!("hangscope-{now}.{}", format.extension()).into()
}

fn write(
    recording: &mut Recording,
    output: Output,
    format: ProfileFormat,
    args: &Record,
) -> std::io::Result<Written> {
    let what = match &recording.processes[..] {
        [] => String::new(),
        [one] => one.command.clone(),
        [one, ..] => format!("{} and {} more", one.command, recording.processes.len() - 1),
    };
    let options = ProfileOptions {
        title: crate::render::clean::clean(&what, true).into_owned(),
        threads: args.threads,
        full_filenames: args.full_filenames,
        reverse: args.reverse,
    };
    output.write(|out: &mut dyn Write| match format {
        ProfileFormat::Flamegraph => flamegraph::write(out, recording, &options),
        ProfileFormat::Folded => folded::write(out, recording, &options),
        ProfileFormat::Speedscope => speedscope::write(out, recording, &options),
        ProfileFormat::Chrome => chrome::write(out, recording, &options),
        ProfileFormat::Firefox => gecko::write(out, recording, &options),
        ProfileFormat::Pprof => pprof::write(out, recording, &options),
        ProfileFormat::Html => html::write(out, recording, &options),
    })
}

/// Ctrl-C, SIGTERM and SIGHUP: the first one ends the recording, which is then written; the next one ends us.
struct Signals {
    first: Arc<AtomicI32>,
}

impl Signals {
    fn watch(child: Option<u32>) -> anyhow::Result<Signals> {
        let first = Arc::new(AtomicI32::new(0));
        let mut signals =
            SignalsInfo::<WithOrigin>::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
        let seen = Arc::clone(&first);
        std::thread::spawn(move || {
            for origin in signals.forever() {
                // What the terminal sends goes to the command, too; what somebody sends to us does not.
                let by_terminal = origin.process.is_none();
                if let (Some(pid), false) = (child, by_terminal)
                    && let Ok(signal) = Signal::try_from(origin.signal)
                {
                    let _ = kill(Pid::from_raw(pid as i32), signal);
                }
                if seen.swap(origin.signal, Ordering::SeqCst) != 0 && child.is_none() {
                    std::process::exit(128 + origin.signal);
                }
            }
        });
        Ok(Signals { first })
    }

    /// The number of the signal that came, or 0.
    fn first(&self) -> i32 {
        self.first.load(Ordering::SeqCst)
    }
}

/// One line on a terminal, nothing elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    next: u64,
}

impl Progress {
    fn new(args: &Record) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let (bar, template) = match args.duration {
                Some(d) => (
                    ProgressBar::with_draw_target(Some(d.as_millis() as u64), target),
                    "recording {bar:24} {msg}",
                ),
                None => (ProgressBar::with_draw_target(None, target), "recording {spinner} {msg}"),
            };
            bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, next: 0 }
    }

    fn show(&mut self, recorder: &Recorder) {
        let Some(bar) = &self.bar else { return };
        let elapsed = recorder.elapsed();
        if elapsed < self.next {
            return;
        }
        self.next = elapsed + PROGRESS_EVERY;
        let seconds = elapsed as f64 / 1e9;
        let (samples, torn) = recorder.progress();
        let rate = recorder.recording.counts.ticks as f64 / seconds.max(1e-3);
        let left = match bar.length() {
            Some(total) => {
                bar.set_position((elapsed / 1_000_000).min(total));
                format!("{:.0} s left", (total as f64 / 1e3 - seconds).max(0.0))
            }
            None => {
                bar.tick();
                format!("{seconds:.0} s, Ctrl-C ends it")
            }
        };
        let processes = match recorder.processes() {
            0 => ", waits for Python".to_owned(),
            1 => String::new(),
            n => format!(", {n} processes"),
        };
        bar.set_message(format!("{left}, {samples} samples, {rate:.0}/s, {torn} torn{processes}"));
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
