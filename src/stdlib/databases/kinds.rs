//! The pools of connections that are known: in which function one waits for a free connection, how large they
//! are, how many are out.

use crate::python::objects::Heap;
use crate::stdlib::FrameScene;
use crate::target::memory::Addr;

/// (library, part of the path, functions that wait, whose `self` is the pool)
type Known = (&'static str, &'static str, &'static [&'static str]);

pub const OF_THREADS: &[Known] = &[
    ("sqlalchemy", "/sqlalchemy/pool/impl.py", &["_do_get"]),
    ("psycopg_pool", "/psycopg_pool/pool.py", &["getconn"]),
    ("redis", "/redis/connection.py", &["get_connection"]),
    ("urllib3", "/urllib3/connectionpool.py", &["_get_conn"]),
    ("pymongo", "/pymongo/synchronous/pool.py", &["_get_conn"]),
    ("pymongo", "/pymongo/pool.py", &["_get_conn"]),
    ("dbutils", "/dbutils/pooled_db.py", &["connection", "steady_connection"]),
];

pub const OF_TASKS: &[Known] = &[
    ("asyncpg", "/asyncpg/pool.py", &["_acquire_impl"]),
    ("psycopg_pool", "/psycopg_pool/pool_async.py", &["_getconn_unchecked", "getconn"]),
    ("redis", "/redis/asyncio/connection.py", &["get_connection"]),
    // Up to 3.9 `connect` itself waits.
    ("aiohttp", "/aiohttp/connector.py", &["_wait_for_available_connection", "connect"]),
    ("httpcore", "/httpcore/_async/connection_pool.py", &["handle_async_request"]),
];

#[derive(Default)]
pub struct Pool {
    pub size: Option<i64>,
    pub out: Option<i64>,
    pub waiting: Option<i64>,
}

pub fn of_frame(frame: &FrameScene, known: &[Known]) -> Option<&'static str> {
    let file = frame.code.file.as_deref()?;
    known.iter().find(|k| file.contains(k.1) && k.2.contains(&&*frame.code.name)).map(|k| k.0)
}

/// Its attributes, whether they stand in a dict or in slots.
pub fn fields<const N: usize>(heap: &Heap, obj: Addr, names: [&str; N]) -> [Option<Addr>; N] {
    let slots = heap.type_of(obj).map_or([None; N], |ty| heap.named_slots(obj, &ty, names));
    let mut found = heap.attrs(obj, names);
    found.iter_mut().zip(slots).for_each(|(own, slot)| *own = own.or(slot));
    found
}

fn int(heap: &Heap, obj: Option<Addr>) -> Option<i64> {
    obj.and_then(|o| heap.int(o))
}

fn length(heap: &Heap, obj: Option<Addr>) -> Option<i64> {
    let obj = obj?;
    let ty = heap.type_of(obj)?;
    match ty.name.as_str() {
        // PyVarObjects (Modules/_collectionsmodule.c).
        "list" | "tuple" => heap.size(obj),
        _ if ty.name.ends_with("deque") => heap.size(obj),
        "set" => heap.set(obj, 0).map(|s| s.1 as i64),
        "WeakSet" => length(heap, heap.attrs(obj, ["data"])[0]),
        _ => {
            let [queue, own] = heap.attrs(obj, ["queue", "_queue"]);
            length(heap, queue.or(own))
        }
    }
}

pub fn measure(heap: &Heap, library: &str, pool: Addr) -> Pool {
    match library {
        "sqlalchemy" => {
            let [queue, overflow, most] = heap.attrs(pool, ["_pool", "_overflow", "_max_overflow"]);
            let max = queue.and_then(|q| int(heap, heap.attrs(q, ["maxsize"])[0]));
            // `_overflow` begins at minus the size (sqlalchemy/pool/impl.py).
            let made = max.zip(int(heap, overflow)).map(|(max, over)| max + over);
            Pool {
                size: max.zip(int(heap, most)).map(|(max, most)| max + most.max(0)),
                out: made.zip(length(heap, queue)).map(|(made, idle)| made - idle),
                waiting: None,
            }
        }
        "psycopg_pool" => {
            let [max, made, idle, waiting] = heap.attrs(pool, ["_max_size", "_nconns", "_pool", "_waiting"]);
            Pool {
                size: int(heap, max),
                out: int(heap, made).zip(length(heap, idle)).map(|(made, idle)| made - idle),
                waiting: length(heap, waiting),
            }
        }
        "redis" => {
            let [max, queue, out] = heap.attrs(pool, ["max_connections", "pool", "_in_use_connections"]);
            let max = int(heap, max);
            // The queue of threads holds `None` for connections that are not made yet.
            let left = max.zip(length(heap, queue)).map(|(m, q)| m - q);
            Pool { size: max, out: length(heap, out).filter(|_| queue.is_none()).or(left), waiting: None }
        }
        "urllib3" => {
            let [queue] = heap.attrs(pool, ["pool"]);
            let max = queue.and_then(|q| int(heap, heap.attrs(q, ["maxsize"])[0]));
            Pool { size: max, out: max.zip(length(heap, queue)).map(|(m, q)| m - q), waiting: None }
        }
        "pymongo" => {
            let [max, requests, out] = heap.attrs(pool, ["max_pool_size", "requests", "active_sockets"]);
            Pool { size: int(heap, max), out: int(heap, out.or(requests)), waiting: None }
        }
        "asyncpg" => {
            let [max, holders, idle] = fields(heap, pool, ["_maxsize", "_holders", "_queue"]);
            let out = length(heap, holders).zip(length(heap, idle)).map(|(made, idle)| made - idle);
            Pool { size: int(heap, max), out, waiting: None }
        }
        "aiohttp" => {
            let [max, of_host, acquired] = heap.attrs(pool, ["_limit", "_limit_per_host", "_acquired"]);
            let out = length(heap, acquired);
            // 0: no limit. With room in the whole, it is the host's connections that are out.
            let all = int(heap, max).filter(|max| *max > 0 && out.is_some_and(|out| out >= *max));
            let of_host = int(heap, of_host).filter(|max| *max > 0);
            let size = all.or(of_host);
            Pool { size, out: if all.is_some() { out } else { size }, waiting: None }
        }
        "httpcore" => {
            let [max, made] = heap.attrs(pool, ["_max_connections", "_connections"]);
            Pool { size: int(heap, max), out: length(heap, made), waiting: None }
        }
        _ => {
            let [max, made] = heap.attrs(pool, ["_maxconnections", "_connections"]);
            Pool { size: int(heap, max), out: int(heap, made), waiting: None }
        }
    }
}

/// The connections that are out, where the pool of tasks knows them itself.
pub fn out(heap: &Heap, library: &str, pool: Addr) -> Vec<Addr> {
    const MOST: usize = 1024;
    let list = |obj: Option<Addr>| -> Vec<Addr> {
        let items = || {
            let obj = obj?;
            let ty = heap.type_of(obj)?;
            match ty.name.as_str() {
                "set" => heap.set(obj, MOST),
                "list" => heap.items(obj, &ty, MOST),
                _ => None,
            }
        };
        items().unwrap_or_default().0
    };
    match library {
        "asyncpg" => {
            let [holders] = fields(heap, pool, ["_holders"]);
            let of_holder = |holder: Addr| {
                let [used, proxy, connection] = fields(heap, holder, ["_in_use", "_proxy", "_con"]);
                let is_used = used.and_then(|u| heap.type_of(u)).is_some_and(|ty| ty.name != "NoneType");
                [proxy, connection, Some(holder)].into_iter().flatten().filter(move |_| is_used)
            };
            list(holders).into_iter().flat_map(of_holder).collect()
        }
        "aiohttp" => list(heap.attrs(pool, ["_acquired"])[0]),
        "redis" => {
            let [used, all, queue] = heap.attrs(pool, ["_in_use_connections", "_connections", "pool"]);
            let items = queue.and_then(|q| heap.attrs(q, ["queue"])[0]);
            let idle = list(items.filter(|_| used.is_none()));
            list(used.or(all)).into_iter().filter(|c| !idle.contains(c)).collect()
        }
        // What would cancel what goes on on a connection: each has its own.
        "pymongo" => list(heap.attrs(pool, ["active_contexts"])[0]),
        "httpcore" => {
            let all = list(heap.attrs(pool, ["_connections"])[0]);
            let inner = all.iter().filter_map(|c| heap.attrs(*c, ["_connection"])[0]).collect::<Vec<_>>();
            all.into_iter()
                .chain(inner)
                .filter(|c| heap.type_of(*c).is_some_and(|t| t.name != "NoneType"))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Whether this was handed out by the pool: it knows where it goes back to.
pub fn is_of(heap: &Heap, object: Addr, pool: Addr) -> bool {
    let is_fairy = || heap.type_of(object).is_some_and(|t| t.name.ends_with("_ConnectionFairy"));
    let own = heap.attrs(object, ["_pool"])[0];
    own == Some(pool) || own.is_none() && is_fairy() && fields(heap, object, ["_pool"])[0] == Some(pool)
}

/// A pool of SQLAlchemy's whose connections stand in this queue of asyncio.
pub fn is_pool_of_queue(heap: &Heap, object: Addr, queue: Addr) -> bool {
    let is_pool = heap.type_of(object).is_some_and(|t| t.name.ends_with("QueuePool"));
    let adapted = || heap.attrs(object, ["_pool"])[0];
    is_pool && adapted().is_some_and(|q| heap.attrs(q, ["_queue"])[0] == Some(queue))
}
