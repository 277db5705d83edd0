//! The memory of this process itself.

/// Gives back what has been freed: the C library keeps it, in pieces between what lives on, and a process that stays
/// for weeks would show the most that it has ever needed.
pub fn give_back() {
    // SAFETY: it takes its own locks and touches only memory that is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
