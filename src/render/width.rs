//! How wide text is on a terminal, and how to make it fit: cut at its end, cut at its start, or
//! wrapped between words. Expects cleaned text.

use std::borrow::Cow;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns that the text takes.
pub fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { UnicodeWidthStr::width(text) }
}

/// The text, or as much of its beginning as fits into `max` columns with the ellipsis.
pub fn cut_end<'a>(text: &'a str, max: usize, ellipsis: &str) -> Cow<'a, str> {
    if width(text) <= max {
        return Cow::Borrowed(text);
    }
    let room = max.saturating_sub(width(ellipsis));
    let mut taken = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        taken += c.width().unwrap_or(0);
        (taken > room).then_some(at)
    });
    Cow::Owned(format!("{}{ellipsis}", &text[..end.unwrap_or(text.len())]))
}

/// The path, or as many of its last components as fit into `max` columns with the ellipsis; at
/// least the file's name, however long.
pub fn cut_path<'a>(path: &'a str, max: usize, ellipsis: &str) -> Cow<'a, str> {
    if width(path) <= max {
        return Cow::Borrowed(path);
    }
    let room = max.saturating_sub(width(ellipsis));
    let slashes = || path.match_indices('/').map(|(at, _)| at);
    match slashes().find(|&at| width(&path[at..]) <= room).or_else(|| slashes().next_back()) {
        Some(at) if at > 0 => Cow::Owned(format!("{ellipsis}{}", &path[at..])),
        _ => Cow::Borrowed(path),
    }
}

/// The text in lines of at most `first` columns, then `rest`, broken at spaces. A word that is
/// longer than a line stays whole: addresses and paths are there to be copied.
pub fn wrap(text: &str, first: usize, rest: usize) -> Vec<&str> {
    let mut lines = Vec::new();
    let (mut start, mut end, mut room) = (0, 0, first);
    let mut at = 0;
    for word in text.split(' ') {
        let word_end = at + word.len();
        if end > start && width(&text[start..word_end]) > room {
            lines.push(&text[start..end]);
            (start, room) = (at, rest);
        }
        end = word_end;
        at = word_end + 1;
    }
    lines.push(&text[start..end]);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(width("abc"), 3);
        assert_eq!(width("名前"), 4);
        assert_eq!(cut_end("名前名前", 5, "…"), "名前…");
        assert_eq!(cut_end("abcdef", 6, "…"), "abcdef");
        assert_eq!(cut_end("abcdef", 5, "…"), "abcd…");
        assert_eq!(cut_end("abcdef", 0, "…"), "…");
    }

    #[test]
    fn paths_keep_their_file() {
        assert_eq!(cut_path("app/api/routes/stream.py", 30, "…"), "app/api/routes/stream.py");
        assert_eq!(cut_path("app/api/routes/stream.py", 20, "…"), "…/routes/stream.py");
        assert_eq!(cut_path("app/api/routes/stream.py", 3, "…"), "…/stream.py");
        assert_eq!(cut_path("stream.py", 3, "…"), "stream.py");
    }

    proptest! {
        #[test]
        fn wrapping_loses_nothing(text in "[a-zä名 ]{0,60}", first in 0..30_usize, rest in 0..30_usize) {
            let lines = wrap(&text, first, rest);
            prop_assert_eq!(lines.join(" "), text.as_str());
            for (at, line) in lines.iter().enumerate() {
                let room = if at == 0 { first } else { rest };
                prop_assert!(width(line) <= room || !line.trim().contains(' '));
            }
        }
    }

    #[test]
    fn wrapping_keeps_long_words_whole() {
        assert_eq!(wrap("give requests.get a timeout", 12, 12), ["give", "requests.get", "a timeout"]);
        assert_eq!(wrap("a b c", 3, 1), ["a b", "c"]);
        assert_eq!(wrap("", 3, 3), [""]);
        assert_eq!(wrap("unbreakable word", 4, 4), ["unbreakable", "word"]);
    }
}
