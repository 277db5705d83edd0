//! Parses, runs, and turns the outcome into an exit code. A closed pipe is success.

use std::process::ExitCode;

use clap::Parser;
use hangscope::cli::{self, Cli, Color, Command};
use hangscope::commands;

/// What went wrong in a way that the contract has no other code for.
const FAILED: u8 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(what) = cli::not_built_yet(&error) {
                eprintln!("hangscope: {what} is not built yet; what is: hangscope --help");
                return ExitCode::from(commands::USAGE);
            }
            error.exit()
        }
    };
    let level = match cli.verbose {
        0 => "warn",
        1 => "hangscope=debug",
        _ => "hangscope=trace",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format_timestamp_micros()
        .init();
    match cli.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    let outcome = match &cli.command {
        Command::Ps(args) => commands::ps::run(args),
        Command::Dump(args) => commands::dump::run(args),
        Command::Tasks(args) => commands::tasks::run(args),
        Command::Record(args) => commands::record::run(args),
        Command::Check(args) => commands::check::run(args),
        Command::Top(args) => commands::top::run(args),
        Command::Watch(args) => commands::watch::run(args),
        Command::Demo(args) => commands::demo::run(args),
        Command::Completions { shell } => commands::completions::run(*shell),
        Command::Man => commands::man::run(),
        Command::Schema => commands::schema::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("hangscope: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Whoever read our output has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
