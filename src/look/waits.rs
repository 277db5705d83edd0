//! What the descriptors of the waits lead to, and until when each wait lasts: joins what was read in the
//! window with what `/proc` said after it. Pure, so that a capture goes the same way.

use std::collections::BTreeSet;
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use crate::mask;
use crate::snapshot::{Activity, Actor, Certainty, Process, Request, Socket, Wait};
use crate::stdlib::Seen;
use crate::stdlib::databases::statement;
use crate::stdlib::os::{self, Deadline, On, OsWait};
use crate::stdlib::remote::Remote;
use crate::stdlib::servers;
use crate::target::clocks::Allowance;
use crate::target::facts::{End, FdFacts, FdKind, ProcessFacts, ThreadFacts};
use crate::target::fds::{self, LockCall, MAX_POLLED, Wanted};
use crate::target::file_locks;
use crate::target::memory::Addr;
use crate::target::net;
use crate::target::outputs;

/// Descriptors that tasks wait on; of the rest only their number is known.
const MAX_OF_TASKS: usize = 64;
/// What is in line on a loop that has slept for so long, nobody has woken it for, seconds.
const SLEPT_ON: f64 = 1.0;
/// Processes that are named for the other end of one connection.
const MAX_SERVING: usize = 4;
/// How long the descriptors of other processes may be searched for the other ends.
const SEARCH: Duration = Duration::from_millis(100);

/// What asyncio's room has said of a connection, and the system knows nothing of.
const KEPT: [&str; 8] = ["partial", "alone", "closing", "phase", "body", "overdue", "unread", "goes_on"];

/// Asks `/proc` for what the waits are about.
pub fn look(seen: &Seen, facts: &mut ProcessFacts) {
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut want =
        |fd: i32, other_end: bool, lock: Option<LockCall>| match wanted.iter_mut().find(|w| w.fd == fd) {
            Some(known) => {
                known.other_end |= other_end;
                known.lock = known.lock.or(lock);
            }
            None => wanted.push(Wanted { fd, other_end, lock }),
        };
    for os in seen.os.values() {
        let search = !os.for_work;
        match &os.on {
            On::Fd { fd, operation } => want(*fd, search && *operation != "sync", None),
            On::Poll { fds } => fds.iter().take(MAX_POLLED).for_each(|(fd, _)| want(*fd, search, None)),
            On::Epoll { fd } => want(*fd, search, None),
            On::FileLock { fd, call } => want(*fd, false, Some(*call)),
            On::Pidfd { fd } => want(*fd, false, None),
            On::Child { .. } => facts.inner_children = fds::inner_children(facts),
            On::Database => facts.databases = file_locks::databases(facts.pid),
            On::Locked { path } => facts.locked.extend(file_locks::of_path(facts.pid, path)),
            On::Path { .. } | On::Sleep | On::Other => {}
        }
    }
    // Where the connections of a pool lead that nobody gives back.
    if seen.waits.values().any(|wait| wait.is_for_pool()) {
        let outgoing = facts.connections.iter().flatten().filter(|s| s.peer.is_some());
        outgoing.take(MAX_POLLED).for_each(|s| want(s.fd, true, None));
    }
    for fd in seen.clients.values() {
        want(*fd, false, None);
    }
    let of_tasks = seen.tasks.iter().filter_map(|task| descriptor(task.waits_on.as_ref()?));
    for fd in of_tasks.collect::<BTreeSet<_>>().into_iter().take(MAX_OF_TASKS) {
        want(fd, true, None);
    }
    if undated(seen).next().is_some() {
        let of = by_peer(facts.connections.iter().flatten());
        let undated = undated(seen).filter_map(|r| of.get(r.client.as_deref()?));
        undated.take(MAX_POLLED).for_each(|fd| want(*fd, false, None));
    }
    facts.heartbeat = seen
        .part
        .as_ref()
        .and_then(|part| fds::heartbeat(facts.pid, part.heartbeat_fd?, servers::HEARTBEAT_FILE));
    facts.held_up = outputs::held_up(facts);
    wanted.sort_unstable_by_key(|w| w.fd);
    if !wanted.is_empty() {
        facts.fds = fds::look(facts, &wanted, Allowance::of(SEARCH));
    }
}

/// The same for a process whose memory says nothing: a child that is no Python.
pub fn look_bare(facts: &mut ProcessFacts) {
    let mut seen = Seen::default();
    for (at, thread) in (0..).zip(&facts.threads) {
        if let Some((_, os)) = thread.syscall.as_ref().and_then(os::bare) {
            seen.os.insert(at, os);
        }
    }
    look(&seen, facts);
}

/// Completes the waits that the system calls alone tell.
pub fn settle_bare(process: &mut Process, facts: &ProcessFacts, show_secrets: bool) {
    let join = Join { facts, show_secrets };
    for (thread, known) in process.threads.iter_mut().zip(&facts.threads) {
        let Some((mut wait, mut os)) = known.syscall.as_ref().and_then(os::bare) else { continue };
        join.complete(&mut wait, &mut os, Some(known));
        wait.blocked_for = known.os.blocked_for;
        thread.activity = if os.for_work { Activity::Idle } else { Activity::Waiting };
        thread.waits_on = Some(wait);
    }
}

/// Completes the waits.
pub fn settle(seen: &mut Seen, facts: &ProcessFacts, tids: &FxHashMap<Addr, i32>, show_secrets: bool) {
    let join = Join { facts, show_secrets };
    let by_tid: FxHashMap<i32, &ThreadFacts> = facts.threads.iter().map(|t| (t.ns_tid, t)).collect();
    for (tstate, wait) in &mut seen.waits {
        let thread = tids.get(tstate).and_then(|tid| by_tid.get(tid)).copied();
        let blocked_for = thread.and_then(|t| t.os.blocked_for);
        let database = wait.detail.get_mut("database").map(Value::take);
        if let Some(os) = seen.os.get_mut(tstate) {
            join.complete(wait, os, thread);
            // Between requests, or before the first: nothing is being done for anybody.
            let waits_for_client = wait.detail["inbound"] == true && wait.detail["operation"] == "recv";
            os.for_work |= waits_for_client && !seen.requests.contains_key(tstate);
            // A server of datagrams: whoever sends nothing waits for what anybody may send.
            let is_udp = wait.detail["family"].as_str().is_some_and(|family| family.starts_with("udp"));
            os.for_work |= is_udp && wait.detail["peer"].is_null() && !os.sends;
        }
        join.name(wait, seen.remotes.get(tstate));
        // The resolver has several times of its own, one after the other.
        if wait.detail["phase"] == "resolve" {
            (wait.deadline, wait.ends_in) = (None, None);
        } else if let Some(deadline) = seen.deadlines.get(tstate) {
            set_deadline(wait, *deadline, blocked_for);
        }
        if !wait.asks_again() {
            wait.blocked_for = wait.blocked_for.or(blocked_for);
        }
        if wait.is_for_pool() {
            wait.detail["pool"]["peers"] = join.peers();
        }
        // The pipe below a queue is read without a timeout, unless it is polled first.
        if wait.kind == "queue" && wait.deadline.is_none() && seen.os.contains_key(tstate) {
            wait.deadline = Some("none".into());
        }
        since_last_byte(wait);
        if let Some(database) = database {
            if !wait.detail.is_object() {
                wait.detail = json!({});
            }
            wait.detail["database"] = join.shown(database);
        }
        // Python runs the handlers of signals in the main thread.
        if thread.is_some_and(|t| t.tid == facts.pid)
            && matches!(wait.kind.as_str(), "event" | "condition" | "thread" | "queue")
            && let Some(detail) = wait.detail.as_object_mut()
        {
            detail.insert("signals".into(), json!(handled(facts.caught)));
        }
    }
    // While a loop sleeps in its selector none of its tasks moves.
    let polling = |tid: &FxHashMap<Addr, i32>, tstate: &Addr| {
        let thread = by_tid.get(tid.get(tstate)?)?;
        Some((thread.tid, thread.os.blocked_for?))
    };
    let asleep: FxHashMap<i32, f64> = seen
        .loops
        .iter()
        .filter(|(_, l)| l.state == "polling")
        .filter_map(|(tstate, _)| polling(tids, tstate))
        .collect();
    for task in &mut seen.tasks {
        let Some(wait) = &mut task.waits_on else { continue };
        let database = wait.detail.get_mut("database").map(Value::take);
        if let Some(fd) = descriptor(wait) {
            let operation = wait.detail["operation"].as_str().unwrap_or("recv").to_owned();
            let kept = KEPT.map(|key| wait.detail.get_mut(key).map(Value::take));
            if let Some(facts) = join.fd(fd) {
                join.one(wait, facts, &operation);
            }
            for (key, value) in KEPT.into_iter().zip(kept) {
                value.into_iter().for_each(|value| wait.detail[key] = value);
            }
            join.name(wait, seen.task_remotes.get(&task.id.0));
            wait.blocked_for = wait.blocked_for.or_else(|| quiet(wait));
        }
        if let Some(database) = database {
            wait.detail["database"] = join.shown(database);
        }
        let since = task.tid.and_then(|tid| asleep.get(&tid)).copied();
        // Any timer wakes a loop: a short sleep of it says nothing of how long its tasks have waited.
        wait.blocked_for = wait.blocked_for.or(since.filter(|since| *since >= SLEPT_ON));
        if since.is_none_or(|since| since < SLEPT_ON) {
            may_be_woken(wait);
        }
    }
}

/// What a loop has in line it comes to within moments, and until then a queue has items and getters.
fn may_be_woken(wait: &mut Wait) {
    let flagged = ["done", "unwoken"].iter().any(|key| wait.detail[*key] == true);
    let has_items = wait.kind == "queue" && wait.detail["operation"] == "get" && wait.detail["size"] != 0;
    let Some(detail) = wait.detail.as_object_mut().filter(|_| flagged || has_items) else { return };
    detail.retain(|key, _| key != "done" && key != "unwoken");
    detail.insert("may_come".into(), json!(true));
}

/// Since when the client of a request has been waiting: its last byte was the end of it. Where a framework keeps
/// the time itself, that is better.
pub fn date_requests(seen: &mut Seen, facts: &ProcessFacts) {
    let tcp = |fd: i32| {
        let socket = facts.fds.iter().find(|f| f.fd == fd).and_then(|f| f.socket.as_ref())?;
        socket.tcp.filter(|tcp| tcp.received != Some(0))
    };
    let of_peer = by_peer(facts.fds.iter().filter_map(|f| f.socket.as_ref()));
    let Seen { clients, requests, tasks, .. } = seen;
    let of_threads = requests.iter_mut().map(|(tstate, request)| (clients.get(tstate).copied(), request));
    let of_tasks = tasks.iter_mut().filter_map(|task| Some((None, task.request.as_mut()?)));
    for (fd, request) in of_threads.chain(of_tasks) {
        let fd = fd.or_else(|| of_peer.get(request.client.as_deref()?).copied());
        let Some(tcp) = fd.and_then(tcp) else { continue };
        request.age = request.age.or(Some(tcp.received_ago));
        request.quiet_for = Some(tcp.received_ago.min(tcp.sent_ago));
    }
}

/// Sessions of a database that this very process has open, and that likely keep others of it waiting.
pub fn own_sessions(seen: &Seen, pid: i32) -> Vec<i32> {
    let of_tasks = seen.tasks.iter().filter_map(|t| t.waits_on.as_ref());
    let mut found: Vec<i32> =
        seen.waits.values().chain(of_tasks).filter_map(|wait| own_session(wait, pid)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The only one of these: it works on the same tables, as the sessions of other programs need not.
fn own_session(wait: &Wait, pid: i32) -> Option<i32> {
    let all = wait.detail["blockers"].as_array()?;
    let mut own = all.iter().filter(|one| one["client"]["pid"].as_i64() == Some(i64::from(pid)));
    let one = own.next().filter(|_| own.next().is_none())?;
    one["pid"].as_i64().and_then(|backend| i32::try_from(backend).ok())
}

/// Whoever has the connection of the session that is in the way must go on.
pub fn name_owners(seen: &mut Seen, pid: i32, owners: &FxHashMap<i32, Actor>) {
    let Seen { waits, tasks, .. } = seen;
    let of_tasks = tasks.iter_mut().filter_map(|t| t.waits_on.as_mut());
    for wait in waits.values_mut().chain(of_tasks) {
        let Some(owner) = own_session(wait, pid).and_then(|backend| owners.get(&backend)) else { continue };
        wait.on = vec![owner.clone()];
        wait.certainty = Certainty::Likely;
    }
}

/// Requests of which only the client is known.
fn undated(seen: &Seen) -> impl Iterator<Item = &Request> {
    let of_tasks = seen.tasks.iter().filter_map(|task| task.request.as_ref());
    seen.requests.values().chain(of_tasks).filter(|r| r.client.is_some())
}

/// Descriptors by the address of the other side, as `Request` has it.
fn by_peer<'a>(sockets: impl Iterator<Item = &'a Socket>) -> FxHashMap<String, i32> {
    sockets.filter_map(|socket| Some((socket.peer.clone()?, socket.fd))).collect()
}

/// A question to a name server, or to a service of the machine that asks it: no Python has opened that socket.
fn asks_name_server(wait: &Wait) -> bool {
    let detail = &wait.detail;
    let peer = detail["peer"].as_str().unwrap_or_default();
    let service = ["/nscd/socket", "io.systemd.Resolve"].iter().any(|name| peer.ends_with(name));
    detail["timeout"].is_null()
        && (service
            || detail["family"].as_str().is_some_and(|f| f.starts_with("udp")) && peer.ends_with(":53"))
}

/// The signals that programs handle in order to stop, to reload, to wake up. SIGINT is not among them:
/// Python itself handles it.
fn handled(caught: u64) -> Vec<&'static str> {
    const NAMES: [(u32, &str); 6] =
        [(1, "SIGHUP"), (3, "SIGQUIT"), (10, "SIGUSR1"), (12, "SIGUSR2"), (14, "SIGALRM"), (15, "SIGTERM")];
    NAMES.iter().filter(|(number, _)| caught >> (number - 1) & 1 == 1).map(|(_, name)| *name).collect()
}

/// Who polls a connection again and again, each time for a short while, waits for as long as nothing has
/// come and nothing was sent; and the end of one poll is not the end of its wait.
fn since_last_byte(wait: &mut Wait) {
    let is_answer = wait.detail["operation"] == "recv";
    let (Some(quiet), Some(blocked), Some(left)) = (quiet(wait), wait.blocked_for, wait.ends_in) else {
        return;
    };
    // Longer than this poll can last in all: it is not the first.
    if is_answer && quiet > blocked + left + 1.0 {
        wait.blocked_for = Some(quiet);
        (wait.deadline, wait.ends_in) = (None, None);
    }
}

/// How long nothing has come from a peer whose answer is waited for, and nothing was sent to it; or how long what
/// is to be sent has not been.
fn quiet(wait: &Wait) -> Option<f64> {
    let (tcp, operation) = (&wait.detail["tcp"], wait.detail["operation"].as_str()?);
    let [received, sent] = ["received_ago", "sent_ago"].map(|key| tcp[key].as_f64());
    match operation {
        _ if wait.kind != "socket" => None,
        "recv" if wait.detail["inbound"] != true => received.zip(sent).map(|(r, s)| r.min(s)),
        "send" => sent,
        _ => None,
    }
}

/// The descriptor that a task waits on.
fn descriptor(wait: &Wait) -> Option<i32> {
    let fd = wait.detail["fd"].as_i64().filter(|_| matches!(wait.kind.as_str(), "socket" | "pipe"))?;
    i32::try_from(fd).ok()
}

/// Rooms that know better have said so.
fn set_deadline(wait: &mut Wait, deadline: Deadline, blocked_for: Option<f64>) {
    if wait.deadline.is_none() && wait.ends_in.is_none() {
        let (word, left) = match deadline {
            Deadline::Never => ("none", None),
            Deadline::In(left) => ("at", Some(left)),
            Deadline::After(timeout) => ("at", blocked_for.map(|b| (timeout - b).max(0.0))),
        };
        (wait.deadline, wait.ends_in) = (Some(word.into()), left);
    }
    if wait.kind == "sleep" {
        let seconds = match deadline {
            Deadline::Never => None,
            Deadline::In(left) => blocked_for.map(|b| b + left),
            Deadline::After(timeout) => Some(timeout),
        };
        wait.detail = json!({ "seconds": seconds });
    }
    if wait.kind == "socket" && wait.detail["timeout"].is_null() {
        // The descriptor of a socket with a timeout is polled for as long.
        if let Deadline::After(timeout) = deadline {
            wait.detail["timeout"] = json!(timeout);
        }
    }
}

struct Join<'a> {
    facts: &'a ProcessFacts,
    show_secrets: bool,
}

impl Join<'_> {
    fn fd(&self, fd: i32) -> Option<&FdFacts> {
        self.facts.fds.iter().find(|f| f.fd == fd)
    }

    fn command(&self, command: &[String]) -> Vec<String> {
        if self.show_secrets { command.to_vec() } else { mask::command(command) }
    }

    /// Whom the process is connected to, with what local servers say of themselves.
    fn peers(&self) -> Value {
        let one = |facts: &FdFacts| {
            let socket = facts.socket.as_ref().filter(|s| self.is_inbound(s) != Some(true))?;
            let peer = socket.peer_process.as_ref()?;
            let title = self.command(&peer.command).join(" ");
            Some(json!({ "fd": facts.fd, "peer": socket.peer, "pid": peer.pid, "title": title.trim() }))
        };
        json!(self.facts.fds.iter().filter_map(one).collect::<Vec<_>>())
    }

    /// Sessions that may hold what this one's session waits for. A single one is likely to.
    fn blockers(&self, wait: &mut Wait, facts: &FdFacts) {
        let describe = |s: &crate::target::facts::Session| {
            let client = s.client.as_ref();
            json!({
                "pid": s.pid,
                "title": if self.show_secrets { s.title.clone() } else { mask::text(&s.title) },
                "client": client.map(|c| json!({ "pid": c.pid, "command": self.command(&c.command) })),
            })
        };
        wait.detail["blockers"] = json!(facts.sessions.iter().map(describe).collect::<Vec<_>>());
        if let [one] = &facts.sessions[..]
            && let Some(client) = one.client.as_ref().filter(|c| c.pid != self.facts.pid)
        {
            wait.on = vec![os::process(client.pid)];
            wait.certainty = Certainty::Likely;
        }
    }

    /// A database and what it was asked, as it may be shown.
    fn shown(&self, mut database: Value) -> Value {
        if self.show_secrets {
            return database;
        }
        if let Some(statement) = database["statement"].as_str() {
            database["statement"] = json!(mask::text(&statement::cut(statement)));
        }
        for key in ["host", "name"] {
            if let Some(text) = database[key].as_str() {
                database[key] = json!(mask::text(text));
            }
        }
        database
    }

    fn complete(&self, wait: &mut Wait, os: &mut OsWait, thread: Option<&ThreadFacts>) {
        match &os.on {
            On::Fd { fd, operation } => {
                let Some(facts) = self.fd(*fd) else { return };
                os.for_work |= facts.listening || facts.wakes;
                self.one(wait, facts, operation);
            }
            On::Poll { fds } => {
                let fds: Vec<i32> = fds.iter().map(|f| f.0).collect();
                self.several(wait, os, &fds);
            }
            On::Epoll { fd } => {
                let watched = self.fd(*fd).map(|f| f.watches.clone()).unwrap_or_default();
                match watched[..] {
                    [one] if !os.for_work => {
                        if let Some(facts) = self.fd(one) {
                            self.one(wait, facts, "recv");
                        }
                    }
                    _ => self.several(wait, os, &watched),
                }
            }
            On::FileLock { fd, .. } => {
                let Some(facts) = self.fd(*fd) else { return };
                let lock = facts.lock.as_ref();
                let holder = lock.and_then(|l| l.holder.as_ref());
                wait.label = facts.target.clone();
                wait.on = holder.map(|h| os::process(h.pid)).into_iter().collect();
                let own = lock.filter(|l| !l.fds.is_empty());
                wait.detail = json!({
                    "fd": fd,
                    "path": facts.target,
                    "lock": lock.map(|l| &l.kind),
                    "ends": own.map(|l| json!([{ "pid": self.facts.pid, "fds": l.fds }])),
                    "holder": holder.map(|h| json!({ "pid": h.pid, "command": self.command(&h.command) })),
                });
            }
            On::Database => {
                // Which of several it asks for, the connection does not tell.
                wait.detail = json!({ "asks_again": true });
                let [one] = &self.facts.databases[..] else {
                    wait.on.clear();
                    return;
                };
                let holder = one.holder.as_ref();
                wait.label = Some(one.path.clone());
                if !one.own {
                    wait.on = holder.map(|h| os::process(h.pid)).into_iter().collect();
                }
                wait.detail["path"] = json!(one.path);
                wait.detail["own"] = json!(one.own);
                wait.detail["holder"] =
                    json!(holder.map(|h| json!({ "pid": h.pid, "command": self.command(&h.command) })));
            }
            On::Locked { path } => {
                let found = self.facts.locked.iter().find(|one| one.path == *path);
                if let Some(holder) = found.and_then(|one| one.holder.as_ref()) {
                    wait.on = vec![os::process(holder.pid)];
                    wait.certainty = Certainty::Proved;
                    wait.detail["holder"] =
                        json!({ "pid": holder.pid, "command": self.command(&holder.command) });
                }
            }
            On::Child { pid } => self.child(wait, *pid),
            On::Pidfd { fd } => self.child(wait, self.fd(*fd).and_then(|f| f.pid)),
            On::Path { path } => {
                // fs/pipe.c: the opening of a FIFO waits for its other end.
                let fifo =
                    |t: &ThreadFacts| matches!(t.os.wchan.as_deref(), Some("wait_for_partner" | "fifo_open"));
                if thread.is_some_and(fifo) {
                    wait.kind = "pipe".into();
                    wait.label = Some(path.clone());
                    wait.detail = json!({ "path": path, "operation": "open", "ends": [] });
                }
            }
            On::Sleep | On::Other => {}
        }
    }

    /// A wait on one descriptor.
    fn one(&self, wait: &mut Wait, facts: &FdFacts, operation: &str) {
        if wait.kind == "queue" {
            self.queue(wait, facts);
            return;
        }
        match facts.kind {
            FdKind::Socket => {
                let unknown = || net::socket(facts.fd, None);
                let mut socket = facts.socket.clone().unwrap_or_else(unknown);
                socket.timeout = wait.detail["timeout"].as_f64();
                if let Some(peer) = &mut socket.peer_process {
                    peer.command = self.command(&peer.command);
                    wait.on = vec![os::process(peer.pid)];
                    // A server that forks for each connection has it as well as the child that serves it.
                    if socket.family.as_deref().is_some_and(|f| f.starts_with("tcp")) {
                        wait.on.extend(self.ends(facts).into_iter().take(MAX_SERVING));
                        let first = wait.on[0].pid;
                        let mut rest = wait.on.split_off(1);
                        rest.retain(|end| end.pid != first);
                        wait.on.extend(rest);
                    }
                }
                let operation = match operation {
                    _ if facts.listening => "accept",
                    "send" if socket.tcp_state.as_deref() == Some("SYN_SENT") => "connect",
                    "read" => "recv",
                    "write" => "send",
                    other => other,
                };
                wait.kind = "socket".into();
                wait.label = None;
                // With a timeout it is polled until it may be written to.
                if operation == "connect" && wait.call.as_deref() == Some("socket.socket.send") {
                    wait.call = Some("socket.socket.connect".into());
                }
                wait.detail = serde_json::to_value(&socket).unwrap_or_default();
                wait.detail["operation"] = json!(operation);
                wait.detail["inbound"] = json!(self.is_inbound(&socket));
                if !facts.sessions.is_empty() {
                    self.blockers(wait, facts);
                }
                wait.detail["ends"] = self.described_ends(facts);
                if facts.unaccepted {
                    wait.detail["unaccepted"] = json!(true);
                    // Its own process, too: that may be the one that should.
                    wait.on = facts.ends.iter().flatten().map(|end| os::process(end.pid)).collect();
                }
            }
            FdKind::Pipe | FdKind::Tty => {
                let operation = if matches!(operation, "write" | "send") { "write" } else { "read" };
                wait.kind = "pipe".into();
                wait.label = Some(label(facts.fd, facts.kind));
                wait.on = self.ends(facts);
                wait.detail = json!({
                    "fd": facts.fd,
                    "path": facts.target,
                    "tty": facts.kind == FdKind::Tty,
                    "operation": operation,
                    "ends": self.described_ends(facts),
                });
            }
            FdKind::File => {
                wait.kind = "file".into();
                wait.label = facts.target.clone();
                wait.detail = json!({ "fd": facts.fd, "path": facts.target, "operation": operation, "lock": null, "holder": null });
            }
            FdKind::Pidfd => self.child(wait, facts.pid),
            FdKind::Epoll | FdKind::Other => {
                if wait.kind != "socket" {
                    wait.label = facts.target.clone().or(wait.label.take());
                    wait.detail = json!({ "fd": facts.fd, "operation": operation });
                }
            }
        }
        // Neither read nor write says how long.
        if wait.deadline.is_none()
            && matches!(wait.kind.as_str(), "socket" | "pipe")
            && matches!(operation, "read" | "write")
        {
            wait.deadline = Some("none".into());
        }
    }

    /// The other side by the name that the process has for it, and what the two are at.
    fn name(&self, wait: &mut Wait, remote: Option<&Remote>) {
        if !matches!(wait.kind.as_str(), "socket" | "poll") || wait.detail["inbound"] == true {
            return;
        }
        let mut remote = remote.cloned().unwrap_or_default();
        let resolved = remote.resolved.take();
        if asks_name_server(wait) {
            remote.phase = Some("resolve");
            remote.host = remote.host.or(resolved);
        }
        if remote.is_empty() {
            return;
        }
        let peer = wait.detail["peer"].as_str().and_then(|peer| peer.rsplit_once(':')).map(|(host, _)| host);
        remote.host = remote.host.filter(|host| Some(host.trim_matches(['[', ']'])) != peer);
        let shown = |text: &str| if self.show_secrets { text.to_owned() } else { mask::text(text) };
        remote.tell(&mut wait.detail, shown);
    }

    /// Whether a client made this connection: it leads to an address that the process listens on.
    fn is_inbound(&self, socket: &crate::snapshot::Socket) -> Option<bool> {
        let local = socket.local.as_deref()?;
        let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
        let same = |listener: &str| match local.starts_with(['/', '@']) {
            true => listener == local,
            false => port(listener) == port(local),
        };
        Some(self.facts.listens.as_ref()?.iter().any(|l| same(&l.address)))
    }

    /// The pipe below a queue of processes.
    fn queue(&self, wait: &mut Wait, facts: &FdFacts) {
        wait.detail["ends"] = self.described_ends(facts);
        for end in self.ends(facts).into_iter().filter(|end| end.pid != Some(self.facts.pid)) {
            if !wait.on.contains(&end) {
                wait.on.push(end);
            }
        }
    }

    /// Who has the other end, with their descriptors; null where not everybody could be asked.
    fn described_ends(&self, facts: &FdFacts) -> Value {
        let ends = facts.ends.as_ref().filter(|_| !facts.cut_short);
        let end = |e: &End| json!({ "pid": e.pid, "command": self.command(&e.command), "fds": e.fds });
        json!(ends.map(|ends| ends.iter().map(end).collect::<Vec<_>>()))
    }

    fn several(&self, wait: &mut Wait, os: &mut OsWait, fds: &[i32]) {
        let known: Vec<&FdFacts> = fds.iter().filter_map(|fd| self.fd(*fd)).collect();
        // Who polls a listening socket serves.
        os.for_work |= known.iter().any(|f| f.listening || f.wakes);
        wait.label = None;
        if !os.for_work {
            for facts in &known {
                let ends = match &facts.socket {
                    Some(s) => s.peer_process.iter().map(|p| os::process(p.pid)).collect(),
                    None => self.ends(facts),
                };
                let new = ends.into_iter().filter(|e| !wait.on.contains(e)).collect::<Vec<_>>();
                wait.on.extend(new);
            }
        }
        // What a child writes on its standard output and error, which one call reads until both are closed.
        let is_pipe = |facts: &&&FdFacts| facts.kind == FdKind::Pipe;
        if wait.call.as_deref().is_some_and(|call| call.starts_with("subprocess."))
            && let Some(first) = known.iter().find(is_pipe)
        {
            let on = std::mem::take(&mut wait.on);
            self.one(wait, first, "read");
            wait.on = on;
            return;
        }
        let one = |facts: &&FdFacts| {
            let mut one = json!({ "fd": facts.fd, "target": facts.target });
            if let Some(socket) = &facts.socket {
                one["local"] = json!(socket.local);
                one["peer"] = json!(socket.peer);
                one["tcp_state"] = json!(socket.tcp_state);
            }
            one
        };
        wait.detail = json!({ "fds": known.iter().map(one).collect::<Vec<Value>>(), "count": fds.len() });
    }

    /// Whoever else has the other end; the process itself only if nobody else has.
    fn ends(&self, facts: &FdFacts) -> Vec<Actor> {
        let Some(ends) = &facts.ends else { return Vec::new() };
        let others: Vec<Actor> =
            ends.iter().filter(|e| e.pid != self.facts.pid).map(|e| os::process(e.pid)).collect();
        if others.is_empty() { ends.iter().map(|e| os::process(e.pid)).collect() } else { others }
    }

    /// `pid` as the target numbers it; `None`: whichever of its children.
    fn child(&self, wait: &mut Wait, pid: Option<i32>) {
        wait.kind = "process".into();
        wait.label = None;
        let outside = |pid: i32| match self.facts.ns_pid == self.facts.pid {
            true => Some(pid),
            false => self.facts.inner_children.iter().find(|c| c.inside == pid).map(|c| c.pid),
        };
        let children = self.facts.children.as_deref().unwrap_or_default();
        let Some(pid) = pid else {
            wait.on = children.iter().take(MAX_POLLED).map(|c| os::process(c.pid)).collect();
            wait.detail = json!({ "command": null, "state": null });
            return;
        };
        let Some(pid) = outside(pid) else { return };
        let child = children.iter().find(|c| c.pid == pid);
        wait.on = vec![os::process(pid)];
        wait.detail = json!({
            "pid": pid,
            "command": child.map(|c| self.command(&c.command).join(" ")),
            "state": child.and_then(|c| c.state.clone()),
        });
    }
}

fn label(fd: i32, kind: FdKind) -> String {
    let name = match fd {
        0 => "stdin",
        1 => "stdout",
        2 => "stderr",
        _ => return format!("fd {fd}"),
    };
    if kind == FdKind::Tty { format!("{name} (terminal)") } else { name.to_owned() }
}
