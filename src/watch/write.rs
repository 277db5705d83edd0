//! The files of one look: text for people, JSON for programs, a capture for another machine.

use super::reports::{Reports, Series, WriteError};
use super::stall::Stall;
use crate::look::capture::Capture;
use crate::render::report::Report;
use crate::render::text::TextOptions;
use crate::render::{json, text};

/// The files of one look, as bytes.
pub struct Files {
    text: Vec<u8>,
    json: Vec<u8>,
    capture: Vec<u8>,
}

pub fn files(report: &Report, capture: &Capture) -> Result<Files, WriteError> {
    let mut styled = Vec::new();
    text::write(&mut styled, report, &TextOptions { full_filenames: true, ..TextOptions::default() })?;
    let mut data = Vec::new();
    json::write(&mut data, report)?;
    let mut bytes = Vec::new();
    capture.write(&mut bytes)?;
    Ok(Files { text: anstream::adapter::strip_bytes(&styled).into_vec(), json: data, capture: bytes })
}

pub fn look(reports: &mut Reports, series: &Series, look: usize, files: &Files) -> Result<(), WriteError> {
    // The text last: whoever waits for it finds the others there.
    reports.write(&series.file(look, "json"), &files.json)?;
    match reports.write(&series.file(look, "capture"), &files.capture) {
        // What is biggest goes first where there is little room.
        Ok(()) | Err(WriteError::Full) => {}
        Err(error) => return Err(error),
    }
    reports.write(&series.file(look, "txt"), &files.text)
}

/// Whether it stood elsewhere at one of its looks than at the first: slow rather than stuck.
pub fn moved(stood: &[(String, u64)]) -> Option<bool> {
    let (first, others) = stood.split_first().filter(|(_, others)| !others.is_empty())?;
    Some(others.iter().any(|other| other != first))
}

/// Once it is over: what it was, whether it moved, and how long it lasted.
pub fn end(
    reports: &mut Reports,
    series: &Series,
    stall: &Stall,
    stood: &[(String, u64)],
    looks: usize,
    lasted: f64,
) -> Result<(), WriteError> {
    let Stall { pid, tid, rule, place, summary, severity, age: _, task } = stall;
    let places: Vec<&String> = stood.iter().map(|(place, _)| place).collect();
    let end = serde_json::json!({
        "moved": moved(stood), "places": places,
        "rule": rule, "place": place, "summary": summary, "severity": severity,
        "pid": pid, "tid": tid, "task": task, "looks": looks, "lasted": lasted,
    });
    reports.write(&series.whole("over.json"), format!("{end:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_at_the_same_stack_each_time_has_not_moved() {
        let at = |stack: u64| ("f a.py:1".to_owned(), stack);
        assert_eq!(moved(&[]), None);
        assert_eq!(moved(&[at(1)]), None);
        assert_eq!(moved(&[at(1), at(1), at(1)]), Some(false));
        assert_eq!(moved(&[at(1), at(2), at(1)]), Some(true));
    }
}
