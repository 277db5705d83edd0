//! What the text files of `/proc` say: pure parsers over bytes, total over whatever stands there.

use super::facts::RawSyscall;

/// The fields of `/proc/PID/stat` that we use (proc_pid_stat(5); fs/proc/array.c, `do_task_stat`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stat<'a> {
    pub comm: &'a [u8],
    pub state: char,
    pub parent: i32,
    /// `PF_…` of include/linux/sched.h.
    pub flags: u64,
    /// User and system time, clock ticks.
    pub ticks: u64,
    pub threads: u64,
    /// Ticks after boot.
    pub started: u64,
    /// Resident pages.
    pub pages: u64,
    /// The CPU it runs or last ran on (field 39).
    pub cpu: usize,
}

impl Stat<'_> {
    /// PF_KTHREAD.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }
}

pub fn stat(bytes: &[u8]) -> Option<Stat<'_>> {
    // The name may hold anything, parentheses and spaces included; what follows the last one is numbers.
    let open = bytes.iter().position(|&b| b == b'(')?;
    let close = bytes.iter().rposition(|&b| b == b')')?;
    let comm = bytes.get(open + 1..close)?;
    let mut fields = bytes.get(close + 1..)?.split(|b| b.is_ascii_whitespace()).filter(|f| !f.is_empty());
    let state = char::from(*fields.next()?.first()?);
    let parent = signed(fields.next()?)? as i32; // field 4
    let flags = number(fields.nth(4)?)?; // 9
    let user = number(fields.nth(4)?)?; // 14
    let system = number(fields.next()?)?; // 15
    let threads = number(fields.nth(4)?)?; // 20
    let started = number(fields.nth(1)?)?; // 22
    let pages = signed(fields.nth(1)?)?.max(0) as u64; // 24
    let cpu = number(fields.nth(14)?)? as usize; // 39
    Some(Stat {
        comm,
        state,
        parent,
        flags,
        ticks: user.saturating_add(system),
        threads,
        started,
        pages,
        cpu,
    })
}

/// `exit_code` of `/proc/PID/stat` (field 52), which only those see who may look into the process; others see 0,
/// and so does everybody while it lives.
pub fn exit_status(bytes: &[u8]) -> Option<i32> {
    let close = bytes.iter().rposition(|&b| b == b')')?;
    words(bytes.get(close + 1..)?).nth(49).and_then(signed).and_then(|status| i32::try_from(status).ok())
}

/// One line of `/proc/PID/status`, without its name and the blanks around.
pub fn field<'a>(status: &'a [u8], name: &str) -> Option<&'a [u8]> {
    status.split(|&b| b == b'\n').find_map(|line| {
        let rest = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
        Some(rest.trim_ascii())
    })
}

/// The numbers of such a line: `Uid: 0 0 0 0`.
pub fn numbers(line: &[u8]) -> impl Iterator<Item = u64> + '_ {
    words(line).map_while(number)
}

pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> + '_ {
    line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

/// What a thread does, as `/proc/PID/task/TID/syscall` has it (fs/proc/base.c, `proc_pid_syscall`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Doing {
    /// On a CPU, or ready to be.
    Running,
    /// Asleep in this call; number -1: asleep outside of any, in a page fault for example.
    Asleep(RawSyscall),
    /// We may not know, or it is ending.
    Unknown,
}

impl Doing {
    /// The system call it sleeps in.
    pub fn syscall(&self) -> Option<RawSyscall> {
        match self {
            Doing::Asleep(call) if call.number >= 0 => Some(*call),
            _ => None,
        }
    }
}

pub fn doing(bytes: &[u8]) -> Doing {
    let text = bytes.trim_ascii();
    if text == b"running" {
        return Doing::Running;
    }
    let asleep = || {
        let mut fields = words(text);
        let number = signed(fields.next()?)?;
        let mut args = [0; 6];
        if number >= 0 {
            for arg in &mut args {
                *arg = hex(fields.next()?)?;
            }
        }
        Some(RawSyscall { number, args, sp: hex(fields.next()?)?, pc: hex(fields.next()?)? })
    };
    asleep().map_or(Doing::Unknown, Doing::Asleep)
}

/// `/proc/PID/task/TID/schedstat`: nanoseconds on a CPU, and how many times it was put on one.
pub fn schedstat(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut fields = numbers(bytes);
    let run_ns = fields.next()?;
    Some((run_ns, fields.nth(1)?))
}

/// `se.exec_start` of `/proc/PID/task/TID/sched`, nanoseconds on the clock of the thread's CPU.
/// Printed as milliseconds with six decimals (kernel/sched/debug.c, `PN`).
pub fn exec_start(bytes: &[u8]) -> Option<u64> {
    let line = bytes.split(|&b| b == b'\n').find(|line| line.starts_with(b"se.exec_start"))?;
    let value = line.rsplit(|&b| b == b':').next()?.trim_ascii();
    let dot = value.iter().position(|&b| b == b'.')?;
    let (millis, nanos) = (number(&value[..dot])?, number(&value[dot + 1..])?);
    if value.len() - dot - 1 != 6 {
        return None;
    }
    millis.checked_mul(1_000_000)?.checked_add(nanos)
}

/// What `/proc/PID/task/TID/sched` says of when a thread has last been seen to by the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// When it left its CPU, on the clock of that.
    Ran(u64),
    /// When its load was last brought up to date, on the CPU's clock of loads (kernel/sched/pelt.h): not before it
    /// left. Where a sleeper has been moved to another CPU while it was still in the queue (`DELAY_DEQUEUE`, Linux
    /// 6.12), that is all: `migrate_task_rq_fair` clears the other one.
    Load(u64),
}

pub fn stamp(bytes: &[u8]) -> Option<Stamp> {
    match exec_start(bytes)? {
        0 => load_updated(bytes).filter(|at| *at > 0).map(Stamp::Load),
        at => Some(Stamp::Ran(at)),
    }
}

/// `se.avg.last_update_time` of the same file, nanoseconds.
pub fn load_updated(bytes: &[u8]) -> Option<u64> {
    let line = bytes.split(|&b| b == b'\n').find(|line| line.starts_with(b"se.avg.last_update_time"))?;
    number(line.rsplit(|&b| b == b':').next()?.trim_ascii())
}

/// The soft limit of open files from `/proc/PID/limits`; `None` too where it is unlimited.
pub fn open_files_limit(bytes: &[u8]) -> Option<u64> {
    let line = bytes.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"Max open files"))?;
    number(words(line).next()?)
}

/// `/proc/PID/cmdline`: arguments that end in NUL. A program that has written its title over them leaves NULs
/// at the end, or none at all: those are no arguments.
pub fn command_line(bytes: &[u8]) -> Vec<String> {
    let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    // A last argument that is empty, `python -c ''`, is one NUL too many: keep one, more are padding.
    let empty_last = bytes.len() == end + 2;
    let mut args: Vec<String> =
        bytes[..end].split(|&b| b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    if empty_last {
        args.push(String::new());
    }
    args
}

pub fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

pub fn signed(word: &[u8]) -> Option<i64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Hexadecimal, with or without `0x`.
pub fn hex(word: &[u8]) -> Option<u64> {
    let digits = word.strip_prefix(b"0x").unwrap_or(word);
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &[u8] =
        b"21658 (a) R (b) S 7 21656 20087 0 -1 4194304 95 0 0 0 12 30 0 0 20 0 1 0 83502 3133440 410 \
        18446744073709551615 1 2 3 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 1 2 3 4 5 6 7 0\n";

    #[test]
    fn a_stat_line_with_a_hostile_name() {
        let found = stat(STAT).unwrap();
        assert_eq!(found.comm, b"a) R (b");
        assert_eq!((found.state, found.parent, found.ticks), ('S', 7, 42));
        assert_eq!((found.threads, found.started, found.pages, found.cpu), (1, 83502, 410, 1));
        assert!(!found.is_kernel_thread());
    }

    #[test]
    fn what_a_thread_does() {
        assert_eq!(doing(b"running\n"), Doing::Running);
        assert_eq!(doing(b""), Doing::Unknown);
        let call = doing(b"202 0x7f 0x189 0x0 0x0 0x0 0xffffffff 0x7ffe 0x7fff\n").syscall().unwrap();
        assert_eq!((call.number, call.args[1], call.sp, call.pc), (202, 0x189, 0x7ffe, 0x7fff));
        let fault = doing(b"-1 0x7ffe 0x7fff\n");
        assert!(matches!(fault, Doing::Asleep(RawSyscall { number: -1, sp: 0x7ffe, .. })));
        assert_eq!(fault.syscall(), None);
    }

    #[test]
    fn small_files() {
        assert_eq!(schedstat(b"12 95150 3\n"), Some((12, 3)));
        assert_eq!(schedstat(b"12 95150"), None);
        let sched =
            b"cat (1, #threads: 1)\n---\nse.exec_start      :        835028.402310\nse.vruntime : 1.5\n";
        assert_eq!(exec_start(sched), Some(835_028_402_310));
        assert_eq!(stamp(sched), Some(Stamp::Ran(835_028_402_310)));
        let moved = b"se.exec_start : 0.000000\nse.avg.last_update_time       :       79825038800896\n";
        assert_eq!(stamp(moved), Some(Stamp::Load(79_825_038_800_896)));
        assert_eq!(stamp(b"se.exec_start : 0.000000\n"), None);
        assert_eq!(open_files_limit(b"Limit\nMax open files            1024   4096   files\n"), Some(1024));
        assert_eq!(open_files_limit(b"Max open files   unlimited  unlimited files\n"), None);
        let status = b"Name:\tUid:\nUid:\t5\t6\t7\t8\nNSpid:\t40\t3\n";
        assert_eq!(numbers(field(status, "Uid").unwrap()).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert_eq!(numbers(field(status, "NSpid").unwrap()).last(), Some(3));
    }

    #[test]
    fn command_lines() {
        assert_eq!(command_line(b"python\0-c\0pass\0"), ["python", "-c", "pass"]);
        assert_eq!(command_line(b"python\0-c\0\0"), ["python", "-c", ""]);
        assert_eq!(command_line(b"gunicorn: master [app]\0\0\0\0\0"), ["gunicorn: master [app]"]);
        assert_eq!(command_line(b"postgres: idle in transaction"), ["postgres: idle in transaction"]);
        assert_eq!(command_line(b"a\0\0b\0"), ["a", "", "b"]);
        assert!(command_line(b"\0\0").is_empty());
    }

    proptest! {
        #[test]
        fn anything_is_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (self::stat(&bytes), doing(&bytes), schedstat(&bytes), stamp(&bytes));
            let _ = (open_files_limit(&bytes), command_line(&bytes), field(&bytes, "Uid"));
        }

        #[test]
        fn a_torn_stat_line_is_parsed_without_a_panic(cut in 0usize..220, flip in 0usize..220, to: u8) {
            let mut bytes = STAT[..cut.min(STAT.len())].to_vec();
            if let Some(byte) = bytes.get_mut(flip) {
                *byte = to;
            }
            let _ = stat(&bytes);
        }

        #[test]
        fn lines_of_numbers(text in "(se.exec_start|se.avg.last_update_time|Max open files|-?[0-9]{1,25}|0x[0-9a-f]{1,20}|[ :.\n]){0,20}") {
            let bytes = text.as_bytes();
            let _ = (self::stat(bytes), doing(bytes), schedstat(bytes), stamp(bytes), open_files_limit(bytes));
        }
    }
}
