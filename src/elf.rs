//! Symbols and sections of ELF images.
//!
//! Two sources, since each may be missing: the file (sections, the full symbol table; parsed with
//! goblin, lazily: nothing that is not asked for is read), and the image as it is mapped, where the
//! dynamic symbols stay even when the file has been deleted, replaced or stripped.

use goblin::container::{Container, Ctx};
use goblin::elf::header::Header;
use goblin::elf::program_header::{PT_DYNAMIC, PT_LOAD, ProgramHeader};
use goblin::elf::section_header::{SHT_DYNSYM, SHT_SYMTAB, SectionHeader};
use goblin::elf::sym::Symtab;

use crate::target::memory::{Addr, Memory};

/// Nothing sane has more; a lying header must not cost us memory.
const MAX_HEADERS: usize = 4096;

/// What a file says, as offsets from its lowest loaded address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Offset from the load base.
    pub offset: u64,
    pub size: u64,
}

/// A parsed ELF file.
pub struct File<'a> {
    bytes: &'a [u8],
    ctx: Ctx,
    sections: Vec<SectionHeader>,
    names: &'a [u8],
    lowest: u64,
}

impl<'a> File<'a> {
    /// Reads header and section table; `None` if this is no 64-bit ELF file or it is cut short.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = goblin::elf::Elf::parse_header(bytes).ok()?;
        let ctx = context(&header)?;
        let segments = ProgramHeader::parse(
            bytes,
            header.e_phoff as usize,
            (header.e_phnum as usize).min(MAX_HEADERS),
            ctx,
        )
        .ok()?;
        let lowest = lowest_load(&segments)?;
        let sections = SectionHeader::parse(
            bytes,
            header.e_shoff as usize,
            (header.e_shnum as usize).min(MAX_HEADERS),
            ctx,
        )
        .unwrap_or_default();
        let names = sections
            .get(header.e_shstrndx as usize)
            .and_then(|s| bytes.get(s.file_range()?))
            .unwrap_or_default();
        Some(File { bytes, ctx, sections, names, lowest })
    }

    pub fn section(&self, name: &str) -> Option<Section> {
        let s = self.sections.iter().find(|s| names_it(self.names, s.sh_name, name))?;
        Some(Section { offset: s.sh_addr.checked_sub(self.lowest)?, size: s.sh_size })
    }

    /// Offset of a symbol from the load base: dynamic symbols first, then the full table.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        [SHT_DYNSYM, SHT_SYMTAB].into_iter().find_map(|kind| self.symbol_in(kind, name))
    }

    fn symbol_in(&self, kind: u32, name: &str) -> Option<u64> {
        let table = self.sections.iter().find(|s| s.sh_type == kind)?;
        let strings = self.sections.get(table.sh_link as usize)?;
        let strings = self.bytes.get(strings.file_range()?)?;
        let count = table.sh_size.checked_div(table.sh_entsize)? as usize;
        let symbols = Symtab::parse(self.bytes, table.sh_offset as usize, count, self.ctx).ok()?;
        symbols
            .iter()
            .find(|s| s.st_value != 0 && names_it(strings, s.st_name, name))
            .and_then(|s| s.st_value.checked_sub(self.lowest))
    }
}

/// Whether the NUL-terminated string at `offset` of a string table is `name`.
fn names_it(strings: &[u8], offset: usize, name: &str) -> bool {
    let Some(at) = strings.get(offset..) else { return false };
    at.len() > name.len() && at.starts_with(name.as_bytes()) && at[name.len()] == 0
}

fn context(header: &Header) -> Option<Ctx> {
    let container = header.container().ok()?;
    let endian = header.endianness().ok()?;
    (container == Container::Big).then(|| Ctx::new(container, endian))
}

/// Page-aligned address of the lowest segment: what the mapping with file offset 0 stands for.
fn lowest_load(segments: &[ProgramHeader]) -> Option<u64> {
    segments.iter().filter(|p| p.p_type == PT_LOAD).map(|p| p.p_vaddr & !0xfff).min()
}

/// The dynamic symbol table of an image as it is mapped at `base`.
pub struct Mapped<'a> {
    mem: &'a dyn Memory,
    /// Difference between run-time and link-time addresses.
    pub bias: u64,
    strings: Addr,
    symbols: Addr,
    gnu_hash: Addr,
    /// Loaded, writable data as run-time ranges: where a runtime can be scanned for.
    pub data: Vec<(Addr, u64)>,
}

impl<'a> Mapped<'a> {
    /// Reads headers from the mapping with file offset 0. `None` if it is no 64-bit ELF image or has
    /// no dynamic section.
    pub fn parse(mem: &'a dyn Memory, base: Addr) -> Option<Self> {
        let head = mem.bytes(base, 64).ok()?;
        let header = goblin::elf::Elf::parse_header(&head).ok()?;
        let ctx = context(&header)?;
        let count = (header.e_phnum as usize).min(64);
        let table = mem.bytes(base.checked_add(header.e_phoff)?, count * 56).ok()?;
        let segments = ProgramHeader::parse(&table, 0, count, ctx).ok()?;
        let bias = base.wrapping_sub(lowest_load(&segments)?);
        let data = segments
            .iter()
            .filter(|p| p.p_type == PT_LOAD && p.is_write())
            .map(|p| (p.p_vaddr.wrapping_add(bias), p.p_memsz))
            .collect();
        let dynamic = segments.iter().find(|p| p.p_type == PT_DYNAMIC)?;
        let mut mapped = Mapped { mem, bias, strings: 0, symbols: 0, gnu_hash: 0, data };
        let at = dynamic.p_vaddr.wrapping_add(bias);
        let words = mem.bytes(at, (dynamic.p_memsz as usize).min(16 * 256)).ok()?;
        for pair in words.chunks_exact(16) {
            let word = |i: usize| u64::from_le_bytes(pair[i..i + 8].try_into().expect("8 bytes"));
            // glibc relocates these pointers in place, musl and the kernel's vdso do not.
            let address = |v: u64| if v < bias { v.wrapping_add(bias) } else { v };
            match word(0) {
                0 => break,
                5 => mapped.strings = address(word(8)),
                6 => mapped.symbols = address(word(8)),
                0x6fff_fef5 => mapped.gnu_hash = address(word(8)),
                _ => {}
            }
        }
        Some(mapped)
    }

    /// Run-time address of a dynamic symbol, found through the GNU hash table: a handful of reads.
    pub fn symbol(&self, name: &str) -> Option<Addr> {
        if self.gnu_hash == 0 || self.symbols == 0 || self.strings == 0 {
            return None;
        }
        let h = name.bytes().fold(5381u32, |h, c| h.wrapping_mul(33).wrapping_add(c as u32));
        let buckets = self.mem.u32(self.gnu_hash).ok()? as u64;
        let first = self.mem.u32(self.gnu_hash + 4).ok()?;
        let bloom = self.mem.u32(self.gnu_hash + 8).ok()? as u64;
        if buckets == 0 {
            return None;
        }
        let table = self.gnu_hash + 16 + bloom * 8;
        let chains = table + buckets * 4;
        let start = self.mem.u32(table + (h as u64 % buckets) * 4).ok()?;
        if start < first {
            return None;
        }
        // A chain is a few entries long; a corrupt one must end all the same.
        for index in start..start.saturating_add(4096) {
            let entry = self.mem.u32(chains + (index - first) as u64 * 4).ok()?;
            if entry | 1 == h | 1 {
                let symbol = self.symbols + index as u64 * 24;
                let at = self.strings + self.mem.u32(symbol).ok()? as u64;
                let value = self.mem.u64(symbol + 8).ok()?;
                if value != 0 && self.mem.c_string(at, 256).ok()? == name.as_bytes() {
                    return Some(value.wrapping_add(self.bias));
                }
            }
            if entry & 1 == 1 {
                return None;
            }
        }
        None
    }
}
