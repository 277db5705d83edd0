//! Sessions of a local PostgreSQL, by the titles of its processes: `postgres: USER DATABASE HOST(PORT) STATE`
//! (src/backend/utils/misc/ps_status.c). Which session holds a lock stands in the server's shared memory
//! only; but one that waits in the midst of nothing, with a transaction open, is who others wait for.

use super::facts::Session;
use super::files::ProcDir;
use super::net;
use super::proc;
use crate::snapshot::PeerProcess;

/// Most sessions of one server that are looked at.
const MAX_SESSIONS: usize = 2000;
/// Most idle ones that are named.
const MAX_IDLE: usize = 8;

/// A title, taken apart.
#[derive(Clone, Debug, PartialEq)]
struct Title<'a> {
    database: &'a str,
    /// Of the client, where it came over TCP.
    address: Option<(&'a str, u16)>,
    state: &'a str,
}

/// The sessions of the same database that are idle in a transaction, while this one waits for a lock.
pub fn idle_in_transaction(dir: &ProcDir, waiting: &PeerProcess) -> Vec<Session> {
    let command = waiting.command.join(" ");
    let Some(own) = title(&command).filter(|t| t.state.ends_with(" waiting")) else { return Vec::new() };
    let Some(server) = proc::parent(waiting.pid) else { return Vec::new() };
    let mut found: Vec<(Session, Option<(String, u16)>)> = Vec::new();
    for pid in proc::children_of(server).into_iter().take(MAX_SESSIONS).filter(|pid| *pid != waiting.pid) {
        let command = proc::command_of(pid).join(" ");
        let Some(other) = title(&command) else { continue };
        if other.database == own.database && other.state.starts_with("idle in transaction") {
            let address = other.address.map(|(ip, port)| (ip.to_owned(), port));
            found.push((Session { pid, title: command.trim().to_owned(), client: None }, address));
        }
        if found.len() >= MAX_IDLE {
            break;
        }
    }
    let wanted: Vec<_> = found.iter().filter_map(|f| f.1.clone()).collect();
    let clients = net::owners_of_local(dir, &wanted);
    let client = |(mut session, address): (Session, Option<(String, u16)>)| {
        let owner = address.and_then(|a| clients.iter().find(|(of, _)| *of == a).map(|c| c.1));
        session.client = owner.map(|pid| PeerProcess { pid, command: proc::command_of(pid) });
        session
    };
    found.into_iter().map(client).collect()
}

fn title(command: &str) -> Option<Title<'_>> {
    let rest = command.trim().strip_prefix("postgres:")?.trim_start();
    let words: Vec<&str> = rest.split(' ').filter(|w| !w.is_empty()).collect();
    // A server with a `cluster_name` says that first.
    let at = words.iter().position(|w| *w == "[local]" || address(w).is_some()).filter(|at| *at >= 2)?;
    let state = rest.find(words[at]).map(|start| rest[start + words[at].len()..].trim())?;
    Some(Title { database: words[at - 1], address: address(words[at]), state })
}

/// `127.0.0.1(41796)`
fn address(word: &str) -> Option<(&str, u16)> {
    let (ip, port) = word.strip_suffix(')')?.split_once('(')?;
    Some((ip, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles() {
        let one = title("postgres: app shop 127.0.0.1(41796) UPDATE waiting").unwrap();
        assert_eq!(
            (one.database, one.address, one.state),
            ("shop", Some(("127.0.0.1", 41796)), "UPDATE waiting")
        );
        let one = title("postgres: main: app shop [local] idle in transaction  ").unwrap();
        assert_eq!((one.database, one.address, one.state), ("shop", None, "idle in transaction"));
        assert_eq!(title("postgres: checkpointer "), None);
        assert_eq!(title("python app.py"), None);
    }
}
