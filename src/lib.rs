//! hangscope looks into a live Python process from outside, without stopping it, and says why it hangs.
//!
//! Facts → snapshot → findings → view; each arrow is one module boundary and nothing flows back.

/// What users type: clap's definitions, nothing else.
pub mod cli;
/// One file per command; the only place that prints.
pub mod commands;
/// What a snapshot means.
pub mod diagnose;
/// Durations as people say them.
pub mod duration;
/// Symbols and sections of ELF images: pure, over bytes.
pub mod elf;
/// What leads from one process to others: plain data.
pub mod kin;
/// One look at one process.
pub mod look;
/// Secrets: which names look like one, and how text with credentials is shown.
pub mod mask;
/// Many light samples of the stacks of a process, and what they add up to.
pub mod profile;
/// What the bytes of a CPython process mean.
pub mod python;
/// What people and programs see.
pub mod render;
/// The data model: plain data.
pub mod snapshot;
/// What Python's own modules mean: who waits on what, who holds what.
pub mod stdlib;
/// What the OS and the memory say: the only module that makes system calls.
pub mod target;
/// Strings that many share.
pub mod text;
/// The live view.
pub mod top;
/// The black box.
pub mod watch;
