//! The directory of reports: each stall once, nothing overwritten, and never more than was allowed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use rustc_hash::FxHashMap;

/// Places whose last report is remembered.
const MAX_PLACES: usize = 10_000;
/// Names that begin with the same millisecond, rule and pid.
const MAX_NAMES: u32 = 100;
/// Files that wait to be brought to the disk.
const SYNCS: usize = 16;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Stalls that are written, in all.
    pub reports: u64,
    /// Bytes in the directory.
    pub bytes: u64,
    /// Seconds after which the same rule at the same place is written again.
    pub cool_down: f64,
}

/// Why a stall is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    CoolDown,
    Reports,
    Bytes,
}

impl Refusal {
    pub fn word(self) -> &'static str {
        match self {
            Refusal::CoolDown => "cool-down",
            Refusal::Reports => "max-reports",
            Refusal::Bytes => "max-size",
        }
    }
}

pub struct Reports {
    dir: PathBuf,
    limits: Limits,
    written: u64,
    bytes: u64,
    last: FxHashMap<(String, String), f64>,
    /// Brings files to the disk, so that they survive the machine; a slow disk does not keep us from polling.
    sync: SyncSender<File>,
}

/// The common beginning of one stall's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    stem: PathBuf,
}

impl Series {
    /// `STEM.1.json`
    pub fn file(&self, look: usize, kind: &str) -> PathBuf {
        self.with(&format!(".{look}.{kind}"))
    }

    /// `STEM.folded`
    pub fn whole(&self, kind: &str) -> PathBuf {
        self.with(&format!(".{kind}"))
    }

    fn with(&self, end: &str) -> PathBuf {
        let mut name = self.stem.clone().into_os_string();
        name.push(end);
        name.into()
    }
}

impl Reports {
    /// What lies in the directory already counts.
    pub fn open(dir: &Path, limits: Limits) -> io::Result<Reports> {
        // What a process had in its memory is nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut bytes = 0;
        for entry in fs::read_dir(dir)? {
            bytes += entry?.metadata().map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
        }
        // To know now rather than at the first stall.
        let probe = dir.join(format!(".hangscope-{}", std::process::id()));
        File::create(&probe)?;
        fs::remove_file(&probe)?;
        let (sync, written) = sync_channel::<File>(SYNCS);
        let work = move || {
            for file in written {
                if let Err(error) = file.sync_data() {
                    log::warn!("a report may not be on the disk: {error}");
                }
            }
        };
        std::thread::Builder::new().name("sync".into()).spawn(work)?;
        Ok(Reports { dir: dir.to_owned(), limits, written: 0, bytes, last: FxHashMap::default(), sync })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the same was written a moment ago.
    pub fn is_cooling(&self, rule: &str, place: &str, now: f64) -> bool {
        // Two strings for a question; stalls are rare.
        let key = (rule.to_owned(), place.to_owned());
        self.last.get(&key).is_some_and(|last| now - last < self.limits.cool_down)
    }

    /// Whether this stall may be written; its place then cools down. `at` is the wall-clock time, RFC 3339.
    pub fn begin(
        &mut self,
        rule: &str,
        place: &str,
        pid: i32,
        at: &str,
        now: f64,
    ) -> Result<Series, Refusal> {
        if self.written >= self.limits.reports {
            return Err(Refusal::Reports);
        }
        if self.is_cooling(rule, place, now) {
            return Err(Refusal::CoolDown);
        }
        if self.bytes >= self.limits.bytes {
            return Err(Refusal::Bytes);
        }
        if self.last.len() >= MAX_PLACES {
            let cool_down = self.limits.cool_down;
            self.last.retain(|_, last| now - *last < cool_down);
            if self.last.len() >= MAX_PLACES {
                self.last.clear();
            }
        }
        self.last.insert((rule.to_owned(), place.to_owned()), now);
        self.written += 1;
        let name = format!("{}-{}-{pid}", compact(at), safe(rule));
        let taken = |name: &str| {
            ["txt", "json", "capture"].iter().any(|kind| self.dir.join(format!("{name}.1.{kind}")).exists())
        };
        let numbered = (2..MAX_NAMES).map(|n| format!("{name}-{n}"));
        let name = std::iter::once(name.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(name);
        Ok(Series { stem: self.dir.join(name) })
    }

    /// Of the stall that was begun last nothing could be written: it does not count. Its place cools down all the
    /// same, for the next look at it would hardly fare better.
    pub fn nothing_kept(&mut self) {
        self.written = self.written.saturating_sub(1);
    }

    /// Writes one file, whole or not at all; never over another one.
    pub fn write(&mut self, file: &Path, content: &[u8]) -> Result<(), WriteError> {
        let size = content.len() as u64;
        if self.bytes + size > self.limits.bytes {
            return Err(WriteError::Full);
        }
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        if let Err(error) = out.write_all(content) {
            let _ = fs::remove_file(file);
            return Err(error.into());
        }
        // Where too many wait the kernel will do it in its own time.
        _ = self.sync.try_send(out);
        self.bytes += size;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the directory has reached its --max-size")]
    Full,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// `2026-11-21T05:15:00.123456Z` → `20261121T051500.123Z`, which sorts by time and needs no quoting.
fn compact(at: &str) -> String {
    let digits: String = at.chars().filter(|c| c.is_ascii_digit() || *c == 'T' || *c == '.').collect();
    let end = digits.find('.').map_or(digits.len(), |dot| (dot + 4).min(digits.len()));
    format!("{}Z", &digits[..end])
}

fn safe(rule: &str) -> String {
    rule.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { reports: 1000, bytes: 1 << 20, cool_down: 60.0 }
    }

    const AT: &str = "2026-11-21T05:15:00.123456Z";

    #[test]
    fn ten_thousand_stalls_fill_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut reports = Reports::open(dir.path(), Limits { bytes: 10_000, ..limits() }).unwrap();
        let mut refused = 0;
        for n in 0..10_000 {
            match reports.begin("loop-sleep", &format!("place {n}"), 7, AT, f64::from(n)) {
                Ok(series) => _ = reports.write(&series.file(1, "txt"), &[b'x'; 900]),
                Err(_) => refused += 1,
            }
        }
        let on_disk: u64 =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!((9_000..=10_000).contains(&on_disk), "{on_disk}");
        assert!(refused > 8_000, "{refused}");
        // Another one that starts on the same directory counts what is there.
        assert_eq!(Reports::open(dir.path(), limits()).unwrap().bytes(), on_disk);
    }

    /// As `watch` writes it, with the sizes that were met on a web server: three files a look, the biggest of
    /// which is left out first, a profile, and the end.
    #[test]
    fn series_of_real_sizes_stay_below_the_limit_and_change_nothing_old() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("20200101T000000.000Z-loop-sleep-7.1.txt");
        fs::write(&old, "kept").unwrap();
        let limit = 8 << 20;
        let limits = Limits { reports: 10_000, bytes: limit, cool_down: 0.0 };
        let mut reports = Reports::open(dir.path(), limits).unwrap();
        let content = vec![b'x'; 400 << 10];
        let sizes = [("json", 60 << 10), ("capture", 400 << 10), ("txt", 6 << 10)];
        let (mut written, mut refused, mut full) = (0, 0, 0);
        for n in 0..10_000 {
            let Ok(series) = reports.begin("loop-sleep", "place", 7, AT, f64::from(n)) else {
                refused += 1;
                continue;
            };
            for look in 1..=4 {
                for (kind, size) in sizes {
                    match reports.write(&series.file(look, kind), &content[..size]) {
                        Ok(()) => written += 1,
                        Err(WriteError::Full) => full += 1,
                        // Names of one millisecond are limited: then nothing is written over.
                        Err(WriteError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::AlreadyExists),
                    }
                }
            }
            assert!(reports.bytes() <= limit);
        }
        let on_disk: u64 =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(on_disk, reports.bytes());
        assert!((limit - (6 << 10)..=limit).contains(&on_disk), "{on_disk}");
        assert!(written > 40 && full > 0 && written + full + refused > 9_000, "{written} {full} {refused}");
        assert_eq!(fs::read(&old).unwrap(), b"kept");
    }

    #[test]
    fn the_same_place_cools_down_and_the_number_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let mut reports = Reports::open(dir.path(), Limits { reports: 3, ..limits() }).unwrap();
        assert!(reports.begin("a", "x", 7, AT, 0.0).is_ok());
        assert_eq!(reports.begin("a", "x", 8, AT, 59.0), Err(Refusal::CoolDown));
        assert!(reports.begin("a", "y", 7, AT, 59.0).is_ok());
        assert!(reports.begin("a", "x", 7, AT, 61.0).is_ok());
        assert_eq!(reports.begin("b", "x", 7, AT, 62.0), Err(Refusal::Reports));
    }

    #[test]
    fn what_could_not_be_written_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut reports = Reports::open(dir.path(), Limits { reports: 1, ..limits() }).unwrap();
        for n in 0..5 {
            assert!(reports.begin("a", &n.to_string(), 7, AT, 0.0).is_ok(), "{n}");
            reports.nothing_kept();
        }
        assert!(reports.begin("a", "x", 7, AT, 0.0).is_ok());
        assert_eq!(reports.begin("a", "y", 7, AT, 0.0), Err(Refusal::Reports));
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut names = Vec::new();
        for place in ["x", "y"] {
            // As after a restart: nothing is remembered, and the names are the same.
            let mut reports = Reports::open(dir.path(), limits()).unwrap();
            let series = reports.begin("loop-sleep", place, 7, AT, 0.0).unwrap();
            let file = series.file(1, "txt");
            reports.write(&file, place.as_bytes()).unwrap();
            assert!(matches!(reports.write(&file, b"again"), Err(WriteError::Io(_))));
            names.push(file);
        }
        assert_eq!(names[0].file_name().unwrap(), "20261121T051500.123Z-loop-sleep-7.1.txt");
        assert_eq!(fs::read(&names[0]).unwrap(), b"x");
        assert_eq!(fs::read(&names[1]).unwrap(), b"y");
    }

    #[test]
    fn what_does_not_fit_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let mut reports = Reports::open(dir.path(), Limits { bytes: 10, ..limits() }).unwrap();
        let file = dir.path().join("a");
        assert!(matches!(reports.write(&file, &[0; 11]), Err(WriteError::Full)));
        assert!(!file.exists());
    }
}
