//! Joins what was read of several processes: who holds a shared semaphore, which worker of a pool has the
//! job, which parent a lock was inherited from. Pure, and may be done again when more has been read.

use serde_json::{Value, json};

use crate::kin::{At, SemLocks};
use crate::snapshot::{Actor, Certainty, Process, Thread, Wait};

/// A semaphore without a limit of its own: what is taken and given back tells nothing of a holder.
const SEM_VALUE_MAX: i64 = i32::MAX as i64;

/// Completes the waits of all processes.
pub fn settle(processes: &mut [Process]) {
    let known: Vec<Process> = processes.to_vec();
    let all = All { processes: &known };
    for process in processes {
        for (thread, before) in process.threads.iter_mut().zip(&known_of(&known, process.pid).threads) {
            if let Some(wait) = &mut thread.waits_on {
                all.settle(wait, process.pid, before);
            }
        }
        // Of what tasks wait for only the work of a pool is with other processes.
        let of_tasks = process.tasks.iter_mut().filter_map(|task| task.waits_on.as_mut());
        of_tasks.filter(|wait| wait.detail["workers"].is_array()).for_each(|wait| all.pool(wait, 0.0));
    }
}

fn known_of(known: &[Process], pid: i32) -> &Process {
    known.iter().find(|p| p.pid == pid).expect("it was copied from there")
}

/// The semaphores that threads of this process wait for without anybody being known who will act.
pub fn semaphores_waited_for(process: &Process) -> Vec<String> {
    let waits = process.threads.iter().filter_map(|t| t.waits_on.as_ref());
    waits.filter_map(|wait| semaphore(process, wait)).collect()
}

/// A plain lock that is locked and that nobody in its process is known to hold.
pub fn is_ownerless(wait: &Wait) -> bool {
    wait.kind == "lock"
        && wait.on.is_empty()
        && wait.call.as_deref().is_some_and(|c| c.starts_with("threading."))
        && wait.detail.get("locked").and_then(Value::as_bool) != Some(false)
        && wait.detail.get("signal").and_then(Value::as_bool) != Some(true)
}

fn semaphore(process: &Process, wait: &Wait) -> Option<String> {
    let of_queue = || wait.detail.get("lock")?.get("semaphore");
    let signal = || wait.detail.get("signal").filter(|signal| signal.is_string());
    let address = wait.detail.get("semaphore").or_else(signal).or_else(of_queue)?;
    let address = address.as_str()?;
    process.kin.semaphore(u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?)
}

fn asleep(thread: &Thread) -> f64 {
    thread.os.as_ref().and_then(|os| os.blocked_for).unwrap_or(0.0)
}

/// How long no pool of this process has had a result.
fn no_result_for(process: &Process) -> f64 {
    let hands_out = |t: &&Thread| t.frames.iter().any(|f| f.function == "_handle_results");
    process.threads.iter().filter(hands_out).map(asleep).reduce(f64::min).unwrap_or(0.0)
}

struct All<'a> {
    processes: &'a [Process],
}

impl All<'_> {
    fn process(&self, pid: i32) -> Option<&Process> {
        self.processes.iter().find(|p| p.pid == pid)
    }

    fn settle(&self, wait: &mut Wait, pid: i32, thread: &Thread) {
        let Some(own) = self.process(pid) else { return };
        if wait.detail.get("semaphore").is_some() {
            self.held_semaphore(wait, own, thread);
        } else if wait.detail.get("signal").is_some_and(Value::is_string) {
            self.signal(wait, own);
        } else if wait.detail.get("workers").is_some() {
            self.pool(wait, no_result_for(own).max(asleep(thread)));
        } else if is_ownerless(wait) {
            self.inherited(wait, own);
        }
        if wait.kind == "process" {
            self.described(wait, own);
        }
        if wait.kind == "queue" && wait.detail["lock"].is_object() {
            self.turn(wait, own, thread);
        }
        let gets =
            matches!(wait.detail.get("operation").and_then(Value::as_str), Some("get" | "read" | "recv"));
        if gets && matches!(wait.kind.as_str(), "queue" | "pipe" | "socket") {
            self.abandoned(wait, own, thread);
        }
    }

    // ------------------------------------------------------------ semaphores

    /// Who has taken it: the counts of all who share it say so.
    fn held_semaphore(&self, wait: &mut Wait, own: &Process, waiter: &Thread) {
        let Some(id) = semaphore(own, wait) else { return };
        let looked: Vec<(&Process, &SemLocks)> = self
            .processes
            .iter()
            .filter_map(|p| Some((p, p.kin.semlocks.iter().find(|s| s.id == id)?)))
            .collect();
        let Some((_, mine)) = looked.iter().find(|(p, _)| p.pid == own.pid) else { return };
        // Free again by now: whoever waits is on its way.
        if looked.iter().any(|(_, s)| s.value != Some(0)) {
            return;
        }
        let max = wait.detail["max"].as_i64().unwrap_or(SEM_VALUE_MAX);
        let mut on: Vec<Actor> = Vec::new();
        for (process, found) in &looked {
            for object in found.objects.iter().filter(|o| o.count > 0) {
                let thread = process.threads.iter().find(|t| t.ident == Some(object.last_tid));
                let holder = Actor {
                    pid: Some(process.pid),
                    tid: thread.and_then(|t| t.tid),
                    thread: thread.and_then(|t| t.name.clone()),
                    task: None,
                    task_name: None,
                };
                if !on.contains(&holder) {
                    on.push(holder);
                }
            }
        }
        let everybody = mine.sharers.as_ref().is_some_and(|sharers| {
            sharers.iter().all(|pid| match self.process(*pid) {
                Some(p) => {
                    !p.kin.maps(&id)
                        || looked.iter().any(|(l, s)| l.pid == *pid && s.complete && !s.objects.is_empty())
                }
                None => false,
            })
        });
        let itself = |a: &Actor| a.pid == Some(own.pid) && a.tid.is_some() && a.tid == waiter.tid;
        // It had none when its stack was read: it has got it since.
        if wait.detail["count"] == 0 && on.iter().any(itself) {
            return;
        }
        wait.certainty = match &on[..] {
            // Taken by the waiter itself, or as a signal by many: it may be somebody else's to release.
            [one] if !itself(one) && max == 1 => Certainty::Proved,
            [] => Certainty::Proved,
            _ => Certainty::Likely,
        };
        wait.detail["owner"] = json!(on.first().and_then(|a| a.tid));
        // A count that others add to may be added to by any of them: what one process has taken, its child gives back.
        let others = mine.sharers.as_ref().is_none_or(|s| s.iter().any(|pid| *pid != own.pid));
        let is_count = wait.detail["slot"] == false;
        if is_count && others && on.iter().all(|a| a.pid == Some(own.pid)) {
            on.clear();
            wait.certainty = Certainty::Likely;
            wait.detail["open"] = json!(true);
            wait.detail["signal"] = json!(true);
        }
        // Taken more often than given back, by who could take it once: others give it back.
        let is_baton = max == 1
            && wait.detail["recursive"] != true
            && looked.iter().any(|(_, s)| s.objects.iter().any(|o| o.count > 1));
        if is_baton {
            on.clear();
            wait.certainty = Certainty::Likely;
            wait.detail["open"] = json!(true);
            wait.detail["signal"] = json!(true);
        }
        wait.detail["sharers"] = json!(mine.sharers);
        let open = wait.detail["open"] == true;
        wait.detail["orphan"] = json!(on.is_empty() && !open && everybody && max < SEM_VALUE_MAX);
        wait.on = on;
    }

    /// The lock by which readers or writers of a queue take turns: if who has it has ended, the queue is not
    /// what is waited for.
    fn turn(&self, wait: &mut Wait, own: &Process, waiter: &Thread) {
        let turn = wait.detail["lock"].clone();
        let text = |key: &str| turn[key].as_str().map(str::to_owned);
        let mut lock = Wait {
            kind: "lock".into(),
            address: serde_json::from_value(turn["address"].clone()).ok(),
            label: text("label"),
            call: text("call"),
            on: Vec::new(),
            detail: json!({ "semaphore": turn["semaphore"], "max": turn["max"], "owner": null }),
            ..wait.clone()
        };
        self.held_semaphore(&mut lock, own, waiter);
        if lock.detail["orphan"] == true {
            *wait = lock;
        }
    }

    /// An event, a condition, a barrier, or items to be taken: any of those who share it may give the sign.
    fn signal(&self, wait: &mut Wait, own: &Process) {
        let Some(id) = semaphore(own, wait) else { return };
        let Some(mine) = own.kin.semlocks.iter().find(|s| s.id == id) else { return };
        // Who is at the barrier already waits for the others.
        let is_here = |p: &Process| {
            let mut waits = p.threads.iter().filter_map(|t| t.waits_on.as_ref());
            wait.kind == "barrier"
                && waits.any(|w| w.kind == "barrier" && semaphore(p, w).as_deref() == Some(&id))
        };
        let shares = |pid: &&i32| {
            **pid != own.pid && self.process(**pid).is_none_or(|p| p.kin.maps(&id) && !is_here(p))
        };
        let Some(sharers) = &mine.sharers else { return };
        let sharers: Vec<i32> = sharers.iter().filter(shares).copied().collect();
        let here = wait.detail["here"].as_array().is_some_and(|h| !h.is_empty());
        if sharers.is_empty() && !here {
            wait.detail["setters"] = json!([]);
            wait.certainty = Certainty::Proved;
        }
        // Of a queue its pipe tells who is at the other end.
        let by_pipe = wait.kind == "queue" && wait.detail["operation"] != "join";
        // Who waits for the next item will not call another one done.
        let rests = |pid: i32| {
            let waits =
                self.process(pid).into_iter().flat_map(|p| &p.threads).filter_map(|t| t.waits_on.as_ref());
            wait.kind == "queue"
                && waits.into_iter().any(|w| w.kind == "queue" && w.detail["operation"] == "get")
        };
        for pid in sharers.iter().filter(|pid| !by_pipe && !rests(**pid)) {
            let actor = Actor { pid: Some(*pid), tid: None, thread: None, task: None, task_name: None };
            if !wait.on.iter().any(|a| a.pid == Some(*pid)) {
                wait.on.push(actor);
            }
        }
        wait.detail["sharers"] = json!(sharers);
    }

    // ------------------------------------------------------------ pools

    /// The workers that are at the job; those that are at others, if it is still in the queue; nobody, if
    /// all of them wait for the next one.
    fn pool(&self, wait: &mut Wait, waited: f64) {
        if !wait.detail["result_handler"].is_null() {
            return;
        }
        let workers: Vec<i32> = wait.detail["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|pid| i32::try_from(pid.as_i64()?).ok())
            .collect();
        let job = wait.detail["job"].as_i64();
        let mut at_it: Vec<Actor> = Vec::new();
        let mut busy: Vec<Actor> = Vec::new();
        let mut idle = 0;
        for pid in &workers {
            let Some(worker) = self.process(*pid) else { continue };
            for (tid, its) in &worker.kin.jobs {
                let thread = worker.threads.iter().find(|t| t.tid == Some(*tid));
                let name = thread.and_then(|t| t.name.clone());
                let actor =
                    Actor { pid: Some(*pid), tid: Some(*tid), thread: name, task: None, task_name: None };
                match its {
                    At::Job(its) if job.is_none_or(|job| job == *its) => at_it.push(actor),
                    // Whoever has not asked for work yet will take it, too, when its initializer is done.
                    At::Job(_) | At::Start => busy.push(actor),
                    At::Rest => idle += 1,
                }
            }
        }
        let waiting = wait.detail["in_queue"].as_i64().unwrap_or(0);
        if !at_it.is_empty() {
            wait.on = at_it;
            wait.certainty = Certainty::Proved;
        } else if let Ok(feeder) = serde_json::from_value::<Actor>(wait.detail["feeder"].clone()) {
            wait.on = vec![feeder];
            wait.certainty = Certainty::Proved;
        } else if let Some(oldest) = self.replaced(wait, &workers, waited) {
            wait.on.clear();
            wait.detail["nobody"] = json!(true);
            wait.detail["workers_die"] = json!(oldest);
            // SIGCHLD of each of them interrupts the wait.
            wait.blocked_for = Some(waited);
        } else if !busy.is_empty() {
            wait.on = busy;
            wait.detail["queued_at"] = json!(waiting);
        } else if idle == workers.len() && idle > 0 && waiting == 0 && self.is_pending(wait) {
            wait.on.clear();
            wait.certainty = Certainty::Proved;
            wait.detail["nobody"] = json!(true);
            wait.detail["lost"] = json!(true);
        }
        if wait.kind == "process" {
            // Joined are all; one is named by its command.
            wait.detail["pid"] = json!(wait.on.first().and_then(|a| a.pid));
        }
    }

    /// How long the oldest worker of a pool has lived, in seconds, if all of them have come after the wait
    /// began and none has asked for work: those before them have died where they start, and so it goes on.
    fn replaced(&self, wait: &Wait, workers: &[i32], waited: f64) -> Option<f64> {
        /// A pool that was just made looks the same.
        const SURELY: f64 = 1.0;
        let seen: Vec<&Process> = workers.iter().filter_map(|pid| self.process(*pid)).collect();
        let start = |p: &&Process| p.kin.jobs.iter().all(|(_, at)| *at == At::Start);
        let oldest = seen.iter().filter_map(|p| p.uptime).fold(0.0, f64::max);
        // Of those that are gone before they can be read, their numbers tell that others were before them.
        let made = || wait.detail["first_worker"].as_u64().is_some_and(|first| first > workers.len() as u64);
        let dies = wait.detail["workers_stay"] == true
            && seen.iter().all(start)
            && oldest + SURELY < waited
            && (!seen.is_empty() || made());
        dies.then_some(oldest)
    }

    fn is_pending(&self, wait: &Wait) -> bool {
        wait.kind == "future" || wait.detail["pending"].as_i64().is_some_and(|n| n > 0)
    }

    // ------------------------------------------------------------ the rest

    /// A lock that was locked when the process was forked: who held it is a thread of the parent.
    fn inherited(&self, wait: &mut Wait, own: &Process) {
        let python = |t: &&Thread| t.interpreter.is_some();
        let alone = own.threads.iter().filter(python).count() == 1;
        let parent = own.parent.and_then(|pid| self.process(pid));
        if !alone || !parent.is_some_and(|p| p.kin.shares_address_space(&own.kin)) {
            return;
        }
        wait.detail["forked"] = json!(true);
        wait.detail["orphan"] = json!(true);
        let holds = |t: &&Thread| t.holds.iter().any(|l| Some(l.address) == wait.address);
        let holder = parent.and_then(|p| p.threads.iter().find(holds));
        wait.certainty = Certainty::Proved;
        if let Some(holder) = holder {
            wait.detail["held_in_parent_by"] =
                json!({ "pid": own.parent, "tid": holder.tid, "thread": holder.name });
        }
    }

    /// Command and state of a child that is joined.
    fn described(&self, wait: &mut Wait, own: &Process) {
        let Some(pid) = wait.on.first().and_then(|a| a.pid) else { return };
        if !wait.detail["command"].is_null() {
            return;
        }
        let child = own.children.iter().flatten().find(|c| c.pid == pid);
        let state = |p: &Process| p.main_thread()?.os.as_ref()?.state.map(String::from);
        let (command, state) = match (child, self.process(pid)) {
            (Some(child), _) => (child.command.join(" "), child.state.clone()),
            (None, Some(p)) => (p.command.join(" "), state(p)),
            (None, None) => return,
        };
        wait.detail["command"] = json!(command);
        wait.detail["state"] = json!(state);
    }

    /// A queue or a pipe whose other end nobody has open but the process itself, and there no thread that
    /// could use it: the others have gone.
    fn abandoned(&self, wait: &mut Wait, own: &Process, waiter: &Thread) {
        let Some(ends) = wait.detail["ends"].as_array().filter(|ends| !ends.is_empty()) else { return };
        let only_we = ends.iter().all(|e| e["pid"].as_i64() == Some(i64::from(own.pid)));
        let nothing_left = wait.detail["not_written_yet"].as_i64().unwrap_or(0) == 0;
        if !only_we || !nothing_left || own.kin.may_be_signalled() {
            return;
        }
        let ours: Vec<i32> = ends
            .iter()
            .flat_map(|e| e["fds"].as_array().into_iter().flatten())
            .filter_map(|fd| i32::try_from(fd.as_i64()?).ok())
            .collect();
        let reaches = |t: &&Thread| {
            let fds = own.kin.fds.iter().find(|(tid, _)| Some(*tid) == t.tid).map(|f| &f.1);
            fds.is_none_or(|fds| ours.iter().any(|fd| fds.has(*fd)))
        };
        let others = || own.threads.iter().filter(|t| t.interpreter.is_some() && t.tid != waiter.tid);
        // Threads of this process that are known to put items in stand in `on`; of a pipe, it is itself.
        let named = wait.on.iter().any(|a| a.tid.is_some());
        // A descriptor is a number, which any code may have.
        let bare = matches!(wait.kind.as_str(), "pipe" | "socket");
        if named || others().any(|t| reaches(&t) || bare && t.frames.iter().any(|f| f.user)) {
            return;
        }
        wait.detail["nobody"] = json!(true);
        wait.certainty = if others().count() == 0 { Certainty::Proved } else { Certainty::Likely };
    }
}
