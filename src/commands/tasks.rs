//! `hangscope tasks`: asyncio tasks and what each awaits, as a tree.

use std::process::ExitCode;

use super::{UNREAD, dump, nothing_found, print_json, print_text};
use crate::cli::Tasks;
use crate::render::report::Report;
use crate::render::text;
use crate::target::find;

pub fn run(args: &Tasks) -> anyhow::Result<ExitCode> {
    let options = args.look_options();
    if let Some(file) = &args.capture {
        let (snapshot, code) = dump::replay(file, &options)?;
        print(&Report::new(snapshot), args)?;
        return Ok(code);
    }
    let found = match find::find(&args.targets.selector()) {
        Ok(found) => found,
        Err(error) => return Ok(nothing_found(error, args.shown.show_secrets)),
    };
    let looked = dump::look_at(found, &options);
    print(&Report::new(looked.snapshot), args)?;
    Ok(ExitCode::from(if looked.unread { UNREAD } else { 0 }))
}

fn print(report: &Report, args: &Tasks) -> anyhow::Result<()> {
    if args.json {
        return Ok(print_json(report)?);
    }
    let options = text::TextOptions {
        full_filenames: args.full_filenames,
        full_stacks: args.all,
        group: !args.all,
        ..super::text_options()
    };
    Ok(print_text(|out| text::write_tasks(out, report, &options))?)
}
