//! Finding `_PyRuntime`, whatever was done to the binary.
//!
//! For each image that may be the interpreter, the likely ones first: the dynamic symbol (read from
//! the mapped image, so that a deleted or replaced file does not matter), then the file's section
//! `.PyRuntime` (3.11 on, survives stripping) and its full symbol table; then a scan of the images'
//! data for the debug cookie (3.13 on) or for something that is a runtime (before).

use std::cell::{OnceCell, RefCell};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::{Tried, offsets};
use crate::elf::{File, Mapped};
use crate::target::maps::Mapping;
use crate::target::memory::{Addr, Memory};

/// Where the runtime is, and what led there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Located {
    pub runtime: Addr,
    /// File of the image.
    pub image: String,
    /// `dynamic symbol`, `section`, `symbol table` or `scan`.
    pub how: String,
    /// `Py_Version` (3.11 on), a `sys.hexversion`.
    pub hexversion: Option<u32>,
    /// `_Py_HashSecret`.
    pub hash_secret: Option<Addr>,
    /// The minor version that the name of the image speaks of.
    pub named_minor: Option<u32>,
    /// Where `_asyncio` says how its tasks are laid out (3.14 on).
    #[serde(default)]
    pub asyncio: Option<Addr>,
}

/// One image: the mappings of one file.
struct Image<'a> {
    name: &'a str,
    first: &'a Mapping,
    file: OnceCell<Option<Mmap>>,
}

/// Opens the file of a mapping; only the live target can.
pub type OpenImage<'a> = &'a dyn Fn(&Mapping) -> Option<Mmap>;

/// All places where a runtime may stand, best first, made lazily: the caller tries each until one
/// proves right. `tried` collects what was looked at and why it was not it.
pub fn candidates<'a>(
    mem: &'a dyn Memory,
    maps: &'a [Mapping],
    executable: Option<&str>,
    open: OpenImage<'a>,
    tried: &'a RefCell<Tried>,
) -> impl Iterator<Item = Located> + 'a {
    let images = std::rc::Rc::new(images(maps, executable));
    let (i1, i2, i3) = (images.clone(), images.clone(), images);
    let dynamic = (0..i1.len()).filter_map(move |i| by_dynamic_symbol(mem, &i1[i], tried));
    let files = (0..i2.len()).filter_map(move |i| by_file(&i2[i], open, tried));
    let scans = (0..i3.len()).flat_map(move |i| by_scan(mem, maps, &i3[i], tried));
    dynamic.chain(files).chain(scans)
}

/// Images in the order of how likely they are: libpython, the executable, then the rest.
fn images<'a>(maps: &'a [Mapping], executable: Option<&str>) -> Vec<Image<'a>> {
    let mut found: Vec<(u32, Image)> = Vec::new();
    for m in maps.iter().filter(|m| m.offset == 0 && m.readable && m.path.starts_with('/')) {
        if found.iter().any(|(_, i)| i.first.inode == m.inode && i.first.path == m.path) {
            continue;
        }
        // Only what has code can be an interpreter.
        if !maps.iter().any(|o| o.executable && o.inode == m.inode && o.path == m.path) {
            continue;
        }
        let base = m.path.rsplit('/').next().unwrap_or("");
        let rank = match () {
            _ if base.starts_with("libpython") => 0,
            _ if Some(m.path.as_str()) == executable => 1,
            _ if base.starts_with("python") => 2,
            // Extension modules stand in a directory of a Python, but hold none.
            _ if base.contains(".cpython-") => 9,
            _ => 5,
        };
        found.push((rank, Image { name: &m.path, first: m, file: OnceCell::new() }));
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, image)| image).collect()
}

fn by_dynamic_symbol(mem: &dyn Memory, image: &Image, tried: &RefCell<Tried>) -> Option<Located> {
    let note = |why: &str| tried.borrow_mut().note(image.name, why);
    let Some(mapped) = Mapped::parse(mem, image.first.start) else {
        note("its mapped ELF header is not readable");
        return None;
    };
    let Some(runtime) = mapped.symbol("_PyRuntime") else {
        note("no dynamic symbol _PyRuntime");
        return None;
    };
    let hexversion = mapped.symbol("Py_Version").and_then(|at| mem.u32(at).ok());
    Some(Located {
        runtime,
        image: image.name.to_owned(),
        how: "dynamic symbol".into(),
        hexversion,
        hash_secret: mapped.symbol("_Py_HashSecret"),
        named_minor: named_minor(image.name),
        asyncio: None,
    })
}

fn by_file(image: &Image, open: OpenImage, tried: &RefCell<Tried>) -> Option<Located> {
    let note = |why: &str| tried.borrow_mut().note(image.name, why);
    let Some(bytes) = image.file.get_or_init(|| open(image.first)) else {
        note("the file cannot be opened");
        return None;
    };
    let Some(file) = File::parse(bytes) else {
        note("no 64-bit ELF file");
        return None;
    };
    let found = file
        .section(".PyRuntime")
        .map(|s| (s.offset, "section"))
        .or_else(|| file.symbol("_PyRuntime").map(|s| (s, "symbol table")));
    let Some((offset, how)) = found else {
        note("neither section .PyRuntime nor symbol _PyRuntime in the file");
        return None;
    };
    Some(Located {
        runtime: image.first.start.wrapping_add(offset),
        image: image.name.to_owned(),
        how: how.into(),
        hexversion: None,
        hash_secret: file.symbol("_Py_HashSecret").map(|s| image.first.start.wrapping_add(s)),
        named_minor: named_minor(image.name),
        asyncio: None,
    })
}

/// The largest data segment that is scanned; CPython's is 2 MiB.
const MAX_SCAN: u64 = 64 << 20;

/// The cookie of 3.13 and later; before, two equal neighbouring pointers (`interpreters.head` and
/// `.main`) to something mapped. The caller proves which candidate is a runtime.
fn by_scan(mem: &dyn Memory, maps: &[Mapping], image: &Image, tried: &RefCell<Tried>) -> Vec<Located> {
    let Some(mapped) = Mapped::parse(mem, image.first.start) else { return Vec::new() };
    let mut found = Vec::new();
    let candidate = |runtime: Addr, minor: Option<u32>| Located {
        runtime,
        image: image.name.to_owned(),
        how: "scan".into(),
        hexversion: None,
        hash_secret: None,
        named_minor: minor,
        asyncio: None,
    };
    for (start, size) in &mapped.data {
        let size = (*size).min(MAX_SCAN);
        let Some(words) = read_words(mem, *start, size) else { continue };
        let cookie = u64::from_le_bytes(*offsets::COOKIE);
        for (i, pair) in words.windows(2).enumerate() {
            let at = start + 8 * i as u64;
            if pair[0] == cookie {
                found.push(candidate(at, None));
            } else if pair[0] == pair[1]
                && pair[0] % 8 == 0
                && pair[0] > 0xffff
                && maps.iter().any(|m| m.writable && m.contains(pair[0]))
            {
                // `interpreters.head` stands at 32 up to 3.10 and at 40 in 3.11 and 3.12.
                for (head, minors) in [(32, 8..=10), (40, 11..=12)] {
                    for minor in minors {
                        found.push(candidate(at - head, Some(minor)));
                    }
                }
            }
            if found.len() > 4096 {
                break;
            }
        }
    }
    if found.is_empty() {
        tried.borrow_mut().note(image.name, "scan of its data: nothing like a runtime");
    }
    found
}

/// Reads a range page by page: holes count as zeros.
fn read_words(mem: &dyn Memory, start: Addr, size: u64) -> Option<Vec<u64>> {
    let start = start & !7;
    mem.prefetch(&[(start, size as usize)]);
    let mut words = vec![0u64; (size / 8) as usize];
    for (i, chunk) in words.chunks_mut(512).enumerate() {
        let mut bytes = [0u8; 4096];
        let n = chunk.len() * 8;
        if mem.read_into(start + 4096 * i as u64, &mut bytes[..n]).is_ok() {
            for (w, b) in chunk.iter_mut().zip(bytes.chunks_exact(8)) {
                *w = u64::from_le_bytes(b.try_into().expect("8 bytes"));
            }
        }
    }
    Some(words)
}

/// `libpython3.9.so.1.0`, `python3.12`, `python3.13t`: the minor version.
fn named_minor(path: &str) -> Option<u32> {
    let name = path.rsplit('/').next()?;
    let (_, rest) = name.split_once("python3.")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn minor_versions_in_names() {
        let minor = super::named_minor;
        assert_eq!(minor("/opt/x/libpython3.9.so.1.0"), Some(9));
        assert_eq!(minor("/usr/bin/python3.13t"), Some(13));
        assert_eq!((minor("/usr/bin/python3"), minor("/python3.9/bin/app")), (None, None));
    }
}
