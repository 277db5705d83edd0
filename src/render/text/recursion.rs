//! Finds recursion in a stack: the same few functions calling each other over and over.

use crate::snapshot::Frame;
use std::ops::Range;

/// Functions that call each other in a circle, at most.
const LONGEST_CYCLE: usize = 8;
/// Less than this is not worth a line that says it is missing.
const FEWEST: usize = 10;

/// Frames that repeat those around them.
#[derive(Debug, PartialEq)]
pub(super) struct Repeat {
    pub hidden: Range<usize>,
    /// Number of functions in the circle.
    pub cycle: usize,
}

/// The runs to leave out; two rounds stay before each and one after it.
pub(super) fn repeats(frames: &[Frame]) -> Vec<Repeat> {
    if frames.len() < FEWEST + 3 {
        return Vec::new();
    }
    let keys: Vec<u64> = frames.iter().map(key).collect();
    // The line is no part of it: a function may call itself from several.
    in_keys(&keys, |a, b| {
        let (a, b) = (&frames[a], &frames[b]);
        a.function == b.function && a.file == b.file && a.qualname == b.qualname && a.kind == b.kind
    })
}

/// A number that functions of different names hardly ever share: a cheap hash, to be confirmed.
pub(super) fn key(frame: &Frame) -> u64 {
    let name = frame.function.as_bytes();
    let ends = |bytes: [u8; 8]| u64::from_le_bytes(bytes);
    let (first, last) = match (name.first_chunk(), name.last_chunk()) {
        (Some(first), Some(last)) => (ends(*first), ends(*last)),
        _ => {
            let mut padded = [0; 8];
            padded[..name.len()].copy_from_slice(name);
            (ends(padded), 0)
        }
    };
    let file = frame.file.as_ref().map_or(0, |file| file.len() as u64);
    (first ^ last.rotate_left(29) ^ file.rotate_left(53)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ name.len() as u64
}

fn in_keys(keys: &[u64], are_same: impl Fn(usize, usize) -> bool) -> Vec<Repeat> {
    let mut found = Vec::new();
    let mut at = 0;
    'stack: while at < keys.len() {
        for cycle in 1..=LONGEST_CYCLE {
            let same = (at..keys.len().saturating_sub(cycle))
                .take_while(|&at| keys[at] == keys[at + cycle] && are_same(at, at + cycle));
            let rounds = (same.count() + cycle) / cycle;
            let hidden = rounds.saturating_sub(3) * cycle;
            if hidden >= FEWEST {
                let start = at + 2 * cycle;
                found.push(Repeat { hidden: start..start + hidden, cycle });
                at = start + hidden + cycle;
                continue 'stack;
            }
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_keys(keys: &[u64]) -> Vec<Repeat> {
        super::in_keys(keys, |_, _| true)
    }

    #[test]
    fn a_function_that_calls_itself() {
        let keys: Vec<u64> = [7, 8].into_iter().chain([1; 900]).chain([9]).collect();
        assert_eq!(in_keys(&keys), [Repeat { hidden: 4..901, cycle: 1 }]);
    }

    #[test]
    fn functions_in_a_circle() {
        let keys: Vec<u64> = [9].into_iter().chain([1, 2, 3].repeat(100)).chain([1, 5]).collect();
        assert_eq!(in_keys(&keys), [Repeat { hidden: 7..298, cycle: 3 }]);
    }

    #[test]
    fn short_ones_stay() {
        assert_eq!(in_keys(&[1; 12]), []);
        assert_eq!(in_keys(&[1; 13]), [Repeat { hidden: 2..12, cycle: 1 }]);
        assert_eq!(in_keys(&[]), []);
    }
}
