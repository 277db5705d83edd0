//! Files as the target sees them: through its own root, and through its mappings where the path is
//! gone or another file stands there by now.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::maps::Mapping;
use crate::text::Text;

/// Opens the file behind a mapping. `/proc/PID/map_files` reaches deleted and replaced files too, but
/// wants CAP_CHECKPOINT_RESTORE; the paths count only if inode and device are those of the mapping.
pub fn image(pid: i32, mapping: &Mapping) -> Option<Mmap> {
    let by_range = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let file = File::open(by_range).ok().or_else(|| {
        // A chrooted target's paths in `maps` are relative to the reader's root, a container's to its own.
        [rooted(pid, &mapping.path), PathBuf::from(&mapping.path)].iter().find_map(|path| {
            let file = File::open(path).ok()?;
            let meta = file.metadata().ok()?;
            (meta.is_file() && meta.ino() == mapping.inode).then_some(file)
        })
    })?;
    // SAFETY: the map is read-only and private to this process. That somebody truncates the file
    // while we read it (SIGBUS) is the same risk that every linker and debugger takes.
    unsafe { Mmap::map(&file) }.ok()
}

/// `path` below the root of the target.
pub fn rooted(pid: i32, path: &str) -> PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.trim_start_matches('/'))
}

/// Source lines: of files, each read once, or as a capture keeps them.
pub enum Sources {
    Live(Files),
    Captured(BTreeMap<String, CapturedSource>),
}

/// What a capture keeps of a source file: the lines that frames stood on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedSource {
    pub path: Option<String>,
    pub lines: BTreeMap<u32, String>,
}

impl Sources {
    pub fn live(pid: i32, cwd: Option<String>) -> Self {
        Sources::Live(Files { pid, cwd, files: Default::default() })
    }

    /// The path a code object's file name stands for, if there is such a file.
    pub fn path(&mut self, file: &str) -> Option<Text> {
        match self {
            Sources::Live(files) => files.source(file).map(|s| s.path.clone()),
            Sources::Captured(files) => files.get(file)?.path.as_deref().map(Text::from),
        }
    }

    /// The text of a line, without its indentation; the first line is 1.
    pub fn line(&mut self, file: &str, line: u32) -> Option<Text> {
        match self {
            Sources::Live(files) => files.source(file)?.line(line),
            Sources::Captured(files) => files.get(file)?.lines.get(&line).map(|l| l.as_str().into()),
        }
    }
}

/// Source files below the root of a live target.
pub struct Files {
    pid: i32,
    cwd: Option<String>,
    files: rustc_hash::FxHashMap<String, Option<Source>>,
}

struct Source {
    /// As the target would name it.
    path: Text,
    text: Mmap,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl Source {
    fn line(&self, line: u32) -> Option<Text> {
        let start = *self.starts.get((line as usize).checked_sub(1)?)?;
        let end = self.starts.get(line as usize).copied().unwrap_or(self.text.len());
        let text = String::from_utf8_lossy(&self.text[start..end.min(start + MAX_LINE)]);
        Some(text.trim().into())
    }
}

/// Larger than any source file; a log that somebody named `.py` must not fill our memory.
const MAX_SOURCE: u64 = 16 << 20;
const MAX_LINE: usize = 4096;

impl Files {
    fn source(&mut self, file: &str) -> Option<&Source> {
        if !self.files.contains_key(file) {
            let source = self.open(file);
            self.files.insert(file.to_owned(), source);
        }
        self.files.get(file)?.as_ref()
    }

    fn open(&self, file: &str) -> Option<Source> {
        // `<string>`, `<frozen importlib._bootstrap>`: no file.
        if file.is_empty() || file.starts_with('<') {
            return None;
        }
        let path = if file.starts_with('/') {
            file.to_owned()
        } else {
            // A script started by a relative path; right as long as the target has not changed its directory.
            format!("{}/{file}", self.cwd.as_deref()?)
        };
        let opened = File::open(rooted(self.pid, &path)).ok()?;
        let meta = opened.metadata().ok()?;
        if !meta.is_file() || meta.len() == 0 || meta.len() > MAX_SOURCE {
            return None;
        }
        // SAFETY: as in `image`.
        let text = unsafe { Mmap::map(&opened) }.ok()?;
        let mut starts = vec![0];
        starts.extend(memchr::memchr_iter(b'\n', &text).map(|i| i + 1));
        Some(Source { path: path.into(), text, starts })
    }
}
