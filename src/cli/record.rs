//! The options of `record`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Targets;

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done · 2 wrong usage · 3 a target could not be read, or the file not written · with -- COMMAND: the command's own, 125 for failures of ours · 130/143 ended by a signal, with the file written"
)]
pub struct Record {
    #[command(flatten)]
    pub targets: Targets,
    /// Start this command and record it
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pids", "pid", "port", "name"])]
    pub command: Vec<std::ffi::OsString>,
    /// Where to write; - is stdout, for text formats
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to write; without it, by the extension of FILE, else a flame graph
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub format: Option<ProfileFormat>,
    /// Samples per second, or max: as many as the machine gives
    #[arg(short, long, value_name = "RATE", default_value = "100", value_parser = rate)]
    pub rate: Rate,
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
    /// Root stacks at the asyncio task that runs: its name, if somebody gave it one, and its coroutine
    #[arg(long)]
    pub tasks: bool,
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
    #[arg(long, conflicts_with = "pause")]
    pub nonblocking: bool,
    /// Stop running threads for each sample, with ptrace. A write or send that such a thread is in the middle of may
    /// return early, having written a part: the program must be able to bear that
    #[arg(long)]
    pub pause: bool,
    /// Do not mask what looks like a secret in command lines
    #[arg(long)]
    pub show_secrets: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    PerSecond(u32),
    Max,
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    let rate = text.parse().ok().filter(|rate| (1..=100_000).contains(rate));
    rate.map(Rate::PerSecond).ok_or_else(|| "1 to 100000, or max".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileFormat {
    /// Flame graph, SVG
    Flamegraph,
    /// One line per stack, with its count
    #[value(alias = "raw")]
    Folded,
    /// For speedscope.app, JSON
    Speedscope,
    /// Trace events for Perfetto or chrome://tracing, JSON
    #[value(alias = "chrometrace")]
    Chrome,
    /// For profiler.firefox.com, JSON
    #[value(alias = "gecko")]
    Firefox,
    /// For `go tool pprof` and others, protobuf
    Pprof,
    /// One page with flame graph, timeline, top functions and search
    Html,
}

impl ProfileFormat {
    /// By the end of a file's name.
    pub fn of(file: &std::path::Path) -> Option<ProfileFormat> {
        let name = file.file_name()?.to_str()?.to_lowercase();
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
        Some(match () {
            () if ends(&[".svg"]) => ProfileFormat::Flamegraph,
            () if ends(&[".html", ".htm"]) => ProfileFormat::Html,
            () if ends(&[".pb.gz", ".pb", ".pprof", ".prof"]) => ProfileFormat::Pprof,
            () if ends(&[".folded", ".txt", ".collapsed", ".raw"]) => ProfileFormat::Folded,
            () if ends(&[".firefox.json", ".gecko.json"]) => ProfileFormat::Firefox,
            () if ends(&[".chrome.json", ".trace.json", ".trace"]) => ProfileFormat::Chrome,
            () if ends(&[".json", ".speedscope"]) => ProfileFormat::Speedscope,
            () => return None,
        })
    }

    pub fn extension(self) -> &'static str {
        match self {
            ProfileFormat::Flamegraph => "svg",
            ProfileFormat::Folded => "folded",
            ProfileFormat::Speedscope => "speedscope.json",
            // Not `chrome.json`: speedscope takes that for a timeline of the developer tools, an array of other events.
            ProfileFormat::Chrome => "trace.json",
            ProfileFormat::Firefox => "firefox.json",
            ProfileFormat::Pprof => "pb.gz",
            ProfileFormat::Html => "html",
        }
    }

    /// It can be shown in a terminal.
    pub fn is_text(self) -> bool {
        self != ProfileFormat::Pprof
    }

    /// It tells what happened when.
    pub fn is_ordered(self) -> bool {
        !matches!(self, ProfileFormat::Flamegraph | ProfileFormat::Folded | ProfileFormat::Pprof)
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
