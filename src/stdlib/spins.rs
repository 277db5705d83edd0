//! Loops that ask and do nothing: `while not done: pass`. Nothing in such a loop calls, stores or iterates, so that
//! only somebody else can end it, by changing what it looks at.

use serde_json::json;

use super::flow::Shape;
use super::{Scene, Seen, spoken};
use crate::python::opcodes::{self, Op};
use crate::snapshot::Wait;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_none() && t.raw.complete) {
        let Some(frame) = thread.frames.first() else { continue };
        let Some(shape) = scene.shapes.of(scene, frame.raw.code) else { continue };
        let Some(at) = opcodes::at(&shape.instructions, frame.offset) else { continue };
        let Some(range) = innermost_loop(&shape, at) else { continue };
        if !shape.instructions[range.clone()].iter().all(|i| only_looks(i.op)) {
            continue;
        }
        let names = scene.names(frame.raw.code);
        let looks_at = shape.instructions[range].iter().filter_map(|i| {
            let name =
                spoken::attribute(scene, i.op, i.arg).or_else(|| spoken::global(scene, i.op, i.arg))?;
            names.get(name as usize).cloned()
        });
        let looks_at: Vec<String> = looks_at.collect();
        let wait = Wait { frame: Some(0), detail: json!({ "spins": looks_at }), ..Wait::new("cpu", None) };
        seen.waits.entry(thread.raw.tstate).or_insert(wait);
    }
}

/// The shortest stretch of code around this instruction whose end jumps back to its start.
fn innermost_loop(shape: &Shape, at: usize) -> Option<std::ops::Range<usize>> {
    let code = &shape.instructions;
    let back = |end: usize| {
        let start = code[end].target.filter(|_| !code[end].sets_up())?;
        (start <= at).then_some(start..end + 1)
    };
    (at..code.len()).filter_map(back).min_by_key(|range| range.len())
}

fn only_looks(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        LoadFast
            | LoadFastCheck
            | LoadFastBorrow
            | LoadTwo
            | BorrowTwo
            | LoadDeref
            | LoadGlobal
            | LoadName
            | LoadConst
            | LoadSmallInt
            | LoadAttr
            | Subscript
            | BinaryOp
            | Compare
            | Is
            | Contains
            | ToBool
            | Not
            | NotTaken
            | Nop
            | Copy
            | DupTop
            | PopTop
            | IfFalse
            | IfTrue
            | IfNone
            | IfNotNone
            | ForwardIfFalse
            | ForwardIfTrue
            | ForwardIfNone
            | ForwardIfNotNone
            | BackwardIfFalse
            | BackwardIfTrue
            | BackwardIfNone
            | BackwardIfNotNone
            | FalseOrPop
            | TrueOrPop
            | JumpForward
            | JumpBackward
            | JumpBackwardQuietly
            | JumpAbsolute
            | ExtendedArg
    )
}
