//! `ps`: one line per Python process on the machine.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::cli::Ps;
use crate::diagnose::{Severity, diagnose};
use crate::duration::Duration;
use crate::look::{self, Looked};
use crate::render::clean::clean;
use crate::render::width::{cut_end, width as columns};
use crate::snapshot::{Activity, Process, Snapshot};
use crate::target::access::{self, AccessError};
use crate::target::{find, net, proc};

/// What only a look into the interpreter tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub version: Option<String>,
    /// `gunicorn worker of 4711`.
    pub role: Option<String>,
    /// `idle`, `blocked 47 s`, …
    pub word: Option<String>,
}

/// Looks into a process that may be read.
pub type Look<'a> = dyn FnMut(i32) -> Seen + 'a;

/// One line of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    pub pid: i32,
    pub version: String,
    pub word: String,
    pub threads: Option<u64>,
    pub ports: Vec<String>,
    /// What part it plays in a server or a pool, and for whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub command: String,
}

pub fn run(args: &Ps) -> anyhow::Result<ExitCode> {
    let rows = rows(args, &mut look);
    if args.json {
        super::print_text(|out| {
            serde_json::to_writer_pretty(&mut *out, &rows)?;
            writeln!(out)
        })?;
    } else {
        let terminal = super::text_options();
        let table = render(&rows, terminal.width, terminal.unicode);
        super::print_text(|out| out.write_all(table.as_bytes()))?;
    }
    if rows.is_empty() {
        log::warn!("no Python process is running");
    }
    Ok(ExitCode::SUCCESS)
}

/// One plain look.
fn look(pid: i32) -> Seen {
    let process = match look::live(pid, &look::Options::default()) {
        Ok(Looked { process, error: None, .. }) => process,
        Ok(Looked { error: Some(AccessError::Starting { .. }), .. }) => {
            return Seen { word: Some("starting".to_owned()), ..Seen::default() };
        }
        _ => return Seen { word: Some("not read".to_owned()), ..Seen::default() },
    };
    let version = process.python.as_ref().map(|p| p.version.clone());
    Seen { version, role: role(&process), word: Some(state(process)) }
}

/// As people name it: which module of the standard library has started a child says nothing.
fn role(process: &Process) -> Option<String> {
    let server = process.server.as_ref()?;
    let kind = Some(&server.kind).filter(|kind| *kind != "multiprocessing").map(|k| format!("{k} "));
    let of = server.supervisor.map(|pid| format!(" of {pid}"));
    Some(format!("{}{}{}", kind.unwrap_or_default(), server.role, of.unwrap_or_default()))
}

/// What one look tells: whether somebody suffers, else what the main thread is about.
fn state(process: Process) -> String {
    let main = process.main_thread();
    let busy = process.threads.iter().any(|t| t.activity == Activity::Running && !t.frames.is_empty());
    let since = main.and_then(|t| t.os.as_ref()?.blocked_for);
    let word = match main.map(|t| t.activity) {
        _ if busy => "ok".to_owned(),
        Some(Activity::Idle) => "idle".to_owned(),
        Some(Activity::Waiting) => since.map_or("waits".into(), |s| format!("waits {}", Duration(s))),
        _ => "ok".to_owned(),
    };
    let snapshot = Snapshot {
        captured_at: String::new(),
        host: String::new(),
        looks: Vec::new(),
        processes: vec![process],
        skipped: Vec::new(),
    };
    let found = diagnose(std::slice::from_ref(&snapshot));
    let worst = found.all().filter(|f| f.severity > Severity::Info).max_by_key(|f| f.severity);
    match worst {
        Some(finding) => finding.blocked_for.map_or("blocked".into(), |s| format!("blocked {}", Duration(s))),
        None => word,
    }
}

pub fn rows(args: &Ps, look: &mut Look<'_>) -> Vec<Row> {
    let mut namespaces = net::Namespaces::default();
    find::python_processes_and_zombies()
        .into_iter()
        .filter_map(|pid| {
            // One that has ended by now is left out.
            let (state, threads, comm) = proc::with_stat(pid, |stat| {
                (stat.state, stat.threads, String::from_utf8_lossy(stat.comm).into_owned())
            })?;
            let mut command = proc::command_of(pid);
            if !args.show_secrets {
                command = crate::mask::command(&command);
            }
            let mut row = Row { pid, version: "?".into(), threads: Some(threads), ..Row::default() };
            row.command = if command.is_empty() { format!("[{comm}]") } else { command.join(" ") };
            let seen = match word(pid, state) {
                Some(word) => Seen { word: Some(word.to_owned()), ..Seen::default() },
                None => look(pid),
            };
            // A stopped process can be read as well as any other.
            let seen =
                if state == 'T' || state == 't' { Seen { word: seen.word, ..look(pid) } } else { seen };
            row.version = seen.version.unwrap_or(row.version);
            row.role = seen.role;
            row.word = seen.word.unwrap_or_else(|| "ok".into());
            if let Ok(sockets) = namespaces.sockets(pid) {
                row.ports = ports(sockets.listens.iter().map(|listener| listener.address.as_str()));
            }
            Some(row)
        })
        .collect()
}

/// What `/proc` alone tells; `None`: the interpreter has the word.
fn word(pid: i32, state: char) -> Option<&'static str> {
    match (state, access::check(pid)) {
        ('Z' | 'X', _) | (_, Err(AccessError::Zombie { .. })) => Some("zombie"),
        (_, Err(AccessError::Denied { .. } | AccessError::Other { .. })) => Some("no access"),
        ('T' | 't', _) => Some("stopped"),
        _ => None,
    }
}

/// `8000` for any address and port; a Unix socket by its path. Each once, in order.
fn ports<'a>(addresses: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut ports: Vec<(u32, String)> = addresses
        .map(|address| match address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()) {
            Some(port) if !address.starts_with(['/', '@']) => (u32::from(port), port.to_string()),
            _ => (u32::MAX, address.to_owned()),
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports.into_iter().map(|(_, port)| port).collect()
}

/// The table. A line ends at the terminal's edge; nothing of a target reaches the terminal raw.
pub fn render(rows: &[Row], width: Option<usize>, unicode: bool) -> String {
    let ellipsis = if unicode { "…" } else { "..." };
    let roles = rows.iter().any(|row| row.role.is_some());
    let cells = |row: &Row| {
        let threads = row.threads.map_or_else(|| "?".into(), |threads| threads.to_string());
        let ports = if row.ports.is_empty() { "-".into() } else { row.ports.join(",") };
        let mut cells = vec![row.pid.to_string(), row.version.clone(), row.word.clone(), threads, ports];
        cells.extend(roles.then(|| row.role.clone().unwrap_or_else(|| "-".into())));
        cells.push(row.command.clone());
        cells.iter().map(|cell| clean(cell, unicode).into_owned()).collect::<Vec<_>>()
    };
    let mut head = vec!["PID", "PYTHON", "STATE", "THREADS", "PORTS", "COMMAND"];
    if roles {
        head.insert(5, "ROLE");
    }
    let head = head.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    // Paths of sockets are long: no column but the last may push the command off a terminal.
    let widths: Vec<usize> = (0..lines[0].len() - 1)
        .map(|column| lines.iter().map(|line| columns(&line[column])).max().unwrap_or(0).min(28))
        .collect();
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (column, cell) in line.iter().enumerate() {
            let Some(&room) = widths.get(column) else {
                out.push_str(cell);
                break;
            };
            let cell = cut_end(cell, room, ellipsis);
            let blank = " ".repeat(room.saturating_sub(columns(&cell)));
            // Numbers to the right.
            let _ = match column {
                0 | 3 => write!(out, "{blank}{cell}  "),
                _ => write!(out, "{cell}{blank}  "),
            };
        }
        text.push_str(cut_end(&out, width.unwrap_or(usize::MAX), ellipsis).trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: i32, word: &str, ports: &[&str], command: &str) -> Row {
        Row {
            pid,
            version: "3.12.1".into(),
            word: word.into(),
            threads: Some(8),
            ports: ports.iter().map(|&port| port.to_owned()).collect(),
            role: None,
            command: command.into(),
        }
    }

    #[test]
    fn a_table() {
        let rows = [
            row(7, "ok", &[], "python3 -c x"),
            row(4242, "blocked 47 s", &["8000", "/run/a.sock"], "python -m uvicorn \x1b[31mapp\n"),
        ];
        let expected = r"
 PID  PYTHON  STATE         THREADS  PORTS             COMMAND
   7  3.12.1  ok                  8  -                 python3 -c x
4242  3.12.1  blocked 47 s        8  8000,/run/a.sock  python -m uvicorn \x1b[31mapp\n
";
        assert_eq!(render(&rows, None, true), expected[1..]);
        let narrow = render(&rows, Some(60), true);
        assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
        assert!(narrow.ends_with("pyt…\n") || narrow.ends_with("…\n"), "{narrow}");
        assert!(render(&rows, Some(0), true).lines().all(|line| line.chars().count() <= 1));
    }

    #[test]
    fn addresses_as_ports() {
        let all = ["[::]:80", "127.0.0.1:8000", "0.0.0.0:80", "/run/x:9", "@abstract:1"];
        assert_eq!(ports(all.into_iter()), ["80", "8000", "/run/x:9", "@abstract:1"]);
    }
}
