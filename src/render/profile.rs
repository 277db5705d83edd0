//! What the formats of a profile share: how a frame reads, and what is written about the recording.

use crate::profile::Frame;
use crate::render::clean;

/// How profiles are written.
#[derive(Clone, Debug, Default)]
pub struct ProfileOptions {
    pub title: String,
    /// A root for each thread.
    pub threads: bool,
    pub full_filenames: bool,
    /// Callees at the root, for the question who calls what is slow.
    pub reverse: bool,
}

/// `function (file:line)`, without anything that a terminal or a format would take for more than text.
pub fn label(frame: &Frame, options: &ProfileOptions) -> String {
    let file = path(frame, options);
    let text = match (file.is_empty(), frame.line) {
        (true, _) => frame.function.clone(),
        (false, None) => format!("{} ({file})", frame.function),
        (false, Some(line)) => format!("{} ({file}:{line})", frame.function),
    };
    clean::clean(&text, true).into_owned()
}

pub fn path<'a>(frame: &'a Frame, options: &ProfileOptions) -> &'a str {
    if options.full_filenames { &frame.file } else { &frame.short }
}

/// How much was recorded, in one line.
pub fn subtitle(recording: &crate::profile::recording::Recording) -> String {
    let seconds = recording.length as f64 / 1e9;
    let counts = &recording.counts;
    let rate = if seconds > 0.0 { counts.ticks as f64 / seconds } else { 0.0 };
    format!("{} samples in {seconds:.1} s, {rate:.0} per second", counts.samples)
}

/// A thread, with its process where there are several.
pub fn track_name(
    recording: &crate::profile::recording::Recording,
    track: &crate::profile::recording::Track,
) -> String {
    let name = clean::clean(&track.label(), true).into_owned();
    match &recording.processes[..] {
        [_] => name,
        all => format!("pid {}: {name}", all[track.process].pid),
    }
}
