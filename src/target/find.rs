//! From what users name (a pid, a port, a piece of a command line) to the processes to look into.

use std::collections::{HashMap, HashSet};

use super::access::{self, AccessError};
use super::files::{self, ProcDir};
use super::net;
use super::parse;
use super::probe::with_room;
use super::proc;
use crate::snapshot::Skipped;

/// What was asked for; the parts add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub pids: Vec<i32>,
    /// Processes that have a socket which listens on this TCP port.
    pub port: Option<u16>,
    /// Python processes whose command line contains this.
    pub name: Option<String>,
    /// And all their descendants that run Python.
    pub subprocesses: bool,
}

/// What is to be read, and what was met on the way and is not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Parents before their children, else by pid; each once.
    pub pids: Vec<i32>,
    pub skipped: Vec<Skipped>,
    /// What was asked for and is not there, each listed under `skipped` as well.
    pub errors: Vec<FindError>,
    /// Of `pids`, those that nobody has named: they may come and go.
    pub descendants: Vec<i32>,
}

/// A process that an error names instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub pid: i32,
    pub command: Vec<String>,
}

/// Nothing to read; says what there is instead.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FindError {
    #[error("no process was named: give a pid, --port or --name")]
    NothingAsked,
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("no process listens on TCP port {port}{}", hidden_note(*hidden))]
    NoListener { port: u16, hidden: usize },
    #[error("something listens on TCP port {port}, but its process cannot be seen{}", hidden_note(*hidden))]
    HiddenListener { port: u16, hidden: usize },
    #[error("no Python process listens on TCP port {port}; held by:{}", list(others))]
    NotPythonListener { port: u16, others: Vec<Candidate> },
    #[error("no Python process has {name:?} in its command line; there are:{}", list(others))]
    NoSuchName { name: String, others: Vec<Candidate> },
}

impl FindError {
    /// Hides what must not be shown in the command lines that the message lists.
    pub fn map_commands(mut self, mask: impl Fn(&[String]) -> Vec<String>) -> Self {
        if let FindError::NotPythonListener { others, .. } | FindError::NoSuchName { others, .. } = &mut self
        {
            for other in others {
                other.command = mask(&other.command);
            }
        }
        self
    }

    pub fn remedy(&self) -> Option<String> {
        match self {
            FindError::Access(error) => error.remedy(),
            FindError::NoListener { hidden: 1.., .. } | FindError::HiddenListener { .. } => {
                Some("run it with sudo: only root sees the sockets of other users' processes".into())
            }
            FindError::NotPythonListener { .. } => Some(
                "a proxy or a supervisor holds the port: name the Python process itself, or add --subprocesses".into(),
            ),
            FindError::NoListener { .. } | FindError::NoSuchName { .. } => Some("list what runs: hangscope ps".into()),
            FindError::NothingAsked => None,
        }
    }
}

/// What a process looks like from `/proc` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    Python,
    /// May embed one (static, PyInstaller, uwsgi): the interpreter locator decides.
    Unknown,
    /// A thread of the kernel, a zombie, or gone.
    Never,
}

/// Whether a process runs Python, cheaply: by the name of its executable, else by a libpython among its mappings.
pub fn looks_like_python(pid: i32) -> Looks {
    let Ok(dir) = with_room(|| ProcDir::process(pid)) else { return Looks::Never };
    looks(&dir)
}

fn looks(dir: &ProcDir) -> Looks {
    let mut buffer = [0; 1024];
    let Some(stat) = dir.read(c"stat", &mut buffer).ok().and_then(parse::stat) else { return Looks::Never };
    if stat.is_kernel_thread() || matches!(stat.state, 'Z' | 'X' | 'x') {
        return Looks::Never;
    }
    match dir.link(c"exe") {
        Ok(link) if is_python_name(base_name(link.strip_suffix(" (deleted)").unwrap_or(&link))) => {
            Looks::Python
        }
        Ok(_) if maps_libpython(dir) => Looks::Python,
        Ok(_) => Looks::Unknown,
        // Not ours to see: by what it calls itself.
        Err(_) => {
            let command = proc::command(dir).unwrap_or_default();
            let by_command = command.first().is_some_and(|arg| is_python_name(base_name(arg)));
            let by_comm = std::str::from_utf8(stat.comm).is_ok_and(is_python_name);
            if by_command || by_comm { Looks::Python } else { Looks::Unknown }
        }
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `python`, `python3.13t`, `python3-dbg`, `pypy3.10`; not `python-config`.
fn is_python_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy")) else { return false };
    let rest = rest.strip_suffix("-dbg").unwrap_or(rest);
    let rest = rest.trim_end_matches(['d', 't', 'm', 'u', 'w', 'c']);
    rest.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// Mappings are few for what is small; of what is huge, the libraries stand behind the heap: all of it is read, in
/// pieces, up to a cap.
fn maps_libpython(dir: &ProcDir) -> bool {
    use std::io::Read;
    const NEEDLE: &[u8] = b"/libpython";
    let Ok(mut maps) = dir.open(c"maps") else { return false };
    let mut buffer = vec![0; 32 * 1024];
    let mut kept = 0;
    for _ in 0..512 {
        match maps.read(&mut buffer[kept..]) {
            Ok(0) | Err(_) => return false,
            Ok(length) => {
                let end = kept + length;
                if contains(&buffer[..end], NEEDLE) {
                    return true;
                }
                kept = end.min(NEEDLE.len() - 1);
                buffer.copy_within(end - kept..end, 0);
            }
        }
    }
    false
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&b| b == first) {
        from += at + 1;
        if haystack[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

/// Every process that looks like Python, by pid; never ourselves.
pub fn python_processes() -> Vec<i32> {
    let own = nix::unistd::getpid().as_raw();
    files::pids().into_iter().filter(|&pid| pid != own && looks_like_python(pid) == Looks::Python).collect()
}

/// The same with those that have ended and wait for their parent, as far as their names say Python.
pub fn python_processes_and_zombies() -> Vec<i32> {
    let own = nix::unistd::getpid().as_raw();
    let is_python_zombie = |pid| {
        let by_name = |name: &[u8]| std::str::from_utf8(name).is_ok_and(is_python_name);
        proc::with_stat(pid, |stat| matches!(stat.state, 'Z' | 'X') && by_name(stat.comm)) == Some(true)
    };
    let wanted = |&pid: &i32| match looks_like_python(pid) {
        Looks::Python => true,
        Looks::Never => is_python_zombie(pid),
        Looks::Unknown => false,
    };
    files::pids().into_iter().filter(|&pid| pid != own).filter(wanted).collect()
}

pub fn find(selector: &Selector) -> Result<Found, FindError> {
    let mut pids = Vec::new();
    let mut skipped = Vec::new();
    let mut errors = Vec::new();
    for &pid in &selector.pids {
        match existing(pid) {
            Ok(pid) => pids.push(pid),
            Err(error) => {
                skipped.push(Skipped {
                    pid,
                    command: Vec::new(),
                    reason: error.to_string(),
                    remedy: error.remedy(),
                    by_the_way: false,
                });
                errors.push(FindError::Access(error));
            }
        }
    }
    if let Some(port) = selector.port {
        match listeners(port, selector.subprocesses, &mut skipped) {
            Ok(found) => pids.extend(found),
            Err(error) => errors.push(error),
        }
    }
    if let Some(name) = &selector.name {
        match named(name) {
            Ok(found) => pids.extend(found),
            Err(error) => errors.push(error),
        }
    }
    let mut descendants = Vec::new();
    if selector.subprocesses && !pids.is_empty() {
        let all = with_descendants(&pids, &mut skipped);
        descendants = all.iter().copied().filter(|pid| !pids.contains(pid)).collect();
        pids = all;
    }
    if pids.is_empty() {
        return Err(errors.into_iter().next().unwrap_or(FindError::NothingAsked));
    }
    // Part of what was asked for is there: the rest is told, not lost.
    for error in errors.iter().filter(|error| !matches!(error, FindError::Access(_))) {
        skipped.push(Skipped {
            pid: 0,
            command: Vec::new(),
            reason: error.to_string(),
            remedy: error.remedy(),
            by_the_way: false,
        });
    }
    Ok(Found { pids: parents_first(&pids), skipped, errors, descendants })
}

/// The process that this number means: itself, or the one it is a thread of. `/proc/TID` is there for a thread too,
/// it is only not listed.
fn existing(pid: i32) -> Result<i32, AccessError> {
    let mut buffer = [0; files::SMALL];
    let dir = with_room(|| ProcDir::process(pid)).map_err(|_| access::missing(pid))?;
    let status = dir.read(c"status", &mut buffer).map_err(|_| access::missing(pid))?;
    Ok(parse::field(status, "Tgid").and_then(parse::number).map_or(pid, |tgid| tgid as i32))
}

/// Python processes that have the port; others are skipped, or roots to look below.
fn listeners(port: u16, roots_too: bool, skipped: &mut Vec<Skipped>) -> Result<Vec<i32>, FindError> {
    let holders = net::listeners_of_port(port);
    let hidden = holders.hidden;
    if holders.pids.is_empty() {
        return Err(if holders.listening {
            FindError::HiddenListener { port, hidden }
        } else {
            FindError::NoListener { port, hidden }
        });
    }
    let (python, others): (Vec<i32>, Vec<i32>) =
        holders.pids.iter().partition(|&&pid| looks_like_python(pid) == Looks::Python);
    // An embedded Python (uwsgi) looks like nothing at all: where no other holds the port, the locator may try.
    if python.is_empty() {
        let described = || others.iter().map(|&pid| describe(pid)).collect();
        return if roots_too {
            Ok(others)
        } else {
            Err(FindError::NotPythonListener { port, others: described() })
        };
    }
    skipped.extend(others.into_iter().map(|pid| not_python(pid, &format!("listens on port {port}"))));
    Ok(python)
}

fn named(name: &str) -> Result<Vec<i32>, FindError> {
    let parents = parents();
    let own: HashSet<i32> = ancestry(nix::unistd::getpid().as_raw(), &parents).collect();
    let all: Vec<i32> = python_processes().into_iter().filter(|pid| !own.contains(pid)).collect();
    let (found, others): (Vec<i32>, Vec<i32>) =
        all.into_iter().partition(|&pid| proc::command_of(pid).join(" ").contains(name));
    if found.is_empty() {
        let others = others.into_iter().map(describe).collect();
        return Err(FindError::NoSuchName { name: name.to_owned(), others });
    }
    Ok(found)
}

/// All of these and the Python processes below them, at any depth, also below children that are not Python.
fn with_descendants(roots: &[i32], skipped: &mut Vec<Skipped>) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, parent) in parents() {
        children.entry(parent).or_default().push(pid);
    }
    let own = nix::unistd::getpid().as_raw();
    let mut seen: HashSet<i32> = roots.iter().copied().collect();
    let mut found: Vec<i32> = Vec::new();
    let mut queue: Vec<i32> = roots.to_vec();
    while let Some(pid) = queue.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            // Ourselves, when a target has started us.
            if child != own && seen.insert(child) {
                queue.push(child);
                match looks_like_python(child) {
                    Looks::Python => found.push(child),
                    _ => {
                        let of_child = not_python(child, &format!("descendant of {pid}"));
                        let ended = matches!(access::check(child), Err(AccessError::Zombie { .. }));
                        skipped.push(Skipped { by_the_way: !ended, ..of_child });
                    }
                }
            }
        }
    }
    skipped.sort_by_key(|skipped| skipped.pid);
    // A root that is not Python itself, a supervisor or a shell, is only where we start from.
    let has_python = !found.is_empty();
    for &root in roots {
        if has_python && looks_like_python(root) == Looks::Unknown && !maps_are_hidden(root) {
            if !skipped.iter().any(|known| known.pid == root) {
                skipped.push(not_python(root, "named as a target"));
            }
        } else {
            found.push(root);
        }
    }
    found
}

/// These and all processes below them that are alive; never ourselves.
pub fn descendants(roots: &[i32]) -> Vec<i32> {
    let parents = parents();
    let own = nix::unistd::getpid().as_raw();
    let mut found: Vec<i32> = parents.iter().map(|p| p.0).filter(|pid| roots.contains(pid)).collect();
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        at += 1;
        for &(child, parent) in &parents {
            if parent == pid && child != own && !found.contains(&child) {
                found.push(child);
            }
        }
    }
    found
}

fn maps_are_hidden(pid: i32) -> bool {
    with_room(|| ProcDir::process(pid)).and_then(|dir| dir.open(c"maps")).is_err()
}

fn not_python(pid: i32, how: &str) -> Skipped {
    let (reason, remedy) = match access::check(pid) {
        Err(error @ AccessError::Zombie { .. }) => (error.to_string(), error.remedy()),
        _ => {
            (format!("does not look like Python ({how})"), Some(format!("read it all the same: --pid {pid}")))
        }
    };
    Skipped { pid, command: proc::command_of(pid), reason, remedy, by_the_way: false }
}

/// Every process with its parent.
fn parents() -> Vec<(i32, i32)> {
    files::pids()
        .into_iter()
        .filter_map(|pid| Some((pid, proc::with_stat(pid, |stat| stat.parent)?)))
        .collect()
}

/// A process, its parent, and so on; bounded, for what is read piece by piece may loop.
fn ancestry(pid: i32, parents: &[(i32, i32)]) -> impl Iterator<Item = i32> + '_ {
    let parent_of = move |pid: &i32| {
        let at = parents.binary_search_by_key(pid, |(known, _)| *known).ok()?;
        Some(parents[at].1).filter(|&parent| parent > 0)
    };
    std::iter::successors(Some(pid), parent_of).take(1000)
}

/// Trees one after the other, by the pid of their root; siblings by pid; each process once.
fn parents_first(pids: &[i32]) -> Vec<i32> {
    let wanted: HashSet<i32> = pids.iter().copied().collect();
    let parents = if wanted.len() > 1 { parents() } else { Vec::new() };
    order(&wanted, &parents)
}

fn order(wanted: &HashSet<i32>, parents: &[(i32, i32)]) -> Vec<i32> {
    // The path from the outermost wanted ancestor down to the process is what it is sorted by.
    let mut paths: Vec<Vec<i32>> = wanted
        .iter()
        .map(|&pid| {
            let mut path: Vec<i32> = ancestry(pid, parents).filter(|pid| wanted.contains(pid)).collect();
            path.reverse();
            path
        })
        .collect();
    paths.sort();
    let mut seen = HashSet::new();
    paths.into_iter().filter_map(|path| path.last().copied()).filter(|&pid| seen.insert(pid)).collect()
}

fn describe(pid: i32) -> Candidate {
    Candidate { pid, command: proc::command_of(pid) }
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let command = self.command.join(" ");
        let command: String =
            command.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect();
        write!(f, "{} {command}", self.pid)
    }
}

fn list(candidates: &[Candidate]) -> String {
    match candidates {
        [] => " none".to_owned(),
        all => all.iter().take(20).map(|one| format!("\n  {one}")).collect::<String>() + &more(all.len()),
    }
}

fn more(count: usize) -> String {
    if count > 20 { format!("\n  and {} more", count - 20) } else { String::new() }
}

fn hidden_note(hidden: usize) -> String {
    match hidden {
        0 => String::new(),
        1 => " (the descriptors of one process of another user cannot be seen)".into(),
        n => format!(" (the descriptors of {n} processes of other users cannot be seen)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_interpreters() {
        for name in [
            "python",
            "python3",
            "python3.13",
            "python3.13t",
            "python3.13td",
            "python3.12d",
            "python3-dbg",
            "pypy3.10",
            "pypy3-c",
        ] {
            let expected = name != "pypy3-c";
            assert_eq!(is_python_name(name), expected, "{name}");
        }
        for name in ["python-config", "pythonista", "bash", "", "py", "ipython3"] {
            assert!(!is_python_name(name), "{name}");
        }
    }

    #[test]
    fn parents_come_before_children() {
        // 9 is the master of 4 and 12; 12 has 3; 7 is alone; a shell (5) stands between 9 and 2.
        let parents = [(1, 0), (2, 5), (3, 12), (4, 9), (5, 9), (7, 1), (9, 1), (12, 9)];
        let wanted = [2, 3, 4, 7, 9, 12].into_iter().collect();
        assert_eq!(order(&wanted, &parents), [7, 9, 2, 4, 12, 3]);
        // A loop, as a scan that is not atomic may show it.
        assert_eq!(order(&[1, 2].into_iter().collect(), &[(1, 2), (2, 1)]).len(), 2);
    }

    #[test]
    fn nothing_is_an_error() {
        assert_eq!(find(&Selector::default()), Err(FindError::NothingAsked));
        let gone = find(&Selector { pids: vec![i32::MAX], ..Selector::default() });
        assert_eq!(gone, Err(FindError::Access(AccessError::Gone { pid: i32::MAX })));
        let many = vec![Candidate { pid: 7, command: vec!["a\x1b".into()] }; 23];
        let error = FindError::NoSuchName { name: "x".into(), others: many };
        assert!(error.to_string().contains("\n  7 a?\n") && error.to_string().ends_with("and 3 more"));
    }

    proptest! {
        #[test]
        fn bytes_are_found(hay in prop::collection::vec(0u8..3, 0..60), needle in prop::collection::vec(0u8..3, 0..5)) {
            let slow = needle.is_empty() || hay.windows(needle.len()).any(|window| window == needle);
            prop_assert_eq!(contains(&hay, &needle), slow);
        }
    }
}
