//! One page that stands alone: flame graph, timeline by thread, top functions, search. No network; it works from
//! `file://`, so it can be sent to a colleague.

use std::io::{self, Write};

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use super::profile::{ProfileOptions, path, subtitle, track_name};
use crate::profile::recording::Recording;
use crate::profile::{EMPTY, FrameId, StackId};
use crate::render::clean::clean;

const PAGE: &str = include_str!("html/page.html");
const DATA: &str = "\"@DATA@\"";
const TITLE: &str = "@TITLE@";
/// Columns of the timeline.
const COLUMNS: u64 = 720;

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    let mut used = Used::default();
    let mut sums: Vec<_> = recording.sums.iter().map(|(k, s)| (k.0, k.1, s.nanos)).collect();
    sums.sort_unstable();
    let sums: Vec<Value> = sums
        .into_iter()
        .map(|(t, stack, nanos)| json!([t, used.stack(recording, stack), nanos / 1000]))
        .collect();
    let mut tracks = Vec::new();
    for (index, track) in recording.tracks.iter().enumerate() {
        let line = timeline(recording, index, &mut used)?;
        tracks.push(json!({"name": track_name(recording, track), "line": line}));
    }
    let frames = used.frames.iter().map(|id| {
        let frame = recording.tree.frame(*id);
        json!([
            clean(&frame.function, true),
            clean(path(frame, options), true),
            frame.line.unwrap_or(0),
            u8::from(frame.user)
        ])
    });
    let data = json!({
        "title": options.title,
        "subtitle": subtitle(recording),
        "version": env!("CARGO_PKG_VERSION"),
        "length": recording.length / 1000,
        "columns": COLUMNS,
        "frames": frames.collect::<Vec<_>>(),
        "stacks": used.stacks,
        "sums": sums,
        "tracks": tracks,
    });
    // Nothing in the data can end the script.
    let data = data.to_string().replace('<', "\\u003c");
    let (head, tail) =
        PAGE.split_once(DATA).ok_or_else(|| io::Error::other("the page has no place for data"))?;
    let title = options.title.replace('&', "&amp;").replace('<', "&lt;");
    write!(out, "{}{data}{tail}", head.replace(TITLE, &title))
}

/// The frames and stacks that are written, renumbered.
#[derive(Default)]
struct Used {
    frames: Vec<FrameId>,
    by_frame: FxHashMap<FrameId, usize>,
    /// Caller (−1 at the root) and frame.
    stacks: Vec<(i64, usize)>,
    by_stack: FxHashMap<StackId, i64>,
}

impl Used {
    fn stack(&mut self, recording: &Recording, stack: StackId) -> i64 {
        let mut todo = Vec::new();
        let mut at = stack;
        while at != EMPTY && !self.by_stack.contains_key(&at) {
            todo.push(at);
            at = recording.tree.caller(at);
        }
        for stack in todo.into_iter().rev() {
            let Some(frame) = recording.tree.top(stack) else { continue };
            let frame = *self.by_frame.entry(frame).or_insert_with(|| {
                self.frames.push(frame);
                self.frames.len() - 1
            });
            let caller = self.by_stack.get(&recording.tree.caller(stack)).copied().unwrap_or(-1);
            self.stacks.push((caller, frame));
            self.by_stack.insert(stack, self.stacks.len() as i64 - 1);
        }
        self.by_stack.get(&stack).copied().unwrap_or(-1)
    }
}

/// For each column that is not empty: column, the stack it had longest, and which share of the column was counted.
fn timeline(recording: &Recording, track: usize, used: &mut Used) -> io::Result<Vec<(u64, i64, u8)>> {
    let Some(timeline) = &recording.timeline else { return Ok(Vec::new()) };
    let width = (recording.length / COLUMNS).max(1);
    let mut row = |column: u64, times: &mut FxHashMap<StackId, u64>| {
        let total: u64 = times.values().sum();
        let (stack, _) = times.drain().max_by_key(|(stack, time)| (*time, *stack))?;
        let share = (total * 100 / width).min(100) as u8;
        Some((column, used.stack(recording, stack), share))
    };
    let mut rows = Vec::new();
    let (mut open, mut times) = (0, FxHashMap::default());
    timeline.each(track, |span| {
        let mut at = span.start;
        let end = span.start + span.length;
        while at < end {
            let column = (at / width).min(COLUMNS - 1);
            let until = if column == COLUMNS - 1 { end } else { end.min((column + 1) * width) };
            if column != open {
                rows.extend(row(open, &mut times));
                open = column;
            }
            *times.entry(span.stack).or_default() += until - at;
            at = until;
        }
        Ok(())
    })?;
    rows.extend(row(open, &mut times));
    Ok(rows)
}
