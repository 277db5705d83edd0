//! Programs that hang, from the real incidents to the smallest deadlock, and programs that do not:
//! hangscope has to say why, and has to say nothing.
//!
//! The programs stand in `fixtures/incidents`; those of `stuck.py`'s kind say themselves what should
//! be found. Servers run in virtual environments that the first run makes (`venv.rs`). Variables:
//! those of `common` (`HANGSCOPE_ALL=1`: every interpreter, not only the typical ones), and `HANGSCOPE_HANG=NAME[,NAME]`, which restricts the small programs to some.

#[path = "../common/mod.rs"]
mod common;

mod crowd;
mod deadlocks;
mod full_queue;
mod gunicorn;
mod hangs;
mod healthy;
mod installed;
mod judge;
mod news_stream;
mod packed;
mod postgres;
mod process;
mod redis;
mod server;
mod supervised;
mod timeline;
mod venv;
