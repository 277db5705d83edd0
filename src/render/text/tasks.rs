//! The asyncio tasks of a process as a tree: from who awaits to what is awaited, each await with its place,
//! and what the last one waits for. Tasks that stand alike are shown once.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{TextOptions, count, process, stack, thread, wait};
use crate::render::page::Page;
use crate::render::report::Report;
use crate::render::style::Ink;
use crate::snapshot::{Address, Process, Task};

/// Trees are not shown deeper than this; nobody could read them.
const DEEPEST: usize = 40;
/// The columns that each level moves to the right.
const STEP: usize = 4;
/// Of those that stand alike, so many are named.
const MOST_NAMES: usize = 4;
/// Cycles that are named.
const MOST_CYCLES: usize = 20;

/// Writes the tasks of all processes, in one piece.
pub fn write(out: &mut dyn std::io::Write, report: &Report, options: &TextOptions) -> std::io::Result<()> {
    let mut page = Page::new(options.width, options.unicode);
    for reported in &report.processes {
        page.gap();
        process::header(&mut page, &reported.process);
        of_process(&mut page, &reported.process, options);
        process::problems(&mut page, &reported.process);
    }
    super::skipped(&mut page, &report.skipped);
    out.write_all(page.into_text().as_bytes())
}

fn of_process(page: &mut Page, process: &Process, options: &TextOptions) {
    if process.tasks.is_empty() {
        page.gap();
        page.put(Ink::Plain, "no asyncio tasks");
        page.end_line();
        return;
    }
    let tasks = &process.tasks;
    let by_id: FxHashMap<Address, usize> = tasks.iter().enumerate().map(|(i, t)| (t.id, i)).collect();
    let index = |ids: &[Address]| ids.iter().filter_map(|id| by_id.get(id).copied()).collect::<Vec<_>>();
    let mut tree = Tree {
        process,
        options,
        awaits: tasks.iter().map(|t| index(&t.awaits)).collect(),
        shown: FxHashSet::default(),
        signatures: FxHashMap::default(),
        deepest: if options.full_stacks { 10 * DEEPEST } else { DEEPEST },
    };
    let held_by = |t: &Task| {
        let on = t.waits_on.iter().flat_map(|w| &w.on).filter_map(|a| a.task).collect::<Vec<_>>();
        index(&on)
    };
    // Who waits for a lock waits for the task that is inside of it.
    let needs: Vec<Vec<usize>> = tasks
        .iter()
        .zip(&tree.awaits)
        .map(|(t, awaits)| awaits.iter().copied().chain(held_by(t)).collect())
        .collect();
    let cycles = cycles(&needs);
    if !cycles.is_empty() {
        page.gap();
    }
    for cycle in cycles.iter().take(MOST_CYCLES) {
        let names: Vec<String> = cycle.iter().chain(cycle.first()).map(|i| name(&tasks[*i])).collect();
        let (mark, arrow) = (page.marks.critical, page.marks.arrow);
        page.put(Ink::Critical, &format!("{mark} AWAIT CYCLE "));
        page.fact(Ink::Strong, 2, &names.join(&format!(" {arrow} ")));
    }
    if cycles.len() > MOST_CYCLES {
        page.put(Ink::Critical, &format!("{} and {} more", page.marks.ellipsis, cycles.len() - MOST_CYCLES));
        page.end_line();
    }

    let mut loops: Vec<(Option<Address>, Option<i32>)> =
        tasks.iter().map(|t| (t.event_loop, t.tid)).collect();
    let mut unique = FxHashSet::default();
    loops.retain(|l| unique.insert(*l));
    for (event_loop, tid) in loops {
        let of_loop = |i: &usize| tasks[*i].event_loop == event_loop && tasks[*i].tid == tid;
        let members: Vec<usize> = (0..tasks.len()).filter(of_loop).collect();
        page.gap();
        loop_header(page, process, tid, event_loop, members.len());
        // Those that nobody awaits, then one of each cycle, then whoever is left.
        let roots: Vec<usize> = members.iter().copied().filter(|i| tasks[*i].awaited_by.is_empty()).collect();
        tree.children(page, &roots, 0);
        for i in cycles.iter().filter_map(|c| c.first()).filter(|i| of_loop(i)).chain(&members) {
            if !tree.shown.contains(i) {
                tree.children(page, &[*i], 0);
            }
        }
    }
}

fn loop_header(
    page: &mut Page,
    process: &Process,
    tid: Option<i32>,
    event_loop: Option<Address>,
    tasks: usize,
) {
    let of_tid = tid.and_then(|tid| process.threads.iter().find(|t| t.tid == Some(tid)));
    match of_tid {
        Some(of) => page.put(Ink::Strong, &thread::title(of)),
        None => {
            let address = event_loop.map_or("?".to_owned(), |l| format!("{:#x}", l.0));
            page.put(Ink::Strong, &format!("Event loop {address}"));
        }
    }
    let mut items = Vec::new();
    match of_tid.and_then(|t| t.event_loop.as_ref()) {
        Some(event_loop) => {
            let ink = if event_loop.state == "blocked" { Ink::Wait } else { Ink::Plain };
            items.push((ink, thread::loop_line(event_loop)));
        }
        None => items.push((Ink::Faint, "does not run".to_owned())),
    }
    items.push((Ink::Plain, count(tasks, "task", "tasks")));
    page.put(Ink::Plain, "  ");
    page.items(2, &items);
}

struct Tree<'a> {
    process: &'a Process,
    options: &'a TextOptions,
    awaits: Vec<Vec<usize>>,
    shown: FxHashSet<usize>,
    signatures: FxHashMap<usize, u64>,
    deepest: usize,
}

impl Tree<'_> {
    /// Tasks that stand side by side, those that are alike as one.
    fn children(&mut self, page: &mut Page, tasks: &[usize], depth: usize) {
        let mut groups: Vec<(u64, Vec<usize>)> = Vec::new();
        let mut places: FxHashMap<u64, usize> = FxHashMap::default();
        for &task in tasks {
            let signature = if self.options.group { self.signature(task, 0) } else { task as u64 };
            match places.get(&signature) {
                Some(at) => groups[*at].1.push(task),
                None => {
                    places.insert(signature, groups.len());
                    groups.push((signature, vec![task]));
                }
            }
        }
        for (_, group) in groups {
            self.task(page, &group, depth);
        }
    }

    fn task(&mut self, page: &mut Page, group: &[usize], depth: usize) {
        let first = group[0];
        let task = &self.process.tasks[first];
        let indent = 2 + STEP * depth;
        page.pad_to(indent.saturating_sub(2));
        if depth > 0 {
            let branch = page.marks.branch;
            page.put(Ink::Faint, branch);
        }
        page.pad_to(indent);
        page.put(Ink::Strong, &name(task));
        if let Some(coroutine) = &task.coroutine {
            page.put(Ink::Plain, &format!("  {coroutine}"));
        }
        if task.state.as_deref() == Some("running") {
            page.put(Ink::Good, "  running");
        }
        if !self.shown.insert(first) {
            page.put(Ink::Faint, "  (shown above)");
            page.end_line();
            return;
        }
        page.end_line();
        if let [_, others @ ..] = group
            && !others.is_empty()
        {
            let names: Vec<String> =
                others.iter().take(MOST_NAMES).map(|i| name(&self.process.tasks[*i])).collect();
            let ellipsis = page.marks.ellipsis;
            let more = if others.len() > MOST_NAMES { format!(", {ellipsis}") } else { String::new() };
            page.pad_to(indent + 2);
            let text = format!("and {} more like it: {}{more}", others.len(), names.join(", "));
            page.fact(Ink::Strong, indent + 4, &text);
            self.mark(others, 0);
        }
        for lock in &task.holds {
            page.pad_to(indent + 2);
            let line = lock.line.map(|l| format!(", taken at line {l}")).unwrap_or_default();
            page.fact(Ink::Wait, indent + 4, &format!("holds {} {:#x}{line}", lock.kind, lock.address.0));
        }
        let user = task.frames.iter().position(|f| f.user);
        for (i, frame) in task.frames.iter().enumerate().rev() {
            page.pad_to(indent + 2);
            let ink = if frame.user { Ink::User } else { Ink::Faint };
            let file = stack::file(frame, Some(self.process), self.options);
            let line =
                frame.line.filter(|_| self.options.lineno).map(|l| format!(":{l}")).unwrap_or_default();
            page.fact(ink, indent + 6, &format!("{} ({file}{line})", stack::function(frame)));
            if user == Some(i)
                && let Some(source) = frame.source.as_deref().filter(|s| !s.is_empty())
            {
                page.pad_to(indent + 6);
                let room = page.room().saturating_sub(page.column());
                page.put_cut(Ink::Plain, source, room);
                page.end_line();
            }
        }
        if let Some(wait) = &task.waits_on {
            page.pad_to(indent + 2);
            let (note, arrow) = (page.marks.note, page.marks.arrow);
            page.put(Ink::Wait, note);
            page.put(Ink::Wait, " ");
            page.fact(Ink::Wait, indent + 4, &self.wait_line(wait, arrow));
        }
        let awaits = self.awaits[first].clone();
        if depth >= self.deepest && !awaits.is_empty() {
            page.pad_to(indent + 2);
            page.put(Ink::Faint, &format!("{} and so on", page.marks.ellipsis));
            page.end_line();
            return;
        }
        self.children(page, &awaits, depth + 1);
    }

    /// Tasks are called by their names.
    fn wait_line(&self, wait: &crate::snapshot::Wait, arrow: &str) -> String {
        let mut text = wait::note(wait, arrow);
        for actor in &wait.on {
            if let Some(task) = actor.task
                && let Some(other) = self.process.tasks.iter().find(|t| t.id == task)
            {
                text = text.replace(&format!("task {:#x}", task.0), &format!("task {}", name(other)));
            }
        }
        text
    }

    /// What stands below tasks that were left out needs no place of its own either.
    fn mark(&mut self, tasks: &[usize], depth: usize) {
        let mut left: Vec<usize> = tasks.to_vec();
        debug_assert_eq!(depth, 0);
        while let Some(task) = left.pop() {
            if self.shown.insert(task) {
                left.extend(&self.awaits[task]);
            }
        }
    }

    /// Equal for tasks that stand at the same place, wait for the same kind of thing, and await such tasks.
    fn signature(&mut self, task: usize, depth: usize) -> u64 {
        if let Some(known) = self.signatures.get(&task) {
            return *known;
        }
        if depth > self.deepest {
            return 0;
        }
        // Whoever comes back here in a cycle sees this.
        self.signatures.insert(task, task as u64);
        let t = &self.process.tasks[task];
        let mut hasher = DefaultHasher::new();
        (&t.coroutine, &t.state, t.event_loop).hash(&mut hasher);
        for frame in &t.frames {
            (&frame.function, &frame.file, frame.line).hash(&mut hasher);
        }
        for lock in &t.holds {
            // Whoever holds something is somebody.
            lock.address.0.hash(&mut hasher);
            task.hash(&mut hasher);
        }
        if let Some(wait) = &t.waits_on {
            (&wait.kind, &wait.call).hash(&mut hasher);
            // A queue or lock of its own is another place to wait at; a socket, future or sleep is not.
            if matches!(wait.kind.as_str(), "lock" | "queue" | "event" | "condition" | "semaphore") {
                wait.address.map(|a| a.0).hash(&mut hasher);
            }
        }
        let awaits = self.awaits[task].clone();
        let mut below: Vec<u64> = awaits.iter().map(|i| self.signature(*i, depth + 1)).collect();
        below.sort_unstable();
        below.hash(&mut hasher);
        let signature = hasher.finish();
        self.signatures.insert(task, signature);
        signature
    }
}

fn name(task: &Task) -> String {
    task.name.clone().unwrap_or_else(|| format!("task {:#x}", task.id.0))
}

/// Circles of who needs whom, each once, found by a walk that colours (no recursion: chains may be long).
fn cycles(needs: &[Vec<usize>]) -> Vec<Vec<usize>> {
    const ON_PATH: u8 = 1;
    const DONE: u8 = 2;
    let mut colour = vec![0u8; needs.len()];
    let mut found = Vec::new();
    for start in 0..needs.len() {
        if colour[start] != 0 {
            continue;
        }
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        colour[start] = ON_PATH;
        while let Some((at, next)) = path.last_mut() {
            match needs[*at].get(*next) {
                None => {
                    colour[*at] = DONE;
                    path.pop();
                }
                Some(&to) => {
                    *next += 1;
                    match colour[to] {
                        0 => {
                            colour[to] = ON_PATH;
                            path.push((to, 0));
                        }
                        ON_PATH => {
                            let from = path.iter().position(|(i, _)| *i == to).unwrap_or(0);
                            let cycle: Vec<usize> = path[from..].iter().map(|(i, _)| *i).collect();
                            if !found.contains(&cycle) {
                                found.push(cycle);
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_found_once() {
        // 0 → 1 → 2 → 0, 3 → 1, 4 → 4, 5 → 6.
        let needs = vec![vec![1], vec![2], vec![0], vec![1], vec![4], vec![6], vec![]];
        assert_eq!(cycles(&needs), [vec![0, 1, 2], vec![4]]);
        let long: Vec<Vec<usize>> = (0..100_000).map(|i| vec![(i + 1) % 100_000]).collect();
        assert_eq!(cycles(&long).len(), 1);
    }
}
