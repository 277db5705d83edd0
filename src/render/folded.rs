//! One line per stack: frames from the outermost on, separated by `;`, and how often. What `flamegraph.pl`,
//! speedscope and many others read.

use std::io::{self, Write};

use super::profile::{ProfileOptions, label};
use crate::profile::Frame;
use crate::profile::recording::Recording;

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    for line in lines(recording, options) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Sorted, so that equal profiles are equal files.
pub fn lines(recording: &mut Recording, options: &ProfileOptions) -> Vec<String> {
    let counted = recording.counted(options.threads);
    let frames = recording.tree.frames();
    let labels: Vec<String> = frames.iter().map(|f| label_in_line(f, options)).collect();
    let mut lines: Vec<String> = counted
        .into_iter()
        .map(|(stack, count)| {
            let mut parts: Vec<&str> =
                recording.tree.walk(stack).map(|frame| labels[frame as usize].as_str()).collect();
            parts.reverse();
            format!("{} {count}", parts.join(";"))
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// What a frame is called in a line.
pub fn label_in_line(frame: &Frame, options: &ProfileOptions) -> String {
    label(frame, options).replace(';', ",")
}
