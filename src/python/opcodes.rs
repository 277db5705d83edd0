//! Bytecode as it lies in memory, read back as the compiler wrote it: specialised and instrumented
//! opcodes (3.11, 3.12 on) become their originals, inline caches are stepped over, jumps lead to
//! instructions. Only what tells the flow of control and the calls of methods is told apart.

use super::layout::Frames;
use super::objects::Heap;
use super::opcode_tables as tables;
use crate::target::memory::Addr;

/// A function of this many bytes is a table, not a program.
const MAX_CODE: usize = 256 << 10;

macro_rules! ops {
    ($($op:ident $name:literal),* $(,)?) => {
        /// The opcodes that are told apart, by their names in `dis`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op { $($op,)* Other }

        fn op_named(name: &str) -> Option<Op> {
            match name { $($name => Some(Op::$op),)* "OTHER" => Some(Op::Other), _ => None }
        }
    };
}

ops! {
    LoadFast "LOAD_FAST", LoadFastCheck "LOAD_FAST_CHECK", LoadFastBorrow "LOAD_FAST_BORROW",
    LoadTwo "LOAD_FAST_LOAD_FAST", BorrowTwo "LOAD_FAST_BORROW_LOAD_FAST_BORROW",
    StoreFast "STORE_FAST", DeleteFast "DELETE_FAST", StoreLoad "STORE_FAST_LOAD_FAST",
    StoreTwo "STORE_FAST_STORE_FAST", LoadDeref "LOAD_DEREF", StoreDeref "STORE_DEREF", LoadClosure "LOAD_CLOSURE",
    LoadGlobal "LOAD_GLOBAL", StoreGlobal "STORE_GLOBAL", LoadName "LOAD_NAME", StoreName "STORE_NAME",
    LoadConst "LOAD_CONST", LoadSmallInt "LOAD_SMALL_INT", LoadCommon "LOAD_COMMON_CONSTANT",
    LoadAttr "LOAD_ATTR", LoadMethod "LOAD_METHOD", StoreAttr "STORE_ATTR",
    InplaceAdd "INPLACE_ADD", InplaceSubtract "INPLACE_SUBTRACT", Swap "SWAP", RotTwo "ROT_TWO",
    PushNull "PUSH_NULL", PopTop "POP_TOP", Copy "COPY", DupTop "DUP_TOP", Call "CALL", CallKw "CALL_KW",
    CallMethod "CALL_METHOD", CallFunction "CALL_FUNCTION", CallFunctionKw "CALL_FUNCTION_KW",
    Precall "PRECALL", KwNames "KW_NAMES", Subscript "BINARY_SUBSCR", BinaryOp "BINARY_OP",
    Compare "COMPARE_OP", Is "IS_OP", Contains "CONTAINS_OP", ToBool "TO_BOOL", Not "UNARY_NOT",
    NotTaken "NOT_TAKEN", Nop "NOP", IfFalse "POP_JUMP_IF_FALSE", IfTrue "POP_JUMP_IF_TRUE",
    IfNone "POP_JUMP_IF_NONE", IfNotNone "POP_JUMP_IF_NOT_NONE",
    ForwardIfFalse "POP_JUMP_FORWARD_IF_FALSE", ForwardIfTrue "POP_JUMP_FORWARD_IF_TRUE",
    ForwardIfNone "POP_JUMP_FORWARD_IF_NONE", ForwardIfNotNone "POP_JUMP_FORWARD_IF_NOT_NONE",
    BackwardIfFalse "POP_JUMP_BACKWARD_IF_FALSE", BackwardIfTrue "POP_JUMP_BACKWARD_IF_TRUE",
    BackwardIfNone "POP_JUMP_BACKWARD_IF_NONE", BackwardIfNotNone "POP_JUMP_BACKWARD_IF_NOT_NONE",
    FalseOrPop "JUMP_IF_FALSE_OR_POP", TrueOrPop "JUMP_IF_TRUE_OR_POP", NoMatch "JUMP_IF_NOT_EXC_MATCH",
    JumpForward "JUMP_FORWARD", JumpBackward "JUMP_BACKWARD",
    JumpBackwardQuietly "JUMP_BACKWARD_NO_INTERRUPT", JumpAbsolute "JUMP_ABSOLUTE", ForIter "FOR_ITER",
    Send "SEND", Return "RETURN_VALUE", ReturnConst "RETURN_CONST", Raise "RAISE_VARARGS",
    Reraise "RERAISE", SetupFinally "SETUP_FINALLY", SetupWith "SETUP_WITH",
    SetupAsyncWith "SETUP_ASYNC_WITH", PopBlock "POP_BLOCK", CallFinally "CALL_FINALLY",
    EndFinally "END_FINALLY", ExtendedArg "EXTENDED_ARG", Executor "ENTER_EXECUTOR",
    Line "INSTRUMENTED_LINE", Instruction "INSTRUMENTED_INSTRUCTION",
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Bytes from the start of the code.
    pub offset: i64,
    pub op: Op,
    pub arg: u32,
    /// Index of the instruction that it may jump to, or whose block it sets up.
    pub target: Option<usize>,
}

impl Instruction {
    /// Whether the next instruction may follow it.
    pub fn falls_through(&self) -> bool {
        use Op::*;
        !matches!(
            self.op,
            JumpForward
                | JumpBackward
                | JumpBackwardQuietly
                | JumpAbsolute
                | CallFinally
                | Return
                | ReturnConst
                | Raise
                | Reraise
        )
    }

    /// Jumps if what is on top of the stack is so.
    pub fn jumps_if(&self) -> Option<bool> {
        use Op::*;
        match self.op {
            IfTrue | ForwardIfTrue | BackwardIfTrue | TrueOrPop => Some(true),
            IfFalse | ForwardIfFalse | BackwardIfFalse | FalseOrPop => Some(false),
            _ => None,
        }
    }

    pub fn sets_up(&self) -> bool {
        matches!(self.op, Op::SetupFinally | Op::SetupWith | Op::SetupAsyncWith)
    }
}

/// What the numbers of one version mean.
struct Table {
    /// By opcode: what it is, and the code units of inline cache behind it.
    ops: [(Op, u8); 256],
}

fn table(minor: u32) -> Option<Table> {
    let text = match minor {
        8 => tables::PYTHON_3_8,
        9 => tables::PYTHON_3_9,
        10 => tables::PYTHON_3_10,
        11 => tables::PYTHON_3_11,
        12 => tables::PYTHON_3_12,
        13 => tables::PYTHON_3_13,
        14 => tables::PYTHON_3_14,
        15 => tables::PYTHON_3_15,
        _ => return None,
    };
    let mut ops = [(Op::Other, 0); 256];
    for entry in text.split(';') {
        let mut words = entry.split_whitespace();
        let op = op_named(words.next()?)?;
        let (mut caches, mut numbers) = (0, Vec::new());
        for word in words {
            match word.strip_prefix('/') {
                Some(count) => caches = count.parse().ok()?,
                None => {
                    let (first, last) = word.split_once('-').unwrap_or((word, word));
                    numbers.extend(first.parse::<u8>().ok()?..=last.parse().ok()?);
                }
            }
        }
        numbers.into_iter().for_each(|number| ops[usize::from(number)] = (op, caches));
    }
    Some(Table { ops })
}

/// The instructions of a code object. `None` where a part is not understood: a wrong flow of control is
/// worse than none.
pub fn read(heap: &Heap, code: Addr) -> Option<Vec<Instruction>> {
    let layout = heap.layout;
    if layout.free_threaded {
        // A thread runs a copy of its own.
        return None;
    }
    let table = table(layout.minor)?;
    let (bytes, monitored) = match layout.frames {
        Frames::Objects { .. } => (heap.bytes(heap.ptr(code + layout.code.bytecode)?, MAX_CODE)?.0, None),
        Frames::Interpreter { .. } => {
            let units = usize::try_from(heap.size(code)?).ok()?;
            let bytes = heap.mem.bytes(code + layout.code.bytecode, units.min(MAX_CODE / 2) * 2).ok()?;
            (bytes, Monitored::of(heap, code))
        }
    };
    let mut found: Vec<Instruction> = Vec::new();
    let mut jumps: Vec<(usize, i64)> = Vec::new();
    let (mut at, mut extended) = (0, 0u32);
    while at + 1 < bytes.len() {
        let (mut op, mut caches) = table.ops[usize::from(bytes[at])];
        if matches!(op, Op::Line | Op::Instruction) {
            let original = monitored.as_ref()?.original(heap, at / 2, op, &table)?;
            (op, caches) = table.ops[usize::from(original)];
        }
        if matches!(op, Op::Executor | Op::Line | Op::Instruction) {
            return None;
        }
        let arg = extended << 8 | u32::from(bytes[at + 1]);
        let offset = at as i64;
        at += 2 + 2 * usize::from(caches);
        if op == Op::ExtendedArg {
            extended = arg;
            continue;
        }
        extended = 0;
        if let Some(to) = jump(layout.minor, op, arg, at as i64) {
            jumps.push((found.len(), to));
        }
        found.push(Instruction { offset, op, arg, target: None });
    }
    for (from, to) in jumps {
        // A jump to an instruction with a long argument leads to its EXTENDED_ARG.
        let target = found.partition_point(|i| i.offset < to);
        found[from].target = Some(target).filter(|t| *t < found.len());
    }
    Some(found)
}

/// Where it may jump to, bytes. `next` is what follows it.
fn jump(minor: u32, op: Op, arg: u32, next: i64) -> Option<i64> {
    use Op::*;
    let unit = if minor >= 10 { 2 } else { 1 };
    let arg = i64::from(arg) * unit;
    Some(match op {
        JumpForward | ForIter | Send | SetupFinally | SetupWith | SetupAsyncWith | CallFinally
        | ForwardIfFalse | ForwardIfTrue | ForwardIfNone | ForwardIfNotNone => next + arg,
        JumpBackward | JumpBackwardQuietly | BackwardIfFalse | BackwardIfTrue | BackwardIfNone
        | BackwardIfNotNone => next - arg,
        JumpAbsolute | NoMatch => arg,
        IfFalse | IfTrue | IfNone | IfNotNone | FalseOrPop | TrueOrPop if minor >= 11 => next + arg,
        IfFalse | IfTrue | IfNone | IfNotNone | FalseOrPop | TrueOrPop => arg,
        _ => return None,
    })
}

/// Index of the instruction that a frame stands on; its offset may point into the caches behind it.
pub fn at(code: &[Instruction], offset: i64) -> Option<usize> {
    code.partition_point(|i| i.offset <= offset).checked_sub(1)
}

/// `_PyCoMonitoringData` (Include/cpython/code.h, later pycore_instruments.h), where the opcodes that
/// instrumentation has replaced are kept: 3.12 on.
struct Monitored {
    /// Start of the entries, and their size.
    lines: Option<(Addr, u64)>,
    instructions: Option<Addr>,
}

impl Monitored {
    fn of(heap: &Heap, code: Addr) -> Option<Monitored> {
        // `_co_monitoring`; `lines` and `per_instruction_opcodes` in it.
        let (at, lines, instructions) = match heap.layout.minor {
            12 => (168, 40, 56),
            13 => (176, 32, 48),
            14 => (176, 96, 112),
            15 => (176, 104, 120),
            _ => return None,
        };
        let data = heap.ptr(code + at)?;
        let entries = heap.mem.u64(data + lines).ok().filter(|p| *p != 0);
        let lines = entries.and_then(|p| {
            // From 3.14 on, and in late 3.13, the first byte says how long an entry is; before, it is the
            // first opcode, which none of these numbers is.
            let size = heap.mem.u8(p).ok()?;
            if heap.layout.minor > 12 && (2..=6).contains(&size) {
                Some((p + 1, u64::from(size)))
            } else {
                (heap.layout.minor < 14).then_some((p, 2))
            }
        });
        Some(Monitored { lines, instructions: heap.mem.u64(data + instructions).ok().filter(|p| *p != 0) })
    }

    fn original(&self, heap: &Heap, unit: usize, mut op: Op, table: &Table) -> Option<u8> {
        let mut number = 0;
        if op == Op::Line {
            let (entries, size) = self.lines?;
            number = heap.mem.u8(entries + size * unit as u64).ok()?;
            op = table.ops[usize::from(number)].0;
        }
        if op == Op::Instruction {
            number = heap.mem.u8(self.instructions? + unit as u64).ok()?;
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_well_formed() {
        for minor in 8..=15 {
            let table = table(minor).unwrap_or_else(|| panic!("3.{minor}"));
            let number = |op| table.ops.iter().position(|o| o.0 == op);
            for op in [Op::LoadFast, Op::LoadGlobal, Op::LoadAttr, Op::Return, Op::ExtendedArg] {
                assert!(number(op).is_some(), "3.{minor}: {op:?}");
            }
            let (_, caches) = table.ops[number(Op::LoadAttr).expect("it is there")];
            assert_eq!(caches > 0, minor >= 11, "3.{minor}");
            assert!(table.ops.iter().all(|o| o.1 < 16), "3.{minor}");
        }
    }
}
