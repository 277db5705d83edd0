//! What the last samples needed of memory, read again in one system call.
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
/// What is read of a page begins and ends at multiples of this: a stack that grows a little is no new plan.
const GRAIN: usize = 256;

/// Bytes of a page that were asked for, and those that are here, both from and to.
#[derive(Clone, Copy, Debug)]
struct Page {
    number: u64,
    wanted: (u32, u32),
    here: (u32, u32),
    /// Where the first byte that is here stands in `bytes`.
    at: usize,
    used: u32,
}

/// Bytes of the last word.
const WORD: usize = 8;

pub struct Pages {
    pid: Pid,
    /// Sorted by number.
    pages: Vec<Page>,
    ranges: Vec<RemoteIoVec>,
    /// `ranges` and what is here are those of `pages`.
    planned: bool,
    bytes: Vec<u8>,
    /// Bytes of `ranges`, without and with those read since.
    planned_bytes: usize,
    filled: usize,
    sample: u32,
    /// Index of the page asked for last.
    last: usize,
    across: [u8; 512],
    /// A word that is read after all pages.
    last_word: Option<Addr>,
    /// Its value, if nothing has been read since.
    word: Option<u64>,
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
            planned_bytes: 0,
            filled: 0,
            sample: 0,
            last: 0,
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
    pub fn last_word(&mut self) -> Option<u64> {
        if self.word.is_some() {
            return self.word;
        }
        // Pages were met that had not been foreseen, or there was no room for it.
        let mut bytes = [0; WORD];
        let word = RemoteIoVec { base: self.last_word? as usize, len: WORD };
        self.calls += 1;
        let n = process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut bytes)], &[word]).ok()?;
        (n == WORD).then(|| u64::from_le_bytes(bytes))
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
            self.filled = self.planned_bytes;
            if self.planned_bytes == 0 {
                return Ok(());
            }
            let got = self.read_ranges(self.planned_bytes)?;
            self.read += got as u64;
            if got >= self.planned_bytes {
                return Ok(());
            }
            // The page that stopped the call is gone from the target.
            self.pages.retain(|p| !(p.at..p.at + (p.here.1 - p.here.0) as usize).contains(&got));
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
            let bytes = self.bytes[wanted..at].try_into().expect("8 bytes");
            self.word = Some(u64::from_le_bytes(bytes));
        }
        Ok(at)
    }

    /// Neighbours are one range: a range costs about as much as a page.
    fn plan(&mut self) {
        self.ranges.clear();
        let mut at = 0;
        for index in 0..self.pages.len() {
            let next = self.pages.get(index + 1).map(|p| p.number);
            let page = &mut self.pages[index];
            let start = page.number * PAGE as u64;
            let joins = self.ranges.last().is_some_and(|r| (r.base + r.len) as u64 == start);
            page.here = page.wanted;
            if joins {
                page.here.0 = 0;
            }
            if next == Some(page.number + 1) {
                page.here.1 = PAGE as u32;
            }
            page.at = at;
            let len = (page.here.1 - page.here.0) as usize;
            at += len;
            match self.ranges.last_mut() {
                Some(last) if joins => last.len += len,
                _ => self.ranges.push(RemoteIoVec { base: start as usize + page.here.0 as usize, len }),
            }
        }
        self.planned_bytes = at;
        if self.bytes.len() < at + WORD {
            self.bytes.resize(at + WORD, 0);
        }
        self.planned = true;
    }

    /// Where these bytes of a page stand in `bytes`; read now if they were not foreseen.
    fn find(&mut self, number: u64, from: usize, to: usize) -> Option<usize> {
        let index = match self.pages.get(self.last).filter(|p| p.number == number) {
            Some(_) => self.last,
            None => match self.pages.binary_search_by_key(&number, |p| p.number) {
                Ok(index) => index,
                Err(index) => {
                    if self.pages.len() >= MAX_PAGES {
                        return None;
                    }
                    let none = (PAGE as u32, 0);
                    let page = Page { number, wanted: none, here: none, at: 0, used: self.sample };
                    self.pages.insert(index, page);
                    index
                }
            },
        };
        self.last = index;
        let page = &mut self.pages[index];
        page.used = self.sample;
        if from < page.here.0 as usize || to > page.here.1 as usize {
            let (low, high) = (from / GRAIN * GRAIN, to.next_multiple_of(GRAIN));
            page.wanted = (page.wanted.0.min(low as u32), page.wanted.1.max(high as u32));
            self.planned = false;
            match self.demand(number) {
                Some(at) => {
                    let page = &mut self.pages[index];
                    (page.at, page.here) = (at, (0, PAGE as u32));
                }
                None => {
                    self.pages.remove(index);
                    return None;
                }
            }
        }
        let page = &self.pages[index];
        Some(page.at + from - page.here.0 as usize)
    }

    fn demand(&mut self, number: u64) -> Option<usize> {
        self.word = None;
        let at = self.filled;
        if self.bytes.len() < at + PAGE {
            self.bytes.resize(at + 16 * PAGE, 0);
        }
        self.calls += 1;
        let local = &mut [IoSliceMut::new(&mut self.bytes[at..at + PAGE])];
        let page = RemoteIoVec { base: number as usize * PAGE, len: PAGE };
        match process_vm_readv(self.pid, local, &[page]) {
            Ok(PAGE) => {
                self.read += PAGE as u64;
                self.filled += PAGE;
                Some(at)
            }
            _ => None,
        }
    }

    /// `len` bytes from `addr`, at most 512.
    pub fn at(&mut self, addr: Addr, len: usize) -> Option<&[u8]> {
        let (page, from) = (addr / PAGE as u64, (addr % PAGE as u64) as usize);
        if from + len <= PAGE {
            let at = self.find(page, from, from + len)?;
            return self.bytes.get(at..at + len);
        }
        let here = PAGE - from;
        let there = len.checked_sub(here).filter(|_| len <= self.across.len())?;
        let at = self.find(page, from, PAGE)?;
        self.across[..here].copy_from_slice(&self.bytes[at..at + here]);
        let at = self.find(page + 1, 0, there)?;
        self.across[here..len].copy_from_slice(&self.bytes[at..at + there]);
        Some(&self.across[..len])
    }

    pub fn u64(&mut self, addr: Addr) -> Option<u64> {
        self.at(addr, 8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
    }

    pub fn u32(&mut self, addr: Addr) -> Option<u32> {
        self.at(addr, 4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes")))
    }
}
