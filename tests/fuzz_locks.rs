//! Random functions that hold locks, and who hangscope says holds them: `locks_fuzz.py` knows.
//!
//! No lock may have a wrong holder that is called proved, and every holder that can be proved has to be
//! found; most that `acquire()` makes are inferred, and none of those is wrong. Variables: those of `common`; `HANGSCOPE_FUZZ` is the number of seeds per interpreter (default
//! 3, of 60 functions each), `HANGSCOPE_FUZZ_FROM` the first (default 1).

mod common;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use common::{Interpreter, Outcome, Program, dump_json, each_interpreter, list, process, text};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap_or_else(|e| panic!("{variable}: {e}")))
}

/// CPYTHON.md A speaks of builds with a GIL.
fn with_a_gil(interpreter: &Interpreter) -> bool {
    !interpreter.free_threaded
}

#[test]
fn holders_are_who_the_program_says() {
    let (first, count) = (number("HANGSCOPE_FUZZ_FROM", 1), number("HANGSCOPE_FUZZ", 3));
    fuzz("fuzz-locks", with_a_gil, first..first + count, None);
}

/// Instrumented code has other opcodes at the very places that tell a holder.
#[test]
fn holders_of_traced_programs() {
    let seed = number("HANGSCOPE_FUZZ_FROM", 1) + 1000;
    fuzz("fuzz-locks-traced", with_a_gil, seed..seed + 1, Some("trace"));
}

#[test]
fn holders_of_monitored_programs() {
    let seed = number("HANGSCOPE_FUZZ_FROM", 1) + 2000;
    let monitors = |interpreter: &Interpreter| with_a_gil(interpreter) && interpreter.minor >= 12;
    fuzz("fuzz-locks-monitored", monitors, seed..seed + 1, Some("monitor"));
}

fn fuzz(
    name: &str,
    wanted: impl Fn(&Interpreter) -> bool,
    seeds: std::ops::Range<u64>,
    observed: Option<&str>,
) {
    each_interpreter(name, wanted, |interpreter| {
        let mut sum = Tally::default();
        for seed in seeds.clone() {
            let seed = seed.to_string();
            let mut args = vec![seed.as_str(), "60"];
            args.extend(observed);
            let (program, truth) = Program::settled(interpreter, "locks_fuzz.py", &args)?;
            let report = dump_json(program.pid(), &[])?;
            sum.compare(&seed, &truth, process(&report, program.pid())?);
        }
        eprintln!("{name} {}: {}", interpreter.label, sum.in_words());
        sum.outcome()
    });
}

#[derive(Default)]
struct Tally {
    /// Claims called proved that are true; claims called likely, true and not.
    proved: usize,
    likely: usize,
    likely_wrong: usize,
    /// Holders without proof that were found all the same, and all of them.
    inferred: usize,
    inferable: usize,
    waits: usize,
    wrong: Vec<String>,
    /// Holders that could have been inferred.
    missed: Vec<String>,
}

impl Tally {
    fn compare(&mut self, seed: &str, truth: &Value, process: &Value) {
        let programs: BTreeMap<i64, &Value> = list(truth, "threads")
            .iter()
            .filter_map(|thread| Some((thread["tid"].as_i64()?, thread)))
            .collect();
        let mut claims: BTreeMap<u64, Vec<(i64, String)>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for thread in list(process, "threads") {
            let Some(tid) = thread["tid"].as_i64() else { continue };
            seen.insert(tid);
            for lock in list(thread, "holds") {
                match address(&lock["address"]) {
                    Some(at) => claims.entry(at).or_default().push((tid, text(lock, "certainty").into())),
                    None => self.wrong.push(format!("seed {seed}: a lock without an address: {lock}")),
                }
            }
            if let Some(program) = programs.get(&tid) {
                self.compare_wait(seed, program, thread);
            }
        }
        for tid in programs.keys().filter(|tid| !seen.contains(tid)) {
            self.wrong.push(format!("seed {seed}: thread {tid} is missing"));
        }
        let text_of = |tid: i64| programs.get(&tid).map_or("", |thread| text(thread, "text"));
        for lock in list(truth, "locks") {
            let Some(at) = address(&lock["address"]) else { continue };
            self.compare_lock(seed, lock, &claims.remove(&at).unwrap_or_default(), text_of);
        }
        // The gates: taken by a call of the main thread that has returned, so there is no proof.
        for at in list(truth, "gates").iter().filter_map(address) {
            for (tid, certainty) in claims.remove(&at).unwrap_or_default() {
                if certainty == "proved" {
                    self.wrong.push(format!("seed {seed}: {tid} is called the proved holder of a gate"));
                }
            }
        }
        // What is left are locks that the program did not make for the purpose, of the interpreter's own
        // or of the library: nothing is known about them.
    }

    fn compare_lock<'a>(
        &mut self,
        seed: &str,
        lock: &Value,
        claims: &[(i64, String)],
        text_of: impl Fn(i64) -> &'a str,
    ) {
        let holders: Vec<i64> = list(lock, "holders").iter().filter_map(Value::as_i64).collect();
        let how = text(lock, "how");
        for (tid, certainty) in claims {
            match (holders.contains(tid), certainty.as_str()) {
                (true, "proved") => self.proved += 1,
                (true, _) => self.likely += 1,
                // Whose lock a suspended generator holds is a matter of opinion, but not of two.
                (false, "proved") => self.wrong.push(format!(
                    "seed {seed}: {tid} is called the proved holder of {} ({how}), held by {holders:?}\n{}",
                    lock["address"],
                    text_of(*tid)
                )),
                (false, _) => {
                    self.likely_wrong += 1;
                    self.wrong.push(format!(
                        "seed {seed}: {tid} is called the likely holder of {} ({how}), held by {holders:?}\n{}",
                        lock["address"],
                        text_of(*tid)
                    ));
                }
            }
        }
        for holder in holders {
            let claim = claims.iter().find(|(tid, _)| *tid == holder);
            if lock["must"] != true {
                if lock["plain"] == true {
                    self.inferable += 1;
                    self.inferred += usize::from(claim.is_some());
                    if claim.is_none() {
                        self.missed.push(format!(
                            "seed {seed}: {} ({how})\n{}",
                            lock["address"],
                            text_of(holder)
                        ));
                    }
                }
            } else if claim.is_none_or(|(_, certainty)| certainty != "proved") {
                self.wrong.push(format!(
                    "seed {seed}: {holder} holds {} ({how}), said is {:?}\n{}",
                    lock["address"],
                    claim.map(|(_, certainty)| certainty),
                    text_of(holder)
                ));
            }
        }
    }

    fn compare_wait(&mut self, seed: &str, program: &Value, thread: &Value) {
        let Some(expected) = address(&program["waits_on"]) else { return };
        let wait = &thread["waits_on"];
        if wait["kind"] == "lock" && address(&wait["address"]) == Some(expected) {
            self.waits += 1;
            return;
        }
        self.wrong.push(format!(
            "seed {seed}: {} waits for {expected:#x}, said is {} at {}\n{}",
            text(program, "name"),
            wait["kind"],
            wait["address"],
            text(program, "text")
        ));
    }

    fn in_words(&self) -> String {
        format!(
            "{} proved; {} of {} without proof inferred, likely {} right and {} wrong; {} waits; {} complaints",
            self.proved,
            self.inferred,
            self.inferable,
            self.likely,
            self.likely_wrong,
            self.waits,
            self.wrong.len()
        )
    }

    fn outcome(&self) -> Outcome {
        if !self.wrong.is_empty() {
            return Err(format!("{}\n{}", self.in_words(), self.wrong.join("\n")));
        }
        // What a frame does by way of two calls, or in a loop that is left, may stay unknown.
        if self.inferred * 10 < self.inferable * 8 {
            return Err(format!("{}\n{}", self.in_words(), self.missed.join("\n")));
        }
        Ok(())
    }
}

fn address(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}
