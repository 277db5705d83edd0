//! What a snapshot means: findings, as plain data.
//!
//! One root, one finding: what merely follows from it is named under `related`.

use crate::snapshot::{Address, Certainty, Frame, Request, Wait};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that is wrong, who suffers from it, and what causes it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Finding {
    /// Id in the rule catalogue, e.g. `loop-executor-shutdown`.
    pub rule: String,
    pub severity: Severity,
    /// One line: who suffers, and from what.
    pub summary: String,
    /// All processes that take part.
    pub pids: Vec<i32>,
    /// Who suffers.
    pub pid: Option<i32>,
    pub tid: Option<i32>,
    pub task: Option<Address>,
    /// Index of the blocking call in the frames of that thread or task.
    pub frame: Option<usize>,
    /// Index of the innermost frame of the application's own code.
    pub user_frame: Option<usize>,
    pub blocked_for: Option<f64>,
    pub certainty: Certainty,
    pub request: Option<Request>,
    /// From who suffers to the root; without a cycle the last one is the culprit.
    pub cause: Vec<Cause>,
    /// A deadlock: indices into `cause`, each waits for the next, the last for the first.
    pub cycle: Option<Vec<usize>>,
    /// What was seen, one sentence each.
    pub evidence: Vec<String>,
    pub advice: Option<String>,
    /// Rules that follow from this one.
    pub related: Vec<String>,
}

/// One link of the chain from who suffers to the root.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Cause {
    pub pid: Option<i32>,
    pub tid: Option<i32>,
    /// The thread's name.
    pub thread: Option<String>,
    pub task: Option<Address>,
    /// One line; empty where frame and wait say it all.
    pub summary: String,
    pub wait: Option<Wait>,
    pub frame: Option<Frame>,
    /// How many others stand exactly where this one does.
    pub alike: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}
