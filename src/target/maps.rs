//! `/proc/PID/maps`: which files and areas the address space is made of.

use std::io::Read;

use memchr::memchr;
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
    Ok(parse(&text))
}

fn parse(text: &[u8]) -> Vec<Mapping> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// A dump of three milliseconds reads hundreds of these lines: so byte by byte.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let (start, rest) = hex(line)?;
    let (end, rest) = hex(rest.strip_prefix(b"-")?)?;
    let (perms, rest) = rest.strip_prefix(b" ")?.split_at_checked(4)?;
    let (offset, rest) = hex(rest.strip_prefix(b" ")?)?;
    let rest = rest.strip_prefix(b" ")?;
    let (device, rest) = rest.split_at(memchr(b' ', rest)?);
    let rest = &rest[1..];
    let (inode, rest) = rest.split_at(memchr(b' ', rest).unwrap_or(rest.len()));
    // The path is padded with spaces in front and may have spaces inside.
    let path = rest.trim_ascii_start();
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Mapping {
        start,
        end,
        readable: perms[0] == b'r',
        writable: perms[1] == b'w',
        executable: perms[2] == b'x',
        offset,
        device: text(device),
        inode: std::str::from_utf8(inode).ok()?.parse().ok()?,
        path: text(path),
        deleted,
    })
}

/// A number in front, and what follows it.
fn hex(text: &[u8]) -> Option<(u64, &[u8])> {
    let length = text.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(text.len());
    let digit = |byte: &u8| u64::from(char::from(*byte).to_digit(16).unwrap_or(0));
    let (digits, rest) = text.split_at(length);
    (1..=16).contains(&length).then(|| (digits.iter().fold(0, |n, byte| n << 4 | digit(byte)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_and_a_deleted_file() {
        let m = parse(
            b"7f00-7fff rw-p 00001000 fd:00 42                         /opt/my  app/lib.so (deleted)\n\
             ffff-fffff r--p 00000000 00:00 0 \nnonsense\n",
        );
        assert_eq!(m.len(), 2);
        assert_eq!(m[0].path, "/opt/my  app/lib.so");
        assert!(m[0].deleted && m[0].writable && !m[0].executable);
        assert_eq!((m[0].start, m[0].offset, m[0].inode), (0x7f00, 0x1000, 42));
        assert_eq!(m[1].path, "");
    }
}
