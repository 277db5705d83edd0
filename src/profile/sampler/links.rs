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
    /// Places that somebody was called from, and places that a thread was at itself.
    callers: FxHashSet<RawFrame>,
    leaves: FxHashSet<RawFrame>,
}

impl Links {
    /// Frames of a stack that was at one moment, innermost first.
    pub fn learn(&mut self, raw: &[RawFrame]) {
        let mut caller = None;
        for frame in raw.iter().rev() {
            self.known.insert((caller, frame.code));
            self.callers.extend(caller);
            caller = Some(*frame);
        }
        self.leaves.extend(caller);
    }

    /// How many frames, counted from the outermost, make a stack that can be: each is one that its caller is known
    /// to call; of the outermost `same` ones that is known already. `None` if there is no such stack.
    ///
    /// What was copied last may be of another moment than what is below it: where a frame does not follow from its
    /// caller, and the caller stands at a place where threads stand themselves and never call, that one was the
    /// innermost frame when it was copied.
    pub fn stack(&self, raw: &[RawFrame], same: usize) -> Option<usize> {
        let outermost_first = |index: usize| raw[raw.len() - 1 - index];
        let mut caller = same.checked_sub(1).map(outermost_first);
        for index in same..raw.len() {
            let frame = outermost_first(index);
            if !self.known.contains(&(caller, frame.code)) {
                let is_leaf = |c: &RawFrame| self.leaves.contains(c) && !self.callers.contains(c);
                return caller.filter(is_leaf).map(|_| index);
            }
            caller = Some(frame);
        }
        Some(raw.len())
    }

    /// Of code objects that are no more.
    pub fn forget(&mut self, gone: &FxHashSet<Addr>) {
        let is_gone = |code: Addr| gone.contains(&code);
        self.known.retain(|(caller, code)| !is_gone(*code) && !caller.is_some_and(|c| is_gone(c.code)));
        self.callers.retain(|frame| !is_gone(frame.code));
        self.leaves.retain(|frame| !is_gone(frame.code));
    }
}
