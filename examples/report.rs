//! Shows the sample reports of the tests, to look at them with one's own eyes:
//! `cargo run --example report [NAME|json] [WIDTH]`; without a width as on this terminal.

#[path = "../tests/samples/mod.rs"]
mod samples;

use hangscope::render::style::speaks_utf8;
use hangscope::render::text::{TextOptions, write};

fn main() -> std::io::Result<()> {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let terminal = terminal_size::terminal_size().map(|(width, _)| width.0.into());
    let options = TextOptions {
        width: words.next().and_then(|word| word.parse().ok()).or(terminal),
        unicode: speaks_utf8(|variable| std::env::var(variable).ok()),
        ..TextOptions::default()
    };
    let mut out = anstream::stdout().lock();
    for (sample, report) in samples::all() {
        match name.as_str() {
            "json" => hangscope::render::json::write(&mut out, &report)?,
            wanted if sample.starts_with(wanted) => write(&mut out, &report, &options)?,
            _ => {}
        }
    }
    Ok(())
}
