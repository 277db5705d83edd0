//! hangscope against live interpreters, judged by what these say of themselves.
//!
//! Each test runs one program of `fixtures/programs` under every interpreter of this machine and
//! fails once, with what went wrong under which. Variables: see `common::interpreters`;
//! `HANGSCOPE_CHURN` sets how many stacks of moving threads are taken (default 300);
//! `HANGSCOPE_BIN` names another build of hangscope, as the release one.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use common::{
    Interpreter, Outcome, Program, dump_json, each_interpreter, hangscope, list, lossy, process, text,
};

fn all(_: &Interpreter) -> bool {
    true
}

#[test]
fn required_interpreters_are_there() {
    let found: Vec<String> =
        common::interpreters().into_iter().map(|interpreter| interpreter.label).collect();
    eprintln!("interpreters: {}", found.join(", "));
    let missing = common::missing_interpreters();
    assert!(missing.is_empty(), "required, but not found: {}", missing.join(", "));
}

// ---------------------------------------------------------------- stacks

#[test]
fn stacks_are_what_the_interpreter_says() {
    truth("truth", &[]);
}

/// Apart from the others, because from 3.12 on tracing changes all code of the process.
#[test]
fn stacks_of_a_traced_program_are_what_the_interpreter_says() {
    truth("truth-traced", &["trace_function", "generator_in_for", "in_nested_except"]);
}

fn truth(name: &str, shapes: &[&str]) {
    each_interpreter(name, all, |interpreter| stacks_are_true(interpreter, shapes));
}

/// An application that has Python linked into it, goes by another name and runs it in a second thread.
#[test]
fn stacks_of_an_embedded_python_are_what_the_interpreter_says() {
    let here = |interpreter: &Interpreter| interpreter.chroot.is_none();
    each_interpreter("embedded", here, |interpreter| {
        for statically in [false, true] {
            if let Some(embedded) = common::embedded(interpreter, statically)? {
                stacks_are_true(&embedded, &[]).map_err(|e| format!("{}: {e}", embedded.label))?;
            }
        }
        Ok(())
    });
}

fn stacks_are_true(interpreter: &Interpreter, shapes: &[&str]) -> Outcome {
    let (program, truth) = Program::settled(interpreter, "truth.py", shapes)?;
    let report = dump_json(program.pid(), &[])?;
    let process = process(&report, program.pid())?;
    let mut wrong = Vec::new();

    let python = &process["python"];
    for (key, expected) in [
        ("version", &truth["version"]),
        ("free_threaded", &Value::from(interpreter.free_threaded)),
        ("debug", &Value::from(interpreter.debug)),
    ] {
        if python[key] != *expected {
            wrong.push(format!("python.{key} is {}, expected {expected}", python[key]));
        }
    }
    let of_main = list(process, "interpreters").iter().find(|interpreter| interpreter["id"] == 0);
    if of_main.is_none_or(|interpreter| interpreter["gc_collecting"] != truth["gc_collecting"]) {
        wrong.push(format!("gc_collecting: expected {}, found {of_main:?}", truth["gc_collecting"]));
    }

    wrong.extend(compare_threads(list(&truth, "threads"), list(process, "threads")));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Every thread of the truth against the one of the report with the same ident, and no others.
fn compare_threads(expected: &[Value], found: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut exact = 0;
    for thread in expected {
        match found.iter().find(|other| other["ident"] == thread["ident"]) {
            None => wrong.push(format!("thread {} ({}) is missing", thread["name"], thread["tid"])),
            Some(other) => match compare_thread(thread, other) {
                None => exact += 1,
                Some(difference) => wrong.push(difference),
            },
        }
    }
    for thread in found {
        let known = expected.iter().any(|other| other["ident"] == thread["ident"]);
        if !known && !list(thread, "frames").is_empty() {
            wrong.push(format!("thread {} ({}) does not exist", thread["name"], thread["tid"]));
        }
    }
    if !wrong.is_empty() {
        wrong.insert(0, format!("{exact} of {} threads are right", expected.len()));
    }
    wrong
}

fn compare_thread(expected: &Value, found: &Value) -> Option<String> {
    let mut notes = Vec::new();
    for key in ["tid", "ident", "name", "daemon", "main"] {
        if expected[key] != found[key] {
            notes.push(format!("{key} is {}, expected {}", found[key], expected[key]));
        }
    }
    if found["interpreter"] != 0 {
        notes.push(format!("interpreter is {}, expected 0", found["interpreter"]));
    }
    if found["complete"] != true {
        notes.push("it is not called complete".into());
    }
    if !["frozen", "seat", "paused"].contains(&text(found, "read")) {
        notes.push(format!("it stands still, but was read as {}", found["read"]));
    }
    let stack = compare_frames(list(expected, "frames"), list(found, "frames"));
    if notes.is_empty() && stack.is_none() {
        return None;
    }
    let mut message = format!("thread {} ({})", expected["name"], expected["tid"]);
    for note in notes {
        let _ = write!(message, "\n    {note}");
    }
    message += &stack.unwrap_or_default();
    Some(message)
}

/// `None` if all frames are equal; otherwise the two stacks, outermost last, with the differences.
fn compare_frames(expected: &[Value], found: &[Value]) -> Option<String> {
    let count = expected.len().max(found.len());
    let differences: Vec<Option<Vec<&str>>> = (0..count)
        .map(|index| match (expected.get(index), found.get(index)) {
            (Some(expected), Some(found)) => {
                let keys = different_keys(expected, found);
                (!keys.is_empty()).then_some(keys)
            }
            _ => Some(Vec::new()),
        })
        .collect();
    let wrong = differences.iter().flatten().count();
    if wrong == 0 {
        return None;
    }
    let mut message = format!("\n    {wrong} of {count} frames differ (expected {}):", expected.len());
    let mut shown = 0;
    for (index, difference) in differences.iter().enumerate() {
        let near = differences[index.saturating_sub(1)..count.min(index + 2)].iter().any(Option::is_some);
        if !near {
            continue;
        }
        shown += 1;
        if shown > 12 {
            message += "\n      …";
            break;
        }
        let line = |frame: Option<&Value>| frame.map_or("nothing".into(), describe);
        match difference {
            None => {
                let _ = write!(message, "\n      {index:>4}   {}", line(expected.get(index)));
            }
            Some(keys) => {
                let (expected, found) = (line(expected.get(index)), line(found.get(index)));
                let _ = write!(
                    message,
                    "\n      {index:>4} - {expected}\n           + {found}   {}",
                    keys.join(", ")
                );
            }
        }
    }
    Some(message)
}

/// What differs; where the interpreter cannot know (`source`, `user`), anything is right.
fn different_keys<'a>(expected: &Value, found: &Value) -> Vec<&'a str> {
    let mut keys: Vec<&str> = Vec::new();
    for key in ["function", "qualname", "file", "line", "module"] {
        if expected[key] != found[key] {
            keys.push(key);
        }
    }
    for key in ["source", "user"] {
        if !expected[key].is_null() && expected[key] != found[key] {
            keys.push(key);
        }
    }
    if found["kind"] != "python" {
        keys.push("kind");
    }
    keys
}

fn describe(frame: &Value) -> String {
    format!(
        "{} [{}] {}:{} in {} user={} {}",
        text(frame, "function"),
        frame["qualname"],
        text(frame, "file"),
        frame["line"],
        frame["module"],
        frame["user"],
        frame["source"],
    )
}

#[test]
fn the_text_report_shows_all_names_and_no_control_characters() {
    each_interpreter("text", all, |interpreter| {
        let (program, truth) = Program::settled(interpreter, "truth.py", &[])?;
        let output = hangscope(&["dump", &program.pid().to_string()]);
        if !output.status.success() {
            return Err(format!("{}: {}", output.status, lossy(&output.stderr)));
        }
        let shown = String::from_utf8(output.stdout).map_err(|e| format!("it is not UTF-8: {e}"))?;
        if let Some(at) = shown.find(|c: char| c.is_control() && c != '\n') {
            let line = shown[..at].lines().count();
            return Err(format!(
                "control character in line {line}: {:?}",
                shown.lines().nth(line.max(1) - 1)
            ));
        }
        let names = list(&truth, "threads").iter().map(|thread| text(thread, "name"));
        let hidden: Vec<&str> = names
            .filter(|name| name.len() < 60 && !name.contains(char::is_control) && !shown.contains(*name))
            .collect();
        if hidden.is_empty() { Ok(()) } else { Err(format!("names that are not shown: {hidden:?}")) }
    });
}

// ---------------------------------------------------------------- values

#[test]
fn locals_read_like_their_reprs() {
    each_interpreter("values", all, |interpreter| {
        let (program, truth) =
            Program::settled(interpreter, "values.py", &["--password=s3cr3t-command-line"])?;
        let mut wrong = Vec::new();
        for (option, longest) in [("-l", 4096), ("-ll", 65536)] {
            let report = dump_json(program.pid(), &[option])?;
            let locals = locals_of(process(&report, program.pid())?, text(&truth, "function"))?;
            for name in list(&truth, "absent") {
                if locals.contains_key(name.as_str().unwrap_or_default()) {
                    wrong.push(format!("{option}: {name} is not bound, but shown"));
                }
            }
            for (name, expected) in truth["values"].as_object().into_iter().flatten() {
                let Some(local) = locals.get(name.as_str()) else {
                    wrong.push(format!("{option}: {name} is missing"));
                    continue;
                };
                let value = text(local, "value");
                if let Err(reason) = compare_value(expected, value, option == "-ll") {
                    wrong.push(format!("{option}: {name} is shown as {}: {reason}", cut(value)));
                }
                if value.len() > longest {
                    wrong.push(format!("{option}: {name} is shown with {} bytes", value.len()));
                }
                if local["argument"] != expected["argument"] {
                    wrong.push(format!("{option}: {name}: argument is {}", local["argument"]));
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}

/// The locals, by name, of the innermost frame of this function.
fn locals_of<'a>(process: &'a Value, function: &str) -> Outcome<BTreeMap<&'a str, &'a Value>> {
    let mut frames = list(process, "threads").iter().flat_map(|thread| list(thread, "frames"));
    let frame = frames.find(|frame| frame["function"] == function);
    let frame = frame.ok_or_else(|| format!("no frame of {function}()"))?;
    if frame["locals"].is_null() {
        return Err(format!("no locals in the frame of {function}()"));
    }
    Ok(list(frame, "locals").iter().map(|local| (text(local, "name"), local)).collect())
}

fn compare_value(expected: &Value, value: &str, attributes: bool) -> Outcome {
    if let Some(control) = value.chars().find(|c| c.is_control()) {
        return Err(format!("it has the control character {control:?}"));
    }
    let repr = text(expected, "repr");
    let as_object = || {
        let (class, address) = (text(expected, "class"), text(expected, "address"));
        if !value.contains(class) {
            return Err(format!("its class {class} is not named"));
        }
        if value.contains(address) { Ok(()) } else { Err(format!("its address {address} is not shown")) }
    };
    if list(expected, "also").iter().any(|other| *other == value) {
        return Ok(());
    }
    match text(expected, "kind") {
        "exact" => like_repr(repr, value)?,
        "object" => as_object()?,
        "either" => like_repr(repr, value).or_else(|_| as_object())?,
        _ if value.is_empty() => return Err("nothing is shown".into()),
        _ if !value.starts_with(repr) => return Err(format!("expected something that begins {repr}")),
        _ => (),
    }
    for (name, repr) in expected["attributes"].as_object().into_iter().flatten().filter(|_| attributes) {
        let repr = repr.as_str().unwrap_or_default();
        let shown = value.match_indices(name.as_str()).any(|(at, _)| {
            value[at + name.len()..]
                .trim_start_matches(['\'', '"', ' ', '=', ':'])
                .starts_with(repr.trim_matches('\''))
        });
        if !shown {
            return Err(format!("its attribute {name} = {repr} is not shown"));
        }
    }
    Ok(())
}

/// Equal, or cut short with an ellipsis after a part that tells something: only what is long or
/// nested deeply may be.
///
/// `...` and `…` are the same here: Python writes three dots where a list contains itself.
fn like_repr(expected: &str, value: &str) -> Outcome {
    let (expected, value) = (expected.replace("...", "…"), value.replace("...", "…"));
    if expected == value {
        return Ok(());
    }
    let bounded = expected.len() > 60 || expected.contains('…') || nesting(&expected) > 3;
    match value.split_once('…') {
        Some((begin, _)) if bounded && expected.starts_with(begin) && !begin.is_empty() => Ok(()),
        _ => Err(format!("expected {}", cut(&expected))),
    }
}

fn nesting(repr: &str) -> usize {
    let deepest = repr.chars().scan(0_usize, |depth, c| {
        match c {
            '[' | '(' | '{' => *depth += 1,
            ']' | ')' | '}' => *depth = depth.saturating_sub(1),
            _ => (),
        }
        Some(*depth)
    });
    deepest.max().unwrap_or(0)
}

fn cut(text: &str) -> String {
    let short: String = text.chars().take(160).collect();
    if short.len() < text.len() { format!("{short}… ({} bytes)", text.len()) } else { short }
}

#[test]
fn secrets_are_masked_unless_asked_for() {
    const MARK: &str = "s3cr3t-";
    each_interpreter("secrets", all, |interpreter| {
        let (program, truth) =
            Program::settled(interpreter, "values.py", &["--password=s3cr3t-command-line"])?;
        let pid = program.pid().to_string();
        let mut wrong = Vec::new();
        for args in [&["dump", "-l", "-j", &pid][..], &["dump", "-ll", "-j", &pid], &["dump", "-ll", &pid]] {
            let output = hangscope(args);
            if !output.status.success() {
                return Err(format!("{}: {}", output.status, lossy(&output.stderr)));
            }
            let shown = lossy(&output.stdout) + &lossy(&output.stderr);
            let leaked: BTreeSet<&str> = shown
                .match_indices(MARK)
                .map(|(at, _)| {
                    shown[at..].split(|c: char| !c.is_alphanumeric() && c != '-').next().unwrap_or(MARK)
                })
                .collect();
            if !leaked.is_empty() {
                wrong.push(format!("{} shows {leaked:?}", args.join(" ")));
            }
        }
        let report = dump_json(program.pid(), &["-ll", "--show-secrets"])?.to_string();
        let secrets = list(&truth, "secrets").iter().filter_map(Value::as_str);
        for secret in secrets.chain(["s3cr3t-command-line"]) {
            if !report.contains(secret) {
                wrong.push(format!("--show-secrets does not show {secret}"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}

// ---------------------------------------------------------------- moving targets

#[test]
fn no_stack_of_one_moving_thread_is_impossible() {
    churn("churn-1", 1);
}

#[test]
fn no_stack_of_eight_threads_that_fight_for_the_gil_is_impossible() {
    churn("churn-8", 8);
}

fn churn(name: &str, threads: usize) {
    let wanted: usize = std::env::var("HANGSCOPE_CHURN").map_or(300, |n| n.parse().expect("HANGSCOPE_CHURN"));
    let _alone = common::alone();
    each_interpreter(name, all, |interpreter| {
        let (program, truth) = Program::ready(interpreter, "churn.py", &[&threads.to_string()])?;
        // These have each another way of keeping frames; the others a tenth of the effort.
        let thorough = ["3.8", "3.11", "3.13", "3.15"].contains(&interpreter.label.as_str());
        let wanted = if thorough { wanted } else { wanted.div_ceil(10) };
        let mut tally = Tally::default();
        while tally.taken < wanted && tally.impossible.len() < 5 {
            let report = dump_json(program.pid(), &["-l"])?;
            let process = process(&report, program.pid())?;
            let stacks = list(process, "threads").iter().filter(|t| list(&truth, "tids").contains(&t["tid"]));
            let before = tally.taken;
            stacks.for_each(|thread| tally.add(&truth, thread));
            if tally.taken - before != threads {
                return Err(format!("{} of {threads} threads in\n{process:#}", tally.taken - before));
            }
        }
        eprintln!("{name} {}: {tally}", interpreter.label);
        if !tally.impossible.is_empty() {
            return Err(format!("{tally}\n{}", tally.impossible.join("\n")));
        }
        // At most 1 %; where few are taken, one unlucky look is more than that. This asks for an
        // optimised reader, quicker than hand-overs of the GIL. Without a GIL nothing freezes all of
        // several running threads: there, too, only truth is asked for.
        let judged = common::optimised() && !(interpreter.free_threaded && threads > 1);
        if judged && tally.torn > threads.max(tally.taken / 100) {
            return Err(format!("more than 1 % torn: {tally}"));
        }
        if tally.depths.len() < 2 {
            return Err(format!("the target moves, but all stacks are alike: {tally}"));
        }
        Ok(())
    });
}

#[derive(Default)]
struct Tally {
    taken: usize,
    torn: usize,
    impossible: Vec<String>,
    reads: BTreeMap<String, usize>,
    depths: BTreeMap<usize, usize>,
}

impl Tally {
    fn add(&mut self, truth: &Value, thread: &Value) {
        self.taken += 1;
        *self.reads.entry(text(thread, "read").into()).or_default() += 1;
        if thread["read"] == "torn" || thread["complete"] != true {
            self.torn += 1;
            return;
        }
        match possible(truth, list(thread, "frames")) {
            Ok(depth) => *self.depths.entry(depth).or_default() += 1,
            Err(reason) => {
                let mut message = format!("{reason}, in a stack read as {}:", thread["read"]);
                for frame in list(thread, "frames") {
                    let (n, tag) = (local(frame, "n"), local(frame, "tag"));
                    let _ = write!(
                        message,
                        "\n    {}:{} n={n:?} tag={tag:?}",
                        text(frame, "function"),
                        frame["line"]
                    );
                }
                self.impossible.push(message);
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tally { taken, torn, impossible, reads, depths } = self;
        write!(
            f,
            "{taken} stacks, {torn} torn, {} impossible, read {reads:?}, depths {depths:?}",
            impossible.len()
        )
    }
}

fn local<'a>(frame: &'a Value, name: &str) -> Option<&'a str> {
    list(frame, "locals").iter().find(|local| local["name"] == name)?["value"].as_str()
}

/// The depth of a stack of churn.py, or why the program can never have had it.
fn possible(truth: &Value, frames: &[Value]) -> Outcome<usize> {
    let Some(root) = frames.iter().rposition(|frame| frame["function"] == truth["root"]) else {
        let cycle = list(truth, "cycle");
        let lost = frames.iter().any(|frame| cycle.contains(&frame["function"]));
        return if lost { Err("the stack has lost its root".into()) } else { Ok(0) };
    };
    let call_line = |frame: &Value| &truth["call_lines"][text(frame, "function")];
    let calls = list(truth, "cycle");
    let tag = local(&frames[root], "tag");
    for depth in 1..=root {
        let (caller, frame) = (&frames[root - depth + 1], &frames[root - depth]);
        let function = &calls[(depth - 1) % calls.len()];
        if frame["function"] != *function {
            return Err(format!("{} under {}", frame["function"], caller["function"]));
        }
        if caller["line"] != *call_line(caller) {
            return Err(format!("{} calls at line {}", caller["function"], caller["line"]));
        }
        if local(frame, "n") != Some(depth.to_string().as_str()) {
            return Err(format!("n is {:?} at depth {depth}", local(frame, "n")));
        }
        if tag.is_none() || local(frame, "tag") != tag {
            return Err(format!("tags {:?} and {tag:?} in one stack", local(frame, "tag")));
        }
    }
    if truth["depth"].as_u64().is_some_and(|most| root as u64 > most) {
        return Err(format!("{root} calls deep"));
    }
    Ok(root)
}

/// The judge itself: it must tell each kind of impossible stack.
#[test]
fn impossible_stacks_are_told_from_possible_ones() {
    let lines = serde_json::json!({"a": 2, "b": 12, "c": 22, "worker": 32});
    let truth =
        serde_json::json!({"cycle": ["a", "b", "c"], "root": "worker", "depth": 30, "call_lines": lines});
    let frame = |function: &str, n: Option<usize>, tag: &str| {
        let mut locals = vec![serde_json::json!({"name": "tag", "value": tag})];
        locals.extend(n.map(|n| serde_json::json!({"name": "n", "value": n.to_string()})));
        serde_json::json!({"function": function, "line": lines[function], "locals": locals})
    };
    let stack = || {
        let calls = ["b", "a", "c", "b", "a"].iter().zip((1..=5).rev());
        let mut frames: Vec<Value> = calls.map(|(function, n)| frame(function, Some(n), "7")).collect();
        frames.extend([frame("worker", None, "7"), serde_json::json!({"function": "run", "line": 1})]);
        frames
    };
    let changed = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut frames = stack();
        change(&mut frames);
        possible(&truth, &frames)
    };
    assert_eq!(changed(&|_| ()), Ok(5));
    assert_eq!(changed(&|frames| frames[0]["line"] = 11.into()), Ok(5), "the innermost may be anywhere");
    assert_eq!(changed(&|frames| drop(frames.drain(..5))), Ok(0));
    for (what, change) in [
        ("a frame left out", (&|frames: &mut Vec<Value>| drop(frames.remove(2))) as &dyn Fn(&mut Vec<Value>)),
        ("a whole round left out", &|frames| drop(frames.drain(1..4))),
        ("the root left out", &|frames| drop(frames.remove(5))),
        ("a frame of another descent", &|frames| frames[1] = frame("a", Some(4), "8")),
        ("another descent from the root on", &|frames| frames[5] = frame("worker", None, "8")),
        ("a caller that is not at its call", &|frames| frames[3]["line"] = 11.into()),
        ("a frame without locals", &|frames| frames[2]["locals"] = Value::Null),
        ("the callee of another function", &|frames| frames[0] = frame("c", Some(5), "7")),
    ] {
        assert!(changed(change).is_err(), "{what}: not noticed");
    }
}

// ---------------------------------------------------------------- interpreters within interpreters

#[test]
fn every_interpreter_of_a_process_is_read() {
    each_interpreter("subinterpreters", all, |interpreter| {
        let (program, truth) = Program::settled(interpreter, "subinterp.py", &[])?;
        let report = dump_json(program.pid(), &[])?;
        let process = process(&report, program.pid())?;
        let threads = list(process, "threads");
        let find =
            |id: &Value, tid: &Value| threads.iter().find(|t| t["interpreter"] == *id && t["tid"] == *tid);
        let mut wrong = Vec::new();

        for inside in list(&truth, "inside") {
            let (id, tid) = (&inside["interpreter"], &inside["tid"]);
            let what = format!("interpreter {id}, {} ({tid})", text(inside, "own"));
            let Some(thread) = find(id, tid) else {
                wrong.push(format!("{what} is missing"));
                continue;
            };
            if let Some(difference) = compare_frames(list(inside, "frames"), list(thread, "frames")) {
                wrong.push(format!("{what}:{difference}"));
            }
            if inside["own"] == "own thread" && thread["name"] != inside["name"] {
                wrong.push(format!("{what} is named {}, expected {}", thread["name"], inside["name"]));
            }
            if thread["ident"] != inside["ident"] {
                wrong.push(format!("{what}: ident is {}, expected {}", thread["ident"], inside["ident"]));
            }
            let gil = list(process, "interpreters").iter().find(|interpreter| interpreter["id"] == *id);
            if gil.is_none_or(|gil| gil["gil"].is_null() != interpreter.free_threaded) {
                wrong.push(format!("interpreter {id} is described as {gil:?}"));
            }
        }
        // The threads that went in have a stack outside as well.
        for entering in list(&truth, "entering") {
            let Some(thread) = find(&Value::from(0), &entering["tid"]) else {
                wrong.push(format!("{} has no stack in the main interpreter", entering["name"]));
                continue;
            };
            let innermost = list(thread, "frames").first().map(|frame| text(frame, "function"));
            if innermost != Some("enter") || thread["name"] != entering["name"] {
                wrong.push(format!("{} is {} in {innermost:?}", entering["name"], thread["name"]));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}

// ---------------------------------------------------------------- the GIL

#[test]
fn the_gils_holder_and_who_waits_for_it() {
    each_interpreter(
        "gil",
        |interpreter| !interpreter.free_threaded,
        |interpreter| {
            let (program, truth) = Program::ready(interpreter, "gil.py", &[])?;
            let pid = program.pid();
            let tid_of =
                |value: &Value| value.as_i64().and_then(|tid| i32::try_from(tid).ok()).unwrap_or_default();
            let holder = tid_of(&truth["holder"]);
            let expected: BTreeSet<i32> = list(&truth, "waiters").iter().map(tid_of).collect();
            // Looks count only if the holder slept in C, GIL in hand, from before to after.
            let asleep = || {
                common::system_call(pid, holder)
                    .filter(|call| call.is_sleep())
                    .and(common::schedstat(pid, holder))
            };
            // Waiters wake every 5 ms to ask for the GIL: one that is awake may be missing from a look.
            let mut missed = Vec::new();
            while missed.len() < 30 {
                let mut report = Value::Null;
                program.until("a look that falls within one long C call", || {
                    let Some(before) = asleep() else { return Ok(false) };
                    report = dump_json(pid, &[])?;
                    Ok(asleep() == Some(before))
                })?;
                let process = process(&report, pid)?;
                let gil = &list(process, "interpreters").first().ok_or("no interpreter")?["gil"];
                if gil["holder"] != holder {
                    return Err(format!("the holder is {}, expected {holder}", gil["holder"]));
                }
                let waiters: BTreeSet<i32> = list(gil, "waiters").iter().map(tid_of).collect();
                let mut words = BTreeSet::new();
                for thread in list(process, "threads") {
                    let tid = tid_of(&thread["tid"]);
                    if thread["holds_gil"] != (tid == holder) {
                        return Err(format!("{}: holds_gil is {}", thread["name"], thread["holds_gil"]));
                    }
                    if (thread["activity"] == "waiting-for-gil") != waiters.contains(&tid) {
                        return Err(format!(
                            "{} is {}, the waiters {waiters:?}",
                            thread["name"], thread["activity"]
                        ));
                    }
                    if expected.contains(&tid) {
                        words.insert(text(thread, "activity").to_owned());
                    }
                }
                if !waiters.is_subset(&expected) {
                    return Err(format!("the waiters are {waiters:?}, expected {expected:?}"));
                }
                if waiters == expected {
                    eprintln!(
                        "gil {}: right after {} looks that missed some",
                        interpreter.label,
                        missed.len()
                    );
                    return Ok(());
                }
                missed.push(format!("{waiters:?} with the others in {words:?}"));
            }
            Err(format!("expected the waiters {expected:?}, found\n{}", missed.join("\n")))
        },
    );
}

// ---------------------------------------------------------------- leaving the target alone

#[test]
fn a_pause_cuts_no_write_short() {
    each_interpreter("big-write", all, |interpreter| {
        let (mut program, truth) = Program::settled(interpreter, "big_write.py", &[])?;
        let mut wrong = Vec::new();
        for extra in [&["--pause"][..], &[], &["--pause", "-l"], &["--pause"], &["--pause"]] {
            let report = dump_json(program.pid(), extra)?;
            for (tid, name) in [(&truth["writer"], "write"), (&truth["sender"], "sendto")] {
                let mut threads = list(process(&report, program.pid())?, "threads").iter();
                let thread =
                    threads.find(|thread| thread["tid"] == *tid).ok_or(format!("no thread {tid}"))?;
                if thread["os"]["syscall"]["name"] != name {
                    wrong.push(format!("{name}: the report has it in {}", thread["os"]["syscall"]));
                }
                if thread["read"] != "frozen" {
                    wrong.push(format!("{name}: blocked, but read as {}", thread["read"]));
                }
            }
        }
        program.send("go\n")?;
        let counts = program.line("DONE ")?;
        for call in ["write", "send"] {
            if counts[call] != truth["size"] {
                wrong.push(format!("{call} returned {} of {}", counts[call], truth["size"]));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}

#[test]
fn a_target_runs_on_when_hangscope_is_killed() {
    each_interpreter("kill", all, |interpreter| {
        let (program, _) = Program::ready(interpreter, "churn.py", &["8", "300"])?;
        let pid = program.pid();
        let mut within = 0;
        for round in 0..20_u64 {
            let mut command = Command::new(common::binary());
            command.args(["dump", "--pause", "-ll", "--json", &pid.to_string()]);
            let mut child =
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?;
            // Even rounds strike as soon as something is seized, odd ones at some moment.
            let end = Instant::now() + Duration::from_millis(if round % 2 == 0 { 1000 } else { round });
            let seized =
                || common::tids(pid).into_iter().any(|tid| common::tracer(pid, tid).is_some_and(|t| t != 0));
            while Instant::now() < end && matches!(child.try_wait(), Ok(None)) {
                if round % 2 == 0 && seized() {
                    within += 1;
                    break;
                }
            }
            let _ = child.kill();
            child.wait().map_err(|e| e.to_string())?;
            program.until("all threads to run on", || {
                let held = |tid| matches!(common::state(pid, tid), Some('t' | 'T'));
                Ok(!seized() && !common::tids(pid).into_iter().any(held))
            })?;
            let before = common::cpu_time(pid);
            program.until("it to make progress", || Ok(common::cpu_time(pid) > before))?;
        }
        eprintln!("kill {}: {within} of 10 while something was seized", interpreter.label);
        Ok(())
    });
}
