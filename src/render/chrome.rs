//! The trace event format of Chrome, which Perfetto and chrome://tracing open: a complete event for each stretch
//! of time that a frame was on a stack.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::profile::{ProfileOptions, path};
use crate::profile::recording::Recording;
use crate::profile::timeline::Span;
use crate::profile::{EMPTY, FrameId, StackId};
use crate::render::clean::clean;

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    let names = recording.processes.iter().map(|p| {
        let name = clean(&p.command, true);
        json!({"name": "process_name", "ph": "M", "pid": p.pid, "tid": p.pid, "args": {"name": name}})
    });
    let threads = recording.tracks.iter().map(|t| {
        let pid = recording.processes[t.process].pid;
        let name = t.label();
        let name = clean(&name, true);
        json!({"name": "thread_name", "ph": "M", "pid": pid, "tid": t.tid, "args": {"name": name}})
    });
    let mut out = Events { out, first: true };
    write!(
        out.out,
        "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"exporter\":\"hangscope\"}},\"traceEvents\":["
    )?;
    for event in names.chain(threads) {
        out.write(&event)?;
    }
    for track in 0..recording.tracks.len() {
        write_track(&mut out, recording, track, options)?;
    }
    writeln!(out.out, "]}}")
}

struct Events<'a> {
    out: &'a mut dyn Write,
    first: bool,
}

impl Events<'_> {
    fn write(&mut self, event: &Value) -> io::Result<()> {
        let comma = if std::mem::take(&mut self.first) { "" } else { "," };
        write!(self.out, "{comma}\n{event}")
    }
}

fn write_track(
    out: &mut Events,
    recording: &Recording,
    track: usize,
    options: &ProfileOptions,
) -> io::Result<()> {
    let Some(timeline) = &recording.timeline else { return Ok(()) };
    let (index, track) = (track, &recording.tracks[track]);
    let pid = recording.processes[track.process].pid;
    // Outermost first: a frame, and since when it has been there.
    let mut open: Vec<(FrameId, u64)> = Vec::new();
    let mut until = 0;
    let close = |out: &mut Events, (frame, since): (FrameId, u64), until: u64| {
        let frame = recording.tree.frame(frame);
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let mut event = json!({
            "name": clean(&frame.function, true), "cat": "python", "ph": "X", "pid": pid, "tid": track.tid,
            "ts": micros(since), "dur": micros(until.saturating_sub(since)),
        });
        let file = path(frame, options);
        if !file.is_empty() {
            event["args"] = json!({"file": clean(file, true), "line": frame.line});
        }
        out.write(&event)
    };
    let mut next = |Span { start, length, stack }| {
        if start > until {
            for frame in open.drain(..).rev() {
                close(out, frame, until)?;
            }
        }
        let frames = outermost_first(recording, stack);
        let same = open.iter().zip(&frames).take_while(|(a, b)| a.0 == **b).count();
        for frame in open.drain(same..).rev() {
            close(out, frame, start)?;
        }
        open.extend(frames[same..].iter().map(|frame| (*frame, start)));
        until = start + length;
        Ok(())
    };
    timeline.each(index, &mut next)?;
    next(Span { start: u64::MAX, length: 0, stack: EMPTY })
}

fn outermost_first(recording: &Recording, stack: StackId) -> Vec<FrameId> {
    let mut frames: Vec<FrameId> = recording.tree.walk(stack).collect();
    frames.reverse();
    frames
}
