//! Colours, and the marks that say the same without them.

use anstyle::{AnsiColor, Style};

/// What a piece of text is; the palette says how that looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    Plain,
    /// Names, what a block is about.
    Strong,
    /// What is there to be skipped: library frames, idle threads, separators.
    Faint,
    /// The application's own function, and where it is.
    User,
    UserPlace,
    /// What a thread waits for.
    Wait,
    /// Moves, is fine.
    Good,
    Critical,
    Warning,
    Info,
    /// A label such as `Do` or `Ends`.
    Label,
}

const INKS: [Ink; 11] = [
    Ink::Plain,
    Ink::Strong,
    Ink::Faint,
    Ink::User,
    Ink::UserPlace,
    Ink::Wait,
    Ink::Good,
    Ink::Critical,
    Ink::Warning,
    Ink::Info,
    Ink::Label,
];

impl Ink {
    fn style(self) -> Style {
        let color = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
        match self {
            Ink::Plain => Style::new(),
            Ink::Strong | Ink::Label => Style::new().bold(),
            Ink::Faint => Style::new().dimmed(),
            Ink::User => color(AnsiColor::Cyan).bold(),
            Ink::UserPlace => color(AnsiColor::Cyan),
            Ink::Wait => color(AnsiColor::Yellow),
            Ink::Good => color(AnsiColor::Green),
            Ink::Critical => color(AnsiColor::Red).bold(),
            Ink::Warning => color(AnsiColor::Yellow).bold(),
            // Not blue: that is hard to read on black where the palette is the old one.
            Ink::Info => color(AnsiColor::Magenta).bold(),
        }
    }
}

/// The escape sequences, rendered once: there are many frames.
pub struct Palette {
    on: [String; INKS.len()],
}

impl Palette {
    pub fn new() -> Palette {
        Palette { on: INKS.map(|ink| ink.style().render().to_string()) }
    }

    /// What switches this ink on; empty for plain text.
    pub fn on(&self, ink: Ink) -> &str {
        &self.on[ink as usize]
    }

    /// What switches every ink off.
    pub const OFF: &'static str = "\x1b[0m";
}

impl Default for Palette {
    fn default() -> Palette {
        Palette::new()
    }
}

/// Signs, in a form that the terminal can show.
pub struct Marks {
    pub separator: &'static str,
    pub ellipsis: &'static str,
    pub user: &'static str,
    pub note: &'static str,
    pub arrow: &'static str,
    pub branch: &'static str,
    pub cycle_first: &'static str,
    pub cycle_side: &'static str,
    pub cycle_next: &'static str,
    pub cycle_last: &'static str,
    pub critical: &'static str,
    pub warning: &'static str,
    pub info: &'static str,
}

pub const UNICODE: Marks = Marks {
    separator: " · ",
    ellipsis: "…",
    user: "›",
    note: "↳",
    arrow: "→",
    branch: "└ ",
    cycle_first: "┌ ",
    cycle_side: "│ ",
    cycle_next: "├ ",
    cycle_last: "└▸",
    critical: "✖",
    warning: "▲",
    info: "•",
};

pub const ASCII: Marks = Marks {
    separator: " | ",
    ellipsis: "...",
    user: ">",
    note: "->",
    arrow: "->",
    branch: "` ",
    cycle_first: "+ ",
    cycle_side: "| ",
    cycle_next: "+ ",
    cycle_last: "`>",
    critical: "X",
    warning: "!",
    info: "*",
};

/// Whether a terminal with this environment shows UTF-8: the first of `LC_ALL`, `LC_CTYPE` and
/// `LANG` that is set decides, as in setlocale(3).
pub fn speaks_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(variable)
        .find(|value| !value.is_empty())
        .is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            value.contains("utf-8") || value.contains("utf8")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inks_are_where_the_palette_looks_for_them() {
        assert!(INKS.iter().enumerate().all(|(at, ink)| *ink as usize == at));
    }

    #[test]
    fn the_first_variable_that_is_set_decides() {
        let speaks = |set: &[(&str, &str)]| {
            speaks_utf8(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
        };
        assert!(!speaks(&[]));
        assert!(speaks(&[("LANG", "de_DE.UTF-8")]));
        assert!(speaks(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]));
        assert!(!speaks(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
    }
}
