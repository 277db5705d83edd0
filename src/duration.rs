//! Durations as people say them: two units at most, no more digits than matter.

use std::fmt;

/// Seconds, shown as `47 s`, `0.8 s`, `12 ms`, `3 h 12 min`.
#[derive(Clone, Copy)]
pub struct Duration(pub f64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        if !seconds.is_finite() {
            return f.write_str("?");
        }
        // A clock that was read a little earlier than the other may give a little less than nothing.
        let seconds = seconds.max(0.0);
        if seconds < 0.000_999_5 {
            return write!(f, "{:.0} us", seconds * 1e6);
        }
        if seconds < 0.009_95 {
            return tenths(f, seconds * 1e3, "ms");
        }
        if seconds < 0.1 {
            return write!(f, "{:.0} ms", seconds * 1e3);
        }
        if seconds < 9.95 {
            return tenths(f, seconds, "s");
        }
        let whole = seconds.round() as u64;
        let pair = |f: &mut fmt::Formatter<'_>, of: u64, unit: &str, rest: u64, small: &str| match rest {
            0 => write!(f, "{of} {unit}"),
            rest => write!(f, "{of} {unit} {rest} {small}"),
        };
        match whole {
            0..120 => write!(f, "{whole} s"),
            120..600 => pair(f, whole / 60, "min", whole % 60, "s"),
            600..3_600 => write!(f, "{} min", whole / 60),
            3_600..86_400 => pair(f, whole / 3_600, "h", whole % 3_600 / 60, "min"),
            _ => pair(f, whole / 86_400, "d", whole % 86_400 / 3_600, "h"),
        }
    }
}

/// `0.8 s`, and `3 s` rather than `3.0 s`.
fn tenths(f: &mut fmt::Formatter<'_>, number: f64, unit: &str) -> fmt::Result {
    let tenths = (number * 10.0).round() as u64;
    match tenths % 10 {
        0 => write!(f, "{} {unit}", tenths / 10),
        rest => write!(f, "{}.{rest} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_say_them() {
        let said = |seconds: f64| Duration(seconds).to_string();
        assert_eq!(said(0.0), "0 us");
        assert_eq!(said(0.000_085), "85 us");
        assert_eq!(said(0.0012), "1.2 ms");
        assert_eq!(said(0.0312), "31 ms");
        assert_eq!(said(0.84), "0.8 s");
        assert_eq!(said(0.004), "4 ms");
        assert_eq!(said(2.98), "3 s");
        assert_eq!(said(9.96), "10 s");
        assert_eq!(said(47.2), "47 s");
        assert_eq!(said(119.4), "119 s");
        assert_eq!(said(125.0), "2 min 5 s");
        assert_eq!(said(240.0), "4 min");
        assert_eq!(said(750.0), "12 min");
        assert_eq!(said(3.0 * 3600.0 + 12.0 * 60.0), "3 h 12 min");
        assert_eq!(said(200_000.0), "2 d 7 h");
        assert_eq!(said(-0.3), "0 us");
        assert_eq!(said(f64::NAN), "?");
        assert_eq!(said(1e300), format!("{} d 7 h", u64::MAX / 86_400));
    }
}
