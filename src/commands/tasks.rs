//! `hangscope tasks`: asyncio tasks and what each awaits, as a tree.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use super::{UNREAD, dump, nothing_found};
use crate::cli::Tasks;
use crate::render::report::Report;
use crate::render::{json, text};
use crate::snapshot::Snapshot;
use crate::target::find;

pub fn run(args: &Tasks) -> anyhow::Result<ExitCode> {
    let options = args.look_options();
    if let Some(file) = &args.capture {
        let (snapshot, code) = dump::replay(file, &options)?;
        print(snapshot, args)?;
        return Ok(code);
    }
    let found = match find::find(&args.targets.selector()) {
        Ok(found) => found,
        Err(error) => return Ok(nothing_found(error, args.show_secrets)),
    };
    let looked = dump::look_at(found, &options);
    print(looked.snapshot, args)?;
    Ok(ExitCode::from(if looked.unread { UNREAD } else { 0 }))
}

fn print(snapshot: Snapshot, args: &Tasks) -> anyhow::Result<()> {
    let report = Report::new(snapshot);
    if args.json {
        let mut out = BufWriter::new(std::io::stdout().lock());
        json::write(&mut out, &report)?;
        out.flush()?;
        return Ok(());
    }
    let options = text::TextOptions {
        full_filenames: args.full_filenames,
        full_stacks: args.all,
        group: !args.all,
        ..super::text_options()
    };
    // Line by line would be a system call a line.
    let mut out = BufWriter::new(anstream::stdout().lock());
    text::write_tasks(&mut out, &report, &options)?;
    out.flush()?;
    Ok(())
}
