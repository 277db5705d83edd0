//! The report as JSON: two spaces, keys in the order of the contract, times to the microsecond.
//!
//! Strings come from the target, and JSON is looked at on terminals too: what a terminal would obey
//! or show out of order is written as `\u….`, which every reader turns back into the same text.

use super::clean::is_safe;
use super::report::Report;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// Writes the report and a newline.
pub fn write(out: &mut dyn io::Write, report: &Report) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    report.serialize(&mut Serializer::with_formatter(&mut buffer, Layout(PrettyFormatter::new())))?;
    buffer.push(b'\n');
    out.write_all(&buffer)
}

struct Layout(PrettyFormatter<'static>);

/// All fractions in a report are seconds, and clocks are not better than a microsecond.
fn to_microseconds(seconds: f64) -> f64 {
    let rounded = (seconds * 1e6).round() / 1e6;
    if rounded.is_finite() { rounded } else { seconds }
}

/// Everything as `PrettyFormatter` does it, but for numbers and unsafe characters.
impl Formatter for Layout {
    // serde_json writes `null` for what is not finite and never asks here.
    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        self.0.write_f64(out, to_microseconds(value))
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        if text.is_ascii() && !text.bytes().any(|byte| byte == 0x7f) {
            return out.write_all(text.as_bytes());
        }
        let mut written = 0;
        for (at, c) in text.char_indices().filter(|&(_, c)| !is_safe(c)) {
            out.write_all(&text.as_bytes()[written..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            written = at + c.len_utf8();
        }
        out.write_all(&text.as_bytes()[written..])
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: impl Serialize) -> String {
        let mut buffer = Vec::new();
        value
            .serialize(&mut Serializer::with_formatter(&mut buffer, Layout(PrettyFormatter::new())))
            .unwrap();
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn times_have_microseconds_and_nothing_is_infinite() {
        assert_eq!(text([0.1 + 0.2, 47.000_000_4, 3.0, 1e300]), "[\n  0.3,\n  47.0,\n  3.0,\n  1e+300\n]");
        assert_eq!(text(f64::NAN), "null");
        assert_eq!(text(f64::INFINITY), "null");
        assert_eq!(text(serde_json::json!({ "seconds": 1.234_567_89 })), "{\n  \"seconds\": 1.234568\n}");
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_comes_back_the_same() {
        let nasty = "a\x1b[2J\u{9b}31m\x7f \u{202e}txt größe 名前 \u{e0041}";
        let json = text(nasty);
        assert_eq!(json, r#""a\u001b[2J\u009b31m\u007f \u202etxt größe 名前 \udb40\udc41""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), nasty);
    }
}
