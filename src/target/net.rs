//! The sockets of a process: its descriptors joined with the tables of its own network namespace.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::diag::{self, Diag};
use super::files::{self, ProcDir, numbers, with_path};
use super::parse::{self, hex, number};
use super::probe::with_room;
use crate::snapshot::{Listener, Socket, Tcp};

/// Largest table that we read; about 400,000 connections.
const TABLE_CAP: u64 = 64 << 20;

/// A row of `/proc/PID/net/{tcp,tcp6,udp,udp6,unix}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub inode: u64,
    pub family: Family,
    pub local: Option<String>,
    pub peer: Option<String>,
    pub port: u16,
    pub state: State,
    /// Of a listener: connections that wait to be accepted (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
    pub recv_queue: Option<u32>,
    /// Of a listener: how many may wait.
    pub send_queue: Option<u32>,
}

impl Row {
    pub fn inet(inode: u64, family: Family, local: SocketAddr, peer: SocketAddr, state: State) -> Self {
        let connected = peer.port() != 0 && state != State::Listening;
        Row {
            inode,
            family,
            local: Some(plain(local)),
            peer: connected.then(|| plain(peer)),
            port: local.port(),
            state,
            recv_queue: None,
            send_queue: None,
        }
    }
}

/// An IPv4 address stays one on an IPv6 socket.
pub fn plain(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Tcp,
    Tcp6,
    Udp,
    Udp6,
    Unix,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Family::Tcp => "tcp",
            Family::Tcp6 => "tcp6",
            Family::Udp => "udp",
            Family::Udp6 => "udp6",
            Family::Unix => "unix",
        }
    }

    fn table(self) -> &'static CStr {
        match self {
            Family::Tcp => c"net/tcp",
            Family::Tcp6 => c"net/tcp6",
            Family::Udp => c"net/udp",
            Family::Udp6 => c"net/udp6",
            Family::Unix => c"net/unix",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Listening,
    /// TCP's number (include/net/tcp_states.h).
    Tcp(u8),
    Other,
}

impl State {
    pub fn tcp_name(self) -> Option<&'static str> {
        let number = match self {
            State::Listening | State::Other => return None,
            State::Tcp(number) => number,
        };
        const NAMES: [&str; 13] = [
            "",
            "ESTABLISHED",
            "SYN_SENT",
            "SYN_RECV",
            "FIN_WAIT1",
            "FIN_WAIT2",
            "TIME_WAIT",
            "CLOSE",
            "CLOSE_WAIT",
            "LAST_ACK",
            "LISTEN",
            "CLOSING",
            "NEW_SYN_RECV",
        ];
        NAMES.get(usize::from(number)).copied().filter(|name| !name.is_empty())
    }
}

/// What a process listens on and what it is connected to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sockets {
    /// Each address once, however many descriptors lead to it.
    pub listens: Vec<Listener>,
    /// Every descriptor of any other socket.
    pub connections: Vec<Socket>,
}

/// Fails when the descriptors cannot be listed: the process is gone, or not ours to look into.
pub fn sockets(pid: i32) -> io::Result<Sockets> {
    let dir = with_room(|| ProcDir::process(pid))?;
    let fds = socket_fds(&dir, pid)?;
    if fds.is_empty() {
        return Ok(Sockets::default());
    }
    let wanted: HashSet<u64> = fds.iter().map(|(_, inode)| *inode).collect();
    let rows = rows(&dir, |inode| wanted.contains(&inode), wanted.len());
    Ok(join(&fds, &rows))
}

/// The same for many processes: the tables of each network namespace are read once.
#[derive(Debug, Default)]
pub struct Namespaces {
    tables: HashMap<String, HashMap<u64, Row>>,
}

impl Namespaces {
    pub fn sockets(&mut self, pid: i32) -> io::Result<Sockets> {
        let dir = with_room(|| ProcDir::process(pid))?;
        let fds = socket_fds(&dir, pid)?;
        if fds.is_empty() {
            return Ok(Sockets::default());
        }
        let namespace = dir.link(c"ns/net")?;
        let rows = self.tables.entry(namespace).or_insert_with(|| rows(&dir, |_| true, usize::MAX));
        Ok(join(&fds, rows))
    }
}

fn join(fds: &[(i32, u64)], rows: &HashMap<u64, Row>) -> Sockets {
    let mut found = Sockets::default();
    for (fd, inode) in fds {
        let row = rows.get(inode);
        match row {
            Some(row) if row.state == State::Listening => {
                let address = row.local.clone().unwrap_or_default();
                if !found.listens.iter().any(|known| known.address == address) {
                    found.listens.push(Listener { address, backlog: row.send_queue, queued: row.recv_queue });
                } else if let Some(known) = found.listens.iter_mut().find(|known| known.address == address) {
                    // Two sockets that share an address with SO_REUSEPORT: the fuller one matters.
                    known.queued = known.queued.max(row.recv_queue);
                }
            }
            _ => found.connections.push(socket(*fd, row)),
        }
    }
    found
}

/// A socket of which nothing is known but what the row says.
pub fn socket(fd: i32, row: Option<&Row>) -> Socket {
    Socket {
        fd,
        family: row.map(|row| row.family.name().to_owned()),
        local: row.and_then(|row| row.local.clone()),
        peer: row.and_then(|row| row.peer.clone()),
        tcp_state: row.and_then(|row| row.state.tcp_name()).map(str::to_owned),
        recv_queue: row.and_then(|row| row.recv_queue),
        send_queue: row.and_then(|row| row.send_queue),
        timeout: None,
        peer_process: None,
        tcp: None,
    }
}

/// One socket of the namespace that this process lives in.
pub fn row_of(dir: &ProcDir, inode: u64) -> Option<Row> {
    rows(dir, |other| other == inode, 1).remove(&inode)
}

/// What the kernel knows of this TCP connection.
pub fn tcp_info(dir: &ProcDir, socket: &Socket) -> Option<Tcp> {
    socket.family.as_deref().filter(|family| family.starts_with("tcp"))?;
    let at = |text: &Option<String>| text.as_ref()?.parse::<SocketAddr>().ok();
    let (local, peer) = (at(&socket.local)?, at(&socket.peer)?);
    let v6 = socket.family.as_deref() == Some("tcp6");
    diag(dir)?.tcp_info(local, peer, v6).inspect_err(|e| log::debug!("no tcp_info: {e}")).ok()?
}

/// The other end of a connection within this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherEnd {
    pub inode: u64,
    /// Of a Unix socket that has one.
    pub path: Option<String>,
    /// It is the listener's: nobody has accepted the connection yet.
    pub unaccepted: bool,
}

/// The other ends of these sockets, by descriptor, as far as they are in the same network namespace. A
/// connection that nobody has accepted yet has no socket: then its listener stands for it.
pub fn other_ends(dir: &ProcDir, sockets: &[(u64, Socket)]) -> Vec<(i32, OtherEnd)> {
    let is = |socket: &Socket, family: &str| socket.family.as_deref().is_some_and(|f| f.starts_with(family));
    let mut found = Vec::new();
    let Some(diag) = (!sockets.is_empty()).then(|| diag(dir)).flatten() else {
        return found;
    };
    if sockets.iter().any(|(_, s)| is(s, "tcp") && s.peer.is_some()) {
        let rows = diag.tcp(diag::CONNECTED).unwrap_or_default();
        let mut left: Vec<&Socket> = Vec::new();
        for (_, socket) in sockets.iter().filter(|(_, s)| is(s, "tcp") && s.peer.is_some()) {
            match rows.iter().find(|r| r.local == socket.peer && r.peer == socket.local) {
                Some(row) => {
                    found.push((socket.fd, OtherEnd { inode: row.inode, path: None, unaccepted: false }))
                }
                None => left.push(socket),
            }
        }
        let listeners =
            if left.is_empty() { Vec::new() } else { diag.tcp(diag::LISTENING).unwrap_or_default() };
        for socket in left {
            let at = |text: &Option<String>| text.as_ref()?.parse::<SocketAddr>().ok();
            let (Some(local), Some(peer)) = (at(&socket.local), at(&socket.peer)) else { continue };
            if !peer.ip().is_loopback() && peer.ip() != local.ip() {
                continue;
            }
            let listens = |row: &&Row| {
                let here = at(&row.local);
                here.is_some_and(|l| {
                    l.port() == peer.port() && (l.ip() == peer.ip() || l.ip().is_unspecified())
                })
            };
            // Before that it is the handshake that is waited for.
            let unaccepted = socket.tcp_state.as_deref() == Some("ESTABLISHED");
            let end = |row: &Row| OtherEnd { inode: row.inode, path: None, unaccepted };
            found.extend(listeners.iter().find(listens).map(|row| (socket.fd, end(row))));
        }
    }
    let mut names: Option<Vec<Row>> = None;
    for (inode, socket) in sockets.iter().filter(|(_, s)| is(s, "unix")) {
        let Ok(Some(peer)) = diag.unix_peer(*inode) else { continue };
        let names = names.get_or_insert_with(|| table(dir, Family::Unix));
        let path = names.iter().find(|row| row.inode == peer).and_then(|row| row.local.clone());
        found.push((socket.fd, OtherEnd { inode: peer, path, unaccepted: false }));
    }
    found
}

/// Which processes have the sockets that are bound to these addresses, in the network namespace of `dir`.
pub fn owners_of_local(dir: &ProcDir, wanted: &[(String, u16)]) -> Vec<((String, u16), i32)> {
    let Some(diag) = (!wanted.is_empty()).then(|| diag(dir)).flatten() else { return Vec::new() };
    let rows = diag.tcp(diag::CONNECTED).unwrap_or_default();
    let mut inodes: HashMap<u64, &(String, u16)> = HashMap::new();
    for address in wanted {
        let Ok(ip) = address.0.parse::<IpAddr>() else { continue };
        let local = Some(SocketAddr::new(ip, address.1).to_string());
        inodes.extend(rows.iter().find(|row| row.local == local).map(|row| (row.inode, address)));
    }
    let mut found: Vec<((String, u16), i32)> = Vec::new();
    for pid in files::pids() {
        if found.len() == inodes.len() {
            break;
        }
        let fds =
            with_room(|| ProcDir::process(pid)).and_then(|dir| socket_fds(&dir, pid)).unwrap_or_default();
        for address in fds.iter().filter_map(|(_, inode)| inodes.get(inode)) {
            // Forked children may have it as well: the oldest counts.
            if !found.iter().any(|f| f.0 == **address) {
                found.push(((*address).clone(), pid));
            }
        }
    }
    found
}

/// Descriptors that are sockets, with their inodes.
pub fn socket_fds(dir: &ProcDir, pid: i32) -> io::Result<Vec<(i32, u64)>> {
    let mut found = Vec::new();
    for fd in numbers(&format!("/proc/{pid}/fd"))? {
        let inode = with_path(format_args!("fd/{fd}"), |path| dir.link(path))
            .ok()
            .and_then(|link| socket_inode(&link));
        found.extend(inode.map(|inode| (fd, inode)));
    }
    Ok(found)
}

/// `socket:[123]`
pub fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The wanted rows of the namespace that this process lives in; stops when `count` of them are found.
fn rows(dir: &ProcDir, wanted: impl Fn(u64) -> bool, count: usize) -> HashMap<u64, Row> {
    let mut found = HashMap::new();
    let mut add = |rows: Vec<Row>| {
        found.extend(rows.into_iter().filter(|row| wanted(row.inode)).map(|row| (row.inode, row)));
        found.len() >= count
    };
    let diag = diag(dir);
    // Cheapest and likeliest first: an event loop has a pair of Unix sockets, a server listens.
    let mut rest: &[_] = &[];
    let all_found = match &diag {
        Some(diag) => {
            add(diag.tcp(diag::LISTENING).unwrap_or_default())
                || add(table(dir, Family::Unix))
                || add(diag.tcp(diag::CONNECTED).unwrap_or_default())
        }
        None => {
            rest = &[Family::Tcp, Family::Tcp6];
            add(table(dir, Family::Unix))
        }
    };
    if !all_found {
        for &family in rest.iter().chain(&[Family::Udp, Family::Udp6]) {
            if add(table(dir, family)) {
                break;
            }
        }
    }
    found
}

/// The kernel's own word on TCP, if we may ask for it in that namespace.
fn diag(dir: &ProcDir) -> Option<Diag> {
    let namespace = dir.stat(c"ns/net").ok()?;
    let own = nix::sys::stat::stat("/proc/self/ns/net").ok()?;
    let opened = if (namespace.st_dev, namespace.st_ino) == (own.st_dev, own.st_ino) {
        Diag::here()
    } else {
        dir.open(c"ns/net").and_then(Diag::of)
    };
    opened.inspect_err(|error| log::debug!("no sock_diag: {error}")).ok()
}

/// One of the files in `/proc/PID/net`. Some may be missing: no IPv6, no AF_UNIX in the kernel.
fn table(dir: &ProcDir, family: Family) -> Vec<Row> {
    let text = dir.read_all(family.table(), TABLE_CAP).unwrap_or_default();
    let lines = text.split(|&b| b == b'\n').skip(1);
    lines.filter_map(|line| row(family, line)).filter(|row| row.inode != 0).collect()
}

fn row(family: Family, line: &[u8]) -> Option<Row> {
    let mut words = parse::words(line);
    if family == Family::Unix {
        return unix_row(line);
    }
    let (local, peer) = (words.nth(1)?, words.next()?);
    let (state, queues) = (words.next()?, words.next()?);
    let inode = number(words.nth(4)?)?;
    let (local, peer) = (address(local)?, address(peer)?);
    let state = hex(state)? as u8;
    let colon = queues.iter().position(|&b| b == b':')?;
    let (send, recv) = (hex(&queues[..colon])?, hex(&queues[colon + 1..])?);
    let is_tcp = matches!(family, Family::Tcp | Family::Tcp6);
    let state = match state {
        0x0a if is_tcp => State::Listening,
        state if is_tcp => State::Tcp(state),
        _ => State::Other,
    };
    Some(Row {
        recv_queue: u32::try_from(recv).ok(),
        // Of a listener this file has no more than zero.
        send_queue: u32::try_from(send).ok().filter(|_| state != State::Listening),
        ..Row::inet(inode, family, local, peer, state)
    })
}

/// `Num RefCount Protocol Flags Type St Inode Path` (net/unix/af_unix.c, unix_seq_show); a path may hold blanks.
fn unix_row(line: &[u8]) -> Option<Row> {
    let mut words = parse::words(line);
    let flags = hex(words.nth(3)?)?;
    let inode_word = words.nth(2)?;
    let inode = number(inode_word)?;
    // Where that word stands in the line: what follows it and one blank is the path.
    let end = inode_word.as_ptr() as usize - line.as_ptr() as usize + inode_word.len();
    let path = line.get(end + 1..).filter(|path| !path.is_empty());
    // __SO_ACCEPTCON, include/uapi/linux/net.h
    let state = if flags & 0x1_0000 != 0 { State::Listening } else { State::Other };
    Some(Row {
        inode,
        family: Family::Unix,
        local: path.map(|path| String::from_utf8_lossy(path).into_owned()),
        peer: None,
        port: 0,
        state,
        recv_queue: None,
        send_queue: None,
    })
}

/// `0100007F:1F90`: the address as 32-bit words of the host's byte order, the port as a number.
fn address(word: &[u8]) -> Option<SocketAddr> {
    let colon = word.iter().position(|&b| b == b':')?;
    let (ip, port) = (&word[..colon], u16::try_from(hex(&word[colon + 1..])?).ok()?);
    let part = |at: usize| Some((hex(ip.get(at..at + 8)?)? as u32).to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(part(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&part(index * 8)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Who has a descriptor of a socket that listens on a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    pub pids: Vec<i32>,
    /// Something listens there, whoever it is.
    pub listening: bool,
    /// Processes whose descriptors we may not see.
    pub hidden: usize,
}

/// Everybody who has a listening socket of this TCP port, in all network namespaces that are lived in: the workers
/// that inherited the socket from their server included. A socket's inode is the same in every namespace, so a
/// holder is found even if it has moved to another one since.
pub fn listeners_of_port(port: u16) -> Holders {
    let pids = files::pids();
    let mut seen = HashSet::new();
    let mut listening = HashSet::new();
    let mut look = |dir: &ProcDir| {
        let rows = diag(dir).and_then(|diag| diag.tcp(diag::LISTENING).ok()).unwrap_or_else(|| {
            [Family::Tcp, Family::Tcp6].into_iter().flat_map(|family| table(dir, family)).collect()
        });
        listening.extend(
            rows.iter().filter(|row| row.state == State::Listening && row.port == port).map(|row| row.inode),
        );
    };
    for &pid in std::iter::once(&nix::unistd::getpid().as_raw()).chain(&pids) {
        let Ok(dir) = with_room(|| ProcDir::process(pid)) else { continue };
        // Without the right to see the namespace we could not see the descriptors either.
        if dir.link(c"ns/net").is_ok_and(|namespace| seen.insert(namespace)) {
            look(&dir);
        }
    }
    let mut found = Holders { listening: !listening.is_empty(), ..Holders::default() };
    if listening.is_empty() {
        return found;
    }
    for pid in pids {
        let fds = with_room(|| ProcDir::process(pid)).and_then(|dir| socket_fds(&dir, pid));
        match fds {
            Ok(fds) if fds.iter().any(|(_, inode)| listening.contains(inode)) => found.pids.push(pid),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found.hidden += 1,
            Err(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn rows_of_tcp() {
        let line = b"   0: 0100007F:1F40 00000000:0000 0A 00000000:0000000C 00:00000000 00000000     0        0 1073 1 0";
        let found = row(Family::Tcp, line).unwrap();
        assert_eq!(found.local.as_deref(), Some("127.0.0.1:8000"));
        assert_eq!((found.state, found.peer, found.port), (State::Listening, None, 8000));
        assert_eq!((found.inode, found.recv_queue), (1073, Some(12)));

        let line = b"   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 9 1 0";
        assert_eq!(row(Family::Tcp6, line).unwrap().local.as_deref(), Some("[::]:80"));

        let line = b"   2: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000700000A:01BB 02 00000001:00000000 01:00000000 00000000 0 0 10 1 0";
        let found = row(Family::Tcp6, line).unwrap();
        assert_eq!(found.peer.as_deref(), Some("10.0.0.7:443"));
        assert_eq!((found.state.tcp_name(), found.send_queue), (Some("SYN_SENT"), Some(1)));
    }

    #[test]
    fn rows_of_unix() {
        let line = b"00000000b4f22010: 00000002 00000000 00010000 0001 01  1070 /run/my app.sock";
        let found = row(Family::Unix, line).unwrap();
        assert_eq!(found.local.as_deref(), Some("/run/my app.sock"));
        assert_eq!((found.state, found.inode), (State::Listening, 1070));
        let line = b"00000000b4f22010: 00000003 00000000 00000000 0001 03  1071";
        let found = row(Family::Unix, line).unwrap();
        assert_eq!((found.local, found.state, found.state.tcp_name()), (None, State::Other, None));
    }

    #[test]
    fn links() {
        assert_eq!(socket_inode("socket:[123]"), Some(123));
        assert_eq!(socket_inode("/tmp/socket:[123]"), None);
        assert_eq!(socket_inode("socket:[x]"), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            text in "([0-9A-F]{0,33}:?[0-9A-F]{0,9}[ :]{0,2}){0,12}",
        ) {
            for family in [Family::Tcp, Family::Tcp6, Family::Udp, Family::Unix] {
                let _ = (row(family, &bytes), row(family, text.as_bytes()));
            }
        }
    }
}
