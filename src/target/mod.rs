//! What the OS and the memory of a process say. Nothing above this module makes a system call.

/// Why a process cannot be read, and what would help.
pub mod access;
/// Since when a thread has not run.
pub mod blocked;
/// What the OS says, as plain data.
pub mod facts;
/// Small files of `/proc`, read fast.
pub mod files;
/// From what users name to pids.
pub mod find;
/// Sockets of a process, holders of a port.
pub mod net;
/// Parsers of what `/proc` says.
pub mod parse;
/// Where a thread stands, asked again and again.
pub mod probe;
/// Facts of one process.
pub mod proc;
mod syscall_names;
/// System calls and their arguments in words.
pub mod syscalls;
/// Facts of the threads of a process.
pub mod threads;
