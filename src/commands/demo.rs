//! `hangscope demo`: starts a small stuck server, looks into it, and ends it again.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::dump::{self, look_at};
use crate::cli::{Demo, Dump, Shown, Targets};
use crate::look::Options;
use crate::render::report::Report;
use crate::snapshot::Thread;
use crate::target::find::Found;

const SHOP: &str = include_str!("demo_shop.py");
/// A request to the stuck server is given up after this; a served one answers within milliseconds.
const PATIENCE: Duration = Duration::from_millis(700);
/// A machine this slow has other problems.
const DEADLINE: Duration = Duration::from_secs(30);

/// The server; ended, and its file removed, however this goes.
struct Shop {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn run(args: &Demo) -> anyhow::Result<ExitCode> {
    let shop = start(args)?;
    let pid = shop.child.id() as i32;
    let mut notes = anstream::stderr();
    writeln!(notes, "A small asyncio server runs as process {pid} on 127.0.0.1:{}.", shop.port)?;
    let mut hung = Vec::new();
    for n in 1..=3 {
        let (answer, connection) = order(shop.port, n)?;
        writeln!(notes, "  GET /orders/{n}: {answer}")?;
        hung.extend(connection);
    }
    writeln!(notes, "It is alive, and serves nobody. `hangscope dump {pid}` says:\n")?;
    wait_until_stuck(pid)?;
    let looked = look_at(Found { pids: vec![pid], ..Found::default() }, &Options::default());
    let show = Dump {
        targets: Targets { pids: vec![pid], pid: Vec::new(), port: None, name: None, subprocesses: false },
        capture: None,
        json: args.json,
        locals: 0,
        no_findings: false,
        save: None,
        pause: false,
        nonblocking: false,
        shown: Shown::default(),
        nolineno: false,
        full_filenames: false,
        full_stacks: false,
    };
    let (snapshot, found) = dump::judge(looked.snapshot, &[pid], &Options::default());
    dump::print(&Report::new(snapshot).with(found), &show)?;
    drop(shop);
    writeln!(notes, "\nThe server was ended. On a server of yours: sudo hangscope dump --port 8000")?;
    Ok(ExitCode::from(if looked.unread { super::UNREAD } else { 0 }))
}

fn start(args: &Demo) -> anyhow::Result<Shop> {
    let dir = std::env::temp_dir().join(format!("hangscope-demo-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let file = dir.join("shop.py");
    std::fs::write(&file, SHOP).with_context(|| format!("cannot write {}", file.display()))?;
    let spawned = Command::new(&args.python).arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&dir);
            let name = args.python.display();
            bail!(match error.kind() {
                ErrorKind::NotFound => format!(
                    "there is no {name} to run the demo with\n  do: install Python 3.8 or later, or name one: hangscope demo --python /path/to/python3"
                ),
                _ => format!("cannot start {name}: {error}"),
            });
        }
    };
    let mut shop = Shop { child, dir, port: 0 };
    let out = shop.child.stdout.take().context("the server has no stdout")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    shop.port = line
        .strip_prefix("READY ")
        .and_then(|port| port.trim().parse().ok())
        .with_context(|| format!("{} did not start the demo's server (see above)", args.python.display()))?;
    Ok(shop)
}

/// Asks for one order; the answer, or that there was none and the connection that still waits.
fn order(port: u16, n: u32) -> anyhow::Result<(String, Option<TcpStream>)> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(connection, "GET /orders/{n} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    match connection.read_to_string(&mut answer) {
        Ok(_) => Ok((answer.lines().next().unwrap_or("no answer").to_owned(), None)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok((format!("no answer within {} ms", PATIENCE.as_millis()), Some(connection)))
        }
        Err(e) => Err(e.into()),
    }
}

/// How old the loop's iteration is to be: beyond a second it is critical.
const STUCK: f64 = 1.1;

/// The third `put` blocks a moment after its request came in.
fn wait_until_stuck(pid: i32) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    let is_stuck = |thread: &Thread| {
        let age = thread.event_loop.as_ref().and_then(|l| l.iteration_age);
        thread.main && thread.frames.iter().any(|f| f.function == "put") && age.is_none_or(|age| age > STUCK)
    };
    loop {
        match crate::look::live(pid, &Options::default()) {
            Ok(looked) => {
                if let Some(error) = looked.error {
                    bail!("{error}\n  do: {}", error.remedy().unwrap_or_default());
                }
                if looked.process.threads.iter().any(is_stuck) {
                    return Ok(());
                }
            }
            Err(error) => bail!("the server has ended: {error}"),
        }
        if Instant::now() > until {
            bail!("the server did not get stuck within {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
