//! The black box: polls at low cost, and when something lasts too long, looks closely and keeps what it saw.

/// Polls all targets and looks closely at what lasts too long.
pub mod engine;
/// Runs a command for each stall.
pub mod exec;
/// Which processes there are to watch, over restarts.
pub mod follow;
/// Looks that can wait a moment.
mod looker;
/// What Prometheus asks for.
pub mod metrics;
/// Whole looks for what no poll can see.
mod patrol;
/// The cheap poll of one process.
pub mod poll;
/// A short profile of a stall.
mod profile;
/// The directory of reports.
pub mod reports;
/// What lasts too long.
pub mod stall;
/// One process that is watched.
mod target;
/// The files of one look.
mod write;
