//! What `record` says at its end: how much, how exact, and where the time went.

use std::fmt::Write;

use super::clean;
use crate::profile::recording::Recording;

/// Functions that are named.
const TOP: usize = 5;

pub fn text(recording: &Recording, rate: Option<u32>, target_ended: bool) -> String {
    let mut out = String::new();
    let c = &recording.counts;
    let seconds = recording.length as f64 / 1e9;
    let held = c.ticks as f64 / seconds.max(1e-9);
    let _ = write!(out, "{} samples in {seconds:.1} s, {held:.0} per second", c.samples);
    if let Some(rate) = rate
        && c.missed * 20 > c.ticks + c.missed
    {
        let _ = write!(out, " of the {rate} asked for ({} missed)", c.missed);
    }
    if target_ended {
        out.push_str("; the target has ended");
    }
    out.push('\n');
    let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    if c.apart > 0 {
        let _ = writeln!(
            out,
            "at this rate read from another CPU while the target ran on: fast changes are seen less"
        );
        if let Some((off, exact, chance)) = recording.distortion() {
            let _ = writeln!(
                out,
                "{:.0} % of the time is in other functions than {exact} exact samples taken in between say ({:.0} % by chance)",
                100.0 * off,
                100.0 * chance
            );
        }
    }
    if c.torn > 0 {
        let whole = c.stacks + c.torn;
        let _ = writeln!(
            out,
            "{} of {whole} stacks ({:.2} %) could not be proven and are left out; their time counts for the next ones",
            c.torn,
            share(c.torn, whole)
        );
    }
    if c.late > 0 {
        let _ = writeln!(
            out,
            "{} samples ({:.1} %) came late; weights are the real intervals",
            c.late,
            share(c.late, c.ticks)
        );
    }
    if c.samples == 0 {
        return out;
    }
    let _ = writeln!(
        out,
        "GIL held {:.0} %, gc {:.1} %, idle {:.0} % of the samples; hangscope itself used {:.1} % of one CPU",
        share(c.gil, c.samples),
        share(c.gc, c.samples),
        share(c.idle, c.samples),
        share(c.own_cpu, recording.length)
    );
    let total = recording.total();
    for (function, file, nanos) in recording.top_functions(TOP) {
        let name = clean::clean(&function, true);
        let file = clean::clean(&file, true);
        let place = if file.is_empty() { String::new() } else { format!(" ({file})") };
        let _ = writeln!(out, "{:6.1} %  {name}{place}", share(nanos, total));
    }
    if let Some(timeline) = &recording.timeline
        && timeline.thinned > 1
    {
        let _ = writeln!(out, "it is long: the timeline shows one sample of {}", timeline.thinned);
    }
    out
}
