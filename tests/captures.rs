//! Captures: the same report from a file as from the process, on every version, and without any
//! interpreter from the files in `fixtures/captures`.
//!
//! `HANGSCOPE_CAPTURE=fixtures/captures cargo test --test captures saved` writes those files anew
//! from the interpreters of this machine.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Program, each_interpreter, hangscope, lossy};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/captures")
}

/// `dump --capture` in the given form.
fn replay(file: &Path, form: &[&str]) -> Vec<u8> {
    let file = file.display().to_string();
    let output = hangscope(&[&["dump", "--capture", &file], form].concat());
    // 3: some process could not be read then either.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{file}: {}", lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_saved_look_gives_the_very_same_report() {
    let keep = std::env::var_os("HANGSCOPE_CAPTURE").map(PathBuf::from);
    let temporary = tempfile::tempdir().expect("a directory");
    each_interpreter(
        "captures",
        |_| true,
        |interpreter| {
            let (program, _) = Program::settled(interpreter, "small.py", &[])?;
            let pid = program.pid().to_string();
            let dir = keep.as_deref().unwrap_or(temporary.path());
            let file = dir.join(format!("{}.capture", interpreter.label));
            let name = file.display().to_string();
            for form in [&["-ll", "--json"][..], &["-ll"]] {
                let look = hangscope(&[&["dump", "--pid", &pid, "--save", &name], form].concat());
                if !look.status.success() {
                    return Err(format!("dump --save: {}", lossy(&look.stderr)));
                }
                let again = replay(&file, form);
                if again != look.stdout {
                    return Err(format!(
                        "the look was\n{}\nbut the replay\n{}",
                        lossy(&look.stdout),
                        lossy(&again)
                    ));
                }
            }
            let size = memory_kept(&file, program.pid())?;
            // Whole pages would be a megabyte.
            if size > 200 * 1024 {
                return Err(format!("the capture has {size} bytes of it: it keeps more than was read"));
            }
            Ok(())
        },
    );
}

/// Bytes of `pid`'s memory in a capture. Others may be in it as well: who holds the other ends of its
/// pipes, which is this test with the programs that it runs at the same time.
fn memory_kept(file: &Path, pid: i32) -> Result<u64, String> {
    let capture = fs::read(file).map_err(|e| e.to_string())?;
    let head = capture.split(|&byte| byte == b'\n').nth(1).ok_or("no second line")?;
    let head: Value = serde_json::from_slice(head).map_err(|e| e.to_string())?;
    let of_it = head["processes"].as_array().and_then(|all| all.iter().find(|p| p["facts"]["pid"] == pid));
    let ranges = of_it.and_then(|p| p["ranges"].as_array()).ok_or("the process is not in it")?;
    Ok(ranges.iter().filter_map(|range| range[1].as_u64()).sum())
}

/// Of processes that start and end while they are read, whatever was met.
#[test]
fn processes_that_vanish_cost_no_replay() {
    let temporary = tempfile::tempdir().expect("a directory");
    each_interpreter(
        "captures of what vanishes",
        |i| i.chroot.is_none() && matches!(i.minor, 8 | 12),
        |interpreter| {
            let (program, _) = Program::ready(interpreter, "fleeting.py", &[])?;
            let pid = program.pid().to_string();
            let file = temporary.path().join(format!("{}.capture", interpreter.label));
            let name = file.display().to_string();
            let (mut vanished, mut looks) = (0, 0);
            while vanished < 12 {
                let form = ["-ll", "--json"];
                let look = hangscope(&[&["dump", "--pid", &pid, "-s", "--save", &name], &form[..]].concat());
                let report: Value = serde_json::from_slice(&look.stdout)
                    .map_err(|e| format!("{e}: {}", lossy(&look.stderr)))?;
                vanished += usize::from(!report["skipped"].as_array().is_none_or(Vec::is_empty));
                let again = replay(&file, &form);
                if again != look.stdout {
                    return Err(format!(
                        "the look was\n{}\nbut the replay\n{}",
                        lossy(&look.stdout),
                        lossy(&again)
                    ));
                }
                looks += 1;
                if looks == 1000 {
                    return Err("no process vanished".to_owned());
                }
            }
            Ok(())
        },
    );
}

/// All layouts, where no interpreter is installed: stacks, names and values of each capture, with
/// what differs from process to process (addresses) taken out.
#[test]
fn kept_captures_read_as_they_did() {
    let mut files: Vec<PathBuf> = fs::read_dir(fixtures())
        .expect("fixtures/captures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "capture"))
        .collect();
    files.sort();
    assert!(files.len() >= 13, "a capture of each version is kept: {files:?}");
    for file in files {
        let report: Value = serde_json::from_slice(&replay(&file, &["-l", "--json"])).expect("JSON");
        let label = file.file_stem().expect("a name").to_string_lossy().into_owned();
        insta::assert_snapshot!(format!("capture-{label}"), summary(&report));
    }
}

/// One line per frame and value.
fn summary(report: &Value) -> String {
    let process = &report["processes"][0];
    let mut out = format!("{} {}\n", process["python"], process["problems"]);
    for thread in process["threads"].as_array().expect("threads") {
        out += &format!(
            "{} main={} daemon={} read={}\n",
            thread["name"], thread["main"], thread["daemon"], thread["read"]
        );
        for f in thread["frames"].as_array().expect("frames") {
            out += &format!(
                "  {} {} {} {}:{} {} user={}\n",
                f["function"], f["qualname"], f["module"], f["file"], f["line"], f["source"], f["user"]
            );
            for local in f["locals"].as_array().into_iter().flatten() {
                out += &format!(
                    "    {} = {}\n",
                    local["name"].as_str().unwrap_or("?"),
                    without_addresses(&local["value"])
                );
            }
        }
    }
    out
}

fn without_addresses(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    let mut parts = text.split("0x");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += "0x_";
        out += part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out
}

#[test]
fn what_is_no_capture_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = fs::read(fixtures().join("3.12.capture")).expect("a capture");
    let cases: [(&str, &[u8], &str); 5] = [
        ("empty", b"", "no capture"),
        ("other", b"\x7fELF\x02\x01\x01", "no capture"),
        ("newer", b"hangscope-capture/9\n{}\n", "another version"),
        ("half-header", &whole[..200], "cut short or damaged"),
        ("half-memory", &whole[..whole.len() - 100], "cut short or damaged"),
    ];
    for (name, bytes, reason) in cases {
        let file = dir.path().join(name);
        fs::write(&file, bytes).expect("written");
        let output = hangscope(&["dump", "--capture", &file.display().to_string()]);
        let said = lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{name}: {said}");
        assert!(said.contains(reason) && said.contains(name), "{name}: {said}");
    }
    let output = hangscope(&["dump", "--capture", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(lossy(&output.stderr).contains("No such file"), "{}", lossy(&output.stderr));
}

#[test]
fn a_capture_that_cannot_be_written_costs_no_report() {
    each_interpreter(
        "full disk",
        |i| i.minor == 12,
        |interpreter| {
            let (program, _) = Program::settled(interpreter, "small.py", &[])?;
            let pid = program.pid().to_string();
            let output = hangscope(&["dump", "--pid", &pid, "--save", "/nonexistent/x.capture"]);
            let (out, err) = (lossy(&output.stdout), lossy(&output.stderr));
            let told = output.status.code() == Some(3)
                && out.contains("Worker.work")
                && err.contains("/nonexistent/x.capture");
            told.then_some(()).ok_or(format!("{}\n{out}\n{err}", output.status))
        },
    );
}
