//! The flow of control through a code object: from each instruction to those that may come next, from the
//! instructions, the exception table (3.11 on) or the block stack.

mod blocks;

use std::cell::RefCell;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::Scene;
use crate::python::layout::Frames;
use crate::python::opcodes::{self, Instruction, Op};
use crate::target::memory::Addr;

/// What a code object says by itself.
pub struct Shape {
    pub instructions: Vec<Instruction>,
    /// Where each instruction's exception is handled.
    pub handlers: Vec<Option<usize>>,
    /// Up to 3.8: where a `finally` that was called goes back to.
    returns: FxHashMap<usize, Vec<usize>>,
}

/// Shapes of one look, each read once.
#[derive(Default)]
pub struct Shapes(RefCell<FxHashMap<Addr, Option<Rc<Shape>>>>);

impl Shapes {
    pub fn of(&self, scene: &Scene, code: Addr) -> Option<Rc<Shape>> {
        let mut known = self.0.borrow_mut();
        known.entry(code).or_insert_with(|| Shape::read(scene, code).map(Rc::new)).clone()
    }
}

impl Shape {
    fn read(scene: &Scene, code: Addr) -> Option<Shape> {
        let instructions = opcodes::read(scene.heap, code)?;
        let (handlers, returns) = match scene.heap.layout.frames {
            Frames::Objects { .. } => {
                (blocks::by_blocks(&instructions), blocks::finally_returns(&instructions))
            }
            Frames::Interpreter { .. } => {
                (blocks::by_table(scene, code, &instructions)?, FxHashMap::default())
            }
        };
        Some(Shape { instructions, handlers, returns })
    }

    /// What may come after an instruction that raises nothing.
    pub fn next(&self, at: usize) -> Vec<usize> {
        let instruction = &self.instructions[at];
        let mut to = Vec::new();
        if instruction.falls_through() {
            to.push(at + 1);
        }
        if !instruction.sets_up() {
            to.extend(instruction.target);
        }
        to.extend(self.returns.get(&at).into_iter().flatten());
        to.retain(|n| *n < self.instructions.len());
        to
    }

    /// All that may come after this instruction, also with an exception.
    pub fn ahead(&self, start: usize) -> impl Iterator<Item = usize> {
        let mut seen = vec![false; self.instructions.len()];
        let mut queue: Vec<usize> = self.next(start);
        queue.extend(self.handlers[start]);
        std::iter::from_fn(move || {
            let at =
                std::iter::from_fn(|| queue.pop()).find(|at| !std::mem::replace(&mut seen[*at], true))?;
            queue.extend(self.next(at));
            queue.extend(self.handlers[at]);
            Some(at)
        })
    }

    /// What may come from here on, this instruction included, unless something is raised.
    fn plainly_ahead(&self, start: usize) -> Vec<bool> {
        let mut seen = vec![false; self.instructions.len()];
        let mut left = vec![start];
        while let Some(at) = left.pop() {
            if !std::mem::replace(&mut seen[at], true) {
                left.extend(self.next(at));
            }
        }
        seen
    }

    /// Stands in a loop, and where it comes to without an exception: what was raised there before is dealt with.
    pub fn is_in_plain_loop(&self, at: usize) -> bool {
        self.plainly_ahead(0)[at] && self.ahead(at).any(|n| n == at)
    }

    /// Whether the code may return from here, unless something is raised: out of `while True` it does not.
    pub fn may_return(&self, start: usize) -> bool {
        let ahead = self.plainly_ahead(start);
        let returns = |op: Op| matches!(op, Op::Return | Op::ReturnConst);
        ahead.iter().zip(&self.instructions).any(|(met, i)| *met && returns(i.op))
    }

    /// The instruction that looks at what a call returned, and whether it jumps if that was true.
    pub fn test_after(&self, call: usize) -> Option<(usize, bool)> {
        let mut truth = true;
        for (i, instruction) in self.instructions.iter().enumerate().skip(call + 1).take(6) {
            match instruction.op {
                Op::ToBool | Op::Nop | Op::NotTaken => {}
                Op::Not => truth = !truth,
                Op::StoreFast => return Some((i, true)),
                _ => return instruction.jumps_if().map(|wanted| (i, wanted == truth)),
            }
        }
        None
    }

    /// The variables, as slots, that may still be read by who stands at this offset and
    /// goes on, also with an exception.
    pub fn reads_ahead(&self, scene: &Scene, code: Addr, offset: i64) -> Option<Vec<usize>> {
        let start = opcodes::at(&self.instructions, offset)?;
        let mut slots = Vec::new();
        for at in self.ahead(start) {
            let Instruction { op, arg, .. } = self.instructions[at];
            match op {
                Op::LoadFast | Op::LoadFastCheck | Op::LoadFastBorrow => slots.push(arg as usize),
                Op::LoadTwo | Op::BorrowTwo => slots.extend([arg as usize >> 4, arg as usize & 15]),
                Op::StoreLoad => slots.push(arg as usize & 15),
                Op::LoadDeref | Op::LoadClosure => slots.push(deref_slot(scene, code, arg)),
                _ => {}
            }
        }
        slots.sort_unstable();
        slots.dedup();
        Some(slots)
    }
}

/// What LOAD_DEREF's argument counts: up to 3.10 the cells alone, which stand behind the locals.
pub fn deref_slot(scene: &Scene, code: Addr, arg: u32) -> usize {
    let locals = match scene.heap.layout.frames {
        Frames::Objects { .. } => scene.heap.mem.i32(code + scene.heap.layout.code.nlocals),
        Frames::Interpreter { .. } => Ok(0),
    };
    arg as usize + locals.unwrap_or(0).max(0) as usize
}
