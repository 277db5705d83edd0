//! Draws the screen.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Widget};

use super::app::{App, Order, View};
use super::screen::{FunctionRow, LoopRow, Screen, ThreadRow};
use crate::duration::Duration;
use crate::render::clean::clean;
use crate::render::width::{cut_end, cut_path, width};

/// How it may look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub unicode: bool,
    pub colors: bool,
}

/// A screen of this width has room for longer bars.
const WIDE: usize = 110;
/// How long the help is.
pub const HELP_LINES: usize = 17;
/// Columns that `(file:line)` gets at least, or it is left out.
const LEAST_PLACE: usize = 8;

pub fn draw(frame: &mut Frame, app: &mut App, look: Look) {
    let area = frame.area();
    render(app, look, area, frame.buffer_mut());
}

/// Everything, into any buffer.
pub fn render(app: &mut App, look: Look, area: Rect, out: &mut Buffer) {
    Clear.render(area, out);
    let [header, finding, body, footer] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    let paint = Paint { look, width: area.width as usize };
    paint.lines(header, out, paint.header(&app.screen, app.frozen));
    paint.lines(finding, out, vec![paint.finding(&app.screen)]);
    app.page = body.height.saturating_sub(1) as usize;
    // The place may have grown, or the text shrunk.
    app.scroll = app.scroll.min(app.most_scroll());
    let lines = match app.view {
        View::Functions => paint.functions(app, body.height as usize),
        View::Threads => paint.threads(app, body.height as usize),
        View::Loops => paint.loops(app, body.height as usize),
        View::Stack => paint.stack(app),
        View::Finding => paint.findings(app),
        View::Help => paint.help().into_iter().skip(app.scroll).collect(),
    };
    paint.lines(body, out, lines);
    paint.lines(footer, out, vec![paint.footer(app)]);
}

struct Paint {
    look: Look,
    width: usize,
}

impl Paint {
    fn style(&self, style: Style) -> Style {
        if self.look.colors {
            style
        } else {
            // Without colours there still is emphasis.
            Style { fg: None, bg: None, ..style }
        }
    }

    fn faint(&self) -> Style {
        self.style(Style::new().fg(Color::DarkGray))
    }

    fn bold(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn inverse(&self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn ellipsis(&self) -> &'static str {
        if self.look.unicode { "…" } else { "..." }
    }

    /// Text of the target, harmless, in this many columns.
    fn text(&self, text: &str, room: usize) -> String {
        cut_end(&clean(text, self.look.unicode), room, self.ellipsis()).into_owned()
    }

    /// `function (path:line)` in this many columns: of a path the end says most.
    fn place(&self, text: &str, room: usize) -> String {
        let safe = clean(text, self.look.unicode);
        match safe.rfind('(').filter(|_| width(&safe) > room) {
            Some(at) => {
                let left = room.saturating_sub(width(&safe[..at]) + 2);
                let path = cut_path(safe[at..].trim_matches(['(', ')']), left, self.ellipsis());
                cut_end(&format!("{}({path})", &safe[..at]), room, self.ellipsis()).into_owned()
            }
            None => safe.into_owned(),
        }
    }

    /// The same, padded.
    fn column(&self, text: &str, room: usize) -> String {
        let mut text = self.text(text, room);
        let missing = room.saturating_sub(width(&text));
        text.extend(std::iter::repeat_n(' ', missing));
        text
    }

    fn separator(&self) -> &'static str {
        if self.look.unicode { " · " } else { " - " }
    }

    /// How many cells a bar has.
    fn bar_cells(&self) -> usize {
        if self.width < WIDE { 4 } else { 8 }
    }

    /// A share as a bar.
    fn bar(&self, share: f64) -> String {
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        let mut bar = String::new();
        if self.look.unicode {
            let cells = self.bar_cells();
            const EIGHTHS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
            let eighths = (share * (cells * 8) as f64).round() as usize;
            bar.extend((0..cells).map(|i| EIGHTHS[eighths.saturating_sub(8 * i).min(8)]));
        } else {
            let full = (share * self.bar_cells() as f64).round() as usize;
            bar.extend((0..self.bar_cells()).map(|i| if i < full { '#' } else { ' ' }));
        }
        bar
    }

    fn lines(&self, area: Rect, out: &mut Buffer, lines: Vec<Line>) {
        Paragraph::new(lines).render(area, out);
    }

    // ------------------------------------------------------------ the top

    fn header(&self, screen: &Screen, frozen: bool) -> Vec<Line<'static>> {
        let separator = self.separator();
        let pids = match screen.pids[..] {
            [] => "no process".to_owned(),
            [pid] => format!("pid {pid}"),
            [pid, ..] => format!("pid {pid} and {} more", screen.pids.len() - 1),
        };
        let right = match screen.python.is_empty() {
            true => format!("{} Hz ", screen.rate),
            false => format!("{}{separator}{} Hz ", screen.python, screen.rate),
        };
        let mut spans = Vec::new();
        if frozen {
            spans.push(Span::styled(" FROZEN ", self.inverse()));
        }
        spans.push(Span::styled(format!(" hangscope top{separator}{pids}{separator}"), self.bold()));
        let used: usize = spans.iter().map(Span::width).sum();
        let room = self.width.saturating_sub(used + width(&right) + 1);
        spans.push(Span::raw(self.column(&screen.command, room)));
        spans.push(Span::raw(" "));
        spans.push(Span::styled(right, self.faint()));
        vec![Line::from(spans), self.facts(screen)]
    }

    /// Numbers of the whole; in a narrow place as many as there is room for, the most telling ones first.
    fn facts(&self, screen: &Screen) -> Line<'static> {
        let mut facts = vec![
            ("GIL", format!("{:.0} %", 100.0 * screen.gil)),
            ("gc", format!("{:.0} %", 100.0 * screen.gc)),
            ("threads", screen.threads.len().to_string()),
            ("samples", screen.samples.to_string()),
            ("errors", screen.torn.to_string()),
            ("active", format!("{:.2}", screen.active)),
        ];
        if let Some(lag) = screen.loop_lag {
            facts.insert(2, ("loop lag", milliseconds(lag)));
        }
        let mut spans = vec![Span::raw(" ")];
        let mut left = self.width.saturating_sub(1);
        for (name, value) in facts {
            let needs = name.len() + 1 + width(&value);
            if needs > left {
                break;
            }
            left = left.saturating_sub(needs + 2);
            spans.push(Span::styled(format!("{name} "), self.faint()));
            spans.push(Span::raw(format!("{value}  ")));
        }
        Line::from(spans)
    }

    fn finding(&self, screen: &Screen) -> Line<'static> {
        let Some(worst) = screen.findings.first() else {
            if let Some(problem) = screen.problems.first() {
                let said = self.text(&format!(" ! {problem}"), self.width);
                return Line::styled(said, self.style(Style::new().fg(Color::Yellow)));
            }
            let (mark, style) = match self.look.unicode {
                true => (" ✔ ", self.style(Style::new().fg(Color::Green))),
                false => (" ", Style::new()),
            };
            let said = match screen.looks {
                0 => "it has not been looked at so far",
                _ => "nothing is found to be wrong",
            };
            return Line::from(vec![Span::styled(mark, style), Span::styled(said, self.faint())]);
        };
        let mark = if self.look.unicode { '✖' } else { '!' };
        let age = worst.blocked_for.map(|age| format!(" for {}", Duration(age))).unwrap_or_default();
        let more = match screen.findings.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let start = format!(" {mark} {}: ", worst.rule);
        let facts = format!("{age}{more}{}", self.separator());
        let room = |end: &str| self.width.saturating_sub(width(&start) + width(&facts) + end.len());
        // What is wrong says more than what the key does.
        let whole = width(&clean(&worst.summary, self.look.unicode));
        let end = if whole <= room("Enter shows it ") { "Enter shows it " } else { "Enter " };
        let line = format!("{start}{}{facts}{end}", self.column(&worst.summary, room(end)));
        let color = if worst.critical { Color::Red } else { Color::Yellow };
        let style = if self.look.colors {
            Style::new().bg(color).fg(if worst.critical { Color::White } else { Color::Black })
        } else {
            self.inverse()
        };
        Line::styled(line, style.add_modifier(Modifier::BOLD))
    }

    // ------------------------------------------------------------ the lists

    fn functions(&self, app: &App, height: usize) -> Vec<Line<'static>> {
        let named = |order: Order, text: &str| {
            let style = if app.order == order { self.inverse() } else { self.bold() };
            Span::styled(text.to_owned(), style)
        };
        let mut lines = vec![Line::from(vec![
            named(Order::OwnNow, " %Own"),
            Span::raw(" ".repeat(self.bar_cells() + 2)),
            named(Order::TotalNow, "%Total"),
            Span::raw(" ".repeat(self.bar_cells() + 2)),
            named(Order::Own, " OwnTime"),
            Span::raw(" "),
            named(Order::Total, "   Total"),
            Span::styled("  Function (file:line)", self.bold()),
        ])];
        let rows = app.functions();
        for (i, row) in window(&rows, app.selected, height.saturating_sub(1)) {
            lines.push(self.function(row, i == app.selected));
        }
        if rows.is_empty() {
            let what = match app.screen.samples {
                _ if !app.search.is_empty() => "no function has that in its name or file",
                0 => "no sample yet",
                _ => "nothing has run so far",
            };
            lines.push(Line::styled(format!(" {what}"), self.faint()));
        }
        lines
    }

    fn function(&self, row: &FunctionRow, selected: bool) -> Line<'static> {
        // Two shares with their bars, two times.
        let room = self.width.saturating_sub(2 * (8 + self.bar_cells()) + 20);
        let name = self.text(&row.name, room);
        let left = room.saturating_sub(width(&name) + 1);
        // A few columns of a place say nothing.
        let place = match row.file.is_empty() || left < LEAST_PLACE {
            true => String::new(),
            false => format!(" {}", self.place(&format!("({}:{})", row.file, row.line), left)),
        };
        let own = self.style(Style::new().fg(Color::Cyan));
        let total = self.style(Style::new().fg(Color::Blue));
        let name_style = if row.user { self.bold() } else { Style::new() };
        let line = Line::from(vec![
            Span::raw(format!("{:>5.1}% ", 100.0 * row.own_now)),
            Span::styled(self.bar(row.own_now), own),
            Span::raw(format!(" {:>5.1}% ", 100.0 * row.total_now)),
            Span::styled(self.bar(row.total_now), total),
            Span::raw(format!(" {:>7}s {:>7}s  ", seconds(row.own), seconds(row.total))),
            Span::styled(name, name_style),
            Span::styled(place, if selected { Style::new() } else { self.faint() }),
        ]);
        self.selected(line, selected)
    }

    fn threads(&self, app: &App, height: usize) -> Vec<Line<'static>> {
        let several = app.screen.pids.len() > 1;
        let head = match several {
            true => "    PID     TID  Active",
            false => "    TID  Active",
        };
        let head = format!("{head}{}   GIL   Thread", " ".repeat(self.bar_cells() + 1));
        let mut lines = vec![Line::styled(head, self.bold())];
        // The selected one with its stack below.
        let stack = height / 2;
        let list = height.saturating_sub(1 + stack);
        for (i, row) in window(&app.screen.threads, app.selected, list) {
            lines.push(self.thread(row, several, i == app.selected));
        }
        if let Some(row) = app.screen.threads.get(app.selected) {
            lines.resize(1 + list.min(app.screen.threads.len()), Line::default());
            lines.push(Line::styled(format!(" Stack of {}", self.text(&row.name, 60)), self.bold()));
            lines.extend(
                row.frames
                    .iter()
                    .map(|f| Line::raw(format!("   {}", self.place(f, self.width.saturating_sub(3))))),
            );
            if row.frames.is_empty() {
                lines.push(Line::styled("   it runs no Python just now", self.faint()));
            }
        }
        lines
    }

    fn thread(&self, row: &ThreadRow, several: bool, selected: bool) -> Line<'static> {
        let pid = if several { format!("{:>7} ", row.pid) } else { String::new() };
        let start = format!("{pid}{:>7} {:>6.1}% ", row.tid, 100.0 * row.active);
        let gil = format!(" {:>5.1}%  ", 100.0 * row.gil);
        let room = self.width.saturating_sub(start.len() + self.bar_cells() + gil.len());
        let name = self.column(&row.name, (room / 2).min(28));
        let rest = room.saturating_sub(width(&name) + 1);
        let line = Line::from(vec![
            Span::raw(start),
            Span::styled(self.bar(row.active), self.style(Style::new().fg(Color::Cyan))),
            Span::raw(gil),
            Span::styled(name, self.bold()),
            Span::raw(" "),
            Span::raw(self.text(&row.state, rest)),
        ]);
        self.selected(line, selected)
    }

    fn loops(&self, app: &App, height: usize) -> Vec<Line<'static>> {
        let head = "    TID  Iteration   Longest   Ready  Overdue  Tasks  Loop";
        let mut lines = vec![Line::styled(head, self.bold())];
        // Lines for one loop; the first of them is worth the most.
        let each = 5.min(height.saturating_sub(1)).max(1);
        let rows: Vec<&LoopRow> = app.screen.loops.iter().collect();
        for (i, row) in window(&rows, app.selected, height.saturating_sub(1) / each) {
            lines.extend(self.event_loop(row, app.screen.pids.len() > 1, i == app.selected));
        }
        if rows.is_empty() {
            lines.push(Line::styled(" no thread runs an event loop", self.faint()));
        }
        lines
    }

    fn event_loop(&self, row: &LoopRow, several: bool, selected: bool) -> Vec<Line<'static>> {
        let number = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
        let event_loop = row.event_loop.as_ref();
        let kind = event_loop.map_or("", |l| &l.kind);
        let state = event_loop.map_or("", |l| &l.state);
        let iteration = match row.iteration {
            Some(age) => Duration(age).to_string(),
            None if state == "polling" => "waits".to_owned(),
            None => "?".to_owned(),
        };
        let line = format!(
            "{:>7} {:>10} {:>9} {:>7} {:>8} {:>6}  {kind}, {state}",
            row.tid,
            iteration,
            milliseconds(row.longest),
            number(event_loop.and_then(|l| l.ready)),
            number(event_loop.and_then(|l| l.overdue)),
            row.tasks,
        );
        let late = row.iteration.is_some_and(|age| age > 0.1);
        let style = if late {
            self.style(Style::new().fg(Color::Red)).add_modifier(Modifier::BOLD)
        } else {
            Style::new()
        };
        let mut lines = vec![self.selected(Line::styled(self.text(&line, self.width), style), selected)];
        let fact = |name: &str, value: String| {
            let value = self.text(&value, self.width.saturating_sub(18));
            Line::from(vec![Span::styled(format!("         {name:<8} "), self.faint()), Span::raw(value)])
        };
        let of = if several { format!(" of pid {}", row.pid) } else { String::new() };
        lines.push(fact("thread", row.thread.clone() + &of));
        if let Some(task) = &row.task {
            lines.push(fact("task", task.clone()));
        }
        if let Some(request) = &row.request {
            let framework = request.framework.as_ref().map(|f| format!(" ({f})")).unwrap_or_default();
            lines.push(fact("request", request.words() + &framework));
        }
        if let Some(place) = &row.place {
            lines.push(fact("at", place.clone()));
        }
        lines
    }

    /// A line over the whole width, inverse if selected.
    fn selected(&self, mut line: Line<'static>, selected: bool) -> Line<'static> {
        if selected {
            let used: usize = line.spans.iter().map(|s| width(&s.content)).sum();
            line.spans.push(Span::raw(" ".repeat(self.width.saturating_sub(used))));
            for span in &mut line.spans {
                span.style = Style::new();
            }
            return line.style(self.inverse());
        }
        line
    }

    // ------------------------------------------------------------ texts

    fn stack(&self, app: &App) -> Vec<Line<'static>> {
        let Some(stack) = &app.stack else {
            return vec![Line::styled(" that function has not been met", self.faint())];
        };
        let head = format!(
            " {}: {:.0} % of its {} samples stand so (innermost first)",
            self.text(&stack.function, self.width / 2),
            100.0 * stack.share,
            stack.samples
        );
        let mut lines = vec![Line::styled(head, self.bold())];
        let frames = stack.frames.iter().skip(app.scroll);
        lines
            .extend(frames.map(|f| Line::raw(format!("   {}", self.place(f, self.width.saturating_sub(3))))));
        lines
    }

    fn findings(&self, app: &App) -> Vec<Line<'static>> {
        let text = app.screen.findings.iter().flat_map(|f| f.text.lines().chain([""]));
        text.skip(app.scroll).map(|line| Line::raw(self.text(line, self.width))).collect()
    }

    fn help(&self) -> Vec<Line<'static>> {
        const KEYS: [(&str, &str); HELP_LINES] = [
            ("1  2", "sort by own / total share of the last seconds"),
            ("3  4", "sort by own / total time since the start"),
            ("f t e", "functions, threads, event loops (Tab: the next of them)"),
            ("/", "search functions and files; Esc ends it"),
            ("Up Down", "select (PgUp PgDn Home End, too)"),
            ("Right", "the stack of the selected function"),
            ("Enter", "what is found to be wrong; else as Right"),
            ("Left Esc", "back"),
            ("Space", "freeze the screen, or go on"),
            ("r", "begin to count anew"),
            ("s", "save the data of the screen to a file"),
            ("?", "this"),
            ("q", "quit"),
            ("", ""),
            ("own", "samples in which the function itself ran"),
            ("total", "samples in which it was anywhere on the stack"),
            ("errors", "samples that could not be proven to be of one moment"),
        ];
        let key = |(key, what): &(&str, &str)| {
            Line::from(vec![Span::styled(format!("  {key:<10}"), self.bold()), Span::raw((*what).to_owned())])
        };
        KEYS.iter().map(key).collect()
    }

    fn footer(&self, app: &App) -> Line<'static> {
        if app.searching {
            let text = format!(" /{}", clean(&app.search, self.look.unicode));
            return Line::from(vec![Span::raw(text), Span::styled(" ", self.inverse())]);
        }
        if let Some(note) = &app.note {
            return Line::styled(format!(" {}", self.text(note, self.width.saturating_sub(1))), self.bold());
        }
        let keys = match app.view {
            View::Functions => " 1-4 sort  / search  Right stack  t threads  e loops  Space freeze  ? q quit",
            View::Threads => " Up Down select  f functions  e loops  Space freeze  ? help  q quit",
            View::Loops => " Up Down select  f functions  t threads  Space freeze  ? help  q quit",
            View::Stack | View::Finding => " Up Down scroll  Esc back  Space freeze  q quit",
            View::Help => " Up Down scroll  Esc back  q quit",
        };
        let mut spans = Vec::new();
        let mut room = self.width;
        if !app.search.is_empty() && app.view == View::Functions {
            let search = self.text(&format!(" /{} ", app.search), self.width / 2);
            room = room.saturating_sub(width(&search));
            spans.push(Span::styled(search, self.inverse()));
        }
        // Whole keys, or none of the rest.
        let keys = match room < width(keys) {
            true if app.search.is_empty() => " ? help  q quit",
            true => " Esc all  Right stack  ? help  q quit",
            false => keys,
        };
        spans.push(Span::styled(self.text(keys, room), self.faint()));
        Line::from(spans)
    }
}

/// Seven columns last for years: after some hours nobody asks for hundredths.
fn seconds(time: f64) -> String {
    if time < 9999.995 { format!("{time:.2}") } else { format!("{time:.0}") }
}

/// What is less than half a millisecond is nothing here.
fn milliseconds(seconds: f64) -> String {
    if seconds < 0.0005 { "0 ms".to_owned() } else { Duration(seconds).to_string() }
}

/// The rows around the selected one that fit, with their numbers.
fn window<T>(rows: &[T], selected: usize, height: usize) -> impl Iterator<Item = (usize, &T)> {
    let first = (selected + 1).saturating_sub(height);
    rows.iter().enumerate().skip(first).take(height)
}
