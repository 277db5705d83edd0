//! Short reprs of values, as Python's own `repr` would begin, without running any of the target's code.
//!
//! Bounded in characters, entries, depth and objects; an object that contains itself ends the walk.

use std::fmt::Write as _;

use super::objects::{Heap, TypeInfo};
use crate::mask;
use crate::target::memory::Addr;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Characters of one value.
    pub width: usize,
    /// Entries of one container.
    pub entries: usize,
    pub depth: usize,
    /// Objects looked at for one value: what bounds the time.
    pub objects: usize,
    /// Show the attributes of instances.
    pub attributes: bool,
    pub show_secrets: bool,
}

impl Limits {
    /// `-l`
    pub const SHORT: Limits =
        Limits { width: 120, entries: 16, depth: 4, objects: 64, attributes: false, show_secrets: false };
    /// `-ll`
    pub const LONG: Limits =
        Limits { width: 1200, entries: 100, depth: 5, objects: 1000, attributes: true, show_secrets: false };
}

/// The repr of the value of a variable called `name`; masked if the name looks secret.
pub fn of_variable(heap: &Heap, name: &str, obj: Addr, limits: Limits) -> String {
    if !limits.show_secrets && mask::is_secret(name) && !is_plain(heap, obj) {
        return mask::MASK.to_owned();
    }
    of(heap, obj, limits)
}

/// None, a bool or an unreadable thing is no secret, and knowing it helps.
fn is_plain(heap: &Heap, obj: Addr) -> bool {
    heap.type_of(obj).is_some_and(|t| matches!(t.name.as_str(), "NoneType" | "bool"))
}

pub fn of(heap: &Heap, obj: Addr, limits: Limits) -> String {
    let mut w = Writer { heap, limits, out: String::new(), left: limits.objects, above: Vec::new() };
    w.value(obj);
    let mut out = w.out;
    if !limits.show_secrets {
        out = mask::text(&out);
    }
    if let Some((cut, _)) = out.char_indices().nth(limits.width) {
        out.truncate(cut);
        out.push('…');
    }
    out
}

struct Writer<'a, 'h> {
    heap: &'a Heap<'h>,
    limits: Limits,
    out: String,
    left: usize,
    /// Containers that this value stands in.
    above: Vec<Addr>,
}

impl Writer<'_, '_> {
    fn is_full(&self) -> bool {
        self.left == 0 || self.out.len() > self.limits.width * 4
    }

    fn value(&mut self, obj: Addr) {
        if self.is_full() {
            self.out.push('…');
            return;
        }
        self.left -= 1;
        let Some(ty) = self.heap.type_of(obj) else {
            let _ = write!(self.out, "<unreadable at {obj:#x}>");
            return;
        };
        if self.scalar(obj, &ty).is_some() {
            return;
        }
        if self.above.contains(&obj) {
            self.out.push_str(match () {
                _ if ty.is_list() => "[...]",
                _ if ty.is_tuple() => "(...)",
                _ if ty.is_dict() => "{...}",
                _ => "...",
            });
            return;
        }
        if self.above.len() >= self.limits.depth {
            self.out.push('…');
            return;
        }
        self.above.push(obj);
        if self.container(obj, &ty).is_none() {
            self.instance(obj, &ty);
        }
        self.above.pop();
    }

    /// Values without parts. `None` if it is none of them or does not check out.
    fn scalar(&mut self, obj: Addr, ty: &TypeInfo) -> Option<()> {
        match ty.name.as_str() {
            "NoneType" => self.out.push_str("None"),
            "ellipsis" => self.out.push_str("Ellipsis"),
            "NotImplementedType" => self.out.push_str("NotImplemented"),
            "bool" => self.out.push_str(if self.heap.int(obj)? != 0 { "True" } else { "False" }),
            "float" => self.out.push_str(&float(self.heap.float(obj)?)),
            "int" => self.int(obj)?,
            "str" => {
                let (text, length) = self.heap.str_cut(obj, self.limits.width + 1)?;
                self.out.push_str(&quote(&text));
                if length > text.chars().count() {
                    self.out.push('…');
                }
            }
            "bytes" => {
                let (data, length) = self.heap.bytes(obj, self.limits.width + 1)?;
                self.out.push_str(&quote_bytes(&data));
                if length > data.len() {
                    self.out.push('…');
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn int(&mut self, obj: Addr) -> Option<()> {
        // 2**30000 has 9,031 decimal digits: more than anybody reads, and quadratic to print.
        match self.heap.int_digits(obj, 1000) {
            Some((negative, digits)) => {
                if negative {
                    self.out.push('-');
                }
                self.out.push_str(&decimal(&digits));
            }
            None => self.out.push_str("<int of more than 30,000 bits>"),
        }
        Some(())
    }

    fn container(&mut self, obj: Addr, ty: &TypeInfo) -> Option<()> {
        let cap = self.limits.entries;
        match ty.name.as_str() {
            "list" => {
                let (items, size) = self.heap.items(obj, ty, cap)?;
                self.sequence("[", &items, size, "]");
            }
            "tuple" => {
                let (items, size) = self.heap.items(obj, ty, cap)?;
                self.sequence("(", &items, size, if size == 1 { ",)" } else { ")" });
            }
            "set" | "frozenset" => {
                let (items, size) = self.heap.set(obj, cap)?;
                let frozen = ty.name == "frozenset";
                match (size, frozen) {
                    (0, _) => _ = write!(self.out, "{}()", ty.name),
                    (_, false) => self.sequence("{", &items, size, "}"),
                    (_, true) => self.sequence("frozenset({", &items, size, "})"),
                }
            }
            "dict" => self.mapping("{", obj, "}")?,
            "module" => {
                let [name] = self.heap.dict_get(self.heap.module_dict(obj)?, ["__name__"]);
                let name = self.heap.checked_str(name?)?;
                let _ = write!(self.out, "<module {}>", quote(&name));
            }
            "cell" => match self.heap.cell(obj) {
                Some(inside) => self.value(inside),
                None => self.out.push_str("<empty cell>"),
            },
            _ if ty.is_type() => {
                let class = self.heap.type_at(obj)?;
                let name = self.heap.type_name(&class);
                let _ = write!(self.out, "<class {}>", quote(&name));
            }
            _ => return None,
        }
        Some(())
    }

    fn sequence(&mut self, open: &str, items: &[Addr], size: usize, close: &str) {
        self.out.push_str(open);
        // A pair of name and value, as headers are kept: ("authorization", "…").
        let name = match items {
            [name, _] if size == 2 => self.text(*name),
            _ => None,
        };
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(", ");
            }
            if self.is_full() {
                self.out.push('…');
                break;
            }
            match &name {
                Some(name) if i == 1 => self.named(name, *item),
                _ => self.slot(*item),
            }
        }
        if size > items.len() {
            let _ = write!(self.out, ", … {} more", size - items.len());
        }
        self.out.push_str(close);
    }

    /// A str, or bytes that are text.
    fn text(&self, obj: Addr) -> Option<String> {
        let ty = self.heap.type_of(obj)?;
        match () {
            _ if ty.is_str() => self.heap.str_cut(obj, 64).map(|(text, _)| text),
            _ if ty.is_bytes() => String::from_utf8(self.heap.bytes(obj, 64)?.0).ok(),
            _ => None,
        }
    }

    /// An element; a list that is just being built has empty ones.
    fn slot(&mut self, item: Addr) {
        match item {
            0 => self.out.push_str("<NULL>"),
            obj => self.value(obj),
        }
    }

    fn mapping(&mut self, open: &str, obj: Addr, close: &str) -> Option<()> {
        let (entries, size) = self.heap.dict(obj, self.limits.entries)?;
        self.out.push_str(open);
        for (i, (key, value)) in entries.iter().enumerate() {
            if i > 0 {
                self.out.push_str(", ");
            }
            if self.is_full() {
                self.out.push('…');
                break;
            }
            let name = self.text(*key);
            self.value(*key);
            self.out.push_str(": ");
            self.named(name.as_deref().unwrap_or(""), *value);
        }
        if size > entries.len() {
            let _ = write!(self.out, ", … {} more", size - entries.len());
        }
        self.out.push_str(close);
        Some(())
    }

    fn named(&mut self, name: &str, value: Addr) {
        if value == 0 {
            self.slot(value);
        } else if !self.limits.show_secrets && mask::is_secret(name) && !is_plain(self.heap, value) {
            self.out.push_str(mask::MASK);
        } else {
            self.value(value);
        }
    }

    /// `<module.Class at 0x…>`, at `-ll` with the instance's own attributes.
    fn instance(&mut self, obj: Addr, ty: &TypeInfo) {
        let name = self.heap.type_name(ty);
        match name.as_str() {
            "function" => {
                if let Some(function) = self.function_name(obj) {
                    let _ = write!(self.out, "<function {function} at {obj:#x}>");
                    return;
                }
            }
            "method" => {
                let m = &self.heap.layout.method;
                let function = self.heap.ptr(obj + m.func).and_then(|f| self.function_name(f));
                if let Some(function) = function {
                    let _ = write!(self.out, "<bound method {function} at {obj:#x}>");
                    return;
                }
            }
            _ => {}
        }
        let _ = write!(self.out, "<{name} at {obj:#x}");
        let before = self.out.len();
        self.out.push_str(": ");
        let after = self.out.len();
        if self.subclass(obj, ty).is_none() || self.out.len() == after {
            self.out.truncate(before);
        }
        if self.limits.attributes {
            self.attributes(obj);
        }
        self.out.push('>');
    }

    fn attributes(&mut self, obj: Addr) {
        let mut attributes: Vec<(String, Addr)> = Vec::new();
        for (key, value) in self.heap.attributes(obj, self.limits.entries).unwrap_or_default() {
            attributes.push((self.heap.checked_str(key).unwrap_or_else(|| "?".into()), value));
        }
        attributes.extend(self.heap.slots(obj, self.limits.entries));
        for (i, (key, value)) in attributes.iter().enumerate() {
            let _ = write!(self.out, "{} {key}=", if i > 0 { "," } else { ":" });
            if self.is_full() {
                self.out.push('…');
                break;
            }
            self.named(key, *value);
        }
    }

    /// What a subclass of a builtin holds as such.
    fn subclass(&mut self, obj: Addr, ty: &TypeInfo) -> Option<()> {
        let cap = self.limits.entries;
        match () {
            _ if ty.is_str() => self.out.push_str(&quote(&self.heap.str_cut(obj, self.limits.width)?.0)),
            _ if ty.is_int() => self.int(obj)?,
            _ if ty.is_bytes() => {
                self.out.push_str(&quote_bytes(&self.heap.bytes(obj, self.limits.width)?.0))
            }
            _ if ty.is_list() || ty.is_tuple() => {
                let (items, size) = self.heap.items(obj, ty, cap)?;
                let (open, close) = if ty.is_list() { ("[", "]") } else { ("(", ")") };
                self.sequence(open, &items, size, close);
            }
            _ if ty.is_dict() => self.mapping("{", obj, "}")?,
            _ => return None,
        }
        Some(())
    }

    /// A Python function's qualified name, as its code object has it.
    fn function_name(&self, function: Addr) -> Option<String> {
        let code = self.heap.ptr(function + self.heap.layout.function.code)?;
        if self.heap.type_of(code)?.name != "code" {
            return None;
        }
        let c = &self.heap.layout.code;
        let at = if c.qualname == super::layout::NONE { c.name } else { c.qualname };
        self.heap.checked_str(self.heap.ptr(code + at)?)
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    }
}

/// 30-bit digits, least significant first, in decimal.
pub fn decimal(digits: &[u32]) -> String {
    const BASE: u64 = 1_000_000_000;
    let mut parts: Vec<u32> = Vec::new();
    for digit in digits.iter().rev() {
        let mut carry = *digit as u64;
        for part in &mut parts {
            let v = ((*part as u64) << 30) + carry;
            *part = (v % BASE) as u32;
            carry = v / BASE;
        }
        while carry > 0 {
            parts.push((carry % BASE) as u32);
            carry /= BASE;
        }
    }
    let Some(top) = parts.pop() else { return "0".into() };
    let mut out = top.to_string();
    for part in parts.iter().rev() {
        let _ = write!(out, "{part:09}");
    }
    out
}

/// Python's `repr` of a str.
pub fn quote(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => _ = write!(out, "\\{c}"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => _ = write!(out, "\\x{:02x}", c as u32),
            c if is_invisible(c) => {
                let n = c as u32;
                let _ = match n {
                    0..=0xff => write!(out, "\\x{n:02x}"),
                    0x100..=0xffff => write!(out, "\\u{n:04x}"),
                    _ => write!(out, "\\U{n:08x}"),
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// Characters that Python escapes as "not printable": controls, odd spaces, format characters. The
/// common ones; the rest of that Unicode property does no harm.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c as u32, 0xad | 0x600..=0x605 | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xe0000..)
}

fn quote_bytes(data: &[u8]) -> String {
    let quote = if data.contains(&b'\'') && !data.contains(&b'"') { b'"' } else { b'\'' };
    let mut out = format!("b{}", quote as char);
    for b in data {
        match b {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b if *b == quote => _ = write!(out, "\\{}", *b as char),
            0x20..=0x7e => out.push(*b as char),
            b => _ = write!(out, "\\x{b:02x}"),
        }
    }
    out.push(quote as char);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_like_pythons() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1.25e-5, "1.25e-05"),
            (0.0001, "0.0001"),
            (1e300, "1e+300"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, text) in cases {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn big_ints() {
        assert_eq!(decimal(&[]), "0");
        assert_eq!(decimal(&[0, 0, 0, 1]), (1u128 << 90).to_string());
        assert_eq!(decimal(&[7, 0, 1]), ((1u128 << 60) + 7).to_string());
    }

    #[test]
    fn quotes() {
        assert_eq!(quote("it's"), "\"it's\"");
        assert_eq!(quote("a\x1b[31m\u{202e}é\n"), "'a\\x1b[31m\\u202eé\\n'");
        assert_eq!(quote_bytes(b"\0'\""), "b'\\x00\\'\"'");
    }
}
