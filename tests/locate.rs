//! Finding the interpreter, whatever was done to the binary. On copies of Debian's static python3.11,
//! here and in the sid root: deleted, replaced, in a venv, with the dynamic symbol hidden, with the
//! section hidden as well.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Outcome, hangscope, lossy, sid_root};

const PROGRAM: &str =
    "import os, sys\ndef stand_still():\n    os.write(1, b'READY\\n')\n    os.read(0, 1)\nstand_still()\n";

/// A copy of an interpreter in a directory of its own, below the root that it runs in.
struct Copy {
    root: PathBuf,
    dir: PathBuf,
    version: String,
}

impl Copy {
    /// Where the interpreters are that have no libpython of their own.
    fn all(name: &str) -> Vec<Copy> {
        let mut found = Vec::new();
        let places = [("/", "3.11")].into_iter().map(|(r, v)| (PathBuf::from(r), v));
        for (root, version) in places.chain(["3.13", "3.14", "3.15"].map(|v| (sid_root(), v))) {
            let original = root.join(format!("usr/bin/python{version}"));
            if !original.exists() {
                eprintln!("not tested: {} is not there", original.display());
                continue;
            }
            let dir = root.join(format!("tmp/hangscope-locate-{}-{name}-{version}", std::process::id()));
            fs::create_dir_all(&dir).expect("a directory");
            fs::copy(&original, dir.join("python")).expect("copied");
            fs::write(dir.join("program.py"), PROGRAM).expect("written");
            found.push(Copy { root, dir, version: version.into() });
        }
        assert!(!found.is_empty(), "no static interpreter was found");
        found
    }

    fn executable(&self) -> PathBuf {
        self.dir.join("python")
    }

    /// Replaces bytes of the executable by others of the same length.
    fn patch(&self, from: &[u8], to: &[u8]) {
        let mut bytes = fs::read(self.executable()).expect("read");
        let mut count = 0;
        for at in 0..bytes.len() - from.len() {
            if &bytes[at..at + from.len()] == from {
                bytes[at..at + to.len()].copy_from_slice(to);
                count += 1;
            }
        }
        assert!(count > 0, "{} is not in the binary", lossy(from));
        fs::write(self.executable(), bytes).expect("written");
        fs::set_permissions(self.executable(), fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn start(&self) -> Running {
        let inside = Path::new("/").join(self.dir.strip_prefix(&self.root).expect("below the root"));
        self.start_as(&inside.join("python"), &inside.join("program.py"))
    }

    /// A copy that another thread's fork still has open for writing is "busy" until that child execs.
    fn start_as(&self, executable: &Path, program: &Path) -> Running {
        for _ in 0..200 {
            if let Some(running) = self.try_start(executable, program) {
                return running;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{} does not start", executable.display());
    }

    fn try_start(&self, executable: &Path, program: &Path) -> Option<Running> {
        let mut command = Command::new("chroot");
        command.arg(&self.root).arg(executable).arg(program).env("PYTHONHOME", "/usr");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
        let mut running = Running(child);
        let mut line = String::new();
        let out = running.0.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        (line == "READY\n").then_some(running)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// The stack is there, and the log says which way led to it.
    fn is_read(&self, version: &str, how: &str) -> Outcome {
        let pid = self.0.id().to_string();
        let output = hangscope(&["dump", "--pid", &pid, "--verbose"]);
        let (out, err) = (lossy(&output.stdout), lossy(&output.stderr));
        let found = output.status.success()
            && out.contains(&format!("CPython {version}."))
            && out.contains("stand_still")
            && err.contains(how);
        found.then_some(()).ok_or_else(|| format!("{version} by {how}: {}\n{out}\n{err}", output.status))
    }
}

#[test]
fn by_symbol_though_the_executable_was_deleted_or_replaced() {
    for copy in Copy::all("deleted") {
        let running = copy.start();
        fs::remove_file(copy.executable()).expect("removed");
        running.is_read(&copy.version, "dynamic symbol").unwrap();
        // Another file in its place: nothing of it may be believed.
        fs::write(copy.executable(), b"\x7fELF not this one").expect("written");
        running.is_read(&copy.version, "dynamic symbol").unwrap();
    }
}

#[test]
fn by_section_where_the_symbol_is_hidden() {
    for copy in Copy::all("section") {
        copy.patch(b"\0_PyRuntime\0", b"\0_PyRuntimX\0");
        copy.start().is_read(&copy.version, "section").unwrap();
        let running = copy.start();
        fs::remove_file(copy.executable()).expect("removed");
        running.is_read(&copy.version, "section").unwrap();
    }
}

#[test]
fn by_scan_where_nothing_names_it() {
    for copy in Copy::all("scan") {
        copy.patch(b"\0_PyRuntime\0", b"\0_PyRuntimX\0");
        copy.patch(b"\0.PyRuntime\0", b"\0.PyRuntimX\0");
        copy.start().is_read(&copy.version, "scan").unwrap();
    }
}

#[test]
fn in_a_venv() {
    for copy in Copy::all("venv") {
        let inside = Path::new("/").join(copy.dir.strip_prefix(&copy.root).expect("below the root"));
        let made = Command::new("chroot")
            .arg(&copy.root)
            .arg(format!("/usr/bin/python{}", copy.version))
            .args(["-m", "venv", "--without-pip"])
            .arg(inside.join("venv"))
            .status()
            .expect("run");
        assert!(made.success());
        let running = copy.start_as(&inside.join("venv/bin/python"), &inside.join("program.py"));
        running.is_read(&copy.version, "dynamic symbol").unwrap();
    }
}

#[test]
fn what_is_no_python_is_refused_with_every_step() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("started");
    let pid = child.id().to_string();
    // Before that it may not have loaded all its libraries.
    let reads = common::within(|| {
        common::system_call(child.id() as i32, child.id() as i32).is_some_and(|call| call.is_read_of_stdin())
    });
    let output = hangscope(&["dump", "--pid", &pid]);
    let _ = child.stdin.take().expect("piped").flush();
    let _ = child.wait();
    let said = lossy(&output.stderr);
    assert!(reads, "cat does not read");
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("not") && said.contains("Python") && said.contains("libc.so"), "{said}");
}
