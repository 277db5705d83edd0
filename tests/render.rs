//! The reports that people and programs get to see, on snapshots made by hand: compared to what
//! was looked at and found good (`tests/snapshots`, `cargo insta review`).

mod samples;

use hangscope::render::report::Report;
use hangscope::render::text::{TextOptions, write};
use hangscope::render::{clean::is_safe, json, width::width};

fn styled(report: &Report, options: &TextOptions) -> String {
    let mut out = Vec::new();
    write(&mut out, report, options).unwrap();
    String::from_utf8(out).unwrap()
}

fn text(report: &Report, options: &TextOptions) -> String {
    anstream::adapter::strip_str(&styled(report, options)).to_string()
}

fn sample(name: &str) -> Report {
    samples::all().into_iter().find(|(sample, _)| *sample == name).unwrap().1
}

fn terminal(width: usize) -> TextOptions {
    TextOptions { width: Some(width), ..TextOptions::default() }
}

#[test]
fn on_a_terminal_of_80_columns() {
    for (name, report) in samples::all() {
        insta::assert_snapshot!(format!("{name}-80"), text(&report, &terminal(80)));
    }
}

#[test]
fn on_a_wide_terminal() {
    for name in ["healthy", "news-stream", "deadlock", "locals"] {
        insta::assert_snapshot!(format!("{name}-120"), text(&sample(name), &terminal(120)));
    }
}

#[test]
fn in_a_narrow_corner() {
    insta::assert_snapshot!("news-stream-48", text(&sample("news-stream"), &terminal(48)));
}

#[test]
fn in_a_file_nothing_is_wrapped() {
    for name in ["many-threads", "news-stream", "no-access"] {
        insta::assert_snapshot!(format!("{name}-file"), text(&sample(name), &TextOptions::default()));
    }
}

#[test]
fn without_utf8_everything_is_ascii() {
    let options = TextOptions { unicode: false, ..terminal(80) };
    for (name, report) in samples::all() {
        let text = text(&report, &options);
        assert!(text.is_ascii(), "{name}");
        if ["news-stream", "deadlock", "foreign-scripts"].contains(&name) {
            insta::assert_snapshot!(format!("{name}-ascii"), text);
        }
    }
}

#[test]
fn with_other_options() {
    let full = TextOptions { full_filenames: true, lineno: false, ..terminal(80) };
    insta::assert_snapshot!("healthy-full-filenames", text(&sample("healthy"), &full));
    let whole = TextOptions { full_stacks: true, ..terminal(80) };
    assert_eq!(text(&sample("recursion"), &whole).matches("Walker.visit_child (").count(), 300);
    let singly = TextOptions { group: false, ..terminal(80) };
    assert_eq!(text(&sample("many-threads"), &singly).matches("\nThread ").count(), 206);
}

/// All lines fit, but for words that stay whole: file names and addresses.
#[test]
fn nothing_is_wider_than_the_terminal() {
    for columns in [80, 100, 120, 200] {
        for (name, report) in samples::all() {
            for line in text(&report, &terminal(columns)).lines() {
                assert!(width(line) <= columns, "{name} at {columns}: {line}");
            }
        }
    }
}

#[test]
fn nothing_of_the_target_reaches_the_terminal_raw() {
    for (name, report) in samples::all() {
        for width in [None, Some(40), Some(80), Some(120)] {
            let options = TextOptions { width, ..TextOptions::default() };
            // Styles are the only escape sequences: after a colour there is always `m`.
            let styled = styled(&report, &options);
            for sequence in styled.split("\x1b[").skip(1) {
                let end = sequence.find(|c: char| !c.is_ascii_digit() && c != ';');
                assert_eq!(end.map(|end| &sequence[end..=end]), Some("m"), "{name}: {sequence:?}");
            }
            let text = anstream::adapter::strip_str(&styled).to_string();
            assert!(text.lines().flat_map(str::chars).all(is_safe), "{name}: {text:?}");
        }
        let mut out = Vec::new();
        json::write(&mut out, &report).unwrap();
        let json = String::from_utf8(out).unwrap();
        assert!(json.lines().flat_map(str::chars).all(is_safe), "{name}: {json:?}");
    }
}

#[test]
fn json_has_the_keys_of_the_contract_in_its_order() {
    let mut out = Vec::new();
    json::write(&mut out, &sample("news-stream")).unwrap();
    let json = String::from_utf8(out).unwrap();
    let at_depth = |spaces: usize| -> Vec<&str> {
        let indent = format!("\n{}\"", " ".repeat(spaces));
        json.match_indices(&indent)
            .map(|(at, _)| json[at + indent.len()..].split('"').next().unwrap())
            .collect()
    };
    let report = ["schema", "version", "captured_at", "host", "looks", "processes", "findings", "skipped"];
    assert_eq!(at_depth(2), report);
    let process: Vec<&str> = at_depth(6).into_iter().filter(|key| !["at", "took"].contains(key)).collect();
    assert_eq!(
        process,
        [
            "pid",
            "parent",
            "command",
            "executable",
            "executable_replaced",
            "cwd",
            "python",
            "followed",
            "uptime",
            "rss",
            "open_fds",
            "fd_limit",
            "listens",
            "connections",
            "children",
            "server",
            "cpu_throttled",
            "interpreters",
            "threads",
            "tasks",
            "findings",
            "problems"
        ]
    );
    let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    insta::assert_snapshot!("news-stream-json", json.replacen(&version, "\"version\": \"[this]\"", 1));
}

#[test]
fn json_comes_back_as_the_same_report() {
    for (name, report) in samples::all() {
        let mut out = Vec::new();
        json::write(&mut out, &report).unwrap();
        assert_eq!(serde_json::from_slice::<Report>(&out).unwrap(), report, "{name}");
    }
}

/// Colours as a person sees them: the escapes are part of the snapshot.
#[test]
fn colours() {
    let styled = styled(&sample("healthy"), &terminal(80)).replace('\x1b', "␛");
    insta::assert_snapshot!("healthy-colours", styled);
}

/// `cargo test --release --test render -- --ignored --nocapture`: 200 threads of 30 frames each,
/// none like another, are written in less than 2 ms.
#[test]
#[ignore = "a measurement: for release builds"]
fn two_hundred_stacks_in_two_milliseconds() {
    let mut report = sample("healthy");
    let process = &mut report.processes[0].process;
    let main = process.threads.iter().find(|thread| thread.main).unwrap().clone();
    process.threads = (0..200)
        .map(|n| {
            let mut thread = main.clone();
            thread.frames = main.frames.iter().cycle().take(30).cloned().collect();
            for (at, frame) in thread.frames.iter_mut().enumerate() {
                frame.function = format!("{}_{at}", frame.function).into();
            }
            (thread.tid, thread.main, thread.event_loop) = (Some(5000 + n), false, None);
            thread.frames[0].line = Some(n as u32);
            thread
        })
        .collect();
    for width in [None, Some(80), Some(120)] {
        let options = TextOptions { width, ..TextOptions::default() };
        let mut out = Vec::new();
        let least = (0..50).map(|_| {
            out.clear();
            let start = std::time::Instant::now();
            write(&mut out, &report, &options).unwrap();
            start.elapsed()
        });
        let least = least.min().unwrap();
        println!("{width:?}: {least:?} for {} bytes", out.len());
        assert!(cfg!(debug_assertions) || least.as_secs_f64() < 0.002);
    }
}
