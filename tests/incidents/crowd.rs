//! 200 processes of one program that hang alike, and one among them that does not: seconds, and one screen.

use std::time::Instant;

use serde_json::Value;

use crate::common::{Outcome, Program, each_interpreter, hangscope, list, lossy, text};
use crate::gunicorn::with_report;
use crate::judge::{brief, findings, until_right};
use crate::server::Silent;

const NUMBER: usize = 200;
/// Lines of a terminal that shows a report without scrolling far.
const SCREEN: usize = 50;

#[test]
fn two_hundred_processes() {
    // One interpreter: what is judged is the report, not how a stack is read.
    each_interpreter(
        "crowd",
        |interpreter| interpreter.label == "3.12",
        |interpreter| {
            let silent = Silent::start()?;
            let tag = format!("crowd-of-{}", std::process::id());
            let arguments = [&NUMBER.to_string() as &str, &tag];
            let variables = [("SILENT", &*silent.address.to_string())];
            let program = Program::start_with(interpreter, "incidents/crowd.py", &arguments, &variables)?;
            let truth = program.line("READY ")?;
            let target = ["--name", &tag];
            let wrong = until_right(|| {
                with_report(&target, |report, _| {
                    differences(&target, report, &truth).err().into_iter().collect()
                })
            });
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
        },
    );
}

fn differences(target: &[&str], report: &Value, truth: &Value) -> Outcome {
    let found = findings(report);
    let alike: Vec<_> =
        found.iter().filter(|f| list(f, "related").iter().any(|r| r == "same-stack")).collect();
    let [one] = alike[..] else {
        return Err(format!("not one for all: {:?}", found.iter().map(|f| brief(f)).collect::<Vec<_>>()));
    };
    let children: Vec<i64> = list(truth, "children").iter().filter_map(|pid| pid.as_i64()).collect();
    let named = list(one, "pids");
    if !children.iter().all(|pid| named.iter().any(|named| *named == *pid)) {
        return Err(format!("not all of {children:?} are in {named:?}"));
    }
    let odd = format!("elsewhere: pid {} stands in `load` at crowd.py:{}", truth["odd"], truth["lines"][1]);
    let said: Vec<&str> = list(one, "evidence").iter().filter_map(|line| line.as_str()).collect();
    if !said.contains(&&*odd) {
        return Err(format!("{odd:?} is not in {said:#?}"));
    }
    let expected = format!("{} processes stand alike", children.len());
    if !text(one, "summary").starts_with(&expected) {
        return Err(format!("{expected:?}: {}", brief(one)));
    }
    let began = Instant::now();
    let output = hangscope(&[&["check"], target].concat());
    eprintln!("check of {NUMBER} processes took {:?}", began.elapsed());
    let printed = lossy(&output.stdout);
    match printed.lines().count() {
        ..SCREEN => Ok(()),
        lines => Err(format!("{lines} lines are more than one screen:\n{printed}")),
    }
}
