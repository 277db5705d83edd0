//! The words of a finding: its summary, what was seen, what to do. All name the objects themselves.

use super::case::Case;
use super::rules::{Rule, is_named_by_root};
use super::waits::{Fate, Party, is_for_idle_loop, number, word};
use crate::duration::Duration;
use crate::snapshot::{Frame, Wait};
use serde_json::Value;

/// `server.py:41`.
pub fn place(frame: &Frame) -> String {
    let path = frame.path.as_deref().or(frame.file.as_deref()).unwrap_or("?");
    let file = path.rsplit('/').next().unwrap_or(path);
    frame.line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"))
}

/// The last two words of a dotted call: `Event.wait`, `time.sleep`.
pub fn short_call(wait: &Wait) -> Option<String> {
    let call = wait.call.as_deref()?;
    let mut words: Vec<&str> = call.rsplit('.').take(2).filter(|word| *word != "<locals>").collect();
    words.reverse();
    Some(words.join("."))
}

/// What is waited for: `Queue(maxsize=1)`, `lock jobs_lock`.
pub fn object(wait: &Wait) -> String {
    let label = wait.label.as_deref();
    match wait.kind.as_str() {
        "queue" => {
            let call = wait.call.as_deref().unwrap_or("Queue.get");
            let class = call.rsplit('.').nth(1).unwrap_or("Queue");
            let size = number(wait, "maxsize")
                .filter(|&m| m > 0)
                .map(|m| format!("maxsize={m}"))
                .unwrap_or_default();
            match label {
                Some(label) => format!("`{label}`"),
                None => format!("`{class}({size})`"),
            }
        }
        "thread" => match word(wait, "name").or(label) {
            Some(name) => format!("thread {name}"),
            None => "a thread".into(),
        },
        "process" => match (wait.on.first().and_then(|on| on.pid), command(wait)) {
            (Some(pid), Some(command)) => format!("process {pid} ({command})"),
            (Some(pid), None) => format!("process {pid}"),
            _ => "a process".into(),
        },
        "socket" => socket(wait),
        "future" if number(wait, "futures").is_some_and(|n| n > 1) => label.unwrap_or("futures").to_owned(),
        "file" => word(wait, "path").map_or_else(|| "a file".into(), |path| format!("`{path}`")),
        "sleep" => "its sleep".into(),
        "poll" => "its selector".into(),
        "gil" => "the GIL".into(),
        "unknown" | "cpu" => "something unknown".into(),
        _ if wait.is_for_pool() => format!("the pool `{}`", label.unwrap_or("pool")),
        kind => match (label, wait.address) {
            (Some(label), _) => format!("{kind} `{label}`"),
            (None, Some(address)) => format!("{kind} {:#x}", address.0),
            (None, None) => {
                format!("{} {kind}", if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" })
            }
        },
    }
}

/// The client, the database, or whoever else is at the other end.
fn socket(wait: &Wait) -> String {
    let database = &wait.detail["database"];
    let what = match (wait.detail["inbound"].as_bool(), database["library"].as_str()) {
        (Some(true), _) => "the client",
        (_, Some(_)) => "the database",
        _ => "the peer",
    };
    let host = word(wait, "host");
    match word(wait, "peer") {
        _ if word(wait, "phase") == Some("resolve") => match host {
            Some(host) => format!("the name server to find `{host}`"),
            None => "the name server".into(),
        },
        Some(peer) if host.is_some() => format!("{what} {} ({peer})", host.unwrap_or_default()),
        Some(peer) => format!("{what} {peer}"),
        None if wait.label.is_some() => format!("`{}`", wait.label.as_deref().unwrap_or_default()),
        None if what == "the peer" => "a socket".into(),
        None => what.into(),
    }
}

/// What the database was asked, what its own process says, what TCP has counted.
fn io(wait: &Wait, seen: &mut Vec<String>) {
    let database = &wait.detail["database"];
    if let Some(statement) = database["statement"].as_str() {
        seen.push(format!("the statement: {statement}"));
    }
    if wait.asks_again() && !wait.is_retried() {
        seen.push("SQLite asks for the lock again and again, until the timeout of the connection".to_owned());
    }
    if let Some(connection) = connection(database) {
        seen.push(format!("the connection: {connection}"));
    }
    if let Some(url) = word(wait, "url") {
        seen.push(format!("asked for: {url}"));
    }
    let peer = &wait.detail["peer_process"];
    if let (Some(pid), Some(command)) = (peer["pid"].as_i64(), peer["command"].as_array()) {
        let words: Vec<&str> = command.iter().filter_map(|w| w.as_str()).collect();
        seen.push(format!("at the other end is process {pid}: {}", cut(words.join(" ").trim())));
    }
    let tcp = &wait.detail["tcp"];
    let retransmits = tcp["retransmits"].as_u64().unwrap_or(0);
    if retransmits > 0 {
        let s = if retransmits == 1 { "" } else { "s" };
        seen.push(format!("{retransmits} retransmission{s} in a row without an answer"));
    }
    if word(wait, "operation") == Some("recv")
        && let Some(ago) = tcp["received_ago"].as_f64()
    {
        seen.push(match tcp["received"].as_u64() {
            Some(0) => format!("not one byte has come since the connection was made {} ago", Duration(ago)),
            Some(bytes) => format!("{bytes} bytes have come so far, the last of them {} ago", Duration(ago)),
            None => format!("the last bytes came {} ago", Duration(ago)),
        });
    }
}

/// Who has the connections of a pool, and what their servers say.
fn pool(wait: &Wait, seen: &mut Vec<String>) {
    let pool = &wait.detail["pool"];
    let holders = pool["holders"].as_array().map_or(&[][..], Vec::as_slice);
    let by = |what: &str| holders.iter().filter(|h| h["by"] == what).count();
    let lost = by("garbage");
    if lost > 0 {
        let gc = match pool["gc_enabled"].as_bool() {
            Some(false) => "the garbage collector is disabled",
            _ => "the garbage collector has not met them yet",
        };
        seen.push(format!(
            "{lost} of them nobody uses: only objects that refer to each other hold them, and {gc}"
        ));
    }
    if by("gc.garbage") > 0 {
        seen.push(format!(
            "{} of them are in gc.garbage, from where nothing is ever freed",
            by("gc.garbage")
        ));
    }
    for kept in pool["kept"].as_array().into_iter().flatten() {
        let text = |key: &str| kept[key].as_str().unwrap_or("?");
        seen.push(format!(
            "one of them is with `{}` ({}), as `{}` knows it: nobody uses that any more",
            text("path"),
            text("class"),
            text("function")
        ));
    }
    for holder in holders.iter().take(6) {
        let text = |key: &str| holder[key].as_str();
        if let (Some("thread"), Some(function)) = (text("by"), text("function")) {
            let file = text("file").map(|f| f.rsplit('/').next().unwrap_or(f)).unwrap_or("?");
            let line = holder["line"].as_u64().map(|line| format!(":{line}")).unwrap_or_default();
            let thread = text("thread").unwrap_or("a thread");
            seen.push(format!("one of them is held in `{function}` at {file}{line}, by {thread}"));
        }
        if let Some(module) = text("module") {
            seen.push(format!("one of them is held by a variable of the module {module}"));
        }
    }
    for peer in pool["peers"].as_array().into_iter().flatten().take(4) {
        if let (Some(pid), Some(title)) = (peer["pid"].as_i64(), peer["title"].as_str()) {
            seen.push(format!("connected to process {pid}: {}", cut(title)));
        }
    }
}

/// Sessions that stand in the way.
fn blockers(wait: &Wait, seen: &mut Vec<String>) {
    let all = wait.detail["blockers"].as_array().map_or(&[][..], Vec::as_slice);
    if all.len() > 1 {
        seen.push(format!(
            "one of these {} sessions, idle with a transaction open, likely holds what is waited for:",
            all.len()
        ));
    }
    for one in all.iter().take(4) {
        let (Some(pid), Some(title)) = (one["pid"].as_i64(), one["title"].as_str()) else { continue };
        let client = one["client"]["pid"].as_i64().map(|pid| {
            let command =
                one["client"]["command"].as_array().into_iter().flatten().filter_map(|w| w.as_str());
            format!(", of process {pid} ({})", cut(&command.collect::<Vec<_>>().join(" ")))
        });
        let client = client.unwrap_or_default();
        seen.push(match all.len() {
            1 => format!("session {pid}{client} is idle with a transaction open, and likely holds what is waited for: {title}"),
            _ => format!("session {pid}{client}: {title}"),
        });
    }
}

/// `app@10.0.0.7:5432/shop`, as far as it is known.
pub fn connection(database: &Value) -> Option<String> {
    let word = |key: &str| database[key].as_str();
    let host = word("host")?;
    let user = word("user").map(|user| format!("{user}@")).unwrap_or_default();
    let port = word("port").map(|port| format!(":{port}")).unwrap_or_default();
    let name = word("name").map(|name| format!("/{name}")).unwrap_or_default();
    Some(format!("{user}{host}{port}{name}"))
}

/// As much of a command or a title as fits into a sentence.
fn cut(line: &str) -> String {
    const MOST: usize = 120;
    match line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

fn command(wait: &Wait) -> Option<String> {
    let command = wait.detail.get("command")?;
    let words =
        || command.as_array().map(|a| a.iter().filter_map(|w| w.as_str()).collect::<Vec<_>>().join(" "));
    command.as_str().map(str::to_owned).or_else(words).filter(|c| !c.is_empty())
}

/// Its name; with its pid where the case goes through several processes.
fn called(case: &Case, party: &Party) -> String {
    let crosses = case.chain.iter().any(|&at| case.graph.parties[at].pid() != party.pid());
    match crosses {
        true => format!("{} (pid {})", party.name(), party.pid()),
        false => party.name(),
    }
}

/// `drain_queue` (thread 7).
fn who(case: &Case, party: &Party) -> String {
    match (party.user_frame(), party.tid()) {
        (Some(at), Some(tid)) if party.task().is_none() && !party.thread().is_some_and(|t| t.main) => {
            format!("`{}` ({}, thread {tid})", party.frames()[at].function, party.name())
        }
        _ => called(case, party),
    }
}

/// `waits in Event.wait at server.py:41`.
fn stands(party: &Party) -> String {
    let cancelled = if party.is_cancelled() { "was cancelled, and " } else { "" };
    format!("{cancelled}{}", stands_at(party))
}

fn stands_at(party: &Party) -> String {
    let at = party.telling_frame().map(|frame| format!(" at {}", place(frame))).unwrap_or_default();
    match party.wait() {
        _ if party.is_stopped() => format!("is stopped{at}"),
        Some(wait) if greets(wait).is_some() => format!("{}{at}", greets(wait).unwrap_or_default()),
        Some(wait) => {
            let Some(call) = short_call(wait) else { return format!("waits for {}{at}", object(wait)) };
            let peer = match wait.kind.as_str() {
                "socket" => word(wait, "peer").map(|peer| format!(" for {peer}")).unwrap_or_default(),
                _ => String::new(),
            };
            format!("waits in `{call}`{at}{peer}")
        }
        None if party.thread().is_some_and(|t| t.activity == crate::snapshot::Activity::Running) => {
            format!("runs{at}")
        }
        None => format!("stands{at}"),
    }
}

/// Not a word has been exchanged yet that the application knows of.
fn greets(wait: &Wait) -> Option<String> {
    let known = wait.kind == "socket" && wait.detail["inbound"] != true;
    match (word(wait, "phase"), word(wait, "operation")) {
        _ if !known => None,
        (Some("resolve"), _) => Some(format!("waits for {}", socket(wait))),
        (Some("tls-handshake"), _) => Some(format!("is in the TLS handshake with {}", socket(wait))),
        (_, Some("connect")) => Some(format!("waits for the connection to {}", socket(wait))),
        _ => None,
    }
}

/// What the next one is to the wait of the one before.
fn part(wait: &Wait) -> &'static str {
    match (wait.kind.as_str(), word(wait, "operation")) {
        ("queue", Some("put")) => ", which gets from it,",
        ("queue", Some("get")) => ", which puts into it,",
        ("queue", _) => ", which takes its items,",
        ("lock", _) if is_signal(wait) => ", which releases it,",
        ("lock" | "semaphore", _) if is_kept(wait) => ", which keeps the generator that has it,",
        ("lock" | "semaphore", _) => ", which holds it,",
        _ if wait.detail["queued_setter"].is_string() => ", a worker of the pool,",
        ("event", _) => ", which sets it,",
        ("condition" | "barrier", _) => ", which should come,",
        ("future", _) => ", which should complete it,",
        ("thread" | "process" | "task", _) => "",
        ("gil", _) => ", which has it,",
        _ => ", which must act,",
    }
}

fn is_kept(wait: &Wait) -> bool {
    wait.detail["kept_by"].is_object()
}

/// The generator that has a lock, and stands still in the middle of it.
fn kept_by(wait: &Wait) -> Option<String> {
    let kept = wait.detail["kept_by"].as_object()?;
    let file = kept["file"].as_str()?;
    let file = file.rsplit('/').next().unwrap_or(file);
    let place = kept["line"].as_u64().map_or(file.to_owned(), |line| format!("{file}:{line}"));
    let keeper = match kept["module"].as_str() {
        Some(module) => format!(", and module {module} keeps it"),
        None if kept["garbage"] == true => ", and only objects that refer to each other keep it".into(),
        None => String::new(),
    };
    let name = kept["generator"].as_str()?;
    Some(format!("{} is with the generator `{name}`, which stands still at {place}{keeper}", object(wait)))
}

/// The task that had the future, and has ended.
fn died(wait: &Wait) -> Option<String> {
    let died = wait.detail["died"].as_object()?;
    let name = died["task"].as_str()?;
    let file = died["file"].as_str()?;
    let file = file.rsplit('/').next().unwrap_or(file);
    let place = died["line"].as_u64().map_or(file.to_owned(), |line| format!("{file}:{line}"));
    let (exception, function) = (died["exception"].as_str()?, died["function"].as_str()?);
    let had = if wait.kind == "barrier" { "was to come to" } else { "had" };
    Some(format!("task {name} {had} {}, and has ended: {exception} in `{function}` at {place}", object(wait)))
}

/// Connections of a pool that are not in it.
fn out(wait: &Wait) -> u64 {
    wait.detail["pool"]["out"].as_u64().unwrap_or(0)
}

fn so_many_are(count: u64) -> String {
    if count == 1 { "one is".to_owned() } else { format!("{count} are") }
}

/// Something has the connections of the pool that only keeps them.
fn keeps_connections(wait: &Wait) -> bool {
    wait.detail["pool"]["kept"].is_array()
}

fn idle_loop(wait: &Wait) -> String {
    match wait.detail["not_running"]["name"].as_str() {
        Some(name) => format!("event loop `{name}`"),
        None => "an event loop".into(),
    }
}

/// The consumers of a full queue that put into it themselves.
fn takers(wait: &Wait) -> Option<String> {
    let names: Vec<&str> = wait.detail["takers"].as_array()?.iter().filter_map(Value::as_str).collect();
    let more = names.len().saturating_sub(3);
    let first = names.into_iter().take(3).collect::<Vec<_>>().join(", ");
    Some(if more == 0 { first } else { format!("{first} and {more} more") })
}

/// A lock that is released by another thread than the one that took it.
fn is_signal(wait: &Wait) -> bool {
    wait.detail.get("signal").and_then(serde_json::Value::as_bool) == Some(true)
}

/// Threads that can reach a lock whose holder is not known.
fn referenced_by(wait: &Wait) -> Vec<String> {
    let by = wait.detail.get("referenced_by").and_then(|v| v.as_array());
    let name = |on: &serde_json::Value| on.get("thread")?.as_str().map(str::to_owned);
    by.into_iter().flatten().filter_map(name).collect()
}

/// The state of the object, where that is the point: `Queue(maxsize=1)` is full.
fn state(wait: &Wait) -> Option<String> {
    let object = object(wait);
    match (wait.kind.as_str(), word(wait, "operation")) {
        ("queue", Some("put")) if super::waits::is_full(wait) => {
            let (size, max) = (number(wait, "size")?, number(wait, "maxsize")?);
            Some(format!("{object} is full ({size} of {max})"))
        }
        ("queue", Some("get")) => match number(wait, "size")? {
            0 => Some(format!("{object} is empty")),
            size => Some(format!("{object} has {size} items, and still its getter sleeps")),
        },
        ("queue", Some("join")) => Some(match number(wait, "unfinished")? {
            1 => format!("one item of {object} is not reported as done"),
            items => format!("{items} items of {object} are not reported as done"),
        }),
        ("semaphore", _) if wait.is_for_pool() => {
            let out = wait.detail["pool"]["out"].as_i64()?;
            Some(match out {
                1 => format!("the only connection of {object} is out"),
                _ => format!("all {out} connections of {object} are out"),
            })
        }
        ("semaphore", _) => Some(format!("{object} has {} left", number(wait, "value")?)),
        ("barrier", _) => {
            let (here, parties) = (number(wait, "waiting")?, number(wait, "parties")?);
            Some(format!("{here} of {parties} have come to {object}"))
        }
        ("future", _) if is_for_idle_loop(wait) => {
            Some(format!("{object} is among what {} is to call", idle_loop(wait)))
        }
        ("future", _) => Some(format!("{object} is {}", word(wait, "state")?.to_ascii_lowercase())),
        _ => None,
    }
}

/// One sentence per link of the chain.
pub fn evidence(case: &Case) -> Vec<String> {
    let mut seen = Vec::new();
    if case.outlives_run() {
        seen.push(
            "the program has ended: asyncio.run has cancelled its tasks, and waits for them".to_owned(),
        );
    }
    if let Some(open) = case.wait().and_then(|w| w.detail["stopping"]["connections"].as_u64()) {
        let s = if open == 1 { "connection that is" } else { "connections that are" };
        seen.push(format!("the server was told to stop, and waits for {open} {s} still open"));
        seen.extend(open_requests(case));
    }
    if let Some(frame) = atexit(case) {
        seen.push(format!(
            "the program has ended: `{}` at {} was given to atexit",
            frame.function,
            place(frame)
        ));
    }
    let parties: Vec<&Party> = case.chain.iter().map(|&at| &case.graph.parties[at]).collect();
    for (at, party) in parties.iter().enumerate() {
        let Some(wait) = party.wait() else { continue };
        if let Some(task) = holder(case, wait) {
            let (task, stands) = (called(case, task), stands(task));
            seen.push(format!("{task} has {} and is suspended: it {stands}", object(wait)));
            continue;
        }
        let next = parties.get(at + 1).copied().or_else(|| case.cycle.map(|start| parties[start]));
        if let Some(next) = next.filter(|_| case.graph.links[case.chain[at]].by_loop) {
            let (task, thread) = (called(case, party), called(case, next));
            seen.push(format!(
                "{task} goes on only when its event loop does; {thread}, which runs that, {}",
                stands(next)
            ));
            continue;
        }
        let state = state(wait);
        match next {
            Some(next) if case.cycle.is_none() || at < parties.len() => {
                let whose = if state.is_some()
                    || matches!(wait.kind.as_str(), "lock" | "semaphore" | "event" | "gil")
                {
                    part(wait)
                } else {
                    ""
                };
                let head =
                    state.unwrap_or_else(|| format!("{} waits for {}", called(case, party), object(wait)));
                seen.push(format!("{head}; {}{whose} {}", who(case, next), stands(next)));
            }
            _ => seen.extend(state),
        }
        seen.extend(kept_by(wait));
        seen.extend(died(wait));
        if wait.is_retried() {
            seen.push(format!("{} waits with a timeout, and again whenever it is over", called(case, party)));
        }
        if case.chain[at] == case.awaited() {
            io(wait, &mut seen);
            blockers(wait, &mut seen);
            pool(wait, &mut seen);
        }
    }
    if let Some(function) = case.wait().and_then(|wait| word(wait, "queued_setter")) {
        let pool = "the queue of the pool whose workers wait for it";
        seen.push(format!("`{function}` would end it, and stands in {pool}"));
    } else if let Some(function) = case.wait().and_then(|wait| word(wait, "by_request")) {
        seen.push(format!("`{function}` could end it: a request that calls it may come"));
    }
    if let Some(pid) = case.keeps_output() {
        seen.push(format!(
            "its child has ended, and process {pid}, which that has started, still has its output open"
        ));
    }
    if case.is_starting() {
        seen.push(match case.backlog() {
            0 => "the server listens only when the application's startup (lifespan) is done".to_owned(),
            n => format!(
                "the server accepts only when the application's startup (lifespan) is done: {n} {} in the backlog",
                if n == 1 { "connection waits" } else { "connections wait" }
            ),
        });
    }
    let cancels = case.graph.parties[case.awaited()].task().and_then(|task| task.cancels);
    if let Some(times) = cancels.filter(|_| case.ignores_cancel()) {
        let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
        let task = called(case, &case.graph.parties[case.awaited()]);
        seen.push(match case.overdue() {
            Some(ago) => format!(
                "the timeout around it was over {} ago, and has cancelled {task}, which waits on",
                Duration(ago)
            ),
            None => format!("{task} was asked to end {times} (Task.cancel), and waits on"),
        });
    }
    for party in parties.iter().filter(|_| case.cycle.is_some()) {
        for lock in party
            .holds()
            .iter()
            .filter(|l| parties.iter().any(|p| p.wait().and_then(|w| w.address) == Some(l.address)))
        {
            let frame = lock.frame.and_then(|at| party.frames().get(at));
            let file = frame.map(|f| place(&Frame { line: lock.line, ..f.clone() }));
            let name = lock.name.as_deref().map_or_else(|| format!("{:#x}", lock.address.0), str::to_owned);
            let since = file.map(|file| format!(", taken at {file}")).unwrap_or_default();
            seen.push(format!("{} holds {} {name}{since}", called(case, party), lock.kind));
        }
    }
    if case.heads_stuck_pool() {
        let queued = case.party().process.kin.queued_work.unwrap_or(0);
        let s = if queued == 1 { "job waits" } else { "jobs wait" };
        seen.push(format!("no worker of its pool goes on, and {queued} {s} in the pool's queue"));
    }
    seen.extend(dead_children(case));
    if case.cycle.is_none() && case.is_deserted() {
        let wait = case.culprit().wait();
        let queue = wait.map_or_else(|| "it".into(), object);
        seen.push(format!("nobody is left who could put an item into {queue}"));
    }
    seen.truncate(12);
    seen
}

/// The requests that a server waits for, and where the tasks stand that the application has.
fn open_requests(case: &Case) -> Vec<String> {
    let awaited = case.wait().map_or(&[][..], |wait| &wait.on);
    let is_awaited = |p: &Party| p.task().is_some_and(|t| awaited.iter().any(|on| on.task == Some(t.id)));
    let own = case.graph.parties.iter().filter(|p| p.pid() == case.party().pid());
    let (open, others): (Vec<&Party>, Vec<&Party>) =
        own.filter(|p| p.task().is_some_and(|t| !t.main)).partition(|p| is_awaited(p));
    let say = |party: &&Party| {
        let words =
            party.task().and_then(|t| t.request.as_ref()).map(|r| r.words() + ": ").unwrap_or_default();
        format!("{words}{} {}", called(case, party), stands(party))
    };
    let mut seen: Vec<String> = open.iter().take(3).map(say).collect();
    // What the application does for a request may be done in a task below it.
    if !open.iter().any(|p| p.user_frame().is_some()) {
        seen.extend(others.iter().filter(|p| p.user_frame().is_some()).take(3).map(say));
    }
    seen
}

/// Children that have ended, where nobody is left who could end a wait that other processes share.
fn dead_children(case: &Case) -> Vec<String> {
    let parties = || case.chain.iter().map(|&at| &case.graph.parties[at]);
    let calls = |party: &Party| {
        party.wait().and_then(|w| w.call.as_deref()).is_some_and(|c| c.starts_with("multiprocessing"))
    };
    if !parties().any(calls) || !case.is_hopeless() && case.cycle.is_none() {
        return Vec::new();
    }
    let mut processes: Vec<_> = parties().map(|party| party.process).collect();
    processes.dedup_by_key(|process| process.pid);
    let children = processes.iter().flat_map(|process| process.children.iter().flatten());
    let dead = children.filter(|c| c.state.as_deref() == Some("Z"));
    let say = |c: &crate::snapshot::Child| {
        let how = match (c.exit_code, c.exit_signal) {
            (_, Some(signal)) => format!(": signal {signal} has killed it"),
            (Some(code), _) => format!(", with exit code {code}"),
            _ => String::new(),
        };
        format!("a child, process {}, has ended{how}", c.pid)
    };
    dead.take(3).map(say).collect()
}

/// One line in a tired person's words.
pub fn summary(case: &Case, rule: &Rule) -> String {
    let party = case.party();
    let name = party.name();
    if case.cycle.is_some() {
        let names: Vec<String> = case.members().map(|party| called(case, party)).collect();
        let [one] = &names[..] else {
            let (last, first) = names.split_last().expect("a cycle has members");
            if rule.id == "pool-self-wait" {
                let all = format!("{} and {last}", first.join(", "));
                return format!("{all} wait for work that only their own pool could do");
            }
            let cycle = format!("{} and {last} wait for each other", first.join(", "));
            return if case.cycle == Some(0) {
                cycle
            } else {
                format!("{name} waits for a deadlock: {cycle}")
            };
        };
        return match (rule.id, case.wait()) {
            ("event-never", Some(wait)) if wait.kind == "condition" => {
                format!("{one} waits for {} to be notified, by what only it could do itself", object(wait))
            }
            ("lock-self", Some(wait)) => format!("{one} waits for {}, which it holds itself", object(wait)),
            ("self-request", Some(wait)) => {
                let peer = word(wait, "peer").unwrap_or("");
                format!(
                    "{one} has asked its own server {peer}, and waits for an answer that only it could give"
                )
            }
            ("queue-join", Some(wait)) => {
                format!("{one} waits until {} is done, of which it has an item itself", object(wait))
            }
            ("loop-lock", Some(wait)) => {
                let task = holder(case, wait).map_or_else(|| "a suspended task".into(), |p| called(case, p));
                format!("{one} waits for {}, which {task} of its own loop has", object(wait))
            }
            ("pool-self-wait", _) => format!("{one} waits for work that only its own pool could do"),
            ("loop-self-deadlock", _) => {
                format!("{one} waits for a coroutine that only its own event loop could run")
            }
            _ => format!("{one} waits for itself"),
        };
    }
    if rule.id == "client-idle" {
        let wait = case.wait().expect("it is about a wait");
        let came = wait.detail["tcp"]["received"].as_u64();
        let what = match came {
            Some(0) => "has sent nothing",
            _ => "sends no request",
        };
        return format!("{name} waits for {}, which {what}: no handler hangs", socket(wait));
    }
    let object = case.wait().map_or_else(|| "something unknown".into(), object);
    if let Some(reader) = case.second().filter(|_| case.is_held_up()) {
        let reader = &case.graph.parties[reader];
        let command = cut(&party.process.command.join(" "));
        let reader = format!("{} {}", called(case, reader), stands(reader));
        return format!(
            "process {} ({command}) cannot write on: nobody reads its {object}; {reader}",
            party.pid()
        );
    }
    let call = case.wait().and_then(short_call);
    let culprit = || if case.chain.len() > 1 { format!(": {}", culprit_line(case)) } else { String::new() };
    if rule.id == "busy-loop" {
        return format!("{name} goes round in a loop that does nothing{}", in_function(party));
    }
    if case.is_loop(case.head()) {
        return match (rule.id, call) {
            ("loop-cpu", _) => format!("{name} serves nobody else: it computes{}", in_function(party)),
            ("loop-flood", _) => format!("{name} is behind: {} callbacks are ready", case.ready()),
            ("gil-blocked" | "gil-hog", _) => {
                format!("{name} serves nobody: it waits for the GIL{}", culprit())
            }
            (_, Some(call)) => match case.kind() {
                "thread" | "process" | "lock" | "queue" | "semaphore" => {
                    format!("{name} serves nobody: `{call}` waits for {object}{}", culprit())
                }
                "socket" => format!("{name} serves nobody: `{call}` waits for {object}"),
                _ => format!("{name} serves nobody: it sits in `{call}`{}", culprit()),
            },
            (_, None) => format!("{name} serves nobody: it is blocked{}", in_function(party)),
        };
    }
    if rule.id == "loop-not-woken" {
        return match case.says("done") {
            true => format!("{name} could go on, but its event loop sleeps: nobody has woken it"),
            false => format!(
                "{name} waits, and its event loop sleeps although callbacks are ready: nobody has woken it"
            ),
        };
    }
    if case.outlives_run() {
        return format!(
            "{name}, which was cancelled at the end of the program, {}{}",
            stands_at(party),
            culprit()
        );
    }
    if rule.id == "cancel-ignored" && case.chain.len() == 1 {
        return format!("{name} {}", stands(party));
    }
    if rule.id == "dbpool-close" {
        let of_root = case.culprit().wait().filter(|w| w.is_for_pool()).or(case.wait());
        let pool = of_root.map_or_else(|| "its pool".into(), self::object);
        let out = so_many_are(of_root.map_or(0, out));
        return format!(
            "{name} closes {pool}, which waits until all connections are given back, and {out} out"
        );
    }
    let wants = match (case.kind(), case.operation()) {
        ("queue", "put") => format!("{name} waits for room in {object}"),
        ("queue", "get") => format!("{name} waits for an item in {object}"),
        ("queue", _) => format!("{name} waits until {object} is done"),
        ("thread" | "process", _) => format!("{name} waits for {object} to end"),
        _ if case.is_closing() => {
            let open = case.wait().and_then(|w| w.detail["closing"]["connections"].as_u64()).unwrap_or(0);
            let open = so_many_are(open);
            format!(
                "{name} waits until all connections of its closed server have gone, and {open} still open"
            )
        }
        ("event", _) => format!("{name} waits for {object} to be set"),
        ("condition", _) => format!("{name} waits for {object} to be notified"),
        ("socket", _) if case.wait().and_then(greets).is_some() => {
            format!("{name} {}", case.wait().and_then(greets).unwrap_or_default())
        }
        _ => format!("{name} waits for {object}"),
    };
    match (case.chain.len(), case.fate) {
        (1, Fate::Stuck) if case.wait().is_some_and(is_for_idle_loop) => {
            let event_loop = case.wait().map(idle_loop).unwrap_or_default();
            format!("{name} waits for what it has handed to {event_loop}, which no thread runs")
        }
        (1, _) if case.is_pool() && case.wait().is_some_and(keeps_connections) => {
            let out = case.wait().map_or(0, out);
            format!("{name} waits for {object}, whose {out} connections are kept where nobody uses them")
        }
        _ if case.is_pool() && case.says("nobody") => {
            let out = case.wait().map_or(0, out);
            format!("{name} waits for {object}, whose {out} connections only garbage holds")
        }
        _ if rule.id == "pool-workers-die" => {
            let wait = case.wait().expect("it is about a wait");
            let oldest = wait.detail["workers_die"].as_f64().filter(|oldest| *oldest > 0.0);
            let oldest = oldest.map_or_else(String::new, |o| format!("; the oldest is {} old", Duration(o)));
            let at = word(wait, "initializer").map_or_else(String::new, |f| format!(" (initializer `{f}`)"));
            format!(
                "{wants}: each worker of the pool dies before it takes any work{at}, and is replaced{oldest}"
            )
        }
        (1, Fate::Stuck) if case.says("forked") => {
            let holder = case.wait().and_then(|wait| wait.detail["held_in_parent_by"].as_object());
            let stayed = holder.map_or_else(
                || "nobody in this process can release it".into(),
                |h| {
                    let name = h["thread"].as_str().unwrap_or("a thread");
                    format!("{name}, which can release it, stayed behind in pid {}", h["pid"])
                },
            );
            format!("{wants}, which was locked when this process was forked: {stayed}")
        }
        (1, Fate::Endless) if case.wait().is_some_and(|w| !referenced_by(w).is_empty()) => {
            let by = case.wait().map(referenced_by).unwrap_or_default();
            format!("{wants}; who holds it is not known, {} can reach it", by.join(", "))
        }
        (1, Fate::Idle) if case.kind() == "queue" => format!("{wants}, and nobody is left who puts one in"),
        (1, Fate::Stuck | Fate::Endless) if case.wait().is_some_and(is_kept) => {
            format!("{wants}, which a generator has that was left half way")
        }
        (1, Fate::Stuck | Fate::Endless) if case.wait().and_then(takers).is_some() => {
            let takers = case.wait().and_then(takers).unwrap_or_default();
            format!("{wants}, and who takes from it waits for room as well: {takers}")
        }
        (1, Fate::Stuck) => format!("{wants}, and nobody is left who could end that"),
        (1, Fate::Endless) => format!("{wants}, and nobody is known who will end that"),
        (1, _) => wants,
        (_, Fate::Stuck) => format!("{wants}{}, which nobody is left to end", culprit()),
        _ => wants + &culprit(),
    }
}

/// Who is waited for, and, if that is somebody else, who that one waits for at last.
fn culprit_line(case: &Case) -> String {
    let line = |party: &Party| format!("{} {}", called(case, party), stands(party));
    let holds = |party: &Party| {
        let part = case.wait().filter(|w| matches!(w.kind.as_str(), "lock" | "semaphore")).map_or("", part);
        format!("{}{part} {}", called(case, party), stands(party))
    };
    let parties = &case.graph.parties;
    let (Some(second), root) = (case.second().map(|at| &parties[at]), case.culprit()) else {
        return line(case.culprit());
    };
    // Whoever accepts connections does what it is there for.
    let rests = super::waits::accepts(root);
    match case.chain.len() {
        ..=2 => line(root),
        3 if rests => holds(second),
        _ => format!("{}, and in the end {}", holds(second), line(root)),
    }
}

fn in_function(party: &Party) -> String {
    party.telling_frame().map(|f| format!(" in `{}` at {}", f.function, place(f))).unwrap_or_default()
}

/// The suspended task that has a lock of threads.
fn holder<'g, 'a>(case: &'g Case<'_, 'a>, wait: &Wait) -> Option<&'g Party<'a>> {
    let task = wait.on.first()?.task.filter(|_| wait.detail["across_await"] == true)?;
    case.graph.parties.iter().find(|p| p.task().is_some_and(|t| t.id == task))
}

/// Its owner has returned from where it took the lock, and waits for work.
fn is_left_taken(case: &Case) -> bool {
    let (Some(wait), Some(holder)) = (case.wait(), case.second()) else { return false };
    let holder = &case.graph.parties[holder];
    let taken = holder.holds().iter().find(|lock| Some(lock.address) == wait.address);
    let takes = |w: &Wait| w.kind == "queue" && word(w, "operation") == Some("get");
    taken.is_some_and(|lock| lock.frame.is_none()) && holder.wait().is_some_and(takes)
}

/// What to do depends on what they wait for.
fn of_lock_cycle(case: &Case, rule: &Rule) -> &'static str {
    let imports = |w: &Wait| w.call.as_deref().is_some_and(|call| call.starts_with("importlib."));
    let waits =
        |fits: &dyn Fn(&Wait) -> bool| case.members().filter(|party| party.wait().is_some_and(fits)).count();
    if case.in_cycle(imports) && waits(&|w| w.kind == "lock") == case.cycle_len() {
        return "import the module before the lock is taken (at the top of the file), or take no lock while it is imported";
    }
    if case.in_cycle(imports) {
        return "start no thread while a module is imported, or do not wait for it there: do both in a function that runs after the import";
    }
    if case.in_cycle(|w| w.call.as_deref().is_some_and(super::rules::is_limiter)) {
        return "whoever has a token of a limiter must wait for nobody who needs one of the same: give the inner calls a limiter of their own, or do the work without another thread";
    }
    if case.in_cycle(super::rules::is_behind_session) {
        return "a lock inside of the database and one of the application are taken in two orders: commit before you take the other, and hold none while you wait for the database";
    }
    if case.in_cycle(|w| w.kind == "barrier") {
        return "hold no lock while waiting at a barrier: those who are still to come want it";
    }
    match waits(&|w| matches!(w.kind.as_str(), "lock" | "semaphore")) {
        0 if waits(&|w| w.kind == "queue") == case.cycle_len() => {
            "each waits for the other to take from its queue, or to put into it: limit only one of the two queues, or put with a timeout (put_nowait) and keep what is left over"
        }
        0 if case.in_cycle(|w| w.kind == "file") => {
            "commit, or give the file's lock back, before you wait for another thread that needs the same"
        }
        0 => "let one of them go on, or end, without the other",
        1 => {
            "give the lock back before you wait for another thread that needs it: take what is needed out of it under the lock, and wait, join or put outside of the `with`"
        }
        _ => rule.advice,
    }
}

/// A thread that waits for its own lock in what has interrupted it: a finalizer, or the handler of a signal.
fn of_interrupted(case: &Case) -> Option<String> {
    let party = case.party();
    let held = party.holds().iter().find(|lock| Some(lock.address) == case.wait().and_then(|w| w.address))?;
    let inner = &party.frames()[..held.frame?.min(party.frames().len())];
    let by = |fits: &dyn Fn(&crate::snapshot::Frame) -> bool| inner.iter().find(|f| fits(f));
    if by(&|f| f.function == "__del__" || f.module.as_deref() == Some("weakref")).is_some() {
        return Some(
            "an object's end was noticed right inside of the `with`, and its finalizer needs the same lock: take no \
             lock in a finalizer (`__del__`, weakref callbacks), put what is left to do into a queue.SimpleQueue"
                .into(),
        );
    }
    let handler = case.wait().and_then(|w| word(w, "in_handler"))?;
    by(&|f| f.function == handler)?;
    Some(format!(
        "the handler of a signal, `{handler}`, has interrupted the `with` and needs the same lock: take no lock in a \
         handler, set a flag or an Event that the program looks at"
    ))
}

/// The future of an executor whose threads a fork has not taken along.
fn is_left_behind(case: &Case) -> bool {
    case.culprit().wait().is_some_and(|w| w.detail["left_behind"] == true)
}

/// The function that `atexit` calls, after the end of the program: the outermost frame. (Up to 3.8 the standard
/// library's pools register there, too.)
fn atexit<'a>(case: &Case<'_, 'a>) -> Option<&'a crate::snapshot::Frame> {
    let thread = case.party().thread().filter(|thread| thread.exiting)?;
    thread.frames.last().filter(|frame| frame.user)
}

/// Where one rule asks for different things to be done.
fn by_circumstance(case: &Case, rule: &Rule) -> Option<&'static str> {
    Some(match rule.id {
        _ if case.wait().is_some_and(is_kept)
            || case.cycle.is_none() && case.culprit().wait().is_some_and(is_kept) =>
        {
            "a generator that was left half way has {object}: use it up or close it (contextlib.closing), or take no lock across its `yield`"
        }
        "dbpool-exhausted" | "http-pool-exhausted" if case.cycle.is_some() && case.cycle_len() > 1 => {
            "whoever has a connection of {object} here waits, directly or through others, for one more: give it back first, or use one for all of it"
        }
        "loop-lock" if case.cycle.is_some() && !case.in_cycle(|w| w.detail["across_await"] == true) => {
            "the loop's thread waits for {object}, and {culprit}, which has it, for a coroutine that only this loop can run: wait for that outside of the `with`, or take no lock of threads on the loop"
        }
        "exit-hang" if atexit(case).is_some() => {
            "the program has ended, and what `atexit` was given waits for {culprit}: give that wait a timeout, or end the work before the program ends"
        }
        "lost-future" if case.says("promise") => {
            "{culprit} is to complete {object}: see why it does not, and ask for the result with a timeout"
        }
        "self-request" if case.cycle_len() > 1 => {
            "what answers the request waits for who has sent it: hold nothing that requests need while you ask the own server, or call the function itself"
        }
        "exit-hang" if case.outlives_run() => {
            "asyncio.run has cancelled {culprit} and waits for its end: raise CancelledError again where it is caught (`except BaseException`, a bare `except`), and await nothing without a timeout while tidying up"
        }
        "lost-future" if case.wait().is_some_and(is_for_idle_loop) => {
            "keep the loop running in its thread for as long as work is handed to it: run_forever(), not run_until_complete(), which returns; and see that the thread is alive before you wait"
        }
        "lost-future" if case.of_root().is_of_dead_task() => {
            "the task that was to complete {object} has ended with an exception: set it on the future (set_exception), go on with the next one, and see to it that somebody awaits that task"
        }
        "lock-wait" | "traffic-jam" if is_left_taken(case) => {
            "nothing that {culprit} is in now has taken {object}: it was left without being given back; use `with`, or release it on every path"
        }
        "lock-wait" | "traffic-jam" if case.of_root().says("body") => {
            "{culprit} has {object} while its client sends the rest of the request, which may take long: read the body before you take it, or set a timeout; a proxy in front that reads whole requests first helps as well"
        }
        "process-cycle" if case.in_cycle(|w| w.kind == "socket") && case.members().all(sends) => {
            "both send and neither receives: read what the other one has sent before you send more, or send in a thread of its own"
        }
        "await-cycle" if case.writes_both_ways() => {
            "each writes, and neither reads what the other one has written: read in a task of its own while you write, or write no more than is read in between"
        }
        "loop-future-result" if case.call_starts("multiprocessing") => {
            "use `await asyncio.to_thread(...)` for the call of the pool, or a ProcessPoolExecutor with loop.run_in_executor"
        }
        "exit-hang" if case.is_stopping() => {
            "the server was told to stop, and waits for the requests that are still open: end them when the application shuts down, or set a timeout (uvicorn: timeout_graceful_shutdown)"
        }
        "await-cycle" if case.is_for_one_more() => {
            "each of these has a slot of {object} and waits for one more: take all that is needed at once, or give the first one back before"
        }
        "join-endless" if case.call_ends(&["shutdown", "__exit__"]) => {
            "leaving `with` waits for all that was handed in: see why {culprit} does not end, or call shutdown(wait=False, cancel_futures=True)"
        }
        "lost-future" if is_left_behind(case) => {
            "the executor was made before this process was forked: its threads stayed behind in the parent, and nobody here runs what is handed in; make an executor in the child itself (an initializer), or start workers with `spawn`"
        }
        "pipe-wait" | "loop-subprocess" if case.keeps_output().is_some() => {
            "the output ends when all who have inherited it close it: give what runs on in the background files or DEVNULL of its own (`>/dev/null 2>&1`), or do not capture the output"
        }
        "event-never" if case.kind() == "condition" && case.cycle.is_some() => {
            "{culprit} is inside of a `with` further out that would notify {object} at its end: leave that one before you enter this"
        }
        "queue-full" if case.of_awaited().wait().and_then(takers).is_some() => {
            "who takes from {object} must not wait for room in it: put what comes up there with put_nowait() into a queue without a limit, or in a task of its own"
        }
        "queue-full" if case.of_awaited().call_starts("asyncio.") => {
            "see why {culprit} takes nothing out; asyncio's put() knows no timeout: put asyncio.wait_for() or asyncio.timeout() around it, or use put_nowait() and handle asyncio.QueueFull"
        }
        "queue-starved" if case.of_awaited().call_starts("asyncio.") => {
            "see why {culprit} puts nothing in; put asyncio.wait_for() around get(), and watch that the tasks that put are alive"
        }
        "event-never" if case.of_awaited().kind() == "condition" => {
            "see who should notify {object}, and on which path it is forgotten; wait with a timeout"
        }
        "event-never" if case.of_awaited().kind() == "lock" => {
            "see who should release {object}, for which its own taker waits, and on which path it is forgotten; wait with a timeout"
        }
        "event-never" if case.of_awaited().kind() == "barrier" => {
            "see who should come to {object}, and why it does not; have whoever cannot come call abort(), and wait with a timeout"
        }
        "pipe-wait" if case.operation() == "open" => {
            "to open a FIFO waits until somebody opens its other end: see who should; O_NONBLOCK does not wait"
        }
        "pipe-wait" | "socket-wait" if case.is_unread_by_child() => {
            "{culprit} does not read what is written to it: see what it does instead; write with a timeout, or from a task or a thread of its own"
        }
        "socket-wait" if is_of_library(case, "grpc") => {
            "give the call a deadline (`timeout=`): without one gRPC waits for as long as the server likes"
        }
        "socket-wait" if is_of_library(case, "zmq") => {
            "set RCVTIMEO, or poll the socket with a timeout: ZeroMQ does not say that whoever should reply is gone; see that it replies to every request"
        }
        "event-never" if case.starts_in_vain() => {
            "see who should set what the application's startup (lifespan) waits for: a task of its own may have died with an exception that nobody has asked for; wait with a timeout, so that the start fails instead"
        }
        "pool-self-wait" if case.wait().is_some_and(|w| w.detail["queued_setter"].is_string()) => {
            "do not wait inside a pool for what only work of the same pool brings about: give that a pool of its own (asgiref: sync_to_async(thread_sensitive=False)), and wait with a timeout"
        }
        "accept-backlog" if case.is_not_accepted() => {
            "who listens there is known: its queue of connections is full, for it accepts none; see what {culprit} does instead"
        }
        _ => return None,
    })
}

/// Waits inside of an extension for the answer to what it has asked.
fn is_of_library(case: &Case, library: &str) -> bool {
    case.wait().is_some_and(|w| word(w, "library") == Some(library) && w.ends_in.is_none())
}

fn sends(party: &Party) -> bool {
    party.wait().is_some_and(|w| matches!(word(w, "operation"), Some("send" | "write")))
}

/// The rule's advice, with the names filled in.
pub fn advice(case: &Case, rule: &Rule) -> String {
    let of_pool = |wait: &&Wait| wait.is_for_pool();
    let pool = || case.members().filter_map(Party::wait).find(of_pool).filter(|_| case.cycle.is_some());
    let wait = if is_named_by_root(case) { case.culprit().wait() } else { pool().or_else(|| case.wait()) };
    let object = wait.map_or_else(|| "it".into(), object);
    // Who is waited for, be it that somebody else is the root.
    let culprit = match case.second() {
        _ if rule.id == "cancel-ignored" || case.outlives_run() => {
            who(case, &case.graph.parties[case.awaited()])
        }
        Some(second) if !is_named_by_root(case) => who(case, &case.graph.parties[second]),
        _ if case.chain.len() > 1 || case.cycle.is_some() => who(case, case.culprit()),
        _ => "the other side".into(),
    };
    if wait.is_some_and(keeps_connections) && rule.id != "dbpool-close" {
        let use_up = match rule.id {
            "http-pool-exhausted" => "read responses to the end or close them (`async with`)",
            _ => "give connections back (`async with`)",
        };
        return format!("{use_up} where they are opened: what only keeps them keeps those of {object} taken");
    }
    if case.is_pool() && case.says("nobody") && rule.id != "dbpool-close" {
        return format!(
            "give connections back with `with`: those of {object} are lost in objects that refer to each other, \
             and only a collection (gc.collect()) would return them"
        );
    }
    if matches!(rule.id, "join-endless" | "exit-hang") && case.is_deserted() {
        let wait = case.culprit().wait();
        let queue = wait.map_or_else(|| "its queue".into(), self::object);
        return format!(
            "tell {culprit} that nothing more will come before you wait for its end: put a sentinel into {queue}, \
             one for each consumer, or get with a timeout"
        );
    }
    if rule.id == "lock-cycle" {
        return of_lock_cycle(case, rule).into();
    }
    if rule.id == "pipe-deadlock"
        && case.members().any(|m| m.task().is_some() && case.in_cycle(|w| w.detail["unread"].is_array()))
    {
        return "read the child's output in a task of its own while you write to it, or use communicate()"
            .into();
    }
    if rule.id == "pipe-deadlock" && case.of_awaited().is_unread() {
        return "read what the child writes: communicate() instead of wait(), or a task that empties the pipe".into();
    }
    if rule.id == "pipe-deadlock" && case.is_held_up() {
        return format!(
            "{culprit} has the other end and does not read it: communicate(), or a thread that empties the pipe; \
             or give the child a file or DEVNULL to write to"
        );
    }
    if rule.id == "lock-self"
        && let Some(text) = of_interrupted(case)
    {
        return text;
    }
    // There is no RLock for tasks, and none of slots.
    if rule.id == "lock-self"
        && !case.wait().is_some_and(is_kept)
        && (case.kind() == "semaphore" || case.culprit().task().is_some())
    {
        return format!("{culprit} has {object} already: call what needs it again outside of the `with`");
    }
    let reads = |party: &Party| party.wait().and_then(|w| word(w, "operation")) == Some("read");
    if rule.id == "pipe-deadlock" && case.cycle.is_some() && case.members().all(reads) {
        return "each waits for the other to write: close the child's stdin when all is written, as communicate() does".into();
    }
    let root = case.culprit();
    if case.is_behind_stopped() {
        let pid = root.pid();
        return format!(
            "process {pid} was stopped by a signal or a debugger: kill -CONT {pid} lets it go on"
        );
    }
    let advice = by_circumstance(case, rule).unwrap_or(rule.advice);
    let mut text = advice.replace("{object}", &object).replace("{culprit}", &culprit);
    if case.event_loop().is_some_and(|l| l.kind == "trio") {
        text = text.replace("asyncio.sleep", "trio.sleep").replace("asyncio.Lock", "trio.Lock");
    }
    if rule.id == "loop-sleep" && case.event_loop().is_some_and(|l| l.kind == "gevent") {
        text =
            "use gevent.sleep(), or call gevent.monkey.patch_all() before anything else is imported".into();
    }
    // Who waits for work is not to blame for how it does.
    let idle = case.graph.fates[case.root()] == Fate::Idle;
    if let Some(wait) = root.wait().filter(|_| case.chain.len() > 1 && case.cycle.is_none() && !idle) {
        let place = root.telling_frame().map(|f| format!(" at {}", place(f))).unwrap_or_default();
        match wait.kind.as_str() {
            "socket" if wait.deadline.as_deref() == Some("none") => {
                text += &format!("; give the call{place} a timeout")
            }
            // The advice for it says so.
            "event" | "condition" | "barrier" if rule.id != "event-never" => {
                text += &format!("; see who should wake {}{place}", root.name())
            }
            _ => {}
        }
    }
    text
}
