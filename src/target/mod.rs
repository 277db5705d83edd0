//! What the OS and the memory of a process say. Nothing above this module makes a system call.

pub mod access;
pub mod facts;
