//! What the OS says of real processes: each test starts its own, and ends only those.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hangscope::commands::ps;
use hangscope::snapshot::Precision;
use hangscope::target::access::{self, AccessError, Denial};
use hangscope::target::find::{self, FindError, Looks, Selector};
use hangscope::target::probe::ThreadProbe;
use hangscope::target::syscalls::{self, Arch};
use hangscope::target::{net, proc, threads};

/// A child that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// One line of its standard output.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let mut byte = [0];
        let out = self.0.stdout.as_mut().unwrap();
        while std::io::Read::read(out, &mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0] as char);
        }
        line
    }

    /// Ends a program that reads its standard input to the end, and its children with it.
    fn end_by_input(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

fn python_path() -> &'static str {
    // Not a pyenv shim, which would be a shell for a while.
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

fn start(command: &mut Command) -> Running {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // An executable just written is busy while a fork of another test still has it open.
    Running(wait_for("start", || match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
        other => Some(other.unwrap()),
    }))
}

/// Runs a program that prints a line when it is where the test wants it.
fn python(program: &str) -> (Running, String) {
    let mut running = start(Command::new(python_path()).args(["-c", program]));
    let line = running.line();
    (running, line)
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn own() -> i32 {
    std::process::id() as i32
}

#[test]
fn a_process() {
    let (target, child) = python(
        "import subprocess, sys; c = subprocess.Popen(['cat', '-u'], stdout=subprocess.DEVNULL)
print(c.pid, flush=True); c.wait()",
    );
    let facts = wait_for("child with arguments", || {
        let facts = proc::process(target.pid()).unwrap();
        // While it executes its program a process has none for a moment.
        let named = facts.children.iter().flatten().any(|child| !child.command[0].starts_with('['));
        named.then_some(facts)
    });
    assert_eq!(facts.command[..2], [python_path(), "-c"]);
    assert!(facts.executable.unwrap().contains("python"));
    assert_eq!(facts.executable_replaced, Some(false));
    assert_eq!(facts.cwd.unwrap(), std::env::current_dir().unwrap().to_str().unwrap());
    assert_eq!((facts.parent, facts.ns_pid), (Some(own()), target.pid()));
    assert_eq!(facts.uid, Some(nix::unistd::getuid().as_raw()));
    assert!(facts.state.is_some() && facts.rss.unwrap() > 1 << 20);
    assert!(facts.uptime.unwrap() < 3600.0);
    let fds = std::fs::read_dir(format!("/proc/{}/fd", target.pid())).unwrap().count();
    assert_eq!(facts.open_fds, Some(fds as u64));
    assert!(facts.fd_limit.unwrap() > 0);
    assert_eq!((facts.listens, facts.connections), (Some(vec![]), Some(vec![])));
    let children = facts.children.unwrap();
    assert_eq!(children.len(), 1);
    assert_eq!((children[0].pid.to_string(), children[0].command.join(" ")), (child, "cat -u".to_owned()));
    assert!(proc::fd_target(target.pid(), 0).unwrap().starts_with("pipe:["));
    target.end_by_input();
}

#[test]
fn an_executable_that_was_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (program, other) = (dir.path().join("a program"), dir.path().join("other"));
    for path in [&program, &other] {
        std::fs::copy("/bin/sleep", path).unwrap();
    }
    let target = start(Command::new(&program).arg("1000"));
    let look = || {
        let facts = proc::process(target.pid()).unwrap();
        assert_eq!(facts.executable.as_deref(), program.to_str());
        facts.executable_replaced
    };
    assert_eq!(look(), Some(false));
    std::fs::remove_file(&program).unwrap();
    assert_eq!(look(), Some(true));
    std::fs::rename(&other, &program).unwrap();
    assert_eq!(look(), Some(true));
}

#[test]
fn since_when_a_thread_is_blocked() {
    let started = Instant::now();
    let target = start(&mut Command::new("cat"));
    let look = || {
        let before = Instant::now();
        let threads = threads::thread_facts(target.pid(), None);
        (before, threads.into_iter().next().unwrap(), Instant::now())
    };
    wait_for("cat asleep in read", || {
        let (_, thread, _) = look();
        let call = thread.os.syscall?;
        (thread.comm == "cat" && call.name == "read" && call.args[0] == "fd=0").then_some(())
    });
    let (before_first, first, after_first) = look();
    std::thread::sleep(Duration::from_millis(300));
    let (before_second, second, after_second) = look();
    assert_eq!(second.os.state, Some('S'));
    if !Path::new("/proc/self/sched").exists() {
        eprintln!("skipped: this kernel does not tell (CONFIG_SCHED_DEBUG)");
        return;
    }
    let exact = Some(Precision::Exact);
    assert_eq!((first.os.blocked_for_is, second.os.blocked_for_is), (exact, exact));
    let grown = second.os.blocked_for.unwrap() - first.os.blocked_for.unwrap();
    let least = (before_second - after_first).as_secs_f64();
    let most = (after_second - before_first).as_secs_f64();
    // A CPU's clock leaves out what the hypervisor took away: hence the tenth.
    assert!(grown > least * 0.9 - 0.05 && grown < most + 0.05, "{least} {grown} {most}");
    assert!(second.os.blocked_for.unwrap() < started.elapsed().as_secs_f64() + 0.05);
    assert!(second.os.cpu_time.unwrap() > 0.0 && second.os.wchan.is_some());
}

#[test]
fn threads_and_what_they_wait_for() {
    let (target, _) = python(
        "import threading, sys, time
e = threading.Event()
for i in range(30): threading.Thread(target=e.wait, daemon=True).start()
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print('ready', flush=True); sys.stdin.read()",
    );
    let all = wait_for("sleeping threads", || {
        let all = threads::thread_facts(target.pid(), None);
        // All through with the GIL: none waits for it with a timeout any more.
        let settled = all.iter().all(|thread| {
            thread.syscall.is_some_and(|call| {
                syscalls::futex_address(Arch::HERE, &call).is_none()
                    || syscalls::timeout(Arch::HERE, &call) == Some(syscalls::Timeout::Never)
            })
        });
        settled.then_some(all)
    });
    assert_eq!((all.len(), all[0].tid), (32, target.pid()));
    let named =
        |name: &str| all.iter().filter(|thread| thread.os.syscall.as_ref().unwrap().name == name).count();
    assert_eq!((named("futex"), named("read")), (30, 1));
    assert_eq!(named("clock_nanosleep") + named("pselect6") + named("select"), 1);
    for thread in &all {
        assert_eq!((thread.ns_tid, thread.os.state), (thread.tid, Some('S')));
    }
}

#[test]
fn a_process_in_another_pid_namespace() {
    if !is_root() {
        return;
    }
    let mut outer =
        start(Command::new("unshare").args(["--pid", "--fork", "--kill-child", python_path(), "-c"]).arg(
            "import sys, threading
t = threading.Thread(target=threading.Event().wait, daemon=True); t.start()
print(t.native_id, flush=True); sys.stdin.read()",
        ));
    let inner_tid: i32 = outer.line().parse().unwrap();
    let inner = proc::process(outer.pid()).unwrap().children.unwrap()[0].pid;
    assert_eq!(proc::process(inner).unwrap().ns_pid, 1);
    let threads = threads::thread_facts(inner, None);
    assert_eq!(threads.iter().map(|thread| thread.ns_tid).collect::<Vec<_>>(), [1, inner_tid]);
    assert_ne!(threads[1].tid, inner_tid);
    outer.end_by_input();
}

#[test]
fn sockets_of_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b.sock");
    let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let waiting = TcpStream::connect(&address).unwrap();
    let found = wait_for("queued connection", || {
        let found = net::sockets(own()).unwrap();
        let listens = found.listens.iter().find(|listens| listens.address == address).unwrap();
        (listens.queued == Some(1)).then_some(found)
    });
    assert!(found.listens.iter().any(|one| Path::new(&one.address) == path && one.queued.is_none()));
    let connection = found.connections.iter().find(|socket| socket.peer.as_ref() == Some(&address)).unwrap();
    assert_eq!(connection.local.as_deref(), Some(waiting.local_addr().unwrap().to_string().as_str()));
    let words = (connection.family.as_deref(), connection.tcp_state.as_deref());
    assert_eq!(words, (Some("tcp"), Some("ESTABLISHED")));
    assert!(
        net::Namespaces::default().sockets(own()).unwrap().listens.iter().any(|one| one.address == address)
    );

    // A test program holds the port, no Python does.
    let port = listener.local_addr().unwrap().port();
    match find::find(&Selector { port: Some(port), ..Selector::default() }) {
        Err(FindError::NotPythonListener { others, .. }) => assert_eq!(others[0].pid, own()),
        other => panic!("{other:?}"),
    }
    drop(listener);
    // Another test's child may hold it between its fork and its exec.
    wait_for("port without a listener", || {
        let found = find::find(&Selector { port: Some(port), ..Selector::default() });
        matches!(found, Err(FindError::NoListener { .. })).then_some(())
    });
}

#[test]
fn a_port_leads_to_the_workers_too() {
    let (target, port) = python(
        "import os, socket, sys
s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()
if os.fork() == 0: sys.stdin.read(); os._exit(0)
print(s.getsockname()[1], flush=True); sys.stdin.read(); os.wait()",
    );
    let found = find::find(&Selector { port: port.parse().ok(), ..Selector::default() }).unwrap();
    let worker = proc::process(target.pid()).unwrap().children.unwrap()[0].pid;
    assert_eq!(found.pids, [target.pid(), worker]);
    target.end_by_input();
}

#[test]
fn a_port_in_another_network_namespace() {
    if !is_root() {
        return;
    }
    let mut target = start(Command::new("unshare").args(["--net", python_path(), "-c"]).arg(
        "import socket, sys
s = socket.socket(socket.AF_INET6); s.bind(('::', 0)); s.listen(77)
print(s.getsockname()[1], flush=True); sys.stdin.read()",
    ));
    let port = target.line().parse().ok();
    assert_eq!(find::find(&Selector { port, ..Selector::default() }).unwrap().pids, [target.pid()]);
    let facts = proc::process(target.pid()).unwrap();
    let listens = &facts.listens.unwrap()[0];
    assert_eq!((&listens.address, listens.queued), (&format!("[::]:{}", port.unwrap()), Some(0)));
    // Told by sock_diag only, which is asked from inside that namespace.
    assert_eq!(listens.backlog, Some(77));
}

#[test]
fn by_name_with_descendants_and_by_thread() {
    // A Python, below it a shell, below that a Python again: all read one pipe and end with it.
    let (target, _) = python(
        "import subprocess, sys; import threading as hangscope_test_marker
hangscope_test_marker.Thread(target=hangscope_test_marker.Event().wait, daemon=True).start()
p = subprocess.Popen(['sh', '-c', sys.executable + ' -c \"print(7, flush=True); import sys; sys.stdin.read()\"; :'])
sys.stdin.read()",
    );
    let selector = Selector { name: Some("hangscope_test_marker".into()), ..Selector::default() };
    assert_eq!(find::find(&selector).unwrap().pids, [target.pid()]);

    let all = Selector { pids: vec![target.pid()], subprocesses: true, ..Selector::default() };
    let found = find::find(&all).unwrap();
    assert_eq!((found.pids.len(), found.pids[0]), (2, target.pid()));
    assert_eq!(found.skipped.len(), 1);
    assert_eq!(found.skipped[0].command[0], "sh");
    assert_eq!(proc::parent(found.pids[1]), Some(found.skipped[0].pid));
    // A shell named as the root is where we start from only.
    let below = Selector { pids: vec![found.skipped[0].pid], subprocesses: true, ..Selector::default() };
    assert_eq!(find::find(&below).unwrap().pids, found.pids[1..]);

    let thread = threads::tids(target.pid())[1];
    let by_thread = Selector { pids: vec![thread, target.pid(), i32::MAX], ..Selector::default() };
    let by_thread = find::find(&by_thread).unwrap();
    assert_eq!((by_thread.pids, by_thread.skipped[0].pid), (vec![target.pid()], i32::MAX));

    assert!(find::python_processes().contains(&target.pid()));
    assert_eq!(find::looks_like_python(found.skipped[0].pid), Looks::Unknown);
    assert_eq!(find::looks_like_python(own()), Looks::Unknown);
    match find::find(&Selector { name: Some("no such name, ever".into()), ..Selector::default() }) {
        Err(FindError::NoSuchName { others, .. }) => {
            assert!(others.iter().any(|other| other.pid == target.pid()))
        }
        other => panic!("{other:?}"),
    }
    target.end_by_input();
}

#[test]
fn an_embedded_python_is_known_by_its_library() {
    // A file of that name is enough, and perl is on every Debian: it keeps it mapped.
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("libpython3.12.so.1.0");
    let Some(real) = std::fs::read_to_string("/proc/self/maps").unwrap().lines().find_map(|line| {
        let path = line.split_ascii_whitespace().nth(5)?;
        (path.contains("/libgcc_s") || path.contains("/libm.")).then(|| path.to_owned())
    }) else {
        eprintln!("skipped: no small shared library at hand");
        return;
    };
    std::fs::copy(real, &library).unwrap();
    let mut target = start(Command::new("perl").args([
        "-MDynaLoader",
        "-e",
        "DynaLoader::dl_load_file($ARGV[0], 0) or die; $| = 1; print \"ready\\n\"; <STDIN>",
        library.to_str().unwrap(),
    ]));
    assert_eq!(target.line(), "ready");
    assert_eq!(find::looks_like_python(target.pid()), Looks::Python);
}

#[test]
fn one_line_for_each_python() {
    let (target, port) = python(
        "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()
print(s.getsockname()[1], flush=True); sys.stdin.read()
'--password=hunter2'",
    );
    // One that stops itself, and one that has ended and is not waited for.
    let stopped = start(Command::new(python_path()).args(["-c", "import os; os.kill(os.getpid(), 19)"]));
    let zombie = start(Command::new(python_path()).args(["-c", ""]));
    let state = |one: &Running| proc::process(one.pid()).unwrap().state;
    wait_for("stop", || (state(&stopped) == Some('T')).then_some(()));
    wait_for("zombie", || (state(&zombie) == Some('Z')).then_some(()));

    let mut looked = Vec::new();
    let mut look = |pid| {
        looked.push(pid);
        ps::Seen { version: Some("3.9.9".into()), word: Some("idle".into()), ..ps::Seen::default() }
    };
    let args = hangscope::cli::Ps { json: false, show_secrets: false };
    let rows = ps::rows(&args, &mut look);
    let row = |one: &Running| rows.iter().find(|row| row.pid == one.pid()).unwrap();
    let seen = row(&target);
    assert_eq!((seen.version.as_str(), seen.word.as_str(), &seen.ports), ("3.9.9", "idle", &vec![port]));
    assert!(seen.threads == Some(1) && !seen.command.contains("hunter2"), "{}", seen.command);
    assert_eq!((row(&stopped).word.as_str(), row(&stopped).version.as_str()), ("stopped", "3.9.9"));
    assert_eq!((row(&zombie).word.as_str(), row(&zombie).version.as_str()), ("zombie", "?"));
    assert!(looked.contains(&target.pid()) && !looked.contains(&zombie.pid()));
    assert!(rows.windows(2).all(|pair| pair[0].pid < pair[1].pid));
}

#[test]
fn gone_and_zombie_and_kernel_thread() {
    let mut target = start(&mut Command::new("true"));
    let pid = target.pid();
    wait_for("zombie", || (proc::process(pid).unwrap().state == Some('Z')).then_some(()));
    assert_eq!(access::check(pid), Err(AccessError::Zombie { pid, parent: Some(own()) }));
    assert_eq!(find::looks_like_python(pid), Looks::Never);
    let facts = proc::process(pid).unwrap();
    assert_eq!((facts.comm.as_str(), facts.command.len(), facts.executable), ("true", 0, None));
    target.0.wait().unwrap();
    assert_eq!(proc::process(pid), Err(AccessError::Gone { pid }));
    assert_eq!(access::check(pid), Err(AccessError::Gone { pid }));
    assert!(threads::thread_facts(pid, None).is_empty());
    assert!(net::sockets(pid).is_err());

    if proc::with_stat(2, |stat| stat.is_kernel_thread()) == Some(true) {
        assert_eq!(access::check(2), Err(AccessError::KernelThread { pid: 2 }));
        assert!(proc::process(2).unwrap().executable.is_none());
    }
}

/// Not a test of its own: what the test below runs as somebody else. Says what keeps it from reading a process.
#[test]
fn helper() {
    let Ok(task) = std::env::var("HANGSCOPE_TEST_HELPER") else { return };
    let (what, pid) = task.split_once(':').unwrap();
    let pid: i32 = pid.parse().unwrap();
    match what {
        "explain" => {}
        "seccomp" => forbid_reading(),
        "few" => return watch_with_few_files(pid),
        other => panic!("{other}"),
    }
    let facts = proc::process(pid).map(|facts| (facts.comm, facts.open_fds)).ok();
    let threads = threads::thread_facts(pid, None).len();
    let mut out = std::io::stdout().lock();
    match access::check(pid) {
        Ok(()) => writeln!(out, "\nsaid: may read").unwrap(),
        Err(error) => {
            let remedy = error.remedy().unwrap().replace('\n', " ¶ ");
            writeln!(out, "\nsaid: {error:?} | {error} | {remedy} | {facts:?} {threads}").unwrap();
        }
    }
}

/// Watches all threads at once with fewer descriptors than that takes.
fn watch_with_few_files(pid: i32) {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_NOFILE, 80, 80).unwrap();
    let probes: Vec<_> =
        threads::tids(pid).into_iter().map(|tid| ThreadProbe::open(pid, tid).unwrap()).collect();
    let asleep = probes.iter().filter(|probe| probe.standing().unwrap().doing.syscall().is_some()).count();
    println!(
        "\nsaid: {asleep} of {} asleep, {} described",
        probes.len(),
        threads::thread_facts(pid, None).len()
    );
}

#[test]
fn more_threads_than_files_may_be_open() {
    let (target, _) = python(
        "import sys, threading
e = threading.Event()
for i in range(59): threading.Thread(target=e.wait, daemon=True).start()
print(1, flush=True); sys.stdin.read()",
    );
    wait_for("sleeping threads", || {
        threads::thread_facts(target.pid(), None).iter().all(|thread| thread.syscall.is_some()).then_some(())
    });
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "helper", "--nocapture"]);
    assert_eq!(said(&mut helper, &format!("few:{}", target.pid())), "60 of 60 asleep, 60 described");
}

/// Puts process_vm_readv behind a seccomp filter that answers EPERM, as container runtimes do.
fn forbid_reading() {
    use nix::libc;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_process_vm_readv as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter outlives the call, which copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

fn said(command: &mut Command, task: &str) -> String {
    let output = command.env("HANGSCOPE_TEST_HELPER", task).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("said: "));
    line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

/// A copy of this test program at a place that everybody can reach.
fn helper_program(dir: &Path) -> PathBuf {
    let copy = dir.join("helper");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    for path in [dir, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}

#[test]
fn why_a_process_cannot_be_read() {
    const NOBODY: u32 = 65534;
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = helper_program(dir.path());
    // `with`: a command that runs the helper; none: run as it is.
    let helper = |with: &[&str]| {
        let words: Vec<_> = with.iter().map(Path::new).chain([program.as_path()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["--exact", "helper", "--nocapture"]);
        command
    };
    let as_nobody = || {
        let mut command = helper(&[]);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    };
    let target = start(&mut Command::new("cat"));
    let task = format!("explain:{}", target.pid());
    assert_eq!(said(&mut helper(&[]), &task), "may read");

    // /proc alone still tells a part.
    let line = said(&mut as_nobody(), &task);
    assert!(line.contains("OtherUser") && line.contains("belongs to root (uid 0)"), "{line}");
    assert!(line.contains("sudo ") && line.contains("Some((\"cat\", ") && line.ends_with(" 1"), "{line}");

    // Root without the capability, against somebody else's process: as in a container.
    let bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let nobody = start(Command::new("cat").uid(NOBODY).gid(NOBODY));
    let task_nobody = format!("explain:{}", nobody.pid());
    let line = said(&mut helper(&bare), &task_nobody);
    assert!(line.contains("MissingCapability") && line.contains("add: [SYS_PTRACE]"), "{line}");
    // And against root's own that has more capabilities.
    let line = said(&mut helper(&bare), &task);
    assert!(line.contains("it holds capabilities that we do not"), "{line}");

    // The same user, but not dumpable: it may not read the file that it executes.
    let unreadable = dir.path().join("unreadable");
    std::fs::copy("/bin/cat", &unreadable).unwrap();
    std::fs::set_permissions(&unreadable, std::fs::Permissions::from_mode(0o711)).unwrap();
    let locked = start(Command::new(&unreadable).uid(NOBODY).gid(NOBODY));
    let line = said(&mut as_nobody(), &format!("explain:{}", locked.pid()));
    assert!(line.contains("NotDumpable"), "{line}");

    let line = said(&mut as_nobody(), &task_nobody);
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or("0".into());
    assert!(if scope.trim() == "0" { line == "may read" } else { line.contains("Yama") }, "{line}");

    for unshare in [&["unshare", "-U"][..], &["unshare", "-U", "-r"]] {
        let line = said(&mut helper(unshare), &task);
        assert!(line.contains("UserNamespace") && line.contains("root of the host"), "{unshare:?}: {line}");
    }
    let line = said(&mut helper(&[]), &task.replace("explain", "seccomp"));
    assert!(line.contains("Seccomp") && line.contains("seccomp=unconfined"), "{line}");
}

#[test]
fn who_traces_it() {
    let target = start(&mut Command::new("cat"));
    assert_eq!(access::tracer(target.pid()), None);
    let (pid, none) = (nix::unistd::Pid::from_raw(target.pid()), nix::sys::ptrace::Options::empty());
    if nix::sys::ptrace::seize(pid, none).is_err() {
        eprintln!("skipped: may not trace");
        return;
    }
    match access::tracer(target.pid()) {
        // The thread of ours that seized it.
        Some(AccessError::Denied { reason: Denial::Traced { tracer, .. }, .. }) => {
            assert!(threads::tids(own()).contains(&tracer));
        }
        other => panic!("{other:?}"),
    }
}

/// `cargo test --release --test facts -- --ignored --nocapture costs`
#[test]
#[ignore = "a measurement"]
fn costs() {
    let (small, _) = python("import sys; print(1, flush=True); sys.stdin.read()");
    let (large, _) = python(
        "import sys, threading
e = threading.Event()
for i in range(199): threading.Thread(target=e.wait, daemon=True).start()
print(1, flush=True); sys.stdin.read()",
    );
    let time = |what: &str, work: &dyn Fn()| {
        let mut all: Vec<Duration> = (0..200)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed()
            })
            .collect();
        let first = all[0];
        all.sort();
        println!("{what}: first {first:?}, median {:?}, p90 {:?}", all[100], all[180]);
    };
    time("process, small", &|| drop(proc::process(small.pid())));
    time("process, 200 threads", &|| drop(proc::process(large.pid())));
    time("thread_facts, small", &|| drop(threads::thread_facts(small.pid(), None)));
    time("thread_facts, 200 threads", &|| drop(threads::thread_facts(large.pid(), None)));
    let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
    time("sockets, listening", &|| drop(net::sockets(own())));
    let _connection = TcpStream::connect(_listener.local_addr().unwrap()).unwrap();
    time("sockets, connected", &|| drop(net::sockets(own())));
    time("python_processes", &|| drop(find::python_processes()));
    time("listeners_of_port", &|| drop(net::listeners_of_port(1)));
    let tids = threads::tids(large.pid());
    let open = || tids.iter().map(|&tid| ThreadProbe::open(large.pid(), tid).unwrap()).collect::<Vec<_>>();
    time("200 probes: open", &|| drop(open()));
    let probes = open();
    time("200 probes: standing", &|| probes.iter().for_each(|probe| drop(probe.standing())));
    time("200 probes: cpu", &|| probes.iter().for_each(|probe| drop(probe.cpu())));
}
