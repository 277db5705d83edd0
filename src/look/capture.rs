//! Capture files: what one look read, so that the same report can be made from it on any machine.
//!
//! A line of magic, a line of JSON (facts, places, what was proven, source lines, the table of memory
//! ranges), then the bytes of the ranges one after the other.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};

use super::window::Stacks;
use crate::python::Python;
use crate::python::hash::StrHash;
use crate::python::locate::Located;
use crate::python::objects::Heap;
use crate::python::sysinfo::SysInfo;
use crate::python::threads::{self, RawThread};
use crate::snapshot::{Address, Look, Process, Read, Skipped, Snapshot};
use crate::target::cached::CachedMemory;
use crate::target::facts::ProcessFacts;
use crate::target::image::Image;
use crate::target::sources::CapturedSource;
use crate::text::Text;

const MAGIC: &str = "hangscope-capture/1";
/// A header of this size would describe a million threads.
const MAX_HEADER: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no capture of hangscope")]
    NotACapture,
    #[error("it was written by another version of the format: {0}")]
    OtherVersion(String),
    #[error("it is cut short or damaged: {0}")]
    Damaged(String),
}

/// Everything of one report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capture {
    pub hangscope: String,
    pub captured_at: String,
    pub host: String,
    pub looks: Vec<Look>,
    pub skipped: Vec<Skipped>,
    pub processes: Vec<CapturedProcess>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedProcess {
    pub facts: ProcessFacts,
    /// Where the interpreter is; `None` if the memory could not be read.
    pub located: Option<Located>,
    /// What `sys` said when the interpreter was found, which may be of another moment than the memory.
    #[serde(default)]
    pub sys: Option<SysInfo>,
    #[serde(default)]
    pub hash: Option<StrHash>,
    /// How exact each stack is, by thread state.
    pub reads: Vec<(Address, Read)>,
    /// The task of each thread state, as the target numbers it.
    pub tids: Vec<(Address, i32)>,
    /// Threads that were proven in an earlier attempt than the one whose memory is here.
    pub threads: Vec<RawThread>,
    /// Threads that moved while the memory here was read, and what was said of how it was read.
    #[serde(default)]
    pub stale: Vec<Address>,
    #[serde(default)]
    pub doubted: Vec<Address>,
    #[serde(default)]
    pub notes: Vec<String>,
    /// File → (path, line → text).
    pub sources: BTreeMap<String, CapturedSource>,
    /// The table of ranges in the file; `memory` in the process.
    ranges: Vec<(Address, u64)>,
    #[serde(skip)]
    pub memory: Image,
}

impl CapturedProcess {
    pub fn new(
        facts: &ProcessFacts,
        python: &Python,
        stacks: &Stacks,
        memory: &CachedMemory,
        process: &Process,
    ) -> Self {
        let memory = memory.recorded();
        let mut sources: BTreeMap<String, CapturedSource> = BTreeMap::new();
        let of_tasks = process.tasks.iter().flat_map(|t| &t.frames);
        for frame in process.threads.iter().flat_map(|t| &t.frames).chain(of_tasks) {
            let Some(file) = &frame.file else { continue };
            let source = sources.entry(file.to_string()).or_default();
            source.path = frame.path.as_ref().map(Text::to_string);
            if let Some((line, text)) = frame.line.zip(frame.source.as_ref()) {
                source.lines.insert(line, text.to_string());
            }
        }
        let (again, _) = threads::read(&Heap::new(&memory, &python.layout), python.runtime);
        let again: Vec<&RawThread> = again.iter().flat_map(|i| &i.threads).collect();
        let kept = stacks.interpreters.iter().flat_map(|i| &i.threads).filter(|t| !again.contains(t));
        let mut reads: Vec<(Address, Read)> = stacks.reads.iter().map(|(a, r)| (Address(*a), *r)).collect();
        reads.sort_unstable_by_key(|r| r.0);
        let mut tids: Vec<(Address, i32)> = stacks.tids.iter().map(|(a, t)| (Address(*a), *t)).collect();
        tids.sort_unstable();
        CapturedProcess {
            facts: facts.clone(),
            located: Some(python.located.clone()),
            sys: Some(python.sys.clone()),
            hash: python.hash,
            reads,
            tids,
            threads: kept.cloned().collect(),
            stale: stacks.stale.iter().map(|a| Address(*a)).collect(),
            doubted: stacks.doubted.iter().map(|a| Address(*a)).collect(),
            notes: stacks.notes.clone(),
            sources,
            ranges: Vec::new(),
            memory,
        }
    }

    pub fn of_facts(facts: &ProcessFacts) -> Self {
        CapturedProcess { facts: facts.clone(), ..CapturedProcess::default() }
    }
}

impl Capture {
    /// Takes over what belongs to the report as a whole.
    pub fn of_snapshot(&mut self, snapshot: &Snapshot) {
        self.hangscope = env!("CARGO_PKG_VERSION").to_owned();
        self.captured_at = snapshot.captured_at.clone();
        self.host = snapshot.host.clone();
        self.looks = snapshot.looks.clone();
        self.skipped = snapshot.skipped.clone();
    }

    /// The very same snapshot, read again from the memory that was kept.
    pub fn replay(&self, options: &super::Options) -> Result<Snapshot, String> {
        let mut processes =
            self.processes.iter().map(|p| super::captured(p, options)).collect::<Result<Vec<_>, _>>()?;
        super::across::settle(&mut processes);
        Ok(Snapshot {
            captured_at: self.captured_at.clone(),
            host: self.host.clone(),
            looks: self.looks.clone(),
            processes,
            skipped: self.skipped.clone(),
        })
    }

    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut header = self.clone();
        for process in &mut header.processes {
            process.ranges = process.memory.iter().map(|(a, b)| (Address(a), b.len() as u64)).collect();
        }
        writeln!(out, "{MAGIC}")?;
        serde_json::to_writer(&mut *out, &header)?;
        writeln!(out)?;
        for (_, bytes) in self.processes.iter().flat_map(|p| p.memory.iter()) {
            out.write_all(bytes)?;
        }
        out.flush()
    }

    pub fn read(input: &mut dyn BufRead) -> Result<Capture, CaptureError> {
        let mut magic = Vec::new();
        input.take(64).read_until(b'\n', &mut magic)?;
        match String::from_utf8_lossy(&magic).trim_end() {
            MAGIC => {}
            other if other.starts_with("hangscope-capture/") => {
                return Err(CaptureError::OtherVersion(other.to_owned()));
            }
            _ => return Err(CaptureError::NotACapture),
        }
        let mut header = Vec::new();
        input.take(MAX_HEADER).read_until(b'\n', &mut header)?;
        let damaged = |why: &dyn std::fmt::Display| CaptureError::Damaged(why.to_string());
        let mut capture: Capture = serde_json::from_slice(&header).map_err(|e| damaged(&e))?;
        for process in &mut capture.processes {
            for (addr, len) in std::mem::take(&mut process.ranges) {
                let mut bytes = Vec::new();
                // A length that lies brings no more than what the file has.
                input.take(len).read_to_end(&mut bytes)?;
                if bytes.len() as u64 != len {
                    return Err(damaged(&format_args!("the memory at {:#x} is missing", addr.0)));
                }
                process.memory.add(addr.0, bytes);
            }
        }
        Ok(capture)
    }
}
