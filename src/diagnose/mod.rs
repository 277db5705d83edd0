//! What a snapshot means: findings, as plain data.
//!
//! One root, one finding: what merely follows from it is named under `related`.

/// Which threads of another process may end a wait.
mod acting;
/// The words of a finding.
pub(crate) mod advice;
/// One case: who suffers, the chain to the root.
mod case;
/// Many processes that stand alike.
mod crowd;
/// Consumers for whom nobody is left.
mod deserted;
/// How long somebody has waited for the GIL.
pub mod gil;
/// How bad a case is.
mod judge;
/// The rule catalogue.
mod rules;
/// What it means for a server and its supervisor.
mod servers;
/// The wait-for graph.
mod waits;

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::snapshot::{Address, Certainty, Frame, Precision, Request, Snapshot, Wait};
use case::Case;
pub use crowd::ranges;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use waits::leaves_it_open;
use waits::{Fate, Graph, Party};

/// Something that is wrong, who suffers from it, and what causes it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Finding {
    /// Id in the rule catalogue, e.g. `loop-executor-shutdown`.
    pub rule: String,
    pub severity: Severity,
    /// One line: who suffers, and from what.
    pub summary: String,
    /// All processes that take part.
    pub pids: Vec<i32>,
    /// Who suffers.
    pub pid: Option<i32>,
    pub tid: Option<i32>,
    pub task: Option<Address>,
    /// Index of the blocking call in the frames of that thread or task.
    pub frame: Option<usize>,
    /// Index of the innermost frame of the application's own code.
    pub user_frame: Option<usize>,
    pub blocked_for: Option<f64>,
    /// Whether it is known since when, or only from which moment on.
    #[serde(default)]
    pub blocked_for_is: Option<Precision>,
    pub certainty: Certainty,
    pub request: Option<Request>,
    /// From who suffers to the root; without a cycle the last one is the culprit.
    pub cause: Vec<Cause>,
    /// A deadlock: indices into `cause`, each waits for the next, the last for the first.
    pub cycle: Option<Vec<usize>>,
    /// What was seen, one sentence each.
    pub evidence: Vec<String>,
    pub advice: Option<String>,
    /// Rules that follow from this one.
    pub related: Vec<String>,
}

/// One link of the chain from who suffers to the root.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Cause {
    pub pid: Option<i32>,
    pub tid: Option<i32>,
    /// The thread's name.
    pub thread: Option<String>,
    pub task: Option<Address>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_name: Option<String>,
    /// One line; empty where frame and wait say it all.
    pub summary: String,
    pub wait: Option<Wait>,
    pub frame: Option<Frame>,
    /// How many others stand exactly where this one does.
    pub alike: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

/// What was found, by process and across them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Those of one process, worst first.
    pub processes: Vec<(i32, Vec<Finding>)>,
    /// Those that concern more than one process.
    pub global: Vec<Finding>,
    /// Rules that failed, by process.
    pub problems: Vec<String>,
}

impl Findings {
    pub fn all(&self) -> impl Iterator<Item = &Finding> {
        self.processes.iter().flat_map(|p| &p.1).chain(&self.global)
    }

    pub fn worst(&self) -> Option<Severity> {
        self.all().map(|finding| finding.severity).max()
    }

    /// Whether a second look could change the verdict: all but proved deadlocks of threads. Tasks go on while those of
    /// a loop that runs are read.
    pub fn are_open(&self) -> bool {
        let of_threads = |f: &Finding| f.cycle.is_some() && f.cause.iter().all(|cause| cause.task.is_none());
        self.all().any(|f| judge::is_suspicious(f.severity, f.certainty, of_threads(f)))
    }

    /// Whether a finding leads through this process.
    pub fn speaks_of(&self, pid: i32) -> bool {
        let in_cause = |cause: &Cause| {
            let on = cause.wait.iter().flat_map(|wait| &wait.on);
            cause.pid == Some(pid) || on.into_iter().any(|actor| actor.pid == Some(pid))
        };
        self.all().any(|finding| finding.pids.contains(&pid) || finding.cause.iter().any(in_cause))
    }

    fn put(&mut self, finding: Finding) {
        let Some(pid) = finding.pid.filter(|_| finding.pids.len() < 2) else {
            self.global.push(finding);
            return;
        };
        match self.processes.iter_mut().find(|p| p.0 == pid) {
            Some((_, findings)) => findings.push(finding),
            None => self.processes.push((pid, vec![finding])),
        }
    }
}

/// What one or more looks at the same processes mean; the last is judged, those before it tell what moves.
pub fn diagnose(looks: &[Snapshot]) -> Findings {
    let Some((now, before)) = looks.split_last() else { return Findings::default() };
    // A report without findings is worth more than none.
    catch_unwind(AssertUnwindSafe(|| judged(now, before.first()))).unwrap_or_else(|_| Findings {
        problems: vec!["the findings could not be made: what was read is contradictory".into()],
        ..Findings::default()
    })
}

fn judged(now: &Snapshot, before: Option<&Snapshot>) -> Findings {
    let graph = Graph::new(now, before);
    let two_looks = before.is_some();
    let mut judged: Vec<(Case, &'static rules::Rule, Severity)> = Vec::new();

    let cycles = waits::cycles(&graph);
    for (members, followers) in &cycles {
        // An event loop that waits for a deadlock suffers most.
        let suffers = |&&at: &&usize| {
            let is_loop = graph.parties[at].thread().is_some_and(|t| t.event_loop.is_some());
            is_loop && graph.parties[at].wait().is_some()
        };
        let head = followers.iter().find(suffers).filter(|_| !members.iter().any(|at| suffers(&at)));
        // What goes on among processes that were only followed concerns nobody who was asked about.
        let asked = |&&at: &&usize| !graph.parties[at].process.followed;
        let member = members.iter().filter(asked).find(suffers).or(members.iter().find(asked));
        let Some(head) = head.filter(asked).or(member).or(followers.iter().find(asked)) else { continue };
        let mut case = Case::of(&graph, *head, two_looks);
        // What a loop runs just now is what its thread waits in.
        let current = |at: &&usize| {
            let task = graph.parties[**at].task().map(|task| task.id);
            task.is_some() && case.members().filter_map(Party::thread).any(|t| t.task == task)
        };
        case.followers = followers.iter().filter(|at| !current(at)).count();
        judged.extend(judge(case));
    }
    let in_cycle = |at: usize| graph.fates[at] == Fate::Deadlock;
    let held_up = |at: usize| {
        now.processes.iter().any(|p| !p.followed && p.kin.held_up.contains(&graph.parties[at].pid()))
    };
    let followed = |at: usize| graph.parties[at].process.followed && !held_up(at);
    for at in (0..graph.parties.len()).filter(|&at| !in_cycle(at) && !followed(at)) {
        judged.extend(judge(Case::of(&graph, at, two_looks)));
    }
    one_per_root(&graph, &mut judged);

    let mut findings = Findings::default();
    let mut made: Vec<Finding> =
        judged.iter().map(|(case, rule, severity)| finding(case, rule, *severity)).collect();
    for (finding, (case, ..)) in made.iter_mut().zip(&judged) {
        finding.evidence.extend(crowd::of_one_root(case, now));
    }
    for process in now.processes.iter().filter(|p| !p.followed) {
        let known = |f: &Finding| f.severity > Severity::Info && f.pids.contains(&process.pid);
        let of_process = servers::of_process(process, made.iter().any(known));
        made.extend(of_process);
    }
    let mut made = crowd::merge(made, now);
    // Of equal ones first those that somebody else suffers from.
    made.sort_by_key(|f| std::cmp::Reverse((f.severity, f.request.is_some(), f.cause.len() > 1)));
    made.into_iter().for_each(|finding| findings.put(finding));
    findings
}

fn judge<'g, 'a>(case: Case<'g, 'a>) -> Option<(Case<'g, 'a>, &'static rules::Rule, Severity)> {
    let rule = rules::find(&case)?;
    let severity = judge::severity(&case, rule)?;
    Some((case, rule, severity))
}

/// What the last one waits for.
fn object(graph: &Graph, case: &Case) -> Option<Address> {
    graph.parties[case.root()].wait()?.address
}

/// What is the same root: the same last one; of tasks and threads that wait for no one, the same object.
fn same_root(graph: &Graph, a: &Case, b: &Case) -> bool {
    // Clients who ask for nothing are all the same.
    if a.is_client_idle() && b.is_client_idle() {
        return a.party().pid() == b.party().pid();
    }
    if stand_alike(graph, a, b) {
        return true;
    }
    // What hangs on one who hangs on this one follows from it.
    a.chain.contains(&b.head()) || b.chain.contains(&a.head()) || a.root() == b.root() || {
        // One lock, that several children have got at their fork.
        let forked = |case: &Case| case.culprit().wait().is_some_and(|w| w.detail["forked"] == true);
        let same = object(graph, a).is_some() && object(graph, a) == object(graph, b);
        if same && forked(a) && forked(b) {
            return true;
        }
        let same = same && a.party().pid() == b.party().pid();
        // Who awaits one of several tasks that stand at one object awaits them all.
        let tasks = [a, b].iter().all(|case| case.culprit().task().is_some());
        let nobody = [a, b].iter().all(|case| graph.links[case.root()].to.is_empty());
        same && (tasks || nobody || a.chain.len() == b.chain.len())
    }
}

/// Tasks that stand at one place, or wait for such: each for an object of its own that nobody is known to complete.
fn stand_alike(graph: &Graph, a: &Case, b: &Case) -> bool {
    let alone = |case: &Case| {
        let root = case.culprit();
        let of_own = |w: &Wait| matches!(w.kind.as_str(), "future" | "event") && w.on.is_empty();
        case.cycle.is_none() && case.party().task().is_some() && root.wait().is_some_and(of_own)
    };
    let [first, second] = [a, b].map(|case| &graph.parties[case.root()]);
    a.fate == b.fate && first.pid() == second.pid() && alone(a) && alone(b) && is_alike(first, second)
}

/// Waits for the same as who heads the finding: it is no link of that chain, and does not wait for one who
/// stands beside it.
fn waits_beside(case: &Case, other: &Case, others: &[Case]) -> bool {
    let beside = |at: usize| at == case.head() || others.iter().any(|o| o.head() == at);
    let on_the_way = |at: usize| case.chain[1..].contains(&at);
    !case.chain.contains(&other.head()) && other.second().is_none_or(|at| on_the_way(at) || !beside(at))
}

/// One root, one finding: the one who suffers most heads it.
fn one_per_root<'g, 'a>(
    graph: &'g Graph<'a>,
    judged: &mut Vec<(Case<'g, 'a>, &'static rules::Rule, Severity)>,
) {
    let rank = |case: &Case, severity: Severity| {
        let party = case.party();
        let main = party.thread().is_some_and(|t| t.main);
        // The main task awaits all others: those that it has given the work to say more.
        let sent = party.task().is_some_and(|t| !t.main) && party.user_frame().is_some();
        (
            case.cycle.is_some(),
            case.is_loop(case.head()),
            severity,
            judge::request(case).is_some(),
            main,
            sent,
            case.chain.len(),
        )
    };
    judged.sort_by_key(|(case, _, severity)| std::cmp::Reverse(rank(case, *severity)));
    let mut kept: Vec<(Case, &'static rules::Rule, Severity)> = Vec::new();
    let mut merged: Vec<Vec<Case>> = Vec::new();
    for (case, rule, severity) in judged.drain(..) {
        match kept.iter().position(|(other, ..)| same_root(graph, other, &case)) {
            Some(at) => {
                let (other, _, kept_severity) = &mut kept[at];
                if other.cycle.is_none() {
                    other.crowd.push(case.party().pid());
                    *kept_severity = severity.max(*kept_severity);
                }
                merged[at].push(case);
            }
            None => {
                kept.push((case, rule, severity));
                merged.push(Vec::new());
            }
        }
    }
    for ((case, rule, _), others) in kept.iter_mut().zip(&merged) {
        case.followers += others.iter().filter(|other| waits_beside(case, other, others)).count();
        let alike = others.iter().filter(|other| other.chain.len() == 1 && stand_alike(graph, case, other));
        let alike = alike.filter(|other| object(graph, other) != object(graph, case)).count();
        if alike > 0 {
            (case.is_one_of_many, case.followers) = (true, alike);
        }
        // Three who wait for one are a jam.
        if case.cycle.is_none()
            && let Some(renamed) = rules::find(case).filter(|r| r.id != rule.id)
        {
            *rule = renamed;
        }
    }
    *judged = kept;
}

fn finding(case: &Case, rule: &rules::Rule, severity: Severity) -> Finding {
    let party = case.party();
    let mut pids: Vec<i32> = Vec::new();
    let of_chain = case.chain.iter().map(|&at| case.graph.parties[at].pid());
    for pid in of_chain.chain(case.crowd.iter().copied()) {
        if !pids.contains(&pid) {
            pids.push(pid);
        }
    }
    let mut evidence = advice::evidence(case);
    let mut related = Vec::new();
    if case.followers > 0 {
        let (n, s) = (case.followers, if case.followers == 1 { "" } else { "s" });
        let what = match rule.id {
            "client-idle" => "for a silent client",
            _ if case.is_one_of_many => "at the same place, each for its own",
            _ => "for the same",
        };
        evidence.push(format!("{n} other{s} wait{} {what}", if n == 1 { "s" } else { "" }));
        if case.followers >= 2 && !case.is_one_of_many && !matches!(rule.id, "traffic-jam" | "client-idle") {
            related.push("traffic-jam".to_owned());
        }
    }
    // Whoever accepts the connections does nothing else while it waits.
    let accepts = party.thread().is_some_and(|t| t.main)
        && party.process.server.as_ref().is_some_and(|s| s.heartbeat_from.as_deref() == Some("handler"));
    if case.is_loop(case.head()) && severity == Severity::Critical || accepts {
        for listener in party.process.listens.iter().flatten() {
            if let Some(queued) = listener.queued.filter(|&queued| queued > 0) {
                let s = if queued == 1 { "connection waits" } else { "connections wait" };
                evidence.push(format!("{queued} {s} in the listen queue of {}", listener.address));
                related.push("accept-backlog".to_owned());
            }
        }
    }
    let is_main = party.thread().is_some_and(|t| t.main);
    let (sentences, follows) =
        servers::consequences(party.process, is_main, case.is_loop(case.head()), case.is_client_idle());
    evidence.extend(sentences);
    related.extend(follows.into_iter().map(str::to_owned));
    related.dedup();
    // A lower bound for a task is worth saying from a second on.
    let age = case.age().filter(|age| party.task().is_none() || *age >= 1.0);
    Finding {
        rule: rule.id.into(),
        severity,
        summary: advice::summary(case, rule),
        pids,
        pid: Some(party.pid()),
        tid: party.tid(),
        task: party.task().map(|task| task.id).or_else(|| party.thread()?.task),
        frame: party.blocking_frame(),
        user_frame: party.user_frame(),
        blocked_for: age,
        blocked_for_is: age.map(|_| case.age_is()),
        certainty: certainty(case),
        request: judge::request(case).cloned(),
        cause: causes(case),
        cycle: case.cycle.map(|start| (start..case.chain.len()).collect()),
        evidence,
        advice: Some(advice::advice(case, rule)),
        related,
    }
}

/// What gives the finding its name must be as certain as the way to it.
fn certainty(case: &Case) -> Certainty {
    let of_root = case.culprit().wait().filter(|_| rules::is_named_by_root(case));
    // It may yet come to reading; who gets at an object was searched for; a loop may tidy up.
    let goes_on = case.ignores_cancel() && case.of_awaited().says("goes_on");
    if case.is_held_up() || goes_on || case.is_deserted() && !case.is_surely_deserted() {
        return Certainty::Likely;
    }
    let of_chain = case.graph.certainty(&case.chain, case.cycle.is_some());
    of_root.map_or(of_chain, |wait| wait.certainty.min(of_chain))
}

fn causes(case: &Case) -> Vec<Cause> {
    let parties = &case.graph.parties;
    let cause = |(position, &at): (usize, &usize)| {
        let party = &parties[at];
        let alike = |&other: &usize| {
            !case.chain.contains(&other)
                && parties[other].pid() == party.pid()
                && is_alike(&parties[other], party)
        };
        Cause {
            pid: Some(party.pid()),
            tid: party.tid(),
            thread: party.thread().and_then(|thread| thread.name.clone()),
            task: party.task().map(|task| task.id),
            task_name: party.task().and_then(|task| task.name.clone()),
            summary: String::new(),
            wait: party.wait().map(|wait| as_it_counts(case, at, wait)),
            frame: party.telling_frame().cloned(),
            // Only of those who are to blame: others that suffer are counted in the evidence.
            alike: if position == 0 { 0 } else { (0..parties.len()).filter(|n| alike(n)).count() as u64 },
        }
    };
    case.chain.iter().enumerate().map(cause).collect()
}

/// That its time is over brings nobody on whose loop is blocked; and of an item that nobody is left to put in, the
/// wait itself does not know.
fn as_it_counts(case: &Case, at: usize, wait: &Wait) -> Wait {
    let mut wait = wait.clone();
    if case.graph.links[at].by_loop {
        (wait.deadline, wait.ends_in) = (None, None);
    }
    if at == case.root() && case.cycle.is_none() && case.is_deserted() && wait.detail.is_object() {
        wait.detail["deserted"] = serde_json::Value::Bool(true);
    }
    wait
}

/// Stands exactly where the other does.
fn is_alike(a: &Party, b: &Party) -> bool {
    let kind = |party: &Party| party.wait().map(|wait| (wait.kind.clone(), wait.call.clone()));
    let place = |party: &Party| party.telling_frame().map(|f| (f.file.clone(), f.line, f.function.clone()));
    a.thread().is_some() == b.thread().is_some()
        && place(a).is_some()
        && place(a) == place(b)
        && kind(a) == kind(b)
}
