//! Memory kept as bytes: what captures (and, later, core dumps) are made of.

use std::collections::BTreeMap;

use super::memory::{Addr, Fault, Memory};

/// Ranges of memory, by their first address. They do not overlap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    ranges: BTreeMap<Addr, Vec<u8>>,
}

impl Image {
    /// Adds a range; it must not overlap one that is there already.
    pub fn add(&mut self, addr: Addr, bytes: Vec<u8>) {
        self.ranges.insert(addr, bytes);
    }

    pub fn iter(&self) -> impl Iterator<Item = (Addr, &[u8])> {
        self.ranges.iter().map(|(a, b)| (*a, b.as_slice()))
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl Memory for Image {
    fn read_into(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        let fault = Fault { addr, len: buf.len() };
        let (start, bytes) = self.ranges.range(..=addr).next_back().ok_or(fault)?;
        let from = (addr - start) as usize;
        let to = from.checked_add(buf.len()).ok_or(fault)?;
        buf.copy_from_slice(bytes.get(from..to).ok_or(fault)?);
        Ok(())
    }
}
