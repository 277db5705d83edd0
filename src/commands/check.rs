//! `hangscope check`: only what is wrong, after two looks; the exit code says whether it is critical.

use std::process::ExitCode;

use super::dump::{look_again, look_at};
use super::{CRITICAL, UNREAD, nothing_found, print_json, print_text};
use crate::cli::Check;
use crate::diagnose::{Severity, diagnose};
use crate::render::report::Report;
use crate::render::text;
use crate::target::find;

pub fn run(args: &Check) -> anyhow::Result<ExitCode> {
    let options = args.look_options();
    let found = match find::find(&args.targets.selector()) {
        Ok(found) => found,
        Err(error) => return Ok(nothing_found(error, args.shown.show_secrets)),
    };
    let pids = found.pids.clone();
    let looked = look_at(found, &options);
    let first = looked.snapshot;
    let readable: Vec<i32> = first.processes.iter().map(|p| p.pid).filter(|pid| pids.contains(pid)).collect();
    let again = match readable[..] {
        [] => None,
        _ => look_again(&first, &readable, args.pause, &options),
    };
    let (snapshot, findings) = match again {
        Some(mut again) => {
            let findings = diagnose(&[first.clone(), again.clone()]);
            again.looks.splice(0..0, first.looks);
            (again, findings)
        }
        None => {
            let findings = diagnose(std::slice::from_ref(&first));
            (first, findings)
        }
    };
    let critical = findings.worst() == Some(Severity::Critical);
    let report = Report::new(snapshot).with(findings);
    if args.json {
        print_json(&report)?;
    } else {
        print_text(|out| text::write_findings(out, &report, &super::text_options()))?;
    }
    Ok(ExitCode::from(match (critical, looked.unread) {
        (true, _) => CRITICAL,
        (false, true) => UNREAD,
        (false, false) => 0,
    }))
}
