//! Where an exception leads, and where a `finally` goes back to: what the flow of control needs beside the
//! instructions themselves.

use rustc_hash::FxHashMap;

use super::super::{Scene, exits};
use crate::python::opcodes::{Instruction, Op};
use crate::target::memory::Addr;

/// From 3.11 on.
pub fn by_table(scene: &Scene, code: Addr, instructions: &[Instruction]) -> Option<Vec<Option<usize>>> {
    let entries = exits::entries(scene.heap, code)?;
    let handler = |i: &Instruction| {
        let entry = entries.iter().find(|e| (e.start..e.end).contains(&i.offset))?;
        let target = instructions.partition_point(|i| i.offset < entry.target);
        Some(target).filter(|t| *t < instructions.len())
    };
    Some(instructions.iter().map(handler).collect())
}

/// Up to 3.10 blocks are set up and popped; how deep they are nested at an instruction does not depend
/// on the way to it.
pub fn by_blocks(code: &[Instruction]) -> Vec<Option<usize>> {
    let mut blocks: Vec<Option<Vec<usize>>> = vec![None; code.len()];
    let mut queue = vec![(0, Vec::new())];
    while let Some((at, stack)) = queue.pop() {
        if at >= code.len() || blocks[at].is_some() {
            continue;
        }
        let instruction = &code[at];
        let mut after = stack.clone();
        match instruction.op {
            Op::PopBlock => _ = after.pop(),
            _ if instruction.sets_up() => after.extend(instruction.target),
            _ => {}
        }
        if instruction.falls_through() || instruction.op == Op::CallFinally {
            queue.push((at + 1, after.clone()));
        }
        if let Some(to) = instruction.target {
            queue.push((to, if instruction.sets_up() { stack.clone() } else { after }));
        }
        blocks[at] = Some(stack);
    }
    blocks.into_iter().map(|b| b.and_then(|b| b.last().copied())).collect()
}

/// 3.8: END_FINALLY goes back to behind the CALL_FINALLY that led there. Each handler has one, and they
/// are nested by their places.
pub fn finally_returns(code: &[Instruction]) -> FxHashMap<usize, Vec<usize>> {
    let mut found: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    // How many blocks have their handler at an instruction, and where to go back to from there.
    let mut handlers: FxHashMap<usize, usize> = FxHashMap::default();
    let mut calls: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    for (at, instruction) in code.iter().enumerate() {
        match instruction.target {
            Some(handler) if instruction.sets_up() => *handlers.entry(handler).or_default() += 1,
            Some(handler) if instruction.op == Op::CallFinally => {
                calls.entry(handler).or_default().push(at + 1);
            }
            _ => {}
        }
    }
    let mut open: Vec<usize> = Vec::new();
    for (at, instruction) in code.iter().enumerate() {
        open.extend(std::iter::repeat_n(at, handlers.get(&at).copied().unwrap_or(0)));
        if instruction.op == Op::EndFinally
            && let Some(handler) = open.pop()
        {
            found.insert(at, calls.get(&handler).cloned().unwrap_or_default());
        }
    }
    found
}
