//! Deadlocks of threads on every version: the cycle with its names, and how certain it is.

use crate::common::{Interpreter, each_interpreter, typical};
use crate::judge::judge_all;

const FILE: &str = "incidents/deadlocks.py";

/// CPYTHON.md A speaks of builds with a GIL. `HANGSCOPE_ALL=1` includes the debug twins.
fn wanted(interpreter: &Interpreter) -> bool {
    let all = std::env::var_os("HANGSCOPE_ALL").is_some() && !interpreter.free_threaded;
    all || typical(interpreter)
}

#[test]
fn cycles_are_found_and_named() {
    each_interpreter("deadlocks", wanted, |interpreter| judge_all(interpreter, FILE, |_| true, &[]));
}

#[test]
fn cycles_of_traced_programs() {
    each_interpreter("deadlocks-traced", typical, |interpreter| {
        judge_all(interpreter, FILE, |_| true, &["trace"])
    });
}

#[test]
fn cycles_of_monitored_programs() {
    let monitors = |interpreter: &Interpreter| typical(interpreter) && interpreter.minor >= 12;
    each_interpreter("deadlocks-monitored", monitors, |interpreter| {
        judge_all(interpreter, FILE, |_| true, &["monitor"])
    });
}
