//! System calls by name, and their arguments in words: what a thread that sleeps in the kernel waits for.

use super::facts::RawSyscall;
use super::syscall_names::{AARCH64, X86_64};
use crate::snapshot::Syscall;

/// Whose system call numbers: those of the machine the process runs on, not of the one that reads a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    Aarch64,
    /// Numbers stay numbers.
    Other,
}

impl Arch {
    pub const HERE: Arch = if cfg!(target_arch = "x86_64") {
        Arch::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Arch::Aarch64
    } else {
        Arch::Other
    };
}

pub fn name(arch: Arch, number: i64) -> Option<&'static str> {
    let table = match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
        Arch::Other => return None,
    };
    let number = u16::try_from(number).ok()?;
    table.binary_search_by_key(&number, |(n, _)| *n).ok().map(|at| table[at].1)
}

/// How an argument is written.
#[derive(Clone, Copy)]
enum As {
    Fd,
    /// A directory: a descriptor, or the working directory.
    Dir,
    Int,
    Unsigned,
    Hex,
    Pointer,
    Millis,
    Word(&'static [(u64, &'static str)]),
    Flags(&'static [(u64, &'static str)]),
}

use As::{Dir, Fd, Flags, Hex, Int, Millis, Pointer, Unsigned, Word};

const CLOCKS: &[(u64, &str)] = &[
    (0, "CLOCK_REALTIME"),
    (1, "CLOCK_MONOTONIC"),
    (2, "CLOCK_PROCESS_CPUTIME_ID"),
    (3, "CLOCK_THREAD_CPUTIME_ID"),
    (7, "CLOCK_BOOTTIME"),
    (11, "CLOCK_TAI"),
];
/// include/uapi/asm-generic/fcntl.h
const FCNTL: &[(u64, &str)] = &[
    (0, "F_DUPFD"),
    (1, "F_GETFD"),
    (2, "F_SETFD"),
    (3, "F_GETFL"),
    (4, "F_SETFL"),
    (5, "F_GETLK"),
    (6, "F_SETLK"),
    (7, "F_SETLKW"),
    (36, "F_OFD_GETLK"),
    (37, "F_OFD_SETLK"),
    (38, "F_OFD_SETLKW"),
    (1024, "F_SETLEASE"),
    (1030, "F_DUPFD_CLOEXEC"),
    (1031, "F_SETPIPE_SZ"),
];
const FLOCK: &[(u64, &str)] = &[(1, "LOCK_SH"), (2, "LOCK_EX"), (4, "LOCK_NB"), (8, "LOCK_UN")];
const WAIT: &[(u64, &str)] =
    &[(1, "WNOHANG"), (2, "WUNTRACED"), (4, "WEXITED"), (8, "WCONTINUED"), (0x0100_0000, "WNOWAIT")];
const WAITID: &[(u64, &str)] = &[(0, "P_ALL"), (1, "P_PID"), (2, "P_PGID"), (3, "P_PIDFD")];
const MSG: &[(u64, &str)] = &[
    (1, "MSG_OOB"),
    (2, "MSG_PEEK"),
    (0x40, "MSG_DONTWAIT"),
    (0x100, "MSG_WAITALL"),
    (0x4000, "MSG_NOSIGNAL"),
    (0x4000_0000, "MSG_CMSG_CLOEXEC"),
];
const SOCK: &[(u64, &str)] = &[(0x800, "SOCK_NONBLOCK"), (0x80000, "SOCK_CLOEXEC")];
const ABSTIME: &[(u64, &str)] = &[(1, "TIMER_ABSTIME")];
const RANDOM: &[(u64, &str)] = &[(1, "GRND_NONBLOCK"), (2, "GRND_RANDOM")];
const URING: &[(u64, &str)] =
    &[(1, "IORING_ENTER_GETEVENTS"), (2, "IORING_ENTER_SQ_WAKEUP"), (8, "IORING_ENTER_EXT_ARG")];

type Signature = &'static [(&'static str, As)];

const READ: Signature = &[("fd", Fd), ("buf", Pointer), ("count", Unsigned)];
const READV: Signature = &[("fd", Fd), ("iov", Pointer), ("iovcnt", Int)];
const PREAD: Signature = &[("fd", Fd), ("buf", Pointer), ("count", Unsigned), ("offset", Unsigned)];
const RECV: Signature = &[
    ("fd", Fd),
    ("buf", Pointer),
    ("len", Unsigned),
    ("flags", Flags(MSG)),
    ("addr", Pointer),
    ("addrlen", Hex),
];
const RECVMSG: Signature = &[("fd", Fd), ("msg", Pointer), ("flags", Flags(MSG))];
const EPOLL: Signature = &[("epfd", Fd), ("events", Pointer), ("maxevents", Int), ("timeout", Millis)];
const SELECT: Signature = &[
    ("nfds", Int),
    ("readfds", Pointer),
    ("writefds", Pointer),
    ("exceptfds", Pointer),
    ("timeout", Pointer),
];
const ONE_FD: Signature = &[("fd", Fd)];

/// What matters to a hang; all others are written as six numbers.
#[rustfmt::skip]
const SIGNATURES: &[(&str, Signature)] = &[
    ("read", READ), ("write", READ), ("readv", READV), ("writev", READV), ("pread64", PREAD), ("pwrite64", PREAD),
    ("recvfrom", RECV), ("sendto", RECV), ("recvmsg", RECVMSG), ("sendmsg", RECVMSG),
    ("recvmmsg", &[("fd", Fd), ("msgvec", Pointer), ("vlen", Unsigned), ("flags", Flags(MSG)), ("timeout", Pointer)]),
    ("sendfile", &[("out_fd", Fd), ("in_fd", Fd), ("offset", Pointer), ("count", Unsigned)]),
    ("splice", &[("fd_in", Fd), ("off_in", Pointer), ("fd_out", Fd), ("off_out", Pointer), ("len", Unsigned), ("flags", Hex)]),
    ("accept", &[("fd", Fd), ("addr", Pointer), ("addrlen", Pointer)]),
    ("accept4", &[("fd", Fd), ("addr", Pointer), ("addrlen", Pointer), ("flags", Flags(SOCK))]),
    ("connect", &[("fd", Fd), ("addr", Pointer), ("addrlen", Unsigned)]),
    ("shutdown", &[("fd", Fd), ("how", Int)]), ("close", ONE_FD),
    ("poll", &[("fds", Pointer), ("nfds", Unsigned), ("timeout", Millis)]),
    ("ppoll", &[("fds", Pointer), ("nfds", Unsigned), ("timeout", Pointer), ("sigmask", Pointer)]),
    ("select", SELECT), ("pselect6", SELECT),
    ("epoll_wait", EPOLL), ("epoll_pwait", EPOLL),
    ("epoll_pwait2", &[("epfd", Fd), ("events", Pointer), ("maxevents", Int), ("timeout", Pointer)]),
    ("clock_nanosleep", &[("clock", Word(CLOCKS)), ("flags", Flags(ABSTIME)), ("request", Pointer), ("remain", Pointer)]),
    ("nanosleep", &[("request", Pointer), ("remain", Pointer)]),
    ("wait4", &[("pid", Int), ("status", Pointer), ("options", Flags(WAIT)), ("rusage", Pointer)]),
    ("waitid", &[("idtype", Word(WAITID)), ("id", Int), ("info", Pointer), ("options", Flags(WAIT)), ("rusage", Pointer)]),
    ("flock", &[("fd", Fd), ("operation", Flags(FLOCK))]), ("fcntl", &[("fd", Fd), ("cmd", Word(FCNTL)), ("arg", Hex)]),
    ("fsync", ONE_FD), ("fdatasync", ONE_FD), ("syncfs", ONE_FD),
    ("openat", &[("dirfd", Dir), ("path", Pointer), ("flags", Hex), ("mode", Hex)]),
    ("open", &[("path", Pointer), ("flags", Hex), ("mode", Hex)]),
    ("newfstatat", &[("dirfd", Dir), ("path", Pointer), ("statbuf", Pointer), ("flags", Hex)]),
    ("ioctl", &[("fd", Fd), ("request", Hex), ("arg", Hex)]),
    ("pause", &[]), ("sync", &[]),
    ("restart_syscall", &[]),
    ("rt_sigsuspend", &[("mask", Pointer), ("size", Unsigned)]),
    ("rt_sigtimedwait", &[("set", Pointer), ("info", Pointer), ("timeout", Pointer), ("size", Unsigned)]),
    ("io_uring_enter", &[("fd", Fd), ("to_submit", Unsigned), ("min_complete", Unsigned), ("flags", Flags(URING)), ("arg", Pointer)]),
    ("semop", &[("semid", Int), ("sops", Pointer), ("nsops", Unsigned)]),
    ("semtimedop", &[("semid", Int), ("sops", Pointer), ("nsops", Unsigned), ("timeout", Pointer)]),
    ("msgrcv", &[("msqid", Int), ("msgp", Pointer), ("size", Unsigned), ("type", Int), ("flags", Hex)]),
    ("msgsnd", &[("msqid", Int), ("msgp", Pointer), ("size", Unsigned), ("flags", Hex)]),
    ("mq_timedreceive", &[("fd", Fd), ("msg", Pointer), ("len", Unsigned), ("prio", Pointer), ("timeout", Pointer)]),
    ("mq_timedsend", &[("fd", Fd), ("msg", Pointer), ("len", Unsigned), ("prio", Unsigned), ("timeout", Pointer)]),
    ("getrandom", &[("buf", Pointer), ("count", Unsigned), ("flags", Flags(RANDOM))]),
    ("futex_wait", &[("uaddr", Pointer), ("val", Unsigned), ("mask", Hex), ("flags", Hex), ("timeout", Pointer), ("clock", Word(CLOCKS))]),
    ("futex_waitv", &[("waiters", Pointer), ("count", Unsigned), ("flags", Hex), ("timeout", Pointer), ("clock", Word(CLOCKS))]),
];

/// The name and the arguments, `fd=17` style.
pub fn decode(arch: Arch, call: &RawSyscall) -> Syscall {
    let Some(name) = name(arch, call.number) else {
        return Syscall { name: format!("syscall_{}", call.number), args: raw(&call.args) };
    };
    let args = match SIGNATURES.iter().find(|(known, _)| *known == name) {
        _ if name == "futex" => futex(&call.args),
        Some((_, signature)) => signature
            .iter()
            .zip(call.args)
            .map(|((name, kind), value)| argument(name, *kind, value))
            .collect(),
        None => raw(&call.args),
    };
    Syscall { name: name.to_owned(), args }
}

fn raw(args: &[u64; 6]) -> Vec<String> {
    args.iter().map(|arg| format!("{arg:#x}")).collect()
}

fn argument(name: &str, kind: As, value: u64) -> String {
    // Registers hold 32-bit arguments with anything in their upper half.
    let int = value as u32 as i32;
    match kind {
        Fd | Int => format!("{name}={int}"),
        Dir if int == -100 => format!("{name}=AT_FDCWD"),
        Dir => format!("{name}={int}"),
        Unsigned => format!("{name}={value}"),
        Hex => format!("{name}={value:#x}"),
        Pointer if value == 0 => format!("{name}=NULL"),
        Pointer => format!("{name}={value:#x}"),
        Millis if int < 0 => format!("{name}=-1"),
        Millis => format!("{name}={int} ms"),
        Word(words) => match words.iter().find(|(word, _)| *word == value & 0xffff_ffff) {
            Some((_, word)) => format!("{name}={word}"),
            None => format!("{name}={int}"),
        },
        Flags(words) => format!("{name}={}", flags(words, value & 0xffff_ffff)),
    }
}

fn flags(words: &[(u64, &str)], mut value: u64) -> String {
    let mut parts = Vec::new();
    for (bit, word) in words {
        if value & bit == *bit {
            parts.push((*word).to_owned());
            value &= !bit;
        }
    }
    if value != 0 || parts.is_empty() {
        parts.push(if value == 0 { "0".into() } else { format!("{value:#x}") });
    }
    parts.join("|")
}

/// include/uapi/linux/futex.h
const FUTEX: [&str; 14] = [
    "FUTEX_WAIT",
    "FUTEX_WAKE",
    "FUTEX_FD",
    "FUTEX_REQUEUE",
    "FUTEX_CMP_REQUEUE",
    "FUTEX_WAKE_OP",
    "FUTEX_LOCK_PI",
    "FUTEX_UNLOCK_PI",
    "FUTEX_TRYLOCK_PI",
    "FUTEX_WAIT_BITSET",
    "FUTEX_WAKE_BITSET",
    "FUTEX_WAIT_REQUEUE_PI",
    "FUTEX_CMP_REQUEUE_PI",
    "FUTEX_LOCK_PI2",
];
const FUTEX_PRIVATE: u64 = 128;
const FUTEX_REALTIME: u64 = 256;

fn futex(args: &[u64; 6]) -> Vec<String> {
    let op = args[1] & 0xffff_ffff;
    let command = op & !(FUTEX_PRIVATE | FUTEX_REALTIME);
    let mut word =
        FUTEX.get(command as usize).map_or_else(|| format!("{command:#x}"), |word| (*word).to_owned());
    if op & FUTEX_PRIVATE != 0 {
        word.push_str("|FUTEX_PRIVATE_FLAG");
    }
    if op & FUTEX_REALTIME != 0 {
        word.push_str("|FUTEX_CLOCK_REALTIME");
    }
    let mut words =
        vec![argument("uaddr", Pointer, args[0]), format!("op={word}"), format!("val={}", args[2] as u32)];
    if futex_waits(args) {
        words.push(argument("timeout", Pointer, args[3]));
    }
    words
}

/// The operation is one that sleeps.
fn futex_waits(args: &[u64; 6]) -> bool {
    matches!(args[1] & 0x7f, 0 | 6 | 9 | 11 | 13)
}

/// The address whose change the thread waits for.
pub fn futex_address(arch: Arch, call: &RawSyscall) -> Option<u64> {
    match name(arch, call.number)? {
        "futex" if futex_waits(&call.args) => Some(call.args[0]),
        "futex_wait" => Some(call.args[0]),
        _ => None,
    }
}

/// The descriptor the call works on, if it works on one.
pub fn fd(arch: Arch, call: &RawSyscall) -> Option<i32> {
    let name = name(arch, call.number)?;
    let (_, signature) = SIGNATURES.iter().find(|(known, _)| *known == name)?;
    match signature.first()? {
        (_, Fd) => Some(call.args[0] as u32 as i32),
        _ => None,
    }
}

/// Until when a thread may sleep in its call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Timeout {
    /// For ever.
    Never,
    /// Milliseconds after the call began.
    Millis(u32),
    /// In the target's memory.
    At { address: u64, shape: TimeShape, clock: TimeClock, absolute: bool },
}

/// Two i64 each: seconds, and nanoseconds or microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeShape {
    Timespec,
    Timeval,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeClock {
    Realtime,
    Monotonic,
    Other(u32),
}

impl TimeClock {
    fn of(id: u64) -> Self {
        match id as u32 {
            0 => TimeClock::Realtime,
            1 => TimeClock::Monotonic,
            other => TimeClock::Other(other),
        }
    }
}

/// `None`: the call itself says nothing of a timeout (a socket's own, SO_RCVTIMEO, may hold all the same).
pub fn timeout(arch: Arch, call: &RawSyscall) -> Option<Timeout> {
    let a = &call.args;
    let at = |address, shape, clock, absolute| {
        if address == 0 { Timeout::Never } else { Timeout::At { address, shape, clock, absolute } }
    };
    let millis = |value: u64| u32::try_from(value as u32 as i32).map_or(Timeout::Never, Timeout::Millis);
    let after = |address| at(address, TimeShape::Timespec, TimeClock::Monotonic, false);
    Some(match name(arch, call.number)? {
        "futex" if futex_waits(a) => {
            let command = a[1] & 0x7f;
            let realtime = a[1] & FUTEX_REALTIME != 0 || command == 6;
            let clock = if realtime { TimeClock::Realtime } else { TimeClock::Monotonic };
            // Only FUTEX_WAIT's is relative (futex(2)).
            at(a[3], TimeShape::Timespec, clock, command != 0)
        }
        "futex_wait" => at(a[4], TimeShape::Timespec, TimeClock::of(a[5]), true),
        "futex_waitv" => at(a[3], TimeShape::Timespec, TimeClock::of(a[4]), true),
        "poll" => millis(a[2]),
        "epoll_wait" | "epoll_pwait" => millis(a[3]),
        "ppoll" | "rt_sigtimedwait" => after(a[2]),
        "epoll_pwait2" | "semtimedop" => after(a[3]),
        "pselect6" => after(a[4]),
        "select" => at(a[4], TimeShape::Timeval, TimeClock::Monotonic, false),
        "clock_nanosleep" => at(a[2], TimeShape::Timespec, TimeClock::of(a[0]), a[1] & 1 != 0),
        "nanosleep" => after(a[0]),
        "mq_timedreceive" | "mq_timedsend" => at(a[4], TimeShape::Timespec, TimeClock::Realtime, true),
        "pause" | "rt_sigsuspend" | "wait4" | "waitid" | "flock" => Timeout::Never,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(name: &str, args: [u64; 6]) -> RawSyscall {
        let (number, _) = X86_64.iter().find(|(_, known)| *known == name).unwrap();
        RawSyscall { number: i64::from(*number), args, sp: 0, pc: 0 }
    }

    fn words(name: &str, args: [u64; 6]) -> String {
        decode(Arch::X86_64, &call(name, args)).args.join(" ")
    }

    #[test]
    fn names_differ_by_architecture() {
        assert_eq!(name(Arch::X86_64, 202), Some("futex"));
        assert_eq!(name(Arch::Aarch64, 98), Some("futex"));
        assert_eq!(name(Arch::X86_64, 441), name(Arch::Aarch64, 441));
        assert_eq!(name(Arch::X86_64, -1), None);
        assert_eq!(name(Arch::Other, 1), None);
        for table in [X86_64, AARCH64] {
            assert!(table.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
        for (known, _) in SIGNATURES {
            assert!(X86_64.iter().any(|(_, name)| name == known), "{known}");
        }
    }

    #[test]
    fn arguments_in_words() {
        assert_eq!(
            words("futex", [0x7f00, 0x189, 0, 0, 0, u64::MAX]),
            "uaddr=0x7f00 op=FUTEX_WAIT_BITSET|FUTEX_PRIVATE_FLAG|FUTEX_CLOCK_REALTIME val=0 timeout=NULL"
        );
        assert_eq!(
            words("recvfrom", [17, 0x10, 4096, 0x42, 0, 0]),
            "fd=17 buf=0x10 len=4096 flags=MSG_PEEK|MSG_DONTWAIT addr=NULL addrlen=0x0"
        );
        assert_eq!(
            words("epoll_wait", [3, 0x10, 8, 0xffff_ffff, 0, 0]),
            "epfd=3 events=0x10 maxevents=8 timeout=-1"
        );
        assert_eq!(words("poll", [0x10, 1, 5000, 0, 0, 0]), "fds=0x10 nfds=1 timeout=5000 ms");
        assert_eq!(words("wait4", [0xffff_ffff, 0, 0, 0, 0, 0]), "pid=-1 status=NULL options=0 rusage=NULL");
        assert_eq!(words("flock", [4, 2, 0, 0, 0, 0]), "fd=4 operation=LOCK_EX");
        assert_eq!(words("fcntl", [4, 7, 0x10, 0, 0, 0]), "fd=4 cmd=F_SETLKW arg=0x10");
        assert_eq!(
            words("openat", [0xffff_ff9c, 0x10, 0, 0, 0, 0]),
            "dirfd=AT_FDCWD path=0x10 flags=0x0 mode=0x0"
        );
        assert_eq!(words("pause", [1; 6]), "");
        assert_eq!(words("mount", [1, 2, 3, 4, 5, 0xff]), "0x1 0x2 0x3 0x4 0x5 0xff");
        assert_eq!(
            decode(Arch::X86_64, &RawSyscall { number: 9999, args: [0; 6], sp: 0, pc: 0 }).name,
            "syscall_9999"
        );
    }

    #[test]
    fn until_when() {
        let of = |name, args| timeout(Arch::X86_64, &call(name, args));
        assert_eq!(of("futex", [1, 0x80, 0, 0, 0, 0]), Some(Timeout::Never));
        let timespec =
            |clock, absolute| Timeout::At { address: 9, shape: TimeShape::Timespec, clock, absolute };
        assert_eq!(of("futex", [1, 0x80, 0, 9, 0, 0]), Some(timespec(TimeClock::Monotonic, false)));
        assert_eq!(of("futex", [1, 0x89, 0, 9, 0, 0]), Some(timespec(TimeClock::Monotonic, true)));
        assert_eq!(of("futex", [1, 0x189, 0, 9, 0, 0]), Some(timespec(TimeClock::Realtime, true)));
        assert_eq!(of("clock_nanosleep", [1, 1, 9, 0, 0, 0]), Some(timespec(TimeClock::Monotonic, true)));
        assert_eq!(of("poll", [1, 1, 250, 0, 0, 0]), Some(Timeout::Millis(250)));
        assert_eq!(of("poll", [1, 1, 0xffff_ffff, 0, 0, 0]), Some(Timeout::Never));
        assert_eq!(of("recvfrom", [1; 6]), None);
    }

    #[test]
    fn what_it_works_on() {
        assert_eq!(fd(Arch::X86_64, &call("recvfrom", [17, 0, 0, 0, 0, 0])), Some(17));
        assert_eq!(fd(Arch::X86_64, &call("poll", [17, 0, 0, 0, 0, 0])), None);
        assert_eq!(futex_address(Arch::X86_64, &call("futex", [17, 0x81, 0, 0, 0, 0])), None);
        assert_eq!(futex_address(Arch::X86_64, &call("futex", [17, 0x80, 0, 0, 0, 0])), Some(17));
    }

    proptest! {
        #[test]
        fn any_call_has_a_name(number: i64, small in 0i64..480, args: [u64; 6]) {
            for arch in [Arch::X86_64, Arch::Aarch64, Arch::Other] {
                for number in [number, small] {
                    let call = RawSyscall { number, args, sp: 0, pc: 0 };
                    prop_assert!(!decode(arch, &call).name.is_empty());
                    let _ = (fd(arch, &call), timeout(arch, &call), futex_address(arch, &call));
                }
            }
        }
    }
}
