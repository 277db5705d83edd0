//! Reading the small files of `/proc/PID` fast: a directory handle, files opened below it, no allocation.
//!
//! The handle also pins the process: once it has ended, every read below it fails (ESRCH or ENOENT), even when
//! its pid has been given to somebody else.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode};

/// The reads of one file go into a buffer of this size; whatever is longer is read with [`ProcDir::read_all`].
pub const SMALL: usize = 4096;

/// `/proc/PID`, held open.
#[derive(Debug)]
pub struct ProcDir {
    fd: OwnedFd,
}

impl ProcDir {
    pub fn process(pid: i32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        with_path(format_args!("/proc/{pid}"), |path| {
            Ok(Self { fd: nix::fcntl::open(path, flags, Mode::empty())? })
        })
    }

    /// A file of one thread. By its whole path: a handle for each thread would cost two calls more.
    pub fn open_of_task(&self, tid: i32, name: &CStr) -> io::Result<File> {
        with_path(format_args!("task/{tid}/{}", name.to_string_lossy()), |path| self.open(path))
    }

    pub fn read_of_task<'b>(&self, tid: i32, name: &CStr, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let length = self.open_of_task(tid, name)?.read_at(buffer, 0)?;
        Ok(&buffer[..length])
    }

    pub fn open(&self, name: &CStr) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::openat(self.fd.as_fd(), name, flags, Mode::empty())?.into())
    }

    /// The file's beginning, as much as one `read` into `buffer` gives (seq_file fills it up to a page).
    pub fn read<'b>(&self, name: &CStr, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let file = self.open(name)?;
        let length = file.read_at(buffer, 0)?;
        Ok(&buffer[..length])
    }

    /// The whole file, but not more than `cap` bytes.
    pub fn read_all(&self, name: &CStr, cap: u64) -> io::Result<Vec<u8>> {
        // With room at once it is one read, not one for each doubling of a Vec.
        let mut bytes = Vec::with_capacity(SMALL);
        self.open(name)?.take(cap).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What a link such as `exe`, `cwd`, `fd/3` or `ns/net` says, as text.
    pub fn link(&self, name: &CStr) -> io::Result<String> {
        let target = nix::fcntl::readlinkat(self.fd.as_fd(), name)?;
        Ok(String::from_utf8(target.into_vec())
            .unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
    }

    /// `stat` of a link itself.
    pub fn lstat(&self, name: &CStr) -> io::Result<FileStat> {
        Ok(nix::sys::stat::fstatat(self.fd.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// `stat` of what a name leads to, links followed.
    pub fn stat<P: nix::NixPath + ?Sized>(&self, name: &P) -> io::Result<FileStat> {
        Ok(nix::sys::stat::fstatat(self.fd.as_fd(), name, AtFlags::empty())?)
    }
}

/// Builds a short path on the stack.
pub fn with_path<T>(
    path: std::fmt::Arguments<'_>,
    then: impl FnOnce(&CStr) -> io::Result<T>,
) -> io::Result<T> {
    let mut buffer = [0u8; 64];
    let mut rest = &mut buffer[..63];
    rest.write_fmt(path)?;
    let path =
        CStr::from_bytes_until_nul(&buffer).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    then(path)
}

/// The numeric entries of a directory: pids, tids or file descriptors, in ascending order.
pub fn numbers(path: &str) -> io::Result<Vec<i32>> {
    let mut found: Vec<i32> = std::fs::read_dir(path)?
        .map_while(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// All processes that this `/proc` shows.
pub fn pids() -> Vec<i32> {
    numbers("/proc").unwrap_or_default()
}
