//! The data model: what one look at one or more processes has seen.
//!
//! Plain data only. Every type serialises to the shape that CONTRACT.md gives it in the JSON
//! report; `None` means "not known" and an empty list "known to be none". Durations are seconds as
//! of the snapshot's `captured_at`, sizes are bytes, addresses are `"0x…"` strings.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::kin::Kin;
use crate::text::Text;

/// An address in a target, written as `"0x7f…"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u64::from_str_radix(digits, 16).map(Address).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Address {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Address".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^0x[0-9a-f]+$" })
    }
}

/// One look: everything that was read at (nearly) one moment.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Snapshot {
    /// Wall-clock time of the look, RFC 3339, UTC.
    pub captured_at: String,
    pub host: String,
    pub looks: Vec<Look>,
    pub processes: Vec<Process>,
    /// Targets that were asked for and could not be read at all.
    pub skipped: Vec<Skipped>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Look {
    /// Seconds since `captured_at`.
    pub at: f64,
    /// How long this look took, seconds.
    pub took: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Skipped {
    pub pid: i32,
    pub command: Vec<String>,
    pub reason: String,
    pub remedy: Option<String>,
    /// Nobody asked for this one: it was met on the way, and is no Python.
    #[serde(default)]
    pub by_the_way: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Process {
    pub pid: i32,
    pub parent: Option<i32>,
    pub command: Vec<String>,
    pub executable: Option<String>,
    /// The file the process was started from is gone or another one by now.
    pub executable_replaced: Option<bool>,
    pub cwd: Option<String>,
    pub python: Option<Python>,
    /// Read only because a finding led here.
    pub followed: bool,
    /// Seconds since the process was started.
    pub uptime: Option<f64>,
    pub rss: Option<u64>,
    pub open_fds: Option<u64>,
    pub fd_limit: Option<u64>,
    pub listens: Option<Vec<Listener>>,
    pub connections: Option<Vec<Socket>>,
    pub children: Option<Vec<Child>>,
    pub server: Option<Server>,
    pub cpu_throttled: Option<bool>,
    pub interpreters: Vec<Interpreter>,
    pub threads: Vec<Thread>,
    pub tasks: Vec<Task>,
    /// What could not be read or was found to be contradictory, in words.
    pub problems: Vec<String>,
    /// What leads to other processes; no part of the report.
    #[serde(skip)]
    pub kin: Kin,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Python {
    /// `3.12.1`; `3.12` where the micro version could not be learned.
    pub version: String,
    pub implementation: String,
    pub free_threaded: bool,
    pub debug: Option<bool>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Listener {
    /// `127.0.0.1:8000`, `[::]:80`, or the path of a Unix socket.
    pub address: String,
    pub backlog: Option<u32>,
    /// Connections that wait to be accepted.
    pub queued: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Child {
    pub pid: i32,
    pub command: Vec<String>,
    pub state: Option<String>,
    /// Of a zombie: what it has returned, or what has killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Server {
    pub kind: String,
    pub role: String,
    /// Of workers that come in several kinds: `sync`, `gthread`, `uvicorn`.
    pub worker: Option<String>,
    /// The supervisor ends a worker whose heartbeat is older than this, seconds; `null` where none does.
    pub timeout: Option<f64>,
    pub heartbeat_age: Option<f64>,
    /// Who gives the sign of life: `handler` (whoever serves the request), `event-loop`, `main-thread`
    /// (which does not serve), `thread` (one of its own); `none`: nobody watches.
    pub heartbeat_from: Option<String>,
    pub supervisor: Option<i32>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Interpreter {
    pub id: i64,
    /// `null` on a free-threaded build that runs without a GIL.
    pub gil: Option<Gil>,
    pub gc_collecting: Option<bool>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Gil {
    pub holder: Option<i32>,
    pub waiters: Vec<i32>,
}

impl Process {
    pub fn main_thread(&self) -> Option<&Thread> {
        self.threads.iter().find(|t| t.main)
    }

    /// Where its main thread stands.
    pub fn main_frame(&self) -> Option<&Frame> {
        Frame::telling(&self.main_thread()?.frames)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Thread {
    /// Thread id as this machine's `/proc` shows it; `null` if only the interpreter knows the thread.
    pub tid: Option<i32>,
    /// `threading.get_ident()` of that thread.
    pub ident: Option<u64>,
    pub name: Option<String>,
    pub daemon: Option<bool>,
    pub main: bool,
    /// The main thread, after the end of the program: it waits for other threads, or runs what `atexit` was given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exiting: bool,
    /// Id of the interpreter it belongs to; `null` for threads without Python.
    pub interpreter: Option<i64>,
    pub os: Option<ThreadOs>,
    pub activity: Activity,
    pub holds_gil: Option<bool>,
    pub event_loop: Option<EventLoop>,
    pub request: Option<Request>,
    pub task: Option<Address>,
    pub waits_on: Option<Wait>,
    pub holds: Vec<Lock>,
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// The stack reaches its root.
    pub complete: bool,
    pub read: Read,
    pub problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    Running,
    Waiting,
    WaitingForGil,
    Idle,
    Unknown,
}

/// How exact a stack is. The first three are one atomic moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Read {
    /// Proven not to have run between the first and the last byte read.
    Frozen,
    /// The reader sat on the CPU of the thread (or of the GIL's holder) while it read.
    Seat,
    /// Seized with ptrace while it was read (`--pause`).
    Paused,
    /// Two bulk copies agree, but the thread ran in between.
    Moving,
    /// The thread ran while it was read and no two copies agreed.
    Torn,
}

impl Read {
    pub fn is_exact(self) -> bool {
        matches!(self, Read::Frozen | Read::Seat | Read::Paused)
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct ThreadOs {
    /// One letter as in `/proc/PID/stat`.
    pub state: Option<char>,
    /// Kernel function the thread sleeps in.
    pub wchan: Option<String>,
    pub syscall: Option<Syscall>,
    /// User and system time, seconds.
    pub cpu_time: Option<f64>,
    /// How long the thread has been off the CPU, asleep, seconds.
    pub blocked_for: Option<f64>,
    pub blocked_for_is: Option<Precision>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    Exact,
    AtLeast,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Syscall {
    /// Name on this architecture; `syscall_NNN` where it has none here.
    pub name: String,
    /// Decoded arguments, `name=value`.
    pub args: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct EventLoop {
    pub kind: String,
    pub state: String,
    pub iteration_age: Option<f64>,
    pub ready: Option<u64>,
    pub overdue: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Request {
    pub method: Option<String>,
    pub path: Option<String>,
    pub framework: Option<String>,
    pub age: Option<f64>,
    /// Address and port of who sent it, as the server has noted them.
    #[serde(skip)]
    pub client: Option<String>,
    /// Seconds for which its client has neither sent nor been sent anything: the response may have begun.
    #[serde(skip)]
    pub quiet_for: Option<f64>,
}

impl Request {
    /// `GET /news/stream`, or what of it is known; empty: nothing.
    pub fn words(&self) -> String {
        let words = [self.method.as_deref(), self.path.as_deref()];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Frame {
    pub function: Text,
    /// `co_qualname`, from 3.11 on.
    pub qualname: Option<Text>,
    /// `__name__` of the frame's globals.
    pub module: Option<Text>,
    /// As the code object has it.
    pub file: Option<Text>,
    /// The file that was found for it, through the target's root.
    pub path: Option<Text>,
    /// `null` for an instruction without a line.
    pub line: Option<u32>,
    /// That line's text, without its indentation.
    pub source: Option<Text>,
    pub kind: FrameKind,
    /// The application's own code: neither standard library nor an installed package.
    pub user: bool,
    pub locals: Option<Vec<Local>>,
}

impl Frame {
    /// The frame that tells most where a stack stands, of frames from the innermost on: the innermost one of the
    /// application's own code, or else the innermost.
    pub fn telling(frames: &[Frame]) -> Option<&Frame> {
        frames.iter().find(|f| f.user).or(frames.first())
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    Python,
    Native,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Local {
    pub name: String,
    pub value: String,
    pub argument: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Lock {
    pub address: Address,
    #[serde(rename = "type")]
    pub kind: String,
    pub name: Option<String>,
    /// Index of the frame that is inside of it; `null` where only an owner field tells.
    pub frame: Option<usize>,
    /// Line of the `with` statement that took it.
    pub line: Option<u32>,
    pub certainty: Certainty,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    Likely,
    Proved,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Wait {
    pub kind: String,
    pub address: Option<Address>,
    pub label: Option<String>,
    /// Dotted, e.g. `queue.Queue.put`.
    pub call: Option<String>,
    /// Index of that call's frame.
    pub frame: Option<usize>,
    pub blocked_for: Option<f64>,
    /// `none`: never ends by itself; `at`: see `ends_in`.
    pub deadline: Option<String>,
    pub ends_in: Option<f64>,
    /// Who must act for it to end.
    pub on: Vec<Actor>,
    pub certainty: Certainty,
    pub detail: serde_json::Value,
}

impl Wait {
    /// Waits for a connection of a pool. (A pool of workers is `true` there.)
    pub fn is_for_pool(&self) -> bool {
        self.detail["pool"].is_object()
    }

    /// With a timeout, and anew whenever it is over.
    pub fn is_retried(&self) -> bool {
        self.detail["retried"] == true
    }

    /// It has slept since the last time it asked, which is not since when it waits: also for a lock that has no
    /// queue, with sleeps in between.
    pub fn asks_again(&self) -> bool {
        self.is_retried() || self.detail["asks_again"] == true
    }

    /// Of a kind, on an object; nothing else is known of it yet.
    pub fn new(kind: &str, address: Option<u64>) -> Wait {
        Wait {
            kind: kind.to_owned(),
            address: address.map(Address),
            label: None,
            call: None,
            frame: None,
            blocked_for: None,
            deadline: None,
            ends_in: None,
            on: Vec::new(),
            certainty: Certainty::Proved,
            detail: serde_json::json!({}),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Actor {
    pub pid: Option<i32>,
    pub tid: Option<i32>,
    pub thread: Option<String>,
    pub task: Option<Address>,
    /// How people know the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_name: Option<String>,
}

impl Actor {
    /// A task; its name is added when all tasks are known.
    pub fn task(pid: i32, tid: Option<i32>, task: Address) -> Actor {
        Actor { pid: Some(pid), tid, thread: None, task: Some(task), task_name: None }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Socket {
    pub fd: i32,
    pub family: Option<String>,
    pub local: Option<String>,
    pub peer: Option<String>,
    pub tcp_state: Option<String>,
    pub recv_queue: Option<u32>,
    pub send_queue: Option<u32>,
    pub timeout: Option<f64>,
    pub peer_process: Option<PeerProcess>,
    /// What the kernel knows of a TCP connection; only of those that somebody waits for.
    #[serde(default)]
    pub tcp: Option<Tcp>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Tcp {
    /// Sendings in a row that were not answered.
    pub retransmits: u32,
    /// Seconds since data last came; since the connection was made, if none has come.
    pub received_ago: f64,
    /// Seconds since data was last sent.
    pub sent_ago: f64,
    /// Bytes that have come so far; `null` on old kernels.
    pub received: Option<u64>,
    /// Bytes that were sent so far, also again; `null` before Linux 4.19.
    pub sent: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct PeerProcess {
    pub pid: i32,
    pub command: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct Task {
    pub id: Address,
    pub name: Option<String>,
    #[serde(rename = "loop")]
    pub event_loop: Option<Address>,
    pub tid: Option<i32>,
    pub coroutine: Option<String>,
    pub state: Option<String>,
    pub awaits: Vec<Address>,
    pub awaited_by: Vec<Address>,
    pub holds: Vec<Lock>,
    pub frames: Vec<Frame>,
    pub waits_on: Option<Wait>,
    pub request: Option<Request>,
    /// Its loop runs until it is done.
    #[serde(default)]
    pub main: bool,
    /// How often it was asked to end (`cancel()`), without `uncancel()` since; `null` before 3.11.
    #[serde(default)]
    pub cancels: Option<u32>,
}
