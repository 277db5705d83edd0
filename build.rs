//! Links the binary statically, where the machine has what that takes.
//!
//! A tool for emergencies is copied into containers whose C library is older, newer or another one; and the
//! dynamic linker is a fifth of the time that a whole `hangscope dump` takes. Rust's own switch,
//! `-C target-feature=+crt-static`, would have to be given together with `--target` (procedural macros are
//! shared objects), which moves the binary to another directory; so the linker is told here instead. The
//! libraries are asked for by rustc as shared ones: linker scripts of the same names stand in for them.
//!
//! `HANGSCOPE_DYNAMIC=1 cargo build` links as usual.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What rustc asks for, and what is to be linked instead.
const SCRIPTS: &[(&str, &str)] = &[
    ("libgcc_s.so", "GROUP(-l:libgcc_eh.a -l:libgcc.a -l:libc.a)\n"),
    ("libm.so", "INPUT(-l:libm.a)\n"),
    ("libc.so", "GROUP(-l:libc.a -l:libgcc_eh.a -l:libgcc.a)\n"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HANGSCOPE_DYNAMIC");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let native = env::var("TARGET").ok() == env::var("HOST").ok();
    let glibc = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if !native || !glibc || env::var_os("HANGSCOPE_DYNAMIC").is_some() {
        return;
    }
    if !["libc.a", "libm.a", "libgcc.a", "libgcc_eh.a"].into_iter().all(is_installed) {
        println!(
            "cargo::warning=no static C library here (Debian: libc6-dev): hangscope is linked dynamically"
        );
        return;
    }
    let out = env::var("OUT_DIR").expect("cargo sets it");
    for (name, script) in SCRIPTS {
        fs::write(Path::new(&out).join(name), script).expect("OUT_DIR can be written to");
    }
    for arg in [&format!("-L{out}"), "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}

/// The C compiler, which links, knows a library by a path, and an unknown one by its bare name.
fn is_installed(library: &str) -> bool {
    let linker = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".into());
    let output = Command::new(linker).arg(format!("-print-file-name={library}")).output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute())
}
