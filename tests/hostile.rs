//! Memory that lies: whatever the bytes, reading them ends, and soon, and does not panic.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use hangscope::look::capture::Capture;
use hangscope::look::{self, Options};
use hangscope::python::Python;
use hangscope::python::layout::Layout;
use hangscope::python::locate::Located;
use hangscope::python::objects::{Heap, USER_SPACE};
use hangscope::python::reprs::{self, Limits};
use hangscope::python::{frames, names, tables, threads};
use hangscope::target::memory::{Addr, Fault, Memory};
use proptest::prelude::*;

/// Generous: a debug build on a loaded machine takes a few milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// Every address can be read; what stands there is made up from it, pointers to more of it for the most part.
struct Lies {
    seed: u64,
    /// How many in 8 words are pointers.
    pointers: u64,
    /// How many different places pointers lead to: few make loops.
    places: u64,
    top: bool,
    pages: RefCell<HashSet<u64>>,
}

/// Distinct pages.
const DAM: usize = 2000;

impl Lies {
    fn word(&self, at: u64) -> u64 {
        let hash = mix(at ^ self.seed);
        if hash & 7 < self.pointers {
            let place = (hash >> 8) % self.places * 4096 + (hash >> 40) % 16 * 8;
            return if self.top { !(place | 7) } else { 0x10_0000 + place };
        }
        match hash >> 3 & 7 {
            0 => 0,
            1 => 1,
            2 => hash >> 48,
            3 => hash >> 32,
            4 => u64::MAX,
            5 => i64::MAX as u64,
            _ => hash,
        }
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Memory for Lies {
    fn read_into(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        assert!(buf.len() <= 256 << 20, "a length of the target's is believed: {}", buf.len());
        let last = buf.len() as u64;
        if addr.checked_add(last).is_none() || mix(addr >> 12 ^ self.seed).is_multiple_of(64) {
            return Err(Fault { addr, len: buf.len() });
        }
        // As the cache of a look: what it has not read yet is one day too much.
        let mut pages = self.pages.borrow_mut();
        for page in addr >> 12..=addr.wrapping_add(last.saturating_sub(1)) >> 12 {
            if !pages.contains(&page) && pages.len() >= DAM {
                return Err(Fault { addr, len: buf.len() });
            }
            pages.insert(page);
        }
        let mut at = addr;
        for part in buf.chunks_mut(8 - (addr & 7) as usize).take(1) {
            part.copy_from_slice(&self.word(at & !7).to_le_bytes()[(at & 7) as usize..][..part.len()]);
            at += part.len() as u64;
        }
        let done = (at - addr) as usize;
        for part in buf[done..].chunks_mut(8) {
            part.copy_from_slice(&self.word(at).to_le_bytes()[..part.len()]);
            at = at.wrapping_add(8);
        }
        Ok(())
    }
}

fn everything(mem: &dyn Memory, layout: &Layout, runtime: Addr) {
    let heap = Heap::new(mem, layout);
    let (interpreters, _) = threads::list_all(&heap, runtime);
    for interp in interpreters.iter().take(4) {
        let _ = names::of_interpreter(&heap, interp.addr);
        for thread in interp.threads.iter().take(4) {
            let mut thread = thread.clone();
            frames::walk(&heap, &mut thread);
            let mut codes = hangscope::python::code::Codes::default();
            codes.load(&heap, thread.frames.iter().take(8).map(|f| f.code));
        }
    }
    for obj in [runtime, mem.u64(runtime).unwrap_or(8), u64::MAX - 7] {
        for limits in [Limits::SHORT, Limits::LONG] {
            let text = reprs::of(&heap, obj, limits);
            assert!(text.chars().count() <= limits.width + 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn lies_of_every_layout(seed: u64, pointers in 1u64..8, places in prop_oneof![1u64..4, 4u64..4000], top: bool) {
        let mem = Lies { seed, pointers, places, top, pages: RefCell::default() };
        let began = Instant::now();
        let runtime = mem.word(8);
        for minor in 8..=15 {
            for free_threaded in [false, true] {
                if let Some(layout) = tables::table(minor, free_threaded) {
                    mem.pages.borrow_mut().clear();
                    everything(&mem, &layout, runtime % USER_SPACE);
                }
            }
        }
        let located = Located { runtime, image: String::new(), how: String::new(), hexversion: None, named_minor: None, asyncio: None, hash_secret: None };
        let _ = Python::understand(&mem, &located);
        prop_assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }

    #[test]
    fn captures_with_some_words_replaced(seed: u64, every in 2u64..3000, file in 0usize..64) {
        let captures = captures();
        let path = &captures[file % captures.len()];
        let bytes = std::fs::read(path).unwrap();
        let mut capture = Capture::read(&mut bytes.as_slice()).unwrap();
        for process in &mut capture.processes {
            let mut image = hangscope::target::image::Image::default();
            let starts: Vec<u64> = process.memory.iter().map(|(a, _)| a).collect();
            for (addr, range) in process.memory.iter() {
                let mut range = range.to_vec();
                for (i, word) in range.chunks_exact_mut(8).enumerate() {
                    let hash = mix(seed ^ addr ^ i as u64);
                    if hash.is_multiple_of(every) {
                        let new = match hash >> 32 & 3 {
                            0 => hash,
                            1 => starts[(hash >> 40) as usize % starts.len()],
                            2 => u64::MAX - (hash >> 56),
                            _ => hash >> 50,
                        };
                        word.copy_from_slice(&new.to_le_bytes());
                    }
                }
                image.add(addr, range);
            }
            process.memory = image;
        }
        let began = Instant::now();
        for process in &capture.processes {
            let _ = look::captured(process, &Options { locals: 2, ..Options::default() });
        }
        prop_assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
}

fn captures() -> Vec<std::path::PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/captures");
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "capture"));
    found.sort();
    found
}
