//! The pages that the last samples needed, read again in one system call.
//!
//! What a sampler reads stands nearly always where it stood the last time: thread states, the pages of the
//! data stack, frames of 3.8–3.10 in their arenas. So one call brings them all, whatever the depth of the
//! stacks; what was not foreseen is read when it is met, and foreseen from then on.

use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::live::MAX_RANGES;
use super::memory::Addr;

pub const PAGE: usize = 4096;
/// A page that so many samples did not touch is not foreseen any more.
const FORGET_AFTER: u32 = 64;
/// Bounds the memory of one process's pages (64 MiB), whatever its pointers say.
const MAX_PAGES: usize = 16 * 1024;
/// Ranges with at most this many pages between them are read as one: an iovec costs as much as a page.
const MERGE_GAP: u64 = 1;

#[derive(Clone, Copy, Debug)]
struct Page {
    number: u64,
    /// Where its bytes stand in `bytes`, in pages; `NOT_READ` before it was.
    slot: u32,
    used: u32,
}

/// Bytes of the last word.
const WORD: usize = 4;

const NOT_READ: u32 = u32::MAX;

pub struct Pages {
    pid: Pid,
    /// Sorted by number.
    pages: Vec<Page>,
    ranges: Vec<RemoteIoVec>,
    /// `ranges` and the slots are those of `pages`.
    planned: bool,
    bytes: Vec<u8>,
    /// Pages of `bytes` in use.
    filled: usize,
    sample: u32,
    /// Index of the page asked for last.
    last: usize,
    /// Pages between two that are foreseen can be read as well.
    gaps: bool,
    across: [u8; 512],
    /// A word that is read after all pages.
    last_word: Option<Addr>,
    /// Its value, if nothing has been read since.
    word: Option<u32>,
    calls: u64,
    read: u64,
}

impl Pages {
    pub fn new(pid: i32) -> Self {
        Pages {
            pid: Pid::from_raw(pid),
            pages: Vec::new(),
            ranges: Vec::new(),
            planned: false,
            bytes: Vec::new(),
            filled: 0,
            sample: 0,
            last: 0,
            gaps: true,
            across: [0; 512],
            last_word: None,
            word: None,
            calls: 0,
            read: 0,
        }
    }

    /// System calls made and bytes read so far.
    pub fn cost(&self) -> (u64, u64) {
        (self.calls, self.read)
    }

    /// Reads this word after all others, at the next refresh.
    pub fn end_with(&mut self, word: Option<Addr>) {
        self.last_word = word;
    }

    /// That word, as it was when all else had been read.
    pub fn last_word(&mut self) -> Option<u32> {
        if self.word.is_some() {
            return self.word;
        }
        // Pages were met that had not been foreseen, or there was no room for it.
        let mut bytes = [0; WORD];
        let word = RemoteIoVec { base: self.last_word? as usize, len: WORD };
        self.calls += 1;
        let n = process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut bytes)], &[word]).ok()?;
        (n == WORD).then(|| u32::from_le_bytes(bytes))
    }

    /// Forgets all bytes and reads the foreseen pages again. `ESRCH` and the like mean that the process is gone.
    pub fn refresh(&mut self) -> Result<(), Errno> {
        self.sample = self.sample.wrapping_add(1);
        // Now and then only: to plan anew costs more than a page too many.
        if self.sample.is_multiple_of(16) {
            let sample = self.sample;
            let before = self.pages.len();
            self.pages.retain(|p| sample.wrapping_sub(p.used) <= FORGET_AFTER);
            self.planned &= self.pages.len() == before;
        }
        self.last = 0;
        self.word = None;
        loop {
            if !self.planned {
                self.plan();
            }
            let wanted = self.ranges.iter().map(|r| r.len).sum::<usize>();
            self.filled = wanted / PAGE;
            if wanted == 0 {
                return Ok(());
            }
            let got = self.read_ranges(wanted)?;
            self.read += got as u64;
            if got >= wanted {
                return Ok(());
            }
            // The page that stopped the call is gone from the target.
            let stopped = (got / PAGE) as u32;
            let before = self.pages.len();
            self.pages.retain(|p| p.slot != stopped);
            // Or it stands between two that are foreseen, and was never there.
            self.gaps &= self.pages.len() < before;
            self.planned = false;
        }
    }

    /// Reads all ranges, of so many bytes, and the last word. How many bytes came.
    fn read_ranges(&mut self, wanted: usize) -> Result<usize, Errno> {
        let planned = self.ranges.len();
        let word = self.last_word.filter(|_| planned < MAX_RANGES);
        if let Some(word) = word {
            self.ranges.push(RemoteIoVec { base: word as usize, len: WORD });
        }
        let mut at = 0;
        for batch in self.ranges.chunks(MAX_RANGES) {
            let length: usize = batch.iter().map(|r| r.len).sum();
            self.calls += 1;
            let local = &mut self.bytes[at..at + length];
            let n = match process_vm_readv(self.pid, &mut [IoSliceMut::new(local)], batch) {
                Ok(n) => n,
                Err(Errno::EFAULT) => 0,
                Err(errno) => {
                    self.ranges.truncate(planned);
                    return Err(errno);
                }
            };
            at += n;
            if n < length {
                break;
            }
        }
        self.ranges.truncate(planned);
        if word.is_some() && at == wanted + WORD {
            let bytes = self.bytes[wanted..at].try_into().expect("4 bytes");
            self.word = Some(u32::from_le_bytes(bytes));
        }
        Ok(at)
    }

    fn plan(&mut self) {
        self.ranges.clear();
        let mut slot = 0u64;
        let mut run: Option<(u64, u64)> = None;
        let gap = if self.gaps { MERGE_GAP } else { 0 };
        for page in &mut self.pages {
            match &mut run {
                Some((start, length)) if page.number <= *start + *length + gap => {
                    let more = page.number - (*start + *length) + 1;
                    *length += more;
                    slot += more;
                }
                _ => {
                    if let Some((start, length)) = run {
                        self.ranges.push(range(start, length));
                    }
                    run = Some((page.number, 1));
                    slot += 1;
                }
            }
            page.slot = slot as u32 - 1;
        }
        if let Some((start, length)) = run {
            self.ranges.push(range(start, length));
        }
        let room = slot as usize * PAGE + WORD;
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
        self.planned = true;
    }

    /// The slot of a page, read now if it was not foreseen.
    fn slot(&mut self, number: u64) -> Option<usize> {
        let near = |p: &Page| p.number == number && p.slot != NOT_READ;
        let index = match self.pages.get(self.last).filter(|p| near(p)) {
            Some(_) => self.last,
            None => match self.pages.binary_search_by_key(&number, |p| p.number) {
                Ok(index) => index,
                Err(index) => {
                    if self.pages.len() >= MAX_PAGES {
                        return None;
                    }
                    self.pages.insert(index, Page { number, slot: NOT_READ, used: self.sample });
                    self.planned = false;
                    index
                }
            },
        };
        self.last = index;
        self.pages[index].used = self.sample;
        if self.pages[index].slot == NOT_READ {
            match self.demand(number) {
                Some(slot) => self.pages[index].slot = slot,
                None => {
                    self.pages.remove(index);
                    return None;
                }
            }
        }
        Some(self.pages[index].slot as usize)
    }

    fn demand(&mut self, number: u64) -> Option<u32> {
        self.word = None;
        let at = self.filled * PAGE;
        if self.bytes.len() < at + PAGE {
            self.bytes.resize(at + 16 * PAGE, 0);
        }
        self.calls += 1;
        let local = &mut [IoSliceMut::new(&mut self.bytes[at..at + PAGE])];
        match process_vm_readv(self.pid, local, &[range(number, 1)]) {
            Ok(PAGE) => {
                self.read += PAGE as u64;
                self.filled += 1;
                Some(self.filled as u32 - 1)
            }
            _ => None,
        }
    }

    /// `len` bytes from `addr`, at most 512.
    pub fn at(&mut self, addr: Addr, len: usize) -> Option<&[u8]> {
        let (page, from) = (addr / PAGE as u64, (addr % PAGE as u64) as usize);
        let slot = self.slot(page)?;
        if from + len <= PAGE {
            return self.bytes.get(slot * PAGE + from..slot * PAGE + from + len);
        }
        let here = PAGE - from;
        let there = len.checked_sub(here).filter(|_| len <= self.across.len())?;
        self.across[..here].copy_from_slice(&self.bytes[slot * PAGE + from..(slot + 1) * PAGE]);
        let next = self.slot(page + 1)?;
        self.across[here..len].copy_from_slice(&self.bytes[next * PAGE..next * PAGE + there]);
        Some(&self.across[..len])
    }

    pub fn u64(&mut self, addr: Addr) -> Option<u64> {
        self.at(addr, 8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
    }

    pub fn u32(&mut self, addr: Addr) -> Option<u32> {
        self.at(addr, 4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes")))
    }
}

fn range(start: u64, pages: u64) -> RemoteIoVec {
    RemoteIoVec { base: start as usize * PAGE, len: pages as usize * PAGE }
}
