//! What the screen shows at one moment, as plain data: made by whoever gathers, drawn by whoever draws.

use serde::Serialize;

use crate::snapshot::{EventLoop, Request};

#[derive(Clone, Debug, Default, Serialize)]
pub struct Screen {
    /// The command of the first process.
    pub command: String,
    pub pids: Vec<i32>,
    pub python: String,
    pub rate: u32,
    /// Since the start, seconds.
    pub since: f64,
    pub samples: u64,
    /// How often it was looked for what is wrong.
    pub looks: u64,
    /// Rounds that could not be proven: the screen's errors.
    pub torn: u64,
    /// Shares of the last stretch, 0 to 1.
    pub gil: f64,
    pub gc: f64,
    /// Threads that ran on average.
    pub active: f64,
    /// The longest that an iteration of an event loop was seen to last; `None`: there is no loop.
    pub loop_lag: Option<f64>,
    pub functions: Vec<FunctionRow>,
    pub threads: Vec<ThreadRow>,
    pub loops: Vec<LoopRow>,
    pub findings: Vec<FindingRow>,
    /// What cannot be read, in words.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FunctionRow {
    pub name: String,
    pub file: String,
    pub line: u32,
    pub user: bool,
    /// Shares of the last stretch.
    pub own_now: f64,
    pub total_now: f64,
    /// Seconds since the start.
    pub own: f64,
    pub total: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ThreadRow {
    pub pid: i32,
    pub tid: i32,
    pub name: String,
    /// `running`, `waits for the GIL`, `idle`, or what it waits on.
    pub state: String,
    pub active: f64,
    pub gil: f64,
    /// Innermost first.
    pub frames: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoopRow {
    pub pid: i32,
    pub tid: i32,
    pub thread: String,
    #[serde(rename = "loop")]
    pub event_loop: Option<EventLoop>,
    /// How long the present iteration has lasted, as the last poll has it; `None`: it waits for work, or (where its
    /// state is another) that is not known.
    pub iteration: Option<f64>,
    /// The longest of the last stretch.
    pub longest: f64,
    pub task: Option<String>,
    pub request: Option<Request>,
    pub tasks: usize,
    /// The innermost line of the application's own code.
    pub place: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FindingRow {
    pub critical: bool,
    pub rule: String,
    pub summary: String,
    pub blocked_for: Option<f64>,
    /// The whole finding as the text report has it.
    pub text: String,
}

/// The most frequent stack of a function.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StackView {
    pub function: String,
    /// Of all samples of that function, the share with this very stack.
    pub share: f64,
    pub samples: u64,
    /// Innermost first.
    pub frames: Vec<String>,
}
