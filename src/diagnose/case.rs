//! One case: who suffers, the chain to the root, and what will become of it.

use rustc_hash::FxHashSet;

use super::waits::{Fate, Graph, Party, Who, number, word};
use super::{acting, deserted};
use crate::snapshot::{Activity, EventLoop, Frame, Precision, Wait};

pub struct Case<'g, 'a> {
    pub graph: &'g Graph<'a>,
    /// From who suffers to the root.
    pub chain: Vec<usize>,
    /// Where in the chain the cycle begins; it goes on to the end.
    pub cycle: Option<usize>,
    pub fate: Fate,
    /// How many others wait for the same root.
    pub followers: usize,
    /// Their processes.
    pub crowd: Vec<i32>,
    /// They stand where this one stands, each with an object of its own.
    pub is_one_of_many: bool,
    pub two_looks: bool,
}

impl<'g, 'a> Case<'g, 'a> {
    pub fn of(graph: &'g Graph<'a>, head: usize, two_looks: bool) -> Self {
        let (chain, closed) = graph.chain(head);
        let fate = graph.fates[head];
        // A circle in which somebody has a deadline or moves is none.
        let cycle = closed.filter(|_| fate == Fate::Deadlock);
        Case { graph, chain, cycle, fate, followers: 0, crowd: Vec::new(), is_one_of_many: false, two_looks }
    }

    pub fn head(&self) -> usize {
        self.chain[0]
    }

    pub fn root(&self) -> usize {
        *self.chain.last().expect("a chain begins with who suffers")
    }

    pub fn second(&self) -> Option<usize> {
        self.chain.get(1).copied()
    }

    pub fn party(&self) -> &Party<'a> {
        &self.graph.parties[self.head()]
    }

    pub fn culprit(&self) -> &Party<'a> {
        &self.graph.parties[self.root()]
    }

    pub fn wait(&self) -> Option<&'a Wait> {
        let at = self.cycle.map_or(self.head(), |start| self.chain[start]);
        self.graph.parties[at].wait()
    }

    pub fn kind(&self) -> &str {
        self.wait().map_or("", |wait| &wait.kind)
    }

    pub fn call(&self) -> &str {
        self.wait().and_then(|wait| wait.call.as_deref()).unwrap_or("")
    }

    pub fn operation(&self) -> &str {
        self.wait().and_then(|wait| word(wait, "operation")).unwrap_or("")
    }

    pub fn event_loop(&self) -> Option<&'a EventLoop> {
        self.party().thread()?.event_loop.as_ref()
    }

    pub fn is_loop(&self, at: usize) -> bool {
        self.graph.parties[at]
            .thread()
            .is_some_and(|t| t.event_loop.as_ref().is_some_and(|l| l.state != "polling"))
    }

    /// How long it has lasted: the loop's iteration, or the wait.
    pub fn age(&self) -> Option<f64> {
        let iteration = self.event_loop().filter(|l| l.state != "polling").and_then(|l| l.iteration_age);
        // Of a task it is known since its loop fell asleep, or by its connection.
        let awaited = || self.party().task().and_then(|_| self.graph.parties[self.awaited()].blocked_for());
        // Its worker has done nothing else since.
        let worked = || self.graph.parties[self.second().filter(|_| self.is_at_work())?].blocked_for();
        let longest = |of: Option<f64>| of.into_iter().chain(awaited()).chain(worked()).reduce(f64::max);
        let for_gil = || self.graph.gil_for(self.head());
        iteration.or_else(|| longest(self.party().blocked_for().or_else(for_gil)))
    }

    /// A loop sleeps although there is something for it to run: for this task itself, or for whoever may wake it.
    pub fn is_unwoken(&self) -> bool {
        self.says("done") || self.says("unwoken")
    }

    /// A task that waits for what a worker thread is at.
    pub fn is_at_work(&self) -> bool {
        let begun = |w: &Wait| w.detail["executor"] == true && !super::waits::is_queued(w);
        self.party().task().is_some() && self.wait().is_some_and(begun)
    }

    /// Of a task it is a lower bound, for its loop may have been awake meanwhile; so is a wait for the GIL.
    pub fn age_is(&self) -> Precision {
        let is_iteration =
            || self.event_loop().is_some_and(|l| l.state != "polling" && l.iteration_age.is_some());
        let of_thread = || self.party().thread()?.os.as_ref()?.blocked_for_is;
        match () {
            _ if is_iteration() => Precision::Exact,
            _ if self.party().task().is_some() || self.is_gil() => Precision::AtLeast,
            _ => of_thread().unwrap_or(Precision::Exact),
        }
    }

    /// Whether any other thread of the process moves, waits for work, or for somebody outside.
    pub fn process_works(&self) -> bool {
        let parties = &self.graph.parties;
        // A main thread that parks at a sign leaves the work to a pool, which may be at rest.
        let is_parked = matches!(self.kind(), "event" | "condition" | "barrier");
        let works = |&at: &usize| {
            let party = &parties[at];
            party.pid() == self.party().pid()
                && party.thread().is_some_and(|t| !t.frames.is_empty())
                && self.graph.fates[at] <= Fate::Outside
                && !is_bystander(party)
                && (is_parked || !serves_a_pool(party))
        };
        (0..parties.len()).filter(|at| !self.chain.contains(at)).any(|at| works(&at))
    }

    pub fn call_is(&self, ends: &[&str]) -> bool {
        ends.iter().any(|end| self.call() == *end || self.call().ends_with(&format!(".{end}")))
    }

    pub fn call_ends(&self, names: &[&str]) -> bool {
        let last = self.call().rsplit('.').next().unwrap_or("");
        names.contains(&last)
    }

    pub fn call_starts(&self, module: &str) -> bool {
        self.call().starts_with(module)
    }

    /// A frame between the application's own code and the call that blocks.
    pub fn library_call(&self, module: &str, function: &str) -> bool {
        let frames = self.party().frames();
        let own = frames.iter().position(|frame| frame.user).unwrap_or(frames.len());
        frames[..own]
            .iter()
            .any(|f| f.function == function && f.module.as_deref().is_some_and(|m| m.starts_with(module)))
    }

    pub fn has_frame(&self, module: &str, function: &str) -> bool {
        frame_in(self.party(), module, function)
    }

    pub fn says(&self, key: &str) -> bool {
        self.wait().is_some_and(|wait| wait.detail.get(key).and_then(|v| v.as_bool()) == Some(true))
    }

    /// A semaphore that some take from and others add to, who are there.
    pub fn is_count(&self) -> bool {
        let adds =
            |w: &Wait| w.detail["signal"] == true || w.detail["open"] == true && w.detail["slot"] == false;
        self.wait().is_some_and(|w| w.kind == "semaphore" && adds(w))
    }

    /// A manager's thread waits on its client's behalf for a sign: so the client is what is parked.
    pub fn is_parked_at_manager(&self) -> bool {
        let Some(second) = self.second().map(|at| &self.graph.parties[at]) else { return false };
        let is_sign =
            |w: &Wait| matches!(w.kind.as_str(), "event" | "condition" | "barrier" | "semaphore" | "queue");
        self.kind() == "socket"
            && frame_in(second, "multiprocessing.managers", "serve_client")
            && second.wait().is_some_and(is_sign)
    }

    /// The first of the workers of a pool of threads all of whom have stood for long, with work in their queue.
    pub fn heads_stuck_pool(&self) -> bool {
        const LONG: f64 = 5.0;
        let (graph, process) = (self.graph, self.party().process);
        let is_worker = |at: usize| {
            let party = &graph.parties[at];
            let rests = party.wait().is_some_and(|w| w.detail["pool"] == true && w.kind == "queue");
            party.pid() == self.party().pid()
                && frame_in(party, "concurrent.futures.thread", "_worker")
                && party.thread().is_some()
                && !rests
        };
        let stuck = |at: usize| {
            graph.fates[at] >= Fate::Outside && graph.parties[at].blocked_for().is_some_and(|b| b >= LONG)
        };
        let mut workers = (0..graph.parties.len()).filter(|at| is_worker(*at)).peekable();
        process.kin.queued_work.is_some_and(|n| n > 0)
            && workers.peek() == Some(&self.head())
            && workers.all(stuck)
    }

    pub fn wait_is(&self, kind: &str, call_part: &str) -> bool {
        self.kind() == kind && self.call().contains(call_part)
    }

    pub fn tcp_state(&self, state: &str) -> bool {
        let now = self.wait().and_then(|wait| word(wait, "tcp_state")).unwrap_or("");
        now.eq_ignore_ascii_case(state)
    }

    /// What two sides are at before anything is sent: `resolve`, `tls-handshake`.
    pub fn phase(&self) -> &str {
        self.wait().and_then(|wait| word(wait, "phase")).unwrap_or("")
    }

    pub fn is_io(&self) -> bool {
        matches!(self.kind(), "socket" | "unknown" | "poll" | "")
    }

    pub fn waits_for_own_process(&self) -> bool {
        let pid = self.party().pid();
        self.wait().is_some_and(|wait| wait.on.iter().any(|actor| actor.pid == Some(pid)))
    }

    pub fn is_named_pipe(&self) -> bool {
        let path = || self.wait()?.detail["path"].as_str();
        self.kind() == "pipe" && path().is_some_and(|path| path.starts_with('/'))
    }

    pub fn waits_for_pool(&self) -> bool {
        self.wait().is_some_and(super::waits::is_queued)
    }

    pub fn os_state(&self) -> Option<char> {
        self.party().thread()?.os.as_ref()?.state
    }

    pub fn is_computing(&self) -> bool {
        let Some(thread) = self.party().thread() else { return false };
        thread.waits_on.as_ref().is_none_or(|wait| wait.kind == "cpu") && thread.activity == Activity::Running
    }

    pub fn is_gil(&self) -> bool {
        let waits = self.party().thread().is_some_and(|t| t.activity == Activity::WaitingForGil);
        self.second().is_some() && (self.kind() == "gil" || self.wait().is_none() && waits)
    }

    /// The root waits for an item that nobody of its process is left to put in.
    pub fn is_deserted(&self) -> bool {
        deserted::waits_in_vain(self.graph, self.root())
    }

    pub fn is_surely_deserted(&self) -> bool {
        self.is_deserted() && deserted::is_certain(self.graph, self.root())
    }

    /// Who has the GIL is asleep.
    pub fn root_sleeps(&self) -> bool {
        let os = self.second().and_then(|at| self.graph.parties[at].thread()?.os.as_ref());
        os.is_some_and(|os| matches!(os.state, Some('S' | 'D')))
    }

    pub fn ready(&self) -> u64 {
        self.event_loop().and_then(|l| l.ready).unwrap_or(0)
    }

    pub fn is_nested_loop(&self) -> bool {
        self.party().frames().iter().filter(|f| f.function == "run_forever").count() > 1
    }

    // ------------------------------------------------------------ tasks

    /// Nothing will ever happen on the loop of the root any more: no timer, no descriptor, no other task; nor does
    /// any thread.
    pub fn loop_is_lifeless(&self) -> bool {
        let works = |(at, party): (usize, &Party)| {
            let thread = party.thread().filter(|_| party.pid() == self.culprit().pid());
            thread.is_some_and(|t| t.event_loop.is_none()) && self.graph.fates[at] <= Fate::Unknown
        };
        self.loop_is_still() && !self.graph.parties.iter().enumerate().any(works)
    }

    /// The same, of the loop alone.
    fn loop_is_still(&self) -> bool {
        let root = self.culprit();
        let quiet = |party: &Party| party.wait().is_some_and(|w| w.detail["quiet"] == true);
        let lives = |(at, party): (usize, &Party)| {
            let idle = self.graph.fates[at] == Fate::Idle && !quiet(party);
            let of_loop =
                party.task().is_some_and(|task| task.tid == root.tid()) && party.pid() == root.pid();
            of_loop && (self.graph.fates[at] < Fate::Idle || idle)
        };
        quiet(root) && !self.graph.parties.iter().enumerate().any(lives)
    }

    /// The main task awaits another one, for which nothing is left that could happen: neither on the loop, nor would
    /// any thread or signal that is known reach what it waits for.
    pub fn main_waits_in_vain(&self) -> bool {
        let root = self.culprit();
        self.chain.len() > 1
            && self.loop_is_still()
            && !root.process.kin.may_be_signalled()
            // An attribute: others were meant to have it.
            && root.wait().and_then(|w| w.label.as_ref()).is_some_and(|label| label.contains('.'))
    }

    /// The main task alone, in a process with other threads, which may be what it is there for.
    pub fn is_main_beside_threads(&self) -> bool {
        let party = self.party();
        let is_other = |t: &&crate::snapshot::Thread| t.event_loop.is_none();
        party.task().is_some_and(|t| t.main)
            && self.chain.len() == 1
            && party.process.threads.iter().any(|t| is_other(&t))
    }

    /// `asyncio.run` has its result, and waits: for the tasks that it has cancelled, or for its pool of threads.
    pub fn is_exiting(&self) -> bool {
        frame_in(self.party(), "asyncio.base_events", "shutdown_default_executor")
            || self.outlives_run()
            || self.is_stopping()
    }

    /// A server that was told to stop, and waits for requests.
    pub fn is_stopping(&self) -> bool {
        self.wait().is_some_and(|w| w.detail["stopping"].is_object())
    }

    /// How long the requests that it waits for have been open.
    pub fn stopping_for(&self) -> Option<f64> {
        let requests = self.graph.links[self.head()].to.iter().filter(|_| self.is_stopping());
        let requests = requests.filter_map(|&at| self.graph.parties[at].task()?.request.as_ref());
        requests.filter_map(|r| r.quiet_for.or(r.age)).reduce(f64::max)
    }

    /// A task that `asyncio.run` has cancelled at its end, and waits for.
    pub fn outlives_run(&self) -> bool {
        let party = self.party();
        let of_loop = |t: &&crate::snapshot::Thread| t.tid.is_some() && t.tid == party.tid();
        let thread = party.task().and_then(|_| party.process.threads.iter().find(of_loop));
        let cancels =
            |f: &Frame| f.function == "_cancel_all_tasks" && f.module.as_deref() == Some("asyncio.runners");
        thread.is_some_and(|t| t.frames.iter().any(cancels))
    }

    /// A server that begins to listen when the application has started.
    pub fn is_starting(&self) -> bool {
        const STARTING: [(&str, &str); 2] =
            [("uvicorn.lifespan.on", "startup"), ("hypercorn.asyncio.lifespan", "wait_for_startup")];
        let parties = self.chain.iter().map(|&at| &self.graph.parties[at]);
        parties.into_iter().any(|p| STARTING.iter().any(|(module, function)| frame_in(p, module, function)))
    }

    /// A server whose application does not get through its startup: nobody is left who could end what that waits for,
    /// for no startup waits for a signal.
    pub fn starts_in_vain(&self) -> bool {
        let says = |key: &str| self.culprit().wait().is_some_and(|w| w.detail[key] == true);
        self.is_starting() && (says("nobody") || says("by_signal"))
    }

    /// Connections that wait until this process, or another one that listens with it, accepts them.
    pub fn backlog(&self) -> u64 {
        let listens = self.party().process.listens.iter().flatten();
        listens.filter(|l| l.backlog.is_some()).filter_map(|l| l.queued).max().unwrap_or(0).into()
    }

    /// What is waited for is a task that was asked to end, and waits on. Of several that are awaited all were: one
    /// alone may have been interrupted, and have gone on with something else.
    pub fn ignores_cancel(&self) -> bool {
        let parties = &self.graph.parties;
        let awaited = self.awaited();
        let by = self.chain.windows(2).find(|pair| pair[1] == awaited).map(|pair| pair[0]);
        let expected = |by: usize| {
            let aborts = parties[by].wait().is_none_or(|w| w.detail["aborting"] != false);
            aborts && self.graph.links[by].to.iter().all(|&at| parties[at].is_cancelled())
        };
        self.cycle.is_none() && parties[awaited].is_cancelled() && by.is_none_or(expected)
    }

    /// How long ago the time of what is waited for was over, by which it was cancelled.
    pub fn overdue(&self) -> Option<f64> {
        self.graph.parties[self.awaited()].wait()?.detail["overdue"].as_f64()
    }

    /// Waits until the connections of a closed server have gone.
    pub fn is_closing(&self) -> bool {
        self.wait().is_some_and(|w| w.detail["closing"].is_object())
    }

    /// Somebody waits for the end of this one.
    pub fn is_awaited(&self) -> bool {
        (0..self.graph.parties.len()).any(|at| self.graph.links[at].to.contains(&self.head()))
    }

    /// The main task waits for the end of this one, and otherwise for none that goes on, or may.
    pub fn keeps_main(&self) -> bool {
        let (parties, links) = (&self.graph.parties, &self.graph.links);
        let is_main = |p: &Party| p.task().is_some_and(|t| t.main) && p.is_beside(self.party());
        let mut left: Vec<usize> = (0..parties.len()).filter(|&at| is_main(&parties[at])).collect();
        let (mut met, mut last) = (FxHashSet::default(), Vec::new());
        while let Some(at) = left.pop() {
            let joins = links[at].all && parties[at].wait().is_some_and(|w| w.kind == "task");
            match joins && met.insert(at) {
                true => left.extend(&links[at].to),
                false if met.contains(&at) => {}
                false => last.push(at),
            }
        }
        // One at rest may be there to be at rest; not so who waits for another, or for the end of a program.
        let runs_program = |at: usize| {
            let (chain, _) = self.graph.chain(at);
            chain.iter().any(|at| parties[*at].wait().is_some_and(|w| w.kind == "process"))
        };
        let is_lost = |at: &usize| match self.graph.fates[*at] {
            Fate::Idle => {
                !links[*at].to.is_empty() || parties[*at].wait().is_some_and(|w| w.detail["nobody"] == true)
            }
            fate => fate > Fate::Idle || runs_program(*at),
        };
        !met.is_empty() && last.contains(&self.head()) && last.iter().all(is_lost)
    }

    /// Somebody waits for this task, and not for ever.
    pub fn is_awaited_with_deadline(&self) -> bool {
        let waits_here = |&at: &usize| self.graph.links[at].to.contains(&self.head());
        let mut others = (0..self.graph.parties.len()).filter(waits_here);
        others.any(|at| self.graph.parties[at].wait().is_some_and(|w| w.ends_in.is_some()))
    }

    /// The case of the one at the end of the chain.
    pub fn of_root(&self) -> Self {
        Case { chain: vec![self.root()], crowd: Vec::new(), cycle: None, ..*self }
    }

    /// Tasks await tasks, or futures that others complete: the first of them that waits for something else. Who is
    /// no task, itself.
    pub fn awaited(&self) -> usize {
        let is_task = |at: usize| self.graph.parties[at].task().is_some();
        // The only one who could give the sign waits for somebody outside.
        let signs = |at: usize| self.graph.links[at].to.len() == 1 && self.graph.fates[at] == Fate::Outside;
        let awaits = |at: usize| {
            let of_server = |w: &Wait| w.detail["closing"].is_object() || w.detail["stopping"].is_object();
            let wait = self.graph.parties[at].wait().filter(|w| is_task(at) && !of_server(w));
            wait.is_some_and(|w| match w.kind.as_str() {
                "task" | "future" => true,
                "event" => signs(at),
                _ => false,
            })
        };
        let pairs = self.chain.windows(2).take_while(|pair| awaits(pair[0]) && is_task(pair[1]));
        pairs.last().map_or(self.head(), |pair| pair[1])
    }

    /// The case of that task.
    pub fn of_awaited(&self) -> Self {
        let from = self.chain.iter().position(|at| *at == self.awaited()).unwrap_or(0);
        Case { chain: self.chain[from..].to_vec(), crowd: Vec::new(), cycle: None, ..*self }
    }

    // ------------------------------------------------------------ cycles

    pub fn members(&self) -> impl Iterator<Item = &Party<'a>> {
        let from = self.cycle.unwrap_or(self.chain.len());
        self.chain[from..].iter().map(|&at| &self.graph.parties[at])
    }

    pub fn cycle_len(&self) -> usize {
        self.members().count()
    }

    pub fn in_cycle(&self, fits: impl Fn(&Wait) -> bool) -> bool {
        self.members().filter_map(|party| party.wait()).any(fits)
    }

    /// One of them waits for a task that the blocked loop of another would have to run.
    pub fn closes_over_loop(&self) -> bool {
        let from = self.cycle.unwrap_or(self.chain.len());
        self.chain[from..].iter().any(|&at| self.graph.links[at].by_loop)
    }

    pub fn cycle_crosses(&self) -> bool {
        let mut pids = self.members().map(Party::pid);
        let first = pids.next();
        pids.any(|pid| Some(pid) != first)
    }

    /// Processes that only read from each other, in which others than those of the cycle could write: threads that get
    /// at the other end, or who serve and may be asked to.
    pub fn is_open_exchange(&self) -> bool {
        let reads = |party: &Party| {
            party.wait().is_some_and(|w| match w.kind.as_str() {
                "pipe" | "socket" | "queue" => {
                    !matches!(word(w, "operation"), Some("write" | "send" | "put"))
                }
                _ => false,
            })
        };
        let from = self.cycle.unwrap_or(self.chain.len());
        let members = &self.chain[from..];
        let parties = &self.graph.parties;
        let could_write = |at: usize| {
            let party = &parties[at];
            let free = !members.contains(&at) && self.graph.fates[at] < Fate::Deadlock;
            let serves =
                || self.graph.fates[at] == Fate::Idle && party.wait().is_some_and(acting::is_for_clients);
            let reaches = || {
                let waits = members.iter().filter(|m| parties[**m].pid() != party.pid());
                waits.filter_map(|m| parties[*m].wait()).any(|w| acting::reaches(party, w))
            };
            // When the work of a pool is done, callbacks are called of which no frame knows.
            let works = || {
                frame_in(party, "concurrent.futures.thread", "_worker")
                    && self.graph.fates[at] < Fate::Endless
                    && !serves_a_pool(party)
            };
            free && party.thread().is_some_and(|t| !t.frames.is_empty()) && (serves() || reaches() || works())
        };
        let pids: Vec<i32> = self.members().map(Party::pid).collect();
        self.members().all(reads)
            && (0..parties.len()).any(|at| pids.contains(&parties[at].pid()) && could_write(at))
    }

    /// Somebody sits in front of it: a prompt, a notebook, a debugger, a run of tests.
    pub fn is_attended(&self) -> bool {
        const CONSOLES: &[(&str, &str)] = &[
            ("IPython.core.interactiveshell", "run_cell"),
            ("code", "runcode"),
            ("cmd", "cmdloop"),
            ("bdb", "dispatch_line"),
            ("_pytest.runner", "pytest_runtest_protocol"),
            ("unittest.suite", "run"),
        ];
        // `python -m asyncio`, whose module has the name of every main program.
        let of_asyncio = |f: &crate::snapshot::Frame| {
            f.function == "callback"
                && f.file.as_deref().is_some_and(|file| file.ends_with("/asyncio/__main__.py"))
        };
        CONSOLES.iter().any(|(module, function)| self.has_frame(module, function))
            || self.party().frames().iter().any(of_asyncio)
    }

    /// Threads beside the main one that only read from each other, or from a child that waits for work, and for whose
    /// end or answer nobody else waits: a connection at rest. Others may write on it when they like.
    pub fn is_aside(&self) -> bool {
        let from = self.cycle.unwrap_or(self.chain.len());
        let members = &self.chain[from..];
        let reads = |party: &Party| {
            let receives = |w: &crate::snapshot::Wait| {
                matches!(w.kind.as_str(), "pipe" | "socket")
                    && matches!(word(w, "operation"), Some("read" | "recv"))
            };
            let is_beside = party.thread().is_some_and(|t| !t.main) || acting::waits_for_parent(party);
            is_beside && party.wait().is_some_and(receives)
        };
        let waits_for_one = |at: usize| {
            // Who gets items waits for work; the GIL is given back at once.
            let passes = |w: &crate::snapshot::Wait| {
                w.kind == "gil" || w.kind == "queue" && word(w, "operation") == Some("get")
            };
            // Of other processes nobody knows which thread they wait for.
            let party = &self.graph.parties[at];
            let inside = self.members().any(|member| member.pid() == party.pid());
            let waits = inside && party.wait().is_some_and(|w| !passes(w));
            waits && !members.contains(&at) && self.graph.links[at].to.iter().any(|to| members.contains(to))
        };
        self.members().all(reads) && !(0..self.graph.parties.len()).any(waits_for_one)
    }

    /// Who still has the output open that is read of a child, although no child of the reader's does.
    pub fn keeps_output(&self) -> Option<i32> {
        let party = self.party();
        let wait = party.wait().filter(|w| {
            let of_child = w.call.as_deref().is_some_and(|call| call.starts_with("subprocess."));
            of_child && w.kind == "pipe" && word(w, "operation") == Some("read")
        })?;
        let lives = |pid: i32| {
            let children = party.process.children.iter().flatten();
            children.into_iter().any(|c| c.pid == pid && c.state.as_deref() != Some("Z"))
        };
        let pid = wait.on.first()?.pid.filter(|pid| *pid != party.pid())?;
        wait.on.iter().all(|on| on.pid.is_some_and(|pid| !lives(pid))).then_some(pid)
    }

    pub fn cycle_of_tasks(&self) -> bool {
        self.members().all(|party| matches!(party.who, Who::Task(_)))
    }

    pub fn cycle_has_frame(&self, module: &str, function: &str) -> bool {
        let pids: Vec<i32> = self.members().map(Party::pid).collect();
        // The feeder is a thread of its own beside the one that ends.
        let all = self.graph.parties.iter().filter(|party| pids.contains(&party.pid()));
        all.into_iter()
            .any(|party| frame_in(party, module, function) && party.wait().is_some_and(|w| w.kind == "pipe"))
    }
}

/// Waits for the keyboard, or what stands for it.
/// Waits for the keyboard, and what it does then has nothing to do with the others.
pub fn is_bystander(party: &Party) -> bool {
    let reads = |w: &Wait| matches!(w.kind.as_str(), "pipe" | "file") && number(w, "fd") == Some(0);
    let calls_nothing = || party.tid().is_some_and(|tid| party.process.kin.bystanders.contains(&tid));
    party.wait().is_some_and(reads) && calls_nothing()
}

/// A thread of the standard library's own that waits until others give it something to do: whether it is
/// there says nothing about the application.
pub fn serves_a_pool(party: &Party) -> bool {
    const MACHINERY: &[(&str, &str)] = &[
        ("multiprocessing.queues", "_feed"),
        ("multiprocessing.pool", "worker"),
        ("multiprocessing.pool", "_handle_workers"),
        ("multiprocessing.pool", "_handle_tasks"),
        ("multiprocessing.pool", "_handle_results"),
        ("concurrent.futures.process", "run"),
        ("concurrent.futures.process", "_queue_management_worker"),
        ("logging.handlers", "_monitor"),
    ];
    let frames = party.frames();
    let at_rest = || {
        let is =
            |f: &Frame| f.function == "_worker" && f.module.as_deref() == Some("concurrent.futures.thread");
        frames.first().is_some_and(is)
    };
    party.wait().is_some()
        && frames.iter().all(|frame| !frame.user)
        && (at_rest() || MACHINERY.iter().any(|(module, function)| frame_in(party, module, function)))
}

pub fn frame_in(party: &Party, module: &str, function: &str) -> bool {
    party.frames().iter().any(|f| f.function == function && f.module.as_deref() == Some(module))
}
