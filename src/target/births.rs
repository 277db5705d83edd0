//! Whether any process or thread was born since the last time one asked: `/proc/loadavg` ends with the pid that
//! was given out last.

use std::fs::File;
use std::os::unix::fs::FileExt;

#[derive(Debug, Default)]
pub struct Births {
    loadavg: Option<File>,
    last: Vec<u8>,
}

impl Births {
    pub fn watch() -> Births {
        Births { loadavg: File::open("/proc/loadavg").ok(), last: Vec::new() }
    }

    /// Always, where nothing is known.
    pub fn any(&mut self) -> bool {
        let mut buffer = [0; 128];
        let Some(length) = self.loadavg.as_ref().and_then(|f| f.read_at(&mut buffer, 0).ok()) else {
            return true;
        };
        let last = buffer[..length].rsplit(|b| *b == b' ').next().unwrap_or_default();
        let changed = last != self.last;
        if changed {
            self.last = last.to_vec();
        }
        changed
    }
}
