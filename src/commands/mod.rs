//! One file per command; the only place that prints.

/// One line per Python process.
pub mod ps;
