//! Frames and stacks, each kept once: a sample is then one number, and memory grows with what is different.

use rustc_hash::FxHashMap;

pub type FrameId = u32;
/// A stack is a node of a tree: its innermost frame and the stack of the caller.
pub type StackId = u32;

/// The stack without frames.
pub const EMPTY: StackId = 0;

/// What a frame of a profile shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Qualified, from 3.11 on.
    pub function: String,
    /// As the code object has it; empty for frames that are no code, as `<gc>`.
    pub file: String,
    /// The file from the directory on that Python imports it from.
    pub short: String,
    /// `None` where lines are not wanted, or the instruction has none.
    pub line: Option<u32>,
    /// Where the function begins.
    pub first_line: u32,
    /// The application's own code, not the standard library's or an installed package's.
    pub user: bool,
}

impl Frame {
    /// A frame of ours: a thread, a process, the garbage collector.
    pub fn label(text: impl Into<String>) -> Frame {
        let (file, short) = (String::new(), String::new());
        Frame { function: text.into(), file, short, line: None, first_line: 0, user: false }
    }
}

#[derive(Debug)]
pub struct Tree {
    frames: Vec<Frame>,
    by_frame: FxHashMap<Frame, FrameId>,
    /// Caller and innermost frame of each stack.
    stacks: Vec<(StackId, FrameId)>,
    by_stack: FxHashMap<(StackId, FrameId), StackId>,
}

impl Default for Tree {
    fn default() -> Self {
        Tree {
            frames: Vec::new(),
            by_frame: FxHashMap::default(),
            stacks: vec![(EMPTY, FrameId::MAX)],
            by_stack: FxHashMap::default(),
        }
    }
}

impl Tree {
    pub fn intern(&mut self, frame: Frame) -> FrameId {
        if let Some(known) = self.by_frame.get(&frame) {
            return *known;
        }
        let id = self.frames.len() as FrameId;
        self.frames.push(frame.clone());
        self.by_frame.insert(frame, id);
        id
    }

    /// The stack that has `frame` on top of `caller`.
    pub fn push(&mut self, caller: StackId, frame: FrameId) -> StackId {
        let next = self.stacks.len() as StackId;
        let stack = *self.by_stack.entry((caller, frame)).or_insert(next);
        if stack == next {
            self.stacks.push((caller, frame));
        }
        stack
    }

    pub fn frame(&self, id: FrameId) -> &Frame {
        &self.frames[id as usize]
    }

    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    pub fn caller(&self, stack: StackId) -> StackId {
        self.stacks[stack as usize].0
    }

    /// The innermost frame.
    pub fn top(&self, stack: StackId) -> Option<FrameId> {
        (stack != EMPTY).then(|| self.stacks[stack as usize].1)
    }

    /// Innermost first.
    pub fn walk(&self, stack: StackId) -> impl Iterator<Item = FrameId> + '_ {
        std::iter::successors(Some(stack), |s| Some(self.caller(*s))).map_while(|s| self.top(s))
    }

    /// The frames of `stack` on top of `base`.
    pub fn rebase(&mut self, base: StackId, stack: StackId) -> StackId {
        self.rebase_above(base, stack, EMPTY)
    }

    /// The frames of `stack` above `below`, which is one of its callers, on top of `base`.
    pub fn rebase_above(&mut self, base: StackId, stack: StackId, below: StackId) -> StackId {
        let callers = std::iter::successors(Some(stack), |s| Some(self.caller(*s)));
        let frames: Vec<FrameId> = callers.take_while(|s| *s != below).map_while(|s| self.top(s)).collect();
        frames.iter().rev().fold(base, |at, frame| self.push(at, *frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_are_one() {
        let mut tree = Tree::default();
        let [a, b] = ["a", "b"].map(|n| tree.intern(Frame::label(n)));
        assert_eq!(tree.intern(Frame::label("a")), a);
        let one = tree.push(EMPTY, a);
        let two = tree.push(one, b);
        assert_eq!(tree.push(one, b), two);
        assert_ne!(tree.push(EMPTY, b), two);
        assert_eq!(tree.walk(two).collect::<Vec<_>>(), [b, a]);
        assert_eq!(tree.walk(EMPTY).count(), 0);
        let on_b = tree.push(EMPTY, b);
        let moved = tree.rebase(on_b, two);
        assert_eq!(tree.walk(moved).collect::<Vec<_>>(), [b, a, b]);
        let cut = tree.rebase_above(on_b, two, one);
        assert_eq!(tree.walk(cut).collect::<Vec<_>>(), [b, b]);
    }
}
