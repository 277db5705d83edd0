//! Line tables: from the offset of an instruction to the line it stands on.
//!
//! Three formats: `co_lnotab` (3.8, 3.9), the ranges of PEP 626 (3.10), the location table (3.11 on).
//! All are pure over bytes, stop at the end of the table and never believe it.

use super::layout::LineTable;

/// The line of the instruction at byte `offset`, or `None` if it has none (or the table is garbage).
///
/// `first` is `co_firstlineno`; an offset below 0 means that no instruction has run yet.
pub fn line_at(format: LineTable, table: &[u8], first: i32, offset: i64) -> Option<u32> {
    let line = if offset < 0 {
        Some(first as i64)
    } else {
        match format {
            LineTable::Lnotab => lnotab(table, first as i64, offset),
            LineTable::Ranges => ranges(table, first as i64, offset),
            LineTable::Locations => locations(table, first as i64, offset),
        }
    };
    line.and_then(|l| u32::try_from(l).ok())
}

/// Pairs of (address step, signed line step); Objects/lnotab_notes.txt.
fn lnotab(table: &[u8], first: i64, offset: i64) -> Option<i64> {
    let (mut address, mut line) = (0i64, first);
    for pair in table.chunks_exact(2) {
        address += pair[0] as i64;
        if address > offset {
            break;
        }
        line += pair[1] as i8 as i64;
    }
    Some(line)
}

/// Pairs of (length, signed line step), −128 for "no line"; Objects/lnotab_notes.txt of 3.10.
fn ranges(table: &[u8], first: i64, offset: i64) -> Option<i64> {
    let (mut end, mut line) = (0i64, first);
    for pair in table.chunks_exact(2) {
        end += pair[0] as i64;
        let step = pair[1] as i8;
        if step != -128 {
            line += step as i64;
        }
        if offset < end {
            return (step != -128).then_some(line);
        }
    }
    None
}

/// Entries that begin with a byte of bit 7 set, kind in bits 3–6, length in code units − 1 in bits
/// 0–2, then numbers by kind; Objects/locations.md.
fn locations(table: &[u8], first: i64, offset: i64) -> Option<i64> {
    let mut at = 0;
    let (mut end, mut line) = (0i64, first);
    while at < table.len() {
        let head = table[at];
        at += 1;
        let kind = head >> 3 & 15;
        let has_line = match kind {
            15 => false,
            13 | 14 => {
                line += signed(varint(table, &mut at)?);
                true
            }
            10..=12 => {
                line += (kind - 10) as i64;
                true
            }
            _ => true,
        };
        end += ((head & 7) as i64 + 1) * 2;
        if offset < end {
            return has_line.then_some(line);
        }
        // Columns and end lines do not matter here: on to the next byte that begins an entry.
        while at < table.len() && table[at] & 0x80 == 0 {
            at += 1;
        }
    }
    None
}

/// Six bits a byte, least significant first, bit 6 says that more follow.
fn varint(table: &[u8], at: &mut usize) -> Option<u64> {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = *table.get(*at)?;
        *at += 1;
        value |= ((byte & 63) as u64).checked_shl(shift)?;
        if byte & 64 == 0 {
            return Some(value);
        }
        shift += 6;
    }
}

fn signed(value: u64) -> i64 {
    let magnitude = (value >> 1) as i64;
    if value & 1 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lnotab_steps_back_and_over_long_gaps() {
        // 3.9: offset 0 line 10, offset 4 line 9, offset 6 line 9 + 127 + 50.
        let table = [4, 0xff, 2, 127, 0, 50];
        let at = |o| line_at(LineTable::Lnotab, &table, 10, o);
        assert_eq!(
            [at(-1), at(0), at(4), at(6), at(900)],
            [Some(10), Some(10), Some(9), Some(186), Some(186)]
        );
    }

    #[test]
    fn ranges_have_instructions_without_a_line() {
        let table = [4, 1, 2, 0x80, 6, 0xfe];
        let at = |o| line_at(LineTable::Ranges, &table, 10, o);
        assert_eq!([at(0), at(4), at(6), at(12)], [Some(11), None, Some(9), None]);
    }

    #[test]
    fn locations_of_every_kind() {
        // long form +300 (2 units), one-line +2, none, no-columns −5.
        let table = [0xf1, 0x58, 0x09, 0, 1, 1, 0xe0, 3, 4, 0xf8, 0xe8, 0x0b];
        let at = |o| line_at(LineTable::Locations, &table, 10, o);
        assert_eq!(
            [at(0), at(2), at(4), at(6), at(8), at(10)],
            [Some(310), Some(310), Some(312), None, Some(307), None]
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(table: Vec<u8>, first: i32, offset in -2i64..5000) {
            for format in [LineTable::Lnotab, LineTable::Ranges, LineTable::Locations] {
                line_at(format, &table, first, offset);
            }
        }
    }
}
