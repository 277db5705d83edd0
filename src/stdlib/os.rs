//! What a thread waits for by its system call alone, for those that no other room has understood: sockets,
//! pipes, files, sleeps, children, polls. Here is what the call and the target's memory tell; what its
//! descriptors lead to is added after the window (look/waits.rs).

use serde_json::json;

use super::{FrameScene, Scene, Seen, ThreadScene, exits, locks};
use crate::python::paths::Paths;
use crate::snapshot::{Actor, Address, Certainty, Wait};
use crate::target::facts::RawSyscall;
use crate::target::fds::LockCall;
use crate::target::memory::Addr;
use crate::target::syscalls::{self, Arch, TimeClock, TimeShape, Timeout};

/// Most descriptors of a `poll` or `select` that are read.
const MAX_POLLED: usize = 64;
/// select(2) knows no descriptor above this.
const MAX_SELECTED: u64 = 1024;

/// The two clocks that timeouts count by, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Now {
    pub monotonic: Option<f64>,
    pub realtime: Option<f64>,
}

/// Until when a thread sleeps, as its system call says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deadline {
    /// Nothing but what it waits for ends it.
    Never,
    /// Seconds from now.
    In(f64),
    /// Seconds from when the call began.
    After(f64),
}

/// What a thread's system call works on.
#[derive(Clone, Debug, PartialEq)]
pub struct OsWait {
    pub on: On,
    /// It looks for work that may come in, not for the end of something that it has begun.
    pub for_work: bool,
    /// The application's code around it sends something, too.
    pub sends: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum On {
    /// One descriptor, and what is done with it.
    Fd {
        fd: i32,
        operation: &'static str,
    },
    /// Several, with their `POLL…` bits.
    Poll {
        fds: Vec<(i32, u16)>,
    },
    Epoll {
        fd: i32,
    },
    FileLock {
        fd: i32,
        call: LockCall,
    },
    /// A file that somebody else has locked, by its path: it is not open meanwhile.
    Locked {
        path: String,
    },
    /// A child by the number that the target gives it; `None`: any.
    Child {
        pid: Option<i32>,
    },
    Pidfd {
        fd: i32,
    },
    Path {
        path: String,
    },
    /// A file of a database that somebody else has locked, asked for again and again.
    Database,
    Sleep,
    Other,
}

const POLLIN: u16 = 1;
const POLLOUT: u16 = 4;

/// Until when this call may sleep. `None`: it does not say.
pub fn deadline(scene: &Scene, call: &RawSyscall) -> Option<Deadline> {
    let (address, shape, clock, absolute) = match syscalls::timeout(Arch::HERE, call)? {
        Timeout::Never => return Some(Deadline::Never),
        Timeout::Millis(ms) => return Some(Deadline::After(f64::from(ms) / 1e3)),
        Timeout::At { address, shape, clock, absolute } => (address, shape, clock, absolute),
    };
    let words = scene.heap.words(address, 2)?;
    let (seconds, part) = (words[0] as i64, words[1] as i64);
    let unit = match shape {
        TimeShape::Timespec => 1e9,
        TimeShape::Timeval => 1e6,
    };
    if seconds < 0 || !(0..unit as i64).contains(&part) {
        return None;
    }
    let time = seconds as f64 + part as f64 / unit;
    if !absolute {
        return Some(Deadline::After(time));
    }
    let now = match clock {
        TimeClock::Monotonic => scene.now.monotonic?,
        TimeClock::Realtime => scene.now.realtime?,
        TimeClock::Other(_) => return None,
    };
    // Python has no larger timeouts; a time that lies is none.
    Some(time - now).filter(|left| left.abs() < 1e10).map(|left| Deadline::In(left.max(0.0)))
}

/// The last of the rooms: what the others have said stands.
pub fn read(scene: &Scene, seen: &mut Seen) {
    prefetch(scene);
    let paths = Paths::new(&scene.python.sys, &[]);
    for thread in &scene.threads {
        let Some(call) = &thread.syscall else { continue };
        if let Some(deadline) = deadline(scene, call) {
            seen.deadlines.insert(thread.raw.tstate, deadline);
        }
        if seen.waits.contains_key(&thread.raw.tstate) {
            continue;
        }
        let serves = seen.requests.contains_key(&thread.raw.tstate);
        let (wait, os) = Room { scene, thread, paths: &paths, serves }.wait(call);
        seen.waits.insert(thread.raw.tstate, wait);
        seen.os.insert(thread.raw.tstate, os);
    }
}

/// Timeouts and polled sets of all threads, in one system call.
fn prefetch(scene: &Scene) {
    let mut ranges = Vec::new();
    for call in scene.threads.iter().filter_map(|t| t.syscall.as_ref()) {
        if let Some(Timeout::At { address, .. }) = syscalls::timeout(Arch::HERE, call) {
            ranges.push((address, 16));
        }
        if let Some("poll" | "ppoll") = syscalls::name(Arch::HERE, call.number) {
            ranges.push((call.args[0], 8 * (call.args[1] as usize).min(MAX_POLLED)));
        }
    }
    if !ranges.is_empty() {
        scene.heap.mem.prefetch(&ranges);
    }
}

struct Room<'a, 's> {
    scene: &'a Scene<'s>,
    thread: &'a ThreadScene<'s>,
    paths: &'a Paths,
    /// It is at a request.
    serves: bool,
}

impl Room<'_, '_> {
    fn wait(&self, call: &RawSyscall) -> (Wait, OsWait) {
        let name = syscalls::name(Arch::HERE, call.number).unwrap_or("a system call");
        let mut wait = Wait { label: Some(name.to_owned()), ..Wait::new("unknown", None) };
        let on = self.on(name, call, &mut wait);
        let for_work = match &on {
            On::Epoll { .. } | On::Poll { .. } => self.is_loop(),
            On::Fd { operation, .. } => {
                let next = matches!(*operation, "recv" | "read") && !self.serves && self.is_loop();
                *operation == "accept" || next || self.is_between_requests()
            }
            _ => false,
        };
        (wait.call, wait.frame) = self.call(&on, name);
        (wait, OsWait { on, for_work, sends: self.sends() })
    }

    fn sends(&self) -> bool {
        const NEAR: usize = 3;
        let own = self.thread.frames.iter().filter(|f| self.scene.is_user(f)).take(NEAR);
        let says = |name: &String| name.starts_with("send") || name == "connect";
        own.into_iter().any(|f| self.scene.names(f.raw.code).iter().any(says))
    }

    fn on(&self, name: &str, call: &RawSyscall, wait: &mut Wait) -> On {
        let a = &call.args;
        let int = |i: usize| a[i] as u32 as i32;
        let socket = |wait: &mut Wait, operation| {
            wait.kind = "socket".into();
            wait.label = None;
            let mut detail = json!({ "fd": int(0), "operation": operation });
            if let Some(timeout) = self.socket_timeout(int(0)) {
                detail["timeout"] = json!(timeout);
            }
            wait.detail = detail;
            // With a timeout Python polls before it calls.
            wait.deadline = Some("none".into());
            On::Fd { fd: int(0), operation }
        };
        if let Some(on) = self.waits_for_child(wait) {
            return on;
        }
        match name {
            "recvfrom" | "recvmsg" | "recvmmsg" => socket(wait, "recv"),
            "sendto" | "sendmsg" | "sendmmsg" => socket(wait, "send"),
            "accept" | "accept4" => socket(wait, "accept"),
            "connect" => socket(wait, "connect"),
            "read" | "readv" | "pread64" | "preadv" => On::Fd { fd: int(0), operation: "read" },
            "write" | "writev" | "pwrite64" | "pwritev" | "sendfile" => {
                On::Fd { fd: int(0), operation: "write" }
            }
            "fsync" | "fdatasync" | "syncfs" | "fallocate" | "ftruncate" | "fstat" | "getdents64"
            | "close" => On::Fd { fd: int(0), operation: "sync" },
            "openat" | "newfstatat" | "unlinkat" | "mkdirat" | "statx" => self.path(a[1], wait),
            "open" | "stat" | "lstat" | "unlink" | "mkdir" | "rmdir" | "rename" => self.path(a[0], wait),
            "flock" => self.file_lock(int(0), LockCall::Flock, wait),
            // F_SETLKW, F_OFD_SETLKW
            "fcntl" if matches!(int(1), 7 | 38) => self.file_lock(int(0), LockCall::Fcntl, wait),
            "wait4" => {
                wait.kind = "process".into();
                On::Child { pid: Some(int(0)).filter(|p| *p > 0) }
            }
            "waitid" => {
                wait.kind = "process".into();
                match a[0] as u32 {
                    1 => On::Child { pid: Some(int(1)) },
                    3 => On::Pidfd { fd: int(1) },
                    _ => On::Child { pid: None },
                }
            }
            "clock_nanosleep" | "nanosleep" => self.sleep(wait),
            "poll" | "ppoll" if a[1] as u32 == 0 => self.sleep(wait),
            "select" | "pselect6" if a[0] as u32 == 0 => self.sleep(wait),
            "poll" | "ppoll" => self.polled(self.poll_set(a[0], a[1]), wait),
            "select" | "pselect6" => self.polled(self.select_set(a), wait),
            "epoll_wait" | "epoll_pwait" | "epoll_pwait2" => {
                wait.kind = "poll".into();
                On::Epoll { fd: int(0) }
            }
            _ => {
                wait.address = self.thread.futex().map(Address);
                self.mutex(wait);
                On::Other
            }
        }
    }

    /// A mutex of native code: glibc's `pthread_mutex_t { lock, count, owner, nusers, kind }` of 32-bit words,
    /// where 2 is a lock that others wait for (sysdeps/nptl/bits/struct_mutex.h, nptl/lowlevellock.h).
    fn mutex(&self, wait: &mut Wait) {
        const CONTENDED: u32 = 2;
        let (Some(Address(at)), Some(call)) = (wait.address, self.thread.syscall) else { return };
        let Ok(bytes) = self.scene.heap.mem.bytes(at, 16) else { return };
        let word = |i: usize| u32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("4 bytes"));
        let (locked, owner, users) = (word(0), word(2) as i32, word(3));
        if call.args[2] as u32 != CONTENDED || locked != CONTENDED || owner <= 0 || users == 0 {
            return;
        }
        let is_owner = |t: &&ThreadScene| t.raw.native_tid.or(t.tid) == Some(owner);
        let Some(owner) = self.scene.threads.iter().find(is_owner) else { return };
        *wait = Wait {
            label: Some(format!("mutex {at:#x}")),
            on: vec![locks::actor(self.scene, owner)],
            certainty: Certainty::Likely,
            detail: json!({ "owner": owner.tid, "locked": true, "native": true }),
            ..Wait::new("lock", Some(at))
        };
    }

    fn sleep(&self, wait: &mut Wait) -> On {
        wait.kind = "sleep".into();
        wait.label = None;
        On::Sleep
    }

    fn file_lock(&self, fd: i32, call: LockCall, wait: &mut Wait) -> On {
        wait.kind = "file".into();
        wait.detail = json!({ "fd": fd });
        wait.deadline = Some("none".into());
        On::FileLock { fd, call }
    }

    fn path(&self, at: Addr, wait: &mut Wait) -> On {
        let Some(path) = self.scene.heap.mem.c_string(at, 1024).ok() else { return On::Other };
        let path = String::from_utf8_lossy(&path).into_owned();
        wait.kind = "file".into();
        wait.detail = json!({ "path": path });
        On::Path { path }
    }

    fn polled(&self, fds: Option<Vec<(i32, u16)>>, wait: &mut Wait) -> On {
        wait.kind = "poll".into();
        match fds.as_deref() {
            Some([(fd, events)]) => {
                let operation = match events {
                    e if e & POLLIN != 0 => "recv",
                    e if e & POLLOUT != 0 => "send",
                    _ => "poll",
                };
                // The poll that a socket's timeout makes of each call has that timeout.
                wait.detail = json!({ "fd": fd, "timeout": self.socket_timeout(*fd).flatten() });
                On::Fd { fd: *fd, operation }
            }
            _ => On::Poll { fds: fds.unwrap_or_default() },
        }
    }

    /// struct pollfd: int fd, short events, short revents.
    fn poll_set(&self, at: Addr, count: u64) -> Option<Vec<(i32, u16)>> {
        let count = (count as usize).min(MAX_POLLED);
        let bytes = self.scene.heap.mem.bytes(at, 8 * count).ok()?;
        let one = |c: &[u8]| (i32::from_le_bytes([c[0], c[1], c[2], c[3]]), u16::from_le_bytes([c[4], c[5]]));
        Some(bytes.chunks_exact(8).map(one).filter(|(fd, _)| *fd >= 0).collect())
    }

    /// Three sets of bits.
    fn select_set(&self, args: &[u64; 6]) -> Option<Vec<(i32, u16)>> {
        let count = u64::from(args[0] as u32).min(MAX_SELECTED) as usize;
        let mut found: Vec<(i32, u16)> = Vec::new();
        for (at, bit) in [(args[1], POLLIN), (args[2], POLLOUT), (args[3], 2)] {
            if at == 0 {
                continue;
            }
            let bytes = self.scene.heap.mem.bytes(at, count.div_ceil(64) * 8).ok()?;
            for fd in (0..count).filter(|fd| bytes[fd / 8] & 1 << (fd % 8) != 0) {
                match found.iter().position(|f| f.0 == fd as i32) {
                    Some(known) => found[known].1 |= bit,
                    None if found.len() < MAX_POLLED => found.push((fd as i32, bit)),
                    None => {}
                }
            }
        }
        Some(found)
    }

    /// `Popen.wait` with a timeout asks again and again, and sleeps in between (until 3.14).
    fn waits_for_child(&self, wait: &mut Wait) -> Option<On> {
        let frame = self.thread.frames.first().filter(|f| f.is("/subprocess.py", &["_wait"]))?;
        let process = self.scene.receiver(frame)?;
        let [pid] = self.scene.heap.attrs(process, ["pid"]);
        let pid = i32::try_from(self.scene.heap.int(pid?)?).ok()?;
        wait.kind = "process".into();
        wait.label = None;
        let timed =
            self.scene.local(frame, "endtime").filter(|end| self.type_name(*end) == Some("float".into()));
        let left = timed.and_then(|end| Some(self.scene.heap.float(end)? - self.scene.now.monotonic?));
        if let Some(left) = left.filter(|left| left.is_finite()) {
            (wait.deadline, wait.ends_in) = (Some("at".into()), Some(left.max(0.0)));
        } else {
            wait.deadline = Some("none".into());
        }
        Some(On::Child { pid: Some(pid) })
    }

    fn type_name(&self, obj: Addr) -> Option<String> {
        Some(self.scene.heap.type_of(obj)?.name.clone())
    }

    // ------------------------------------------------------------ sockets

    /// The timeout of the Python socket of this descriptor, where the innermost frames show one:
    /// `Some(None)` is a socket without a timeout.
    fn socket_timeout(&self, fd: i32) -> Option<Option<f64>> {
        for frame in self.thread.frames.iter().take(5) {
            for (name, obj) in self.scene.locals(frame) {
                let below = match name.as_str() {
                    "self" => self.scene.heap.attrs(obj, ["_sock", "sock"]),
                    _ => [None, None],
                };
                for obj in [Some(obj)].into_iter().chain(below).flatten() {
                    if let Some(timeout) = self.timeout_of(obj, fd) {
                        return Some(timeout);
                    }
                }
            }
        }
        None
    }

    /// `PySocketSockObject` (Modules/socketmodule.h): int fd, family, type, proto; a function; the timeout
    /// in nanoseconds, below 0 for none.
    fn timeout_of(&self, obj: Addr, fd: i32) -> Option<Option<f64>> {
        let heap = self.scene.heap;
        let ty = heap.type_of(obj)?;
        if !heap.is_a(&ty, "_socket.socket") {
            return None;
        }
        let at = obj + heap.layout.object.size;
        if heap.mem.i32(at).ok()? != fd {
            return None;
        }
        let timeout = heap.mem.i64(at + 24).ok()?;
        Some((timeout >= 0).then_some(timeout as f64 / 1e9))
    }

    // ------------------------------------------------------------ calls

    /// The Python call that sleeps, and its frame. Of the standard library's own frames the innermost
    /// that says something; what C code does is said where nothing else could make this system call.
    fn call(&self, on: &On, name: &str) -> (Option<String>, Option<usize>) {
        let frames = &self.thread.frames;
        let Some(first) = frames.first() else { return (None, None) };
        if self.is_stdlib(first) {
            // A file object of a socket is not what anybody calls; neither are the inner steps of Popen.
            let stdlib = || frames.iter().take_while(|f| self.is_stdlib(f));
            let of_popen = |f: &FrameScene| f.in_file("/subprocess.py");
            let selects = stdlib().any(of_popen);
            let plumbing = |f: &FrameScene| {
                f.is("/socket.py", &["readinto", "write"])
                    || of_popen(f) && f.code.name.starts_with('_')
                    || selects && f.in_file("/selectors.py")
            };
            let at = stdlib().enumerate().find(|(_, f)| !plumbing(f)).map_or(0, |(i, _)| i);
            if let Some(call) = self.dotted(&frames[at]) {
                return (Some(call), Some(at));
            }
        }
        let call = match on {
            On::Sleep if self.is_time_sleep(name) => "time.sleep",
            On::Sleep => return (self.c_call(first), Some(0)),
            On::FileLock { call: LockCall::Flock, .. } => "fcntl.flock",
            On::FileLock { .. } => "fcntl.lockf",
            On::Poll { .. } if matches!(name, "select" | "pselect6") => "select.select",
            On::Fd { fd, operation } if self.socket_timeout(*fd).is_some() => match *operation {
                "accept" => "socket.socket.accept",
                "connect" => "socket.socket.connect",
                "send" | "write" => "socket.socket.send",
                _ => "socket.socket.recv",
            },
            _ => return (None, Some(0)),
        };
        (Some(call.into()), Some(0))
    }

    /// `pysleep` (Modules/timemodule.c): `clock_nanosleep` until an absolute time from 3.11 on, `select`
    /// before. C code that sleeps in between (`usleep`, as sqlite's busy handler does) calls neither.
    fn is_time_sleep(&self, name: &str) -> bool {
        const TIMER_ABSTIME: u64 = 1;
        match name {
            "select" | "pselect6" => true,
            "clock_nanosleep" => self.thread.syscall.is_some_and(|c| c.args[1] & TIMER_ABSTIME != 0),
            _ => false,
        }
    }

    /// The method of C that the innermost frame calls: its descriptor, or the method bound to its object, lies
    /// on the value stack. Slots above the live ones may be stale, so all that are there have to agree.
    fn c_call(&self, frame: &FrameScene) -> Option<String> {
        let heap = self.scene.heap;
        let spoken = self.scene.names(frame.raw.code);
        let mut calls: Vec<String> = Vec::new();
        for obj in exits::stack_slots(heap, frame) {
            let Some(ty) = heap.type_of(obj) else { continue };
            let (class, definition) = match ty.name.as_str() {
                // `PyDescr_COMMON { d_type, d_name, d_qualname }`, then the `PyMethodDef`.
                "method_descriptor" => {
                    let at = obj + heap.layout.object.size;
                    (heap.ptr(at).and_then(|t| heap.type_at(t)), heap.ptr(at + 24))
                }
                _ if ty.is_c_function() => {
                    let receiver = heap.ptr(obj + heap.layout.method.self_);
                    (receiver.and_then(|r| heap.type_of(r)), heap.ptr(obj + heap.layout.method.func))
                }
                _ => continue,
            };
            let name = definition.and_then(|d| exits::c_name(heap, d)).filter(|n| spoken.contains(n));
            let class = class.map(|c| heap.type_name(&c)).filter(|c| c.contains('.'));
            calls.extend(class.zip(name).map(|(class, name)| format!("{class}.{name}")));
        }
        calls.dedup();
        <[String; 1]>::try_from(calls).ok().map(|[call]| call)
    }

    fn is_stdlib(&self, frame: &FrameScene) -> bool {
        let Some(file) = frame.code.file.as_deref() else { return false };
        crate::python::paths::package(file).is_none() && !self.paths.is_user(file)
    }

    /// `module.Class.function`.
    fn dotted(&self, frame: &FrameScene) -> Option<String> {
        let heap = self.scene.heap;
        let [module] = heap.dict_get(frame.raw.globals, ["__name__"]);
        let module = heap.checked_str(module?)?;
        if let Some(qualname) = &frame.code.qualname {
            return Some(format!("{module}.{qualname}"));
        }
        // Up to 3.10 the class is that of `self` which comes from this module.
        let mut ty = self.scene.receiver(frame).and_then(|obj| heap.type_of(obj));
        for _ in 0..16 {
            let Some(t) = ty else { break };
            let name = heap.type_name(&t);
            if name.strip_prefix(&module).is_some_and(|rest| rest.starts_with('.')) {
                return Some(format!("{name}.{}", frame.code.name));
            }
            ty = heap.type_at(t.base);
        }
        Some(format!("{module}.{}", frame.code.name))
    }

    // ------------------------------------------------------------ waiting for work

    /// The selector of an event loop or a server: what runs is a loop that has nothing to do.
    fn is_loop(&self) -> bool {
        const LOOPS: [&str; 22] = [
            "/asyncio/",
            "/multiprocessing/resource_tracker.py",
            "/multiprocessing/forkserver.py",
            "/uvloop/",
            "/tornado/",
            "/trio/",
            "/gevent/",
            "/eventlet/",
            "/curio/",
            "/twisted/",
            "/gunicorn/",
            "/waitress/",
            "/cheroot/",
            "/uwsgi/",
            "/kombu/",
            "/celery/",
            "/billiard/",
            "/zmq/",
            "/socketserver.py",
            "/asyncore.py",
            "/wsgiref/",
            "/meinheld/",
        ];
        let by_selector = |f: &&FrameScene| f.in_file("/selectors.py");
        let Some(caller) = self.thread.frames.iter().find(|f| !by_selector(f)) else { return false };
        // Where the application itself asks a selector, without a library between, that is its own loop.
        let own = self.thread.frames.first().is_some_and(|f| by_selector(&f)) && self.scene.is_user(caller);
        own || LOOPS.iter().any(|l| caller.code.file.as_deref().is_some_and(|f| f.contains(l)))
    }

    /// `http.server` reads the first line of a request that has not come yet.
    fn is_between_requests(&self) -> bool {
        let frames = &self.thread.frames;
        let outside = frames.iter().find(|f| !f.in_file("/socket.py") && !f.in_file("/ssl.py"));
        // What follows the first line is read by `parse_request`.
        outside.is_some_and(|f| {
            f.is("/http/server.py", &["handle_one_request"]) || f.is("/wsgiref/simple_server.py", &["handle"])
        })
    }
}

/// What a system call tells without any memory of the process: of programs that are no Python.
pub fn bare(call: &RawSyscall) -> Option<(Wait, OsWait)> {
    let int = |i: usize| call.args[i] as u32 as i32;
    let fd = |operation| On::Fd { fd: int(0), operation };
    let (kind, on) = match syscalls::name(Arch::HERE, call.number)? {
        "read" | "readv" => ("unknown", fd("read")),
        "write" | "writev" => ("unknown", fd("write")),
        "wait4" => ("process", On::Child { pid: Some(int(0)).filter(|p| *p > 0) }),
        "flock" => ("file", On::FileLock { fd: int(0), call: LockCall::Flock }),
        _ => return None,
    };
    Some((Wait::new(kind, None), OsWait { on, for_work: false, sends: true }))
}

/// A process that must act.
pub fn process(pid: i32) -> Actor {
    Actor { pid: Some(pid), tid: None, thread: None, task: None, task_name: None }
}
