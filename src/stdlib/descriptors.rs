//! Which descriptors the frames of a thread can reach: who has the other end of a pipe open has many
//! threads, and only those that can reach it may read or write.

use rustc_hash::FxHashSet;

use super::{FrameScene, Scene, locks};
use crate::kin::Descriptors;
use crate::python::objects::Heap;
use crate::target::memory::Addr;

/// Bounds of the search in one thread.
const FRAMES: usize = 40;
const OBJECTS: usize = 2_000;
/// How deep a file object is looked for: a Popen's stdout below an attribute.
const DEPTH: u32 = 2;

/// Descriptors by tid.
pub fn of_threads(scene: &Scene) -> Vec<(i32, Descriptors)> {
    let of_thread = |thread: &super::ThreadScene| {
        let mut search =
            Search { heap: scene.heap, found: Descriptors::default(), seen: FxHashSet::default() };
        for frame in thread.frames.iter().take(FRAMES) {
            scene.values(frame).into_iter().for_each(|value| search.object(value, DEPTH));
            // threading.py names the table of all threads.
            if !frame.in_file("/threading.py") {
                locks::named_globals(scene, frame).iter().for_each(|value| search.object(*value, DEPTH));
            }
        }
        Some((thread.tid?, search.found))
    };
    scene.threads.iter().filter_map(of_thread).collect()
}

/// Threads with code of the application's own that knows how to read what others write.
pub fn readers(scene: &Scene) -> Vec<i32> {
    const READS: &[&str] = &[
        "stdout",
        "stderr",
        "communicate",
        "read",
        "read1",
        "readinto",
        "readline",
        "readlines",
        "recv",
        "recv_bytes",
        "recv_into",
        "makefile",
    ];
    let speaks = |f: &FrameScene| {
        scene.is_user(f) && scene.names(f.raw.code).iter().any(|name| READS.contains(&name.as_str()))
    };
    scene.threads.iter().filter(|t| t.frames.iter().any(speaks)).filter_map(|t| t.tid).collect()
}

struct Search<'a> {
    heap: &'a Heap<'a>,
    found: Descriptors,
    seen: FxHashSet<Addr>,
}

impl Search<'_> {
    fn object(&mut self, object: Addr, depth: u32) {
        if self.seen.len() > OBJECTS || !self.seen.insert(object) {
            return;
        }
        let Some(ty) = self.heap.type_of(object) else { return };
        if let Some(fd) = fd_of(self.heap, object, 0) {
            let Descriptors { objects, numbers } = &mut self.found;
            let known = if ty.is_int() { numbers } else { objects };
            if !known.contains(&fd) {
                known.push(fd);
            }
            return;
        }
        if depth == 0 || ty.is_str() || ty.is_type() || ty.is_bytes() || ty.is_int() || ty.name == "module" {
            return;
        }
        let parts: Vec<Addr> = if ty.is_list() || ty.is_tuple() {
            self.heap.items(object, &ty, 64).map(|i| i.0).unwrap_or_default()
        } else if ty.is_dict() {
            self.heap.dict(object, 64).map(|d| d.0.into_iter().map(|e| e.1).collect()).unwrap_or_default()
        } else {
            let attributes = self.heap.attributes(object, 64).unwrap_or_default();
            attributes.into_iter().map(|a| a.1).collect()
        };
        for part in parts {
            self.object(part, depth - 1);
        }
    }
}

/// The descriptor of a file object: `fileio` has it in its first field (Modules/_io/fileio.c), a buffered
/// one its raw file there (bufferedio.c), a text one its buffer behind two ints and a size (textio.c).
/// A plain number counts as well: `os.pipe()` gives no more.
fn fd_of(heap: &Heap, object: Addr, depth: u32) -> Option<i32> {
    if depth > 3 {
        return None;
    }
    let ty = heap.type_of(object)?;
    let body = object.checked_add(heap.layout.object.size)?;
    let valid = |fd: i32| (fd >= 0).then_some(fd);
    match ty.name.as_str() {
        "_io.FileIO" | "_socket.socket" | "socket.socket" | "socket" => valid(heap.mem.i32(body).ok()?),
        "_io.BufferedReader" | "_io.BufferedWriter" | "_io.BufferedRandom" => {
            fd_of(heap, heap.ptr(body)?, depth + 1)
        }
        "_io.TextIOWrapper" => fd_of(heap, heap.ptr(body + 16)?, depth + 1),
        "int" => heap.int(object).and_then(|n| i32::try_from(n).ok()).and_then(valid),
        _ => {
            let handle = heap.attrs(object, ["_handle"])[0]?;
            heap.int(handle).and_then(|n| i32::try_from(n).ok()).and_then(valid)
        }
    }
}
