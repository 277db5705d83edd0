//! What users type: clap's definitions, nothing else. Commands get what was parsed, validated.

mod top;
mod watch;

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::look;
use crate::target::find::Selector;
pub use top::Top;
pub use watch::Watch;

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
    /// Count this installed package as the application's own code; may be given several times
    #[arg(long, value_name = "NAME")]
    pub app: Vec<String>,
    /// Do not mask what looks like a secret (password, token, cookie, …)
    #[arg(long)]
    pub show_secrets: bool,
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
            show_secrets: self.show_secrets,
            apps: self.app.clone(),
            pause: self.pause,
            no_findings: self.no_findings,
            save: self.save.is_some(),
            followed: false,
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
    /// Count this installed package as the application's own code; may be given several times
    #[arg(long, value_name = "NAME")]
    pub app: Vec<String>,
    /// Do not mask what looks like a secret (password, token, cookie, …)
    #[arg(long)]
    pub show_secrets: bool,
    /// Show paths whole
    #[arg(long)]
    pub full_filenames: bool,
}

impl Tasks {
    pub fn look_options(&self) -> look::Options {
        look::Options { show_secrets: self.show_secrets, apps: self.app.clone(), ..look::Options::default() }
    }
}

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing critical · 1 something critical · 2 wrong usage · 3 a target could not be read"
)]
pub struct Check {
    #[command(flatten)]
    pub targets: Targets,
    /// Look again after so many milliseconds, and report what persists
    #[arg(long = "for", value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub for_ms: u64,
    /// As JSON
    #[arg(short, long)]
    pub json: bool,
    /// Count this installed package as the application's own code; may be given several times
    #[arg(long, value_name = "NAME")]
    pub app: Vec<String>,
    /// Do not mask what looks like a secret (password, token, cookie, …)
    #[arg(long)]
    pub show_secrets: bool,
}

impl Check {
    pub fn look_options(&self) -> look::Options {
        look::Options { show_secrets: self.show_secrets, apps: self.app.clone(), ..look::Options::default() }
    }
}

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done · 2 wrong usage · 3 a target could not be read, or the file not written · with -- COMMAND: the command's own, 125 for failures of ours · 130/143 ended by a signal, with the file written"
)]
pub struct Record {
    #[command(flatten)]
    pub targets: Targets,
    /// Start this command and record it
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "targets")]
    pub command: Vec<std::ffi::OsString>,
    /// Where to write; - is stdout, for text formats
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to write; without it, by the extension of FILE, else a flame graph
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub format: Option<ProfileFormat>,
    /// Samples per second
    #[arg(short, long, value_name = "RATE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Seconds to record; without it until Ctrl-C, SIGTERM or the end of the target
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<std::time::Duration>,
    /// Count idle threads, too
    #[arg(short, long)]
    pub idle: bool,
    /// Count only who holds the GIL
    #[arg(short, long, conflicts_with_all = ["idle", "gil_wait"])]
    pub gil: bool,
    /// Count threads that wait for the GIL, with a frame that says so
    #[arg(long)]
    pub gil_wait: bool,
    /// A root for each thread
    #[arg(short, long)]
    pub threads: bool,
    /// By function instead of by line
    #[arg(short = 'F', long)]
    pub function: bool,
    /// Show no line numbers
    #[arg(long)]
    pub nolineno: bool,
    /// Show paths whole
    #[arg(long)]
    pub full_filenames: bool,
    /// Only threads whose name contains TEXT; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub include: Vec<String>,
    /// Not the threads whose name contains TEXT; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub exclude: Vec<String>,
    /// What is slow at the root, and who calls it above (flamegraph)
    #[arg(long)]
    pub reverse: bool,
    /// The default; accepted as py-spy's flag
    #[arg(long)]
    pub nonblocking: bool,
    /// Do not mask what looks like a secret in command lines
    #[arg(long)]
    pub show_secrets: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileFormat {
    /// SVG
    Flamegraph,
    /// One line per stack, with its count
    #[value(alias = "raw")]
    Folded,
}

impl ProfileFormat {
    /// By the extension of a file's name.
    pub fn of(file: &std::path::Path) -> Option<ProfileFormat> {
        let name = file.file_name()?.to_str()?.to_lowercase();
        let ends = |suffix: &str| name.ends_with(suffix);
        Some(match () {
            () if ends(".svg") => ProfileFormat::Flamegraph,
            () if ends(".folded") || ends(".txt") || ends(".collapsed") || ends(".raw") => {
                ProfileFormat::Folded
            }
            () => return None,
        })
    }

    pub fn extension(self) -> &'static str {
        match self {
            ProfileFormat::Flamegraph => "svg",
            ProfileFormat::Folded => "folded",
        }
    }

    /// It can be shown in a terminal.
    pub fn is_text(self) -> bool {
        true
    }

    /// It tells what happened when.
    pub fn is_ordered(self) -> bool {
        false
    }
}

fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let text = text.strip_suffix('s').unwrap_or(text);
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.0..=1e8).contains(&seconds) || seconds == 0.0 {
        return Err("more than 0 seconds, and less than three years".to_owned());
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
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
