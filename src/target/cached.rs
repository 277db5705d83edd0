//! A page cache over a source of memory, alive for one look.
//!
//! What is read inside the frozen window must be of one moment, so a new attempt throws the cache
//! away; but the pages that the last attempt needed are known by then and come back in one system
//! call ([`CachedMemory::refresh`]). That makes the second attempt short enough to succeed on a
//! thread that runs.

use std::cell::{Cell, RefCell};

use rustc_hash::FxHashMap;

use super::image::Image;
use super::live::{LiveMemory, MAX_RANGES};
use super::memory::{Addr, Fault, Memory};

const PAGE: usize = 4096;
/// One miss reads this many pages. What costs is not the read (16 KiB 3.5 µs, 4 KiB 2.2) but that the
/// bytes land on fresh pages of ours, each of which faults.
const READ_AHEAD: u64 = 1;
/// A walk that goes on beside its last miss reads up to this much (256 KiB, an arena of pymalloc).
const READ_AHEAD_MAX: u64 = 64;
/// Pages with at most this many others between them are read as one range: an iovec costs about as much as
/// a page.
const MERGE_GAP: u64 = 1;
/// Room for a small process, so that the buffer need not move.
const FIRST_ROOM: usize = 1 << 20;
/// What one look may hold. Remote lengths are capped long before; this is the last dam.
const MAX_PAGES: usize = 64 * 1024;
/// A window of more than this is forgotten when it is over: it is mostly stacks, which nobody reads again.
const KEPT_WINDOW: usize = 4 << 20;
/// Pages that are found without a search, by the last bits of their number.
const AT_HAND: usize = 256;

pub enum Source {
    Live(LiveMemory),
    Image(Image),
}

impl Cache {
    fn older(&self, page: u64) -> Option<usize> {
        if self.in_window { None } else { self.older.get(&page).copied() }
    }
}

pub struct CachedMemory {
    source: Source,
    cache: RefCell<Cache>,
    calls: Cell<u64>,
    bytes: Cell<u64>,
    recording: Cell<bool>,
}

#[derive(Default)]
struct Cache {
    /// Page number → where its bytes begin in `data`, or `None` for a page that cannot be read.
    pages: FxHashMap<u64, Option<usize>>,
    data: Vec<u8>,
    /// Pages from before the window: what does not change is read from them once the window is over.
    older: FxHashMap<u64, usize>,
    older_data: Vec<u8>,
    in_window: bool,
    /// Where the pages end that the last `refresh` has copied, and whether one behind it was looked at since.
    copied: usize,
    late: bool,
    /// Pages that were really looked at since the last `refresh`, with repetitions.
    touched: Vec<u64>,
    /// The window of the last miss.
    window: (u64, u64),
    /// Pages that were looked at since the last `refresh`.
    at_hand: AtHand,
    /// Every range that was read, for captures; the first `kept` stay over a `refresh`.
    recorded: Vec<(Addr, usize)>,
    kept: usize,
}

/// Page numbers, each with where its bytes begin and whether that is in `older_data`.
struct AtHand(Box<[(u64, usize, bool); AT_HAND]>);

impl Default for AtHand {
    fn default() -> Self {
        AtHand(Box::new([(u64::MAX, 0, false); AT_HAND]))
    }
}

impl AtHand {
    fn put(&mut self, page: u64, slot: usize, older: bool) {
        self.0[page as usize % AT_HAND] = (page, slot, older);
    }

    fn get(&self, page: u64) -> Option<(usize, bool)> {
        let (known, slot, older) = self.0[page as usize % AT_HAND];
        (known == page).then_some((slot, older))
    }

    fn clear(&mut self) {
        self.0.fill((u64::MAX, 0, false));
    }
}

impl CachedMemory {
    pub fn live(pid: i32) -> Self {
        Self::new(Source::Live(LiveMemory::new(pid)))
    }

    pub fn image(image: Image) -> Self {
        Self::new(Source::Image(image))
    }

    fn new(source: Source) -> Self {
        CachedMemory {
            source,
            cache: RefCell::default(),
            calls: Cell::new(0),
            bytes: Cell::new(0),
            recording: Cell::new(false),
        }
    }

    /// From now on remember which bytes are read, for [`recorded`](Self::recorded).
    pub fn record(&self) {
        self.recording.set(true);
    }

    pub fn is_recording(&self) -> bool {
        self.recording.get()
    }

    /// Everything read since the last `refresh`, as ranges that neither overlap nor touch.
    pub fn recorded(&self) -> Image {
        let mut ranges = self.cache.borrow().recorded.clone();
        ranges.sort_unstable();
        let mut image = Image::default();
        let mut merged: Vec<(Addr, usize)> = Vec::new();
        for (addr, len) in ranges {
            match merged.last_mut() {
                // A few bytes more are cheaper than another entry.
                Some((a, l)) if addr <= *a + *l as u64 + 16 => {
                    *l = (*l).max((addr + len as u64 - *a) as usize)
                }
                _ => merged.push((addr, len)),
            }
        }
        for (addr, len) in merged {
            let mut bytes = vec![0; len];
            if self.read_cached(addr, &mut bytes).is_ok() {
                image.add(addr, bytes);
            }
        }
        image
    }

    /// System calls made and bytes read so far.
    pub fn cost(&self) -> (u64, u64) {
        (self.calls.get(), self.bytes.get())
    }

    /// Reads around the cache: what stands there now.
    pub fn fresh(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        let fault = Fault { addr, len: buf.len() };
        match &self.source {
            Source::Image(image) => image.read_into(addr, buf),
            Source::Live(live) => {
                self.calls.set(self.calls.get() + 1);
                let len = buf.len();
                match live.read_into(addr, buf) {
                    Ok(n) if n == len => Ok(()),
                    _ => Err(fault),
                }
            }
        }
    }

    /// Begins a new attempt: forgets all bytes and reads the pages that the last attempt used again,
    /// in as few system calls as can be.
    pub fn refresh(&self) {
        let Source::Live(live) = &self.source else { return };
        let cache = &mut *self.cache.borrow_mut();
        let mut wanted = std::mem::take(&mut cache.touched);
        wanted.sort_unstable();
        wanted.dedup();
        cache.pages.clear();
        cache.data.clear();
        cache.at_hand.clear();
        cache.in_window = true;
        cache.recorded.truncate(cache.kept);
        cache.window = (0, 0);
        self.load(live, cache, &wanted);
        (cache.copied, cache.late) = (cache.data.len(), false);
    }

    /// Something was looked at since the last `refresh` that was not among what it copied: it is of a later
    /// moment.
    pub fn went_beyond_copy(&self) -> bool {
        self.cache.borrow().late
    }

    /// What was read so far belongs to every attempt that follows, and to none: the next `refresh`
    /// reads none of these pages ahead, and a capture has them all.
    pub fn end_attach(&self) {
        let cache = &mut *self.cache.borrow_mut();
        cache.touched.clear();
        cache.at_hand.clear();
        cache.kept = cache.recorded.len();
        let pages = std::mem::take(&mut cache.pages);
        cache.older = pages.into_iter().filter_map(|(page, slot)| Some((page, slot?))).collect();
        cache.older_data = std::mem::take(&mut cache.data);
    }

    /// The window is over: what is read from here on does not change while it lives (code objects,
    /// types, names), or is best of one moment with the stacks. So pages of the window are good enough for it, and
    /// those from before.
    pub fn end_window(&self) {
        let cache = &mut *self.cache.borrow_mut();
        cache.in_window = false;
        if !self.recording.get() && cache.data.len() > KEPT_WINDOW {
            cache.at_hand.clear();
            cache.pages = FxHashMap::default();
            cache.data = Vec::new();
        }
    }

    /// Loads sorted, distinct page numbers.
    fn load(&self, live: &LiveMemory, cache: &mut Cache, wanted: &[u64]) {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for &page in wanted {
            match runs.last_mut() {
                Some((start, len)) if page <= *start + *len + MERGE_GAP => *len = page - *start + 1,
                _ => runs.push((page, 1)),
            }
        }
        for batch in runs.chunks(MAX_RANGES) {
            self.load_runs(live, cache, batch);
        }
    }

    fn load_runs(&self, live: &LiveMemory, cache: &mut Cache, runs: &[(u64, u64)]) {
        let mut todo: Vec<(u64, u64)> = runs.to_vec();
        while !todo.is_empty() {
            let total: u64 = todo.iter().map(|r| r.1).sum();
            if cache.pages.len() + total as usize > MAX_PAGES {
                return;
            }
            let base = cache.data.len();
            let room = total as usize * PAGE;
            if cache.data.capacity() - base < room {
                cache.data.reserve(room.max(FIRST_ROOM));
            }
            let ranges: Vec<(Addr, usize)> =
                todo.iter().map(|&(p, n)| (p * PAGE as u64, n as usize * PAGE)).collect();
            self.calls.set(self.calls.get() + 1);
            let spare = &mut cache.data.spare_capacity_mut()[..room];
            let got = live.read(&ranges, spare).unwrap_or(0) / PAGE;
            // SAFETY: the kernel has filled this much of the spare room.
            unsafe { cache.data.set_len(base + got * PAGE) };
            self.bytes.set(self.bytes.get() + (got * PAGE) as u64);
            let mut left = got as u64;
            let mut slot = base;
            let mut rest = Vec::new();
            for (i, &(page, n)) in todo.iter().enumerate() {
                let here = left.min(n);
                for k in 0..here {
                    cache.pages.insert(page + k, Some(slot));
                    slot += PAGE;
                }
                left -= here;
                if here < n {
                    // This page stopped the call; what stands behind it has not been tried.
                    cache.pages.insert(page + here, None);
                    if here + 1 < n {
                        rest.push((page + here + 1, n - here - 1));
                    }
                    rest.extend_from_slice(&todo[i + 1..]);
                    break;
                }
            }
            todo = rest;
        }
    }

    /// Reads `page` and what may be wanted next.
    fn ensure(&self, live: &LiveMemory, cache: &mut Cache, page: u64) {
        let (start, len) = cache.window;
        let near = len > 0 && (page == start + len || page + 1 == start);
        let len = if near { (len * 2).min(READ_AHEAD_MAX) } else { READ_AHEAD };
        // Frames and list nodes are met in falling order as often as in rising order.
        let start = page & !(len - 1);
        cache.window = (start, len);
        let wanted: Vec<u64> = (start..start + len).filter(|p| !cache.pages.contains_key(p)).collect();
        self.load(live, cache, &wanted);
        // The window may have hit the dam or a fault: at least the page itself must have an answer.
        cache.pages.entry(page).or_insert(None);
    }

    /// Where the bytes of a page begin, and whether among the older ones; `None`: it cannot be read.
    fn look_up(&self, live: &LiveMemory, cache: &mut Cache, page: u64) -> Option<(usize, bool)> {
        cache.touched.push(page);
        let found = match cache.pages.get(&page) {
            Some(Some(slot)) => {
                cache.late |= *slot >= cache.copied;
                (*slot, false)
            }
            missing => match cache.older(page) {
                // Also where it is gone by now: whoever read it before the window goes on with the same bytes.
                Some(slot) => (slot, true),
                None if missing.is_some() => return None,
                None => {
                    cache.late = true;
                    self.ensure(live, cache, page);
                    (cache.pages.get(&page).copied()??, false)
                }
            },
        };
        cache.at_hand.put(page, found.0, found.1);
        Some(found)
    }

    fn read_cached(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        let fault = Fault { addr, len: buf.len() };
        if let Source::Image(image) = &self.source {
            return image.read_into(addr, buf);
        }
        let Source::Live(live) = &self.source else { return Err(fault) };
        if buf.is_empty() {
            return Ok(());
        }
        let last = addr.checked_add(buf.len() as u64 - 1).ok_or(fault)?;
        let mut done = 0;
        let cache = &mut *self.cache.borrow_mut();
        for page in addr / PAGE as u64..=last / PAGE as u64 {
            let (slot, older) = match cache.at_hand.get(page) {
                Some(known) => known,
                None => self.look_up(live, cache, page).ok_or(fault)?,
            };
            let from = ((addr + done as u64) % PAGE as u64) as usize;
            let n = (PAGE - from).min(buf.len() - done);
            let data = if older { &cache.older_data } else { &cache.data };
            buf[done..done + n].copy_from_slice(&data[slot + from..slot + from + n]);
            done += n;
        }
        Ok(())
    }
}

impl Memory for CachedMemory {
    fn read_into(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        self.read_cached(addr, buf)?;
        if self.recording.get() {
            self.cache.borrow_mut().recorded.push((addr, buf.len()));
        }
        Ok(())
    }

    fn peek(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        self.read_cached(addr, buf)
    }

    fn prefetch(&self, ranges: &[(Addr, usize)]) {
        let Source::Live(live) = &self.source else { return };
        let cache = &mut *self.cache.borrow_mut();
        let mut wanted: Vec<u64> = Vec::new();
        for &(addr, len) in ranges {
            let Some(last) = addr.checked_add(len.max(1) as u64 - 1) else { continue };
            let (first, last) = (addr / PAGE as u64, last / PAGE as u64);
            // A page is a page: a length that lies must not read the whole address space.
            wanted.extend(
                (first..=last.min(first + READ_AHEAD_MAX))
                    .filter(|p| !cache.pages.contains_key(p) && cache.older(*p).is_none()),
            );
        }
        wanted.sort_unstable();
        wanted.dedup();
        if !wanted.is_empty() {
            self.load(live, cache, &wanted);
        }
    }
}
