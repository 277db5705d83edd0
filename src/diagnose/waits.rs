//! The wait-for graph of one look: who must act for whom, over threads, tasks and processes.
//!
//! An edge leads from who waits to who must act (`waits_on.on`, or the holder of the lock). Some waits
//! need all of them (a join), some any one (a full queue needs one consumer). What can go on by itself
//! is free, and so is who waits for it; who is not free in the end is part of a deadlock or behind one.

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;

use super::acting;
use super::gil::Held;
use crate::snapshot::{
    Activity, Actor, Address, Certainty, Frame, Lock, Process, Snapshot, Task, Thread, Wait,
};

/// What will become of somebody, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Runs, or stood somewhere else in the look before.
    Moves,
    /// Waits with a deadline.
    Ends,
    /// Sleeps, and on what is not known.
    Unknown,
    /// Waits for work: a selector, accept, an empty queue.
    Idle,
    /// Waits, without a deadline, for somebody outside: a peer, a child, a file lock.
    Outside,
    /// Waits without a deadline, and nobody is known who will end it. Somebody may be there all the same.
    Endless,
    /// As `Endless`, and the objects show that nobody can end it.
    Stuck,
    /// Part of a cycle, or waits for one who is.
    Deadlock,
}

/// A thread or a task.
#[derive(Clone, Copy)]
pub struct Party<'a> {
    pub process: &'a Process,
    pub who: Who<'a>,
}

#[derive(Clone, Copy)]
pub enum Who<'a> {
    Thread(&'a Thread),
    Task(&'a Task),
}

impl<'a> Party<'a> {
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    pub fn thread(&self) -> Option<&'a Thread> {
        match self.who {
            Who::Thread(thread) => Some(thread),
            Who::Task(_) => None,
        }
    }

    pub fn task(&self) -> Option<&'a Task> {
        match self.who {
            Who::Task(task) => Some(task),
            Who::Thread(_) => None,
        }
    }

    pub fn tid(&self) -> Option<i32> {
        match self.who {
            Who::Thread(thread) => thread.tid,
            Who::Task(task) => task.tid,
        }
    }

    pub fn wait(&self) -> Option<&'a Wait> {
        match self.who {
            Who::Thread(thread) => thread.waits_on.as_ref(),
            Who::Task(task) => task.waits_on.as_ref(),
        }
    }

    pub fn frames(&self) -> &'a [Frame] {
        match self.who {
            Who::Thread(thread) => &thread.frames,
            Who::Task(task) => &task.frames,
        }
    }

    pub fn holds(&self) -> &'a [Lock] {
        match self.who {
            Who::Thread(thread) => &thread.holds,
            Who::Task(task) => &task.holds,
        }
    }

    /// How people know it.
    pub fn name(&self) -> String {
        match self.who {
            Who::Thread(thread) => match (&thread.name, thread.tid) {
                (Some(name), _) => name.clone(),
                // Nobody has imported `threading` there.
                (None, _) if thread.main => "MainThread".into(),
                (None, Some(tid)) => format!("thread {tid}"),
                (None, None) => "a thread".into(),
            },
            Who::Task(task) => match (&task.name, &task.coroutine) {
                (Some(name), _) => format!("task {name}"),
                (None, Some(coroutine)) => format!("task {coroutine}"),
                (None, None) => format!("task {:#x}", task.id.0),
            },
        }
    }

    /// A task that was asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.task().and_then(|task| task.cancels).is_some_and(|n| n > 0)
    }

    /// By a signal or a debugger.
    pub fn is_stopped(&self) -> bool {
        let state = || self.thread()?.os.as_ref()?.state;
        matches!(state(), Some('T' | 't'))
    }

    /// Of the same loop, or the same thread.
    pub fn is_beside(&self, other: &Party) -> bool {
        self.pid() == other.pid() && self.tid() == other.tid()
    }

    /// Index of the innermost frame of the application's own code.
    pub fn user_frame(&self) -> Option<usize> {
        self.frames().iter().position(|frame| frame.user)
    }

    /// Index of the call that blocks.
    pub fn blocking_frame(&self) -> Option<usize> {
        let frame = self.wait().and_then(|wait| wait.frame).or((!self.frames().is_empty()).then_some(0));
        frame.filter(|&frame| frame < self.frames().len())
    }

    /// The frame that says most: the application's own, else the call that blocks.
    pub fn telling_frame(&self) -> Option<&'a Frame> {
        self.frames().get(self.user_frame().or(self.blocking_frame())?)
    }

    /// How long it has been waiting, as far as that is known.
    pub fn blocked_for(&self) -> Option<f64> {
        // Who asks again and again has slept since the last time, which is not since when.
        let asks = |wait: &Wait| wait.asks_again() || wait.kind == "gil";
        let os = || self.thread()?.os.as_ref()?.blocked_for.filter(|_| !self.wait().is_some_and(asks));
        self.wait().and_then(|wait| wait.blocked_for).or_else(os)
    }
}

/// Whom a wait needs.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Indices of parties.
    pub to: Vec<usize>,
    /// All of them must act; otherwise any one will do.
    pub all: bool,
    pub certainty: Option<Certainty>,
    /// A task that somebody elsewhere needs: whatever it waits for, it goes on only when the blocked thread of its
    /// loop does.
    pub by_loop: bool,
}

pub struct Graph<'a> {
    pub parties: Vec<Party<'a>>,
    pub links: Vec<Links>,
    pub fates: Vec<Fate>,
    /// Since the look before.
    gil: Option<Held>,
    /// Who was found to be free before whom: whoever frees another comes before it.
    order: Vec<usize>,
}

impl<'a> Graph<'a> {
    /// The graph of `now`; who stood elsewhere in `before` moves.
    pub fn new(now: &'a Snapshot, before: Option<&'a Snapshot>) -> Self {
        let parties: Vec<Party> = parties(now).collect();
        let names = Names::new(&parties);
        let mut links: Vec<Links> = (0..parties.len()).map(|at| names.links(&parties, at)).collect();
        names.behind_loops(&parties, &mut links);
        let earlier = before.map(Earlier::new);
        let moved = |party: &Party| earlier.as_ref().is_some_and(|earlier| earlier.moved(party));
        let (fates, order) = fates(&parties, &links, &moved);
        Graph { parties, links, fates, gil: before.map(|before| Held::new(before, now)), order }
    }

    /// How long one has waited for the GIL, at least.
    pub fn gil_for(&self, at: usize) -> Option<f64> {
        self.gil.as_ref()?.by(&self.parties[at])
    }

    /// Who is to blame, one step on.
    pub fn next(&self, at: usize) -> Option<usize> {
        let links = &self.links[at];
        let to = || links.to.iter().copied();
        if self.fates[at] == Fate::Deadlock {
            // Oneself first: the shortest of the cycles.
            // Of workers that wait for their own pool, all are in it together.
            // Who only waits for this one's end would send nothing if it came.
            let pid = self.parties[at].pid();
            let joins = |n: usize| {
                let wait = self.parties[n].wait().filter(|w| matches!(w.kind.as_str(), "process" | "thread"));
                wait.is_some_and(|w| w.on.iter().any(|a| a.pid == Some(pid)))
            };
            let others = || to().filter(|&n| n != at && self.fates[n] == Fate::Deadlock);
            let other = || others().find(|&n| !joins(n)).or_else(|| others().next());
            let own = || to().find(|&n| n == at);
            return if links.all { own().or_else(other) } else { other().or_else(own) };
        }
        if links.all {
            // The first of the worst.
            to().reduce(|best, n| if self.fates[n] > self.fates[best] { n } else { best })
        } else {
            to().min_by_key(|&n| (self.fates[n], self.order[n]))
        }
    }

    /// From one who suffers to the root. The second value is where a cycle closes.
    pub fn chain(&self, from: usize) -> (Vec<usize>, Option<usize>) {
        let mut chain = vec![from];
        let mut at = from;
        while let Some(next) = self.next(at) {
            if let Some(start) = chain.iter().position(|&n| n == next) {
                return (chain, Some(start));
            }
            chain.push(next);
            at = next;
        }
        (chain, None)
    }

    /// Proved only if every link is.
    pub fn certainty(&self, chain: &[usize], closed: bool) -> Certainty {
        let of_link = |&at: &usize| {
            if self.links[at].by_loop {
                return Certainty::Proved;
            }
            let wait = self.parties[at].wait().map_or(Certainty::Proved, |wait| wait.certainty);
            // An end that several have open: which of them would use it is not known.
            let mut pids = self.links[at].to.iter().map(|&to| self.parties[to].pid());
            let first = pids.next();
            let several = !self.links[at].all
                && self.parties[at].wait().is_some_and(|w| matches!(w.kind.as_str(), "pipe" | "socket"))
                && pids.any(|pid| Some(pid) != first);
            let least = if several { Certainty::Likely } else { wait };
            least.min(wait).min(self.links[at].certainty.unwrap_or(wait))
        };
        let upto = if closed || chain.len() < 2 { chain.len() } else { chain.len() - 1 };
        // That nobody can end it was searched for, not proved.
        let searched = |&at: &usize| {
            let party = &self.parties[at];
            // Whoever has a lock has it, whatever he waits for.
            let joins =
                self.parties[chain[0]].wait().is_some_and(|w| matches!(w.kind.as_str(), "thread" | "future"));
            let deserted = joins && party.wait().is_some_and(|wait| wait.detail["deserted"] == true);
            (party.task().is_some() || deserted) && nobody_can(party)
        };
        let upto = if chain.last().is_some_and(searched) { chain.len() } else { upto };
        let least = chain[..upto].iter().map(of_link).min().unwrap_or(Certainty::Likely);
        // Who only stands there without a known wait proves nothing.
        let nothing = chain.len() == 1 && self.parties[chain[0]].wait().is_none();
        if nothing { Certainty::Likely } else { least }
    }
}

fn parties(snapshot: &Snapshot) -> impl Iterator<Item = Party<'_>> {
    snapshot.processes.iter().flat_map(|process| {
        let threads = process.threads.iter().map(Who::Thread);
        threads.chain(process.tasks.iter().map(Who::Task)).map(move |who| Party { process, who })
    })
}

/// Parties by what others call them.
struct Names {
    threads: FxHashMap<(i32, i32), usize>,
    named: FxHashMap<(i32, String), Vec<usize>>,
    tasks: FxHashMap<(i32, Address), usize>,
    of_process: FxHashMap<i32, Vec<usize>>,
    holders: FxHashMap<(i32, Address), Vec<(usize, Certainty)>>,
    gil: FxHashMap<(i32, i64), i32>,
    /// The task that a thread's loop runs until it is done, of threads whose loop sleeps.
    mains: FxHashMap<usize, usize>,
}

impl Names {
    fn new(parties: &[Party]) -> Self {
        let mut names = Names {
            threads: FxHashMap::default(),
            named: FxHashMap::default(),
            tasks: FxHashMap::default(),
            of_process: FxHashMap::default(),
            holders: FxHashMap::default(),
            gil: FxHashMap::default(),
            mains: FxHashMap::default(),
        };
        for (at, party) in parties.iter().enumerate() {
            let pid = party.pid();
            match party.who {
                Who::Thread(thread) => {
                    if let Some(tid) = thread.tid {
                        names.threads.insert((pid, tid), at);
                    }
                    if let Some(name) = &thread.name {
                        names.named.entry((pid, name.clone())).or_default().push(at);
                    }
                    names.of_process.entry(pid).or_default().push(at);
                }
                Who::Task(task) => _ = names.tasks.insert((pid, task.id), at),
            }
            for lock in party.holds() {
                names.holders.entry((pid, lock.address)).or_default().push((at, lock.certainty));
            }
            for interpreter in &party.process.interpreters {
                if let Some(holder) = interpreter.gil.as_ref().and_then(|gil| gil.holder) {
                    names.gil.insert((pid, interpreter.id), holder);
                }
            }
        }
        for (at, party) in parties.iter().enumerate() {
            let Some(tid) = party.task().filter(|t| t.main).and_then(|t| t.tid) else { continue };
            let Some(&thread) = names.threads.get(&(party.pid(), tid)) else { continue };
            let event_loop = parties[thread].thread().and_then(|t| t.event_loop.as_ref());
            if event_loop.is_some_and(|l| l.state == "polling") {
                names.mains.insert(thread, at);
            }
        }
        names
    }

    fn find(&self, actor: &Actor, here: i32) -> Option<usize> {
        let pid = actor.pid.unwrap_or(here);
        if let Some(task) = actor.task {
            return self.tasks.get(&(pid, task)).copied();
        }
        if let Some(tid) = actor.tid {
            return self.threads.get(&(pid, tid)).copied();
        }
        if let Some(name) = &actor.thread {
            let [one] = self.named.get(&(pid, name.clone()))?[..] else { return None };
            return Some(one);
        }
        None
    }

    /// A process of which no thread is named.
    fn of_process(&self, actor: &Actor, here: i32) -> Option<(i32, &[usize])> {
        // That the other end is open in this very process says nothing of which thread would act.
        let pid = actor.pid.filter(|&pid| is_process(actor) && pid != here)?;
        Some((pid, self.of_process.get(&pid)?))
    }

    fn links(&self, parties: &[Party], at: usize) -> Links {
        let party = &parties[at];
        let pid = party.pid();
        let Some(wait) = party.wait() else { return self.without_wait(parties, at) };
        let mut links = Links { all: needs_all(wait), ..Links::default() };
        for actor in &wait.on {
            let found = self.find(actor, pid);
            // A thread whose loop sleeps goes on when the main task of that loop is done.
            let found = found.map(|at| self.mains.get(&at).copied().unwrap_or(at));
            // A task that has a lock of threads goes on only if its loop does.
            let found = match wait.detail["across_await"] == true {
                true => found.map(|at| self.blocked_loop_of(parties, at).unwrap_or(at)),
                false => found,
            };
            let mut found: Vec<usize> = found.into_iter().collect();
            if let Some(task) = self.who_stopped_reading(parties, actor, party) {
                found.push(task);
                links.certainty = Some(Certainty::Likely);
            } else if let Some((other, threads)) = self.of_process(actor, pid) {
                let (able, certainty) = match acting::task_at(parties, other, wait) {
                    Some(task) => (vec![task], None),
                    None => acting::threads(parties, threads, other, wait, pid),
                };
                found.extend(able);
                links.certainty = links.certainty.into_iter().chain(certainty).min();
            }
            if let Some(threads) = self.of_process.get(&pid)
                && actor.pid == Some(pid)
                && is_process(actor)
            {
                let handler = acting::own_handler(parties, at, wait);
                match handler.or_else(|| acting::own_writer(parties, at, wait)) {
                    Some(task) => found.push(task),
                    None => found.extend(acting::own_threads(parties, threads, at, wait)),
                }
                if !found.is_empty() {
                    links.certainty = Some(Certainty::Likely);
                }
            }
            // Any of those who share a listener may accept: with one of them unknown, nothing is known.
            if found.is_empty() && acting::is_unaccepted(wait) {
                links.to.clear();
                break;
            }
            found.retain(|n| !links.to.contains(n));
            links.to.extend(found);
        }
        // Of several that have a connection, who waits for the next one does not serve this one.
        if wait.kind == "socket"
            && !acting::is_unaccepted(wait)
            && links.to.iter().any(|n| !accepts(&parties[*n]))
        {
            links.to.retain(|n| !accepts(&parties[*n]));
        }
        // A lock that is a sign, whoever took it waits for.
        let lock_like = matches!(wait.kind.as_str(), "lock" | "semaphore" | "condition")
            && !(wait.kind == "lock" && wait.detail["signal"] == true);
        if links.to.is_empty()
            && lock_like
            && let Some(holders) = wait.address.and_then(|address| self.holders.get(&(pid, address)))
        {
            links.to = holders.iter().map(|h| h.0).collect();
            links.certainty = holders.iter().map(|h| h.1).min();
        }
        if let (Who::Task(task), true) = (party.who, links.to.is_empty()) {
            self.awaited(task, pid, &mut links);
        }
        if wait.kind == "gil" {
            links.to = self.gil_holder(party).into_iter().collect();
        }
        links
    }

    /// The task that waits for the end of this process, whose output its loop has stopped reading.
    fn who_stopped_reading(&self, parties: &[Party], actor: &Actor, writer: &Party) -> Option<usize> {
        let wait = writer.wait().filter(|w| w.kind == "pipe" && word(w, "operation") == Some("write"))?;
        let reader = actor.pid.filter(|_| is_process(actor) && wait.on.len() == 1)?;
        let waits = |w: &Wait| {
            w.detail["unread"].as_array().is_some_and(|u| !u.is_empty())
                && w.on.iter().any(|on| on.pid == Some(writer.pid()))
        };
        let of_reader = |at: &usize| parties[*at].pid() == reader && parties[*at].task().is_some();
        (0..parties.len()).filter(of_reader).find(|at| parties[*at].wait().is_some_and(waits))
    }

    fn without_wait(&self, parties: &[Party], at: usize) -> Links {
        let party = &parties[at];
        let mut links = Links { all: true, ..Links::default() };
        match party.who {
            Who::Thread(thread) if thread.activity == Activity::WaitingForGil => {
                links.to = self.gil_holder(party).into_iter().collect();
            }
            Who::Thread(_) => {}
            Who::Task(task) => {
                self.awaited(task, party.pid(), &mut links);
                // What nothing holds up but the loop, waits for the loop's thread.
                if links.to.is_empty() {
                    links.to.extend(self.blocked_loop_of(parties, at));
                }
            }
        }
        links
    }

    /// Tasks that are needed from outside of their loop, whose thread is blocked: neither timer nor future brings
    /// them on before it. (What the others of that loop wait for says more than that it is blocked.)
    fn behind_loops(&self, parties: &[Party], links: &mut [Links]) {
        let own = |from: usize, to: usize| {
            parties[from].task().is_some() && parties[from].tid() == parties[to].tid()
        };
        let needed =
            links.iter().enumerate().flat_map(|(from, its)| its.to.iter().map(move |to| (from, *to)));
        let needed: Vec<usize> = needed.filter(|(from, to)| !own(*from, *to)).map(|(_, to)| to).collect();
        for at in needed {
            if let Some(thread) = self.blocked_loop_of(parties, at) {
                links[at] = Links { to: vec![thread], all: true, certainty: None, by_loop: true };
            }
        }
    }

    /// The thread whose loop this task is of, if that loop is blocked.
    fn blocked_loop_of(&self, parties: &[Party], at: usize) -> Option<usize> {
        let tid = parties[at].task()?.tid?;
        let thread = *self.threads.get(&(parties[at].pid(), tid))?;
        let event_loop = parties[thread].thread()?.event_loop.as_ref()?;
        (event_loop.state == "blocked").then_some(thread)
    }

    fn awaited(&self, task: &Task, pid: i32, links: &mut Links) {
        links.all = true;
        links.to.extend(task.awaits.iter().filter_map(|id| self.tasks.get(&(pid, *id))));
    }

    fn gil_holder(&self, party: &Party) -> Option<usize> {
        let thread = party.thread()?;
        let tid = self.gil.get(&(party.pid(), thread.interpreter.unwrap_or(0)))?;
        self.threads.get(&(party.pid(), *tid)).copied().filter(|_| thread.tid != Some(*tid))
    }
}

/// No thread or task of it is named.
fn is_process(actor: &Actor) -> bool {
    actor.tid.is_none() && actor.thread.is_none() && actor.task.is_none()
}

/// Whether every one of `on` must act, or any one will do.
fn needs_all(wait: &Wait) -> bool {
    match wait.kind.as_str() {
        // The first of several will do for `wait(…, return_when=FIRST_COMPLETED)`.
        "task" | "future" if wait.detail.get("first").and_then(Value::as_bool) == Some(true) => false,
        "task" | "lock" | "thread" | "process" | "gil" | "file" => true,
        // Those who are still to come, if that is all of them.
        "barrier" => number(wait, "parties")
            .zip(number(wait, "waiting"))
            .is_some_and(|(parties, here)| wait.on.len() as i64 == parties - here),
        // Of workers among which nobody knows who has it, any one may.
        "future" => !is_queued(wait) && (wait.on.len() < 2 || !is_pending(wait)),
        _ => false,
    }
}

/// The future's work has not begun: any worker that becomes free will take it.
pub fn is_queued(wait: &Wait) -> bool {
    wait.kind == "future" && wait.detail.get("queued_at").is_some_and(|at| !at.is_null())
}

/// Workers of a pool of processes die where they start, and are replaced.
pub fn has_dying_workers(wait: &Wait) -> bool {
    wait.detail["workers_die"].is_number()
}

/// A loop would have to act that no thread runs.
pub fn is_for_idle_loop(wait: &Wait) -> bool {
    wait.detail["not_running"].is_object()
}

fn is_pending(wait: &Wait) -> bool {
    word(wait, "state").is_some_and(|state| state.eq_ignore_ascii_case("pending"))
}

pub fn word<'a>(wait: &'a Wait, key: &str) -> Option<&'a str> {
    wait.detail.get(key)?.as_str()
}

pub fn number(wait: &Wait, key: &str) -> Option<i64> {
    wait.detail.get(key)?.as_i64()
}

/// The look before: where everybody stood.
struct Earlier<'a> {
    threads: FxHashMap<(i32, Option<i32>, Option<u64>), &'a Thread>,
    tasks: FxHashMap<(i32, Address), &'a Task>,
}

impl<'a> Earlier<'a> {
    fn new(before: &'a Snapshot) -> Self {
        let threads =
            before.processes.iter().flat_map(|p| p.threads.iter().map(move |t| ((p.pid, t.tid, t.ident), t)));
        let tasks = before.processes.iter().flat_map(|p| p.tasks.iter().map(move |t| ((p.pid, t.id), t)));
        Earlier { threads: threads.collect(), tasks: tasks.collect() }
    }

    fn moved(&self, party: &Party) -> bool {
        match party.who {
            Who::Thread(now) => match self.threads.get(&(party.pid(), now.tid, now.ident)) {
                None => true,
                Some(before) => elsewhere((&before.waits_on, &before.frames), (&now.waits_on, &now.frames)),
            },
            Who::Task(now) => match self.tasks.get(&(party.pid(), now.id)) {
                None => true,
                Some(before) => elsewhere((&before.waits_on, &before.frames), (&now.waits_on, &now.frames)),
            },
        }
    }
}

fn elsewhere(before: (&Option<Wait>, &[Frame]), now: (&Option<Wait>, &[Frame])) -> bool {
    if let (Some(before), Some(now)) = (before.0, now.0)
        && (&before.kind, before.address, &before.call) != (&now.kind, now.address, &now.call)
    {
        return true;
    }
    // The frames of the library's own loops may differ: where the application stands does not.
    let place = |frames: &[Frame]| {
        let own: Vec<_> = frames.iter().filter(|f| f.user).map(|f| (f.function.clone(), f.line)).collect();
        let all = || frames.iter().map(|f| (f.function.clone(), f.line)).collect();
        if own.is_empty() { all() } else { own }
    };
    place(before.1) != place(now.1)
}

/// Level by level, best first: whoever is not reached waits in a circle.
fn fates(parties: &[Party], links: &[Links], moved: &dyn Fn(&Party) -> bool) -> (Vec<Fate>, Vec<usize>) {
    let mut fates: Vec<Option<Fate>> = vec![None; parties.len()];
    let moves: Vec<bool> = parties.iter().map(|party| moved(party) || is_sending(party)).collect();
    let alone: Vec<Fate> = parties.iter().map(by_itself).collect();
    let closed: Vec<bool> =
        (0..parties.len()).map(|at| acting::is_closed(parties, at, &links[at].to)).collect();
    let mut order = vec![usize::MAX; parties.len()];
    let mut place = 0;
    use Fate::*;
    for level in [Moves, Ends, Unknown, Idle, Outside, Endless, Stuck] {
        loop {
            let mut changed = false;
            for at in 0..parties.len() {
                if fates[at].is_some() {
                    continue;
                }
                let to = &links[at].to;
                // Who accepts other connections at leisure does not answer on this one.
                let answers = is_answer(&parties[at]);
                // A lock is given back by whoever goes on, sooner or later.
                let leaves = parties[at].wait().is_some_and(|w| w.kind != "file" && leaves_it_open(w));
                let by = |n: usize| {
                    let elsewhere = leaves && parties[n].pid() != parties[at].pid();
                    fates[n].map(|f| match f {
                        Ends if elsewhere => Outside,
                        f if answers && accepts(&parties[n]) => f.max(Outside),
                        f => f,
                    })
                };
                let known = || to.iter().filter_map(|&n| by(n));
                let by_others = if to.is_empty() {
                    Some(alone[at])
                } else if links[at].all {
                    known().max().filter(|_| known().count() == to.len())
                } else {
                    known().min()
                };
                let ends = has_deadline(&parties[at]).then_some(Ends);
                let waits_for_work = is_idle(&parties[at]) || acting::waits_for_parent(&parties[at]);
                let idle = match waits_for_work.then_some(closed[at]) {
                    Some(false) => Some(Idle),
                    // Unless all who could send it work wait for this one in turn.
                    Some(true) => by_others.map(|_| Idle),
                    None => None,
                };
                let moves = moves[at].then_some(Moves);
                // Others than those who are named may end it.
                let open = parties[at].wait().is_some_and(|w| w.detail["open"] == true).then_some(Endless);
                let by_itself = [ends, idle, open].into_iter().flatten().filter(|_| !links[at].by_loop);
                let fate = by_itself.chain(by_others).chain(moves).min();
                if let Some(fate) = fate.filter(|&fate| fate <= level) {
                    fates[at] = Some(fate);
                    order[at] = place;
                    place += 1;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
    }
    (fates.into_iter().map(|fate| fate.unwrap_or(Deadlock)).collect(), order)
}

/// Sleeps in the sending of much, of which some still goes out now and then.
fn is_sending(party: &Party) -> bool {
    /// Seconds.
    const LATELY: f64 = 2.0;
    let sends = |w: &Wait| w.kind == "socket" && word(w, "operation") == Some("send");
    party
        .wait()
        .filter(|w| sends(w))
        .is_some_and(|w| w.detail["tcp"]["sent_ago"].as_f64().is_some_and(|ago| ago < LATELY))
}

/// Waits for what the other end of its connection sends.
fn is_answer(party: &Party) -> bool {
    party.wait().is_some_and(|w| w.kind == "socket" && w.detail["inbound"] != true)
}

pub fn accepts(party: &Party) -> bool {
    party.wait().is_some_and(|w| w.kind == "socket" && word(w, "operation") == Some("accept"))
}

fn has_deadline(party: &Party) -> bool {
    let ends = |wait: &Wait| wait.deadline.as_deref() == Some("at") || wait.ends_in.is_some();
    party.wait().is_some_and(|wait| ends(wait) && !wait.is_retried())
}

/// That another process goes on does not mean that it does what this wait is for: answers, reads, unlocks.
pub fn leaves_it_open(wait: &Wait) -> bool {
    match wait.kind.as_str() {
        "socket" | "file" => true,
        "pipe" => word(wait, "operation") == Some("write"),
        _ => false,
    }
}

/// Has a lock that one of those needs who would have to put something in.
fn holds_what_is_wanted(party: &Party, wait: &Wait) -> bool {
    let wanted = |lock: &Lock| {
        let threads = party.process.threads.iter().filter(|t| wait.on.iter().any(|on| on.tid == t.tid));
        threads.filter_map(|t| t.waits_on.as_ref()).any(|w| w.address == Some(lock.address))
    };
    party.thread().is_some() && party.holds().iter().any(wanted)
}

/// Somebody is known who would have to act, and nobody of them waits for an end: who joins a consumer has told it all
/// there was.
fn needs_waiters(party: &Party, wait: &Wait) -> bool {
    let waits_for_end =
        |w: &Wait| w.kind == "thread" || w.kind == "queue" && word(w, "operation") == Some("join");
    let joins = |t: &&Thread| t.waits_on.as_ref().is_some_and(waits_for_end);
    let is_named = |t: &&Thread| wait.on.iter().any(|on| on.tid.is_some() && on.tid == t.tid);
    !wait.on.is_empty() && !party.process.threads.iter().filter(is_named).any(|t| joins(&t))
}

/// Waits for work: what the look itself calls idle, unless it wants to get rid of something.
fn is_idle(party: &Party) -> bool {
    let idle = party.thread().is_some_and(|t| t.activity == Activity::Idle);
    let gets = match party.wait() {
        // An answer is no work.
        Some(wait) if wait.kind == "queue" && wait.detail["reply"] == true => false,
        // Who takes a lock along to where work comes in is not at rest.
        Some(wait) if wait.kind == "queue" && holds_what_is_wanted(party, wait) => false,
        // Only those who wait for each other could put something in.
        Some(wait) if wait.kind == "queue" && wait.detail["open"] == false && needs_waiters(party, wait) => {
            false
        }
        None => true,
        Some(wait) => match wait.kind.as_str() {
            "poll" => return true,
            "queue" => word(wait, "operation") == Some("get") && !has_items(wait) && !is_abandoned(wait),
            "socket" | "condition" | "semaphore" | "unknown" | "pipe" => true,
            _ => false,
        },
    };
    idle && gets
}

fn has_items(wait: &Wait) -> bool {
    number(wait, "size").is_some_and(|size| size > 0)
}

/// The fate of one who needs nobody that we know of.
fn by_itself(party: &Party) -> Fate {
    let Some(wait) = party.wait() else {
        return match party.thread().map(|t| t.activity) {
            Some(Activity::Running | Activity::WaitingForGil) => Fate::Moves,
            Some(Activity::Idle) => Fate::Idle,
            // A program that is no Python: it may be at work, or not.
            Some(Activity::Waiting) if party.process.python.is_none() => Fate::Outside,
            _ => Fate::Unknown,
        };
    };
    let says = |key: &str| wait.detail.get(key).and_then(Value::as_bool) == Some(true);
    match wait.kind.as_str() {
        "poll" => Fate::Idle,
        // A callback of the loop may end it.
        _ if says("may_come") => Fate::Idle,
        "cpu" | "gil" => Fate::Moves,
        "sleep" => Fate::Ends,
        // Who gets waits for work all the same, unless it was not woken.
        kind if party.task().is_some() && nobody_can(party) => {
            let gets = kind == "queue" && word(wait, "operation") == Some("get");
            if gets && !says("done") && !says("unwoken") { Fate::Idle } else { Fate::Stuck }
        }
        "pipe" | "socket" if is_abandoned(wait) => Fate::Stuck,
        // Both ends are here: nobody outside can move it.
        "pipe" if !wait.on.is_empty() && wait.on.iter().all(|on| on.pid == Some(party.pid())) => {
            Fate::Endless
        }
        "socket" | "process" | "file" | "pipe" => Fate::Outside,
        "unknown" => Fate::Unknown,
        "queue" => match word(wait, "operation") {
            Some("get") if is_lost_wakeup(wait) || is_abandoned(wait) => Fate::Stuck,
            Some("get") => Fate::Idle,
            _ if nobody_can(party) => Fate::Stuck,
            _ => Fate::Endless,
        },
        "lock" | "event" | "condition" | "barrier" | "semaphore" | "future" if nobody_can(party) => {
            Fate::Stuck
        }
        _ => Fate::Endless,
    }
}

/// A file that somebody has locked.
pub fn is_locked_file(wait: &Wait) -> bool {
    wait.kind == "file"
        && (wait.detail["lock"].is_string() || !wait.on.is_empty() || wait.detail["own"] == true)
}

/// A getter sleeps although items are there.
pub fn is_lost_wakeup(wait: &Wait) -> bool {
    wait.kind == "queue"
        && word(wait, "operation") == Some("get")
        && has_items(wait)
        && wait.detail["may_come"] != true
        && !wait.call.as_deref().is_some_and(|call| call.starts_with("multiprocessing"))
}

/// Nobody who is left could put an item in.
fn is_abandoned(wait: &Wait) -> bool {
    wait.detail.get("nobody").and_then(Value::as_bool) == Some(true)
}

/// The objects show that nobody is left who could end it.
pub fn nobody_can(party: &Party) -> bool {
    let Some(wait) = party.wait().filter(|wait| wait.on.is_empty() || is_abandoned(wait)) else {
        return false;
    };
    let says = |key: &str| wait.detail.get(key).and_then(Value::as_bool) == Some(true);
    if says("unwoken") {
        return true;
    }
    // Threads of extensions may call Python at any time.
    if says("deserted") && party.process.threads.iter().all(|t| t.interpreter.is_some()) {
        return true;
    }
    if wait.certainty != Certainty::Proved {
        // What was searched for and not found.
        let searched = party.task().is_some() || is_for_idle_loop(wait);
        return searched && says("nobody");
    }
    let none = |key: &str| wait.detail.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty);
    says("nobody")
        || says("done")
        || says("orphan")
        || says("owner_gone")
        || match (wait.kind.as_str(), word(wait, "operation")) {
            ("queue", Some("put")) => is_full(wait) && none("consumers") || none("setters"),
            ("queue", _) => none("setters"),
            _ => none("setters") || owner_is_gone(party, wait),
        }
}

/// The owner that the lock records is no thread of the process.
fn owner_is_gone(party: &Party, wait: &Wait) -> bool {
    let Some(owner) = wait.detail.get("owner").and_then(Value::as_u64).filter(|&owner| owner != 0) else {
        return false;
    };
    let ours =
        |thread: &Thread| thread.ident == Some(owner) || thread.tid.is_some_and(|tid| tid as u64 == owner);
    wait.kind == "lock" && !party.process.threads.iter().any(ours)
}

pub fn is_full(wait: &Wait) -> bool {
    match (number(wait, "size"), number(wait, "maxsize")) {
        (Some(size), Some(max)) => max > 0 && size >= max,
        _ => false,
    }
}

/// All cycles, each once, with those who wait for one of its members.
pub fn cycles(graph: &Graph) -> Vec<(Vec<usize>, Vec<usize>)> {
    let mut found: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
    for at in (0..graph.parties.len()).filter(|&at| graph.fates[at] == Fate::Deadlock) {
        let (chain, Some(start)) = graph.chain(at) else { continue };
        let members: FxHashSet<usize> = chain[start..].iter().copied().collect();
        let known = found.iter_mut().find(|(cycle, _)| members.contains(&cycle[0]));
        let entry = match known {
            Some(entry) => entry,
            None => {
                found.push((chain[start..].to_vec(), Vec::new()));
                found.last_mut().expect("it was just put there")
            }
        };
        if !members.contains(&at) {
            entry.1.push(at);
        }
    }
    found
}

/// Whether the way from the application's own code to the call that blocks leads through a module.
pub fn has_library(frames: &[Frame], modules: &[&str]) -> bool {
    let own = frames.iter().position(|frame| frame.user).unwrap_or(frames.len());
    let of = |name: &str| {
        modules.iter().any(|m| name == *m || name.strip_prefix(m).is_some_and(|rest| rest.starts_with('.')))
    };
    frames[..own].iter().any(|frame| frame.module.as_deref().is_some_and(of))
}
