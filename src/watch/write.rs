//! The files of one look: text for people, JSON for programs, a capture for another machine.

use super::reports::{Reports, Series, WriteError};
use super::stall::Stall;
use crate::look::capture::Capture;
use crate::render::report::Report;
use crate::render::text::TextOptions;
use crate::render::{json, text};

pub fn look(
    reports: &mut Reports,
    series: &Series,
    look: usize,
    report: &Report,
    capture: &Capture,
) -> Result<(), WriteError> {
    let mut styled = Vec::new();
    text::write(&mut styled, report, &TextOptions { full_filenames: true, ..TextOptions::default() })?;
    let plain = anstream::adapter::strip_bytes(&styled).into_vec();
    let mut data = Vec::new();
    json::write(&mut data, report)?;
    // The text last: whoever waits for it finds the others there.
    reports.write(&series.file(look, "json"), &data)?;
    let mut bytes = Vec::new();
    capture.write(&mut bytes)?;
    match reports.write(&series.file(look, "capture"), &bytes) {
        // What is biggest goes first where there is little room.
        Ok(()) | Err(WriteError::Full) => {}
        Err(error) => return Err(error),
    }
    reports.write(&series.file(look, "txt"), &plain)
}

/// Once it is over: what it was, and how long it lasted.
pub fn end(
    reports: &mut Reports,
    series: &Series,
    stall: &Stall,
    looks: usize,
    lasted: f64,
) -> Result<(), WriteError> {
    let Stall { pid, tid, rule, place, summary, severity, age: _ } = stall;
    let end = serde_json::json!({
        "rule": rule, "place": place, "summary": summary, "severity": severity,
        "pid": pid, "tid": tid, "looks": looks, "lasted": lasted,
    });
    reports.write(&series.whole("over.json"), format!("{end:#}\n").as_bytes())
}
