//! `/proc/PID/maps`: which files and areas the address space is made of.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::memory::Addr;

/// One line of `/proc/PID/maps` (fs/proc/task_mmu.c).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mapping {
    pub start: Addr,
    pub end: Addr,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
    /// Offset in the file.
    pub offset: u64,
    /// `major:minor` as the kernel prints it.
    pub device: String,
    pub inode: u64,
    /// File or area (`[heap]`), without the ` (deleted)` mark.
    pub path: String,
    pub deleted: bool,
}

impl Mapping {
    pub fn contains(&self, addr: Addr) -> bool {
        (self.start..self.end).contains(&addr)
    }
}

/// Reads the maps of a process.
pub fn read(pid: i32) -> std::io::Result<Vec<Mapping>> {
    // The size of such a file reads 0: with a buffer that is large at once there are fewer calls.
    let mut text = Vec::with_capacity(64 * 1024);
    std::fs::File::open(format!("/proc/{pid}/maps"))?.read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail;
        word
    };
    let (start, end) = field().split_once('-')?;
    let perms = field().as_bytes();
    let offset = u64::from_str_radix(field(), 16).ok()?;
    let device = field().to_owned();
    let inode = field().parse().ok()?;
    // The path is padded with spaces in front and may have spaces inside.
    let path = rest.trim_start();
    let (path, deleted) = match path.strip_suffix(" (deleted)") {
        Some(p) => (p, true),
        None => (path, false),
    };
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        readable: perms.first() == Some(&b'r'),
        writable: perms.get(1) == Some(&b'w'),
        executable: perms.get(2) == Some(&b'x'),
        offset,
        device,
        inode,
        path: path.to_owned(),
        deleted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_and_a_deleted_file() {
        let m = parse(
            "7f00-7fff rw-p 00001000 fd:00 42                         /opt/my  app/lib.so (deleted)\n\
             ffff-fffff r--p 00000000 00:00 0 \nnonsense\n",
        );
        assert_eq!(m.len(), 2);
        assert_eq!(m[0].path, "/opt/my  app/lib.so");
        assert!(m[0].deleted && m[0].writable && !m[0].executable);
        assert_eq!((m[0].start, m[0].offset, m[0].inode), (0x7f00, 0x1000, 42));
        assert_eq!(m[1].path, "");
    }
}
