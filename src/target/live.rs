//! Memory of a live process: `process_vm_readv(2)` with many ranges in one call.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::memory::Addr;

/// `IOV_MAX` of Linux (include/uapi/linux/uio.h).
pub const MAX_RANGES: usize = 1024;

pub struct LiveMemory {
    pid: Pid,
}

impl LiveMemory {
    pub fn new(pid: i32) -> Self {
        LiveMemory { pid: Pid::from_raw(pid) }
    }

    /// Reads `ranges`, in order and without gaps, into `buf`; returns how many bytes came before the
    /// first that could not be read. At most [`MAX_RANGES`] ranges.
    pub fn read(&self, ranges: &[(Addr, usize)], buf: &mut [MaybeUninit<u8>]) -> Result<usize, Errno> {
        let remote: Vec<RemoteIoVec> =
            ranges.iter().map(|&(base, len)| RemoteIoVec { base: base as usize, len }).collect();
        // SAFETY: the kernel only writes to it; nobody reads what it has not written.
        let buf = unsafe { std::slice::from_raw_parts_mut(buf.as_mut_ptr().cast::<u8>(), buf.len()) };
        match process_vm_readv(self.pid, &mut [IoSliceMut::new(buf)], &remote) {
            Ok(n) => Ok(n),
            // Nothing at all was readable: the first page is the one at fault.
            Err(Errno::EFAULT) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Reads one range.
    pub fn read_into(&self, addr: Addr, buf: &mut [u8]) -> Result<usize, Errno> {
        let remote = [RemoteIoVec { base: addr as usize, len: buf.len() }];
        process_vm_readv(self.pid, &mut [IoSliceMut::new(buf)], &remote)
    }
}
