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

/// This interpreter with the packages; makes the environment if this is the first to ask.
pub fn of(interpreter: &Interpreter) -> Outcome<Interpreter> {
    let venvs = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("venvs");
    let venv = venvs.join(&interpreter.label);
    make(interpreter, &venvs, &venv)
        .map_err(|e| format!("cannot make the environment {} (it needs PyPI, once): {e}", venv.display()))?;
    Ok(Interpreter { command: vec![venv.join("bin/python").into()], ..interpreter.clone() })
}

fn make(interpreter: &Interpreter, venvs: &Path, venv: &Path) -> Outcome {
    let requirements = fixtures().join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).map_err(|e| e.to_string())?;
    fs::create_dir_all(venvs).map_err(|e| e.to_string())?;
    // Other test binaries, and other threads of this one, wait until it is complete.
    let lock = venvs.join(format!("{}.lock", interpreter.label));
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
    run(pip.args(["--no-deps", "-r"]).arg(requirements))?;
    fs::write(complete, wanted).map_err(|e| e.to_string())
}

fn run(command: &mut Command) -> Outcome {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}{}", output.status, lossy(&output.stdout), lossy(&output.stderr)))
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/incidents")
}
