//! What each instruction of a function does to locks.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::super::flow::deref_slot;
use super::super::locks::{self, Kind};
use super::super::{Scene, exits};
use super::{BY_CALLEE, Body, Event, Variable, speaks};
use crate::python::opcodes::{Instruction, Op};
use crate::target::memory::Addr;

/// Arguments of one call.
const MAX_ARGUMENTS: usize = 16;

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

/// What each instruction does, by its index.
pub fn read(
    scene: &Scene,
    body: &Body,
    code: &[Instruction],
    handlers: &[Option<usize>],
) -> FxHashMap<usize, Vec<Event>> {
    let mut reader = Reader {
        scene,
        body,
        bases: Vec::new(),
        stack: Vec::new(),
        keywords: false,
        events: FxHashMap::default(),
    };
    reader.read(code, handlers);
    reader.events
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
            Op::LoadDeref => self.variable(deref_slot(self.scene, self.body.code, i.arg)),
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
                let cell = deref_slot(self.scene, self.body.code, i.arg) as u32;
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
        let value = || self.name(name).and_then(|n| heap.dict_get(self.body.globals, [&*n])[0]);
        let object = self.body.instead(Variable::Name(name)).or_else(value);
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
            heap.type_of(callable).filter(|ty| ty.is_c_function())?;
            let receiver = heap.ptr(callable + m.self_)?;
            Some((resource(scene, receiver)?, exits::c_name(heap, heap.ptr(callable + m.func)?)?))
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

pub fn is_function(scene: &Scene, object: Addr) -> bool {
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

pub fn class_attribute(scene: &Scene, object: Addr, name: &str) -> Option<Addr> {
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
