//! Sizes in memory as people say them: `512 B`, `41 KiB`, `1.3 GiB`.

use std::fmt;

#[derive(Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut size = self.0 as f64;
        let mut unit = "B";
        for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            // 1023.5 would be shown as 1024 of the smaller unit.
            if size < 1023.5 {
                break;
            }
            (size, unit) = (size / 1024.0, larger);
        }
        if unit != "B" && size < 9.95 { write!(f, "{size:.1} {unit}") } else { write!(f, "{size:.0} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_say_them() {
        let said = |size: u64| Bytes(size).to_string();
        assert_eq!(said(0), "0 B");
        assert_eq!(said(512), "512 B");
        assert_eq!(said(1024), "1.0 KiB");
        assert_eq!(said(212 << 20), "212 MiB");
        assert_eq!(said((1 << 30) - 1), "1.0 GiB");
        assert_eq!(said(u64::MAX), "16 EiB");
    }
}
