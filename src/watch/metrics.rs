//! `--metrics`: what Prometheus asks for, over a small HTTP server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tiny_http::{Header, Method, Response, Server};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What those understand that do not ask for the other.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfProcess {
    pub pid: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfRule {
    pub rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfReason {
    pub reason: String,
}

type Float = Gauge<f64, AtomicU64>;

/// Everything that is counted. Processes that are gone are taken out, so that weeks of restarts cost nothing.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub polls: Counter,
    pub targets: Gauge,
    pub loop_lag: Family<OfProcess, Histogram, fn() -> Histogram>,
    pub stalls: Family<OfRule, Counter>,
    pub unwritten: Family<OfReason, Counter>,
    pub blocked_threads: Family<OfProcess, Gauge>,
    pub gil_held: Family<OfProcess, Float>,
    pub executor_queue: Family<OfProcess, Gauge>,
    pub open_fds: Family<OfProcess, Gauge>,
    pub heartbeat_age: Family<OfProcess, Float>,
    /// The pids that have been told of.
    known: Arc<Mutex<Vec<i32>>>,
}

fn lag_buckets() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hangscope");
        let mut metrics = Metrics {
            registry: Arc::default(),
            polls: Counter::default(),
            targets: Gauge::default(),
            loop_lag: Family::new_with_constructor(lag_buckets),
            stalls: Family::default(),
            unwritten: Family::default(),
            blocked_threads: Family::default(),
            gil_held: Family::default(),
            executor_queue: Family::default(),
            open_fds: Family::default(),
            heartbeat_age: Family::default(),
            known: Arc::default(),
        };
        let m = &metrics;
        registry.register("polls", "Polls made", m.polls.clone());
        registry.register("targets", "Processes that are watched", m.targets.clone());
        let help =
            "How long an event loop's iteration had lasted when it was polled; 0 while it waits for work";
        registry.register_with_unit("loop_lag", help, Unit::Seconds, m.loop_lag.clone());
        registry.register("stalls", "Stalls seen, by rule", m.stalls.clone());
        registry.register(
            "reports_not_written",
            "Stalls that were not written, by reason",
            m.unwritten.clone(),
        );
        let help = "Threads that somebody has suffered from just now for longer than the limit";
        registry.register("blocked_threads", help, m.blocked_threads.clone());
        let help = "Share of the last polls at which some thread held the GIL";
        registry.register("gil_held_ratio", help, m.gil_held.clone());
        let help = "Work items that wait in the queues of thread pools";
        registry.register("executor_queue_depth", help, m.executor_queue.clone());
        registry.register("open_fds", "Open file descriptors", m.open_fds.clone());
        let help = "Age of a worker's last heartbeat";
        registry.register_with_unit("heartbeat_age", help, Unit::Seconds, m.heartbeat_age.clone());
        metrics.registry = Arc::new(registry);
        metrics
    }
}

impl Metrics {
    /// Forgets the processes that are not watched any more.
    pub fn keep_only(&self, pids: &[i32]) {
        self.targets.set(pids.len() as i64);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in known.iter().filter(|pid| !pids.contains(pid)) {
            let of = OfProcess { pid: *pid };
            self.loop_lag.remove(&of);
            self.blocked_threads.remove(&of);
            self.gil_held.remove(&of);
            self.executor_queue.remove(&of);
            self.open_fds.remove(&of);
            self.heartbeat_age.remove(&of);
        }
        *known = pids.to_vec();
    }

    fn text(&self) -> Option<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).ok()?;
        Some(text)
    }
}

/// The same in the format of before OpenMetrics: there a counter has one name, `_total` and all, and neither units
/// nor an end are told.
fn plain(text: &str) -> String {
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(&name) => {
                out.push_str(&format!("# {kind} {name}_total {rest}\n"));
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// Serves until dropped.
pub struct Endpoint {
    pub address: SocketAddr,
    server: Arc<Server>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// `ADDR:PORT`, or a port alone: then of the loopback. No names but `localhost`: to resolve others takes
/// modules of the very C library that a static binary was linked with.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    text.parse().map_err(|e| format!("{e}; it is ADDR:PORT, such as 127.0.0.1:9464"))
}

impl Endpoint {
    pub fn serve(address: SocketAddr, metrics: Metrics) -> Result<Endpoint, String> {
        let server = Arc::new(Server::http(address).map_err(|e| e.to_string())?);
        let address = server.server_addr().to_ip().unwrap_or(address);
        let ending = Arc::new(AtomicBool::new(false));
        let (ours, ended) = (Arc::clone(&server), Arc::clone(&ending));
        let answer = move || {
            while !ended.load(SeqCst) {
                if let Ok(Some(request)) = ours.recv_timeout(Duration::from_secs(3600)) {
                    let is_accept = |header: &&Header| header.field.equiv("Accept");
                    let accept = request.headers().iter().find(is_accept).map(|h| h.value.as_str());
                    let open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
                    let response = response(request.method(), request.url(), open, &metrics);
                    // Whoever asked may have gone.
                    let _ = request.respond(response);
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("metrics".into()).spawn(answer).map_err(|e| e.to_string())?;
        Ok(Endpoint { address, server, ending, thread: Some(thread) })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.ending.store(true, SeqCst);
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `open`: whoever asks understands OpenMetrics.
fn response(method: &Method, url: &str, open: bool, metrics: &Metrics) -> Response<std::io::Cursor<Vec<u8>>> {
    let words = |status: u16, text: &str| Response::from_string(text).with_status_code(status);
    if !matches!(method, Method::Get | Method::Head) {
        return words(405, "only GET\n");
    }
    match url.split('?').next() {
        Some("/metrics") => match metrics.text() {
            Some(text) => {
                let (text, kind) = if open { (text, OPEN_METRICS) } else { (plain(&text), PLAIN) };
                let header = Header::from_bytes("Content-Type", kind).expect("it is a header");
                Response::from_string(text).with_header(header)
            }
            None => words(500, "the metrics cannot be encoded\n"),
        },
        Some("/healthz") => words(200, "ok\n"),
        Some("/") => words(200, "hangscope watch: the metrics are at /metrics\n"),
        _ => words(404, "there is /metrics\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address("9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(address(":9464").unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(address("0.0.0.0:1").unwrap().to_string(), "0.0.0.0:1");
        assert_eq!(address("[::1]:1").unwrap().to_string(), "[::1]:1");
        assert_eq!(address("localhost:1").unwrap().to_string(), "127.0.0.1:1");
        assert!(address("nothing").is_err());
    }

    #[test]
    fn processes_that_are_gone_are_not_told_of() {
        let metrics = Metrics::default();
        metrics.keep_only(&[7, 8]);
        for pid in [7, 8] {
            metrics.loop_lag.get_or_create(&OfProcess { pid }).observe(0.02);
            metrics.open_fds.get_or_create(&OfProcess { pid }).set(3);
        }
        metrics.stalls.get_or_create(&OfRule { rule: "loop-sleep".into() }).inc();
        metrics.keep_only(&[8]);
        let text = metrics.text().unwrap();
        assert!(text.contains("hangscope_stalls_total{rule=\"loop-sleep\"} 1"), "{text}");
        assert!(text.contains("hangscope_loop_lag_seconds_bucket{le=\"0.025\",pid=\"8\"} 1"), "{text}");
        assert!(!text.contains("pid=\"7\""), "{text}");
        assert!(text.contains("hangscope_targets 1") && text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn the_older_format_names_counters_in_full() {
        let metrics = Metrics::default();
        metrics.stalls.get_or_create(&OfRule { rule: "loop-sleep".into() }).inc();
        metrics.loop_lag.get_or_create(&OfProcess { pid: 7 }).observe(0.02);
        let text = plain(&metrics.text().unwrap());
        assert!(text.contains("# HELP hangscope_stalls_total Stalls seen, by rule.\n"), "{text}");
        assert!(text.contains("# TYPE hangscope_stalls_total counter\n"), "{text}");
        assert!(text.contains("\nhangscope_stalls_total{rule=\"loop-sleep\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE hangscope_loop_lag_seconds histogram\n"), "{text}");
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }
}
