//! Reading values: types, strings, numbers, containers, attributes of instances.
//!
//! Everything here is total and bounded: a pointer may dangle, a length may lie, a list may be its
//! own element. What does not check out is `None`.

use std::cell::RefCell;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::hash::StrHash;
use super::layout::{Frames, InstanceDict, IntForm, Layout, NONE, StrState};
use super::stdlib_names;
use crate::target::memory::{Addr, Memory};

/// Longest string that is read whole; what is longer is cut.
pub const MAX_TEXT: usize = 64 * 1024;
/// Most entries of a container that are looked at.
pub const MAX_ENTRIES: usize = 65_536;
/// Most `__slots__` of one class.
const MAX_SLOTS: usize = 256;

/// No machine that Linux runs on has user addresses above this.
pub const USER_SPACE: Addr = 1 << 57;

/// A field of what stands at `obj`, if anything can stand there: other offsets can be added as well then.
fn at(obj: Addr, offset: u64) -> Option<Addr> {
    if obj < USER_SPACE { obj.checked_add(offset) } else { None }
}

// Bits of `tp_flags` (Include/object.h).
const MANAGED_DICT: u64 = 1 << 4;
const INLINE_VALUES: u64 = 1 << 2;
const HEAPTYPE: u64 = 1 << 9;
const LONG: u64 = 1 << 24;
const LIST: u64 = 1 << 25;
const TUPLE: u64 = 1 << 26;
const BYTES: u64 = 1 << 27;
const UNICODE: u64 = 1 << 28;
const DICT: u64 = 1 << 29;
const EXCEPTION: u64 = 1 << 30;
const TYPE: u64 = 1 << 31;

/// What is known of a type object.
#[derive(Debug)]
pub struct TypeInfo {
    pub addr: Addr,
    /// `tp_name`: dotted for static types, the bare name for classes made by Python code.
    pub name: String,
    pub basicsize: u64,
    pub itemsize: u64,
    pub dictoffset: i64,
    flags: u64,
    pub base: Addr,
}

impl TypeInfo {
    pub fn is_int(&self) -> bool {
        self.flags & LONG != 0
    }
    pub fn is_list(&self) -> bool {
        self.flags & LIST != 0
    }
    pub fn is_tuple(&self) -> bool {
        self.flags & TUPLE != 0
    }
    pub fn is_bytes(&self) -> bool {
        self.flags & BYTES != 0
    }
    pub fn is_str(&self) -> bool {
        self.flags & UNICODE != 0
    }
    pub fn is_dict(&self) -> bool {
        self.flags & DICT != 0
    }
    /// A function of C, perhaps bound: the second name is that of those that are told their class
    /// (PyCFunction_Type and PyCMethod_Type, Objects/methodobject.c).
    pub fn is_c_function(&self) -> bool {
        matches!(self.name.as_str(), "builtin_function_or_method" | "builtin_method")
    }
    /// One of the interpreter's own, as `for` loops leave them on the value stack.
    pub fn is_c_iterator(&self) -> bool {
        let name = self.name.as_str();
        !self.is_heap_type() && name.ends_with("iterator")
            || name.starts_with("itertools.")
            || matches!(name, "enumerate" | "zip" | "map" | "filter" | "reversed")
    }

    pub fn is_exception(&self) -> bool {
        self.flags & EXCEPTION != 0
    }
    pub fn is_type(&self) -> bool {
        self.flags & TYPE != 0
    }
    pub fn is_heap_type(&self) -> bool {
        self.flags & HEAPTYPE != 0
    }
}

/// The objects of one interpreter process.
pub struct Heap<'a> {
    pub mem: &'a dyn Memory,
    pub layout: &'a Layout,
    hash: Option<StrHash>,
    /// See [`SysInfo::frozen_library`](super::sysinfo::SysInfo::frozen_library).
    frozen: Option<&'a str>,
    types: RefCell<FxHashMap<Addr, Option<Rc<TypeInfo>>>>,
    /// Names and offsets of slots, by type.
    slots: RefCell<FxHashMap<Addr, Slots>>,
    /// Names of functions and variables: strings that many objects share.
    names: RefCell<FxHashMap<Addr, Option<Rc<str>>>>,
    /// Names of the variables of code objects.
    variables: RefCell<FxHashMap<Addr, Names>>,
}

type Names = Option<Rc<[Rc<str>]>>;

type Slots = Rc<Vec<(String, u64)>>;

impl<'a> Heap<'a> {
    pub fn new(mem: &'a dyn Memory, layout: &'a Layout) -> Self {
        Heap {
            mem,
            layout,
            hash: None,
            frozen: None,
            types: RefCell::default(),
            slots: RefCell::default(),
            names: RefCell::default(),
            variables: RefCell::default(),
        }
    }

    /// Finds keys by their hash from here on, if `hash` proves right on the keys of this dict.
    pub fn with_hash(mut self, hash: Option<StrHash>, dict: Addr) -> Self {
        let proves = |hash: &StrHash| {
            let (entries, _) = self.dict(dict, 8)?;
            let (key, _) =
                entries.iter().find(|(k, _)| self.checked_str(*k).is_some_and(|k| k.is_ascii()))?;
            // `PyASCIIObject { length, hash, state }`
            let cached = self.mem.u64(key + self.layout.unicode.length + 8).ok()?;
            Some(cached == hash.of(&self.str(*key)?))
        };
        self.hash = hash.filter(|h| proves(h) == Some(true));
        self
    }

    /// The hash that was proven, for another heap over the same process.
    pub fn proven_hash(&self) -> Option<StrHash> {
        self.hash
    }

    pub fn using(mut self, hash: Option<StrHash>) -> Self {
        self.hash = hash;
        self
    }

    pub fn frozen(mut self, library: Option<&'a str>) -> Self {
        self.frozen = library;
        self
    }

    /// The file of a code object, with a directory where only the standard library's own name is given.
    pub fn whole_path(&self, file: String) -> String {
        match self.frozen {
            Some(library) if stdlib_names::has(&file) => format!("{library}/{file}"),
            _ => file,
        }
    }

    /// A pointer that is neither null nor misaligned, and to user space: offsets can be added to it.
    pub fn ptr(&self, at: Addr) -> Option<Addr> {
        self.mem.u64(at).ok().filter(|p| *p != 0 && p % 8 == 0 && *p < USER_SPACE)
    }

    pub fn type_of(&self, obj: Addr) -> Option<Rc<TypeInfo>> {
        let ty = self.ptr(at(obj, self.layout.object.ob_type)?)?;
        self.type_at(ty)
    }

    /// Reads a type object, once.
    pub fn type_at(&self, ty: Addr) -> Option<Rc<TypeInfo>> {
        if let Some(known) = self.types.borrow().get(&ty) {
            return known.clone();
        }
        let info = self.read_type(ty).map(Rc::new);
        self.types.borrow_mut().insert(ty, info.clone());
        info
    }

    fn read_type(&self, ty: Addr) -> Option<TypeInfo> {
        let t = &self.layout.types;
        let name = self.mem.c_string(self.mem.u64(at(ty, t.name)?).ok()?, 256).ok()?;
        let name = String::from_utf8(name).ok().filter(|n| !n.is_empty())?;
        Some(TypeInfo {
            addr: ty,
            name,
            basicsize: self.mem.u64(ty + t.basicsize).ok()?,
            itemsize: self.mem.u64(ty + t.itemsize).ok()?,
            dictoffset: self.mem.i64(ty + t.dictoffset).ok()?,
            flags: self.mem.u64(ty + t.flags).ok()?,
            base: self.mem.u64(ty + t.base).ok()?,
        })
    }

    /// Whether it is an instance of this class of a module of Python's, or of one made from it.
    pub fn is_of(&self, ty: &TypeInfo, module: &str, class: &str) -> bool {
        // The module takes a search: first the name that is at hand.
        let is_it = |ty: &TypeInfo| {
            ty.name.rsplit('.').next() == Some(class)
                && self.type_name(ty).strip_prefix(module).and_then(|n| n.strip_prefix('.')) == Some(class)
        };
        let base = |ty: &TypeInfo| {
            (ty.base != 0).then(|| self.type_at(ty.base)).flatten().filter(|t| t.is_heap_type())
        };
        is_it(ty) || std::iter::successors(base(ty), |ty| base(ty)).take(16).any(|ty| is_it(&ty))
    }

    /// Whether the type or one of its bases (single inheritance of layout) has this `tp_name`.
    pub fn is_a(&self, ty: &TypeInfo, name: &str) -> bool {
        let mut base = ty.base;
        if ty.name == name {
            return true;
        }
        for _ in 0..64 {
            let Some(t) = (base != 0).then(|| self.type_at(base)).flatten() else { return false };
            if t.name == name {
                return true;
            }
            base = t.base;
        }
        false
    }

    /// Number of items of a variable-size object.
    pub fn size(&self, obj: Addr) -> Option<i64> {
        self.mem.i64(at(obj, self.layout.object.ob_size)?).ok()
    }

    /// Reads a `str`, cut after [`MAX_TEXT`] characters.
    pub fn str(&self, obj: Addr) -> Option<String> {
        self.str_cut(obj, MAX_TEXT).map(|(text, _)| text)
    }

    /// Reads at most `cap` characters; the second value is the true length.
    pub fn str_cut(&self, obj: Addr, cap: usize) -> Option<(String, usize)> {
        let u = &self.layout.unicode;
        let length = self.mem.u64(at(obj, u.length)?).ok()? as usize;
        // A str cannot be longer than the address space.
        if length > 1 << 46 {
            return None;
        }
        let state = self.mem.u32(obj + u.state).ok()?;
        let (kind, compact, ascii) = match self.layout.str_state {
            StrState::Bits => (state >> 2 & 7, state >> 5 & 1, state >> 6 & 1),
            StrState::BitsAfterInterned => (state >> 8 & 7, state >> 11 & 1, state >> 12 & 1),
        };
        let data = match (compact, ascii) {
            (1, 1) => obj + u.ascii_data,
            (1, _) => obj + u.compact_data,
            _ => self.mem.u64(obj + u.compact_data).ok()?,
        };
        let n = length.min(cap);
        let text = match kind {
            1 if ascii == 1 => {
                let bytes = self.mem.bytes(data, n).ok()?;
                if !bytes.is_ascii() {
                    return None;
                }
                String::from_utf8(bytes).ok()?
            }
            1 => self.mem.bytes(data, n).ok()?.into_iter().map(char::from).collect(),
            2 => {
                let bytes = self.mem.bytes(data, 2 * n).ok()?;
                let units = bytes.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]) as u32);
                units.map(to_char).collect()
            }
            4 => {
                let bytes = self.mem.bytes(data, 4 * n).ok()?;
                let units = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
                units.map(to_char).collect()
            }
            _ => return None,
        };
        Some((text, length))
    }

    /// Like [`str`](Self::str), after checking that it is one.
    pub fn checked_str(&self, obj: Addr) -> Option<String> {
        self.type_of(obj).filter(|t| t.is_str()).and_then(|_| self.str(obj))
    }

    /// A `str` that is met again and again, read once.
    pub fn name(&self, obj: Addr) -> Option<Rc<str>> {
        if let Some(known) = self.names.borrow().get(&obj) {
            return known.clone();
        }
        let name = self.checked_str(obj).map(Rc::from);
        self.names.borrow_mut().insert(obj, name.clone());
        name
    }

    /// The names of all variable slots of a code object, read once.
    pub fn variable_names(&self, code: Addr) -> Option<Rc<[Rc<str>]>> {
        if let Some(known) = self.variables.borrow().get(&code) {
            return known.clone();
        }
        let read = || {
            let variables = super::locals::variables(self, code)?;
            Some(variables.names.iter().map(|n| self.name(*n).unwrap_or_default()).collect())
        };
        let names: Names = read();
        self.variables.borrow_mut().insert(code, names.clone());
        names
    }

    /// The contents of a `bytes`, at most `cap` of them, and the true length.
    pub fn bytes(&self, obj: Addr, cap: usize) -> Option<(Vec<u8>, usize)> {
        let size = usize::try_from(self.size(obj)?).ok()?;
        let data = self.mem.bytes(obj + self.layout.bytes.data, size.min(cap)).ok()?;
        Some((data, size))
    }

    /// Sign and 30-bit digits (least significant first), at most `cap` of them.
    pub fn int_digits(&self, obj: Addr, cap: usize) -> Option<(bool, Vec<u32>)> {
        let tag = self.mem.i64(at(obj, self.layout.int.tag)?).ok()?;
        let (negative, count) = match self.layout.int_form {
            IntForm::SignedSize => (tag < 0, tag.unsigned_abs()),
            IntForm::Tag => (tag & 3 == 2, (tag as u64) >> 3),
        };
        let count = usize::try_from(count).ok().filter(|n| *n <= cap)?;
        let bytes = self.mem.bytes(obj + self.layout.int.digits, 4 * count).ok()?;
        let digits = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        let digits: Vec<u32> = digits.collect();
        digits.iter().all(|d| *d < 1 << 30).then_some((negative, digits))
    }

    /// An `int` that fits; `bool` is one. A capture need not have its type.
    pub fn int(&self, obj: Addr) -> Option<i64> {
        if self.type_of(obj).is_some_and(|t| !t.is_int()) {
            return None;
        }
        let (negative, digits) = self.int_digits(obj, 3)?;
        let value = digits.iter().rev().fold(0i128, |v, d| v << 30 | *d as i128);
        i64::try_from(if negative { -value } else { value }).ok()
    }

    pub fn float(&self, obj: Addr) -> Option<f64> {
        self.mem.u64(at(obj, self.layout.float.value)?).ok().map(f64::from_bits)
    }

    /// Items of a tuple or list, at most `cap`, and the true length.
    pub fn items(&self, obj: Addr, ty: &TypeInfo, cap: usize) -> Option<(Vec<Addr>, usize)> {
        let size = usize::try_from(self.size(obj)?).ok()?;
        let at = if ty.is_tuple() {
            obj + self.layout.tuple.items
        } else {
            match self.mem.u64(obj + self.layout.list.items).ok()? {
                0 => return Some((Vec::new(), 0)),
                p => p,
            }
        };
        Some((self.words(at, size.min(cap))?, size))
    }

    /// The items of a tuple that is known to be one (`co_varnames` and the like).
    pub fn tuple(&self, obj: Addr, cap: usize) -> Option<Vec<Addr>> {
        let ty = self.type_of(obj).filter(|t| t.is_tuple())?;
        self.items(obj, &ty, cap).map(|(items, _)| items)
    }

    pub fn words(&self, at: Addr, n: usize) -> Option<Vec<u64>> {
        let bytes = self.mem.bytes(at, n.checked_mul(8)?).ok()?;
        Some(bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes"))).collect())
    }

    /// Elements of a set or frozenset, at most `cap`, and how many there are.
    pub fn set(&self, obj: Addr, cap: usize) -> Option<(Vec<Addr>, usize)> {
        let s = &self.layout.set;
        let used = usize::try_from(self.mem.i64(at(obj, s.used)?).ok()?).ok()?;
        let mask = usize::try_from(self.mem.i64(obj + s.mask).ok()?).ok()?;
        if used > mask.checked_add(1)? {
            return None;
        }
        let slots = self.words(self.mem.u64(obj + s.table).ok()?, 2 * (mask + 1).min(MAX_ENTRIES))?;
        // An entry is (key, hash); a deleted one holds the dummy with hash −1 (Objects/setobject.c).
        let live = slots.chunks_exact(2).filter(|e| e[0] != 0 && e[0] < USER_SPACE && e[1] != u64::MAX);
        Some((live.map(|e| e[0]).take(cap).collect(), used))
    }

    /// Entries (key, value) of a dict in order of insertion, at most `cap`, and how many there are.
    pub fn dict(&self, obj: Addr, cap: usize) -> Option<(Vec<(Addr, Addr)>, usize)> {
        let d = &self.layout.dict;
        let used = usize::try_from(self.mem.i64(at(obj, d.used)?).ok()?).ok()?;
        let keys = self.ptr(obj + d.keys)?;
        let values = self.mem.u64(obj + d.values).ok()?;
        let values = match values {
            0 => None,
            v => Some(at(v, self.layout.dict_values.values)?),
        };
        Some((self.keys(keys, values, cap)?, used))
    }

    /// Entries of a keys object; with `values` its table is split: the values stand elsewhere.
    fn keys(&self, keys: Addr, values: Option<Addr>, cap: usize) -> Option<Vec<(Addr, Addr)>> {
        let k = &self.layout.dict_keys;
        let n = usize::try_from(self.mem.i64(keys.checked_add(k.nentries)?).ok()?).ok()?;
        let (index_bytes, hashes) = if k.kind == NONE {
            let slots = self.mem.u64(keys + k.log2_size).ok()?;
            (slots.checked_mul(index_width(slots))?, true)
        } else {
            let log2 = self.mem.u8(keys + k.log2_index_bytes).ok()?;
            let kind = self.mem.u8(keys + k.kind).ok()?;
            if log2 > 40 || kind > 2 {
                return None;
            }
            (1 << log2, kind == 0)
        };
        let entries = keys.checked_add(k.indices)?.checked_add(index_bytes)?;
        let n = n.min(MAX_ENTRIES);
        let width = if hashes { 3 } else { 2 };
        let words = self.words(entries, n.checked_mul(width)?)?;
        let values = match values {
            Some(at) => Some(self.words(at, n)?),
            None => None,
        };
        let pairs = words.chunks_exact(width).enumerate().map(|(i, e)| {
            let (key, value) = (e[width - 2], e[width - 1]);
            (key, values.as_ref().map_or(value, |v| v[i]))
        });
        let can_be = |p: Addr| p != 0 && p < USER_SPACE;
        Some(pairs.filter(|(k, v)| can_be(*k) && can_be(*v)).take(cap).collect())
    }

    /// Looks up several string keys of a dict in one pass.
    pub fn dict_get<const N: usize>(&self, dict: Addr, wanted: [&str; N]) -> [Option<Addr>; N] {
        let mut found = [None; N];
        let d = &self.layout.dict;
        let field = |offset: u64| at(dict, offset);
        let keys = field(d.keys).and_then(|k| self.ptr(k));
        let values = field(d.values).and_then(|v| self.mem.u64(v).ok());
        if let (Some(hash), Some(keys), Some(values)) = (self.hash, keys, values) {
            let values = at(values, self.layout.dict_values.values).filter(|_| values != 0);
            return wanted.map(|name| self.lookup(keys, values, name, hash.of(name)));
        }
        let Some((entries, _)) = self.dict(dict, MAX_ENTRIES) else { return found };
        self.find_keys(&entries, wanted, &mut found);
        found
    }

    /// One key of a keys object by its hash (Objects/dictobject.c, `dictkeys_stringlookup`).
    fn lookup(&self, keys: Addr, values: Option<Addr>, name: &str, hash: u64) -> Option<Addr> {
        let k = &self.layout.dict_keys;
        let (slots, index_bytes, width) = if k.kind == NONE {
            let slots = self.mem.u64(keys + k.log2_size).ok()?;
            (slots, slots.checked_mul(index_width(slots))?, 24)
        } else {
            let slots = 1u64.checked_shl(self.mem.u8(keys + k.log2_size).ok()?.into())?;
            let bytes = 1u64.checked_shl(self.mem.u8(keys + k.log2_index_bytes).ok()?.into())?;
            (slots, bytes, if self.mem.u8(keys + k.kind).ok()? == 0 { 24 } else { 16 })
        };
        if !slots.is_power_of_two() || index_bytes < slots || index_bytes > 1 << 40 {
            return None;
        }
        let indices = keys + k.indices;
        let entries = indices + index_bytes;
        let (mut i, mut perturb) = (hash & (slots - 1), hash);
        // A chain visits every slot at most a few times; a corrupt table must end all the same.
        for _ in 0..MAX_ENTRIES {
            let index = match index_bytes / slots {
                1 => self.mem.u8(indices + i).ok()? as i8 as i64,
                2 => self.mem.u16(indices + 2 * i).ok()? as i16 as i64,
                4 => self.mem.i32(indices + 4 * i).ok()? as i64,
                _ => self.mem.i64(indices + 8 * i).ok()?,
            };
            if index == -1 {
                return None;
            }
            if let Ok(index) = u64::try_from(index) {
                let entry = entries.checked_add(index.checked_mul(width)?)?;
                let (key_at, value_at) = (entry + width - 16, entry + width - 8);
                let is_it = |key: &Addr| {
                    let length = self.mem.u64(key + self.layout.unicode.length);
                    length == Ok(name.len() as u64) && self.checked_str(*key).is_some_and(|k| k == name)
                };
                if self.ptr(key_at).is_some_and(|key| is_it(&key)) {
                    return self.ptr(values.map_or(value_at, |v| v + 8 * index));
                }
            }
            perturb >>= 5;
            i = i.wrapping_mul(5).wrapping_add(perturb).wrapping_add(1) & (slots - 1);
        }
        None
    }

    fn find_keys<const N: usize>(
        &self,
        entries: &[(Addr, Addr)],
        wanted: [&str; N],
        found: &mut [Option<Addr>; N],
    ) {
        let head = self.layout.unicode.compact_data as usize;
        self.mem.prefetch(&entries.iter().map(|(k, _)| (*k, head + 32)).collect::<Vec<_>>());
        for (key, value) in entries {
            // The length decides for nearly all of them.
            let Ok(length) = self.mem.u64(key + self.layout.unicode.length) else { continue };
            if !wanted.iter().any(|w| w.len() as u64 == length) {
                continue;
            }
            let Some(text) = self.str(*key) else { continue };
            for (w, f) in wanted.iter().zip(found.iter_mut()) {
                if *w == text {
                    *f = Some(*value);
                }
            }
        }
    }

    /// Attributes that an instance has of its own (not those of its class), in order.
    pub fn attributes(&self, obj: Addr, cap: usize) -> Option<Vec<(Addr, Addr)>> {
        let ty = self.type_of(obj)?;
        match self.instance_dict(obj, &ty)? {
            Attributes::Dict(dict) => self.dict(dict, cap).map(|(entries, _)| entries),
            Attributes::Values(values) => {
                let keys = self.ptr(ty.addr + self.layout.types.cached_keys)?;
                self.keys(keys, Some(values), cap)
            }
            Attributes::None => Some(Vec::new()),
        }
    }

    /// Attributes that `__slots__` keeps in the object itself, by name; those that have a value.
    pub fn slots(&self, obj: Addr, cap: usize) -> Vec<(String, Addr)> {
        let Some(ty) = self.type_of(obj) else { return Vec::new() };
        let table = self.slot_table(&ty);
        let value = |(name, offset): &(String, u64)| Some((name.clone(), self.ptr(at(obj, *offset)?)?));
        table.iter().filter_map(value).take(cap).collect()
    }

    /// The same without the names.
    pub fn slot_values(&self, obj: Addr, ty: &TypeInfo) -> Vec<Addr> {
        self.slot_table(ty).iter().filter_map(|(_, offset)| self.ptr(at(obj, *offset)?)).collect()
    }

    /// Some of them, by name.
    pub fn named_slots<const N: usize>(
        &self,
        obj: Addr,
        ty: &TypeInfo,
        wanted: [&str; N],
    ) -> [Option<Addr>; N] {
        let table = self.slot_table(ty);
        let offset = |name: &str| table.iter().find(|(n, _)| n == name).map(|(_, offset)| *offset);
        wanted.map(|name| self.ptr(at(obj, offset(name)?)?))
    }

    /// Names and offsets of the slots of a type and its bases; read once.
    fn slot_table(&self, ty: &TypeInfo) -> Slots {
        if let Some(known) = self.slots.borrow().get(&ty.addr) {
            return Rc::clone(known);
        }
        let mut table = Vec::new();
        let mut class = self.type_at(ty.addr);
        // Bases have slots of their own.
        for _ in 0..16 {
            let Some(t) = class.filter(|t| t.is_heap_type()) else { break };
            let dict = self.ptr(t.addr + self.layout.types.dict);
            let (entries, _) = dict.and_then(|d| self.dict(d, MAX_ENTRIES)).unwrap_or_default();
            for (name, member) in entries {
                if let Some(offset) = self.slot(&t, member).filter(|_| table.len() < MAX_SLOTS)
                    && let Some(name) = self.checked_str(name)
                {
                    table.push((name, offset));
                }
            }
            class = self.type_at(t.base);
        }
        let table = Rc::new(table);
        self.slots.borrow_mut().insert(ty.addr, Rc::clone(&table));
        table
    }

    /// The offset that a `member_descriptor` of the type leads to: `PyMemberDescrObject` ends with a
    /// pointer to `PyMemberDef { name, type, offset, … }` (Include/cpython/descrobject.h, descrobject.h).
    fn slot(&self, ty: &TypeInfo, member: Addr) -> Option<u64> {
        const OBJECT_EX: u32 = 16;
        if self.type_of(member)?.name != "member_descriptor" {
            return None;
        }
        let definition = self.ptr(member + self.layout.object.size + 24)?;
        let offset = self.mem.u64(definition + 16).ok()?;
        (self.mem.u32(definition + 8).ok()? == OBJECT_EX && offset < ty.basicsize).then_some(offset)
    }

    /// Looks up several attributes of an instance in one pass.
    pub fn attrs<const N: usize>(&self, obj: Addr, wanted: [&str; N]) -> [Option<Addr>; N] {
        self.own_attributes(obj, wanted).unwrap_or([None; N])
    }

    fn own_attributes<const N: usize>(&self, obj: Addr, wanted: [&str; N]) -> Option<[Option<Addr>; N]> {
        let ty = self.type_of(obj)?;
        match (self.instance_dict(obj, &ty)?, self.hash) {
            (Attributes::Dict(dict), _) => Some(self.dict_get(dict, wanted)),
            (Attributes::Values(values), Some(hash)) => {
                let keys = self.ptr(ty.addr + self.layout.types.cached_keys)?;
                Some(wanted.map(|name| self.lookup(keys, Some(values), name, hash.of(name))))
            }
            (Attributes::Values(_), None) => {
                let mut found = [None; N];
                self.find_keys(&self.attributes(obj, MAX_ENTRIES)?, wanted, &mut found);
                Some(found)
            }
            (Attributes::None, _) => None,
        }
    }

    /// What an object refers to for its attributes where they are not part of its body: its dict, or the
    /// values themselves.
    pub fn managed_attributes(&self, obj: Addr, ty: &TypeInfo) -> Vec<Addr> {
        if ty.flags & MANAGED_DICT == 0 {
            return Vec::new();
        }
        match self.instance_dict(obj, ty) {
            Some(Attributes::Dict(dict)) => vec![dict],
            Some(Attributes::Values(_)) => {
                self.attributes(obj, MAX_ENTRIES).unwrap_or_default().into_iter().map(|a| a.1).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Where the attributes of `obj` are kept (Objects/dictobject.c, Objects/typeobject.c).
    fn instance_dict(&self, obj: Addr, ty: &TypeInfo) -> Option<Attributes> {
        let word = |back: u64| self.mem.u64(obj.checked_sub(back)?).ok();
        if ty.flags & MANAGED_DICT != 0 {
            // In front of the object, and behind the gc header where there is one.
            let before = if self.layout.free_threaded { 8 } else { 24 };
            match self.layout.instance_dict {
                InstanceDict::Offset => {}
                InstanceDict::TwoWords => {
                    let values = word(32)?;
                    return Some(match values {
                        0 => Attributes::of_dict(word(24)?),
                        v => Attributes::Values(at(v, self.layout.dict_values.values)?),
                    });
                }
                InstanceDict::TaggedWord => {
                    let w = word(24)?;
                    return Some(match w & 1 {
                        1 => Attributes::Values(at(w, 1 + self.layout.dict_values.values)?),
                        _ => Attributes::of_dict(w),
                    });
                }
                InstanceDict::Inline => {
                    let dict = word(before)?;
                    if dict != 0 || ty.flags & INLINE_VALUES == 0 {
                        return Some(Attributes::of_dict(dict));
                    }
                    let values = at(obj, ty.basicsize)?;
                    // `valid` follows capacity, size and embedded, one byte each.
                    return Some(match self.mem.u8(values + 3).ok()? {
                        1 => Attributes::Values(values + self.layout.dict_values.values),
                        _ => Attributes::None,
                    });
                }
            }
        }
        let at = match ty.dictoffset {
            0 => return Some(Attributes::None),
            n if n > 0 => at(obj, n as u64)?,
            // Behind the items of a variable-size object; −1 stood for "managed" for a while.
            -1 => return None,
            n => {
                let items = self.size(obj)?.unsigned_abs();
                let size = items.checked_mul(ty.itemsize)?.checked_add(ty.basicsize)?;
                obj.checked_add(size.checked_add(7)? & !7)?.checked_add_signed(n)?
            }
        };
        Some(Attributes::of_dict(self.mem.u64(at).ok()?))
    }

    /// `__module__` and `__qualname__` of a type, joined; builtins without their module.
    pub fn type_name(&self, ty: &TypeInfo) -> String {
        // Types made by C code carry their module in `tp_name`.
        if !ty.is_heap_type() || ty.name.contains('.') {
            return ty.name.clone();
        }
        let at = |offset: u64| self.ptr(ty.addr + offset);
        let qualname = at(self.layout.types.qualname).and_then(|q| self.checked_str(q));
        let name = qualname.unwrap_or_else(|| ty.name.clone());
        let module = at(self.layout.types.dict).and_then(|dict| self.dict_get(dict, ["__module__"])[0]);
        match module.and_then(|m| self.checked_str(m)) {
            Some(module) if module != "builtins" => format!("{module}.{name}"),
            _ => name,
        }
    }

    /// The `__dict__` of a module object.
    pub fn module_dict(&self, module: Addr) -> Option<Addr> {
        self.ptr(at(module, self.layout.module.dict)?)
    }

    /// The value in a cell, if it is one and full.
    pub fn cell(&self, cell: Addr) -> Option<Addr> {
        self.ptr(at(cell, self.layout.cell.value)?)
    }

    /// Frames are objects of their own (up to 3.10).
    pub fn frames_are_objects(&self) -> bool {
        matches!(self.layout.frames, Frames::Objects { .. })
    }
}

/// Bytes of one index, by the number of slots (up to 3.10).
fn index_width(slots: u64) -> u64 {
    match slots {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    }
}

enum Attributes {
    Dict(Addr),
    Values(Addr),
    None,
}

impl Attributes {
    fn of_dict(addr: Addr) -> Self {
        if addr == 0 { Attributes::None } else { Attributes::Dict(addr) }
    }
}

/// A code point that is no character (a surrogate kept by `surrogateescape`) is shown as U+FFFD.
fn to_char(unit: u32) -> char {
    char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)
}
