//! One buffer with styles. All text for the terminal goes through `Page::put`, which cleans it, so
//! that nothing from a target gets there raw; escape sequences are the palette's alone.

use super::clean::{clean, is_plain};
use super::style::{ASCII, Ink, Marks, Palette, UNICODE};
use super::width::{cut_end, cut_path, width, wrap};
use std::fmt::Write;

/// Columns for running text where there is no terminal: it is read by people all the same.
const PROSE: usize = 80;

pub struct Page {
    buffer: String,
    palette: Palette,
    /// Columns of the line that is being written.
    column: usize,
    unicode: bool,
    /// Of the terminal; `None` if there is none, and then nothing is cut or wrapped.
    width: Option<usize>,
    pub marks: &'static Marks,
}

impl Page {
    pub fn new(width: Option<usize>, unicode: bool) -> Page {
        Page {
            buffer: String::with_capacity(64 * 1024),
            palette: Palette::new(),
            column: 0,
            unicode,
            // Below this nothing reads well; the terminal may wrap.
            width: width.map(|width| width.max(40)),
            marks: if unicode { &UNICODE } else { &ASCII },
        }
    }

    pub fn into_text(self) -> String {
        self.buffer
    }

    pub fn width(&self) -> Option<usize> {
        self.width
    }

    /// Where running text ends.
    pub fn prose_width(&self) -> usize {
        self.width.map_or(PROSE, |width| width.min(100))
    }

    /// Columns for lists and tables: all there are.
    pub fn room(&self) -> usize {
        self.width.unwrap_or(usize::MAX)
    }

    /// Wide enough to align columns.
    pub fn is_wide(&self) -> bool {
        self.width.is_some_and(|width| width >= 100)
    }

    pub fn column(&self) -> usize {
        self.column
    }

    /// How wide this will be once cleaned.
    pub fn measure(&self, text: &str) -> usize {
        if is_plain(text) { text.len() } else { width(&clean(text, self.unicode)) }
    }

    /// Cleaned and cut to this many columns.
    pub fn shorten(&self, text: &str, max: usize) -> String {
        cut_end(&clean(text, self.unicode), max, self.marks.ellipsis).into_owned()
    }

    /// As `shorten`, but without the first directories rather than the end.
    pub fn shorten_path(&self, path: &str, max: usize) -> String {
        cut_path(&clean(path, self.unicode), max, self.marks.ellipsis).into_owned()
    }

    /// Cleaned and in lines that fit between this column and the terminal's edge.
    pub fn wrap(&self, text: &str, column: usize) -> Vec<String> {
        let room = self.room().saturating_sub(column);
        wrap(&clean(text, self.unicode), room, room).into_iter().map(str::to_owned).collect()
    }

    pub fn put(&mut self, ink: Ink, text: &str) {
        self.begin(ink);
        self.add(text);
        self.end(ink);
    }

    /// Switches the ink on for what is added until `end`. Puts in the same ink need it only once.
    pub fn begin(&mut self, ink: Ink) {
        self.buffer.push_str(self.palette.on(ink));
    }

    pub fn end(&mut self, ink: Ink) {
        if !self.palette.on(ink).is_empty() {
            self.buffer.push_str(Palette::OFF);
        }
    }

    /// Adds text in the ink that is on.
    pub fn add(&mut self, text: &str) {
        if is_plain(text) {
            self.buffer.push_str(text);
            self.column += text.len();
        } else {
            let cleaned = clean(text, self.unicode);
            self.buffer.push_str(&cleaned);
            self.column += width(&cleaned);
        }
    }

    /// Adds `:` and a number in the ink that is on.
    pub fn add_line_number(&mut self, line: u32) {
        // Writing to a String cannot fail.
        let start = self.buffer.len();
        let _ = write!(self.buffer, ":{line}");
        self.column += self.buffer.len() - start;
    }

    /// As `put`, but cut to this many columns.
    pub fn put_cut(&mut self, ink: Ink, text: &str, max: usize) {
        let cleaned = clean(text, self.unicode);
        self.put_clean(ink, &cut_end(&cleaned, max, self.marks.ellipsis));
    }

    /// As `put`, for text that is clean.
    fn put_clean(&mut self, ink: Ink, text: &str) {
        if !text.is_empty() {
            self.begin(ink);
            self.buffer.push_str(text);
            self.column += width(text);
            self.end(ink);
        }
    }

    pub fn pad_to(&mut self, column: usize) {
        const SPACES: &str = "                                ";
        while self.column < column {
            let some = (column - self.column).min(SPACES.len());
            self.buffer.push_str(&SPACES[..some]);
            self.column += some;
        }
    }

    pub fn end_line(&mut self) {
        self.buffer.push('\n');
        self.column = 0;
    }

    /// One empty line between blocks, none at the top.
    pub fn gap(&mut self) {
        if !self.buffer.is_empty() && !self.buffer.ends_with("\n\n") {
            self.end_line();
        }
    }

    /// Running text from where the line stands, wrapped, its further lines indented. Ends the line.
    pub fn prose(&mut self, ink: Ink, indent: usize, text: &str) {
        self.wrapped(ink, indent, text, self.prose_width());
    }

    /// As `prose`, but up to the terminal's edge, and never broken where there is no terminal.
    pub fn fact(&mut self, ink: Ink, indent: usize, text: &str) {
        self.wrapped(ink, indent, text, self.room());
    }

    fn wrapped(&mut self, ink: Ink, indent: usize, text: &str, edge: usize) {
        let cleaned = clean(text, self.unicode);
        let first = edge.saturating_sub(self.column);
        for (at, line) in wrap(&cleaned, first, edge.saturating_sub(indent)).into_iter().enumerate() {
            self.pad_to(if at == 0 { 0 } else { indent });
            self.put_clean(ink, line);
            self.end_line();
        }
    }

    /// Short facts in a row with separators, wrapped between them. Ends the line.
    pub fn items(&mut self, indent: usize, items: &[(Ink, String)]) {
        let separator = self.marks.separator;
        for (at, (ink, text)) in items.iter().enumerate() {
            if at > 0 {
                if self.column + width(separator) + self.measure(text) > self.room() {
                    self.end_line();
                } else {
                    self.put(Ink::Faint, separator);
                }
            }
            self.pad_to(indent);
            if self.column + self.measure(text) <= self.room() {
                self.put(*ink, text);
            } else {
                // Too long for a line of its own: wrap it, and take back the end of its last line.
                self.fact(*ink, indent, text);
                self.buffer.pop();
                self.column = self.room();
            }
        }
        self.end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(page: Page) -> String {
        anstream::adapter::strip_str(&page.into_text()).to_string()
    }

    #[test]
    fn items_wrap_between_themselves() {
        let mut page = Page::new(Some(40), true);
        let items = ["CPython 3.12.1", "up 3 h 12 min", "8 threads", "41 of 1024 fds"];
        page.items(2, &items.map(|item| (Ink::Plain, item.to_owned())));
        assert_eq!(plain(page), "  CPython 3.12.1 · up 3 h 12 min\n  8 threads · 41 of 1024 fds\n");
    }

    #[test]
    fn nothing_is_wrapped_without_a_terminal() {
        let mut page = Page::new(None, true);
        page.fact(Ink::Plain, 0, &"word ".repeat(100));
        assert_eq!(plain(page).lines().count(), 1);
    }

    #[test]
    fn no_escape_but_ours() {
        let mut page = Page::new(Some(80), true);
        page.put(Ink::Critical, "\x1b]0;title\x07\nname");
        assert_eq!(page.into_text(), "\x1b[1m\x1b[31m\\x1b]0;title\\x07\\nname\x1b[0m");
    }
}
