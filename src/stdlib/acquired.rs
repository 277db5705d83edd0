//! Who has taken a lock by plain `acquire()`. Nothing on the stack says so, but the bytecode does: on
//! every path from the start of a function to where its frame stands, this very lock was acquired and
//! not released. That is an inference, so "likely" at best: another thread may have released it.
//!
//! The flow of control comes from the instructions, the exception table (3.11 on) or the block stack;
//! what `x.acquire` means, from the values that the variables have now. A variable that was assigned
//! after the call proves nothing of what it held before, so what it acquired then is forgotten. Calls of
//! Python functions that speak of `acquire` or `release` are followed a few levels down: a class that
//! takes its lock in one method and blocks in another.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::exits;
use super::locks::{self, Kind};
use super::{FrameScene, Known, Scene};
use crate::python::layout::Frames;
use crate::python::opcodes::{self, Instruction, Op};
use crate::target::memory::Addr;

/// Functions that are followed into each other.
const MAX_DEPTH: u32 = 3;
/// Functions that are analysed in one look.
const BUDGET: u32 = 3_000;
/// Arguments of one call.
const MAX_ARGUMENTS: usize = 16;

/// What is known of a lock at one place: a set of the ways in which it may have come there.
type State = u64;
const FREE: State = 1;
/// Acquired by a callee that has returned.
const BY_CALLEE: u32 = 60;
/// Whether it was acquired cannot be told.
const UNCLEAR: State = 1 << 61;
/// Held by whoever called the function.
const BY_CALLER: u32 = 62;

/// One function, and what its variables are.
pub struct Body {
    code: Addr,
    globals: Addr,
    variables: Variables,
}

enum Variables {
    Frame { slots: Addr, known: Rc<Known> },
    Call { arguments: Vec<Option<Addr>>, closure: Vec<Addr>, first_free: usize },
}

/// What one instruction does to a lock.
#[derive(Clone, Debug)]
enum Event {
    Acquire {
        object: Addr,
        base: u32,
        conditional: bool,
    },
    Release {
        object: Addr,
    },
    /// The call was lost sight of.
    Unclear {
        object: Addr,
    },
    /// A variable got another value: what was done with its old one was done to something else.
    Store {
        base: u32,
    },
    Call {
        function: Addr,
        arguments: Vec<Option<Addr>>,
    },
}

/// A function's instructions, and what they do.
pub struct Analysis {
    body: Body,
    instructions: Rc<Vec<Instruction>>,
    events: FxHashMap<usize, Vec<Event>>,
    /// Where each instruction's exception is handled.
    handlers: Vec<Option<usize>>,
    /// Up to 3.8: where a `finally` that was called goes back to.
    returns: FxHashMap<usize, Vec<usize>>,
}

/// What an instruction has pushed, as far as it is known.
#[derive(Clone, Debug, Default)]
struct Value {
    object: Option<Addr>,
    /// The variable that it came from.
    base: u32,
    /// The attribute that it was read from, and its name.
    attribute: Option<(Addr, Rc<str>)>,
    number: Option<i64>,
    null: bool,
}

/// A frame on every path to which a lock was acquired.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Index of the thread and of its frame.
    pub thread: usize,
    pub frame: usize,
    /// Of the acquire().
    pub line: Option<u32>,
}

/// What is asked of a look; functions are read once.
#[derive(Default)]
pub struct Acquired {
    code: RefCell<FxHashMap<Addr, Option<Rc<Vec<Instruction>>>>>,
    frames: RefCell<FxHashMap<Addr, Option<Rc<Analysis>>>>,
    spent: Cell<u32>,
}

/// What threads' frames say of one lock.
#[derive(Default)]
pub struct Verdict {
    pub holders: Vec<Taken>,
    /// Threads that will release it without having acquired it: it is a signal.
    pub signallers: Vec<usize>,
}

/// Asks all frames that may have something to do with it. `object` is the lock, or the semaphore.
pub fn of_lock(scene: &Scene, object: Addr) -> Verdict {
    let mut verdict = Verdict::default();
    for (t, thread) in scene.threads.iter().enumerate() {
        let mut may_signal = false;
        let mut holds = false;
        for (f, frame) in thread.frames.iter().enumerate().take(64) {
            if !is_worth_it(scene, frame) || locks::released_by_wait(scene, thread, f, object) {
                continue;
            }
            let Some(analysis) = of_frame(scene, frame) else { continue };
            if let Some(from) = analysis.held_at(scene, frame.offset, object) {
                holds = true;
                let line = from.and_then(|at| frame.code.line(analysis.instructions[at].offset));
                verdict.holders.push(Taken { thread: t, frame: f, line });
            } else {
                may_signal |= analysis.releases_first(frame.offset, object);
            }
        }
        if may_signal && !holds {
            verdict.signallers.push(t);
        }
    }
    // A thread that holds it in two frames holds it once.
    verdict.holders.dedup_by_key(|taken| taken.thread);
    verdict
}

/// Locks that the suspended frame of a generator has acquired, or that `__enter__` of this manager left
/// acquired.
pub fn of_suspended(scene: &Scene, frame: Addr, code: Addr, offset: i64) -> Vec<Addr> {
    let Some(globals) = scene.heap.ptr(frame + scene.heap.layout.frame.globals) else { return Vec::new() };
    if !speaks(scene, code) {
        return Vec::new();
    }
    let body = Body::of_frame(scene, frame, code, globals);
    let Some(analysis) = body.and_then(|body| Analysis::new(scene, body)) else { return Vec::new() };
    analysis.acquired().into_iter().filter(|l| analysis.held_at(scene, offset, *l).is_some()).collect()
}

pub fn of_manager(scene: &Scene, manager: Addr) -> Vec<Addr> {
    let enter = class_attribute(scene, manager, "__enter__");
    let Some(function) = enter.filter(|f| is_function(scene, *f)) else { return Vec::new() };
    let body = Body::of_call(scene, function, vec![Some(manager)]).filter(|b| speaks(scene, b.code));
    let Some(analysis) = body.and_then(|body| Analysis::new(scene, body)) else { return Vec::new() };
    let is_left = |lock: &Addr| {
        let (_, exit) = analysis.flow(scene, *lock, FREE, 0);
        exit != 0 && exit & (FREE | UNCLEAR) == 0
    };
    analysis.acquired().into_iter().filter(is_left).collect()
}

fn is_worth_it(scene: &Scene, frame: &FrameScene) -> bool {
    !frame.in_file("/threading.py") && (speaks(scene, frame.raw.code) || scene.is_user(frame))
}

fn speaks(scene: &Scene, code: Addr) -> bool {
    scene.names(code).iter().any(|n| n == "acquire" || n == "release")
}

fn of_frame(scene: &Scene, frame: &FrameScene) -> Option<Rc<Analysis>> {
    let at = frame.raw.addr;
    if let Some(known) = scene.acquired.frames.borrow().get(&at) {
        return known.clone();
    }
    let body = Body::of_frame(scene, at, frame.raw.code, frame.raw.globals);
    let made = body.and_then(|body| Analysis::new(scene, body)).filter(|a| !a.events.is_empty()).map(Rc::new);
    scene.acquired.frames.borrow_mut().insert(at, made.clone());
    made
}

impl Body {
    fn of_frame(scene: &Scene, frame: Addr, code: Addr, globals: Addr) -> Option<Body> {
        let slots = frame + scene.heap.layout.frame.locals;
        Some(Body { code, globals, variables: Variables::Frame { slots, known: scene.variables_of(code)? } })
    }

    /// A call of a Python function, its positional arguments as far as they are known.
    fn of_call(scene: &Scene, function: Addr, arguments: Vec<Option<Addr>>) -> Option<Body> {
        // Bits of `co_flags`: *args, and all that does not run when it is called.
        const OTHERWISE: i32 = 0x4 | 0x20 | 0x80 | 0x200;
        let (heap, l) = (scene.heap, scene.heap.layout);
        let code = heap.ptr(function + l.function.code)?;
        // `func_globals` comes second up to 3.9, where the code is first; then it is first itself.
        let first = l.object.size;
        let globals = heap.ptr(function + if l.function.code == first { first + 8 } else { first })?;
        let count = heap.mem.i32(code + l.code.argcount).ok()?;
        if heap.mem.i32(code + l.code.flags).ok()? & OTHERWISE != 0 || count < arguments.len() as i32 {
            return None;
        }
        let closure = heap.ptr(function + l.function.closure);
        let closure = closure.and_then(|c| heap.tuple(c, 256)).unwrap_or_default();
        let total = scene.variables_of(code)?.names.len();
        let first_free = total.checked_sub(closure.len())?;
        Some(Body { code, globals, variables: Variables::Call { arguments, closure, first_free } })
    }

    fn variable(&self, scene: &Scene, slot: usize) -> Option<Addr> {
        let heap = scene.heap;
        match &self.variables {
            Variables::Frame { slots, known } => {
                let word = heap.mem.u64(slots + 8 * slot as u64).ok().filter(|_| slot < known.names.len())?;
                // 3.15 keeps small ints in the slot itself.
                if heap.layout.tagged() && word & 3 == 3 {
                    return None;
                }
                known.variables.value(heap, slot, word).or_else(|| {
                    // Up to 3.10 an argument that a closure uses has a cell in another slot.
                    let name = &known.names[slot];
                    let cell = known.names.iter().rposition(|n| n == name).filter(|cell| *cell != slot)?;
                    known.variables.value(heap, cell, heap.mem.u64(slots + 8 * cell as u64).ok()?)
                })
            }
            Variables::Call { arguments, closure, first_free } => match slot.checked_sub(*first_free) {
                Some(free) if free < closure.len() => heap.cell(closure[free]),
                _ => arguments.get(slot).copied().flatten(),
            },
        }
    }

    /// What LOAD_DEREF's argument counts.
    fn deref_slot(&self, scene: &Scene, arg: u32) -> usize {
        let shift = match scene.heap.layout.frames {
            Frames::Objects { .. } => scene.heap.mem.i32(self.code + scene.heap.layout.code.nlocals),
            Frames::Interpreter { .. } => Ok(0),
        };
        arg as usize + shift.unwrap_or(0).max(0) as usize
    }
}

impl Analysis {
    fn new(scene: &Scene, body: Body) -> Option<Analysis> {
        let spent = scene.acquired.spent.get();
        if spent >= BUDGET {
            return None;
        }
        scene.acquired.spent.set(spent + 1);
        let known = scene.acquired.code.borrow().get(&body.code).cloned();
        let instructions = known.unwrap_or_else(|| {
            let read = opcodes::read(scene.heap, body.code).map(Rc::new);
            scene.acquired.code.borrow_mut().insert(body.code, read.clone());
            read
        })?;
        let (handlers, returns) = match scene.heap.layout.frames {
            Frames::Objects { .. } => (by_blocks(&instructions), finally_returns(&instructions)),
            Frames::Interpreter { .. } => (by_table(scene, body.code, &instructions)?, FxHashMap::default()),
        };
        let mut reader = Reader {
            scene,
            body: &body,
            bases: Vec::new(),
            stack: Vec::new(),
            keywords: false,
            events: FxHashMap::default(),
        };
        reader.read(&instructions, &handlers);
        let events = reader.events;
        Some(Analysis { body, instructions, events, handlers, returns })
    }

    /// Locks that it acquires itself, by name.
    fn acquired(&self) -> Vec<Addr> {
        let object = |event: &Event| match event {
            Event::Acquire { object, .. } => Some(*object),
            _ => None,
        };
        let mut found: Vec<Addr> = self.events.values().flatten().filter_map(object).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether the lock is held at this place, whichever way led there; then which instruction took it,
    /// if it is one of this function.
    fn held_at(&self, scene: &Scene, offset: i64, lock: Addr) -> Option<Option<usize>> {
        let touches = |event: &Event| match event {
            Event::Acquire { object, .. } => *object == lock,
            Event::Call { .. } => true,
            _ => false,
        };
        if !self.events.values().flatten().any(touches) {
            return None;
        }
        let at = opcodes::at(&self.instructions, offset)?;
        let (states, _) = self.flow(scene, lock, FREE, 0);
        let state = states[at];
        if state == 0 || state & (FREE | UNCLEAR) != 0 {
            return None;
        }
        let took = |(i, events): (&usize, &Vec<Event>)| {
            let this = |e: &Event| match e {
                Event::Acquire { object, base, .. } => *object == lock && state & 1 << base != 0,
                Event::Call { .. } => state & 1 << BY_CALLEE != 0 && states[*i] & FREE != 0 && *i < at,
                _ => false,
            };
            events.iter().any(this).then_some(*i)
        };
        let all = || self.events.iter().filter_map(took);
        Some(all().filter(|i| *i < at).max().or_else(|| all().max()))
    }

    /// Whether a release() of this lock can come before any acquire().
    fn releases_first(&self, offset: i64, lock: Addr) -> bool {
        let Some(start) = opcodes::at(&self.instructions, offset) else { return false };
        let mut seen = vec![false; self.instructions.len()];
        let mut queue = vec![start];
        while let Some(at) = queue.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let events = self.events.get(&at).map_or(&[][..], Vec::as_slice);
            if events.iter().any(|e| matches!(e, Event::Release { object } if *object == lock)) {
                return true;
            }
            if !events.iter().any(|e| matches!(e, Event::Acquire { object, .. } if *object == lock)) {
                queue.extend(self.next(at));
            }
        }
        false
    }

    /// What may come after an instruction that raises nothing.
    fn next(&self, at: usize) -> Vec<usize> {
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

    /// The state of one lock before each instruction, and when the function returns.
    fn flow(&self, scene: &Scene, lock: Addr, first: State, depth: u32) -> (Vec<State>, State) {
        let count = self.instructions.len();
        let mut states: Vec<State> = vec![0; count];
        let mut exit = 0;
        let mut branches: FxHashMap<usize, (u32, bool)> = FxHashMap::default();
        let mut calls: FxHashMap<usize, (State, State)> = FxHashMap::default();
        states[0] = first;
        let mut queue = vec![0];
        while let Some(at) = queue.pop() {
            let before = states[at];
            let instruction = self.instructions[at];
            let mut after = before;
            for event in self.events.get(&at).into_iter().flatten() {
                match event {
                    Event::Acquire { object, base, conditional } if *object == lock => {
                        if *conditional {
                            after |= 1 << base;
                            branches.extend(self.test_after(at).map(|(i, wanted)| (i, (*base, wanted))));
                        } else {
                            after = 1 << base;
                        }
                    }
                    Event::Release { object } if *object == lock => after = FREE,
                    Event::Unclear { object } if *object == lock => after |= FREE | UNCLEAR,
                    Event::Store { base } if after & 1 << base != 0 => after = after & !(1 << base) | FREE,
                    Event::Call { function, arguments } if depth < MAX_DEPTH => {
                        let (free, held) = *calls
                            .entry(at)
                            .or_insert_with(|| summary(scene, *function, arguments, lock, depth + 1));
                        let kept = after & !FREE;
                        let mut through = 0;
                        if after & FREE != 0 {
                            through |= free;
                        }
                        if kept != 0 {
                            through |= held & (FREE | UNCLEAR);
                            if held & !(FREE | UNCLEAR) != 0 {
                                through |= kept;
                            }
                        }
                        after = through;
                    }
                    _ => {}
                }
            }
            if matches!(instruction.op, Op::Return | Op::ReturnConst) {
                exit |= after;
            }
            let branch = branches.get(&at).copied();
            for to in self.next(at) {
                let state = match (branch, instruction.jumps_if()) {
                    // The result of the acquire() decides which way it goes.
                    (Some((base, wanted)), Some(_)) => {
                        let jumps = instruction.target == Some(to);
                        outcome(after, base, jumps == wanted)
                    }
                    (Some((base, _)), None) => match self.stored_result(scene, at) {
                        Some(got) => outcome(after, base, got),
                        None => after,
                    },
                    (None, _) => after,
                };
                if states[to] | state != states[to] {
                    states[to] |= state;
                    queue.push(to);
                }
            }
            if let Some(handler) = self.handlers[at]
                && states[handler] | before != states[handler]
            {
                states[handler] |= before;
                queue.push(handler);
            }
        }
        (states, exit)
    }

    /// The instruction that looks at what the call returned, and whether it jumps if that was true.
    fn test_after(&self, call: usize) -> Option<(usize, bool)> {
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

    /// `got = lock.acquire(False)`: what the variable says now, if it is assigned nowhere else.
    fn stored_result(&self, scene: &Scene, at: usize) -> Option<bool> {
        let Instruction { op: Op::StoreFast, arg, .. } = self.instructions[at] else { return None };
        let stores = self.instructions.iter().filter(|i| i.op == Op::StoreFast && i.arg == arg).count();
        let value = self.body.variable(scene, arg as usize).filter(|_| stores == 1)?;
        let is_bool = scene.heap.type_of(value).is_some_and(|t| t.name == "bool");
        scene.heap.int(value).filter(|_| is_bool).map(|v| v != 0)
    }
}

/// After an acquire() that may have failed.
fn outcome(state: State, base: u32, acquired: bool) -> State {
    if acquired {
        return 1 << base;
    }
    let left = state & !(1 << base);
    if left == 0 { FREE } else { left }
}

/// What a call does to a lock that was free before, and to one that was held.
fn summary(
    scene: &Scene,
    function: Addr,
    arguments: &[Option<Addr>],
    lock: Addr,
    depth: u32,
) -> (State, State) {
    let body = Body::of_call(scene, function, arguments.to_vec());
    let Some(analysis) = body.and_then(|body| Analysis::new(scene, body)) else {
        return (FREE | UNCLEAR, FREE | UNCLEAR);
    };
    let exit = |first| {
        let (_, exit) = analysis.flow(scene, lock, first, depth);
        let held = exit & !(FREE | UNCLEAR) != 0;
        exit & (FREE | UNCLEAR) | if held { 1 << BY_CALLEE } else { 0 }
    };
    match (exit(FREE), exit(1 << BY_CALLER)) {
        // It never returns, as far as can be seen.
        (0, _) | (_, 0) => (FREE | UNCLEAR, FREE | UNCLEAR),
        states => states,
    }
}

/// Reads what the instructions do with methods: a value stack as long as the code is a straight line.
struct Reader<'r, 's, 'a> {
    scene: &'s Scene<'a>,
    body: &'r Body,
    /// Variables that something came from: the kind of the variable, and its number.
    bases: Vec<(u8, u32)>,
    stack: Vec<Value>,
    /// 3.11 and 3.12: the call to come has keywords.
    keywords: bool,
    events: FxHashMap<usize, Vec<Event>>,
}

impl Reader<'_, '_, '_> {
    fn read(&mut self, code: &[Instruction], handlers: &[Option<usize>]) {
        let mut lands = vec![false; code.len()];
        for to in code.iter().filter_map(|i| i.target).chain(handlers.iter().flatten().copied()) {
            lands[to] = true;
        }
        for (at, instruction) in code.iter().enumerate() {
            if lands[at] {
                self.forget(at);
            }
            self.step(at, instruction);
        }
    }

    fn put(&mut self, at: usize, event: Event) {
        self.events.entry(at).or_default().push(event);
    }

    /// What lies on the stack is not known any more: calls that were being prepared are lost.
    fn forget(&mut self, at: usize) {
        for value in std::mem::take(&mut self.stack) {
            if let Some((owner, name)) = value.attribute
                && (&*name == "acquire" || &*name == "release")
                && let Some(object) = resource(self.scene, owner)
            {
                self.put(at, Event::Unclear { object });
            }
        }
    }

    fn base(&mut self, kind: u8, number: u32) -> u32 {
        let at = self.bases.iter().position(|b| *b == (kind, number)).unwrap_or_else(|| {
            self.bases.push((kind, number));
            self.bases.len() - 1
        });
        // Bit 0 says free; beyond the last they share one.
        (at as u32 + 1).min(BY_CALLEE - 1)
    }

    fn variable(&mut self, slot: usize) {
        let base = self.base(0, slot as u32);
        let object = self.body.variable(self.scene, slot);
        self.stack.push(Value { object, base, ..Value::default() });
    }

    fn store(&mut self, at: usize, kind: u8, number: u32) {
        let base = self.base(kind, number);
        self.put(at, Event::Store { base });
    }

    fn pop(&mut self) -> Value {
        self.stack.pop().unwrap_or_default()
    }

    fn name(&self, at: u32) -> Option<String> {
        self.scene.names(self.body.code).get(at as usize).cloned()
    }

    fn step(&mut self, at: usize, i: &Instruction) {
        let minor = self.scene.heap.layout.minor;
        let slot = |arg: u32| (arg as usize >> 4, arg as usize & 15);
        match i.op {
            Op::LoadFast | Op::LoadFastCheck | Op::LoadFastBorrow => self.variable(i.arg as usize),
            Op::LoadTwo | Op::BorrowTwo => {
                self.variable(slot(i.arg).0);
                self.variable(slot(i.arg).1);
            }
            Op::LoadDeref => self.variable(self.body.deref_slot(self.scene, i.arg)),
            Op::StoreFast | Op::DeleteFast => {
                self.pop();
                self.store(at, 0, i.arg);
            }
            Op::StoreLoad => {
                self.pop();
                self.store(at, 0, i.arg >> 4);
                self.variable(slot(i.arg).1);
            }
            Op::StoreTwo => {
                self.pop();
                self.pop();
                self.store(at, 0, i.arg >> 4);
                self.store(at, 0, i.arg & 15);
            }
            Op::StoreDeref => {
                self.pop();
                let cell = self.body.deref_slot(self.scene, i.arg) as u32;
                self.store(at, 0, cell);
            }
            Op::LoadGlobal if minor >= 11 => self.global(i.arg >> 1, i.arg & 1 != 0),
            Op::LoadGlobal | Op::LoadName => self.global(i.arg, false),
            Op::StoreGlobal | Op::StoreName => {
                self.pop();
                self.store(at, 1, i.arg);
            }
            Op::LoadConst => {
                let heap = self.scene.heap;
                let tuple = heap.ptr(self.body.code + heap.layout.code.consts);
                let object = tuple.and_then(|t| heap.ptr(t + heap.layout.tuple.items + 8 * u64::from(i.arg)));
                self.stack.push(Value { object, ..Value::default() });
            }
            Op::LoadSmallInt => self.stack.push(Value { number: Some(i.arg.into()), ..Value::default() }),
            Op::LoadCommon => self.stack.push(Value::default()),
            Op::LoadAttr if minor >= 12 => self.attribute(i.arg >> 1, i.arg & 1 != 0),
            Op::LoadAttr => self.attribute(i.arg, false),
            Op::LoadMethod => self.attribute(i.arg, true),
            Op::PushNull => self.stack.push(Value { null: true, ..Value::default() }),
            Op::PopTop => _ = self.pop(),
            Op::Copy | Op::DupTop => {
                let depth = if i.op == Op::Copy { i.arg as usize } else { 1 };
                let value = self.stack.len().checked_sub(depth).and_then(|n| self.stack.get(n)).cloned();
                self.stack.push(value.unwrap_or_default());
            }
            Op::Subscript => self.subscript(),
            // NB_SUBSCR, from 3.14 on (Include/opcode.h).
            Op::BinaryOp if i.arg == 26 => self.subscript(),
            Op::BinaryOp | Op::Compare | Op::Is | Op::Contains => {
                self.pop();
                self.pop();
                self.stack.push(Value::default());
            }
            Op::Call => self.call(at, i.arg as usize, true, 0),
            Op::CallKw => self.call(at, i.arg as usize, true, 1),
            Op::CallMethod => self.call(at, i.arg as usize, true, 0),
            Op::CallFunction => self.call(at, i.arg as usize, false, 0),
            Op::CallFunctionKw => self.call(at, i.arg as usize, false, 1),
            Op::KwNames => self.keywords = true,
            Op::Precall | Op::ToBool | Op::NotTaken | Op::Nop => {}
            Op::Not => {
                self.pop();
                self.stack.push(Value::default());
            }
            _ if i.jumps_if().is_some() => _ = self.pop(),
            _ => self.forget(at),
        }
    }

    fn global(&mut self, name: u32, null: bool) {
        let base = self.base(1, name);
        let heap = self.scene.heap;
        let object = self.name(name).and_then(|n| heap.dict_get(self.body.globals, [&*n])[0]);
        let value = Value { object, base, ..Value::default() };
        let nothing = Value { null: true, ..Value::default() };
        match (null, heap.layout.minor >= 13) {
            (false, _) => self.stack.push(value),
            (true, false) => self.stack.extend([nothing, value]),
            (true, true) => self.stack.extend([value, nothing]),
        }
    }

    fn attribute(&mut self, name: u32, method: bool) {
        let of = self.pop();
        let mut value = Value { base: of.base, ..Value::default() };
        if let (Some(object), Some(name)) = (of.object, self.name(name)) {
            value.object = attribute(self.scene, object, &name);
            value.attribute = Some((object, name.into()));
        }
        self.stack.push(value);
        if method {
            self.stack.push(Value { object: of.object, base: of.base, ..Value::default() });
        }
    }

    fn subscript(&mut self) {
        let (key, of) = (self.pop(), self.pop());
        let heap = self.scene.heap;
        let item = || {
            let container = of.object?;
            let ty = heap.type_of(container)?;
            if ty.is_dict() {
                return heap.dict_get(container, [&*heap.checked_str(key.object?)?])[0];
            }
            let index = key.number.or_else(|| heap.int(key.object?))?;
            let items = (ty.is_list() || ty.is_tuple()).then(|| heap.items(container, &ty, 1024))??.0;
            items.get(usize::try_from(index).ok()?).copied()
        };
        self.stack.push(Value { object: item(), base: of.base, ..Value::default() });
    }

    /// `pair`: two slots below the arguments, of which one may be empty. `names`: slots on top of them.
    fn call(&mut self, at: usize, count: usize, pair: bool, names: usize) {
        (0..names).for_each(|_| _ = self.pop());
        let mut arguments: Vec<Value> = (0..count.min(MAX_ARGUMENTS)).map(|_| self.pop()).collect();
        (MAX_ARGUMENTS..count).for_each(|_| _ = self.pop());
        arguments.reverse();
        let upper = if pair { self.pop() } else { Value::default() };
        let lower = self.pop();
        let callee = if lower.null { upper } else { lower };
        let keywords = std::mem::take(&mut self.keywords) || names > 0 || count > MAX_ARGUMENTS;
        self.called(at, &callee, &arguments, keywords);
        self.stack.push(Value::default());
    }

    fn called(&mut self, at: usize, callee: &Value, arguments: &[Value], keywords: bool) {
        let scene = self.scene;
        let heap = scene.heap;
        let m = &heap.layout.method;
        if let Some((owner, name)) = &callee.attribute
            && let Some(object) = resource(scene, *owner)
        {
            return self.primitive(at, object, name, callee.base, arguments, keywords);
        }
        // A method that was kept: `get = lock.acquire`.
        let kept = || {
            let callable = callee.object?;
            let ty = heap.type_of(callable)?;
            let receiver = || heap.ptr(callable + m.self_);
            match ty.name.as_str() {
                "builtin_function_or_method" => {
                    Some((resource(scene, receiver()?)?, exits::c_name(heap, heap.ptr(callable + m.func)?)?))
                }
                _ => None,
            }
        };
        if let Some((object, name)) = kept() {
            return self.primitive(at, object, &name, callee.base, arguments, keywords);
        }
        let mut given: Vec<Option<Addr>> = arguments.iter().map(|a| a.object).collect();
        let function = match (&callee.attribute, callee.object) {
            // Of the instance, or of a module or class: called as it is.
            (_, Some(function)) if is_function(scene, function) => {
                let owner = callee.attribute.as_ref().map(|a| a.0).filter(|owner| {
                    let own = heap.attrs(*owner, [&*callee.attribute.as_ref().expect("it has one").1])[0];
                    let ty = heap.type_of(*owner);
                    own != Some(function) && ty.is_some_and(|t| !t.is_type() && t.name != "module")
                });
                if let Some(owner) = owner {
                    given.insert(0, Some(owner));
                }
                Some(function)
            }
            (_, Some(bound)) if heap.type_of(bound).is_some_and(|t| t.name == "method") => {
                given.insert(0, heap.ptr(bound + m.self_));
                heap.ptr(bound + m.func).filter(|f| is_function(scene, *f))
            }
            _ => None,
        };
        if let Some(function) = function
            && !keywords
            && heap.ptr(function + heap.layout.function.code).is_some_and(|code| speaks(scene, code))
        {
            self.put(at, Event::Call { function, arguments: given });
        }
    }

    fn primitive(
        &mut self,
        at: usize,
        object: Addr,
        name: &str,
        base: u32,
        arguments: &[Value],
        keywords: bool,
    ) {
        let heap = self.scene.heap;
        match name {
            "acquire" | "__enter__" | "acquire_lock" => {
                let waits = |a: &Value| {
                    a.object.is_some_and(|a| {
                        heap.type_of(a).is_some_and(|t| t.name == "bool") && heap.int(a) == Some(1)
                    })
                };
                let conditional =
                    keywords || !(arguments.is_empty() || arguments.len() == 1 && waits(&arguments[0]));
                self.put(at, Event::Acquire { object, base, conditional });
            }
            "release" | "__exit__" | "release_lock" => self.put(at, Event::Release { object }),
            _ => {}
        }
    }
}

/// What `x.acquire` takes: the lock itself, that of a Condition, the semaphore.
pub fn resource(scene: &Scene, object: Addr) -> Option<Addr> {
    let heap = scene.heap;
    if let Some(lock) = locks::lock(heap, object) {
        return Some(lock.object);
    }
    let ty = heap.type_of(object)?;
    if heap.is_a(&ty, "Semaphore") {
        return locks::semaphore(heap, object).filter(|l| l.kind == Kind::Semaphore).map(|l| l.object);
    }
    let inner = heap.attrs(object, ["_lock"])[0].filter(|_| heap.is_a(&ty, "Condition"))?;
    locks::lock(heap, inner).map(|lock| lock.object)
}

fn is_function(scene: &Scene, object: Addr) -> bool {
    scene.heap.type_of(object).is_some_and(|t| t.name == "function")
}

/// An attribute: of the object's own, else of its class.
fn attribute(scene: &Scene, object: Addr, name: &str) -> Option<Addr> {
    let heap = scene.heap;
    let ty = heap.type_of(object)?;
    if ty.name == "module" {
        return heap.dict_get(heap.module_dict(object)?, [name])[0];
    }
    if ty.is_type() {
        return of_class(scene, object, name);
    }
    let own = heap.attrs(object, [name])[0];
    own.or_else(|| of_class(scene, ty.addr, name)).or_else(|| {
        let slots = heap.slots(object, 64);
        slots.into_iter().find(|(n, _)| n == name).map(|(_, value)| value)
    })
}

fn class_attribute(scene: &Scene, object: Addr, name: &str) -> Option<Addr> {
    of_class(scene, scene.heap.type_of(object)?.addr, name)
}

/// Through the classes in the order of resolution; those made by C code have nothing to follow.
fn of_class(scene: &Scene, class: Addr, name: &str) -> Option<Addr> {
    let heap = scene.heap;
    let order = heap.tuple(heap.ptr(class + heap.layout.types.mro)?, 32)?;
    let classes = order.into_iter().filter(|c| heap.type_at(*c).is_some_and(|t| t.is_heap_type()));
    let mut found = classes.filter_map(|c| {
        let dict = heap.ptr(c + heap.layout.types.dict)?;
        let value = heap.dict_get(dict, [name])[0]?;
        Some(value).filter(|v| heap.type_of(*v).is_none_or(|t| t.name != "member_descriptor"))
    });
    found.next()
}

/// From 3.11 on.
fn by_table(scene: &Scene, code: Addr, instructions: &[Instruction]) -> Option<Vec<Option<usize>>> {
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
fn by_blocks(code: &[Instruction]) -> Vec<Option<usize>> {
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
fn finally_returns(code: &[Instruction]) -> FxHashMap<usize, Vec<usize>> {
    let mut found: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    let mut open: Vec<usize> = Vec::new();
    for (at, instruction) in code.iter().enumerate() {
        open.extend(code.iter().filter(|i| i.sets_up() && i.target == Some(at)).map(|_| at));
        if instruction.op == Op::EndFinally
            && let Some(handler) = open.pop()
        {
            let calls =
                code.iter().enumerate().filter(|(_, i)| i.op == Op::CallFinally && i.target == Some(handler));
            found.insert(at, calls.map(|(call, _)| call + 1).collect());
        }
    }
    found
}
