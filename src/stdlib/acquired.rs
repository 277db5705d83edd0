//! Who has taken a lock by plain `acquire()`. Nothing on the stack says so, but the bytecode does: on
//! every path from the start of a function to where its frame stands, this very lock was acquired and
//! not released. That is an inference, so "likely" at best: another thread may have released it.
//!
//! What `x.acquire` means is taken from the values that the variables have now. A variable that was assigned
//! after the call proves nothing of what it held before, so what it acquired then is forgotten. Calls of
//! Python functions that speak of `acquire` or `release` are followed a few levels down: a class that
//! takes its lock in one method and blocks in another.

mod loops;
mod reader;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::flow::Shape;
use super::locks;
use super::{FrameScene, Known, Scene, ThreadScene};
use crate::python::opcodes::{self, Instruction, Op};
use crate::target::memory::Addr;
pub use reader::resource;
pub use reader::{class_attribute, is_function};

/// Functions that are followed into each other.
const MAX_DEPTH: u32 = 3;
/// Steps over instructions in one look: where much code stands before many locks, some of it stays unread.
const BUDGET: usize = 20_000_000;
/// To read what an instruction does takes as long as so many steps.
const READING: usize = 16;
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
    pub code: Addr,
    pub globals: Addr,
    variables: Variables,
    /// A variable that is to have another value than it has now.
    instead: Option<(Variable, Addr)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Slot(usize),
    /// Of the module, by its place in `co_names`.
    Name(u32),
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

/// Where the flow of control is followed from, and where no further.
#[derive(Clone, Copy)]
struct Part {
    from: usize,
    until: Option<usize>,
}

impl Part {
    const ALL: Part = Part { from: 0, until: None };
}

/// A function's instructions, and what they do.
pub struct Analysis {
    body: Body,
    shape: Rc<Shape>,
    events: FxHashMap<usize, Vec<Event>>,
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
    frames: RefCell<FxHashMap<Addr, Option<Rc<Analysis>>>>,
    spent: Cell<usize>,
}

impl Acquired {
    /// `false`: it was too much already.
    fn spend(&self, steps: usize) -> bool {
        let spent = self.spent.get();
        self.spent.set(spent + steps);
        spent < BUDGET
    }
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
                let line = from.and_then(|at| frame.code.line(analysis.shape.instructions[at].offset));
                verdict.holders.push(Taken { thread: t, frame: f, line });
            } else if let Some(line) = loops::taken_by(scene, frame, &analysis, object)
                .or_else(|| loops::collected_by(scene, frame, &analysis, object))
            {
                holds = true;
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
        let (_, exit) = analysis.flow(scene, *lock, FREE, 0, Part::ALL);
        exit != 0 && exit & (FREE | UNCLEAR) == 0
    };
    analysis.acquired().into_iter().filter(is_left).collect()
}

/// Whether who is inside of a `with` has released the lock by hand meanwhile, in this frame or further in.
pub fn is_given_back(scene: &Scene, thread: &ThreadScene, frame: usize, lock: Addr) -> bool {
    let says_so = |code| scene.names(code).iter().any(|n| n == "release");
    let frames = thread.frames[..=frame].iter().filter(|f| !f.in_file("/threading.py"));
    frames
        .filter(|f| says_so(f.raw.code))
        .any(|f| of_frame(scene, f).is_some_and(|analysis| analysis.released_at(scene, f.offset, lock)))
}

/// Whether this frame may have taken the lock, for all that can be told: it speaks of `acquire`, or calls who does.
pub fn may_have(scene: &Scene, frame: &FrameScene, lock: Addr) -> bool {
    let acquires = || scene.names(frame.raw.code).iter().any(|n| n == "acquire");
    let is_free = |analysis: &Analysis| {
        let at = opcodes::at(&analysis.shape.instructions, frame.offset);
        at.is_some_and(|at| analysis.flow(scene, lock, FREE, 0, Part::ALL).0[at] == FREE)
    };
    acquires() || of_frame(scene, frame).is_some_and(|analysis| !is_free(&analysis))
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
    pub fn of_frame(scene: &Scene, frame: Addr, code: Addr, globals: Addr) -> Option<Body> {
        let slots = frame + scene.heap.layout.frame.locals;
        let variables = Variables::Frame { slots, known: scene.variables_of(code)? };
        Some(Body { code, globals, variables, instead: None })
    }

    /// A call of a Python function that runs at once, its positional arguments as far as they are known.
    pub fn of_call(scene: &Scene, function: Addr, arguments: Vec<Option<Addr>>) -> Option<Body> {
        // Bits of `co_flags`: *args, and all that does not run when it is called.
        const OTHERWISE: i32 = 0x4 | 0x20 | 0x80 | 0x200;
        let (heap, count) = (scene.heap, arguments.len() as i32);
        let body = Body::of_function(scene, function, arguments)?;
        let c = &heap.layout.code;
        let otherwise = heap.mem.i32(body.code + c.flags).ok()? & OTHERWISE != 0;
        (!otherwise && heap.mem.i32(body.code + c.argcount).ok()? >= count).then_some(body)
    }

    /// A function, and the first of its arguments as far as they are known.
    pub fn of_function(scene: &Scene, function: Addr, arguments: Vec<Option<Addr>>) -> Option<Body> {
        let (heap, l) = (scene.heap, scene.heap.layout);
        let code = heap.ptr(function + l.function.code)?;
        // `func_globals` comes second up to 3.9, where the code is first; then it is first itself.
        let first = l.object.size;
        let globals = heap.ptr(function + if l.function.code == first { first + 8 } else { first })?;
        let closure = heap.ptr(function + l.function.closure);
        let closure = closure.and_then(|c| heap.tuple(c, 256)).unwrap_or_default();
        let total = scene.variables_of(code)?.names.len();
        let first_free = total.checked_sub(closure.len())?;
        let variables = Variables::Call { arguments, closure, first_free };
        Some(Body { code, globals, variables, instead: None })
    }

    fn instead(&self, variable: Variable) -> Option<Addr> {
        self.instead.filter(|(v, _)| *v == variable).map(|(_, value)| value)
    }

    pub fn variable(&self, scene: &Scene, slot: usize) -> Option<Addr> {
        let heap = scene.heap;
        if let Some(value) = self.instead(Variable::Slot(slot)) {
            return Some(value);
        }
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
}

impl Analysis {
    fn new(scene: &Scene, body: Body) -> Option<Analysis> {
        let shape = scene.shapes.of(scene, body.code)?;
        if !scene.acquired.spend(READING * shape.instructions.len()) {
            return None;
        }
        let events = reader::read(scene, &body, &shape.instructions, &shape.handlers);
        Some(Analysis { body, shape, events })
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
        let at = opcodes::at(&self.shape.instructions, offset)?;
        let (states, _) = self.flow(scene, lock, FREE, 0, Part::ALL);
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
        let Some(start) = opcodes::at(&self.shape.instructions, offset) else { return false };
        let mut seen = vec![false; self.shape.instructions.len()];
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
                queue.extend(self.shape.next(at));
            }
        }
        false
    }

    /// Whether a lock that was held when the function began has been released on every way to this place.
    fn released_at(&self, scene: &Scene, offset: i64, lock: Addr) -> bool {
        let releases = |e: &Event| matches!(e, Event::Release { object } if *object == lock);
        let Some(at) = opcodes::at(&self.shape.instructions, offset) else { return false };
        self.events.values().flatten().any(releases)
            && self.flow(scene, lock, 1 << BY_CALLER, 0, Part::ALL).0[at] == FREE
    }

    /// The state of one lock before each instruction, and when the function returns.
    fn flow(&self, scene: &Scene, lock: Addr, first: State, depth: u32, part: Part) -> (Vec<State>, State) {
        let count = self.shape.instructions.len();
        let mut states: Vec<State> = vec![0; count];
        let mut exit = 0;
        let mut branches: FxHashMap<usize, (u32, bool)> = FxHashMap::default();
        let mut calls: FxHashMap<usize, (State, State)> = FxHashMap::default();
        states[part.from] = first;
        let mut queue = vec![part.from];
        while let Some(at) = queue.pop() {
            if part.until == Some(at) {
                continue;
            }
            if !scene.acquired.spend(1) {
                return (vec![FREE | UNCLEAR; count], FREE | UNCLEAR);
            }
            let before = states[at];
            let instruction = self.shape.instructions[at];
            let mut after = before;
            for event in self.events.get(&at).into_iter().flatten() {
                match event {
                    Event::Acquire { object, base, conditional } if *object == lock => {
                        if *conditional {
                            after |= 1 << base;
                            branches
                                .extend(self.shape.test_after(at).map(|(i, wanted)| (i, (*base, wanted))));
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
            for to in self.shape.next(at) {
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
            if let Some(handler) = self.shape.handlers[at]
                && states[handler] | before != states[handler]
            {
                states[handler] |= before;
                queue.push(handler);
            }
        }
        (states, exit)
    }

    /// `got = lock.acquire(False)`: what the variable says now, if it is assigned nowhere else.
    fn stored_result(&self, scene: &Scene, at: usize) -> Option<bool> {
        let Instruction { op: Op::StoreFast, arg, .. } = self.shape.instructions[at] else { return None };
        let stores = self.shape.instructions.iter().filter(|i| i.op == Op::StoreFast && i.arg == arg).count();
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
        let (_, exit) = analysis.flow(scene, lock, first, depth, Part::ALL);
        let held = exit & !(FREE | UNCLEAR) != 0;
        exit & (FREE | UNCLEAR) | if held { 1 << BY_CALLEE } else { 0 }
    };
    match (exit(FREE), exit(1 << BY_CALLER)) {
        // It never returns, as far as can be seen.
        (0, _) | (_, 0) => (FREE | UNCLEAR, FREE | UNCLEAR),
        states => states,
    }
}
