//! Whose connection a session of a PostgreSQL is, where it is one of this very process: the drivers know the pid
//! of the server's process for it, in an object of their own (asyncpg's protocol) or in libpq's `PGconn`.

use rustc_hash::{FxHashMap, FxHashSet};

use super::super::asyncio::coroutines;
use super::super::asyncio::search::Search;
use super::super::{FrameScene, Scene, Seen, locks, visible};
use crate::python::code::Codes;
use crate::snapshot::Actor;
use crate::target::memory::Addr;

/// How far from a frame a connection is looked for, and among how many objects: pools and sessions wrap it.
const DEPTH: usize = 7;
const MAX_OBJECTS: usize = 600;
/// Threads and tasks that are asked.
const MAX_ASKED: usize = 1_000;
/// An object of a driver is no larger, and `be_pid` stands within so many bytes of a `PGconn`
/// (src/interfaces/libpq/libpq-int.h).
const MAX_SIZE: u64 = 2_048;
const CONNECTION: usize = 1_024;

/// By the pid of the server's process: the thread or the task that is nearest to the connection.
pub fn owners(scene: &Scene, codes: &Codes, seen: &Seen, backends: &[i32]) -> FxHashMap<i32, Actor> {
    let stops: FxHashSet<Addr> = seen.tasks.iter().filter_map(|t| Some(t.event_loop?.0)).collect();
    let mut search = Search::new(scene, FxHashSet::default(), &stops);
    let mut nearest: FxHashMap<i32, (usize, Actor)> = FxHashMap::default();
    let mut known: FxHashMap<Addr, Option<i32>> = FxHashMap::default();
    let mut ask = |roots: &[Addr], actor: Actor| {
        for (object, step) in search.near(roots, DEPTH, MAX_OBJECTS) {
            let backend = *known.entry(object).or_insert_with(|| backend_of(scene, object, backends));
            let Some(backend) = backend else { continue };
            if nearest.get(&backend).is_none_or(|best| step < best.0) {
                nearest.insert(backend, (step, actor.clone()));
            }
        }
    };
    for task in seen.tasks.iter().take(MAX_ASKED) {
        let raw = seen.task_frames.get(&task.id.0).map_or(&[][..], Vec::as_slice);
        let of_frame = |f: &FrameScene| {
            let stack = coroutines::stack(scene.heap, f.raw).filter(|_| task.waits_on.is_some());
            scene.values(f).into_iter().chain(stack.unwrap_or_default())
        };
        let roots: Vec<Addr> = visible(scene.heap, codes, raw).iter().flat_map(of_frame).collect();
        ask(&roots, Actor::task(scene.pid, task.tid, task.id));
    }
    // What runs on a loop is its tasks'.
    let threads = scene.threads.iter().filter(|t| !seen.loops.contains_key(&t.raw.tstate));
    for thread in threads.take(MAX_ASKED) {
        let roots: Vec<Addr> = thread.frames.iter().flat_map(|f| scene.values(f)).collect();
        ask(&roots, locks::actor(scene, thread));
    }
    nearest.into_iter().map(|(backend, (_, actor))| (backend, actor)).collect()
}

/// Which of these server processes this object of a driver talks to.
fn backend_of(scene: &Scene, object: Addr, backends: &[i32]) -> Option<i32> {
    let heap = scene.heap;
    let ty = heap.type_of(object).filter(|ty| !ty.is_type() && ty.basicsize <= MAX_SIZE)?;
    let name = heap.type_name(&ty);
    if !name.starts_with("asyncpg.") && !name.starts_with("psycopg") {
        return None;
    }
    let met = |bytes: &[u8]| {
        let numbers = bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        numbers.into_iter().find(|n| backends.contains(n))
    };
    let head = heap.layout.object.size;
    let body = heap.mem.bytes(object + head, (ty.basicsize.saturating_sub(head)) as usize).ok()?;
    let pointed = || {
        let words = body.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes")));
        // What malloc gives out.
        let pointers = words.filter(|p| *p > 0xffff && p % 16 == 0 && *p < 1 << 47);
        pointers.into_iter().filter_map(|p| met(&heap.mem.bytes(p, CONNECTION).ok()?)).next()
    };
    met(&body).or_else(pointed)
}
