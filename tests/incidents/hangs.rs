//! Small programs that hang, one cause each. Each says itself what is to be found: see `stuck.py`.

use crate::common::{each_interpreter, typical};
use crate::judge::judge_all;
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::venv;

/// The debug twins and the free-threaded builds add layouts, not kinds of hangs; `deadlocks.rs` runs the
/// former.
fn every_program_of(file: &str) {
    each_interpreter(file, typical, |interpreter| {
        judge_all(interpreter, &format!("incidents/{file}.py"), |_| true, &[])
    });
}

#[test]
fn threads_that_hang() {
    every_program_of("hangs");
}

#[test]
fn combinations_that_hang() {
    every_program_of("combinations");
}

#[test]
fn what_blocks_an_event_loop() {
    every_program_of("on_the_loop");
}

#[test]
fn tasks_that_hang_on_a_loop_that_runs() {
    every_program_of("in_asyncio");
}

#[test]
fn hangs_between_processes() {
    every_program_of("processes");
}

#[test]
fn processes_that_wait_for_each_other() {
    every_program_of("between");
}

#[test]
fn servers_that_are_known_by_name() {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: name servers that do not answer need root");
    }
    each_interpreter("remote", typical, |interpreter| {
        // Below another root a process cannot have a resolv.conf of its own: that is no mount point.
        let own = root && interpreter.chroot.is_none();
        judge_all(interpreter, "incidents/remote.py", |name| own || !name.starts_with("name_server"), &[])
    });
}

#[test]
fn clients_of_pypi_on_an_event_loop() {
    each_interpreter("loop_clients", venv::typical, |interpreter| {
        judge_all(&venv::of(interpreter)?, "incidents/loop_clients.py", |_| true, &[])
    });
}

#[test]
fn libraries_with_waits_of_their_own() {
    each_interpreter("libraries", venv::typical, |interpreter| {
        judge_all(&venv::libraries(interpreter)?, "incidents/libraries.py", |_| true, &[])
    });
}

#[test]
fn clients_whose_databases_do_not_answer() {
    if !Postgres::is_here() || !Redis::is_here() {
        return;
    }
    each_interpreter("clients", venv::has_servers, |interpreter| {
        let postgres = Postgres::start("select 1")?;
        let redis = [Redis::start()?, Redis::start()?, Redis::start()?];
        let ports = [redis[0].port, redis[1].port, redis[2].port, postgres.port].map(|port| port.to_string());
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        judge_all(&venv::servers(interpreter)?, "incidents/clients.py", |_| true, &ports)
    });
}
