//! Many processes of one program, or threads of one process, that stand at the same place for the same
//! reason are one finding, and those that stand elsewhere are named.

use super::case::Case;
use super::{Cause, Finding};
use crate::snapshot::{Process, Snapshot};

/// So many are still told one by one.
const SINGLY: usize = 2;
/// Most that are called the odd ones out.
const ODD: usize = 3;
pub const RULE: &str = "same-stack";

pub fn merge(findings: Vec<Finding>, now: &Snapshot) -> Vec<Finding> {
    let mut groups: Vec<(Option<Key>, Vec<Finding>)> = Vec::new();
    for finding in findings {
        let key = key(&finding);
        match groups.iter_mut().find(|(known, _)| key.is_some() && *known == key) {
            Some((_, group)) => group.push(finding),
            None => groups.push((key, vec![finding])),
        }
    }
    groups
        .into_iter()
        .flat_map(|(_, group)| if group.len() > SINGLY { vec![one(group, now)] } else { group })
        .collect()
}

/// A line of a program.
type Place = Option<(Option<String>, String, Option<u32>)>;

/// What makes two findings the same: the rule, where who suffers stands, for what, and where the root stands.
type Key = (String, Place, String, Option<String>, Option<String>, usize, Place);

fn key(finding: &Finding) -> Option<Key> {
    if finding.cycle.is_some() || finding.task.is_some() {
        return None;
    }
    let (first, last) = (finding.cause.first()?, finding.cause.last()?);
    let place = |cause: &Cause| {
        cause.frame.as_ref().map(|f| (f.file.as_ref().map(|f| f.to_string()), f.function.to_string(), f.line))
    };
    let wait = first.wait.as_ref()?;
    let text = |name: &str| wait.detail.get(name).and_then(|v| v.as_str()).map(str::to_owned);
    let object = text("peer").or_else(|| text("path"));
    place(first)?;
    Some((
        finding.rule.clone(),
        place(first),
        wait.kind.clone(),
        wait.call.clone(),
        object,
        finding.cause.len(),
        place(last),
    ))
}

/// The one that has waited longest speaks for all.
fn one(mut group: Vec<Finding>, now: &Snapshot) -> Finding {
    let age = |f: &Finding| f.blocked_for.unwrap_or(0.0);
    group.sort_by(|a, b| b.severity.cmp(&a.severity).then(age(b).total_cmp(&age(a))));
    let many = group.len();
    let mut heads: Vec<i32> = group.iter().filter_map(|f| f.pid).collect();
    heads.sort_unstable();
    heads.dedup();
    let mut pids = heads.clone();
    pids.extend(group.iter().flat_map(|f| &f.pids));
    pids.sort_unstable();
    pids.dedup();
    let youngest = group.iter().map(age).fold(f64::INFINITY, f64::min);
    let mut finding = group.swap_remove(0);
    let who = match heads.len() {
        1 => format!("{many} threads"),
        processes if processes < many => format!("{many} threads of {processes} processes"),
        processes => format!("{processes} processes"),
    };
    finding.summary = format!("{who} stand alike: {}", finding.summary);
    let s = if heads.len() == 1 { "" } else { "s" };
    finding.evidence.insert(0, format!("pid{s} {}; the youngest has waited {youngest:.0} s", ranges(&heads)));
    if let Some(first) = finding.cause.first_mut() {
        first.alike = many as u64 - 1;
    }
    if heads.len() > 1 {
        finding.evidence.extend(odd(&heads, now));
    }
    finding.pids = pids;
    finding.related.push(RULE.to_owned());
    finding
}

/// Who else of other processes waits for the same root, and who of the same program does not.
pub fn of_one_root(case: &Case, now: &Snapshot) -> Vec<String> {
    let mut heads = vec![case.party().pid()];
    heads.extend(&case.crowd);
    heads.sort_unstable();
    heads.dedup();
    if heads.len() <= SINGLY {
        return Vec::new();
    }
    let of_these = format!("they are of the {} processes with the pids {}", heads.len(), ranges(&heads));
    std::iter::once(of_these).chain(odd(&heads, now)).collect()
}

/// Those of the same program that stand elsewhere, if they are few.
fn odd(heads: &[i32], now: &Snapshot) -> Option<String> {
    let of = |pid: &i32| now.processes.iter().find(|p| p.pid == *pid);
    let command = &of(heads.first()?)?.command;
    let alike = |p: &&Process| !p.followed && p.command == *command && p.python.is_some();
    let parents: Vec<i32> = heads.iter().filter_map(of).filter_map(|p| p.parent).collect();
    // Who started them all is no odd one.
    let others: Vec<&Process> = now
        .processes
        .iter()
        .filter(alike)
        .filter(|p| !heads.contains(&p.pid) && !parents.contains(&p.pid))
        .collect();
    if others.is_empty() || others.len() > ODD {
        return None;
    }
    let stands = |p: &&Process| {
        let at =
            p.main_frame().map(|f| format!(" stands in `{}` at {}", f.function, super::advice::place(f)));
        format!("pid {}{}", p.pid, at.unwrap_or_default())
    };
    Some(format!("elsewhere: {}", others.iter().map(stands).collect::<Vec<_>>().join("; ")))
}

/// `7-9, 12`.
pub fn ranges(numbers: &[i32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let runs = sorted.chunk_by(|a, b| a.checked_add(1) == Some(*b)).flat_map(|run| match run {
        [first, _, .., last] => vec![format!("{first}-{last}")],
        few => few.iter().map(i32::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(", ")
}
