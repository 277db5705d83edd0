//! Who has which pipe and socket open, asked of all processes at once: for looks at crowds, in which a
//! search for each process would take time by the square of their number.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::clocks::Allowance;
use super::files::{self, ProcDir, numbers, with_path};
use super::probe::with_room;

/// After this the table is made anew: ends come and go.
const FRESH: Duration = Duration::from_secs(2);
/// The making of the table may take this much.
const BUDGET: Duration = Duration::from_secs(1);

/// One descriptor somewhere.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    pub pid: i32,
    pub fd: i32,
    /// How a pipe is opened.
    pub reads: bool,
    pub writes: bool,
}

pub struct Table {
    holders: HashMap<String, Vec<Holder>>,
    made: Instant,
    pub complete: bool,
}

thread_local! {
    /// While a crowd is looked at.
    static SHARED: RefCell<Option<Option<Table>>> = const { RefCell::new(None) };
}

/// As long as this lives, searches of this thread share one table.
pub struct Crowd(());

impl Crowd {
    pub fn begin() -> Crowd {
        SHARED.with_borrow_mut(|shared| *shared = Some(None));
        Crowd(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        SHARED.with_borrow_mut(|shared| *shared = None);
    }
}

/// Asks the shared table, if there is one.
pub fn shared<T>(ask: impl FnOnce(&Table) -> T) -> Option<T> {
    SHARED.with_borrow_mut(|shared| {
        let table = shared.as_mut()?;
        if table.as_ref().is_none_or(|t| t.made.elapsed() > FRESH) {
            *table = Some(Table::new());
        }
        table.as_ref().map(ask)
    })
}

impl Table {
    fn new() -> Table {
        let allowed = Allowance::of(BUDGET);
        let mut holders: HashMap<String, Vec<Holder>> = HashMap::new();
        let mut complete = true;
        let own = std::process::id() as i32;
        for pid in files::pids().into_iter().filter(|pid| *pid != own) {
            if allowed.is_spent() {
                complete = false;
                break;
            }
            let Ok(dir) = with_room(|| ProcDir::process(pid)) else { continue };
            let Ok(fds) = numbers(&format!("/proc/{pid}/fd")) else { continue };
            for fd in fds {
                let Ok(link) = with_path(format_args!("fd/{fd}"), |path| dir.link(path)) else { continue };
                let pipe = link.starts_with("pipe:");
                // Named pipes lie anywhere; other files are nobody's other end.
                if !pipe && !link.starts_with("socket:") && !link.starts_with('/') {
                    continue;
                }
                let (reads, writes) = match link.starts_with("socket:") {
                    true => (true, true),
                    false => match with_path(format_args!("fd/{fd}"), |path| dir.lstat(path)) {
                        // The mode of the link is how it is opened (fs/proc/fd.c).
                        Ok(stat) => (stat.st_mode & 0o400 != 0, stat.st_mode & 0o200 != 0),
                        Err(_) => continue,
                    },
                };
                holders.entry(link).or_default().push(Holder { pid, fd, reads, writes });
            }
        }
        Table { holders, made: Instant::now(), complete }
    }

    pub fn of(&self, link: &str) -> &[Holder] {
        self.holders.get(link).map_or(&[], Vec::as_slice)
    }
}
