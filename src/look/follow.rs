//! Reads the processes that the targets' waits lead to: a child that is joined, the other end of a pipe,
//! who shares a semaphore, the parent that a lock was inherited from. On demand, bounded in number and
//! time; one that vanishes or refuses spoils nothing.

use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::capture::CapturedProcess;
use super::{Options, across, live};
use crate::kin::{SemLock, SemLocks};
use crate::python::Python;
use crate::snapshot::{Activity, Process, Wait};
use crate::stdlib::multiprocessing::synchronize;
use crate::target::cached::CachedMemory;
use crate::target::clocks::Allowance;
use crate::target::find::{self, Looks};
use crate::target::maps::{self, Mapping};
use crate::target::{shared, sources};

/// Most processes that are followed.
const MAX_FOLLOWED: usize = 48;
/// How many links a chain may have outside of the targets.
const ROUNDS: usize = 5;
/// For all of it, on top of one look at each process that is followed.
const BUDGET: Duration = Duration::from_millis(1500);
/// For the search for who shares a semaphore.
const SHARERS: Duration = Duration::from_millis(400);
/// For the search of one process's memory.
const MEMORY: Duration = Duration::from_millis(400);
const MAX_SEMAPHORES: usize = 32;

/// A semaphore that somebody waits for.
struct Asked {
    id: String,
    /// Who maps it, and perhaps a few more; `None`: not everybody could be asked.
    sharers: Option<Vec<i32>>,
}

/// Adds the processes that the waits of these lead to, and joins all of them.
pub fn follow(processes: &mut Vec<Process>, captured: &mut Vec<CapturedProcess>, options: &Options) {
    let began = Instant::now();
    let allowed = Allowance::of(BUDGET);
    let options = Options { followed: true, ..options.clone() };
    let targets = processes.len();
    let mut tried: FxHashSet<i32> = processes.iter().map(|p| p.pid).collect();
    // Init has nothing to say, and we ourselves have inherited what our parent has open.
    tried.extend([1, std::process::id() as i32]);
    let mut asked: Vec<Asked> = Vec::new();
    for _ in 0..ROUNDS {
        let sharers = semaphores(processes, &mut asked, allowed);
        let wanted = wanted(processes, &sharers);
        let new: Vec<i32> = wanted.into_iter().filter(|pid| tried.insert(*pid)).collect();
        let mut found = false;
        for pid in new {
            if processes.len() - targets >= MAX_FOLLOWED || allowed.is_spent() {
                log::debug!("not followed any further after {:?}", began.elapsed());
                break;
            }
            let Ok(looked) = live(pid, &options) else { continue };
            processes.push(looked.process);
            captured.extend(looked.captured);
            found = true;
        }
        across::settle(processes);
        if !found {
            break;
        }
    }
    semlocks(processes, captured, &asked, allowed);
    across::settle(processes);
    log::debug!("followed {} in {:?}", processes.len() - targets, began.elapsed());
}

/// Who is asked for: by the waits themselves, and by what is shared.
fn wanted(processes: &[Process], sharers: &[i32]) -> Vec<i32> {
    let mut wanted: Vec<i32> = Vec::new();
    for process in processes {
        let threads = process.threads.iter().filter(|t| t.activity != Activity::Running);
        let waits = threads.filter_map(|t| t.waits_on.as_ref());
        for wait in waits.chain(process.tasks.iter().filter_map(|t| t.waits_on.as_ref())) {
            if is_inherited(process, wait) {
                wanted.extend(process.parent);
            }
            let others = wait.on.iter().filter_map(|a| a.pid).filter(|pid| *pid != process.pid);
            // A server or a database that is no Python says all that it has to say in its title.
            wanted.extend(
                others.filter(|pid| wait.kind != "socket" || find::looks_like_python(*pid) == Looks::Python),
            );
        }
    }
    // Whoever cannot get rid of what it writes to a target.
    wanted.extend(processes.iter().filter(|p| !p.followed).flat_map(|p| &p.kin.held_up));
    wanted.extend(sharers);
    wanted
}

/// A lock that nobody in this process has: the parent may know it from before the fork.
fn is_inherited(process: &Process, wait: &Wait) -> bool {
    process.parent.is_some_and(|p| p > 1) && across::is_ownerless(wait)
}

/// Who shares the semaphores that somebody waits for. Each semaphore is asked for once.
fn semaphores(processes: &[Process], asked: &mut Vec<Asked>, allowed: Allowance) -> Vec<i32> {
    let mut new: Vec<String> = Vec::new();
    for id in processes.iter().flat_map(across::semaphores_waited_for) {
        if !asked.iter().any(|a| a.id == id) && !new.contains(&id) && asked.len() + new.len() < MAX_SEMAPHORES
        {
            new.push(id);
        }
    }
    if new.is_empty() {
        return Vec::new();
    }
    let files: Vec<&str> = new.iter().filter_map(|id| Some(id.rsplit_once('+')?.0)).collect();
    let (pids, complete) = shared::sharers(&files, &relatives(processes), allowed.at_most(SHARERS));
    if !complete {
        log::debug!("who shares a semaphore could not be asked of everybody");
    }
    let sharers = complete.then(|| pids.clone());
    asked.extend(new.into_iter().map(|id| Asked { id, sharers: sharers.clone() }));
    pids
}

/// Parents, children and siblings: who has a semaphore has it from one of them.
fn relatives(processes: &[Process]) -> Vec<i32> {
    let mut found: Vec<i32> = processes.iter().map(|p| p.pid).collect();
    for process in processes {
        found.extend(process.children.iter().flatten().map(|c| c.pid));
        found.extend(process.parent);
    }
    found.retain(|pid| *pid > 1);
    found
}

/// Finds the SemLock objects of each process that shares one of these semaphores.
fn semlocks(
    processes: &mut [Process],
    captured: &mut [CapturedProcess],
    asked: &[Asked],
    allowed: Allowance,
) {
    for process in processes.iter_mut() {
        let mine: Vec<&Asked> = asked.iter().filter(|a| process.kin.maps(&a.id)).collect();
        if mine.is_empty() {
            continue;
        }
        process.kin.semlocks = objects(process, &mine, allowed.at_most(MEMORY)).unwrap_or_default();
        if let Some(captured) = captured.iter_mut().find(|c| c.facts.pid == process.pid) {
            captured.facts.semlocks = process.kin.semlocks.clone();
        }
    }
}

/// What points to a semaphore and is a SemLock.
fn objects(process: &Process, asked: &[&Asked], allowed: Allowance) -> Option<Vec<SemLocks>> {
    let pid = process.pid;
    let maps = maps::read(pid).ok()?;
    let memory = CachedMemory::live(pid);
    let open = |mapping: &Mapping| sources::image(pid, mapping);
    let python = Python::attach(&memory, &maps, process.executable.as_deref(), &open).ok()?;
    memory.end_attach();
    let heap = python.heap(&memory);
    let place =
        |asked: &&'_ Asked| Some((asked.id.clone(), asked.sharers.clone(), process.kin.address(&asked.id)?));
    let places: Vec<_> = asked.iter().filter_map(place).collect();
    let handles: Vec<u64> = places.iter().map(|p| p.2).collect();
    let (words, complete) = shared::words(pid, &maps, &handles, allowed);
    let of = |handle: u64| {
        let objects = words.iter().filter(|w| w.1 == handle).filter_map(|(at, _)| {
            let object = at.checked_sub(heap.layout.object.size)?;
            // What was freed has the allocator's list in place of its count of references.
            let references = heap.mem.u64(object).ok()?;
            let lives = python.layout.free_threaded || (1..1 << 32).contains(&references);
            let sem = synchronize::semlock(&heap, object).filter(|_| lives)?;
            Some(SemLock { count: sem.count, max: sem.max, last_tid: sem.last_tid })
        });
        objects.collect::<Vec<_>>()
    };
    let one = |(id, sharers, handle): (String, Option<Vec<i32>>, u64)| SemLocks {
        id,
        sharers,
        value: heap.mem.u32(handle).ok(),
        objects: of(handle),
        complete: complete && !python.layout.free_threaded,
    };
    Some(places.into_iter().map(one).collect())
}
