//! Programs and servers without a fault, idle and busy: `check` says so, every time.

use crate::common::{Interpreter, Outcome, Program, dump_json, each_interpreter, text, typical};
use crate::judge::{brief, check_says, findings};
use crate::server::{Load, Server};
use crate::venv;

/// A false alarm may need a certain moment: so several looks.
const LOOKS: usize = 5;

fn nothing_critical(pid: i32) -> Outcome {
    for _ in 0..LOOKS {
        let report = dump_json(pid, &[])?;
        let critical: Vec<String> = findings(&report)
            .into_iter()
            .filter(|finding| text(finding, "severity") == "critical")
            .map(brief)
            .collect();
        if !critical.is_empty() {
            return Err(critical.join("\n"));
        }
        check_says(&["--pid", &pid.to_string(), "--subprocesses"], 0)?;
    }
    Ok(())
}

fn alarms(report: &serde_json::Value) -> Vec<String> {
    findings(report).into_iter().filter(|f| text(f, "severity") != "info").map(brief).collect()
}

#[test]
fn programs() {
    each_interpreter("healthy", typical, |interpreter| {
        let file = "incidents/healthy.py";
        let names = Program::start(interpreter, file, &[])?.line("PROGRAMS ")?;
        let names: Vec<&str> = names.as_array().into_iter().flatten().filter_map(|n| n.as_str()).collect();
        let judge = |name: &str| {
            let (program, truth) = Program::ready(interpreter, file, &[name])?;
            nothing_critical(program.pid()).map_err(|reason| format!("{name}: {reason}"))?;
            if truth["at_rest"] != true {
                return Ok(());
            }
            // Waits are judged once they have lasted for five seconds.
            std::thread::sleep(std::time::Duration::from_secs(6));
            let alarms = alarms(&dump_json(program.pid(), &[])?);
            if alarms.is_empty() { Ok(()) } else { Err(format!("{name}: {}", alarms.join(", "))) }
        };
        let mut wrong = Vec::new();
        // A few at once: the busy ones take the CPU from each other, and that is no fault either.
        for names in names.chunks(4) {
            let outcomes = std::thread::scope(|scope| {
                let running: Vec<_> = names.iter().map(|name| scope.spawn(|| judge(name))).collect();
                running.into_iter().map(|one| one.join().expect("it does not panic")).collect::<Vec<_>>()
            });
            wrong.extend(outcomes.into_iter().filter_map(Outcome::err));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    });
}

/// Nothing in any program of the file is even a warning.
fn nothing_to_report(interpreter: &Interpreter, file: &str) -> Outcome {
    let names = Program::start(interpreter, file, &[])?.line("PROGRAMS ")?;
    let mut running = Vec::new();
    for name in names.as_array().into_iter().flatten().filter_map(|name| name.as_str()) {
        running.push((name, Program::ready(interpreter, file, &[name])?.0));
    }
    // What is waited for is judged once it has lasted for five seconds.
    std::thread::sleep(std::time::Duration::from_secs(6));
    let mut wrong = Vec::new();
    for (name, program) in running {
        let report = dump_json(program.pid(), &[])?;
        wrong.extend(alarms(&report).into_iter().map(|alarm| format!("{name}: {alarm}")));
        wrong.extend(check_says(&["--pid", &program.pid().to_string()], 0).err());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// asyncio programs whose tasks wait for what may come.
#[test]
fn asyncio_programs() {
    each_interpreter("healthy-asyncio", typical, |interpreter| {
        nothing_to_report(interpreter, "incidents/healthy_asyncio.py")
    });
}

#[test]
fn libraries_with_waits_of_their_own() {
    each_interpreter("healthy-libraries", venv::typical, |interpreter| {
        nothing_to_report(&venv::libraries(interpreter)?, "incidents/healthy_libraries.py")
    });
}

/// Idle, then under load, then idle again.
fn server(name: &str, args: &[&str], paths: &'static [&'static str]) {
    each_interpreter(name, venv::typical, |interpreter| {
        let server = Server::start(interpreter, args, &[])?;
        let pid = server.program.pid();
        nothing_critical(pid).map_err(|reason| format!("idle: {reason}"))?;
        let load = Load::start(server.port, paths);
        server.program.until("some answers", || Ok(*load.answers.lock().unwrap() >= 20))?;
        let before = *load.answers.lock().unwrap();
        nothing_critical(pid).map_err(|reason| format!("under load: {reason}"))?;
        server.program.until("more answers", || Ok(*load.answers.lock().unwrap() > before))?;
        drop(load);
        nothing_critical(pid).map_err(|reason| format!("after the load: {reason}"))
    });
}

#[test]
fn uvicorn() {
    let args =
        ["-m", "uvicorn", "--host=127.0.0.1", "--port={port}", "--log-level=warning", "web:fastapi_app"];
    server("healthy-uvicorn", &args, &["/work", "/sync", "/health"]);
}

#[test]
fn gunicorn() {
    let args =
        ["-m", "gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", "--log-level=warning", "web:flask_app"];
    server("healthy-gunicorn", &args, &["/work", "/health"]);
}

#[test]
fn aiohttp() {
    server("healthy-aiohttp", &["web.py", "{port}"], &["/work", "/health"]);
}
