//! Incident 3: short-lived processes that hang, each with a session 'idle in transaction'.

use serde_json::Value;

use crate::common::{Interpreter, Outcome, Program, each_interpreter, list, process, text};
use crate::gunicorn::{nothing_above_info, only_finding, outcome, text_of, with_report};
use crate::judge::{check_says, until_right};
use crate::postgres::{Postgres, SECRET};
use crate::server::Silent;
use crate::venv;

const EVENTS: &str = "
    create table events (id int primary key, title text);
    insert into events values (1, 'one'), (2, 'two');
";

fn start(
    interpreter: &Interpreter,
    what: &str,
    postgres: &Postgres,
    silent: &str,
) -> Outcome<(Program, i32)> {
    start_with(interpreter, what, &postgres.url("postgresql+psycopg2"), silent)
}

fn start_with(interpreter: &Interpreter, what: &str, url: &str, silent: &str) -> Outcome<(Program, i32)> {
    let variables = [("DATABASE", url), ("SILENT", silent)];
    let program =
        Program::start_with(&venv::servers(interpreter)?, "incidents/timeline.py", &[what], &variables)?;
    let pid = program.line("READY ")?["pid"].as_i64().ok_or("no pid")? as i32;
    Ok((program, pid))
}

#[test]
fn pool_whose_connections_only_garbage_holds() {
    if !Postgres::is_here() {
        return;
    }
    each_interpreter("timeline-pool", venv::has_servers, |interpreter| {
        let postgres = Postgres::start(EVENTS)?;
        let (_program, pid) = start(interpreter, "pool", &postgres, "")?;
        let pid_text = pid.to_string();
        let wrong = until_right(|| {
            with_report(&["--pid", &pid_text], |report, printed| {
                let mut wrong = Vec::new();
                let Some(finding) = only_finding(report, "dbpool-exhausted", &mut wrong) else {
                    return wrong;
                };
                let mut expect = |what: &str, holds: bool| {
                    if !holds {
                        wrong.push(format!("{what}: {finding:#}"));
                    }
                };
                expect("severity", finding["severity"] == "critical" && finding["certainty"] == "proved");
                let pool = &finding["cause"][0]["wait"]["detail"]["pool"];
                expect("both are out", pool["out"] == 2 && pool["size"] == 2);
                let garbage = |h: &Value| h["by"] == "garbage";
                expect("nobody has them", list(pool, "holders").iter().filter(|h| garbage(h)).count() == 2);
                let said = text_of(&finding["evidence"]);
                expect("gc", said.contains("the garbage collector is disabled"));
                expect("the idle sessions", said.matches("idle in transaction").count() == 2);
                expect("the remedy", text(finding, "advice").contains("gc.collect()"));
                expect("no secret", !printed.contains(SECRET));
                wrong
            })
        });
        outcome([wrong, check_says(&["--pid", &pid_text], 1).err().into_iter().collect()].concat())
    });
}

#[test]
fn pool_fixed() {
    if !Postgres::is_here() {
        return;
    }
    each_interpreter("timeline-pool-fixed", venv::has_servers, |interpreter| {
        let postgres = Postgres::start(EVENTS)?;
        let (program, pid) = start(interpreter, "pool-fixed", &postgres, "")?;
        program.line("DONE ")?;
        nothing_above_info(&["--pid", &pid.to_string()])
    });
}

#[test]
fn crowd_on_one_row() {
    crowd("timeline-row", "postgresql+psycopg2");
}

#[test]
fn crowd_that_polls_again_and_again() {
    crowd("timeline-row-psycopg", "postgresql+psycopg");
}

fn crowd(name: &str, driver: &str) {
    if !Postgres::is_here() {
        return;
    }
    each_interpreter(name, venv::has_servers, |interpreter| {
        let postgres = Postgres::start(EVENTS)?;
        let silent = Silent::start()?;
        let address = silent.address.to_string();
        let (holder, holder_pid) = start(interpreter, "holder", &postgres, &address)?;
        holder.line("HOLDS ")?;
        let crowd: Outcome<Vec<(Program, i32)>> =
            (0..4).map(|_| start_with(interpreter, "row", &postgres.url(driver), &address)).collect();
        let crowd = crowd?;
        let targets: Vec<String> = crowd.iter().map(|(_, pid)| format!("--pid={pid}")).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let wrong = until_right(|| {
            with_report(&targets, |report, printed| {
                let mut wrong = Vec::new();
                let Some(finding) = only_finding(report, "db-wait", &mut wrong) else { return wrong };
                let mut expect = |what: &str, holds: bool| {
                    if !holds {
                        wrong.push(format!("{what}: {finding:#}"));
                    }
                };
                expect("severity", finding["severity"] == "critical");
                expect("by elimination", finding["certainty"] == "likely");
                let said = text_of(&finding["evidence"]);
                expect("the session", said.contains("idle with a transaction open, and likely holds"));
                expect("its own", said.contains("UPDATE waiting"));
                expect("the others", said.contains("3 others wait"));
                expect("the statement", said.contains("update events set title = ? where id = ?"));
                let culprit = list(finding, "cause").last();
                expect("the culprit", culprit.is_some_and(|c| c["pid"] == holder_pid));
                expect("what it waits for", culprit.is_some_and(|c| c["wait"]["detail"]["peer"] == *address));
                expect("it was followed", process(report, holder_pid).is_ok_and(|p| p["followed"] == true));
                expect("no secret", !printed.contains(SECRET));
                wrong
            })
        });
        outcome([wrong, check_says(&targets, 1).err().into_iter().collect()].concat())
    });
}

#[test]
fn row_fixed() {
    if !Postgres::is_here() {
        return;
    }
    each_interpreter("timeline-row-fixed", venv::has_servers, |interpreter| {
        let postgres = Postgres::start(EVENTS)?;
        let silent = Silent::start()?;
        let (holder, _) = start(interpreter, "holder", &postgres, &silent.address.to_string())?;
        holder.line("HOLDS ")?;
        let (program, pid) = start(interpreter, "row-fixed", &postgres, "")?;
        program.line("DONE ")?;
        nothing_above_info(&["--pid", &pid.to_string()])
    });
}
