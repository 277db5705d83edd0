//! `hangscope schema`: the JSON schema of the report, for those who generate readers from it.

use crate::render::report::Report;
use schemars::generate::SchemaSettings;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints the schema to stdout.
pub fn run() -> anyhow::Result<ExitCode> {
    write(&mut io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn write(out: &mut dyn Write) -> io::Result<()> {
    // What is written, not what would be accepted: a `null` is never left out.
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let schema = settings.into_generator().into_root_schema_for::<Report>();
    serde_json::to_writer_pretty(&mut *out, &schema)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_schema_names_what_the_report_has() {
        let mut text = Vec::new();
        write(&mut text).unwrap();
        let schema: Value = serde_json::from_slice(&text).unwrap();
        for name in ["schema", "captured_at", "looks", "processes", "findings", "skipped"] {
            assert!(schema["properties"][name].is_object(), "{name}");
        }
        let process = &schema["$defs"]["ReportProcess"]["properties"];
        assert!(process["pid"].is_object() && process["findings"].is_object());
        let required = schema["$defs"]["ReportProcess"]["required"].as_array().unwrap();
        assert!(required.contains(&"parent".into()) && required.contains(&"findings".into()));
    }
}
