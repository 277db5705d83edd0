//! Loops that ask and do nothing: `while not done: pass`, `while thread.is_alive(): tries += 1`. Nothing in such a loop
//! calls but what only asks, stores but how often it did, or iterates, so that only somebody else can end it, by
//! changing what it looks at.

use std::ops::Range;

use serde_json::json;

use super::flow::Shape;
use super::{FrameScene, Scene, Seen, spoken};
use crate::python::opcodes::{self, Instruction, Op};
use crate::snapshot::Wait;

/// Methods that answer at once, and change nothing.
const ASKS: &[&str] = &[
    "is_set",
    "empty",
    "full",
    "qsize",
    "done",
    "running",
    "cancelled",
    "is_alive",
    "locked",
    "ready",
    "poll",
];

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in scene.threads.iter().filter(|t| t.syscall.is_none() && t.raw.complete) {
        // What asks may be a function of the standard library.
        let own = thread.frames.iter().position(|f| scene.is_user(f)).unwrap_or(0);
        let asks = |inner: usize| ASKS.contains(&thread.frames[inner].code.name.as_str());
        let index = if own > 0 && asks(own - 1) { own } else { 0 };
        let Some(looks_at) = thread.frames.get(index).and_then(|frame| asked_in_loop(scene, frame)) else {
            continue;
        };
        let wait =
            Wait { frame: Some(index), detail: json!({ "spins": looks_at }), ..Wait::new("cpu", None) };
        seen.waits.entry(thread.raw.tstate).or_insert(wait);
    }
}

/// What the loop looks at in which a frame is, if it does nothing else.
fn asked_in_loop(scene: &Scene, frame: &FrameScene) -> Option<Vec<String>> {
    let shape = scene.shapes.of(scene, frame.raw.code)?;
    let at = opcodes::at(&shape.instructions, frame.offset)?;
    let code = &shape.instructions[innermost_loop(&shape, at)?];
    let names = scene.names(frame.raw.code);
    let name = |i: &Instruction| {
        let name = spoken::attribute(scene, i.op, i.arg).or_else(|| spoken::global(scene, i.op, i.arg))?;
        names.get(name as usize)
    };
    let is_question = |i: &&Instruction| name(i).is_some_and(|n| ASKS.contains(&n.as_str()));
    let questions = code.iter().filter(is_question).count();
    let calls = code.iter().filter(|i| is_call(i.op)).count();
    let mut counted = Vec::new();
    for (at, i) in code.iter().enumerate() {
        if let Some(counter) = stored(i) {
            counts(scene, code, at, counter).then_some(())?;
            counted.push(counter);
        } else if !(only_looks(i.op) || is_call(i.op) && i.arg == 0 && calls <= questions) {
            return None;
        }
    }
    let is_counter = |i: &Instruction| counted.iter().any(|counter| is_load_of(scene, i, *counter));
    Some(code.iter().filter(|i| stored(i).is_none() && !is_counter(i)).filter_map(name).cloned().collect())
}

/// What is given a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Variable(u32),
    Attribute(u32),
    Global(u32),
}

fn stored(i: &Instruction) -> Option<Stored> {
    match i.op {
        Op::StoreFast => Some(Stored::Variable(i.arg)),
        Op::StoreLoad => Some(Stored::Variable(i.arg >> 4)),
        Op::StoreAttr => Some(Stored::Attribute(i.arg)),
        Op::StoreGlobal | Op::StoreName => Some(Stored::Global(i.arg)),
        _ => None,
    }
}

fn is_load_of(scene: &Scene, i: &Instruction, of: Stored) -> bool {
    use Op::{BorrowTwo, LoadFast, LoadFastBorrow, LoadFastCheck, LoadTwo, StoreLoad};
    match of {
        Stored::Variable(slot) => match i.op {
            LoadFast | LoadFastCheck | LoadFastBorrow => i.arg == slot,
            LoadTwo | BorrowTwo => i.arg >> 4 == slot || i.arg & 15 == slot,
            StoreLoad => i.arg & 15 == slot,
            _ => false,
        },
        Stored::Attribute(name) => spoken::attribute(scene, i.op, i.arg) == Some(name),
        Stored::Global(name) => stored(i).is_none() && spoken::global(scene, i.op, i.arg) == Some(name),
    }
}

/// What is stored there is its own old value and a constant, and nobody else in the loop looks at it.
fn counts(scene: &Scene, code: &[Instruction], at: usize, counter: Stored) -> bool {
    use Op::{BinaryOp, InplaceAdd, InplaceSubtract, LoadConst, LoadSmallInt, RotTwo, Swap};
    let mut before = code[..at].iter().rev().filter(|i| !matches!(i.op, Swap | RotTwo));
    let is = |i: Option<&Instruction>, ops: &[Op]| i.is_some_and(|i| ops.contains(&i.op));
    let loads = code.iter().filter(|i| is_load_of(scene, i, counter)).count();
    is(before.next(), &[BinaryOp, InplaceAdd, InplaceSubtract])
        && is(before.next(), &[LoadConst, LoadSmallInt])
        && before.next().is_some_and(|i| is_load_of(scene, i, counter))
        && loads == code.iter().filter(|i| stored(i) == Some(counter)).count()
}

fn is_call(op: Op) -> bool {
    matches!(op, Op::Call | Op::CallFunction | Op::CallMethod)
}

/// The shortest stretch of code around this instruction whose end jumps back to its start.
fn innermost_loop(shape: &Shape, at: usize) -> Option<Range<usize>> {
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
            | LoadMethod
            | PushNull
            | Precall
            | Swap
            | RotTwo
            | InplaceAdd
            | InplaceSubtract
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
