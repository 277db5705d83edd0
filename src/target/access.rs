//! Why a process cannot be read, and what would help.
//!
//! The kernel answers EPERM and no more; the reasons below are the checks of `__ptrace_may_access`
//! (kernel/ptrace.c), which `process_vm_readv` and parts of `/proc` go through, looked into one by one.

use std::io::{IoSlice, IoSliceMut};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::files::ProcDir;
use super::parse;
use super::proc;

/// A target that could not be read as asked; `Display` is the reason, [`remedy`](Self::remedy) what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AccessError {
    #[error("process {pid} does not exist")]
    Gone { pid: i32 },
    #[error("process {pid} has ended; its parent{} has not yet waited for it (zombie)", by(*parent))]
    Zombie { pid: i32, parent: Option<i32> },
    #[error("process {pid} is a thread of the kernel and has no memory of its own")]
    KernelThread { pid: i32 },
    #[error("process {pid} is not a Python that hangscope can read{}{}", quoted(command), tried_list(tried))]
    NotPython { pid: i32, command: String, tried: Vec<String> },
    #[error(
        "process {pid} runs Python, but its interpreter is just starting, or ending: there is nothing to read yet"
    )]
    Starting { pid: i32 },
    #[error("process {pid} cannot be read: {reason}")]
    Denied { pid: i32, reason: Denial },
    #[error("process {pid} cannot be read: {error}")]
    Other { pid: i32, error: String },
}

/// Which check of the kernel refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Denial {
    #[error("Yama forbids it (kernel.yama.ptrace_scope = {scope}{})", yama_meaning(*scope))]
    Yama { scope: u8 },
    #[error("the capability CAP_SYS_PTRACE is missing{}", because(why))]
    MissingCapability { why: String },
    #[error("it belongs to {owner}, and hangscope runs as {reader}")]
    OtherUser { owner: String, reader: String },
    #[error("a seccomp filter around hangscope forbids process_vm_readv")]
    Seccomp,
    #[error("process {tracer}{} is tracing it already, and only one may", quoted(command))]
    Traced { tracer: i32, command: String },
    #[error("it lives in another user namespace, and our capabilities do not reach it")]
    UserNamespace,
    #[error(
        "it is not dumpable (it runs a set-uid program or a file it may not read, or asked for it with prctl)"
    )]
    NotDumpable,
    #[error("/proc is mounted with hidepid, which hides the processes of other users")]
    HidePid,
    #[error("{error}{}", because(why))]
    Unexplained { error: String, why: String },
}

impl AccessError {
    pub fn pid(&self) -> i32 {
        match self {
            AccessError::Gone { pid }
            | AccessError::Zombie { pid, .. }
            | AccessError::KernelThread { pid }
            | AccessError::NotPython { pid, .. }
            | AccessError::Starting { pid }
            | AccessError::Denied { pid, .. }
            | AccessError::Other { pid, .. } => *pid,
        }
    }

    /// The commands that help, one per line, most likely first.
    pub fn remedy(&self) -> Option<String> {
        match self {
            AccessError::Gone { .. } => Some("list what runs: hangscope ps".to_owned()),
            AccessError::Zombie { parent, .. } => {
                parent.map(|parent| format!("look at its parent: hangscope dump --pid {parent}"))
            }
            AccessError::NotPython { pid, .. } => Some(format!(
                "if its children run Python: hangscope dump --pid {pid} --subprocesses\nlist what runs: hangscope ps"
            )),
            AccessError::Starting { .. } => Some("look again in a moment".to_owned()),
            AccessError::KernelThread { .. } | AccessError::Other { .. } => None,
            AccessError::Denied { pid, reason } => reason.remedy(*pid),
        }
    }
}

impl Denial {
    fn remedy(&self, pid: i32) -> Option<String> {
        let in_container = is_in_container();
        let lines = match self {
            Denial::Yama { scope: 3 } => {
                vec!["scope 3 lasts until the next boot: set kernel.yama.ptrace_scope = 1 in /etc/sysctl.d and reboot".into()]
            }
            Denial::Yama { .. } if in_container => container_remedies(),
            Denial::Yama { .. } => {
                let mut lines = vec![sudo(pid)];
                lines.push("or until the next boot: echo 0 | sudo tee /proc/sys/kernel/yama/ptrace_scope".into());
                lines
            }
            Denial::MissingCapability { .. } if in_container || nix::unistd::geteuid().is_root() => container_remedies(),
            Denial::OtherUser { .. } if in_container && nix::unistd::geteuid().is_root() => container_remedies(),
            Denial::MissingCapability { .. } | Denial::OtherUser { .. } | Denial::NotDumpable => vec![sudo(pid)],
            Denial::Seccomp => vec![
                "docker run --cap-add SYS_PTRACE --security-opt seccomp=unconfined …".into(),
                "Kubernetes: securityContext: {capabilities: {add: [SYS_PTRACE]}, seccompProfile: {type: Unconfined}}".into(),
                format!("or from the host: {}", sudo_on_host()),
            ],
            Denial::Traced { tracer, .. } => {
                vec![format!("end or detach process {tracer}, or leave --pause away: without it nothing is attached")]
            }
            Denial::UserNamespace => vec![
                format!("as root of the host: {}", sudo_on_host()),
                format!("or from inside its own namespace: nsenter --user --target {pid} hangscope dump --pid {pid}"),
            ],
            Denial::HidePid => vec![sudo(pid), "or: sudo mount -o remount,hidepid=0 /proc".into()],
            Denial::Unexplained { .. } => vec![sudo(pid)],
        };
        Some(lines.join("\n"))
    }
}

/// Why `/proc/PID` is not there.
pub fn missing(pid: i32) -> AccessError {
    // EPERM: there is such a process, we are only not shown it (fs/proc/base.c, has_pid_permissions).
    let exists = pid > 0 && nix::sys::signal::kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH);
    if exists && ProcDir::process(pid).is_err() && hidepid() {
        return AccessError::Denied { pid, reason: Denial::HidePid };
    }
    if exists && ProcDir::process(pid).is_ok_and(|dir| dir.stat(c"stat").is_ok()) {
        return AccessError::Other { pid, error: "its /proc entry cannot be read".into() };
    }
    AccessError::Gone { pid }
}

/// Why a read of this process's memory (or of one of its `/proc` files) failed with this error.
pub fn explain(pid: i32, errno: Errno) -> AccessError {
    let Some((state, parent, kernel)) =
        proc::with_stat(pid, |stat| (stat.state, stat.parent, stat.is_kernel_thread()))
    else {
        return missing(pid);
    };
    if matches!(state, 'Z' | 'X' | 'x') {
        return AccessError::Zombie { pid, parent: (parent > 0).then_some(parent) };
    }
    if kernel {
        return AccessError::KernelThread { pid };
    }
    match errno {
        Errno::EPERM | Errno::EACCES | Errno::ENOSYS => {
            AccessError::Denied { pid, reason: denial(pid, errno) }
        }
        // The main thread has ended while others go on, or its memory is being taken down.
        Errno::ESRCH => AccessError::Other { pid, error: "it has no memory (any more): it is ending".into() },
        other => AccessError::Other { pid, error: other.desc().to_owned() },
    }
}

/// Whether we may read its memory: asks for nothing but the permission, with an address that is never mapped.
pub fn check(pid: i32) -> Result<(), AccessError> {
    match probe_memory(pid) {
        // The permission came first (mm/process_vm_access.c, process_vm_rw_core): the address is what failed.
        Ok(_) | Err(Errno::EFAULT) => Ok(()),
        Err(errno) => Err(explain(pid, errno)),
    }
}

/// For `--pause`: who else traces a process, which lets nobody else.
pub fn tracer(pid: i32) -> Option<AccessError> {
    let tracer = Status::of(pid)?.number("TracerPid").filter(|&tracer| tracer != 0)? as i32;
    let command = proc::command_of(tracer).join(" ");
    Some(AccessError::Denied { pid, reason: Denial::Traced { tracer, command } })
}

fn probe_memory(pid: i32) -> nix::Result<usize> {
    let mut byte = [0u8];
    let remote = [RemoteIoVec { base: 8, len: 1 }];
    process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut byte)], &remote)
}

fn denial(pid: i32, errno: Errno) -> Denial {
    if is_filtered() {
        return Denial::Seccomp;
    }
    let unexplained = |why: &str| Denial::Unexplained { error: errno.desc().to_owned(), why: why.to_owned() };
    if errno == Errno::ENOSYS {
        return unexplained("this kernel was built without CONFIG_CROSS_MEMORY_ATTACH");
    }
    let (Some(own), Some(target)) = (Status::of(nix::unistd::getpid().as_raw()), Status::of(pid)) else {
        return unexplained("");
    };
    let scope = yama_scope();
    let may_trace = own.bits("CapEff") & (1 << CAP_SYS_PTRACE) != 0;
    let initial = in_initial_user_namespace();
    if may_trace {
        return match scope {
            Some(scope @ 3..) => Denial::Yama { scope },
            // Capabilities count in the namespace they were given in, and below it.
            _ if !initial => Denial::UserNamespace,
            _ => unexplained("a security module such as SELinux or AppArmor may forbid it"),
        };
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let ids = |name| target.numbers(name).into_iter().take(3).collect::<Vec<_>>();
    let (uids, gids) = (ids("Uid"), ids("Gid"));
    // A user that our namespace has no number for shows as "nobody", as we may ourselves.
    if !initial && uids.iter().any(|&uid| !is_mapped(uid)) {
        return Denial::UserNamespace;
    }
    if uids.iter().any(|&other| other != u64::from(uid.as_raw())) {
        if uid.is_root() {
            let why = "root without it may read root's processes only".to_owned();
            return if initial { Denial::MissingCapability { why } } else { Denial::UserNamespace };
        }
        let owner = uids.iter().find(|&&other| other != u64::from(uid.as_raw())).copied().unwrap_or_default();
        return Denial::OtherUser { owner: user(owner as u32), reader: user(uid.as_raw()) };
    }
    if gids.iter().any(|&other| other != u64::from(gid.as_raw())) {
        return Denial::MissingCapability { why: format!("it runs with another group than ours, {gid}") };
    }
    // A process that is not dumpable has a /proc entry of root's (fs/proc/base.c, task_dump_owner).
    let entry = ProcDir::process(pid).and_then(|dir| dir.stat(c"status")).ok();
    if entry.is_some_and(|entry| entry.st_uid != uid.as_raw()) {
        return Denial::NotDumpable;
    }
    // Without a capability more than ours (security/commoncap.c, cap_ptrace_access_check) …
    if target.bits("CapPrm") & !own.bits("CapPrm") != 0 {
        return Denial::MissingCapability { why: "it holds capabilities that we do not".into() };
    }
    // … and last, what Yama says (security/yama/yama_lsm.c).
    match scope {
        Some(scope @ 1..) => Denial::Yama { scope },
        _ if !initial => Denial::UserNamespace,
        _ => Denial::MissingCapability { why: String::new() },
    }
}

const CAP_SYS_PTRACE: u32 = 19;

/// `/proc/PID/status`
struct Status(Vec<u8>);

impl Status {
    fn of(pid: i32) -> Option<Self> {
        ProcDir::process(pid).and_then(|dir| dir.read_all(c"status", 1 << 16)).ok().map(Self)
    }

    fn numbers(&self, name: &str) -> Vec<u64> {
        parse::field(&self.0, name).map(|line| parse::numbers(line).collect()).unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        parse::field(&self.0, name).and_then(parse::number)
    }

    /// A set of capabilities.
    fn bits(&self, name: &str) -> u64 {
        parse::field(&self.0, name).and_then(parse::hex).unwrap_or_default()
    }
}

/// Nothing but a filter keeps a process from reading itself.
fn is_filtered() -> bool {
    // A filter belongs to a thread, though most are put around whole processes.
    let own = std::fs::read("/proc/thread-self/status").ok().map(Status);
    if own.and_then(|own| own.number("Seccomp")) != Some(2) {
        return false;
    }
    let (byte, mut copy) = ([7u8], [0u8]);
    let remote = [RemoteIoVec { base: IoSlice::new(&byte).as_ptr() as usize, len: 1 }];
    matches!(
        process_vm_readv(nix::unistd::getpid(), &mut [IoSliceMut::new(&mut copy)], &remote),
        Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS)
    )
}

/// `None`: a kernel without Yama.
fn yama_scope() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()
}

/// PROC_USER_INIT_INO, include/linux/proc_ns.h.
fn in_initial_user_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/user").map_or(true, |link| link.as_os_str() == "user:[4026531837]")
}

fn is_mapped(uid: u64) -> bool {
    let map = std::fs::read("/proc/self/uid_map").unwrap_or_default();
    map.split(|&b| b == b'\n').any(|line| match parse::numbers(line).collect::<Vec<_>>()[..] {
        [inside, _, count] => uid >= inside && uid - inside < count,
        _ => false,
    })
}

fn hidepid() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        line.split(' ').nth(4) == Some("/proc")
            && options.split(',').any(|option| {
                option.starts_with("hidepid=") && !matches!(option, "hidepid=0" | "hidepid=off")
            })
    })
}

pub fn is_in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|path| std::path::Path::new(path).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

fn container_remedies() -> Vec<String> {
    vec![
        "docker run --cap-add SYS_PTRACE …   (docker compose: cap_add: [SYS_PTRACE])".into(),
        "Kubernetes: securityContext: {capabilities: {add: [SYS_PTRACE]}}, or an ephemeral container: kubectl debug --profile=sysadmin".into(),
        format!("or from the host: {}", sudo_on_host()),
    ]
}

/// This very command with the right of root. The path is given whole: sudo does not search ~/.cargo/bin.
fn sudo(pid: i32) -> String {
    let own = std::env::current_exe().ok().and_then(|path| path.into_os_string().into_string().ok());
    let mut command = vec!["sudo".to_owned(), own.unwrap_or_else(|| "hangscope".into())];
    let args: Vec<String> = std::env::args().skip(1).collect();
    command.extend(if args.is_empty() { vec!["dump".into(), "--pid".into(), pid.to_string()] } else { args });
    command.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

fn sudo_on_host() -> &'static str {
    "sudo hangscope dump --pid PID, with the number that the host's ps shows"
}

/// For a POSIX shell.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn user(uid: u32) -> String {
    match std::fs::read_to_string("/etc/passwd").ok().as_deref().and_then(|users| user_name(users, uid)) {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// The first name of a user in the text of passwd(5). Not by getpwuid(3), which loads modules of the very C
/// library that a static binary was linked with.
fn user_name(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

fn by(parent: Option<i32>) -> String {
    parent.map(|parent| format!(" {parent}")).unwrap_or_default()
}

fn quoted(command: &str) -> String {
    if command.is_empty() { String::new() } else { format!(" ({})", clean(command)) }
}

fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {}", clean(why)) }
}

fn tried_list(tried: &[String]) -> String {
    if tried.is_empty() { String::new() } else { format!(": {}", clean(&tried.join("; "))) }
}

/// Messages stay on one line, whatever the target calls itself.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn yama_meaning(scope: u8) -> &'static str {
    match scope {
        1 => ": only a process's own ancestors may read it",
        2 => ": only CAP_SYS_PTRACE may read others",
        3 => ": nobody may, not even root",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_by_name() {
        let users = "root:x:0:0:root:/root:/bin/bash\n# not a user\nwww-data:x:33:33::/var/www:/bin/sh\n";
        assert_eq!(user_name(users, 33), Some("www-data"));
        assert_eq!(user_name(users, 0), Some("root"));
        assert_eq!(user_name(users, 1), None);
    }

    #[test]
    fn a_process_that_is_not_there() {
        assert_eq!(explain(i32::MAX, Errno::ESRCH), AccessError::Gone { pid: i32::MAX });
        assert_eq!(missing(-5), AccessError::Gone { pid: -5 });
        assert_eq!(check(nix::unistd::getpid().as_raw()), Ok(()));
    }

    #[test]
    fn every_error_is_one_line_and_has_a_remedy() {
        let denials = [
            Denial::Yama { scope: 1 },
            Denial::Yama { scope: 3 },
            Denial::MissingCapability { why: String::new() },
            Denial::OtherUser { owner: user(0), reader: user(65534) },
            Denial::Seccomp,
            Denial::Traced { tracer: 7, command: "strace\n\x1b[31m".into() },
            Denial::UserNamespace,
            Denial::NotDumpable,
            Denial::HidePid,
            Denial::Unexplained { error: "EPERM".into(), why: String::new() },
        ];
        for reason in denials {
            let error = AccessError::Denied { pid: 42, reason };
            let text = error.to_string();
            assert!(text.contains("process 42") && !text.chars().any(char::is_control), "{text}");
            assert!(error.remedy().is_some_and(|remedy| !remedy.is_empty()), "{text}");
        }
        let error =
            AccessError::NotPython { pid: 9, command: "nginx".into(), tried: vec!["no .PyRuntime".into()] };
        assert_eq!(
            error.to_string(),
            "process 9 is not a Python that hangscope can read (nginx): no .PyRuntime"
        );
        assert_eq!(
            Denial::Yama { scope: 2 }.to_string(),
            "Yama forbids it (kernel.yama.ptrace_scope = 2: only CAP_SYS_PTRACE may read others)"
        );
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quote("--pid=4"), "--pid=4");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
    }
}
