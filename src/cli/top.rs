//! What users type behind `hangscope top`.

use std::time::Duration;

use clap::Args;

use super::{Shown, Targets};
use crate::look;

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Keys: 1-4 sort · f t e functions, threads, event loops · Right the stack of a function · Enter what is \
                  wrong · / search · Space freeze · r begin anew · s save · ? help · q quit"
)]
pub struct Top {
    #[command(flatten)]
    pub targets: Targets,
    /// Start this command and look at it, with what it starts itself
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pids", "pid", "port", "name"])]
    pub command: Vec<std::ffi::OsString>,
    /// Samples per second
    #[arg(short, long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Seconds between refreshes of the screen
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub delay: f64,
    /// Count threads that sleep, too
    #[arg(short, long)]
    pub idle: bool,
    /// Count only the thread that holds the GIL
    #[arg(short, long)]
    pub gil: bool,
    /// Print one screen as text and end
    #[arg(long)]
    pub once: bool,
    /// The default; accepted as py-spy's flag
    #[arg(long)]
    pub nonblocking: bool,
    #[command(flatten)]
    pub shown: Shown,
}

impl Top {
    pub fn look_options(&self) -> look::Options {
        self.shown.look_options()
    }

    pub fn delay(&self) -> Duration {
        Duration::from_secs_f64(self.delay)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is a number of seconds")?;
    if (0.05..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("it is between 0.05 and 3600".into()) }
}
