//! `hangscope completions SHELL`

use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::Cli;

pub fn run(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    // Written at once, so that a closed pipe is an error we see and not a panic inside the generator.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hangscope", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(ExitCode::SUCCESS)
}
