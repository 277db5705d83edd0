//! Clients of databases: which library a thread is inside of, with what statement, on which connection.
//!
//! Drivers in Python show it by their frames. Of drivers in C the caller's value stack has the method that
//! is being called, the cursor and the arguments.

/// Which pools there are.
pub mod kinds;
/// Pools of connections.
pub mod pools;
/// Which thread or task has the connection of a session.
pub mod sessions;
/// Statements as they are shown: without what they were about.
pub mod statement;

use rustc_hash::FxHashSet;
use serde_json::{Value, json};

use super::os::On;
use super::{FrameScene, Scene, Seen, ThreadScene, exits, locks};
use crate::python::objects::TypeInfo;
use crate::snapshot::{Certainty, Wait};
use crate::target::memory::Addr;

/// Longest statement that is read.
const MAX_STATEMENT: usize = 4096;
/// Frames from the innermost one that are looked at.
const MAX_FRAMES: usize = 48;

/// (name, directory or file of its frames, beginning of the names of its types)
const LIBRARIES: [(&str, &str, &str); 22] = [
    ("psycopg2", "/psycopg2/", "psycopg2."),
    ("psycopg_pool", "/psycopg_pool/", "psycopg_pool."),
    ("psycopg", "/psycopg/", "psycopg"),
    ("asyncpg", "/asyncpg/", "asyncpg."),
    ("pg8000", "/pg8000/", "pg8000."),
    ("pymysql", "/pymysql/", "pymysql."),
    ("MySQLdb", "/MySQLdb/", "MySQLdb."),
    ("mysqlclient", "/MySQLdb/", "_mysql."),
    ("mysql.connector", "/mysql/connector/", "_mysql_connector."),
    ("sqlite3", "/sqlite3/", "sqlite3."),
    ("redis", "/redis/", "redis."),
    ("pymongo", "/pymongo/", "pymongo."),
    ("oracledb", "/oracledb/", "oracledb."),
    ("cx_Oracle", "/cx_Oracle/", "cx_Oracle."),
    ("pyodbc", "/pyodbc/", "pyodbc."),
    ("cassandra", "/cassandra/", "cassandra."),
    ("duckdb", "/duckdb/", "duckdb."),
    ("elasticsearch", "/elasticsearch/", "elasticsearch."),
    ("peewee", "/peewee.py", "peewee."),
    ("aioredis", "/aioredis/", "aioredis."),
    ("sqlalchemy", "/sqlalchemy/", "sqlalchemy."),
    ("django", "/django/db/", "django.db."),
];

/// Libraries that speak through another one: that is the driver.
const LAYERS: [&str; 3] = ["sqlalchemy", "django", "peewee"];

/// Variables in the frames of libraries that have the statement.
const STATEMENTS: [&str; 7] = ["statement", "sql", "query", "operation", "str_statement", "stmt", "command"];

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in &scene.threads {
        let tstate = thread.raw.tstate;
        // What other rooms have understood (a pool's lock) is no wait for the server.
        let Some(os) = seen.os.get_mut(&tstate) else { continue };
        let Some(wait) = seen.waits.get_mut(&tstate) else { continue };
        if !matches!(wait.kind.as_str(), "socket" | "poll" | "sleep" | "unknown" | "pipe" | "file") {
            continue;
        }
        let Some(call) = (Room { scene }).call(&thread.frames, true) else { continue };
        if !wait.detail.is_object() {
            wait.detail = json!({});
        }
        if call.library == "sqlite3" && call.is_c && os.on == On::Sleep && !is_time_sleep(wait) {
            // The only sleep there is in SQLite: between two attempts to get a lock (sqliteDefaultBusyCallback).
            // When it gives up only the connection knows.
            seen.deadlines.remove(&tstate);
            os.on = On::Database;
            *wait = Wait { certainty: Certainty::Likely, detail: json!({}), ..Wait::new("file", None) };
        }
        wait.detail["database"] = call.describe();
        (wait.call, wait.frame) = (Some(call.name()), Some(call.frame));
    }
}

/// Who waits for a database that its own process has locked waits for the one other thread that has a connection
/// of its own, if there is one. (That no other process has it locked is settled later.)
pub fn among_own_threads(scene: &Scene, seen: &mut Seen) {
    let locked: Vec<Addr> = seen.os.iter().filter(|(_, os)| os.on == On::Database).map(|(t, _)| *t).collect();
    if locked.is_empty() {
        return;
    }
    // One that was closed has no `sqlite3 *db` any more (Modules/_sqlite/connection.h, its first field).
    let is_open = |o: Addr| scene.heap.ptr(o + scene.heap.layout.object.size).is_some();
    let is_connection =
        |o: &Addr| scene.heap.type_of(*o).is_some_and(|ty| ty.name == "sqlite3.Connection") && is_open(*o);
    let connections = scene.reach().iter().filter(|(object, _)| is_connection(object));
    // The threads that know each of them.
    let known: Vec<FxHashSet<u32>> =
        connections.map(|(_, frames)| frames.iter().map(|(thread, _)| *thread).collect()).collect();
    for (t, thread) in scene.threads.iter().enumerate().filter(|(_, t)| locked.contains(&t.raw.tstate)) {
        let foreign = known.iter().filter(|threads| !threads.contains(&(t as u32)));
        let others: FxHashSet<u32> = foreign.flatten().copied().collect();
        let others: Vec<&ThreadScene> =
            others.into_iter().map(|other| &scene.threads[other as usize]).collect();
        if let ([one], Some(wait)) = (&others[..], seen.waits.get_mut(&thread.raw.tstate)) {
            wait.on = vec![locks::actor(scene, one)];
        }
    }
}

/// The same for a suspended task that waits for nothing which asyncio itself gives a meaning to: a driver is
/// told by its transport when the answer is there.
pub fn of_task(scene: &Scene, frames: &[FrameScene], wait: &mut Wait) {
    let waits_for_driver = match wait.kind.as_str() {
        "future" => wait.on.is_empty() && wait.detail["executor"] != true,
        "socket" => true,
        _ => false,
    };
    let of_asyncio = |f: &FrameScene| {
        library_of(f).is_none() && f.code.file.as_deref().is_some_and(|file| file.contains("/asyncio/"))
    };
    let at = frames.iter().take_while(|f| of_asyncio(f)).count();
    let call = waits_for_driver.then(|| (Room { scene }).call(&frames[at..], false));
    let Some(call) = call.flatten() else { return };
    wait.detail["database"] = call.describe();
    (wait.call, wait.frame) = (Some(call.name()), Some(at + call.frame));
}

/// Of the application's own, even if a statement is being prepared around it.
fn is_time_sleep(wait: &Wait) -> bool {
    wait.call.as_deref() == Some("time.sleep")
}

struct Room<'a, 's> {
    scene: &'a Scene<'s>,
}

#[derive(Clone, Debug, Default)]
struct Call {
    library: &'static str,
    /// The library that the application has called, where that is another one.
    through: Option<&'static str>,
    /// The function that was called, and whose it is.
    function: String,
    of: &'static str,
    frame: usize,
    statement: Option<String>,
    connection: Connection,
    /// The innermost frame is in a driver in C.
    is_c: bool,
}

/// Where a connection leads, as the process itself has it; never with the password.
#[derive(Clone, Debug, Default)]
struct Connection {
    host: Option<String>,
    port: Option<String>,
    user: Option<String>,
    database: Option<String>,
}

impl Call {
    fn name(&self) -> String {
        format!("{}.{}", self.of, self.function)
    }

    fn describe(&self) -> Value {
        json!({
            "library": self.library,
            "through": self.through,
            "statement": self.statement,
            "host": self.connection.host,
            "port": self.connection.port,
            "user": self.connection.user,
            "name": self.connection.database,
        })
    }
}

impl Room<'_, '_> {
    /// `runs`: the innermost frame may be in a call of C just now.
    fn call(&self, frames: &[FrameScene], runs: bool) -> Option<Call> {
        let mut call = Call::default();
        if let Some(first) = frames.first().filter(|_| runs) {
            self.of_c(first, &mut call);
        }
        for (at, frame) in frames.iter().take(MAX_FRAMES).enumerate() {
            match library_of(frame) {
                Some(name) => {
                    if call.library.is_empty() {
                        call.library = name;
                    } else if name != call.library {
                        let is_layer = LAYERS.contains(&call.library) && !LAYERS.contains(&name);
                        call.through.get_or_insert(if is_layer { call.library } else { name });
                    }
                    // The outermost one is what the application has called.
                    (call.frame, call.of) = (at, name);
                    call.function = frame.code.qualname.as_ref().unwrap_or(&frame.code.name).to_string();
                    self.learn(frame, &mut call);
                }
                // Sockets, TLS, threads: what the library itself calls. Beyond it, the caller.
                None if call.library.is_empty() && is_plumbing(frame) => {}
                None => break,
            }
        }
        (!call.library.is_empty()).then_some(call)
    }

    /// The method of a driver in C that this frame is calling.
    fn of_c(&self, frame: &FrameScene, call: &mut Call) {
        let heap = self.scene.heap;
        let slots = exits::stack_slots(heap, frame);
        for (at, pair) in slots.windows(2).enumerate() {
            let Some((function, object)) = exits::called(heap, pair[0], pair[1]) else { continue };
            let Some(library) = heap.type_of(object).and_then(|ty| self.library_of_type(&ty)) else {
                continue;
            };
            (call.library, call.of, call.function, call.is_c) = (library, library, function, true);
            // Behind a method and its object, or behind a bound method.
            let arguments = if object == pair[1] { at + 2 } else { at + 1 };
            call.statement = slots.get(arguments).and_then(|arg| self.text(*arg));
            self.connection(object, &mut call.connection, 0);
            return;
        }
    }

    fn library_of_type(&self, ty: &TypeInfo) -> Option<&'static str> {
        let heap = self.scene.heap;
        let mut name = heap.type_name(ty);
        let mut base = ty.base;
        for _ in 0..8 {
            if let Some(found) = LIBRARIES.iter().find(|l| name.starts_with(l.2)) {
                return Some(found.0);
            }
            let t = heap.type_at(base)?;
            name = heap.type_name(&t);
            base = t.base;
        }
        None
    }

    fn learn(&self, frame: &FrameScene, call: &mut Call) {
        for (name, object) in self.scene.locals(frame) {
            if call.statement.is_none() && STATEMENTS.contains(&name.as_str()) {
                call.statement = self.text(object);
            }
            // redis: `execute_command(self, *args, **options)`.
            if call.statement.is_none() && name == "args" && matches!(call.library, "redis" | "aioredis") {
                call.statement = self.command(object);
            }
            if matches!(name.as_str(), "self" | "conn" | "connection" | "cursor" | "cur" | "engine" | "pool")
            {
                self.connection(object, &mut call.connection, 0);
            }
        }
    }

    /// A command of redis: its first word, and the key, but not what goes into it; of AUTH that is the password.
    fn command(&self, args: Addr) -> Option<String> {
        let items = self.scene.heap.tuple(args, 3)?;
        let name = self.text(*items.first()?)?;
        let shown = if name == "AUTH" { 1 } else { 2 };
        let words: Vec<String> = items.iter().take(shown).filter_map(|item| self.text(*item)).collect();
        let is_command = words.first()?.bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b' ' | b'_'));
        is_command.then(|| words.join(" ") + if items.len() > shown { " …" } else { "" })
    }

    fn connection(&self, object: Addr, known: &mut Connection, depth: u32) {
        let heap = self.scene.heap;
        let Some(ty) = heap.type_of(object).filter(|ty| ty.is_heap_type() || depth == 0) else { return };
        if let Some(items) = (ty.name == "URL").then(|| heap.tuple(object, 8)).flatten() {
            // sqlalchemy.engine.URL: driver, user, password, host, port, database.
            if let [_, user, _, host, port, database, ..] = items[..] {
                self.put(&mut known.user, Some(user));
                self.put(&mut known.host, Some(host));
                self.put(&mut known.port, Some(port));
                self.put(&mut known.database, Some(database));
            }
            return;
        }
        let names = ["host", "port", "user", "username", "db", "database", "dbname", "_host"];
        let [host, port, user, username, db, database, dbname, own_host] = match ty.is_dict() {
            true => heap.dict_get(object, names),
            false => heap.attrs(object, names),
        };
        self.put(&mut known.host, host.or(own_host));
        self.put(&mut known.port, port);
        self.put(&mut known.user, user.or(username));
        self.put(&mut known.database, database.or(dbname).or(db));
        // asyncpg's.
        let [address, parameters] = heap.named_slots(object, &ty, ["_addr", "_params"]);
        if let Some([host, port, ..]) = address.and_then(|a| heap.tuple(a, 2)).as_deref() {
            self.put(&mut known.host, Some(*host));
            self.put(&mut known.port, Some(*port));
        }
        let is_known = |o: &Addr| heap.type_of(*o).is_some_and(|ty| ty.name == "ConnectionParameters");
        if let Some([user, _, database, ..]) =
            parameters.filter(is_known).and_then(|p| heap.tuple(p, 16)).as_deref()
        {
            self.put(&mut known.user, Some(*user));
            self.put(&mut known.database, Some(*database));
        }
        if depth < 3 && !ty.is_dict() {
            let further = [
                "url",
                "engine",
                "connection_kwargs",
                "connection_pool",
                "connection",
                "_connection",
                "settings_dict",
                "_conn",
            ];
            for next in heap.attrs(object, further).into_iter().flatten() {
                let is_dict = heap.type_of(next).is_some_and(|ty| ty.is_dict());
                if is_dict || known.host.is_none() {
                    match is_dict {
                        true => self.connection_of_dict(next, known),
                        false => self.connection(next, known, depth + 1),
                    }
                }
            }
        }
    }

    fn connection_of_dict(&self, dict: Addr, known: &mut Connection) {
        let heap = self.scene.heap;
        let [host, port, user, db] = heap.dict_get(dict, ["host", "port", "username", "db"]);
        // Django's settings.
        let [upper_host, upper_port, upper_user, name] =
            heap.dict_get(dict, ["HOST", "PORT", "USER", "NAME"]);
        self.put(&mut known.host, host.or(upper_host));
        self.put(&mut known.port, port.or(upper_port));
        self.put(&mut known.user, user.or(upper_user));
        self.put(&mut known.database, db.or(name));
    }

    fn put(&self, known: &mut Option<String>, object: Option<Addr>) {
        let heap = self.scene.heap;
        let text = |object: Addr| {
            let ty = heap.type_of(object)?;
            if ty.is_int() {
                return heap.int(object).filter(|n| *n >= 0).map(|n| n.to_string());
            }
            self.text(object).filter(|t| (1..=256).contains(&t.len()))
        };
        if known.is_none() {
            *known = object.and_then(text);
        }
    }

    fn text(&self, object: Addr) -> Option<String> {
        let heap = self.scene.heap;
        let ty = heap.type_of(object)?;
        if ty.is_str() {
            return heap.str_cut(object, MAX_STATEMENT).map(|t| t.0);
        }
        if ty.is_bytes() {
            let (bytes, _) = heap.bytes(object, MAX_STATEMENT)?;
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        // psycopg.sql.SQL, sqlalchemy.text: a wrapper of one string.
        if ty.name == "SQL" || ty.name == "TextClause" {
            let [object, text] = heap.attrs(object, ["_obj", "text"]);
            return object
                .or(text)
                .filter(|o| heap.type_of(*o).is_some_and(|t| t.is_str()))
                .and_then(|o| self.text(o));
        }
        None
    }
}

fn library_of(frame: &FrameScene) -> Option<&'static str> {
    let file = frame.code.file.as_deref()?;
    LIBRARIES.iter().find(|l| file.contains(l.1)).map(|l| l.0)
}

fn is_plumbing(frame: &FrameScene) -> bool {
    ["/socket.py", "/ssl.py", "/selectors.py", "/threading.py"].iter().any(|f| frame.in_file(f))
}
