//! One file per command, one `run(args)` each; the only place that prints.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anstream::adapter::StripBytes;
use anstream::{AutoStream, ColorChoice};

use crate::render::report::Report;
use crate::render::text::TextOptions;
use crate::render::{clean, json, style};
use crate::target::find::FindError;

pub mod check;
pub mod completions;
pub mod demo;
pub mod dump;
pub mod man;
pub mod output;
pub mod ps;
pub mod record;
pub mod schema;
pub mod tasks;
pub mod top;
pub mod watch;

/// `check` found something critical.
pub const CRITICAL: u8 = 1;
/// Some target could not be read as asked.
pub const UNREAD: u8 = 3;
/// Wrong usage.
pub const USAGE: u8 = 2;

/// Says on stderr what failed and what to do, for a search that found nothing.
pub fn nothing_found(error: FindError, show_secrets: bool) -> ExitCode {
    let usage = matches!(error, FindError::NothingAsked);
    complain_of(error, show_secrets);
    ExitCode::from(if usage { USAGE } else { UNREAD })
}

/// The same for a part of a search that found something.
pub fn complain_of(error: FindError, show_secrets: bool) {
    let error = if show_secrets { error } else { error.map_commands(crate::mask::command) };
    complain(&error.to_string(), error.remedy().as_deref());
}

/// One line for what failed, one for the remedy.
pub fn complain(what: &str, remedy: Option<&str>) {
    let unicode = text_options().unicode;
    let lines = |text: &str| {
        let lines: Vec<_> = text.lines().map(|l| clean::clean(l, unicode).into_owned()).collect();
        lines.join("\n")
    };
    anstream::eprintln!("hangscope: {}", lines(what));
    if let Some(remedy) = remedy {
        anstream::eprintln!("  do: {}", lines(remedy));
    }
}

/// Text to stdout, in colour if that is a terminal; not through the standard library's buffer, which makes a
/// system call of every line.
pub fn print_text(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let plain = AutoStream::choice(&io::stdout()) == ColorChoice::Never;
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut out = Colourless { out: BufWriter::new(stdout), strip: plain.then(StripBytes::new) };
    write(&mut out)?;
    out.flush()
}

/// Leaves out what colours, where asked to.
struct Colourless<W: Write> {
    out: W,
    strip: Option<StripBytes>,
}

impl<W: Write> Write for Colourless<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.strip {
            Some(strip) => strip.strip_next(bytes).try_for_each(|part| self.out.write_all(part))?,
            None => self.out.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A report to stdout, as CONTRACT.md has it.
pub fn print_json(report: &Report) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    json::write(&mut out, report)?;
    out.flush()
}

/// What the terminal behind stdout can show.
pub fn text_options() -> TextOptions {
    let width = terminal_size::terminal_size_of(std::io::stdout()).map(|(w, _)| w.0 as usize);
    let unicode = style::speaks_utf8(|name| std::env::var(name).ok());
    TextOptions { width, unicode, ..TextOptions::default() }
}
