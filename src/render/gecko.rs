//! The processed profile format of the Firefox Profiler (profiler.firefox.com): every thread a track, samples with
//! real times; application, standard library and packages have colours of their own.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use fxprof_processed_profile::{
    CategoryColor, CategoryHandle, CpuDelta, Frame as GeckoFrame, FrameFlags, FrameInfo, Profile,
    SamplingInterval, StackHandle, ThreadHandle, Timestamp,
};
use rustc_hash::FxHashMap;

use super::profile::{ProfileOptions, label};
use crate::profile::recording::Recording;
use crate::profile::{EMPTY, StackId};
use crate::render::clean::clean;

/// One long span is written as so many samples at most.
const PIECES: u64 = 500;

struct Categories {
    user: CategoryHandle,
    library: CategoryHandle,
    other: CategoryHandle,
}

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    let began = UNIX_EPOCH + Duration::from_secs_f64(recording.began_at.max(0.0));
    let interval = SamplingInterval::from_nanos(recording.period);
    let mut profile = Profile::new(&options.title, began.into(), interval);
    let categories = Categories {
        user: profile.add_category("Application", CategoryColor::Blue),
        library: profile.add_category("Library", CategoryColor::Gray),
        other: profile.add_category("Python runtime", CategoryColor::Orange),
    };
    let processes: Vec<_> = recording
        .processes
        .iter()
        .map(|p| {
            let handle = profile.add_process(&clean(&p.command, true), p.pid as u32, time(p.begin));
            profile.set_process_end_time(handle, time(p.end));
            handle
        })
        .collect();
    for (index, track) in recording.tracks.iter().enumerate() {
        let process = processes[track.process];
        let thread = profile.add_thread(process, track.tid as u32, time(0), track.main);
        profile.set_thread_name(thread, &clean(track.name.as_deref().unwrap_or("thread"), true));
        add_track(&mut profile, thread, recording, index, options, &categories)?;
    }
    serde_json::to_writer(&mut *out, &profile)?;
    writeln!(out)
}

fn time(nanos: u64) -> Timestamp {
    Timestamp::from_nanos_since_reference(nanos)
}

fn add_track(
    profile: &mut Profile,
    thread: ThreadHandle,
    recording: &Recording,
    track: usize,
    options: &ProfileOptions,
    categories: &Categories,
) -> io::Result<()> {
    let Some(timeline) = &recording.timeline else { return Ok(()) };
    let mut known: FxHashMap<StackId, StackHandle> = FxHashMap::default();
    let mut until = 0;
    timeline.each(track, |span| {
        if span.start > until {
            profile.add_sample(thread, time(until), None, CpuDelta::ZERO, 0);
        }
        let stack = intern(profile, thread, recording, span.stack, options, categories, &mut known);
        let samples = (span.length / recording.period.max(1)).max(1);
        let pieces = samples.min(PIECES);
        for piece in 0..pieces {
            let at = span.start + span.length * piece / pieces;
            let weight = samples * (piece + 1) / pieces - samples * piece / pieces;
            let cpu = CpuDelta::from_nanos(span.length / pieces);
            profile.add_sample(thread, time(at), stack, cpu, weight as i32);
        }
        until = span.start + span.length;
        Ok(())
    })?;
    profile.add_sample(thread, time(until), None, CpuDelta::ZERO, 0);
    Ok(())
}

fn intern(
    profile: &mut Profile,
    thread: ThreadHandle,
    recording: &Recording,
    stack: StackId,
    options: &ProfileOptions,
    categories: &Categories,
    known: &mut FxHashMap<StackId, StackHandle>,
) -> Option<StackHandle> {
    // Callers first; each is known then.
    let mut todo = Vec::new();
    let mut at = stack;
    while at != EMPTY && !known.contains_key(&at) {
        todo.push(at);
        at = recording.tree.caller(at);
    }
    for stack in todo.into_iter().rev() {
        let frame = recording.tree.frame(recording.tree.top(stack)?);
        let category = match (frame.file.is_empty(), frame.user) {
            (true, _) => categories.other,
            (_, true) => categories.user,
            _ => categories.library,
        };
        let text = profile.intern_string(&label(frame, options));
        let info = FrameInfo {
            frame: GeckoFrame::Label(text),
            category_pair: category.into(),
            flags: FrameFlags::empty(),
        };
        let frame = profile.intern_frame(thread, info);
        let caller = known.get(&recording.tree.caller(stack)).copied();
        known.insert(stack, profile.intern_stack(thread, caller, frame));
    }
    known.get(&stack).copied()
}
