//! pprof's format (github.com/google/pprof, proto/profile.proto), compressed with gzip as its files are.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use rustc_hash::FxHashMap;

use super::profile::{ProfileOptions, path};
use crate::profile::FrameId;
use crate::profile::recording::Recording;
use crate::render::clean::clean;

#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub period: i64,
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// Which of the sample types is shown at first.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// Indices into the table of strings, as all texts are.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ValueType {
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// Locations innermost first.
#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Label {
    #[prost(int64, tag = "1")]
    pub key: i64,
    #[prost(int64, tag = "2")]
    pub str: i64,
    #[prost(int64, tag = "3")]
    pub num: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Location {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Line {
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    #[prost(int64, tag = "2")]
    pub line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Function {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(int64, tag = "2")]
    pub name: i64,
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    #[prost(int64, tag = "4")]
    pub filename: i64,
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}

#[derive(Default)]
struct Strings {
    table: Vec<String>,
    known: FxHashMap<String, i64>,
}

impl Strings {
    fn index(&mut self, text: &str) -> i64 {
        if let Some(known) = self.known.get(text) {
            return *known;
        }
        let index = self.table.len() as i64;
        self.table.push(text.to_owned());
        self.known.insert(text.to_owned(), index);
        index
    }
}

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    let mut gzip = GzEncoder::new(out, Compression::default());
    gzip.write_all(&profile(recording, options).encode_to_vec())?;
    gzip.finish().map(drop)
}

pub fn profile(recording: &Recording, options: &ProfileOptions) -> Profile {
    let mut strings = Strings::default();
    strings.index("");
    let mut kind =
        |name: &str, unit: &str| ValueType { r#type: strings.index(name), unit: strings.index(unit) };
    let sample_type = vec![kind("samples", "count"), kind("wall", "nanoseconds")];
    let mut profile = Profile {
        period_type: Some(sample_type[1]),
        default_sample_type: sample_type[1].r#type,
        sample_type,
        period: recording.period as i64,
        time_nanos: (recording.began_at * 1e9) as i64,
        duration_nanos: recording.length as i64,
        ..Profile::default()
    };
    let mut functions: FxHashMap<(String, String, u32), u64> = FxHashMap::default();
    let mut locations: FxHashMap<FrameId, u64> = FxHashMap::default();
    let [thread, tid, pid] = ["thread", "tid", "pid"].map(|key| strings.index(key));
    let mut sums: Vec<_> = recording.sums.iter().collect();
    sums.sort_unstable_by_key(|(key, _)| **key);
    for ((track, stack), sum) in sums {
        let mut location_id = Vec::new();
        for frame_id in recording.tree.walk(*stack) {
            let next = locations.len() as u64 + 1;
            let id = *locations.entry(frame_id).or_insert(next);
            location_id.push(id);
            if id != next {
                continue;
            }
            let frame = recording.tree.frame(frame_id);
            let (name, file) = (clean(&frame.function, true), clean(path(frame, options), true));
            let key = (name.to_string(), file.to_string(), frame.first_line);
            let next = functions.len() as u64 + 1;
            let function_id = *functions.entry(key).or_insert(next);
            if function_id == next {
                let name = strings.index(&name);
                profile.function.push(Function {
                    id: function_id,
                    name,
                    // Not equal to the name, else pprof takes `<module>` for a C++ template.
                    system_name: 0,
                    filename: strings.index(&file),
                    start_line: i64::from(frame.first_line),
                });
            }
            let line = Line { function_id, line: i64::from(frame.line.unwrap_or(frame.first_line)) };
            profile.location.push(Location { id, line: vec![line] });
        }
        let track = &recording.tracks[*track];
        let name = track.name.as_deref().map(|name| strings.index(&clean(name, true)));
        let number = |key, num: i32| Label { key, str: 0, num: i64::from(num) };
        let mut label = vec![number(tid, track.tid), number(pid, recording.processes[track.process].pid)];
        label.extend(name.map(|str| Label { key: thread, str, num: 0 }));
        profile.sample.push(Sample { location_id, value: vec![sum.samples as i64, sum.nanos as i64], label });
    }
    let comment = format!("{} recorded by hangscope {}", options.title, env!("CARGO_PKG_VERSION"));
    profile.comment.push(strings.index(&comment));
    profile.string_table = strings.table;
    profile
}
