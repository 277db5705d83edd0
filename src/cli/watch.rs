//! What users type behind `hangscope watch`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Shown, Targets, duration};
use crate::look;

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Each stall is a line on stdout and, with --out, a series of files named by time, rule and pid: \
                  .N.txt, .N.json and .N.capture (for `dump --capture`), N counting the looks while it lasts.\n\
                  Exit codes: 0 the targets have ended, or --once saw its stall · 2 wrong usage · 3 nothing to watch · \
                  130/143 ended by SIGINT/SIGTERM · with `-- COMMAND`: the command's own, 125 for failures of ours"
)]
pub struct Watch {
    #[command(flatten)]
    pub targets: Targets,
    /// Start this command and watch it, with what it starts itself
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pids", "pid", "port", "name"])]
    pub command: Vec<std::ffi::OsString>,
    /// How long an iteration of an event loop, a request or a wait for a lock may last
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration("s", 10, 86_400_000))]
    pub stall: Duration,
    /// How long a request may last whose coroutine awaits something while its client is sent nothing. Long polls and
    /// quiet streams do just that: only where TIME is given
    #[arg(long = "await", value_name = "TIME", value_parser = duration("s", 10, 86_400_000))]
    pub awaiting: Option<Duration>,
    /// Keep reports in this directory; without it stalls are told and not kept
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How often to poll
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = duration("s", 1, 60_000))]
    pub interval: Duration,
    /// End after the first stall
    #[arg(long)]
    pub once: bool,
    /// Keep this many stalls, then only count
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub max_reports: u64,
    /// Keep no second report of the same rule at the same place before this is over
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration("s", 0, 31_536_000_000))]
    pub cool_down: Duration,
    /// Never let DIR grow beyond this
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    pub max_size: u64,
    /// For each stall that is kept, run CMD with the report's path as its last argument. CMD is a program and its
    /// arguments; no shell is involved
    #[arg(long, value_name = "CMD", requires = "out", value_parser = |text: &str| crate::watch::exec::words(text).map(|_| text.to_owned()))]
    pub exec: Option<String>,
    /// Serve metrics for Prometheus; of the loopback where only a port is given
    #[arg(long, value_name = "ADDR:PORT", value_parser = crate::watch::metrics::address)]
    pub metrics: Option<SocketAddr>,
    /// Wait for the first target to appear (with --port or --name)
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub shown: Shown,
}

impl Watch {
    pub fn look_options(&self) -> look::Options {
        self.shown.look_options()
    }
}

/// `100M`, `1G`, `4096`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 =
        match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            "G" => 1 << 30,
            "T" => 1 << 40,
            other => return Err(format!("{other:?} is no unit of size: K, M, G or T")),
        };
    let number: u64 = digits.parse().map_err(|_| "it is a number with a unit, such as 100M or 1G")?;
    number.checked_mul(factor).ok_or_else(|| "it is too large".into())
}
