//! What the bytes of a CPython process mean.

pub mod app;
pub mod asyncio;
pub mod code;
pub mod frames;
pub mod hash;
pub mod layout;
pub mod lines;
pub mod locals;
pub mod locate;
pub mod names;
pub mod objects;
pub mod offsets;
pub mod opcode_tables;
pub mod opcodes;
pub mod paths;
pub mod reprs;
mod stdlib_names;
pub mod sysinfo;
pub mod tables;
pub mod threads;
pub mod tids;

use std::cell::RefCell;

use crate::target::maps::Mapping;
use crate::target::memory::{Addr, Memory};
use hash::StrHash;
use layout::Layout;
use locate::{Located, OpenImage};
use objects::Heap;
use sysinfo::SysInfo;

/// A CPython that was found and understood.
#[derive(Clone, Debug)]
pub struct Python {
    pub runtime: Addr,
    pub layout: Layout,
    pub sys: SysInfo,
    pub hash: Option<StrHash>,
    pub located: Located,
}

/// The steps that failed, and in which images: most fail for the same reason in all of them.
#[derive(Debug, Default)]
pub struct Tried(Vec<(String, Vec<String>)>);

impl Tried {
    /// Of thousands of scanned places only the first few reasons tell anything.
    const REASONS: usize = 16;
    const IMAGES: usize = 3;

    pub fn note(&mut self, image: &str, why: impl Into<String>) {
        let why = why.into();
        match self.0.iter().position(|(known, _)| *known == why) {
            Some(at) => {
                let images = &mut self.0[at].1;
                if !images.iter().any(|known| known == image) {
                    images.push(image.to_owned());
                }
            }
            None if self.0.len() < Self::REASONS => self.0.push((why, vec![image.to_owned()])),
            None => {}
        }
    }

    fn lines(self) -> Vec<String> {
        let line = |(why, images): (String, Vec<String>)| {
            let shown = images.iter().take(Self::IMAGES).map(String::as_str).collect::<Vec<_>>().join(", ");
            match images.len().saturating_sub(Self::IMAGES) {
                0 => format!("{why}: {shown}"),
                more => format!("{why}: {shown} and {more} more"),
            }
        };
        self.0.into_iter().map(line).collect()
    }
}

/// Every step that failed on the way to an interpreter.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no Python interpreter was found in it")]
pub struct NotFound {
    pub tried: Vec<String>,
}

impl Python {
    /// Finds the interpreter of a live process.
    pub fn attach(
        mem: &dyn Memory,
        maps: &[Mapping],
        executable: Option<&str>,
        open: OpenImage,
    ) -> Result<Python, NotFound> {
        let tried = RefCell::new(Tried::default());
        for located in locate::candidates(mem, maps, executable, open, &tried) {
            match Python::understand(mem, &located) {
                Ok(mut python) => {
                    if python.layout.task.node != layout::NONE {
                        python.located.asyncio = asyncio::locate(maps, &python.located.image, open);
                        python.overlay_asyncio(mem);
                    }
                    return Ok(python);
                }
                Err(why) => tried.borrow_mut().note(&located.image, format!("{}: {why}", located.how)),
            }
        }
        Err(NotFound { tried: tried.into_inner().lines() })
    }

    /// Decodes the layout for a place and proves it by `sys.hexversion`.
    pub fn understand(mem: &dyn Memory, located: &Located) -> Result<Python, String> {
        let runtime = located.runtime;
        if runtime >= objects::USER_SPACE {
            return Err("no address of a program".into());
        }
        match offsets::decode(mem, runtime) {
            Ok((layout, hexversion)) => {
                let (sys, hash) = prove(mem, &layout, located)?;
                if sys.hexversion != hexversion {
                    return Err(format!(
                        "its debug offsets are of {hexversion:#x}, sys.hexversion is {:#x}",
                        sys.hexversion
                    ));
                }
                let mut python = Python { runtime, layout, sys, hash, located: located.clone() };
                python.overlay_asyncio(mem);
                Ok(python)
            }
            Err(offsets::OffsetsError::NoCookie) => Python::from_tables(mem, located),
            Err(e) => Err(e.to_string()),
        }
    }

    /// One that was proven before, by whoever kept this memory: what proved it may be of another moment.
    pub fn proven(
        mem: &dyn Memory,
        located: &Located,
        sys: SysInfo,
        hash: Option<StrHash>,
    ) -> Result<Python, String> {
        let runtime = located.runtime;
        let layout = match offsets::decode(mem, runtime) {
            Ok((layout, _)) => layout,
            Err(offsets::OffsetsError::NoCookie) => tables::table(sys.minor(), false)
                .ok_or_else(|| format!("Python {} is not one of the supported versions", sys.version()))?,
            Err(e) => return Err(e.to_string()),
        };
        let mut python = Python { runtime, layout, sys, hash, located: located.clone() };
        python.overlay_asyncio(mem);
        Ok(python)
    }

    /// Up to 3.12 the runtime does not say what it is: each table that may fit is tried.
    fn from_tables(mem: &dyn Memory, located: &Located) -> Result<Python, String> {
        let named = located.hexversion.map(|h| h >> 16 & 255).or(located.named_minor);
        let minors: Vec<u32> = match named {
            Some(minor) => vec![minor],
            None => (8..=12).rev().collect(),
        };
        let mut why = String::new();
        for minor in minors {
            let Some(layout) = tables::table(minor, false).filter(|_| minor <= 12) else {
                why = format!("Python 3.{minor} is not one of the supported versions, 3.8 to 3.15");
                continue;
            };
            match prove(mem, &layout, located) {
                Ok((sys, hash)) if sys.minor() == minor => {
                    return Ok(Python {
                        runtime: located.runtime,
                        layout,
                        sys,
                        hash,
                        located: located.clone(),
                    });
                }
                Ok((sys, _)) => why = format!("sys.hexversion is {:#x}, not of 3.{minor}", sys.hexversion),
                Err(e) => why = e,
            }
        }
        Err(why)
    }

    fn overlay_asyncio(&mut self, mem: &dyn Memory) {
        if let Some(at) = self.located.asyncio {
            let done = asyncio::overlay(mem, at, &mut self.layout);
            log::debug!(".AsyncioDebug at {at:#x}: {}", if done.is_some() { "used" } else { "not usable" });
        }
    }

    pub fn heap<'a>(&'a self, mem: &'a dyn Memory) -> Heap<'a> {
        Heap::new(mem, &self.layout).using(self.hash).frozen(self.sys.frozen_library())
    }
}

/// Reads `sys` with this layout; a value that cannot be a version of Python 3 is none.
fn prove(mem: &dyn Memory, layout: &Layout, located: &Located) -> Result<(SysInfo, Option<StrHash>), String> {
    let hash = located.hash_secret.and_then(|at| StrHash::read(mem, at, layout));
    let (sys, hash) = sysinfo::read(Heap::new(mem, layout), located.runtime, hash)?;
    if sys.hexversion >> 24 != 3 {
        return Err(format!("sys.hexversion is {:#x}", sys.hexversion));
    }
    Ok((sys, hash))
}
