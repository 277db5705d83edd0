//! Screens drawn into a buffer, and what keys make of them.

use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::layout::Rect;

use super::app::{App, View};
use super::draw::{self, Look};
use super::screen::{FindingRow, FunctionRow, LoopRow, Screen, StackView, ThreadRow};
use crate::snapshot::EventLoop;

const VIEWS: [View; 6] =
    [View::Functions, View::Threads, View::Loops, View::Stack, View::Finding, View::Help];

/// A screen full of what is long, wide or hostile.
fn screen() -> Screen {
    let function = |name: &str, line| FunctionRow {
        name: name.into(),
        file: "package/module/of/some/depth.py".into(),
        line,
        user: true,
        own_now: 0.5,
        total_now: 2.0,
        own: 123_456.0,
        total: 9_999_999.0,
    };
    let thread = |n: i32| ThreadRow {
        pid: 4_194_303,
        tid: 4_194_000 + n,
        name: "背景の仕事をするスレッド\u{200b}\x1b[31m".into(),
        state: "waits in queue.Queue.get for 83 s".into(),
        active: 1.0,
        gil: f64::NAN,
        frames: vec!["計算する (/srv/app/とても長い道/module.py:12)".into(); 40],
    };
    let event_loop = EventLoop {
        kind: "asyncio".into(),
        state: "blocked".into(),
        iteration_age: Some(3.0),
        ready: Some(7),
        overdue: None,
    };
    Screen {
        command: "python -m \u{202e}server --token=x".into(),
        pids: vec![4_194_303, 1],
        python: "CPython 3.12.1".into(),
        rate: 100,
        samples: 1_234_567_890,
        torn: 12_345,
        loop_lag: Some(61.0),
        looks: 1,
        functions: vec![
            function("Größe.計算する関数の名前.<locals>.<genexpr>", 28),
            function("short", 123_456),
            function("", 0),
        ],
        threads: (0..30).map(thread).collect(),
        loops: vec![
            LoopRow {
                pid: 1,
                tid: 77,
                thread: "MainThread".into(),
                event_loop: Some(event_loop),
                iteration: Some(3.0),
                longest: 3.0,
                task: Some("Task-1: main".into()),
                place: Some("stall (/srv/app.py:8)".into()),
                ..LoopRow::default()
            };
            3
        ],
        findings: vec![FindingRow {
            critical: true,
            rule: "loop-executor-shutdown".into(),
            summary: "MainThread serves nobody: it sits in `time.sleep`".into(),
            blocked_for: Some(47.0),
            text: (0..100).map(|n| format!("line {n} of the finding\n")).collect(),
        }],
        problems: vec!["process 1 cannot be read".into()],
        ..Screen::default()
    }
}

fn app() -> App {
    let stack = StackView {
        function: "f".into(),
        frames: (0..50).map(|n| format!("f (a.py:{n})")).collect(),
        ..StackView::default()
    };
    App { screen: screen(), stack: Some(stack), ..App::default() }
}

fn lines(app: &mut App, width: u16, height: u16) -> Vec<String> {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw::render(app, Look { unicode: true, colors: true }, area, &mut buffer);
    let line = |y| {
        let mut line = String::new();
        let mut x = 0;
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            line += symbol;
            // What is two columns wide leaves an empty cell behind it.
            x += crate::render::width::width(symbol).max(1) as u16;
        }
        line.trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

fn press(app: &mut App, code: KeyCode) {
    app.key(KeyEvent::from(code));
}

#[test]
fn every_view_is_drawn_at_every_size() {
    for view in VIEWS {
        for (search, searching) in [("", false), ("背景", false), ("very long indeed", true)] {
            for width in (0..170).step_by(3) {
                for height in [0, 1, 2, 3, 4, 5, 8, 24, 50] {
                    let mut app = App { view, searching, search: search.into(), frozen: true, ..app() };
                    let all = lines(&mut app, width, height);
                    assert!(!all.concat().contains(['\x1b', '\u{202e}', '\u{200b}']), "{all:?}");
                }
            }
        }
    }
}

#[test]
fn eighty_columns_have_room_for_what_matters() {
    let mut app = App { frozen: true, ..app() };
    let all = lines(&mut app, 80, 24);
    assert!(
        all[0].contains("FROZEN") && all[0].contains("and 1 more") && all[0].ends_with("100 Hz"),
        "{all:#?}"
    );
    for name in ["GIL ", "gc ", "loop lag ", "threads 30", "samples 1234567890", "errors 12345"] {
        assert!(all[1].contains(name), "{name}: {}", all[1]);
    }
    // Of a line that is too long the finding stays, not what the key does.
    assert!(all[2].contains("MainThread serves nobody: it sits"), "{}", all[2]);
    assert!(all[2].contains("for 47 s") && all[2].ends_with("Enter"), "{}", all[2]);
    assert!(!all.iter().any(|line| line.contains("……")), "{all:#?}");
    assert!(all.last().unwrap().ends_with("q quit"), "{all:#?}");
    app.search = "short".into();
    let all = lines(&mut app, 80, 24);
    assert!(all[4].contains("short (…/of/some/depth.py:123456)"), "{all:#?}");
    assert!(all.last().unwrap().ends_with("q quit"), "{all:#?}");
}

#[test]
fn a_problem_is_no_health() {
    let mut app = app();
    app.screen.findings.clear();
    let all = lines(&mut app, 80, 24);
    assert_eq!(all[2], " ! process 1 cannot be read");
    app.screen.problems.clear();
    assert_eq!(lines(&mut app, 80, 24)[2], " ✔ nothing is found to be wrong");
    app.screen.looks = 0;
    assert!(!lines(&mut app, 80, 24)[2].contains("nothing is found"));
}

#[test]
fn a_text_ends_at_the_bottom() {
    for view in [View::Finding, View::Stack, View::Help] {
        let mut app = App { view, ..app() };
        lines(&mut app, 80, 12);
        for _ in 0..200 {
            press(&mut app, KeyCode::Down);
        }
        let all = lines(&mut app, 80, 12);
        // Eight lines of text between the top and the keys, the last of which is filled but for an empty last line.
        assert!(!all[9].is_empty(), "{view:?}: {all:#?}");
        press(&mut app, KeyCode::Up);
        assert_ne!(lines(&mut app, 80, 12), all, "{view:?}: one key back is one line back");
        // A larger screen shows more of it, not an empty rest.
        press(&mut app, KeyCode::End);
        lines(&mut app, 80, 200);
        assert_eq!(app.scroll, 0, "{view:?}");
    }
}

#[test]
fn a_small_screen_shows_the_selected_loop() {
    let mut app = App { view: View::Loops, ..app() };
    app.screen.loops[2].tid = 99;
    app.selected = 2;
    for height in [6, 8, 10, 24] {
        let all = lines(&mut app, 80, height);
        assert!(all.iter().any(|line| line.starts_with("     99")), "{height}: {all:#?}");
    }
}
