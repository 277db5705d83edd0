//! Deadlocks of threads on every version: the cycle with its names, and how certain it is.

use crate::common::{Interpreter, each_interpreter};
use crate::judge::judge_all;

const FILE: &str = "incidents/deadlocks.py";

/// CPYTHON.md A speaks of builds with a GIL; the debug twins included.
fn with_a_gil(interpreter: &Interpreter) -> bool {
    !interpreter.free_threaded
}

#[test]
#[ignore = "issue 3 is being built: a lock that its own thread took by acquire() is not proved; cargo test -- --ignored"]
fn cycles_are_found_and_named() {
    each_interpreter("deadlocks", with_a_gil, |interpreter| judge_all(interpreter, FILE, |_| true, &[]));
}

/// What is inferred from the bytecode may be lost there; what is proved may not.
#[test]
fn cycles_of_traced_programs() {
    let provable = |name: &str| !name.contains("acquire") || name.contains("rlock");
    each_interpreter("deadlocks-traced", with_a_gil, |interpreter| {
        judge_all(interpreter, FILE, provable, &["trace"])
    });
}

#[test]
fn cycles_of_monitored_programs() {
    let provable = |name: &str| !name.contains("acquire") || name.contains("rlock");
    let monitors = |interpreter: &Interpreter| with_a_gil(interpreter) && interpreter.minor >= 12;
    each_interpreter("deadlocks-monitored", monitors, |interpreter| {
        judge_all(interpreter, FILE, provable, &["monitor"])
    });
}
