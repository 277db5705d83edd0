//! Virtual environments with the real frameworks: made once under `target/venvs`, then reused.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::common::{Interpreter, Outcome, lossy};

/// The interpreters for which every pin of `requirements.txt` exists.
pub const LABELS: [&str; 5] = ["3.8", "3.9", "3.11", "3.12", "3.13.0"];

pub fn exists_for(interpreter: &Interpreter) -> bool {
    LABELS.contains(&interpreter.label.as_str())
}

/// Those of them that run by default: the one that loses frames, and a late one. `HANGSCOPE_ALL=1` or
/// `HANGSCOPE_ONLY` asks for more.
pub fn typical(interpreter: &Interpreter) -> bool {
    exists_for(interpreter) && (is_asked() || is_typical(interpreter))
}

fn is_asked() -> bool {
    ["HANGSCOPE_ALL", "HANGSCOPE_ONLY"].iter().any(|name| std::env::var_os(name).is_some())
}

fn is_typical(interpreter: &Interpreter) -> bool {
    ["3.9", "3.12"].contains(&interpreter.label.as_str())
}

/// Those for which every pin of `requirements-servers.txt` exists, by default the same two as above.
const SERVER_LABELS: [&str; 5] = ["3.9", "3.10", "3.11", "3.12", "3.13.0"];

pub fn has_servers(interpreter: &Interpreter) -> bool {
    SERVER_LABELS.contains(&interpreter.label.as_str()) && (is_asked() || is_typical(interpreter))
}

/// This interpreter with the packages; makes the environment if this is the first to ask. One that is in
/// an environment already stays there.
pub fn of(interpreter: &Interpreter) -> Outcome<Interpreter> {
    if interpreter.command.first().is_some_and(|python| Path::new(python).starts_with(directory())) {
        return Ok(interpreter.clone());
    }
    with(interpreter, &interpreter.label, &["requirements.txt"])
}

/// The same with drivers, brokers' clients and supervised servers as well.
pub fn servers(interpreter: &Interpreter) -> Outcome<Interpreter> {
    let name = format!("servers-{}", interpreter.label);
    with(interpreter, &name, &["requirements.txt", "requirements-servers.txt"])
}

/// The event loops that asyncio knows nothing of.
#[allow(dead_code, reason = "only tests/watch.rs asks for them")]
pub fn loops(interpreter: &Interpreter) -> Outcome<Interpreter> {
    with(interpreter, &format!("loops-{}", interpreter.label), &["requirements-loops.txt"])
}

/// Libraries with waits of their own.
pub fn libraries(interpreter: &Interpreter) -> Outcome<Interpreter> {
    with(interpreter, &format!("libraries-{}", interpreter.label), &["requirements-libraries.txt"])
}

/// One that packs programs into one file.
pub fn packer(interpreter: &Interpreter) -> Outcome<Interpreter> {
    with(interpreter, &format!("packer-{}", interpreter.label), &["requirements-packed.txt"])
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("venvs")
}

fn with(interpreter: &Interpreter, name: &str, lists: &[&str]) -> Outcome<Interpreter> {
    let venv = directory().join(name);
    make(interpreter, &venv, lists)
        .map_err(|e| format!("cannot make the environment {} (it needs PyPI, once): {e}", venv.display()))?;
    Ok(Interpreter { command: vec![venv.join("bin/python").into()], ..interpreter.clone() })
}

fn make(interpreter: &Interpreter, venv: &Path, lists: &[&str]) -> Outcome {
    let lists: Vec<PathBuf> = lists.iter().map(|list| fixtures().join(list)).collect();
    let texts: Result<Vec<String>, _> = lists.iter().map(fs::read_to_string).collect();
    let wanted = texts.map_err(|e| e.to_string())?.concat();
    fs::create_dir_all(directory()).map_err(|e| e.to_string())?;
    // Other test binaries, and other threads of this one, wait until it is complete.
    let lock = directory().join(format!("{}.lock", venv.file_name().unwrap_or_default().to_string_lossy()));
    let lock = File::create(&lock).map_err(|e| format!("{}: {e}", lock.display()))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e.to_string())?;
    let complete = venv.join("complete");
    if fs::read_to_string(&complete).is_ok_and(|made_from| made_from == wanted) {
        return Ok(());
    }
    if venv.exists() {
        fs::remove_dir_all(venv).map_err(|e| e.to_string())?;
    }
    let mut command = Command::new(&interpreter.command[0]);
    run(command.args(&interpreter.command[1..]).args(["-m", "venv"]).arg(venv))?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]);
    pip.arg("--no-deps");
    for list in &lists {
        pip.arg("-r").arg(list);
    }
    run(&mut pip)?;
    fs::write(complete, wanted).map_err(|e| e.to_string())
}

pub fn run(command: &mut Command) -> Outcome {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}{}", output.status, lossy(&output.stdout), lossy(&output.stderr)))
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/incidents")
}
