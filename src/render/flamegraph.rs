//! The flame graph as SVG, by inferno.

use std::io::{self, Write};

use inferno::flamegraph::color::{MultiPalette, Palette};
use inferno::flamegraph::{Direction, Options, TextTruncateDirection, from_lines};

use super::folded;
use super::profile::ProfileOptions;
use crate::profile::recording::Recording;

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    let lines = folded::lines(recording, options);
    let mut how = Options::default();
    how.title = options.title.clone();
    how.subtitle = Some(super::profile::subtitle(recording));
    how.count_name = "samples".into();
    how.colors = Palette::Multi(MultiPalette::Python);
    // The same function has the same colour in every graph.
    how.hash = true;
    // The name stands at the beginning.
    how.text_truncate_direction = TextTruncateDirection::Right;
    // A frame narrower than a fifth of a pixel cannot be seen, only counted.
    how.min_width = 0.02;
    if options.reverse {
        how.reverse_stack_order = true;
        how.direction = Direction::Inverted;
    }
    if lines.is_empty() {
        // inferno refuses an empty graph.
        let text = "<?xml version=\"1.0\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"60\">\
                    <text x=\"20\" y=\"36\" font-family=\"monospace\">no sample: no thread ran while it was recorded</text></svg>\n";
        return out.write_all(text.as_bytes());
    }
    from_lines(&mut how, lines.iter().map(String::as_str), out).map_err(io::Error::other)
}
