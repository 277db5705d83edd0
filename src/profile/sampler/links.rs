//! Who is seen to call whom. What a program does once it does again: so the pairs of frames that follow each other
//! in true stacks are soon all known, and one that is not among them is probably of two moments.

use rustc_hash::FxHashSet;

use crate::profile::reader::RawFrame;
use crate::target::memory::Addr;

/// A place in a caller, and the code that runs on top of it. The outermost frame has no caller.
type Link = (Option<RawFrame>, Addr);

#[derive(Default)]
pub struct Links {
    known: FxHashSet<Link>,
}

impl Links {
    /// Frames of a stack that was at one moment, innermost first.
    pub fn learn(&mut self, raw: &[RawFrame]) {
        let mut caller = None;
        for frame in raw.iter().rev() {
            self.known.insert((caller, frame.code));
            caller = Some(*frame);
        }
    }

    /// Whether each frame is one that its caller is known to call. Of the outermost `same` ones it is known already.
    pub fn have(&self, raw: &[RawFrame], same: usize) -> bool {
        let outermost_first = |index: usize| raw[raw.len() - 1 - index];
        let mut caller = same.checked_sub(1).map(outermost_first);
        for index in same..raw.len() {
            let frame = outermost_first(index);
            if !self.known.contains(&(caller, frame.code)) {
                return false;
            }
            caller = Some(frame);
        }
        true
    }

    /// Of code objects that are no more.
    pub fn forget(&mut self, gone: &FxHashSet<Addr>) {
        let is_gone = |code: Addr| gone.contains(&code);
        self.known.retain(|(caller, code)| !is_gone(*code) && !caller.is_some_and(|c| is_gone(c.code)));
    }
}
