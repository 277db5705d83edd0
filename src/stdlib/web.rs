//! The requests being served: by the frames of frameworks that hold one in a known variable, and by any
//! variable `scope` or `environ` that is one by its own keys.

use std::net::{IpAddr, SocketAddr};

use rustc_hash::FxHashMap;

use super::{FrameScene, Scene, Seen};
use crate::python::code::Codes;
use crate::python::objects::TypeInfo;
use crate::snapshot::{Actor, Address, Request, Task};
use crate::target::memory::Addr;
use crate::target::net::plain;

/// Longest path that is kept.
const MAX_PATH: usize = 2048;
/// Arguments of a function in a worker thread that are looked at.
const MAX_ARGS: usize = 16;

/// Where AnyIO's worker threads run what they are given.
const ANYIO: &str = "/anyio/_backends/_asyncio.py";

/// Variables that hold a request, or lead to one.
const NAMES: [&str; 6] = ["scope", "environ", "request", "req", "func", "self"];

/// Frames whose `self` has the request: file, function, attribute.
const BY_SELF: [(&str, &str, &str); 6] = [
    ("/uvicorn/protocols/http/httptools_impl.py", "run_asgi", "scope"),
    ("/uvicorn/protocols/http/h11_impl.py", "run_asgi", "scope"),
    ("/hypercorn/", "run_asgi", "scope"),
    ("/werkzeug/serving.py", "run_wsgi", "environ"),
    ("/wsgiref/handlers.py", "run", "environ"),
    ("/tornado/web.py", "_execute", "request"),
];

/// The most specific first: what people call the thing that they run.
const FRAMEWORKS: [&str; 19] = [
    "fastapi",
    "starlette",
    "django",
    "flask",
    "aiohttp",
    "tornado",
    "sanic",
    "quart",
    "litestar",
    "falcon",
    "bottle",
    "pyramid",
    "cherrypy",
    "werkzeug",
    "uvicorn",
    "hypercorn",
    "gunicorn",
    "waitress",
    "wsgiref",
];

pub fn read(scene: &Scene, seen: &mut Seen) {
    let room = Room { scene };
    for thread in &scene.threads {
        if let Some(request) = room.of_frames(&thread.frames) {
            seen.requests.insert(thread.raw.tstate, request);
            if let Some(fd) = thread.frames.iter().find_map(|f| room.client(f)) {
                seen.clients.insert(thread.raw.tstate, fd);
            }
        } else if let Some(task) = thread.frames.iter().find_map(|f| room.celery_task(f)) {
            seen.requests.insert(thread.raw.tstate, task);
        }
    }
}

/// How far up the chain of tasks the request's own task is looked for.
const MAX_TASKS_UP: usize = 32;

/// Code that a request's task has handed to another task: the request is that of the task that awaits it,
/// directly or through others.
pub fn through_tasks(scene: &Scene, codes: &Codes, seen: &mut Seen) {
    let room = Room { scene };
    let by_id: FxHashMap<Addr, usize> = seen.tasks.iter().enumerate().map(|(i, t)| (t.id.0, i)).collect();
    let own: Vec<Option<Request>> = seen
        .tasks
        .iter()
        .map(|task| {
            let raw = seen.task_frames.get(&task.id.0)?;
            room.of_frames(&super::visible(scene.heap, codes, raw))
        })
        .collect();
    let request_of = |task: Addr| {
        let mut level = vec![task];
        let mut met: Vec<Addr> = Vec::new();
        while let Some(at) = level.pop().filter(|_| met.len() < MAX_TASKS_UP) {
            if met.contains(&at) {
                continue;
            }
            met.push(at);
            let Some(i) = by_id.get(&at) else { continue };
            if let Some(request) = &own[*i] {
                return Some(request.clone());
            }
            level.extend(seen.tasks[*i].awaited_by.iter().map(|t| t.0));
        }
        None
    };
    let mut of_threads: Vec<(Addr, Request)> = Vec::new();
    let of_tasks: Vec<Option<Request>> = seen.tasks.iter().map(|t| request_of(t.id.0)).collect();
    for (tstate, task) in &seen.current {
        if !seen.requests.contains_key(tstate)
            && let Some(request) = by_id.get(task).and_then(|i| of_tasks[*i].clone())
        {
            seen.requests.insert(*tstate, request);
        }
    }
    // A synchronous endpoint runs in a worker thread of AnyIO's, for the task that awaits its future.
    for thread in scene.threads.iter().filter(|t| !seen.requests.contains_key(&t.raw.tstate)) {
        let request = thread.frames.iter().filter(|f| f.is(ANYIO, &["run"])).find_map(|frame| {
            let future = scene.local(frame, "future")?;
            let awaits =
                |task: &Task| task.waits_on.as_ref().and_then(|w| w.address) == Some(Address(future));
            of_tasks[seen.tasks.iter().position(awaits)?].clone()
        });
        if let Some(request) = request {
            of_threads.push((thread.raw.tstate, request));
        }
    }
    // The same for `run_in_executor` and `to_thread`: one thread, which has begun with it.
    for (task, request) in seen.tasks.iter().zip(&of_tasks) {
        let Some((wait, request)) = task.waits_on.as_ref().zip(request.as_ref()) else { continue };
        let [Actor { tid: Some(tid), task: None, .. }] = wait.on[..] else { continue };
        let works = wait.kind == "future" && wait.detail["queued_at"].is_null();
        let thread = scene.threads.iter().find(|t| t.tid == Some(tid)).filter(|_| works);
        of_threads.extend(thread.map(|t| (t.raw.tstate, request.clone())));
    }
    of_threads.retain(|(tstate, _)| !seen.requests.contains_key(tstate));
    seen.requests.extend(of_threads);
    for (task, request) in seen.tasks.iter_mut().zip(of_tasks) {
        task.request = request;
    }
}

/// Hides the query strings.
pub fn mask(seen: &mut Seen) {
    let of_tasks = seen.tasks.iter_mut().filter_map(|t| t.request.as_mut());
    for request in seen.requests.values_mut().chain(of_tasks) {
        if let Some(path) = &mut request.path
            && let Some(at) = path.find('?')
        {
            path.truncate(at + 1);
            path.push_str(crate::mask::MASK);
        }
    }
}

struct Room<'a, 's> {
    scene: &'a Scene<'s>,
}

impl Room<'_, '_> {
    fn of_frames(&self, frames: &[FrameScene]) -> Option<Request> {
        let mut request = frames.iter().find_map(|f| self.of_frame(f))?;
        request.framework = framework(frames).or(request.framework);
        request.age = frames.iter().find_map(|f| self.age(f));
        Some(request)
    }

    fn of_frame(&self, frame: &FrameScene) -> Option<Request> {
        let file = frame.code.file.as_deref()?;
        let by_self =
            BY_SELF.iter().find(|(path, function, _)| frame.code.name == *function && file.contains(path));
        self.variables(frame, by_self.map(|b| b.2))
    }

    fn variables(&self, frame: &FrameScene, of_self: Option<&str>) -> Option<Request> {
        let known = self.scene.variables(frame)?;
        for name in NAMES {
            if !known.names.iter().any(|n| n == name) {
                continue;
            }
            let Some(obj) = self.scene.local(frame, name) else { continue };
            let found = match name {
                "self" => of_self.and_then(|attribute| self.attribute(obj, attribute)),
                "func" if frame.in_file(ANYIO) => {
                    let args = self.scene.local(frame, "args");
                    self.of_call(obj).or_else(|| self.of_arguments(args?))
                }
                "func" => None,
                _ => self.of_object(obj),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    // ------------------------------------------------------------ objects

    fn attribute(&self, obj: Addr, name: &str) -> Option<Request> {
        self.of_object(self.scene.heap.attrs(obj, [name])[0]?)
    }

    /// Whatever is a request by its own keys or attributes.
    fn of_object(&self, obj: Addr) -> Option<Request> {
        let heap = self.scene.heap;
        let ty = heap.type_of(obj)?;
        if ty.is_dict() {
            return self.of_dict(obj);
        }
        if !ty.is_heap_type() {
            return None;
        }
        let mut attributes = heap.attrs(
            obj,
            ["scope", "environ", "method", "path", "_method", "_message", "uri", "_transport_peername"],
        );
        if attributes.iter().all(Option::is_none) {
            // aiohttp's request keeps its attributes in slots on some versions.
            for (name, value) in heap.slots(obj, 64) {
                match name.as_str() {
                    "_method" => attributes[4] = Some(value),
                    "_message" => attributes[5] = Some(value),
                    "_transport_peername" => attributes[7] = Some(value),
                    _ => {}
                }
            }
        }
        let [scope, environ, method, path, own_method, message, uri, peername] = attributes;
        let is_dict = |d: &Addr| heap.type_of(*d).is_some_and(|t| t.is_dict());
        if let Some(found) = scope.or(environ).filter(is_dict).and_then(|d| self.of_dict(d)) {
            return Some(found);
        }
        // An outgoing request has a method and a path as well.
        if !self.is_incoming(&ty) {
            return None;
        }
        // tornado's HTTPServerRequest, Django's HttpRequest, Werkzeug's without its environ.
        let text = |obj: Option<Addr>| obj.and_then(|o| self.text(o));
        if let (Some(method), Some(path)) = (text(method), text(uri.or(path))) {
            return is_method(&method).then(|| request(method, path));
        }
        // aiohttp's: `_message` is a RawRequestMessage, whose second item is the path.
        let method = text(own_method)?;
        let path = self.message_path(message?)?;
        let client = peername.and_then(|peername| self.client_pair(peername));
        is_method(&method).then(|| Request { client, ..request(method, path) })
    }

    fn is_incoming(&self, ty: &TypeInfo) -> bool {
        const MODULES: [&str; 6] =
            ["tornado.httputil.", "django.", "aiohttp.web", "sanic.request", "falcon.", "pyramid."];
        let heap = self.scene.heap;
        let mut name = heap.type_name(ty);
        let mut base = ty.base;
        for _ in 0..16 {
            if MODULES.iter().any(|m| name.starts_with(m)) {
                return true;
            }
            let Some(t) = heap.type_at(base) else { return false };
            name = heap.type_name(&t);
            base = t.base;
        }
        false
    }

    /// `RawRequestMessage`: a named tuple, or the same thing in C or Cython: `method` and `path` follow its head.
    fn message_path(&self, message: Addr) -> Option<String> {
        let heap = self.scene.heap;
        if let Some(items) = heap.tuple(message, 2) {
            return self.text(*items.get(1)?);
        }
        // aiohttp/_http_parser.pyx: `cdef class RawRequestMessage: cdef readonly str method; cdef readonly str path`.
        let ty = heap.type_of(message)?;
        if !ty.name.ends_with("RawRequestMessage") {
            return None;
        }
        let words = heap.words(message + heap.layout.object.size, 2)?;
        heap.checked_str(words[1])
    }

    /// An ASGI scope or a WSGI environ.
    fn of_dict(&self, dict: Addr) -> Option<Request> {
        let heap = self.scene.heap;
        let asgi = ["type", "path", "method", "query_string", "app", "client"];
        let wsgi =
            ["REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "REMOTE_ADDR", "REMOTE_PORT"];
        let [kind, path, method, query, app, client] = heap.dict_get(dict, asgi);
        let [wsgi_method, info, wsgi_query, script, remote, port] = heap.dict_get(dict, wsgi);
        let text = |obj: Option<Addr>| obj.and_then(|o| self.text(o));
        let with_query = |path: String, query: Option<String>| match query.filter(|q| !q.is_empty()) {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        if let Some(method) = text(wsgi_method) {
            let info = text(info)?;
            let path = text(script).unwrap_or_default() + &info;
            let client = remote.and_then(|host| self.client_address(host, port?));
            let found = Request { client, ..request(method, with_query(path, text(wsgi_query))) };
            return is_method(found.method.as_deref()?).then_some(found);
        }
        let (kind, path) = (text(kind)?, text(path)?);
        let method = match kind.as_str() {
            "http" => text(method).filter(|m| is_method(m))?,
            "websocket" => "WEBSOCKET".to_owned(),
            _ => return None,
        };
        // What the application is an instance of, where no frame shows it.
        let app = app.and_then(|app| heap.type_of(app)).map(|ty| heap.type_name(&ty));
        let framework = app.and_then(|name| FRAMEWORKS.iter().find(|f| name.split('.').next() == Some(**f)));
        let framework = framework.map(|f| (*f).to_owned());
        let client = client.and_then(|client| self.client_pair(client));
        Some(Request { framework, client, ..request(method, with_query(path, text(query))) })
    }

    /// `(host, port)`, or a tuple that begins with these.
    fn client_pair(&self, pair: Addr) -> Option<String> {
        let pair = self.scene.heap.tuple(pair, 4)?;
        self.client_address(*pair.first()?, *pair.get(1)?)
    }

    /// Host and port, the latter a number or its digits, as the address of a socket.
    fn client_address(&self, host: Addr, port: Addr) -> Option<String> {
        let heap = self.scene.heap;
        let host: IpAddr = self.text(host)?.parse().ok()?;
        let port = match self.text(port) {
            Some(digits) => digits.parse().ok()?,
            None => u16::try_from(heap.int(port)?).ok()?,
        };
        (port != 0).then(|| plain(SocketAddr::new(host, port)))
    }

    /// A `str`, or ASCII `bytes`.
    fn text(&self, obj: Addr) -> Option<String> {
        let heap = self.scene.heap;
        let ty = heap.type_of(obj)?;
        if ty.is_str() {
            return heap.str_cut(obj, MAX_PATH).map(|t| t.0);
        }
        let (bytes, _) = ty.is_bytes().then(|| heap.bytes(obj, MAX_PATH)).flatten()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The arguments that a `functools.partial` has bound: `{ fn, args, kw }` behind its head
    /// (Modules/_functoolsmodule.c).
    fn of_call(&self, func: Addr) -> Option<Request> {
        let heap = self.scene.heap;
        if heap.type_of(func)?.name != "functools.partial" {
            return None;
        }
        let words = heap.words(func + heap.layout.object.size, 3)?;
        let nested = self.of_call(words[0]);
        nested.or_else(|| self.of_arguments(words[1])).or_else(|| {
            let (entries, _) = heap.dict(words[2], MAX_ARGS)?;
            entries.iter().find_map(|(_, value)| self.of_object(*value))
        })
    }

    fn of_arguments(&self, args: Addr) -> Option<Request> {
        let items = self.scene.heap.tuple(args, MAX_ARGS)?;
        items.iter().find_map(|arg| self.of_object(*arg).or_else(|| self.of_call(*arg)))
    }

    // ------------------------------------------------------------ since when

    /// Where a framework keeps when the request came.
    fn age(&self, frame: &FrameScene) -> Option<f64> {
        let heap = self.scene.heap;
        let float = |obj: Addr| heap.type_of(obj).filter(|t| t.name == "float").and_then(|_| heap.float(obj));
        let age = if frame.is("/tornado/web.py", &["_execute"]) {
            let [request] = heap.attrs(self.scene.receiver(frame)?, ["request"]);
            let [start] = heap.attrs(request?, ["_start_time"]);
            self.scene.now.realtime? - float(start?)?
        } else if frame.is("/aiohttp/web_protocol.py", &["_handle_request"]) {
            self.scene.now.monotonic? - float(self.scene.local(frame, "start_time")?)?
        } else if frame.is("/gunicorn/workers/sync.py", &["handle_request"]) {
            self.gunicorn_age(frame)?
        } else {
            return None;
        };
        Some(age).filter(|age| age.is_finite() && (0.0..1e9).contains(age))
    }
}

impl Room<'_, '_> {
    /// The descriptor of the client's connection, which servers leave in the environ.
    fn client(&self, frame: &FrameScene) -> Option<i32> {
        let heap = self.scene.heap;
        let environ = self.scene.local(frame, "environ")?;
        heap.type_of(environ).filter(|t| t.is_dict())?;
        let [gunicorn, werkzeug] = heap.dict_get(environ, ["gunicorn.socket", "werkzeug.socket"]);
        let socket = gunicorn.or(werkzeug)?;
        // The fd is the first of a socket's own fields (Modules/socketmodule.h).
        let is_socket = heap.is_a(&*heap.type_of(socket)?, "_socket.socket");
        is_socket.then(|| heap.mem.i32(socket + heap.layout.object.size).ok()).flatten().filter(|fd| *fd >= 0)
    }

    /// What a worker of celery does is a request as well (celery/app/trace.py).
    fn celery_task(&self, frame: &FrameScene) -> Option<Request> {
        let heap = self.scene.heap;
        if !frame.is("/celery/app/trace.py", &["trace_task"]) {
            return None;
        }
        let started = self.scene.local(frame, "time_start");
        let context = self.scene.local(frame, "task_request")?;
        let [task, id] = heap.attrs(context, ["task", "id"]);
        let path = match (self.text(task?)?, id.and_then(|id| self.text(id))) {
            (name, Some(id)) => format!("{name}[{id}]"),
            (name, None) => name,
        };
        let started = started.filter(|s| heap.type_of(*s).is_some_and(|t| t.name == "float"));
        let age = started.and_then(|s| Some(self.scene.now.monotonic? - heap.float(s)?));
        Some(Request {
            framework: Some("celery".into()),
            age: age.filter(|age| (0.0..1e9).contains(age)),
            ..request("TASK".into(), path)
        })
    }

    /// `request_start` is a local time, and the target's time zone is not known. But all zones differ by
    /// quarters of an hour, and the arbiter kills a sync worker when its timeout is over.
    fn gunicorn_age(&self, frame: &FrameScene) -> Option<f64> {
        const QUARTER: f64 = 900.0;
        let heap = self.scene.heap;
        let [half] = heap.attrs(self.scene.receiver(frame)?, ["timeout"]);
        let half = half?;
        let half = match heap.type_of(half)?.name.as_str() {
            "float" => heap.float(half)?,
            "int" => heap.int(half)? as f64,
            _ => return None,
        };
        if !(half > 0.0 && 2.0 * half < QUARTER) {
            return None;
        }
        let start = self.scene.local(frame, "request_start")?;
        if heap.type_of(start)?.name != "datetime.datetime" {
            return None;
        }
        // A hash, a flag, then year (two bytes, high first), month, day, hour, minute, second and
        // microseconds (three bytes) (Include/datetime.h). Of all of it, what is below a quarter counts.
        let data = heap.mem.bytes(start + heap.layout.object.size + 9, 10).ok()?;
        let micros = u32::from_be_bytes([0, data[7], data[8], data[9]]);
        let since = f64::from(data[5]) * 60.0 + f64::from(data[6]) + f64::from(micros) / 1e6;
        Some((self.scene.now.realtime? - since).rem_euclid(QUARTER))
    }
}

fn request(method: String, path: String) -> Request {
    Request { method: Some(method), path: Some(path), ..Request::default() }
}

/// A token of capitals, as all methods are that anybody uses.
fn is_method(text: &str) -> bool {
    (2..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
}

fn framework(frames: &[FrameScene]) -> Option<String> {
    let package = |f: &FrameScene| {
        let file = f.code.file.as_deref()?;
        if file.contains("/wsgiref/") {
            return Some("wsgiref".to_owned());
        }
        crate::python::paths::package(file).map(|p| p.trim_end_matches(".py").to_lowercase())
    };
    let packages: Vec<String> = frames.iter().filter_map(package).collect();
    FRAMEWORKS.iter().find(|f| packages.iter().any(|p| p == *f)).map(|f| (*f).to_owned())
}
