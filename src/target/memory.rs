//! Memory as the readers above see it: one small trait, whoever answers it.

/// An address in the target.
pub type Addr = u64;

/// Bytes that could not be read: unmapped, paged out of a capture, or the process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no readable memory at {addr:#x} ({len} bytes)")]
pub struct Fault {
    pub addr: Addr,
    pub len: usize,
}

/// Read access to the memory of a target. All numbers are little-endian as on the machine itself.
pub trait Memory {
    /// Fills `buf` from `addr`, all of it or none.
    fn read_into(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault>;

    /// For a search: what is read so does not go into a capture.
    fn peek(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        self.read_into(addr, buf)
    }

    /// Says that these ranges will be wanted next, so that they can come in one system call.
    fn prefetch(&self, _ranges: &[(Addr, usize)]) {}

    fn u8(&self, addr: Addr) -> Result<u8, Fault> {
        let mut b = [0; 1];
        self.read_into(addr, &mut b)?;
        Ok(b[0])
    }

    fn u16(&self, addr: Addr) -> Result<u16, Fault> {
        let mut b = [0; 2];
        self.read_into(addr, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }

    fn u32(&self, addr: Addr) -> Result<u32, Fault> {
        let mut b = [0; 4];
        self.read_into(addr, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    fn i32(&self, addr: Addr) -> Result<i32, Fault> {
        Ok(self.u32(addr)? as i32)
    }

    fn u64(&self, addr: Addr) -> Result<u64, Fault> {
        let mut b = [0; 8];
        self.read_into(addr, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    fn i64(&self, addr: Addr) -> Result<i64, Fault> {
        Ok(self.u64(addr)? as i64)
    }

    /// `len` bytes; the caller has capped `len`.
    fn bytes(&self, addr: Addr, len: usize) -> Result<Vec<u8>, Fault> {
        let mut v = vec![0; len];
        self.read_into(addr, &mut v)?;
        Ok(v)
    }

    /// A C string of at most `cap` bytes, without its NUL.
    fn c_string(&self, addr: Addr, cap: usize) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        // A string may end right before an unmapped page: never read across a 64-byte line at once.
        let mut at = addr;
        while out.len() < cap {
            let step = 64 - (at % 64) as usize;
            let mut line = [0; 64];
            self.read_into(at, &mut line[..step])?;
            if let Some(end) = line[..step].iter().position(|b| *b == 0) {
                out.extend_from_slice(&line[..end]);
                break;
            }
            out.extend_from_slice(&line[..step]);
            at = at.wrapping_add(step as u64);
        }
        out.truncate(cap);
        Ok(out)
    }
}
