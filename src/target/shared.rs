//! Memory that several processes map: the semaphores of `multiprocessing`, who has them, and where in a
//! process's memory something points to them.

use super::clocks::Allowance;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::files;
use super::find::{self, Looks};
use super::live::LiveMemory;
use super::maps::{self, Mapping};
use super::memory::Addr;
use crate::kin::Area;

/// The C library keeps each POSIX semaphore in a file of its own (sysdeps/pthread/sem_open.c).
const PREFIX: &str = "sem.";
const MAX_AREAS: usize = 4096;
/// Of one process that is searched.
const MAX_SEARCHED: u64 = 512 << 20;
const CHUNK: usize = 1 << 20;
const MAX_FOUND: usize = 256;
const MAX_RUNS: usize = 1 << 16;
const PAGE: u64 = 4096;

pub fn areas(maps: &[Mapping]) -> Vec<Area> {
    let is_semaphore = |m: &&Mapping| {
        m.writable && m.inode != 0 && m.path.rsplit('/').next().is_some_and(|name| name.starts_with(PREFIX))
    };
    let area = |m: &Mapping| Area {
        start: m.start - m.offset.min(m.start),
        end: m.end,
        file: format!("{}:{}", m.device, m.inode),
    };
    maps.iter().filter(is_semaphore).map(area).take(MAX_AREAS).collect()
}

/// Who maps one of these files: relatives are asked first. False: not everybody could be asked in time.
pub fn sharers(files: &[&str], relatives: &[i32], allowed: Allowance) -> (Vec<i32>, bool) {
    let mut pids: Vec<i32> = Vec::new();
    for &pid in relatives {
        if !pids.contains(&pid) {
            pids.push(pid);
        }
    }
    let first = pids.len();
    pids.extend(files::pids().into_iter().filter(|p| !relatives.contains(p)));
    let mut found = Vec::new();
    let mut complete = true;
    for (at, pid) in pids.into_iter().enumerate() {
        if at >= first && allowed.is_spent() {
            return (found, false);
        }
        match maps::read(pid) {
            Ok(maps) if areas(&maps).iter().any(|a| files.contains(&a.file.as_str())) => found.push(pid),
            Ok(_) => {}
            // A zombie maps nothing; and what is no Python has no SemLock.
            Err(_) => complete &= find::looks_like_python(pid) != Looks::Python,
        }
    }
    (found, complete)
}

/// Addresses of words in the private memory of a process that have one of these values. False: not all of
/// it could be searched in time.
pub fn words(pid: i32, maps: &[Mapping], values: &[u64], allowed: Allowance) -> (Vec<(Addr, u64)>, bool) {
    let memory = LiveMemory::new(pid);
    let Ok(pagemap) = File::open(format!("/proc/{pid}/pagemap")) else { return (Vec::new(), false) };
    let mut found = Vec::new();
    let mut searched = 0;
    let mut buffer = vec![0; CHUNK];
    // Objects lie in anonymous memory and on the heap.
    let holds_objects = |m: &&Mapping| {
        m.readable && m.writable && (m.inode == 0 || m.path == "[heap]") && m.path != "[stack]"
    };
    for area in maps.iter().filter(holds_objects) {
        let Some(runs) = present(&pagemap, area) else { return (found, false) };
        for (start, end) in runs {
            let mut at = start;
            while at < end {
                if allowed.is_spent() || searched > MAX_SEARCHED || found.len() > MAX_FOUND {
                    return (found, false);
                }
                let want = CHUNK.min((end - at) as usize);
                // Unmapped meanwhile: it holds nothing any more.
                let Ok(got) = memory.read_into(at, &mut buffer[..want]) else { break };
                for (i, word) in buffer[..got].chunks_exact(8).enumerate() {
                    let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
                    if values.contains(&word) {
                        found.push((at + 8 * i as u64, word));
                    }
                }
                searched += got as u64;
                if got < want {
                    break;
                }
                at += got as u64;
            }
        }
    }
    (found, true)
}

/// Runs of pages that have ever been written: to read the others would make the kernel map them
/// (Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bit 62 swapped).
fn present(pagemap: &File, area: &Mapping) -> Option<Vec<(Addr, Addr)>> {
    const ENTRIES: usize = 8192;
    let mut runs: Vec<(Addr, Addr)> = Vec::new();
    let mut buffer = vec![0; 8 * ENTRIES];
    let (mut page, last) = (area.start / PAGE, area.end / PAGE);
    while page < last {
        if runs.len() > MAX_RUNS {
            return None;
        }
        let want = ENTRIES.min((last - page) as usize);
        let got = pagemap.read_at(&mut buffer[..8 * want], 8 * page).ok()? / 8;
        if got == 0 {
            break;
        }
        for entry in buffer[..8 * got].chunks_exact(8) {
            if u64::from_le_bytes(entry.try_into().expect("eight bytes")) >> 62 != 0 {
                match runs.last_mut().filter(|run| run.1 == page * PAGE) {
                    Some(run) => run.1 += PAGE,
                    None => runs.push((page * PAGE, (page + 1) * PAGE)),
                }
            }
            page += 1;
        }
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn own_words_are_found() {
        let secret = Box::new(0x5eed_0000_1234_abcd_u64 ^ std::process::id() as u64);
        let pid = std::process::id() as i32;
        let maps = maps::read(pid).unwrap();
        let (found, complete) = words(pid, &maps, &[*secret], Allowance::of(Duration::from_secs(20)));
        assert!(complete);
        assert!(found.contains(&(&raw const *secret as u64, *secret)), "{found:?}");
    }
}
