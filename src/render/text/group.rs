//! Threads that stand at the same place for the same reason are shown once: two hundred idle
//! workers are one fact.

use super::{TextOptions, count, recursion};
use crate::diagnose::ranges;
use crate::duration::Duration;
use crate::snapshot::{Thread, Wait};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// So many identical threads are still shown one by one.
const SINGLY: usize = 3;

/// A thread, and those that look just like it.
pub(super) struct Group<'a> {
    pub first: &'a Thread,
    pub others: Vec<&'a Thread>,
}

/// The groups, each where its first thread stands.
pub(super) fn groups<'a>(threads: &[&'a Thread], options: &TextOptions) -> Vec<Group<'a>> {
    let mut leaders: Vec<usize> = (0..threads.len()).collect();
    let mut sizes = vec![0; threads.len()];
    let mut seen: HashMap<u64, usize> = HashMap::new();
    for (at, &thread) in threads.iter().enumerate() {
        if options.group && is_plain(thread) {
            let leader = *seen.entry(fingerprint(thread)).or_insert(at);
            if leader != at && are_alike(threads[leader], thread) {
                leaders[at] = leader;
            }
        }
        sizes[leaders[at]] += 1;
    }

    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut places = vec![0; threads.len()];
    for (at, &thread) in threads.iter().enumerate() {
        let leader = leaders[at];
        if leader != at && sizes[leader] > SINGLY {
            groups[places[leader]].others.push(thread);
        } else {
            places[at] = groups.len();
            groups.push(Group { first: thread, others: Vec::new() });
        }
    }
    groups
}

/// Nothing about it is special, so that a line can stand for it.
fn is_plain(thread: &Thread) -> bool {
    !thread.main
        && thread.holds_gil != Some(true)
        && thread.holds.is_empty()
        && thread.request.is_none()
        && thread.event_loop.is_none()
        && thread.problems.is_empty()
        && thread.frames.iter().all(|frame| frame.locals.as_ref().is_none_or(Vec::is_empty))
}

fn system_call(thread: &Thread) -> Option<(&str, Option<char>)> {
    let os = thread.os.as_ref()?;
    Some((os.syscall.as_ref().map_or("", |call| call.name.as_str()), os.state))
}

fn kind_of(wait: &Option<Wait>) -> Option<(&str, Option<&str>, Option<usize>)> {
    wait.as_ref().map(|wait| (wait.kind.as_str(), wait.call.as_deref(), wait.frame))
}

fn fingerprint(thread: &Thread) -> u64 {
    let mut hasher = DefaultHasher::new();
    let stack = thread.frames.iter().fold(thread.frames.len() as u64, |sum, frame| {
        sum.rotate_left(5) ^ recursion::key(frame) ^ u64::from(frame.line.unwrap_or(0))
    });
    stack.hash(&mut hasher);
    system_call(thread).hash(&mut hasher);
    kind_of(&thread.waits_on).hash(&mut hasher);
    hasher.finish()
}

fn are_alike(a: &Thread, b: &Thread) -> bool {
    a.activity == b.activity
        && a.interpreter == b.interpreter
        && a.complete == b.complete
        && a.read == b.read
        && system_call(a) == system_call(b)
        && kind_of(&a.waits_on) == kind_of(&b.waits_on)
        && a.frames == b.frames
}

/// `and 14 more like it: worker-2 … worker-15 (4244-4257), blocked 40 s to 51 s`.
pub(super) fn more_like_it(group: &Group<'_>, ellipsis: &str) -> String {
    let others = &group.others;
    let tids: Vec<i32> = others.iter().filter_map(|thread| thread.tid).collect();
    let names: Vec<&str> = others.iter().filter_map(|thread| thread.name.as_deref()).collect();
    let mut text = format!("and {} more like it: ", others.len());
    if let Some((first, last)) = sequence(&names).filter(|_| names.len() == others.len()) {
        text += &format!("{first} {ellipsis} {last} ({})", ranges(&tids));
    } else if names.is_empty() {
        text += &ranges(&tids);
    } else if let Some(&name) = names.first().filter(|first| names.iter().all(|name| name == *first)) {
        text += &format!("{name} ({})", ranges(&tids));
    } else {
        let each = others.iter().map(|thread| {
            let tid = thread.tid.map_or("?".to_owned(), |tid| tid.to_string());
            thread.name.as_ref().map_or(tid.clone(), |name| format!("{tid} {name}"))
        });
        text += &each.collect::<Vec<_>>().join(", ");
    }
    let unnamed = others.len() - tids.len();
    if unnamed > 0 {
        text += &format!(", {} without a thread of the system", count(unnamed, "is", "are"));
    }
    let blocked = others.iter().filter_map(|thread| thread.os.as_ref()?.blocked_for);
    let (least, most) = blocked.fold((f64::INFINITY, 0.0_f64), |(l, m), for_| (l.min(for_), m.max(for_)));
    if least.is_finite() {
        let (least, most) = (Duration(least).to_string(), Duration(most).to_string());
        text += &if least == most { format!(", for {least}") } else { format!(", for {least} to {most}") };
    }
    text
}

/// The first and the last of names that differ in one number only and leave none out.
fn sequence<'a>(names: &[&'a str]) -> Option<(&'a str, &'a str)> {
    let [first, rest @ ..] = names else { return None };
    if rest.is_empty() {
        return None;
    }
    fn common(a: impl Iterator<Item = u8>, b: impl Iterator<Item = u8>) -> usize {
        a.zip(b).take_while(|(a, b)| a == b).count()
    }
    let mut prefix = rest.iter().map(|name| common(first.bytes(), name.bytes())).min()?;
    let mut suffix = rest.iter().map(|name| common(first.bytes().rev(), name.bytes().rev())).min()?;
    // Digits that happen to be the same in all belong to the number.
    let bytes = first.as_bytes();
    while prefix > 0 && bytes[prefix - 1].is_ascii_digit() {
        prefix -= 1;
    }
    suffix = suffix.min(first.len() - prefix);
    while suffix > 0 && bytes[first.len() - suffix].is_ascii_digit() {
        suffix -= 1;
    }
    let numbers =
        names.iter().map(|name| name.get(prefix..name.len().checked_sub(suffix)?)?.parse::<u64>().ok());
    let mut numbered: Vec<(u64, &str)> =
        numbers.zip(names).map(|(number, &name)| Some((number?, name))).collect::<Option<_>>()?;
    numbered.sort_unstable();
    let closed = numbered.windows(2).all(|pair| pair[0].0.checked_add(1) == Some(pair[1].0));
    closed.then(|| (numbered[0].1, numbered[numbered.len() - 1].1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_names_are_a_sequence() {
        assert_eq!(sequence(&["worker-9", "worker-11", "worker-10"]), Some(("worker-9", "worker-11")));
        assert_eq!(sequence(&["worker-10", "worker-20"]), None);
        assert_eq!(
            sequence(&["Thread-2 (run1)", "Thread-3 (run1)"]),
            Some(("Thread-2 (run1)", "Thread-3 (run1)"))
        );
        assert_eq!(sequence(&["ä", "ö"]), None);
        assert_eq!(sequence(&["11", "1"]), None);
        assert_eq!(sequence(&["same", "same"]), None);
        assert_eq!(sequence(&["alone"]), None);
        assert_eq!(sequence(&[]), None);
    }

    #[test]
    fn neighbouring_ids_are_ranges() {
        assert_eq!(ranges(&[7, 3, 1, 2, 8]), "1-3, 7, 8");
        assert_eq!(ranges(&[i32::MAX, 5]), "5, 2147483647");
    }
}
