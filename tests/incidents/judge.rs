//! What hangscope says, compared with what a stuck program says of itself (`stuck.py`, `watch`).
//!
//! The expectations of all small programs are here, in one place: who suffers, at which line, what
//! kind of wait, which rule, who is to blame, and that nobody else is blamed with proof.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Interpreter, Outcome, Program, dump_json, hangscope, list, lossy, text};
use crate::server::Silent;

/// Off the loop a wait is only judged once it has lasted five seconds. How long a look takes depends on
/// the machine; so looks are counted, not seconds: those that began when all of that was long past.
struct Patience {
    start: Instant,
    late_looks: u32,
}

impl Patience {
    fn new() -> Patience {
        Patience { start: Instant::now(), late_looks: 0 }
    }

    /// Looks again, until nothing differs or too many looks have failed.
    fn is_over(&mut self, look: impl FnOnce() -> Vec<String>, wrong: &mut Vec<String>) -> bool {
        if self.start.elapsed() > Duration::from_secs(30) {
            self.late_looks += 1;
        }
        *wrong = look();
        wrong.is_empty() || self.late_looks >= 10
    }
}

/// Runs all programs of a file at once, and judges them all.
pub fn judge_all(
    interpreter: &Interpreter,
    file: &str,
    wanted: impl Fn(&str) -> bool,
    more: &[&str],
) -> Outcome {
    let silent = Silent::start()?;
    let address = silent.address.to_string();
    let start = |args: &[&str]| Program::start_with(interpreter, file, args, &[("SILENT", &address)]);
    let names = start(&[])?.line("PROGRAMS ")?;
    let only = std::env::var("HANGSCOPE_HANG").ok();
    let names: Vec<&str> = names
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|name| wanted(name) && only.as_ref().is_none_or(|only| only.split(',').any(|n| n == *name)))
        .collect();

    let mut wrong = Vec::new();
    // Not all at once: the machine is small, and starting is the only work there is.
    for names in names.chunks(12) {
        let mut running = Vec::new();
        for name in names {
            running.push((*name, start(&[&[*name], more].concat())?));
        }
        let mut stuck = Vec::new();
        for (name, program) in running {
            match program.line("READY ") {
                Ok(truth) => stuck.push((name, program, truth, Patience::new())),
                Err(reason) => wrong.push(format!("{name}: {reason}")),
            }
        }
        while !stuck.is_empty() {
            stuck.retain_mut(|(name, _program, truth, patience)| {
                let mut differences = Vec::new();
                let over = patience.is_over(|| differences_of(truth), &mut differences);
                if over && !differences.is_empty() {
                    wrong.push(format!("{name}:\n    {}", differences.join("\n    ")));
                }
                !over
            });
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{file}: {}", wrong.join("\n"))) }
}

fn differences_of(truth: &Value) -> Vec<String> {
    let pid = truth["pid"].as_i64().and_then(|pid| pid.try_into().ok()).unwrap_or_default();
    let mut wrong = match dump_json(pid, &[]) {
        Ok(report) => differences(truth, &report),
        Err(reason) => return vec![reason],
    };
    let judged = !list(truth, "rules").is_empty() && truth["severity"] == "critical";
    if wrong.is_empty() && judged {
        wrong.extend(check_says(&["--pid", &pid.to_string()], 1).err());
    }
    wrong
}

/// `hangscope check` ends with this code.
pub fn check_says(target: &[&str], code: i32) -> Outcome {
    let output = hangscope(&[&["check"], target].concat());
    if output.status.code() == Some(code) {
        return Ok(());
    }
    let said = lossy(&output.stdout) + &lossy(&output.stderr);
    Err(format!("check {}: {}, expected {code}:\n{said}", target.join(" "), output.status))
}

/// Looks until nothing differs; a loop is only critical when it has been blocked for a second.
pub fn until_right(mut look: impl FnMut() -> Vec<String>) -> Vec<String> {
    let mut patience = Patience::new();
    let mut wrong = Vec::new();
    while !patience.is_over(&mut look, &mut wrong) {
        std::thread::sleep(Duration::from_millis(500));
    }
    wrong
}

// ---------------------------------------------------------------- one report

/// All findings of a report, those of single processes first.
pub fn findings(report: &Value) -> Vec<&Value> {
    let of_processes = list(report, "processes").iter().flat_map(|process| list(process, "findings"));
    of_processes.chain(list(report, "findings")).collect()
}

/// The thread or task of the report that a truth is about.
pub fn actor<'a>(report: &'a Value, who: &Value) -> Option<&'a Value> {
    let process = list(report, "processes").iter().find(|process| process["pid"] == who["pid"])?;
    if who["task"].is_null() {
        list(process, "threads").iter().find(|thread| thread["tid"] == who["tid"])
    } else {
        list(process, "tasks").iter().find(|task| task["name"] == who["task"])
    }
}

/// Whether an entry of `cause` or `on` is this thread, task or process.
fn is(entry: &Value, who: &Value, report: &Value) -> bool {
    if !who["task"].is_null() {
        let id = actor(report, who).map(|task| &task["id"]);
        return id.is_some_and(|id| !id.is_null() && *id == entry["task"]);
    }
    entry["pid"] == who["pid"] && (who["tid"].is_null() || entry["tid"] == who["tid"])
}

pub fn user_frame(frames: &[Value]) -> Option<&Value> {
    frames.iter().find(|frame| frame["user"] == true)
}

fn differences(truth: &Value, report: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for victim in list(truth, "victims") {
        wrong.extend(wait_differences(truth, victim, report));
    }
    if !list(truth, "rules").is_empty() {
        wrong.extend(finding_differences(truth, report));
    }
    wrong
}

fn name_of(who: &Value) -> String {
    let named = ["thread", "task"].iter().find_map(|key| who[key].as_str());
    named.map_or_else(|| format!("pid {}", who["pid"]), str::to_owned)
}

fn wait_differences(truth: &Value, victim: &Value, report: &Value) -> Vec<String> {
    let name = name_of(victim);
    let Some(found) = actor(report, victim) else { return vec![format!("{name} is not in the report")] };
    let mut wrong = Vec::new();
    let line = if victim["line"].is_null() { &truth["line"] } else { &victim["line"] };
    match user_frame(list(found, "frames")) {
        None => wrong.push(format!("{name} has no frame of the application's own")),
        Some(frame) => {
            if frame["line"] != *line {
                wrong.push(format!("{name} stands at line {line}, shown at {}", place(frame)));
            }
            let function = &victim["function"];
            if !function.is_null() && frame["function"] != *function {
                wrong.push(format!("{name} is in {function}(), shown at {}", place(frame)));
            }
        }
    }
    let wait = &found["waits_on"];
    if wait.is_null() {
        wrong.push(format!("{name}: waits_on is null, expected {}", victim["wait"]));
        return wrong;
    }
    if !list(victim, "wait").contains(&wait["kind"]) {
        wrong.push(format!("{name} waits on {}, expected {}", wait["kind"], victim["wait"]));
    }
    let mut same = |key: &str, found: &Value, expected: &Value| {
        if !expected.is_null() && found != expected {
            wrong.push(format!("{name}: {key} of its wait is {found}, expected {expected}"));
        }
    };
    for (key, expected) in truth["detail"].as_object().into_iter().flatten() {
        same(key, &wait["detail"][key], expected);
    }
    same("peer", &wait["detail"]["peer"], &truth["peer"]);
    same("path", &wait["detail"]["path"], &truth["path"]);
    same("deadline", &wait["deadline"], &truth["deadline"]);
    if truth["deadline"] == "at" && !wait["ends_in"].as_f64().is_some_and(|s| 0.0 < s && s < 600.0) {
        wrong.push(format!("{name}: ends_in is {}", wait["ends_in"]));
    }
    wrong
}

fn place(frame: &Value) -> String {
    let file = Path::new(text(frame, "file")).file_name().unwrap_or_default().to_string_lossy();
    format!("{file}:{} in {}()", frame["line"], text(frame, "function"))
}

fn finding_differences(truth: &Value, report: &Value) -> Vec<String> {
    let (rules, victims) = (list(truth, "rules"), list(truth, "victims"));
    // A member of a deadlock may be named as who suffers, or somebody who waits for one of them.
    let about = |finding: &Value| {
        let named = |entry: &Value| victims.iter().any(|victim| is(entry, victim, report));
        named(finding) || list(finding, "cause").iter().any(named)
    };
    let ours: Vec<&Value> = findings(report).into_iter().filter(|finding| about(finding)).collect();
    let Some(finding) = ours.iter().find(|finding| rules.contains(&finding["rule"])) else {
        let others: Vec<String> = findings(report).into_iter().map(brief).collect();
        let known = |victim| actor(report, victim).map(|it| it["waits_on"].to_string());
        let waits: Vec<String> = victims.iter().filter_map(known).collect();
        return vec![format!("no finding of {}; there are {others:?}; {waits:?}", truth["rules"])];
    };
    let mut wrong = Vec::new();
    if ours.len() > 1 {
        let all: Vec<String> = ours.iter().map(|finding| brief(finding)).collect();
        wrong.push(format!("one root, one finding, but there are {all:?}"));
    }
    for key in ["severity", "certainty"] {
        if !truth[key].is_null() && finding[key] != truth[key] {
            wrong.push(format!("{key} is {}, expected {}", finding[key], truth[key]));
        }
    }
    if let Some(victim) = victims.iter().find(|victim| is(finding, victim, report)) {
        let frames = actor(report, victim).map_or(&[][..], |found| list(found, "frames"));
        let shown = finding["user_frame"].as_u64().and_then(|index| frames.get(index as usize));
        let line = if victim["line"].is_null() { &truth["line"] } else { &victim["line"] };
        if shown.is_none_or(|frame| frame["line"] != *line) {
            let shown = shown.map_or("nothing".into(), place);
            wrong.push(format!("user_frame is {shown}, expected line {line}"));
        }
    } else if truth["cycle"].is_null() {
        wrong.push(format!("it is about {} {}, not about who suffers", finding["tid"], finding["task"]));
    }
    if let Some(words) = truth["says"].as_str() {
        let says = |line: &Value| line.as_str().is_some_and(|line| line.contains(words));
        if !list(finding, "evidence").iter().any(says) {
            wrong.push(format!("nothing is said of \"{words}\": {}", finding["evidence"]));
        }
    }
    wrong.extend(blame_differences(truth, finding, report));
    wrong
}

fn blame_differences(truth: &Value, finding: &Value, report: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let cause = list(finding, "cause");
    if !truth["cycle"].is_null() {
        let expected: BTreeSet<&str> = list(truth, "cycle").iter().filter_map(Value::as_str).collect();
        let victims = list(truth, "victims");
        let named: BTreeSet<String> = list(finding, "cycle")
            .iter()
            .filter_map(|index| cause.get(index.as_u64()? as usize))
            .map(|entry| victims.iter().find(|who| is(entry, who, report)).map_or(entry.to_string(), name_of))
            .collect();
        if !named.iter().map(String::as_str).eq(expected.iter().copied()) {
            wrong.push(format!("its cycle is {named:?}, expected {expected:?}"));
        }
        return wrong;
    }
    let culprit = &truth["culprit"];
    if culprit.is_null() {
        return wrong;
    }
    let acts = |entry: &Value| is(entry, culprit, report);
    let named = cause.iter().any(|entry| acts(entry) || list(&entry["wait"], "on").iter().any(acts));
    if !named && truth["culprit_optional"] != true {
        wrong.push(format!("{culprit} is to blame, but not named"));
    }
    // A wrong culprit is worse than none: above all one that is called proved.
    let victims = list(truth, "victims");
    if let Some(last) = cause.last()
        && finding["certainty"] == "proved"
        && !acts(last)
        && !last["tid"].is_null()
        && !victims.iter().any(|victim| is(last, victim, report))
    {
        wrong.push(format!("{} is called the proved culprit, but it is {culprit}", last["thread"]));
    }
    wrong
}

/// One finding in a line, for messages.
pub fn brief(finding: &Value) -> String {
    format!("{} {}: {}", text(finding, "severity"), text(finding, "rule"), text(finding, "summary"))
}
