//! What the OS and the memory of a process say. Nothing above this module makes a system call.

/// Why a process cannot be read, and what would help.
pub mod access;
/// Whether any process was born.
pub mod births;
/// Since when a thread has not run.
pub mod blocked;
/// A page cache that lives as long as one look.
pub mod cached;
/// Deadlines, and the CPU time of a process.
pub mod clocks;
/// Commands that hangscope starts.
pub mod command;
/// TCP sockets, asked for over netlink.
mod diag;
/// Memory of a live process, around any cache.
pub mod direct;
/// Who has which pipe and socket open, of all processes at once.
pub mod ends;
/// What the OS says, as plain data.
pub mod facts;
/// What descriptors lead to that threads sleep on.
pub mod fds;
/// Who has which file locked.
pub mod file_locks;
/// Small files of `/proc`, read fast.
pub mod files;
/// From what users name to pids.
pub mod find;
/// The proof that threads stood still while we read.
pub mod frozen;
/// The machine and the moment.
pub mod host;
/// Memory kept as bytes.
pub mod image;
/// Memory of a live process.
pub mod live;
/// What the address space is made of.
pub mod maps;
/// Memory as the readers above see it.
pub mod memory;
/// Sockets of a process, holders of a port.
pub mod net;
/// Descendants whose output nobody takes.
pub mod outputs;
/// The memory of this process itself.
pub mod own_memory;
/// The pages that the last samples needed.
pub mod pages;
/// Parsers of what `/proc` says.
pub mod parse;
/// Stopping one running thread for a moment.
pub mod pause;
/// Where a thread stands, asked again and again.
pub mod probe;
/// Facts of one process.
pub mod proc;
/// Sessions of a local database.
mod sessions;
/// Memory that several processes map.
pub mod shared;
/// Source lines, through the target's root.
pub mod sources;
mod syscall_names;
/// System calls and their arguments in words.
pub mod syscalls;
/// Facts of the threads of a process.
pub mod threads;
