//! `hangscope top`: a live view of one or more processes.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::layout::Rect;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};

use super::{UNREAD, complain, nothing_found, text_options};
use crate::cli::Top;
use crate::target::access::AccessError;
use crate::target::command;
use crate::target::find::{Found, Selector};
use crate::target::host;
use crate::top::app::{Action, App, View};
use crate::top::counts::Filter;
use crate::top::draw::{self, Look};
use crate::top::gather::{Gathered, Gatherers, Settings, targets};
use crate::top::terminal::{self, Screen};

/// How soon keys and signals are answered, at the latest.
const TICK: Duration = Duration::from_millis(100);
/// Whether there is another key; crossterm does not even look if it may take no time at all.
const LOOK: Duration = Duration::from_millis(1);
/// Of what a started command has said, this much is shown when it is over.
const TAIL: u64 = 64 * 1024;
/// Our own failure, where the exit code is otherwise the command's.
const OURS: u8 = 125;
/// How long `--once` waits for a first sample.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(args: &Top) -> anyhow::Result<ExitCode> {
    match top(args) {
        Err(error) if !args.command.is_empty() => {
            complain(&format!("{error:#}"), None);
            Ok(ExitCode::from(OURS))
        }
        outcome => outcome,
    }
}

fn top(args: &Top) -> anyhow::Result<ExitCode> {
    if !args.once && !std::io::stdout().is_terminal() {
        bail!("stdout is no terminal\n  do: print one screen with --once, or record a profile");
    }
    let limit = command::open_files_limit();
    let mut started = Started::of(args, limit)?;
    let selector = match &started {
        Some(started) => Selector { pids: vec![started.pid()], subprocesses: true, ..Selector::default() },
        None => args.targets.selector(),
    };
    let found = match (&started, targets(&selector)) {
        (_, Ok(found)) => found,
        // It is found as soon as it is a Python.
        (Some(_), Err(_)) => Found::default(),
        (None, Err(error)) => return Ok(nothing_found(error, args.shown.show_secrets)),
    };
    let settings = Settings {
        selector,
        rate: args.rate,
        filter: Filter { idle: args.idle, gil: args.gil },
        look: args.look_options(),
        text: text_options(),
    };
    let gatherers = Gatherers::start(settings, found.pids)?;
    let look = Look { unicode: text_options().unicode, colors: colors() };
    let code = match args.once {
        true => once(args, &gatherers, look, started.is_some())?,
        false => live(args, &gatherers, look, &mut started)?,
    };
    let code = match code {
        Shown::Code(code) => code,
        Shown::Refused(error) => {
            complain(&error.to_string(), error.remedy().as_deref());
            return Ok(ExitCode::from(UNREAD));
        }
    };
    let gathered = Arc::clone(&gatherers.gathered);
    drop(gatherers);
    if started.is_none() && code == 0 && gathered.is_at_end() {
        anstream::eprintln!("hangscope: what was looked at has ended");
    }
    match &mut started {
        Some(started) => Ok(ExitCode::from(started.end(code)?)),
        None => Ok(ExitCode::from(code)),
    }
}

fn colors() -> bool {
    anstream::stdout().current_choice() != anstream::ColorChoice::Never
}

/// How it went.
enum Shown {
    Code(u8),
    /// None of the targets can be read.
    Refused(AccessError),
}

/// One screen as plain text.
fn once(args: &Top, gatherers: &Gatherers, look: Look, is_started: bool) -> anyhow::Result<Shown> {
    let gathered = &gatherers.gathered;
    let began = Instant::now();
    let width = text_options().width.map_or(100, |w| w.clamp(40, 500)) as u16;
    gathered.set_width(width);
    // The stretch that is shown begins with the first sample.
    loop {
        let screen = gathered.screen();
        if screen.samples > 0 || gathered.is_at_end() {
            break;
        }
        // What was started may become a Python yet.
        if let Some(error) = gathered.refused().filter(|_| !is_started) {
            return Ok(Shown::Refused(error));
        }
        if began.elapsed() > PATIENCE || gatherers.have_failed() {
            bail!("{}", screen.problems.first().map_or("no sample could be taken", |p| p.as_str()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(args.delay());
    let mut app = App::default();
    app.update(gathered.screen());
    let lines = app.screen.findings.iter().map(|f| f.text.lines().count()).sum::<usize>();
    let height = (app.screen.functions.len() + 5).clamp(12, 60) as u16;
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw::render(&mut app, Look { colors: false, ..look }, area, &mut buffer);
    let mut out = anstream::stdout().lock();
    for y in 0..height - 1 {
        let row: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        writeln!(out, "{}", row.trim_end())?;
    }
    if lines > 0 {
        for finding in &app.screen.findings {
            write!(out, "{}", finding.text)?;
        }
    }
    out.flush()?;
    Ok(Shown::Code(0))
}

/// The live view; the exit code. A terminal that vanishes ends it, whether or not a signal says so.
fn live(
    args: &Top,
    gatherers: &Gatherers,
    look: Look,
    started: &mut Option<Started>,
) -> anyhow::Result<Shown> {
    match show(args, gatherers, look, started) {
        Err(_) if terminal::is_gone() => Ok(Shown::Code(128 + SIGHUP as u8)),
        outcome => outcome,
    }
}

fn show(
    args: &Top,
    gatherers: &Gatherers,
    look: Look,
    started: &mut Option<Started>,
) -> anyhow::Result<Shown> {
    let gathered = &gatherers.gathered;
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)?;
    }
    // Apart, for they may come together with one of those.
    let [stop, go_on] = [SIGTSTP, SIGCONT].map(|number| {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(number, Arc::clone(&flag)).map(|_| flag)
    });
    let (stop, go_on) = (stop?, go_on?);
    let mut screen = Screen::enter().context("the terminal cannot be taken over")?;
    let mut app = App::default();
    let mut refresh = Instant::now();
    let mut first = true;
    loop {
        match signal.swap(0, SeqCst) as i32 {
            0 => {}
            number => return Ok(Shown::Code(128 + number as u8)),
        }
        if terminal::is_gone() {
            return Ok(Shown::Code(128 + SIGHUP as u8));
        }
        if stop.swap(false, SeqCst) {
            screen.suspend()?;
        }
        // After a SIGSTOP, too, of which nobody is told.
        let mut redraw = go_on.swap(false, SeqCst);
        if redraw {
            screen.resume()?;
        }
        if let Some(error) = gathered.refused().filter(|_| started.is_none()) {
            return Ok(Shown::Refused(error));
        }
        if gatherers.have_failed() {
            bail!("a thread of ours has failed");
        }
        let ended = started.as_mut().is_some_and(Started::has_ended) || gathered.is_at_end();
        if ended {
            return Ok(Shown::Code(0));
        }
        if Instant::now() >= refresh {
            app.update(gathered.screen());
            // The first screens come fast, so that there is something to see.
            first &= app.screen.samples < u64::from(args.rate) / 2;
            refresh = Instant::now() + if first { TICK } else { args.delay() };
            redraw = true;
        }
        match answer(&mut app, gathered, &mut screen, refresh)? {
            Answer::Nothing => {}
            Answer::Redraw => redraw = true,
            Answer::Quit(code) => return Ok(Shown::Code(code)),
        }
        if redraw {
            gathered.set_width(screen.terminal.size()?.width);
            screen.terminal.draw(|frame| draw::draw(frame, &mut app, look))?;
        }
    }
}

enum Answer {
    Nothing,
    Redraw,
    Quit(u8),
}

/// Waits for keys until the next refresh is due, but not long, and does what they say.
fn answer(
    app: &mut App,
    gathered: &Gathered,
    screen: &mut Screen,
    refresh: Instant,
) -> anyhow::Result<Answer> {
    let mut wait = refresh.saturating_duration_since(Instant::now()).clamp(LOOK, TICK);
    let mut answer = Answer::Nothing;
    while event::poll(wait)? {
        wait = LOOK;
        let key = match event::read()? {
            Event::Key(key) if key.kind != KeyEventKind::Release => key,
            Event::Resize(..) => {
                answer = Answer::Redraw;
                continue;
            }
            _ => continue,
        };
        match app.key(key) {
            Action::Nothing => continue,
            Action::Redraw => {}
            Action::Quit => return Ok(Answer::Quit(0)),
            Action::Interrupt => return Ok(Answer::Quit(128 + SIGINT as u8)),
            Action::Suspend => screen.suspend()?,
            Action::Reset => {
                gathered.reset();
                app.update(gathered.screen());
                app.note = Some("counted anew from here".into());
            }
            Action::Save => app.note = Some(save(app)),
            Action::Stack { name, file, line } => {
                app.stack = gathered.stack(&name, &file, line);
                app.show(View::Stack);
            }
            Action::Panic => panic!("as was asked for"),
        }
        answer = Answer::Redraw;
    }
    Ok(answer)
}

/// Writes the data of the screen to a new file; a word about it.
fn save(app: &App) -> String {
    let time: String = host::now().chars().filter(|c| c.is_ascii_digit() || *c == 'T').take(15).collect();
    let write = || -> std::io::Result<PathBuf> {
        for n in 1..100 {
            let end = if n == 1 { String::new() } else { format!("-{n}") };
            let file = PathBuf::from(format!("hangscope-top-{time}{end}.json"));
            match File::create_new(&file) {
                Ok(mut out) => {
                    serde_json::to_writer_pretty(&mut out, &app.screen)?;
                    out.write_all(b"\n")?;
                    return Ok(file);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(std::io::ErrorKind::AlreadyExists.into())
    };
    match write() {
        Ok(file) => format!("saved to {}", file.display()),
        Err(error) => format!("cannot be saved here: {error}"),
    }
}

/// The command that was started to be looked at. What it says would spoil the screen: it is kept for the end.
struct Started {
    child: Child,
    said: File,
    ended: Option<u8>,
}

impl Started {
    fn of(args: &Top, limit: Option<(u64, u64)>) -> anyhow::Result<Option<Started>> {
        let Some((program, rest)) = args.command.split_first() else { return Ok(None) };
        let said = command::nameless_file().context("what the command says cannot be kept")?;
        let mut command = std::process::Command::new(program);
        command.args(rest).stdin(Stdio::null());
        if !args.once {
            command.stdout(said.try_clone()?).stderr(said.try_clone()?);
        }
        let child = command::spawn_in_front(&mut command, limit);
        let child = child.with_context(|| format!("cannot start {}", program.to_string_lossy()))?;
        Ok(Some(Started { child, said, ended: None }))
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten().map(command::code);
        }
        self.ended.is_some()
    }

    /// Its own code if it has ended by itself; else it is ended, and `code` is ours.
    fn end(&mut self, code: u8) -> anyhow::Result<u8> {
        // All that is gone may have been read as such a moment before it could be waited for.
        let began = Instant::now();
        while code == 0 && !self.has_ended() && began.elapsed() < TICK {
            std::thread::sleep(Duration::from_millis(5));
        }
        let own = self.has_ended();
        if !own {
            command::terminate(&self.child);
            command::wait_for(&mut self.child, || began.elapsed() > Duration::from_secs(5))?;
        }
        let length = self.said.metadata()?.len();
        self.said.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut tail = Vec::new();
        (&self.said).take(TAIL).read_to_end(&mut tail)?;
        std::io::stdout().write_all(&tail)?;
        Ok(if own { self.ended.unwrap_or(code) } else { code })
    }
}
