//! Where the C library lets the kernel note on which CPU a thread runs: `cpu_id` of `struct rseq`
//! (include/uapi/linux/rseq.h), which glibc registers for each thread from 2.35 on.
//!
//! The kernel writes it before a thread comes back to its own code on another CPU than the last time. So as
//! long as we have a CPU to ourselves, a thread for which that word names it is not in its own code anywhere,
//! and it costs no system call to know: the word comes with the memory that is read anyway.

use crate::elf::Mapped;
use crate::python::objects::USER_SPACE;
use crate::target::maps::Mapping;
use crate::target::memory::{Addr, Memory};

/// Of `cpu_id` in `struct rseq`.
const CPU_ID: u64 = 4;

/// How far from the thread pointer those words stand.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    offset: u64,
}

impl Places {
    /// `None` where there are none: another C library, an older one, another machine.
    pub fn of(maps: &[Mapping], memory: &dyn Memory) -> Option<Places> {
        // Stores of a thread become visible in their order on x86 only; and here the thread pointer is pthread_t.
        if !cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
            return None;
        }
        let loader = maps.iter().find(|m| {
            let name = m.path.rsplit('/').next().unwrap_or_default();
            m.offset == 0 && m.readable && name.starts_with("ld-")
        })?;
        let image = Mapped::parse(memory, loader.start)?;
        // 0 if it is turned off or refused by the kernel.
        let size = memory.u32(image.symbol("__rseq_size")?).ok()?;
        let offset = memory.u64(image.symbol("__rseq_offset")?).ok()?;
        (size >= CPU_ID as u32 + 4).then_some(Places { offset })
    }

    /// The address of the word of a thread, by its `pthread_t`.
    pub fn of_thread(self, ident: u64) -> Option<Addr> {
        let area = ident.checked_add_signed(self.offset as i64)?;
        // struct rseq is aligned to 32 bytes.
        (area.is_multiple_of(32) && area != 0 && area < USER_SPACE).then_some(area + CPU_ID)
    }
}
