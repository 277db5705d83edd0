//! Finds recursion in a stack: the same few functions calling each other over and over.

use crate::snapshot::Frame;
use std::hash::{DefaultHasher, Hash, Hasher};
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
    // The line is no part of it: a function may call itself from several.
    let keys: Vec<u64> = frames
        .iter()
        .map(|frame| {
            let mut hasher = DefaultHasher::new();
            (&frame.function, &frame.file, frame.kind as u8).hash(&mut hasher);
            hasher.finish()
        })
        .collect();
    in_keys(&keys)
}

fn in_keys(keys: &[u64]) -> Vec<Repeat> {
    let mut found = Vec::new();
    let mut at = 0;
    'stack: while at < keys.len() {
        for cycle in 1..=LONGEST_CYCLE {
            let same =
                keys[at..].iter().zip(keys.get(at + cycle..).unwrap_or(&[])).take_while(|(a, b)| a == b);
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
