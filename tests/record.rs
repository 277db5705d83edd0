//! `record` against live programs that know what a true profile of them looks like.
//!
//! Nothing here depends on the speed of the machine: what is judged is whether each stack can be, and shares.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use hangscope::profile::{self, EMPTY, Sampler, SamplerOptions, Seat, Tree};

use common::{Interpreter, Outcome, Program, each_interpreter, hangscope, lossy};

/// Frames from the outermost on, and how often.
type Stacks = Vec<(Vec<String>, u64)>;

fn with_gil(interpreter: &Interpreter) -> bool {
    !interpreter.debug
}

fn of_this_root(interpreter: &Interpreter) -> bool {
    interpreter.chroot.is_none()
}

fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("record-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory for files");
    dir.join(name)
}

/// Records, and gives the folded stacks with their counts, outermost frame first.
fn record(args: &[&str]) -> Outcome<(Stacks, String)> {
    let args: Vec<&str> = ["record", "-f", "folded", "-o", "-"].iter().chain(args).copied().collect();
    let output = hangscope(&args);
    let said = lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{args:?}: {}: {said}", output.status));
    }
    Ok((folded(&lossy(&output.stdout))?, said))
}

fn folded(text: &str) -> Outcome<Stacks> {
    let line = |line: &str| {
        let (stack, count) = line.rsplit_once(' ')?;
        Some((stack.split(';').map(str::to_owned).collect(), count.parse().ok()?))
    };
    text.lines().map(|l| line(l).ok_or(format!("no folded line: {l}"))).collect()
}

// ---------------------------------------------------------------- truth

/// Whether a stack of chains.py can be: one chain only, without a gap, each caller at its call.
fn judge(stack: &[String]) -> Outcome {
    let run = stack.iter().position(|f| f.starts_with("run (chains.py"));
    let run = run.ok_or_else(|| format!("no run() in {}", stack.join(";")))?;
    let chain = &stack[run + 1..];
    let kind = chain.first().map(|f| f.split('_').next().unwrap_or_default().to_owned());
    for (index, frame) in chain.iter().enumerate() {
        let kind = kind.as_deref().unwrap_or_default();
        let function = format!("{kind}_{index} (<{kind}>");
        let line = format!(":{})", 4 * index + 3);
        let innermost = index + 1 == chain.len();
        if !frame.starts_with(&function) || (!innermost && !frame.ends_with(&line)) {
            return Err(format!("{frame} as number {index} of {}", stack.join(";")));
        }
    }
    Ok(())
}

/// Records until it has seen many different stacks, however busy the machine is: none may be impossible.
fn possible(args: &[&str]) -> Outcome {
    let mut said = String::new();
    for seconds in ["1", "4", "16"] {
        let (stacks, summary) = record(&[args, &["-d", seconds]].concat())?;
        let wrong: Vec<String> = stacks.iter().filter_map(|(stack, _)| judge(stack).err()).collect();
        if let Some(first) = wrong.first() {
            return Err(format!("{} impossible, as {first}", wrong.len()));
        }
        if stacks.len() >= 20 {
            return Ok(());
        }
        said = format!("only {} different stacks: {summary}", stacks.len());
    }
    Err(said)
}

#[test]
fn no_stack_is_impossible() {
    each_interpreter("record-chains", with_gil, |interpreter| {
        for (depth, threads) in [("20", "1"), ("200", "1"), ("20", "4")] {
            let (program, _) = Program::settled(interpreter, "chains.py", &[depth, threads])?;
            let pid = program.pid().to_string();
            possible(&["-r", "1000", "-p", &pid]).map_err(|e| format!("{depth} deep: {e}"))?;
        }
        Ok(())
    });
}

/// As fast as it goes it reads from another CPU while the target runs on: now and then a copy of several moments may
/// pass for one, but hardly ever.
#[test]
fn as_fast_as_it_goes_hardly_a_stack_is_impossible() {
    each_interpreter("record-max", with_gil, |interpreter| {
        for (depth, threads) in [("20", "1"), ("200", "1"), ("20", "4")] {
            let (program, _) = Program::settled(interpreter, "chains.py", &[depth, threads])?;
            let pid = program.pid().to_string();
            let (mut all, mut wrong, mut first, mut apart) = (0, 0, None, false);
            // However busy the machine is.
            for _ in 0..20 {
                let (stacks, said) = record(&["-r", "max", "-d", "1", "-p", &pid])?;
                apart |= said.contains("from another CPU");
                for (stack, count) in &stacks {
                    all += count;
                    if let Err(error) = judge(stack) {
                        // Each once: a weight is a time, and a crowded machine makes that long.
                        wrong += 1;
                        first = Some(error);
                    }
                }
                if all > 20_000 {
                    break;
                }
            }
            eprintln!("{}: {depth} deep, {threads} threads: {wrong} impossible of {all}", interpreter.label);
            if !apart && std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
                return Err("never read from another CPU".into());
            }
            // The issue allows 14 in 100,000 of a long run.
            if all < 1000 || wrong * 2000 > all {
                return Err(format!("{depth} deep, {threads} threads: {wrong} of {all}, as {first:?}"));
            }
        }
        Ok(())
    });
}

/// The issue's measure: up to 1 kHz none is impossible in 100,000 and under 0.5 % are torn.
#[test]
#[ignore = "a measurement of two minutes for each Python; HANGSCOPE_BIN=target/release/hangscope, --nocapture"]
fn truth_in_100_000() {
    let some = |i: &Interpreter| !i.debug && !i.free_threaded && [8, 11, 13, 15].contains(&i.minor);
    each_interpreter("record-truth", some, |interpreter| {
        for (depth, threads) in [("20", "1"), ("200", "1"), ("20", "4")] {
            let (program, _) = Program::settled(interpreter, "chains.py", &[depth, threads])?;
            let pid = program.pid().to_string();
            let (stacks, said) = record(&["-r", "1000", "-d", "34", "-p", &pid])?;
            let count = |wanted: &dyn Fn(&[String]) -> bool| -> u64 {
                stacks.iter().filter(|(stack, _)| wanted(stack)).map(|(_, count)| count).sum()
            };
            let (all, wrong) = (count(&|_| true), count(&|stack| judge(stack).is_err()));
            let torn = said.lines().find(|line| line.contains("could not be proven"));
            let torn_share = torn.and_then(|t| t.split('(').nth(1)?.split(' ').next()?.parse::<f64>().ok());
            let first = said.lines().next().unwrap_or_default();
            eprintln!(
                "{}: {depth} deep, {threads} threads: {wrong} impossible of {all}; torn {} %; {first}",
                interpreter.label,
                torn_share.unwrap_or(0.0)
            );
            if wrong > 0 || torn_share.unwrap_or(0.0) >= 0.5 {
                return Err(format!("{depth} deep, {threads} threads: {wrong} of {all} impossible; {said}"));
            }
        }
        Ok(())
    });
}

#[test]
fn shares_are_those_that_were_burnt() {
    each_interpreter("record-shares", with_gil, |interpreter| {
        let (mut program, _) = Program::settled(interpreter, "shares.py", &[])?;
        let pid = program.pid().to_string();
        let (stacks, said) = record(&["-r", "500", "-d", "4", "-p", &pid])?;
        program.send("\n")?;
        let burnt = program.line("DONE ")?;
        let mut found: BTreeMap<&str, u64> = BTreeMap::new();
        let mut all = 0;
        for (stack, count) in &stacks {
            let name = ["half", "third", "sixth"]
                .into_iter()
                .find(|n| stack.iter().any(|f| f.starts_with(&format!("{n} ("))));
            if stack.iter().any(|f| f.starts_with("waits (") || f.starts_with("main (")) {
                return Err(format!("a waiting thread was counted: {}", stack.join(";")));
            }
            if let Some(name) = name {
                *found.entry(name).or_default() += count;
                all += count;
            }
        }
        let total: f64 = ["half", "third", "sixth"].iter().filter_map(|n| burnt[*n].as_f64()).sum();
        for name in ["half", "third", "sixth"] {
            let expected = burnt[name].as_f64().unwrap_or_default() / total;
            let share = *found.get(name).unwrap_or(&0) as f64 / all.max(1) as f64;
            // 2,000 samples: four times the standard error of one half is 4.5 percent.
            if (share - expected).abs() > 0.06 {
                return Err(format!("{name}: {share:.3}, burnt {expected:.3}; {said}"));
            }
        }
        Ok(())
    });
}

#[test]
fn idle_threads_and_roots_by_thread() {
    each_interpreter("record-threads", with_gil, |interpreter| {
        let (program, _) = Program::settled(interpreter, "shares.py", &[])?;
        let pid = program.pid().to_string();
        let (stacks, _) = record(&["-i", "-t", "-r", "200", "-d", "1", "-p", &pid])?;
        for (thread, function) in
            [("sleeper (", "sleeps ("), ("waiter (", "waits ("), ("MainThread (", "main (")]
        {
            let is = |(stack, _): &(Vec<String>, u64)| {
                stack[0].starts_with(thread) && stack.iter().any(|f| f.starts_with(function))
            };
            if !stacks.iter().any(is) {
                return Err(format!("no {function} below {thread}: {stacks:?}"));
            }
        }
        let (stacks, _) = record(&["-g", "-t", "-r", "200", "-d", "1", "--exclude", "worker", "-p", &pid])?;
        if interpreter.free_threaded || stacks.iter().all(|(s, _)| !s[0].starts_with("worker")) {
            return Ok(());
        }
        Err(format!("excluded, but there: {stacks:?}"))
    });
}

/// By what each burns it is known which root its stacks have.
#[test]
fn stacks_are_rooted_at_their_task() {
    each_interpreter("record-tasks", with_gil, |interpreter| {
        let (program, _) = Program::ready(interpreter, "roots.py", &[])?;
        let pid = program.pid().to_string();
        let roots = [
            ("for_feed (", "task feed: feed()", "feed ("),
            ("for_serve (", "task serve()", "serve ("),
            ("for_nobody (", "(no task)", ""),
        ];
        let mut stacks = Vec::new();
        // On a crowded machine the thread may wait long for the GIL.
        program.until("a sample of each", || {
            stacks.extend(record(&["--tasks", "-r", "500", "-d", "2", "-p", &pid])?.0);
            let seen = |function: &str| stacks.iter().any(|(s, _)| s.iter().any(|f| f.starts_with(function)));
            Ok(roots.iter().all(|(function, ..)| seen(function)))
        })?;
        for (function, root, first) in roots {
            let mut of = stacks.iter().filter(|(s, _)| s.iter().any(|f| f.starts_with(function)));
            if let Some((wrong, _)) = of.find(|(s, _)| s[0] != root || !s[1].starts_with(first)) {
                return Err(format!("{function} below {}", wrong.join(";")));
            }
        }
        // What a loop does between its tasks is nobody's; a task that has just been entered may be without a frame.
        let known = ["task feed: feed()", "task serve()", "task main()", "(no task)"];
        match stacks.iter().find(|(s, _)| !known.contains(&s[0].as_str())) {
            Some((wrong, _)) => Err(format!("what is {}?", wrong.join(";"))),
            None => Ok(()),
        }
    });
}

/// Stacks by function, outermost first, and how many samples have shown them.
type Shown = BTreeMap<String, f64>;

/// One more sample; what runs in it is counted.
fn count_sample(sampler: &mut Sampler, tree: &mut Tree, seat: &mut Seat, shown: &mut Shown) -> Outcome {
    std::thread::sleep(Duration::from_millis(1));
    let outcome = sampler.sample(tree, seat);
    seat.leave();
    match outcome {
        profile::Outcome::Gone => return Err("the program has ended".into()),
        profile::Outcome::Torn => return Ok(()),
        profile::Outcome::Sample => {}
    }
    // Who else runs is about to wait for the GIL or to sleep: that depends on when one asks.
    for thread in sampler.threads().filter(|t| t.exact && t.holds_gil && t.stack != EMPTY) {
        let mut names: Vec<&str> = tree.walk(thread.stack).map(|f| &*tree.frame(f).function).collect();
        names.reverse();
        *shown.entry(names.join(";")).or_default() += 1.0;
    }
    Ok(())
}

/// How far two samples of what should be one distribution are apart: chi-square, and the number of classes less one.
fn apart(one: &Shown, other: &Shown) -> (f64, f64) {
    let total = |of: &Shown| of.values().sum::<f64>().max(1.0);
    let scale = (total(other) / total(one)).sqrt();
    let mut names: Vec<&String> = one.keys().chain(other.keys()).collect();
    names.sort_unstable();
    names.dedup();
    // What is rare is one class.
    let (mut rare, mut sum, mut classes) = ((0.0, 0.0), 0.0, 0.0);
    let mut add = |a: f64, b: f64| {
        if a + b > 0.0 {
            sum += (a * scale - b / scale).powi(2) / (a + b);
            classes += 1.0;
        }
    };
    for name in names {
        let (a, b) = (*one.get(name).unwrap_or(&0.0), *other.get(name).unwrap_or(&0.0));
        if a + b < 20.0 {
            rare = (rare.0 + a, rare.1 + b);
        } else {
            add(a, b);
        }
    }
    add(rare.0, rare.1);
    (sum, (classes - 1.0_f64).max(1.0))
}

/// The oracle is a thread that is stopped for each sample.
#[test]
fn the_distribution_is_that_of_stopped_threads() {
    let some = |i: &Interpreter| !i.debug && !i.free_threaded && [8, 11, 15].contains(&i.minor);
    each_interpreter("record-distribution", some, |interpreter| {
        for work in ["recursion", "leaves", "generators", "json", "threads", "sleeper"] {
            let (program, _) = Program::ready(interpreter, "workloads.py", &[work])?;
            let attach = |pause| {
                let options = SamplerOptions { pause, ..SamplerOptions::default() };
                Sampler::attach(program.pid(), options).map_err(|e| e.to_string())
            };
            let (mut seated, mut stopping) = (attach(false)?, attach(true)?);
            let (mut tree, mut seat) = (Tree::default(), Seat::default());
            let (mut seats, mut stops) = (Shown::new(), Shown::new());
            // In turn: whatever else the machine does meets both.
            for _ in 0..800 {
                count_sample(&mut seated, &mut tree, &mut seat, &mut seats)?;
                count_sample(&mut stopping, &mut tree, &mut seat, &mut stops)?;
            }
            let (chi, freedom) = apart(&seats, &stops);
            eprintln!("{} {work}: chi-square {chi:.1}, {freedom} degrees of freedom", interpreter.label);
            // By chance alone it is beyond this once in some thousand million times.
            let limit = freedom + 8.0 * (2.0 * freedom).sqrt() + 12.0;
            if chi > limit {
                return Err(format!(
                    "{work}: chi-square {chi:.1} of {freedom}: {seats:?}, stopped {stops:?}"
                ));
            }
        }
        Ok(())
    });
}

/// What the kernel's status file says of a process.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

#[test]
fn with_pause_no_stack_is_impossible_and_the_target_runs_on() {
    let some = |i: &Interpreter| !i.debug && [8, 11, 13, 15].contains(&i.minor);
    each_interpreter("record-pause", some, |interpreter| {
        for threads in ["1", "4"] {
            let (program, _) = Program::settled(interpreter, "chains.py", &["20", threads])?;
            let pid = program.pid();
            possible(&["--pause", "-r", "500", "-p", &pid.to_string()])
                .map_err(|e| format!("{threads} threads: {e}"))?;
            // Ended in the middle, whatever it was doing.
            let file = scratch("killed.folded");
            let mut child = Command::new(common::binary())
                .args(["record", "--pause", "-r", "1000", "-p", &pid.to_string(), "-o"])
                .arg(&file)
                .stderr(Stdio::null())
                .spawn()
                .map_err(|e| e.to_string())?;
            let traced =
                || common::tids(pid).iter().any(|tid| status(*tid, "TracerPid") == child.id().to_string());
            let until = Instant::now() + common::DEADLINE;
            while !traced() {
                if Instant::now() > until {
                    let _ = child.kill();
                    return Err("no thread was ever stopped".into());
                }
            }
            let _ = child.kill();
            let _ = child.wait();
            let stopped =
                || common::tids(pid).into_iter().any(|tid| status(tid, "State").starts_with(['t', 'T']));
            let ran = |tid: &i32| common::schedstat(pid, *tid);
            let before: Vec<_> = common::tids(pid).iter().map(ran).collect();
            while stopped() || before == common::tids(pid).iter().map(ran).collect::<Vec<_>>() {
                if Instant::now() > until {
                    return Err("it was left stopped".into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    });
}

// ---------------------------------------------------------------- commands and children

fn command(interpreter: &Interpreter, how: &str, code: &str) -> Vec<String> {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/programs/family.py");
    let python = interpreter.command.iter().map(|c| c.to_string_lossy().into_owned());
    python.chain([program.display().to_string(), how.to_owned(), code.to_owned()]).collect()
}

#[test]
fn children_of_every_kind_are_followed() {
    let some = |i: &Interpreter| of_this_root(i) && [8, 11, 12].contains(&i.minor);
    each_interpreter("record-children", some, |interpreter| {
        for (how, function) in [
            ("fork", "in_child ("),
            ("spawn", "in_child ("),
            ("forkserver", "in_child ("),
            ("exec", "in_exec ("),
        ] {
            let command = command(interpreter, how, "0");
            let mut args = vec!["-s", "-r", "200", "--"];
            args.extend(command.iter().map(String::as_str));
            let (stacks, said) = record(&args)?;
            for wanted in ["in_parent (", function] {
                if !stacks.iter().any(|(s, _)| s.iter().any(|f| f.starts_with(wanted))) {
                    return Err(format!("{how}: no {wanted}: {said}"));
                }
            }
            // Also where it was attached to before Python had the program's directory on its path.
            if let Some((stack, _)) = stacks.iter().find(|(s, _)| s.iter().any(|f| f.contains("/family.py:")))
            {
                return Err(format!("{how}: a whole path in {}", stack.join(";")));
            }
        }
        Ok(())
    });
}

#[test]
fn a_process_that_is_just_starting_is_waited_for() {
    let one = |i: &Interpreter| of_this_root(i) && [8, 11].contains(&i.minor);
    each_interpreter("record-starting", one, |interpreter| {
        let command = command(interpreter, "command", "0");
        for _ in 0..5 {
            let mut child =
                Command::new(&command[0]).args(&command[1..]).spawn().map_err(|e| e.to_string())?;
            let recorded = record(&["-p", &child.id().to_string()]);
            child.wait().map_err(|e| e.to_string())?;
            let (stacks, said) = recorded?;
            if !stacks.iter().any(|(s, _)| s.iter().any(|f| f.starts_with("in_parent (family.py"))) {
                return Err(format!("no in_parent: {said}"));
            }
        }
        Ok(())
    });
}

#[test]
fn a_command_keeps_its_exit_code() {
    let one = |i: &Interpreter| of_this_root(i) && i.minor == 11;
    each_interpreter("record-exit", one, |interpreter| {
        let command = command(interpreter, "command", "7");
        let file = scratch("exit.svg");
        let mut args = vec!["record", "-o", file.to_str().expect("UTF-8"), "--"];
        args.extend(command.iter().map(String::as_str));
        let output = hangscope(&args);
        let svg = fs::read_to_string(&file).map_err(|e| e.to_string())?;
        match (output.status.code(), svg.contains("in_parent")) {
            (Some(7), true) => Ok(()),
            other => Err(format!("{other:?}: {}", lossy(&output.stderr))),
        }
    });
    let missing = hangscope(&["record", "-o", "/dev/null", "--", "/nonexistent/python"]);
    assert_eq!(missing.status.code(), Some(127));
}

// ---------------------------------------------------------------- whatever happens, the file is whole

#[test]
fn sigterm_and_ctrl_c_write_the_whole_file() {
    let one = |i: &Interpreter| of_this_root(i) && i.minor == 12;
    each_interpreter("record-signals", one, |interpreter| {
        let (program, _) = Program::settled(interpreter, "shares.py", &[])?;
        for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
            let file = scratch("signal.speedscope.json");
            let _ = fs::remove_file(&file);
            let mut child = Command::new(common::binary())
                .args(["record", "-v", "-r", "100", "-p", &program.pid().to_string(), "-o"])
                .arg(&file)
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|e| e.to_string())?;
            // Its second thread takes the signals; it has slept between samples for some time then.
            let own = child.id() as i32;
            let runs =
                || common::schedstat(own, own).and_then(|s| s.split(' ').nth(2)?.trim().parse::<u64>().ok());
            common::within(|| common::tids(own).len() >= 2 && runs() >= Some(60));
            kill(Pid::from_raw(child.id() as i32), signal).map_err(|e| e.to_string())?;
            let status = child.wait().map_err(|e| e.to_string())?;
            let mut said = String::new();
            let _ = child.stderr.take().expect("piped").read_to_string(&mut said);
            let text = fs::read_to_string(&file).map_err(|e| format!("{e}: {said}"))?;
            let profile: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            if status.code() != Some(code) || profile["profiles"].as_array().is_none_or(Vec::is_empty) {
                return Err(format!("{signal}: {status}: {said}"));
            }
        }
        Ok(())
    });
}

#[test]
fn a_full_disk_costs_no_data_and_an_unwritable_path_no_time() {
    let one = |i: &Interpreter| of_this_root(i) && i.minor == 12;
    each_interpreter("record-full", one, |interpreter| {
        let (program, _) = Program::settled(interpreter, "shares.py", &[])?;
        let pid = program.pid().to_string();
        let output = hangscope(&["record", "-f", "folded", "-d", "1", "-o", "/dev/full", "-p", &pid]);
        let said = lossy(&output.stderr);
        let place = said.lines().find_map(|l| l.strip_prefix("written to ")?.strip_suffix(" instead"));
        let kept = place.map(fs::read_to_string).ok_or(format!("it does not say where: {said}"))?;
        let stacks = folded(&kept.map_err(|e| e.to_string())?)?;
        let _ = place.map(fs::remove_file);
        if output.status.code() != Some(3) || stacks.is_empty() {
            return Err(format!("{}: {} stacks: {said}", output.status, stacks.len()));
        }
        let output = hangscope(&["record", "-d", "600", "-o", "/nonexistent/x.svg", "-p", &pid]);
        if output.status.code() != Some(3) || !lossy(&output.stderr).contains("/nonexistent/x.svg") {
            return Err(format!("{}: {}", output.status, lossy(&output.stderr)));
        }
        Ok(())
    });
}

#[test]
fn what_cannot_be_recorded_is_told() {
    for (args, code) in
        [(&["record"][..], 2), (&["record", "-p", "1", "-r", "0"], 2), (&["record", "-p", "2147483647"], 3)]
    {
        let output = hangscope(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", lossy(&output.stderr));
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn an_empty_file_is_explained() {
    let one = |i: &Interpreter| of_this_root(i) && i.minor == 12;
    each_interpreter("record-empty", one, |interpreter| {
        let (program, _) = Program::settled(interpreter, "shares.py", &[])?;
        let pid = program.pid().to_string();
        for (args, wanted) in [
            (&["-d", "1", "--include", "nobody"][..], "--include"),
            (&["-d", "1", "--include", "sleeper"], "--include"),
            (&["-d", "0.1", "-r", "1"], "before the first sample"),
        ] {
            let (stacks, said) = record(&[args, &["-p", &pid]].concat())?;
            if !stacks.is_empty() && args.contains(&"nobody") || stacks.is_empty() != said.contains(wanted) {
                return Err(format!("{args:?}: {} stacks: {said}", stacks.len()));
            }
        }
        Ok(())
    });
}

// ---------------------------------------------------------------- formats

/// What the Trace Event Format asks for (the document of that name, by the Chromium project): the object form, metadata
/// and complete events with their fields, and events of one thread that nest.
fn trace_is_well_formed(trace: &Value) -> Outcome {
    let events = trace["traceEvents"].as_array().ok_or("no array traceEvents")?;
    if !trace["displayTimeUnit"].as_str().is_some_and(|unit| ["ms", "ns"].contains(&unit)) {
        return Err(format!("displayTimeUnit {}", trace["displayTimeUnit"]));
    }
    let mut named = Vec::new();
    let mut spans: BTreeMap<(i64, i64), Vec<(f64, f64)>> = BTreeMap::new();
    for event in events {
        let wrong = |what: &str| format!("{what}: {event}");
        let number = |key: &str| event[key].as_i64().ok_or_else(|| wrong(key));
        let thread = (number("pid")?, number("tid")?);
        let name = event["name"].as_str().filter(|name| !name.is_empty()).ok_or_else(|| wrong("name"))?;
        match event["ph"].as_str() {
            Some("M") => {
                if !["process_name", "thread_name"].contains(&name) || !event["args"]["name"].is_string() {
                    return Err(wrong("metadata"));
                }
                named.push((name.to_owned(), thread));
            }
            Some("X") => {
                let time = |key: &str| event[key].as_f64().filter(|t| *t >= 0.0).ok_or_else(|| wrong(key));
                if !event["cat"].is_string() || !(event["args"].is_null() || event["args"].is_object()) {
                    return Err(wrong("cat, args"));
                }
                spans.entry(thread).or_default().push((time("ts")?, time("dur")?));
            }
            _ => return Err(wrong("ph")),
        }
    }
    if spans.is_empty() {
        return Err("no complete event".into());
    }
    for (thread, mut of) in spans {
        if !named.contains(&("thread_name".to_owned(), thread)) || named[0].0 != "process_name" {
            return Err(format!("{thread:?} has no name"));
        }
        // Callers first.
        of.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut open: Vec<f64> = Vec::new();
        for (ts, dur) in of {
            // Microseconds as decimal fractions: a nanosecond of difference is none.
            open.retain(|end| *end > ts + 1e-3);
            if open.last().is_some_and(|end| ts + dur > end + 1e-2) {
                return Err(format!("{thread:?}: an event at {ts} for {dur} ends after what it is in"));
            }
            open.push(ts + dur);
        }
    }
    Ok(())
}

#[test]
fn every_format_has_the_function() {
    let one = |i: &Interpreter| of_this_root(i) && i.minor == 12;
    each_interpreter("record-formats", one, |interpreter| {
        let (program, _) = Program::settled(interpreter, "shares.py", &[])?;
        let pid = program.pid().to_string();
        for (name, json) in [
            ("a.svg", false),
            ("a.folded", false),
            ("a.html", false),
            ("a.pb.gz", false),
            ("a.json", true),
            ("a.chrome.json", true),
            ("a.firefox.json", true),
        ] {
            let file = scratch(name);
            let output = hangscope(&["record", "-d", "1", "-o", file.to_str().expect("UTF-8"), "-p", &pid]);
            let mut bytes = fs::read(&file).map_err(|e| format!("{name}: {e}: {}", lossy(&output.stderr)))?;
            if name.ends_with(".gz") {
                let packed = std::mem::take(&mut bytes);
                let mut gzip = flate2::read::GzDecoder::new(&packed[..]);
                gzip.read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
            }
            let has = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
            if !has("half") || !has("spin") {
                return Err(format!("{name} does not name what runs"));
            }
            let parsed = serde_json::from_slice::<Value>(&bytes);
            match (&parsed, json) {
                (Err(error), true) => return Err(format!("{name}: {error}")),
                (Ok(trace), true) if name == "a.chrome.json" => trace_is_well_formed(trace)?,
                _ => {}
            }
            let left = fs::read_dir(file.parent().expect("a directory")).map_err(|e| e.to_string())?;
            if left.flatten().any(|e| {
                e.file_name().to_string_lossy().contains(&format!("{name}."))
                    && e.path().extension().is_some_and(|x| x == "part")
            }) {
                return Err(format!("{name}: a part file was left"));
            }
        }
        Ok(())
    });
}
