//! What a task, a thread or a callback can get at: a walk over the objects that its frames refer to, and the
//! names that the code it may run speaks of.
//!
//! Of a task only those methods count that its code names, and what these name in turn. A callback comes from
//! outside, through the standard library: there, all methods of the objects on its way do.

use std::rc::Rc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{coroutines, futures, uv};
use crate::python::frames::RawFrame;
use crate::python::locals::{self, Variables};
use crate::python::objects::{Heap, TypeInfo};
use crate::python::paths::Paths;
use crate::stdlib::{FrameScene, Rest, Scene, exits};
use crate::target::memory::Addr;

/// Objects that one walk visits.
const MAX_OBJECTS: usize = 5_000;
/// ...and all walks of a look together.
const BUDGET: usize = 200_000;
/// Entries of one container that are followed.
const MAX_ITEMS: usize = 256;

/// Which methods of the objects that it meets a walk may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freedom {
    /// Those that the code on its way names.
    Named,
    All,
}

/// What one walk has met.
#[derive(Debug, Default)]
pub struct Found {
    /// Of the wanted objects.
    pub reached: FxHashSet<Addr>,
    names: FxHashSet<u32>,
    /// Those that other code names than that of the frames.
    elsewhere: FxHashSet<u32>,
    /// It may call functions of the application's.
    pub calls: bool,
    /// An object of an extension; what it refers to cannot be seen.
    pub met_opaque: bool,
    /// It was given up before its end.
    pub exhausted: bool,
}

/// What is known of the code of a function: names of attributes and globals, by number.
struct Spoken {
    name: u32,
    names: Vec<u32>,
    /// Code objects of functions that it defines.
    inner: Vec<Addr>,
    stdlib: bool,
    user: bool,
}

/// A dict of names: of a type or a module.
type Scope = Rc<Vec<(u32, Addr)>>;

pub struct Search<'s, 'a> {
    scene: &'s Scene<'a>,
    heap: &'s Heap<'a>,
    paths: Paths,
    wanted: FxHashSet<Addr>,
    /// Walks stop at these: everything is behind a loop.
    loops: &'s FxHashSet<Addr>,
    numbers: FxHashMap<String, u32>,
    spoken: FxHashMap<Addr, Option<Rc<Spoken>>>,
    scopes: FxHashMap<Addr, Scope>,
    /// Whether what a scope names may lead anywhere.
    leads: FxHashMap<Addr, bool>,
    variables: FxHashMap<Addr, Option<Rc<Variables>>>,
    parts: FxHashMap<Addr, Rc<[Addr]>>,
    left: usize,
    exhausted: bool,
    opaque: bool,
    /// Types that are the application's own.
    applications: FxHashMap<Addr, bool>,
    /// An attribute counts only if the code on the way names it.
    by_names: bool,
}

/// One walk.
struct Walk {
    found: Found,
    freedom: Freedom,
    visited: FxHashSet<Addr>,
    left: Vec<Addr>,
    scopes: Vec<Scope>,
    known_scopes: FxHashSet<Addr>,
    codes: FxHashSet<Addr>,
    /// What is spoken now is spoken by the frames that it begins with.
    in_frames: bool,
    /// Functions that are met on the way are called only by their names; those that were not named so far.
    refused: Option<Vec<Addr>>,
    /// Attributes that were not named so far.
    unnamed: Vec<(u32, Addr)>,
    /// The application's code may get at attributes by any name.
    takes_any: bool,
}

impl Walk {
    fn name(&mut self, names: &[u32]) {
        self.found.names.extend(names);
        if !self.in_frames {
            self.found.elsewhere.extend(names);
        }
    }
}

/// By these an attribute is got at whatever it is called.
const ANY_NAME: &[&str] =
    &["getattr", "vars", "__dict__", "__getattribute__", "attrgetter", "asdict", "eval", "exec", "__slots__"];

/// Called without being named.
const IMPLIED: &[&str] =
    &["__aenter__", "__aexit__", "__enter__", "__exit__", "__aiter__", "__anext__", "__call__", "__await__"];

impl<'s, 'a> Search<'s, 'a> {
    pub fn new(scene: &'s Scene<'a>, wanted: FxHashSet<Addr>, loops: &'s FxHashSet<Addr>) -> Self {
        Search {
            scene,
            heap: scene.heap,
            paths: Paths::new(&scene.python.sys, &[]),
            wanted,
            loops,
            numbers: FxHashMap::default(),
            spoken: FxHashMap::default(),
            scopes: FxHashMap::default(),
            leads: FxHashMap::default(),
            variables: FxHashMap::default(),
            parts: FxHashMap::default(),
            left: BUDGET,
            exhausted: false,
            opaque: false,
            applications: FxHashMap::default(),
            by_names: false,
        }
    }

    /// Of the attributes of the application's own objects only those are got at that the code on the way names.
    pub fn by_names(self) -> Self {
        Search { by_names: true, ..self }
    }

    /// Something was left out: what was not met may be there all the same.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// An object of an extension was met; what it refers to cannot be seen.
    pub fn met_opaque(&self) -> bool {
        self.opaque
    }

    pub fn speaks(&self, found: &Found, names: &[&str]) -> bool {
        names.iter().any(|n| self.numbers.get(*n).is_some_and(|n| found.names.contains(n)))
    }

    /// The code of the frames is not the only one that does.
    pub fn speaks_elsewhere(&self, found: &Found, names: &[&str]) -> bool {
        names.iter().any(|n| self.numbers.get(*n).is_some_and(|n| found.elsewhere.contains(n)))
    }

    /// Walks from frames and from other objects.
    pub fn from(
        &mut self,
        frames: &[FrameScene],
        suspended: bool,
        objects: &[Addr],
        freedom: Freedom,
    ) -> Found {
        self.walk(frames, freedom, objects, |scene, frame| {
            // A suspended frame goes on with what is ahead of it.
            (if suspended { scene.values_ahead(frame) } else { None }, None)
        })
    }

    /// What a thread can get at when the call returns in which it waits.
    pub fn from_blocked(&mut self, frames: &[FrameScene], freedom: Freedom) -> Found {
        self.walk(frames, freedom, &[], |scene, frame| {
            (scene.values_when_it_goes_on(frame), scene.rest(frame))
        })
    }

    /// What a thread can get at by what it names, where the rest of its value stack is of no use to it.
    pub fn from_reader(&mut self, frames: &[FrameScene]) -> Found {
        self.walk(frames, Freedom::Named, &[], |scene, frame| {
            (scene.values_it_names(frame), scene.rest(frame))
        })
    }

    fn walk(
        &mut self,
        frames: &[FrameScene],
        freedom: Freedom,
        objects: &[Addr],
        ahead: impl Fn(&Scene, &FrameScene) -> (Option<Vec<Addr>>, Option<Rest>),
    ) -> Found {
        let mut walk = self.begin(freedom);
        walk.left.extend_from_slice(objects);
        for (index, frame) in frames.iter().enumerate() {
            if frame.in_file("/asyncio/base_events.py") || is_below_target(frames, index) {
                // It tells the loop that the pool's threads have ended.
                let shuts_down = frame.code.name == "_do_shutdown";
                walk.left.extend(shuts_down.then(|| self.scene.local(frame, "future")).flatten());
                continue;
            }
            let (values, rest) = ahead(self.scene, frame);
            walk.left.extend(values.unwrap_or_else(|| self.scene.values(frame)));
            if frame.code.file.as_deref().is_some_and(|f| !self.paths.is_stdlib(f)) {
                self.speak_of(&mut walk, frame.raw.code, frame.raw.globals, rest.as_ref());
            }
        }
        walk.in_frames = false;
        for callback in objects {
            self.speak_freely(&mut walk, *callback);
        }
        self.go_on(walk)
    }

    /// What a function, or a method, can get at when it is called.
    pub fn from_function(&mut self, callable: Addr) -> Found {
        let mut walk = self.begin(Freedom::Named);
        walk.refused = Some(Vec::new());
        self.call(&mut walk, callable);
        walk.in_frames = false;
        walk.left.push(callable);
        self.go_on(walk)
    }

    /// This is called: a function, or what calls one.
    fn call(&mut self, walk: &mut Walk, callable: Addr) {
        let heap = self.heap;
        let mut function = Some(callable);
        while let Some(at) = function {
            match heap.type_of(at).as_deref().map(|ty| ty.name.as_str()) {
                Some("method") => function = heap.ptr(at + heap.layout.method.func),
                Some("functools.partial") => function = heap.ptr(at + heap.layout.object.size),
                Some("function") if walk.visited.insert(at) => return self.function(walk, at),
                _ => return,
            }
        }
    }

    fn begin(&mut self, freedom: Freedom) -> Walk {
        let names = IMPLIED.iter().map(|name| self.number(name)).collect();
        Walk {
            found: Found { names, ..Found::default() },
            freedom,
            visited: FxHashSet::default(),
            left: Vec::new(),
            scopes: Vec::new(),
            known_scopes: FxHashSet::default(),
            codes: FxHashSet::default(),
            in_frames: true,
            refused: None,
            unnamed: Vec::new(),
            takes_any: false,
        }
    }

    fn go_on(&mut self, mut walk: Walk) -> Found {
        loop {
            while let Some(obj) = walk.left.pop() {
                if self.left == 0 || walk.visited.len() > MAX_OBJECTS {
                    self.exhausted = true;
                    return Found { exhausted: true, ..walk.found };
                }
                if walk.visited.insert(obj) {
                    self.left -= 1;
                    self.visit(&mut walk, obj);
                }
            }
            // With new names, more of the methods and globals on the way may be called.
            let names = &walk.found.names;
            let free = |n: &u32| walk.freedom == Freedom::All || names.contains(n);
            let refused = walk.refused.as_mut().map(std::mem::take).unwrap_or_default();
            let mut more: Vec<Addr> = walk
                .scopes
                .iter()
                .flat_map(|s| s.iter())
                .filter(|(n, v)| !walk.visited.contains(v) && free(n))
                .map(|(_, v)| *v)
                .collect();
            more.retain(|value| self.leads_on(*value));
            let (named, refused): (Vec<Addr>, Vec<Addr>) =
                refused.into_iter().partition(|function| self.is_named(&walk, *function));
            for function in &named {
                self.function(&mut walk, *function);
            }
            if let Some(all) = &mut walk.refused {
                *all = refused;
            }
            let takes_any = walk.takes_any;
            let names = &walk.found.names;
            let is_met = |(name, _): &(u32, Addr)| takes_any || names.contains(name);
            let (attributes, unnamed) = std::mem::take(&mut walk.unnamed).into_iter().partition(is_met);
            walk.unnamed = unnamed;
            let attributes: Vec<(u32, Addr)> = attributes;
            more.extend(attributes.into_iter().map(|(_, value)| value).filter(|v| !walk.visited.contains(v)));
            if more.is_empty() && named.is_empty() {
                return walk.found;
            }
            walk.left.extend(more);
        }
    }

    /// What these objects are and keep, whatever may be called: each with how many steps away it is.
    pub fn near(&mut self, roots: &[Addr], depth: usize, most: usize) -> FxHashMap<Addr, usize> {
        let mut seen: FxHashMap<Addr, usize> = FxHashMap::default();
        let mut now = roots.to_vec();
        for step in 0..depth {
            let mut next = Vec::new();
            for obj in now {
                let full = seen.len() >= most || self.left == 0;
                if self.loops.contains(&obj) || full || seen.contains_key(&obj) {
                    continue;
                }
                seen.insert(obj, step);
                self.left -= 1;
                let Some(ty) = self.heap.type_of(obj).filter(|t| !t.is_type() && t.name != "module") else {
                    continue;
                };
                next.extend_from_slice(&self.parts_of(obj, &ty));
            }
            now = next;
        }
        seen
    }

    fn visit(&mut self, walk: &mut Walk, obj: Addr) {
        if self.wanted.contains(&obj) {
            walk.found.reached.insert(obj);
        }
        if self.loops.contains(&obj) {
            return;
        }
        let heap = self.heap;
        let Some(ty) = heap.type_of(obj) else { return };
        match ty.name.as_str() {
            "function" if walk.refused.is_some() && !self.is_named(walk, obj) => {
                walk.refused.as_mut().expect("it is some").push(obj);
            }
            "function" => self.function(walk, obj),
            "coroutine" | "generator" | "async_generator" => {
                let chain = coroutines::chain(heap, obj);
                // A generator that runs is moved by the thread that runs it, which is searched for itself.
                let of_other = chain.executing && ty.name == "generator";
                for frame in chain.frames.iter().filter(|_| !of_other) {
                    self.frame(walk, frame);
                }
            }
            "module" => {
                if let Some(dict) = heap.module_dict(obj).filter(|_| walk.freedom == Freedom::Named) {
                    self.scope(walk, dict);
                }
            }
            _ if ty.is_c_function() => {
                let owner = heap.ptr(obj + heap.layout.method.self_);
                // Functions of modules, `eval` among the builtins, are there for everybody: named they are by code.
                let of_module = |o: Addr| heap.type_of(o).is_some_and(|ty| ty.name == "module");
                let definition =
                    heap.ptr(obj + heap.layout.method.func).filter(|_| !owner.is_some_and(of_module));
                if let Some(name) = definition.and_then(|d| exits::c_name(heap, d)) {
                    let number = self.number(&name);
                    walk.name(&[number]);
                }
                walk.left.extend(owner);
            }
            _ if ty.is_type() => self.class(walk, obj),
            _ => {
                let parts = self.parts_of(obj, &ty);
                match self.by_names && walk.freedom == Freedom::Named && self.is_of_application(&ty) {
                    true => {
                        let attributes = heap.attributes(obj, MAX_ITEMS).unwrap_or_default().into_iter();
                        let attributes =
                            attributes.filter_map(|(name, v)| Some((heap.checked_str(name)?, v)));
                        let attributes: Vec<(String, Addr)> =
                            attributes.chain(heap.slots(obj, MAX_ITEMS)).collect();
                        walk.unnamed.extend(attributes.into_iter().map(|(n, v)| (self.number(&n), v)));
                    }
                    false => walk.left.extend_from_slice(&parts),
                }
                walk.found.met_opaque |= is_opaque(&ty, &parts);
                // Classes of Python have methods of their own; those of the standard library do as they are told.
                if ty.is_heap_type() && !ty.name.contains('.') {
                    self.class(walk, ty.addr);
                }
            }
        }
    }

    /// What an object refers to, of the kinds that keep references for others.
    fn parts_of(&mut self, obj: Addr, ty: &Rc<TypeInfo>) -> Rc<[Addr]> {
        if let Some(known) = self.parts.get(&obj) {
            return known.clone();
        }
        let parts: Rc<[Addr]> = self.read_parts(obj, ty).into();
        self.parts.insert(obj, parts.clone());
        parts
    }

    fn read_parts(&mut self, obj: Addr, ty: &Rc<TypeInfo>) -> Vec<Addr> {
        let heap = self.heap;
        let after_head = obj + heap.layout.object.size;
        if ty.is_int() || ty.is_str() || ty.is_bytes() {
            return Vec::new();
        }
        if ty.is_tuple() || ty.is_list() {
            return heap.items(obj, ty, MAX_ITEMS).unwrap_or_default().0;
        }
        let mut parts = Vec::new();
        if ty.is_dict() {
            let entries = heap.dict(obj, MAX_ITEMS).unwrap_or_default().0;
            // What a module defines is got at by its names: `threading` has all threads.
            if entries.first().is_some_and(|e| heap.checked_str(e.0).as_deref() == Some("__name__")) {
                return Vec::new();
            }
            // Keys are mostly names; objects may be keys, too.
            let is_name = |k: Addr| heap.type_of(k).is_none_or(|t| t.is_str() || t.is_int());
            parts.extend(entries.iter().filter(|e| !is_name(e.0)).map(|e| e.0));
            parts.extend(entries.iter().map(|e| e.1));
        }
        match ty.name.as_str() {
            "method" => parts.extend(heap.words(obj + heap.layout.method.func, 2).unwrap_or_default()),
            // `partialobject { fn, args, kw, … }` (Modules/_functoolsmodule.c)
            "functools.partial" => parts.extend(heap.words(after_head, 3).unwrap_or_default()),
            "set" | "frozenset" => parts.extend(heap.set(obj, MAX_ITEMS).unwrap_or_default().0),
            "collections.deque" => parts.extend(futures::deque(heap, obj, MAX_ITEMS)),
            "cell" => parts.extend(heap.cell(obj)),
            "staticmethod" | "classmethod" => parts.extend(heap.ptr(after_head)),
            // `prop_get, prop_set` (Objects/descrobject.c)
            "property" => parts.extend(heap.words(after_head, 2).unwrap_or_default()),
            name if name.starts_with("weakref") => parts.extend(heap.ptr(after_head)),
            _ => {}
        }
        if let Some(future) = futures::future(heap, obj) {
            // A task is moved by its own coroutine alone, which is searched for itself.
            return if future.is_task { Vec::new() } else { futures::callbacks(heap, &future) };
        }
        // What Cython keeps, no attribute shows.
        if ty.name.starts_with("uvloop.") {
            parts.extend(uv::fields(heap, obj, ty));
        }
        if ty.is_heap_type() || ty.dictoffset != 0 {
            parts.extend(heap.attributes(obj, MAX_ITEMS).unwrap_or_default().into_iter().map(|(_, v)| v));
            parts.extend(heap.slot_values(obj, ty));
        }
        self.opaque |= is_opaque(ty, &parts);
        parts.retain(|p| *p != 0 && p % 8 == 0);
        parts
    }

    /// A plain class of the application's own, of whose attributes no code of the standard library knows.
    fn is_of_application(&mut self, ty: &TypeInfo) -> bool {
        if let Some(known) = self.applications.get(&ty.addr) {
            return *known;
        }
        let heap = self.heap;
        let is_object =
            (ty.base != 0).then(|| heap.type_at(ty.base)).flatten().is_some_and(|b| b.name == "object");
        let plain = ty.is_heap_type() && !ty.name.contains('.') && is_object;
        let own = plain && {
            let dict = heap.ptr(ty.addr + heap.layout.types.dict);
            let entries = dict.and_then(|dict| heap.dict(dict, 4096)).unwrap_or_default().0;
            let file = |function: Addr| {
                heap.type_of(function).filter(|t| t.name == "function")?;
                let code = heap.ptr(function + heap.layout.function.code)?;
                heap.checked_str(heap.ptr(code + heap.layout.code.filename)?)
            };
            entries.into_iter().find_map(|(_, value)| file(value)).is_some_and(|f| self.paths.is_user(&f))
        };
        self.applications.insert(ty.addr, own);
        own
    }

    fn frame(&mut self, walk: &mut Walk, frame: &RawFrame) {
        let heap = self.heap;
        let variables = self.variables.entry(frame.code);
        let variables = variables.or_insert_with(|| locals::variables(heap, frame.code).map(Rc::new)).clone();
        let Some(variables) = variables else { return };
        let slots = heap.words(frame.addr + heap.layout.frame.locals, variables.names.len());
        let values = slots.unwrap_or_default().into_iter().enumerate();
        walk.left.extend(values.filter_map(|(i, slot)| variables.value(heap, i, slot)));
        self.speak(walk, frame.code, frame.globals);
    }

    /// The code on the way names this function.
    fn is_named(&mut self, walk: &Walk, function: Addr) -> bool {
        let code = self.heap.ptr(function + self.heap.layout.function.code);
        code.and_then(|code| self.spoken(code)).is_some_and(|spoken| walk.found.names.contains(&spoken.name))
    }

    fn function(&mut self, walk: &mut Walk, function: Addr) {
        let heap = self.heap;
        let f = &heap.layout.function;
        let Some(code) = heap.ptr(function + f.code) else { return };
        let cells = heap.ptr(function + f.closure).and_then(|c| heap.tuple(c, 64));
        let cells: Vec<Addr> = cells.unwrap_or_default().into_iter().filter_map(|c| heap.cell(c)).collect();
        // What a decorator wraps is called without being named.
        if walk.refused.is_some() {
            let own = std::mem::replace(&mut walk.in_frames, false);
            cells.iter().for_each(|cell| self.call(walk, *cell));
            walk.in_frames = own;
        }
        walk.left.extend(cells);
        // `func_globals` stands first, up to 3.9 behind `func_code` (Include/cpython/funcobject.h).
        let first = heap.layout.object.size;
        let globals = heap.ptr(function + if f.code == first { first + 8 } else { first });
        self.speak(walk, code, globals.unwrap_or(0));
    }

    /// This code may run: what it names counts, and the globals that it names.
    fn speak(&mut self, walk: &mut Walk, code: Addr, globals: Addr) {
        self.speak_of(walk, code, globals, None);
    }

    /// `rest`: of a frame that is on its way; the functions that it has made are objects by now. The code may be
    /// called once more, all of it.
    fn speak_of(&mut self, walk: &mut Walk, code: Addr, globals: Addr, rest: Option<&Rest>) {
        if rest.is_none() && !walk.codes.insert(code) {
            return;
        }
        let Some(spoken) = self.spoken(code) else { return };
        walk.found.names.insert(spoken.name);
        // Of the standard library only what it is called with counts.
        if spoken.stdlib {
            return;
        }
        let is_ahead = |at: &usize| rest.is_none_or(|rest| !rest.behind.contains(&(*at as u32)));
        let names: Vec<u32> = (0..spoken.names.len()).filter(is_ahead).map(|at| spoken.names[at]).collect();
        walk.name(&names);
        if self.by_names && spoken.user {
            walk.takes_any |=
                ANY_NAME.iter().any(|n| self.numbers.get(*n).is_some_and(|n| names.contains(n)));
        }
        walk.found.calls |= rest.is_none();
        // It may call itself, for something else.
        if names.contains(&spoken.name) {
            walk.found.elsewhere.extend(&spoken.names);
        }
        let is_dict = globals != 0 && self.heap.type_of(globals).is_some_and(|t| t.is_dict());
        if is_dict {
            let scope = self.scope_of(globals);
            let named = scope.iter().filter(|(n, _)| names.contains(n)).map(|(_, v)| *v);
            walk.left.extend(named.filter(|value| self.leads_on(*value)));
        }
        let own = std::mem::replace(&mut walk.in_frames, false);
        let to_come = |inner: &&Addr| rest.is_none_or(|rest| rest.constants.contains(*inner));
        for &inner in spoken.inner.iter().filter(to_come) {
            self.speak(walk, inner, globals);
        }
        walk.in_frames = own;
    }

    /// A callback of the standard library's own is what it says, too: that of `as_completed` puts into a queue.
    fn speak_freely(&mut self, walk: &mut Walk, callback: Addr) {
        let heap = self.heap;
        let function = match heap.type_of(callback) {
            Some(ty) if ty.name == "method" => heap.ptr(callback + heap.layout.method.func),
            _ => Some(callback),
        };
        let is_function = |f: &Addr| heap.type_of(*f).is_some_and(|t| t.name == "function");
        if let Some(function) = function.filter(is_function)
            && let Some(code) = heap.ptr(function + heap.layout.function.code)
            && let Some(spoken) = self.spoken(code)
        {
            walk.name(&spoken.names);
        }
    }

    fn spoken(&mut self, code: Addr) -> Option<Rc<Spoken>> {
        if let Some(known) = self.spoken.get(&code) {
            return known.clone();
        }
        let read = |search: &mut Self| {
            let (heap, c) = (search.heap, &search.heap.layout.code);
            heap.type_of(code).filter(|t| t.name == "code")?;
            let text = |at: u64| heap.checked_str(heap.ptr(code + at)?);
            let name = search.number(&text(c.name)?);
            let file = text(c.filename);
            let stdlib = file.as_ref().is_none_or(|f| search.paths.is_stdlib(f));
            let user = file.as_ref().is_none_or(|f| search.paths.is_user(f));
            let consts = heap.ptr(code + c.consts).and_then(|t| heap.tuple(t, 1024)).unwrap_or_default();
            let is_code = |o: &Addr| heap.type_of(*o).is_some_and(|t| t.name == "code");
            let inner = consts.into_iter().filter(is_code).collect();
            let names = search.scene.names(code).iter().map(|n| search.number(n)).collect();
            Some(Rc::new(Spoken { name, names, inner, stdlib, user }))
        };
        let read = read(self);
        self.spoken.insert(code, read.clone());
        read
    }

    fn class(&mut self, walk: &mut Walk, class: Addr) {
        let heap = self.heap;
        let t = &heap.layout.types;
        let bases = heap.ptr(class + t.mro).and_then(|mro| heap.tuple(mro, 32)).unwrap_or_default();
        for base in bases {
            // Builtins have no methods of Python.
            if heap.type_at(base).is_some_and(|b| b.is_heap_type())
                && let Some(dict) = heap.ptr(base + t.dict)
            {
                self.scope(walk, dict);
            }
        }
    }

    fn scope(&mut self, walk: &mut Walk, dict: Addr) {
        if walk.known_scopes.insert(dict) {
            let scope = self.scope_of(dict);
            walk.scopes.push(scope);
        }
    }

    fn scope_of(&mut self, dict: Addr) -> Scope {
        if let Some(known) = self.scopes.get(&dict) {
            return known.clone();
        }
        let entries = self.heap.dict(dict, 4096).unwrap_or_default().0;
        let named = entries.into_iter().filter_map(|(key, value)| {
            let name = self.heap.name(key)?;
            let follow = !name.starts_with("__") || IMPLIED.contains(&&*name);
            follow.then(|| (self.number(&name), value))
        });
        let scope: Scope = Rc::new(named.collect());
        self.scopes.insert(dict, scope.clone());
        scope
    }

    /// What the standard library's functions do, they do as they are told.
    fn leads_on(&mut self, value: Addr) -> bool {
        if let Some(known) = self.leads.get(&value) {
            return *known;
        }
        let leads = !self.is_of_stdlib(value);
        self.leads.insert(value, leads);
        leads
    }

    fn is_of_stdlib(&mut self, obj: Addr) -> bool {
        let heap = self.heap;
        let Some(ty) = heap.type_of(obj) else { return true };
        match ty.name.as_str() {
            "function" => {
                let code = heap.ptr(obj + heap.layout.function.code);
                code.and_then(|c| self.spoken(c)).is_none_or(|s| s.stdlib)
            }
            "method_descriptor" | "wrapper_descriptor" | "member_descriptor" | "getset_descriptor"
            | "code" => true,
            _ => ty.is_int() || ty.is_str() || ty.is_bytes() || ty.is_c_function(),
        }
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(known) = self.numbers.get(name) {
            return *known;
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

/// A thread's own frames below what it runs: they only end it.
fn is_below_target(frames: &[FrameScene], index: usize) -> bool {
    let calls_target = || index > 0 && !frames[index - 1].in_file("/threading.py");
    match frames[index].code.name.as_str() {
        "_bootstrap" | "_bootstrap_inner" => frames[index].in_file("/threading.py"),
        // That of a Timer has yet to call.
        "run" => frames[index].in_file("/threading.py") && calls_target(),
        _ => false,
    }
}

fn is_opaque(ty: &TypeInfo, parts: &[Addr]) -> bool {
    // What it has called, and keeps, lies in a table of its own (Modules/_functoolsmodule.c).
    ty.name.ends_with("_lru_cache_wrapper")
        || parts.is_empty() && ty.name.contains('.') && !is_of_python(&ty.name)
}

/// Types of the interpreter's own C code, none of which completes a future that it was not called with.
fn is_of_python(name: &str) -> bool {
    const MODULES: &[&str] = &[
        "_abc",
        "_asyncio",
        "_blake2",
        "_bz2",
        "_collections",
        "_contextvars",
        "_ctypes",
        "_datetime",
        "_decimal",
        "_functools",
        "_hashlib",
        "_io",
        "_lzma",
        "_md5",
        "_multiprocessing",
        "_operator",
        "_queue",
        "_random",
        "_sha1",
        "_sha2",
        "_sha256",
        "_sha3",
        "_sha512",
        "_socket",
        "_sre",
        "_ssl",
        "_struct",
        "_thread",
        "_weakref",
        "_zoneinfo",
        "array",
        "builtins",
        "collections",
        "contextvars",
        "datetime",
        "decimal",
        "enum",
        "functools",
        "mmap",
        "posix",
        "re",
        "select",
        "signal",
        "sqlite3",
        "sys",
        "time",
        "types",
        "typing",
        "uuid",
        "zlib",
    ];
    // Arrays of numbers; and those iterators that iterate over nothing else.
    const OTHERS: &[&str] = &["numpy.ndarray", "itertools.count"];
    OTHERS.contains(&name) || name.split('.').next().is_some_and(|module| MODULES.contains(&module))
}
