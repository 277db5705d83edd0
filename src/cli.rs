//! What users type: clap's definitions, nothing else. Commands get what was parsed, validated.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};

mod record;
mod top;
mod watch;

pub use record::{ProfileFormat, Rate, Record};
pub use top::Top;
pub use watch::Watch;

use crate::look;
use crate::target::find::Selector;

#[derive(Debug, Parser)]
#[command(
    name = "hangscope",
    version,
    about = "Looks into a live Python process from outside, without stopping it, and says why it hangs",
    after_help = "Exit codes: 0 done · 1 `check` found something critical · 2 wrong usage · 3 a target could not be read as asked (what could be read is printed) · 130/143 ended by a signal",
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// When to use colours; NO_COLOR works too
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,

    /// Say what is done (twice: in detail)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the Python processes of this machine
    Ps(Ps),
    /// Show the stacks of all threads, and what is wrong above them
    Dump(Dump),
    /// Show asyncio tasks and what each awaits, as a tree
    Tasks(Tasks),
    /// Sample where the time goes into a file: flame graph, speedscope, pprof, …
    Record(Record),
    /// Say what is wrong, and nothing else: for scripts, probes and CI
    Check(Check),
    /// See live what runs, and what is wrong
    Top(Top),
    /// Stay, and keep a report of every event loop, request and lock wait that lasts too long
    Watch(Watch),
    /// Start a small stuck asyncio server with the python3 on PATH, and look into it
    Demo(Demo),
    /// Print the completions for a shell
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Print the JSON schema of the report
    Schema,
}

#[derive(Clone, Debug, Args)]
pub struct Ps {
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
    /// Do not mask what looks like a secret
    #[arg(long)]
    pub show_secrets: bool,
}

/// What of the target counts as the application, and what is masked.
#[derive(Clone, Debug, Default, Args)]
pub struct Shown {
    /// Count this installed package as the application's own code; may be given several times
    #[arg(long, value_name = "NAME")]
    pub app: Vec<String>,
    /// Do not mask what looks like a secret (password, token, cookie, …)
    #[arg(long)]
    pub show_secrets: bool,
}

impl Shown {
    pub fn look_options(&self) -> look::Options {
        look::Options { show_secrets: self.show_secrets, apps: self.app.clone(), ..look::Options::default() }
    }
}

/// Which processes; the forms add up.
#[derive(Clone, Debug, Args)]
#[group(id = "targets", multiple = true)]
pub struct Targets {
    /// A process id; may be given several times
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pids: Vec<i32>,
    /// The same, as py-spy has it
    #[arg(short = 'p', long = "pid", value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Vec<i32>,
    /// The processes that listen on this TCP port, workers of a pre-forking server included
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Python processes whose command line contains TEXT
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// And all their descendants that run Python
    #[arg(short, long)]
    pub subprocesses: bool,
}

impl Targets {
    pub fn selector(&self) -> Selector {
        Selector {
            pids: self.pids.iter().chain(&self.pid).copied().collect(),
            port: self.port,
            name: self.name.clone(),
            subprocesses: self.subprocesses,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pids.is_empty() && self.pid.is_empty() && self.port.is_none() && self.name.is_none()
    }
}

#[derive(Clone, Debug, Args)]
pub struct Dump {
    #[command(flatten)]
    pub targets: Targets,
    /// Show the report again that `dump --save FILE` kept
    #[arg(long, value_name = "FILE", conflicts_with_all = ["targets", "save", "pause"])]
    pub capture: Option<PathBuf>,
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
    /// Show arguments and locals; twice: longer, with the attributes of objects
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub locals: u8,
    /// Leave out what is found to be wrong
    #[arg(long)]
    pub no_findings: bool,
    /// Keep what was read in FILE, for --capture
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Stop a running thread while it is read. Blocked threads are never stopped; but a thread that is
    /// about to block in a large write or send may see it cut short. Without this nothing is stopped,
    /// and stacks are exact all the same
    #[arg(long, conflicts_with = "nonblocking")]
    pub pause: bool,
    /// The default; accepted as py-spy's flag
    #[arg(long)]
    pub nonblocking: bool,
    #[command(flatten)]
    pub shown: Shown,
    /// Show no line numbers
    #[arg(long)]
    pub nolineno: bool,
    /// Show paths whole
    #[arg(long)]
    pub full_filenames: bool,
    /// Show every frame of deep recursion, and every thread of those with the same stack
    #[arg(long)]
    pub full_stacks: bool,
}

impl Dump {
    pub fn look_options(&self) -> look::Options {
        look::Options {
            locals: self.locals,
            pause: self.pause,
            no_findings: self.no_findings,
            save: self.save.is_some(),
            ..self.shown.look_options()
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct Tasks {
    #[command(flatten)]
    pub targets: Targets,
    /// Show the tasks of what `dump --save FILE` kept
    #[arg(long, value_name = "FILE", conflicts_with = "targets")]
    pub capture: Option<PathBuf>,
    /// As JSON: the whole report
    #[arg(short, long)]
    pub json: bool,
    /// Show every task of those that stand alike
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub shown: Shown,
    /// Show paths whole
    #[arg(long)]
    pub full_filenames: bool,
}

impl Tasks {
    pub fn look_options(&self) -> look::Options {
        self.shown.look_options()
    }
}

/// `500ms`, `1s`, `1.5`, `2m`, `1h`: without a unit it is of `default`; between these many milliseconds.
fn duration(
    default: &'static str,
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = Some(&text[digits.len()..]).filter(|unit| !unit.is_empty());
        let unit = match unit.unwrap_or(default) {
            "ms" => 1.0,
            "s" => 1e3,
            "m" | "min" => 60e3,
            "h" => 3600e3,
            other => return Err(format!("{other:?} is no unit of time: ms, s, m or h")),
        };
        let number: f64 =
            digits.parse().map_err(|_| "it is a number with a unit, such as 500ms, 1s or 2m")?;
        let millis = number * unit;
        if !(least as f64..=most as f64).contains(&millis) {
            return Err(format!("it is between {least} ms and {} s", most as f64 / 1e3));
        }
        Ok(Duration::from_secs_f64(millis / 1e3))
    }
}

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing critical · 1 something critical · 2 wrong usage · 3 a target could not be read"
)]
pub struct Check {
    #[command(flatten)]
    pub targets: Targets,
    /// Look again after so long (milliseconds, or with a unit: 2s), and report what persists
    #[arg(long = "for", value_name = "TIME", default_value = "300ms", value_parser = duration("ms", 1, 600_000))]
    pub pause: Duration,
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
    #[command(flatten)]
    pub shown: Shown,
}

impl Check {
    pub fn look_options(&self) -> look::Options {
        self.shown.look_options()
    }
}

#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// The interpreter to start
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    pub python: PathBuf,
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
}

/// Promised, and to come.
const NOT_BUILT: &[&str] = &["-n", "--native", "-c", "--core", "--executable", "--tasks"];

/// The word for what is promised and not built yet, where clap would guess at a typing error.
pub fn not_built_yet(error: &clap::Error) -> Option<&'static str> {
    let kind = match error.kind() {
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        _ => return None,
    };
    let Some(ContextValue::String(word)) = error.get(kind) else { return None };
    NOT_BUILT.iter().find(|known| word == **known).copied()
}
