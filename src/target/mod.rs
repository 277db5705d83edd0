//! What the OS and the memory of a process say. Nothing above this module makes a system call.

pub mod access;
pub mod cached;
pub mod facts;
pub mod sources;
pub mod image;
pub mod live;
pub mod maps;
pub mod memory;
