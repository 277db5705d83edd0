//! The hash of a `str`, so that a key of a dict is found in a few reads instead of by looking at all
//! of them. CPython salts it with a secret of the process (`_Py_HashSecret`, an exported symbol;
//! Python/pyhash.c). Nothing depends on it: where secret or algorithm are not what they should be,
//! all keys are looked at.

use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::{SipHasher13, SipHasher24};

use super::layout::Layout;
use crate::target::memory::{Addr, Memory};

/// The secret of one process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrHash {
    keys: (u64, u64),
    /// SipHash-1-3 from 3.11 on, 2-4 before.
    short: bool,
}

impl StrHash {
    pub fn read(mem: &dyn Memory, secret: Addr, layout: &Layout) -> Option<Self> {
        Some(StrHash { keys: (mem.u64(secret).ok()?, mem.u64(secret + 8).ok()?), short: layout.minor >= 11 })
    }

    /// The hash as a str object caches it.
    pub fn of(&self, text: &str) -> u64 {
        let (k0, k1) = self.keys;
        let hash = match (text.is_empty(), self.short) {
            (true, _) => 0,
            (_, true) => {
                let mut hasher = SipHasher13::new_with_keys(k0, k1);
                hasher.write(text.as_bytes());
                hasher.finish()
            }
            (_, false) => {
                let mut hasher = SipHasher24::new_with_keys(k0, k1);
                hasher.write(text.as_bytes());
                hasher.finish()
            }
        };
        // −1 stands for an error.
        if hash == u64::MAX { u64::MAX - 1 } else { hash }
    }
}
