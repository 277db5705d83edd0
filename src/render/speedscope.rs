//! speedscope's own format (https://www.speedscope.app/file-format-schema.json): one sampled profile per thread,
//! in the order of time, with empty stacks where the thread was not counted.

use std::io::{self, Write};

use serde_json::json;

use super::profile::{ProfileOptions, path, track_name};
use crate::profile::recording::Recording;
use crate::profile::{EMPTY, StackId};
use crate::render::clean::clean;

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    let frames = recording.tree.frames().iter().map(|frame| {
        let mut value = json!({"name": clean(&frame.function, true)});
        let file = path(frame, options);
        if !file.is_empty() {
            value["file"] = clean(file, true).into();
        }
        if let Some(line) = frame.line {
            value["line"] = line.into();
        }
        value
    });
    let head = json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": concat!("hangscope ", env!("CARGO_PKG_VERSION")),
        "name": options.title,
        "activeProfileIndex": busiest(recording),
        "shared": {"frames": frames.collect::<Vec<_>>()},
    });
    // The samples are written as they come: there may be millions.
    let head = head.to_string();
    write!(out, "{},\"profiles\":[", &head[..head.len() - 1])?;
    for index in 0..recording.tracks.len() {
        if index > 0 {
            write!(out, ",")?;
        }
        write_track(out, recording, index)?;
    }
    writeln!(out, "]}}")
}

/// The profile that is shown first.
fn busiest(recording: &Recording) -> usize {
    let mut times = vec![0; recording.tracks.len()];
    for ((track, _), sum) in &recording.sums {
        times[*track] += sum.nanos;
    }
    times.iter().enumerate().max_by_key(|(_, time)| **time).map_or(0, |(index, _)| index)
}

fn write_track(out: &mut dyn Write, recording: &Recording, track: usize) -> io::Result<()> {
    let name = serde_json::Value::from(track_name(recording, &recording.tracks[track]));
    write!(
        out,
        "{{\"type\":\"sampled\",\"name\":{name},\"unit\":\"nanoseconds\",\"startValue\":0,\"endValue\":{},\"samples\":[",
        recording.length
    )?;
    let mut separator = "";
    each(recording, track, |stack, _| {
        let mut ids: Vec<String> = recording.tree.walk(stack).map(|f| f.to_string()).collect();
        ids.reverse();
        write!(out, "{}[{}]", std::mem::replace(&mut separator, ","), ids.join(","))
    })?;
    write!(out, "],\"weights\":[")?;
    separator = "";
    each(recording, track, |_, length| write!(out, "{}{length}", std::mem::replace(&mut separator, ",")))?;
    write!(out, "]}}")
}

/// Stacks with their times, and the time between them without one.
fn each(
    recording: &Recording,
    track: usize,
    mut to: impl FnMut(StackId, u64) -> io::Result<()>,
) -> io::Result<()> {
    let Some(timeline) = &recording.timeline else { return Ok(()) };
    let mut at = 0;
    timeline.each(track, |span| {
        let gap = span.start.saturating_sub(at);
        at = span.start + span.length;
        for (stack, length) in [(EMPTY, gap), (span.stack, span.length)] {
            if length > 0 {
                to(stack, length)?;
            }
        }
        Ok(())
    })
}
