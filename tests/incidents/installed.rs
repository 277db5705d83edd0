//! An application that is an installed package, run by `python -m`: which lines are its own, and that its secrets stay
//! its own.

use std::fs;
use std::process::Command;

use crate::common::{Outcome, Program, each_interpreter, hangscope, list, lossy, text, typical};
use crate::judge::until_right;
use crate::server::Silent;

const MAIN: &str = r#"
import os, socket, sys, urllib.request
from . import client

def main(dsn, api_token):
    address = os.environ["SILENT"]
    print("READY {}", flush=True)
    client.fetch("http://ada:s3cr3t-word@%s/v1/orders?token=s3cr3t-query" % address)

main("postgres://ada:s3cr3t-dsn@db/shop", api_token="s3cr3t-token")
"#;

const CLIENT: &str = r#"
import urllib.request

def fetch(url):
    host = url.split("@")[1]
    request = urllib.request.Request("http://" + host)
    request.full_url = "http://" + host
    return urllib.request.urlopen(request).read()
"#;

#[test]
fn an_application_that_is_an_installed_package() {
    // Where the environment can be made: not below another root.
    each_interpreter(
        "installed",
        |i| typical(i) && i.chroot.is_none(),
        |interpreter| {
            let home = tempfile::tempdir().map_err(|e| e.to_string())?;
            let venv = home.path().join("venv");
            let mut make = Command::new(&interpreter.command[0]);
            make.args(&interpreter.command[1..]).args(["-m", "venv", "--without-pip"]).arg(&venv);
            let made = make.output().map_err(|e| e.to_string())?;
            if !made.status.success() {
                return Err(lossy(&made.stderr));
            }
            let lib = fs::read_dir(venv.join("lib")).map_err(|e| e.to_string())?.flatten().next();
            let package = lib.ok_or("no lib")?.path().join("site-packages/shop_jobs");
            let write = || -> std::io::Result<()> {
                fs::create_dir_all(&package)?;
                fs::write(package.join("__init__.py"), "")?;
                fs::write(package.join("client.py"), CLIENT)?;
                fs::write(package.join("__main__.py"), MAIN)
            };
            write().map_err(|e| e.to_string())?;
            let silent = Silent::start()?;
            let mut command = Command::new(venv.join("bin/python"));
            command
                .args(["-m", "shop_jobs", "--password", "s3cr3t-option"])
                .env("SILENT", silent.address.to_string());
            let program = Program::spawn(command, "shop_jobs".into(), None)?;
            program.line("READY ")?;
            let pid = program.pid().to_string();

            let own_lines = |args: &[&str]| -> Outcome<Vec<String>> {
                let output = hangscope(&[&["dump", "-j", &pid], args].concat());
                let report: serde_json::Value =
                    serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
                let main = &list(&list(&report, "processes")[0], "threads")[0];
                let own = list(main, "frames").iter().filter(|frame| frame["user"] == true);
                Ok(own.map(|frame| text(frame, "function").to_owned()).collect())
            };
            let wrong = until_right(|| {
                let mut wrong = Vec::new();
                match own_lines(&["--app", "shop_jobs"]) {
                    Ok(own) if own == ["fetch", "main", "<module>"] => {}
                    other => wrong.push(format!("with --app: {other:?}")),
                }
                // What `-m` runs is the application, wherever it lies.
                match own_lines(&[]) {
                    Ok(own) if own.iter().any(|f| f == "main") => {}
                    other => wrong.push(format!("without --app: {other:?}")),
                }
                let output = hangscope(&["dump", "-ll", "--app", "shop_jobs", &pid]);
                let said = lossy(&output.stdout) + &lossy(&output.stderr);
                if said.contains("s3cr3t") {
                    let lines: Vec<&str> = said.lines().filter(|l| l.contains("s3cr3t")).collect();
                    wrong.push(format!("secrets: {lines:#?}"));
                }
                let output = hangscope(&["dump", "-ll", "--show-secrets", &pid]);
                if !lossy(&output.stdout).contains("s3cr3t-option") {
                    wrong.push("--show-secrets shows none".to_owned());
                }
                wrong
            });
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
        },
    );
}
