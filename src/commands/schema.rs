//! `hangscope schema`: the JSON schema of the report.

use std::io::Write;
use std::process::ExitCode;

use crate::render::report::Report;

pub fn run() -> anyhow::Result<ExitCode> {
    let schema = schemars::schema_for!(Report);
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &schema)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}
