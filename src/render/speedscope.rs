//! speedscope's own format (https://www.speedscope.app/file-format-schema.json): one sampled profile per thread,
//! in the order of time, with empty stacks where the thread was not counted.

use std::io::{self, Write};

use serde_json::json;

use super::profile::{ProfileOptions, path, track_name};
use crate::profile::EMPTY;
use crate::profile::recording::{Recording, Track};
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
    for (index, track) in recording.tracks.iter().enumerate() {
        if index > 0 {
            write!(out, ",")?;
        }
        write_track(out, recording, track)?;
    }
    writeln!(out, "]}}")
}

/// The profile that is shown first.
fn busiest(recording: &Recording) -> usize {
    let time = |t: &Track| t.spans.iter().map(|s| s.length).sum::<u64>();
    recording.tracks.iter().enumerate().max_by_key(|(_, t)| time(t)).map_or(0, |(index, _)| index)
}

fn write_track(out: &mut dyn Write, recording: &Recording, track: &Track) -> io::Result<()> {
    let name = serde_json::Value::from(track_name(recording, track));
    write!(
        out,
        "{{\"type\":\"sampled\",\"name\":{name},\"unit\":\"nanoseconds\",\"startValue\":0,\"endValue\":{},\"samples\":[",
        recording.length
    )?;
    let mut weights = Vec::new();
    let mut at = 0;
    let mut first = true;
    for span in &track.spans {
        let gap = span.start.saturating_sub(at);
        for (stack, length) in [(EMPTY, gap), (span.stack, span.length)] {
            if length == 0 {
                continue;
            }
            let mut ids: Vec<String> = recording.tree.walk(stack).map(|f| f.to_string()).collect();
            ids.reverse();
            write!(out, "{}[{}]", if first { "" } else { "," }, ids.join(","))?;
            weights.push(length.to_string());
            first = false;
        }
        at = span.start + span.length;
    }
    write!(out, "],\"weights\":[{}]}}", weights.join(","))
}
