//! Futures and tasks as objects, those of C (`_asyncio`) and those of Python alike.

use std::rc::Rc;

use crate::python::layout::NONE;
use crate::python::objects::Heap;
use crate::target::memory::Addr;

/// A future with more callbacks than this is not followed further.
const MAX_CALLBACKS: usize = 256;

#[derive(Clone, Debug)]
pub struct Future {
    pub addr: Addr,
    pub state: &'static str,
    pub event_loop: Option<Addr>,
    pub is_task: bool,
    native: bool,
}

impl Future {
    pub fn is_pending(&self) -> bool {
        self.state == "pending"
    }
}

/// What it says of itself, if it is a future or task of asyncio.
pub fn future(heap: &Heap, addr: Addr) -> Option<Future> {
    let ty = heap.type_of(addr)?;
    let task = &heap.layout.task;
    let is_task = heap.is_a(&ty, "_asyncio.Task");
    if is_task || heap.is_a(&ty, "_asyncio.Future") {
        let state = match heap.mem.i32(addr + task.state).ok()? {
            0 => "pending",
            1 => "cancelled",
            2 => "finished",
            _ => return None,
        };
        return Some(Future {
            addr,
            state,
            event_loop: heap.ptr(addr + task.event_loop),
            is_task,
            native: true,
        });
    }
    // The pure-Python ones, and what derives from them.
    let is_task = heap.is_a(&ty, "Task");
    if !is_task && !heap.is_a(&ty, "Future") && !heap.is_a(&ty, "_GatheringFuture") {
        return None;
    }
    let [state, event_loop, blocking] =
        attributes(heap, addr, ["_state", "_loop", "_asyncio_future_blocking"]);
    // Class attributes until they are set: `_state` of a new future is the class's.
    event_loop?;
    if is_task && blocking.is_none() && attributes(heap, addr, ["_coro"])[0].is_none() {
        return None;
    }
    let state = match state.and_then(|s| heap.checked_str(s)).as_deref() {
        None | Some("PENDING") => "pending",
        Some("CANCELLED") => "cancelled",
        Some("FINISHED") => "finished",
        _ => return None,
    };
    Some(Future { addr, state, event_loop, is_task, native: false })
}

/// Attributes of an instance; those of a subclass with `__slots__` are in neither place twice.
fn attributes<const N: usize>(heap: &Heap, obj: Addr, names: [&str; N]) -> [Option<Addr>; N] {
    let mut found = heap.attrs(obj, names);
    if found.iter().all(Option::is_none) {
        for (name, value) in heap.slots(obj, 64) {
            if let Some(i) = names.iter().position(|n| *n == name) {
                found[i] = Some(value);
            }
        }
    }
    found
}

/// What a task has beyond a future.
#[derive(Clone, Debug)]
pub struct TaskObject {
    pub future: Future,
    pub coroutine: Option<Addr>,
    /// The future that it waits for.
    pub waits_for: Option<Addr>,
    pub name: Option<String>,
    /// How often it was asked to end, where nobody has taken that back (3.11 on).
    pub cancels: Option<u32>,
    /// The tasks that wait for it, as it says itself (3.14 on).
    pub awaited_by: Vec<Addr>,
}

pub fn task(heap: &Heap, addr: Addr) -> Option<TaskObject> {
    let future = future(heap, addr).filter(|f| f.is_task)?;
    let t = &heap.layout.task;
    let none = |p: &Addr| heap.type_of(*p).is_none_or(|t| t.name != "NoneType");
    if !future.native {
        let [coroutine, waits_for, name, cancels] =
            attributes(heap, addr, ["_coro", "_fut_waiter", "_name", "_num_cancels_requested"]);
        let name = name.and_then(|n| task_name(heap, n));
        let waits_for = waits_for.filter(none);
        let cancels = cancels.and_then(|n| heap.int(n)).and_then(|n| u32::try_from(n).ok());
        return Some(TaskObject { future, coroutine, waits_for, name, cancels, awaited_by: Vec::new() });
    }
    let at = |offset: u64| heap.ptr(addr + offset);
    Some(TaskObject {
        coroutine: at(t.coro),
        waits_for: at(t.fut_waiter).filter(none),
        name: at(t.name).and_then(|n| task_name(heap, n)),
        cancels: cancels(heap, addr),
        awaited_by: awaited_by(heap, addr).unwrap_or_default(),
        future,
    })
}

/// The exception that a task has ended with (of C: `fut_exception` stands behind `fut_callbacks`).
pub fn exception(heap: &Heap, task: Addr) -> Option<Addr> {
    let ended = future(heap, task).filter(|f| f.native && f.state == "finished")?;
    let exception = heap.ptr(ended.addr + heap.layout.task.callbacks + 8)?;
    heap.type_of(exception).filter(|ty| ty.is_exception()).map(|_| exception)
}

fn cancels(heap: &Heap, task: Addr) -> Option<u32> {
    let at = Some(heap.layout.task.cancels).filter(|at| *at != NONE)?;
    heap.mem.i32(task + at).ok().and_then(|n| u32::try_from(n).ok())
}

/// From 3.12 on an unnamed task keeps its number until somebody asks for its name.
fn task_name(heap: &Heap, obj: Addr) -> Option<String> {
    let ty = heap.type_of(obj)?;
    if ty.is_int() { heap.int(obj).map(|n| format!("Task-{n}")) } else { heap.checked_str(obj) }
}

fn awaited_by(heap: &Heap, task: Addr) -> Option<Vec<Addr>> {
    let t = &heap.layout.task;
    if t.awaited_by == NONE {
        return None;
    }
    let by = heap.ptr(task + t.awaited_by)?;
    match heap.mem.u8(task + t.awaited_by_is_set).ok()? {
        0 => Some(vec![by]),
        _ => heap.type_of(by).filter(|t| t.name == "set").and_then(|_| Some(heap.set(by, MAX_CALLBACKS)?.0)),
    }
}

/// What is called once a future is done.
pub fn callbacks(heap: &Heap, future: &Future) -> Vec<Addr> {
    let mut found = Vec::new();
    let list = if future.native {
        let t = &heap.layout.task;
        found.extend(heap.ptr(future.addr + t.callback));
        heap.ptr(future.addr + t.callbacks)
    } else {
        attributes(heap, future.addr, ["_callbacks"])[0]
    };
    let list = list.and_then(|list| Some((list, heap.type_of(list).filter(|t| t.is_list())?)));
    let items = list.and_then(|(list, ty)| heap.items(list, &ty, MAX_CALLBACKS));
    // Each with its context.
    let first = |pair: Addr| heap.tuple(pair, 2)?.first().copied();
    found.extend(items.unwrap_or_default().0.into_iter().filter_map(first));
    found
}

/// Which futures a callback may complete: those in the closure of a function, the arguments of a
/// `functools.partial`, the attributes of a bound method's object.
///
/// That is how all of asyncio hangs futures together (`gather`, `shield`, `wait`, `wait_for` up to
/// 3.11, `TaskGroup`), and its third parties too.
pub fn completes(heap: &Heap, callback: Addr) -> Vec<Future> {
    let mut objects = Vec::new();
    let Some(ty) = heap.type_of(callback) else { return Vec::new() };
    match ty.name.as_str() {
        "function" => objects.extend(closure(heap, callback).into_iter().map(|(_, value)| value)),
        "functools.partial" => {
            // `partialobject { fn, args, kw, … }` (Modules/_functoolsmodule.c)
            let arguments = heap.ptr(callback + heap.layout.object.size + 8);
            objects.extend(arguments.and_then(|a| heap.tuple(a, 16)).unwrap_or_default());
        }
        "method" => objects.extend(heap.ptr(callback + heap.layout.method.self_)),
        _ => return Vec::new(),
    }
    let mut found = Vec::new();
    for obj in objects {
        if let Some(future) = future(heap, obj) {
            found.push(future);
        } else if heap.type_of(obj).is_some_and(|t| t.is_heap_type() && !t.is_type()) {
            for (_, value) in heap.attributes(obj, 64).unwrap_or_default() {
                found.extend(future(heap, value));
                // `asyncio.Queue` and the like: those who wait stand in a deque.
                found.extend(deque(heap, value, 64).into_iter().filter_map(|f| future(heap, f)));
            }
        }
    }
    // A task is completed by its coroutine alone.
    found.retain(|f| !f.is_task);
    found
}

/// Free variables of a function, by name.
pub fn closure(heap: &Heap, function: Addr) -> Vec<(Rc<str>, Addr)> {
    let read = || {
        let cells = heap.tuple(heap.ptr(function + heap.layout.function.closure)?, 64)?;
        let names = heap.variable_names(function_code(heap, function)?)?;
        // Free variables are the last ones.
        let names = names.iter().rev().take(cells.len()).rev();
        let pair = |(name, cell): (&Rc<str>, Addr)| Some((Rc::clone(name), heap.cell(cell)?));
        Some(names.zip(cells).filter_map(pair).collect())
    };
    read().unwrap_or_default()
}

fn function_code(heap: &Heap, function: Addr) -> Option<Addr> {
    heap.ptr(function + heap.layout.function.code)
}

pub fn function_name(heap: &Heap, function: Addr) -> Option<Rc<str>> {
    heap.type_of(function).filter(|t| t.name == "function")?;
    heap.name(heap.ptr(function_code(heap, function)? + heap.layout.code.name)?)
}

/// Items of a `collections.deque`, at most `cap`: blocks of 64 with a link at each end (Modules/_collectionsmodule.c).
pub fn deque(heap: &Heap, obj: Addr, cap: usize) -> Vec<Addr> {
    const BLOCK: u64 = 64;
    let mut found = Vec::new();
    let mut read = || {
        heap.type_of(obj).filter(|t| t.name == "collections.deque")?;
        let size = usize::try_from(heap.size(obj)?).ok()?.min(cap);
        // `PyObject_VAR_HEAD; leftblock, rightblock, leftindex, …`; `struct BLOCK { leftlink, data[64], rightlink }`.
        let fields = obj + heap.layout.object.ob_size + 8;
        let mut block = heap.ptr(fields)?;
        let mut index = heap.mem.u64(fields + 16).ok().filter(|i| *i < BLOCK)?;
        while found.len() < size {
            let n = (size - found.len()).min((BLOCK - index) as usize);
            found.extend(heap.words(block + 8 + 8 * index, n)?);
            if found.len() < size {
                block = heap.ptr(block + 8 + 8 * BLOCK)?;
            }
            index = 0;
        }
        Some(())
    };
    let _ = read();
    found
}

pub fn deque_len(heap: &Heap, obj: Addr) -> Option<u64> {
    heap.type_of(obj).filter(|t| t.name == "collections.deque")?;
    u64::try_from(heap.size(obj)?).ok()
}
