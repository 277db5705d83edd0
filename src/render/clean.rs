//! Makes text from a target harmless: control characters, terminal escapes, invisible characters
//! and those that turn the writing direction are shown as escapes. No line breaks pass either, so
//! that a name can not pretend to be a line of ours.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a terminal shows this character as itself, where it stands.
pub fn is_safe(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'       // C0, DEL, C1: U+009B starts an escape sequence by itself
        | '\u{ad}' | '\u{34f}' | '\u{180e}'     // invisible
        | '\u{61c}' | '\u{200e}' | '\u{200f}'   // direction marks
        | '\u{200b}' | '\u{2028}' | '\u{2029}'  // zero-width space, line and paragraph separators
        | '\u{202a}'..='\u{202e}'               // embeddings and overrides
        | '\u{2060}'..='\u{206f}'               // invisible operators, isolates
        | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' // fillers
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}'             // tags
        | '\u{fdd0}'..='\u{fdef}' | '\u{fffe}' | '\u{ffff}' // no characters at all
    )
}

/// Printable ASCII only, as nearly all text is: safe, and as wide as it is long.
pub fn is_plain(text: &str) -> bool {
    // Without an early exit this is a few vector instructions.
    text.bytes().fold(true, |plain, byte| plain & (byte.wrapping_sub(b' ') < 0x5f))
}

/// The text, with everything unsafe as a Python escape (`\n`, `\x1b`, `\u202e`). Where the terminal
/// does not speak UTF-8, all that is not ASCII: its bytes may be control characters there.
pub fn clean(text: &str, unicode: bool) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let passes = |c: char| is_safe(c) && (unicode || c.is_ascii());
    if text.chars().all(passes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if passes(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ => {
                // Writing to a String cannot fail.
                let _ = match c as u32 {
                    code @ ..0x100 => write!(out, "\\x{code:02x}"),
                    code @ ..0x1_0000 => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_is_not_copied() {
        assert!(matches!(clean("worker-1", false), Cow::Borrowed(_)));
        assert!(matches!(clean("größe 名前 👩‍💻", true), Cow::Borrowed(_)));
    }

    #[test]
    fn plain_is_from_space_to_tilde() {
        assert!(is_plain("") && is_plain(" ~"));
        assert!(!is_plain("\x1f") && !is_plain("a\x7f") && !is_plain("ä"));
    }

    #[test]
    fn escapes_are_those_of_python() {
        assert_eq!(clean("a\x1b[31m\n\t\u{9b}\u{202e}\u{e0041}", true), r"a\x1b[31m\n\t\x9b\u202e\U000e0041");
        assert_eq!(clean("größe 名", false), r"gr\xf6\xdfe \u540d");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_passes(text in any::<String>(), unicode in any::<bool>()) {
            let cleaned = clean(&text, unicode);
            prop_assert!(cleaned.chars().all(is_safe));
            prop_assert!(unicode || cleaned.is_ascii());
        }
    }
}
