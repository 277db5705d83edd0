//! Where the user is: the view, the order, the selection, what is searched for. Keys in, actions out; pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::draw::HELP_LINES;
use super::screen::{FunctionRow, Screen, StackView};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    #[default]
    Functions,
    Threads,
    Loops,
    /// The stack of the selected function.
    Stack,
    Finding,
    Help,
}

/// What functions are sorted by; the keys are py-spy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    OwnNow,
    TotalNow,
    Own,
    Total,
}

/// What the rest of the program has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Nothing,
    Redraw,
    Quit,
    Interrupt,
    Suspend,
    Reset,
    Save,
    /// For the test that the terminal is given back.
    Panic,
    /// Show the stack of this function.
    Stack {
        name: String,
        file: String,
        line: u32,
    },
}

#[derive(Debug, Default)]
pub struct App {
    pub view: View,
    /// Where Esc leads back to.
    pub back: View,
    pub order: Order,
    /// The screen stands still.
    pub frozen: bool,
    pub search: String,
    /// Keys go to the search.
    pub searching: bool,
    /// Row in the list of the view.
    pub selected: usize,
    /// First line of texts that are shown.
    pub scroll: usize,
    pub screen: Screen,
    pub stack: Option<StackView>,
    /// A word for the user, until the next key.
    pub note: Option<String>,
    /// Rows that a page has.
    pub page: usize,
}

impl App {
    /// The functions in their order, those that are searched for.
    pub fn functions(&self) -> Vec<&FunctionRow> {
        let wanted = self.search.to_lowercase();
        let fits = |f: &&FunctionRow| {
            wanted.is_empty()
                || f.name.to_lowercase().contains(&wanted)
                || f.file.to_lowercase().contains(&wanted)
        };
        let mut rows: Vec<&FunctionRow> = self.screen.functions.iter().filter(fits).collect();
        let key = |f: &FunctionRow| match self.order {
            Order::OwnNow => [f.own_now, f.own, f.total_now, f.total],
            Order::TotalNow => [f.total_now, f.total, f.own_now, f.own],
            Order::Own => [f.own, f.total, f.own_now, f.total_now],
            Order::Total => [f.total, f.own, f.total_now, f.own_now],
        };
        // Names last, so that rows with the same numbers keep their places.
        rows.sort_by(|a, b| {
            let by_number = key(b).iter().zip(key(a)).map(|(b, a)| b.total_cmp(&a)).find(|o| o.is_ne());
            by_number.unwrap_or_else(|| (&a.name, &a.file, a.line).cmp(&(&b.name, &b.file, b.line)))
        });
        rows
    }

    fn rows(&self) -> usize {
        match self.view {
            View::Functions => self.functions().len(),
            View::Threads => self.screen.threads.len(),
            View::Loops => self.screen.loops.len(),
            View::Stack | View::Finding | View::Help => 0,
        }
    }

    /// Takes over what was gathered, unless the screen is frozen.
    pub fn update(&mut self, screen: Screen) {
        if !self.frozen {
            self.screen = screen;
            self.selected = self.selected.min(self.rows().saturating_sub(1));
            if self.view == View::Finding && self.screen.findings.is_empty() {
                self.view = self.back;
            }
        }
    }

    pub fn key(&mut self, key: KeyEvent) -> Action {
        self.note = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Interrupt,
                KeyCode::Char('z') => Action::Suspend,
                KeyCode::Char('l') => Action::Redraw,
                KeyCode::Char('p') if cfg!(debug_assertions) => Action::Panic,
                _ => Action::Nothing,
            };
        }
        if self.searching {
            self.search_key(key.code);
            return Action::Redraw;
        }
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('1') => self.sort(Order::OwnNow),
            KeyCode::Char('2') => self.sort(Order::TotalNow),
            KeyCode::Char('3') => self.sort(Order::Own),
            KeyCode::Char('4') => self.sort(Order::Total),
            KeyCode::Char('f') => self.show(View::Functions),
            KeyCode::Char('t') => self.show(View::Threads),
            KeyCode::Char('e') => self.show(View::Loops),
            KeyCode::Char('?') | KeyCode::Char('h') | KeyCode::F(1) => self.show(View::Help),
            KeyCode::Tab => self.show(match self.view {
                View::Functions => View::Threads,
                View::Threads => View::Loops,
                _ => View::Functions,
            }),
            KeyCode::Char('/') => {
                self.show(View::Functions);
                (self.searching, self.search) = (true, String::new());
            }
            KeyCode::Char(' ') => self.frozen = !self.frozen,
            KeyCode::Char('r') => return Action::Reset,
            KeyCode::Char('s') => return Action::Save,
            KeyCode::Enter if !self.screen.findings.is_empty() && self.view != View::Finding => {
                self.show(View::Finding);
            }
            KeyCode::Enter | KeyCode::Right if self.view == View::Functions => {
                if let Some(row) = self.functions().get(self.selected) {
                    return Action::Stack { name: row.name.clone(), file: row.file.clone(), line: row.line };
                }
            }
            KeyCode::Esc if self.view == View::Functions && !self.search.is_empty() => self.search.clear(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Enter => self.show(self.back),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-(self.page.max(1) as isize)),
            KeyCode::PageDown => self.step(self.page.max(1) as isize),
            KeyCode::Home => self.step(isize::MIN / 2),
            KeyCode::End => self.step(isize::MAX / 2),
            _ => return Action::Nothing,
        }
        Action::Redraw
    }

    fn search_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(c) => self.search.push(c),
            KeyCode::Backspace => _ = self.search.pop(),
            KeyCode::Esc => (self.searching, self.search) = (false, String::new()),
            KeyCode::Enter => self.searching = false,
            _ => {}
        }
        self.selected = 0;
    }

    fn sort(&mut self, order: Order) {
        self.order = order;
        self.show(View::Functions);
    }

    pub fn show(&mut self, view: View) {
        let is_list = |view| matches!(view, View::Functions | View::Threads | View::Loops);
        if view != self.view {
            if is_list(self.view) && !is_list(view) {
                self.back = self.view;
            } else {
                // The selection is one of a list, and survives a look at something.
                let from_text = !is_list(self.view) && view == self.back;
                if !from_text {
                    self.selected = 0;
                }
            }
            self.scroll = 0;
            self.view = view;
        }
    }

    fn step(&mut self, by: isize) {
        let is_text = matches!(self.view, View::Stack | View::Finding | View::Help);
        let most = if is_text { self.most_scroll() } else { self.rows().saturating_sub(1) };
        let at = if is_text { &mut self.scroll } else { &mut self.selected };
        *at = at.saturating_add_signed(by).min(most);
    }

    /// The first line of a text when its last one is at the bottom.
    pub fn most_scroll(&self) -> usize {
        // A stack has a line above it that stays.
        let room = if self.view == View::Stack { self.page } else { self.page + 1 };
        self.lines().saturating_sub(room)
    }

    /// Lines of the text that is shown.
    fn lines(&self) -> usize {
        match self.view {
            View::Stack => self.stack.as_ref().map_or(0, |s| s.frames.len()),
            View::Finding => self.screen.findings.iter().map(|f| f.text.lines().count() + 1).sum(),
            View::Help => HELP_LINES,
            _ => 0,
        }
    }
}
