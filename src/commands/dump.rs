//! `hangscope dump`: stacks of all threads of each target, and the findings above them.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{UNREAD, complain, complain_of, nothing_found, print_json, print_text};
use crate::cli::Dump;
use crate::diagnose::{Findings, diagnose, gil};
use crate::look::capture::{Capture, CaptureError};
use crate::look::{self, Options, follow};
use crate::render::report::Report;
use crate::render::text;
use crate::snapshot::{Look, Skipped, Snapshot};
use crate::target::access::AccessError;
use crate::target::ends;
use crate::target::find;
use crate::target::host;

pub fn run(args: &Dump) -> anyhow::Result<ExitCode> {
    let options = args.look_options();
    if let Some(file) = &args.capture {
        let (snapshot, code) = replay(file, &options)?;
        let found =
            if args.no_findings { Findings::default() } else { diagnose(std::slice::from_ref(&snapshot)) };
        print(&Report::new(snapshot).with(found), args)?;
        return Ok(code);
    }
    let found = match find::find(&args.targets.selector()) {
        Ok(found) => found,
        Err(error) => return Ok(nothing_found(error, args.shown.show_secrets)),
    };
    let pids = found.pids.clone();
    let looked = look_at(found, &options);
    let (snapshot, found) = judge(looked.snapshot, &pids, &options);
    // The report is worth more than the file: it is shown even if that cannot be written.
    let saved = args.save.as_ref().map_or(Ok(()), |file| save(&looked.capture, file));
    // The process ends: to give back a report piece by piece would take longer than to print it.
    let report = ManuallyDrop::new(Report::new(snapshot).with(found));
    print(&report, args)?;
    saved?;
    Ok(ExitCode::from(if looked.unread { UNREAD } else { 0 }))
}

/// What one look at all targets brought.
pub struct Looked {
    pub snapshot: Snapshot,
    pub capture: Capture,
    /// Some target could not be read as asked.
    pub unread: bool,
}

/// Looks at all targets, one after the other. Says on stderr which could not be read, and why.
pub fn look_at(found: find::Found, options: &Options) -> Looked {
    let began = Instant::now();
    let captured_at = host::now();
    let mut processes = Vec::new();
    let mut capture = Capture::default();
    let mut skipped = found.skipped;
    if !options.show_secrets {
        skipped.iter_mut().for_each(|s| s.command = crate::mask::command(&s.command));
    }
    let mut unread = !found.errors.is_empty();
    for error in found.errors {
        complain_of(error, options.show_secrets);
    }
    let crowd = (found.pids.len() > FEW).then(ends::Crowd::begin);
    for pid in found.pids {
        match look::live(pid, options) {
            Ok(looked) => {
                if let Some(error) = looked.error {
                    unread = true;
                    complain(&error.to_string(), error.remedy().as_deref());
                    skipped.push(Skipped {
                        pid,
                        command: looked.process.command.clone(),
                        reason: error.to_string(),
                        remedy: error.remedy(),
                        by_the_way: false,
                    });
                }
                processes.push(looked.process);
                capture.processes.extend(looked.captured);
            }
            // It has ended since it was listed: nobody has asked for this very one.
            Err(AccessError::Gone { .. }) if found.descendants.contains(&pid) => {}
            Err(error) => {
                unread = true;
                complain(&error.to_string(), error.remedy().as_deref());
                let (reason, remedy) = (error.to_string(), error.remedy());
                skipped.push(Skipped { pid, command: Vec::new(), reason, remedy, by_the_way: false });
            }
        }
    }
    if !options.no_findings {
        follow::follow(&mut processes, &mut capture.processes, options);
    }
    drop(crowd);
    let snapshot = Snapshot {
        captured_at,
        host: host::name(),
        looks: vec![Look { at: 0.0, took: began.elapsed().as_secs_f64() }],
        processes,
        skipped,
    };
    capture.of_snapshot(&snapshot);
    Looked { snapshot, capture, unread }
}

/// For so many processes the other ends are searched one by one.
const FEW: usize = 3;
/// When to look again, at the earliest.
const AGAIN: Duration = Duration::from_millis(100);
/// When, if the GIL has not changed hands meanwhile.
const GIL_PROOF: Duration = Duration::from_millis(1100);

/// The findings; after a second look where the first one leaves open whether something moves.
pub fn judge(snapshot: Snapshot, pids: &[i32], options: &Options) -> (Snapshot, Findings) {
    if options.no_findings {
        return (snapshot, Findings::default());
    }
    let found = diagnose(std::slice::from_ref(&snapshot));
    // A capture holds one look, and its replay is the very same report.
    let gil_stands = || snapshot.processes.iter().any(|p| gil::is_wanted(p) && !look::gil_moves(p));
    if options.save || !found.are_open() && !gil_stands() {
        return (snapshot, found);
    }
    let Some(again) = look_again(&snapshot, pids, AGAIN, options) else { return (snapshot, found) };
    // The second look is shown: that is what the findings' frames are counted in.
    let found = diagnose(&[snapshot.clone(), again.clone()]);
    let looks = snapshot.looks.iter().chain(&again.looks).cloned().collect();
    (Snapshot { looks, captured_at: snapshot.captured_at, skipped: snapshot.skipped, ..again }, found)
}

/// The same processes once more, `after` the first look.
pub fn look_again(first: &Snapshot, pids: &[i32], after: Duration, options: &Options) -> Option<Snapshot> {
    let began = Instant::now();
    let again = look_since(first, pids, began, after, options)?;
    // One long step, or one that does not end?
    if after < GIL_PROOF && gil::stands(first, &again) {
        return look_since(first, pids, began, GIL_PROOF, options).or(Some(again));
    }
    Some(again)
}

fn look_since(
    first: &Snapshot,
    pids: &[i32],
    began: Instant,
    after: Duration,
    options: &Options,
) -> Option<Snapshot> {
    std::thread::sleep(after.saturating_sub(began.elapsed()));
    let took = first.looks.last().map_or(0.0, |look| look.at + look.took);
    let at = took + began.elapsed().as_secs_f64();
    let looking = Instant::now();
    let options = Options { save: false, ..options.clone() };
    let _crowd = (pids.len() > FEW).then(ends::Crowd::begin);
    let look = |pid: &i32| look::live(*pid, &options).ok().map(|looked| looked.process);
    let mut processes: Vec<_> = pids.iter().filter_map(look).collect();
    let is_there = |pid: i32| processes.iter().any(|again| again.pid == pid);
    let targets = first.processes.iter().filter(|p| !p.followed);
    // Children come and go.
    let gone = targets.into_iter().any(|p| !is_there(p.pid) && !p.parent.is_some_and(is_there));
    follow::follow(&mut processes, &mut Vec::new(), &options);
    (!gone).then(|| Snapshot {
        looks: vec![Look { at, took: looking.elapsed().as_secs_f64() }],
        processes,
        ..first.clone()
    })
}

/// The snapshot that a capture file holds.
pub fn replay(file: &Path, options: &Options) -> anyhow::Result<(Snapshot, ExitCode)> {
    let name = file.display();
    let input = File::open(file).with_context(|| format!("cannot open the capture {name}"))?;
    let capture = Capture::read(&mut BufReader::new(input)).map_err(|e| match e {
        CaptureError::NotACapture => anyhow::anyhow!(
            "{name} is no capture of hangscope\n  do: write one with `hangscope dump PID --save FILE`"
        ),
        other => anyhow::anyhow!("cannot read the capture {name}: {other}"),
    })?;
    let unread = !capture.skipped.is_empty();
    let snapshot =
        capture.replay(options).map_err(|e| anyhow::anyhow!("cannot read the capture {name}: {e}"))?;
    Ok((snapshot, ExitCode::from(if unread { UNREAD } else { 0 })))
}

/// Writes beside the file and renames, so that a full disk leaves no half capture and no lost one.
fn save(capture: &Capture, file: &Path) -> anyhow::Result<()> {
    let part = file.with_extension("part");
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(&part)?);
        capture.write(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&part, file)
    };
    write()
        .inspect_err(|_| _ = std::fs::remove_file(&part))
        .with_context(|| format!("the capture could not be written to {}", file.display()))
}

/// To stdout, as JSON or as text for the terminal that stands behind it.
pub fn print(report: &Report, args: &Dump) -> anyhow::Result<()> {
    if args.json {
        return Ok(print_json(report)?);
    }
    let options = text::TextOptions {
        full_filenames: args.full_filenames,
        lineno: !args.nolineno,
        full_stacks: args.full_stacks,
        group: !args.full_stacks,
        ..super::text_options()
    };
    Ok(print_text(|out| text::write(out, report, &options))?)
}
