//! From raw frames to frames of the profile. A code object does not change while it lives, so each place in the
//! code is resolved once; and since another object may come to lie at its address, what was seen lately is
//! compared with what is there now, a few times a second.

use rustc_hash::{FxHashMap, FxHashSet};

use super::reader::RawFrame;
use super::sampler::Lines;
use super::tree::{Frame, FrameId, Tree};
use crate::python::code::Codes;
use crate::python::frames;
use crate::python::objects::Heap;
use crate::python::paths::Paths;
use crate::python::sysinfo;
use crate::python::{Python, layout::Layout};
use crate::target::cached::CachedMemory;
use crate::target::memory::{Addr, Memory};

/// Words of a code object that no two code objects have in common.
type Print = [u64; 4];

pub struct Resolver {
    pid: i32,
    lines: Lines,
    paths: Paths,
    /// The directories of `sys.path`, longest first.
    roots: Vec<String>,
    /// What each file is called from there on.
    shorts: FxHashMap<String, String>,
    codes: Codes,
    /// `None`: no frame that Python would show.
    places: FxHashMap<RawFrame, Option<FrameId>>,
    prints: FxHashMap<Addr, Option<Print>>,
    /// Code objects that were met since they were last compared.
    met: FxHashSet<Addr>,
}

impl Resolver {
    pub fn new(pid: i32, python: &Python, lines: Lines, apps: &[String]) -> Self {
        Resolver {
            pid,
            roots: roots(&python.sys.path),
            shorts: FxHashMap::default(),
            lines,
            paths: Paths::new(&python.sys, apps),
            codes: Codes::default(),
            places: FxHashMap::default(),
            prints: FxHashMap::default(),
            met: FxHashSet::default(),
        }
    }

    pub fn get(&self, frame: &RawFrame) -> Option<Option<FrameId>> {
        self.places.get(frame).copied()
    }

    /// Resolves those of `frames` that are new.
    pub fn learn(&mut self, python: &Python, tree: &mut Tree, frames: &[RawFrame]) {
        let new: Vec<RawFrame> = frames.iter().filter(|f| !self.places.contains_key(f)).copied().collect();
        if new.is_empty() {
            return;
        }
        let memory = CachedMemory::live(self.pid);
        let heap = python.heap(&memory);
        self.codes.load(&heap, new.iter().map(|f| f.code));
        for frame in new {
            if !self.places.contains_key(&frame) {
                let place = self.resolve(&heap, python, tree, &frame);
                self.places.insert(frame, place);
            }
            let print = || print(&memory, &python.layout, frame.code);
            self.prints.entry(frame.code).or_insert_with(print);
        }
    }

    fn resolve(&mut self, heap: &Heap, python: &Python, tree: &mut Tree, raw: &RawFrame) -> Option<FrameId> {
        let code = self.codes.get(raw.code)?;
        let frame = full(raw);
        let offset = code.offset(heap, &frame);
        if code.is_incomplete(&frame, offset) {
            return None;
        }
        let file = code.file.as_ref().map(ToString::to_string).unwrap_or_default();
        let mut frame = Frame {
            function: code.qualname.as_ref().unwrap_or(&code.name).to_string(),
            line: match self.lines {
                Lines::Current => code.line(offset),
                Lines::First => u32::try_from(code.first_line).ok(),
                Lines::None => None,
            },
            first_line: code.first_line.max(0) as u32,
            user: self.paths.is_user(&file),
            short: String::new(),
            file,
        };
        frame.short = match self.shorts.get(&frame.file) {
            Some(short) => short.clone(),
            None => self.shorten(heap, python, &frame.file),
        };
        Some(tree.intern(frame))
    }

    /// A file of no root may have come with one: while Python starts, the program's own directory is not on the path.
    fn shorten(&mut self, heap: &Heap, python: &Python, file: &str) -> String {
        let is_below = |root: &String| file.starts_with(root.as_str());
        if file.starts_with('/')
            && !self.roots.iter().any(is_below)
            && let Ok((sys, _)) = sysinfo::read(python.heap(heap.mem), python.runtime, python.hash)
            && !sys.path.is_empty()
        {
            self.roots = roots(&sys.path);
        }
        let root = self.roots.iter().find(|root| is_below(root));
        let short = root.map_or(file, |root| &file[root.len()..]).to_owned();
        self.shorts.insert(file.to_owned(), short.clone());
        short
    }

    /// Notes that these were met, for [`compare`](Self::compare).
    pub fn met(&mut self, frames: &[RawFrame]) {
        // Stacks repeat code objects one after the other.
        let mut last = 0;
        for frame in frames.iter().filter(|f| f.code != 0) {
            if frame.code != last {
                self.met.insert(frame.code);
                last = frame.code;
            }
        }
    }

    /// Whether the place is one in that code: what was read of a frame beside its thread may be of two.
    pub fn is_place(&mut self, python: &Python, frame: &RawFrame) -> bool {
        if self.places.contains_key(frame) {
            return true;
        }
        let memory = CachedMemory::live(self.pid);
        let heap = python.heap(&memory);
        self.codes.load(&heap, std::iter::once(frame.code));
        // What is no code has no place that could be shown.
        self.codes.get(frame.code).is_none_or(|code| code.has(code.offset(&heap, &full(frame))))
    }

    /// Forgets the code objects that are not what they were, and gives them.
    pub fn compare(&mut self, python: &Python) -> FxHashSet<Addr> {
        if self.met.is_empty() {
            return FxHashSet::default();
        }
        let memory = CachedMemory::live(self.pid);
        let met: Vec<Addr> = self.met.drain().collect();
        let size = python.layout.code.size as usize;
        memory.prefetch(&met.iter().map(|a| (*a, size)).collect::<Vec<_>>());
        let changed: FxHashSet<Addr> = met
            .into_iter()
            .filter(|a| self.prints.get(a).is_some_and(|known| *known != print(&memory, &python.layout, *a)))
            .collect();
        if changed.is_empty() {
            return changed;
        }
        log::debug!("{} code objects were replaced", changed.len());
        self.places.retain(|frame, _| !changed.contains(&frame.code));
        self.prints.retain(|addr, _| !changed.contains(addr));
        self.codes = Codes::default();
        changed
    }
}

fn roots(path: &[String]) -> Vec<String> {
    let ends = |dir: &String| format!("{}/", dir.trim_end_matches('/'));
    let mut roots: Vec<String> = path.iter().filter(|dir| dir.len() > 1).map(ends).collect();
    roots.sort_by_key(|dir| std::cmp::Reverse(dir.len()));
    roots
}

fn full(raw: &RawFrame) -> frames::RawFrame {
    frames::RawFrame {
        addr: 0,
        code: raw.code,
        globals: 0,
        instruction: raw.instruction,
        tlbc_index: raw.tlbc_index,
        owner: raw.owner,
    }
}

fn print(memory: &dyn Memory, layout: &Layout, code: Addr) -> Option<Print> {
    let c = &layout.code;
    Some([
        memory.u64(code.checked_add(c.filename)?).ok()?,
        memory.u64(code + c.name).ok()?,
        memory.u32(code + c.firstlineno).ok()? as u64,
        memory.u64(code + c.linetable).ok()?,
    ])
}
