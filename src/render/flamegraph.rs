//! The flame graph as SVG, by inferno.

use std::hash::BuildHasher;
use std::io::{self, Write};

use inferno::flamegraph::color::{Color, PaletteMap};
use inferno::flamegraph::{Direction, Options, TextTruncateDirection, from_lines};
use rustc_hash::FxBuildHasher;

use super::folded;
use super::profile::ProfileOptions;
use crate::profile::recording::Recording;

pub fn write(out: &mut dyn Write, recording: &mut Recording, options: &ProfileOptions) -> io::Result<()> {
    let lines = folded::lines(recording, options);
    let mut colours = colours(recording, options);
    let mut how = Options::default();
    how.title = options.title.clone();
    how.subtitle = Some(super::profile::subtitle(recording));
    how.count_name = "samples".into();
    how.palette_map = Some(&mut colours);
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
                    <text x=\"20\" y=\"36\" font-family=\"monospace\">no sample: no thread was counted</text></svg>\n";
        return out.write_all(text.as_bytes());
    }
    from_lines(&mut how, lines.iter().map(String::as_str), out).map_err(io::Error::other)
}

/// As on the page: the application warm, libraries blue, what is no code grey. The same function has the same colour in
/// every graph.
fn colours(recording: &Recording, options: &ProfileOptions) -> PaletteMap {
    let mut colours = PaletteMap::default();
    let grey = Color { r: 184, g: 186, b: 192 };
    // Its root has no name there.
    colours.insert("", grey);
    for frame in recording.tree.frames() {
        let between = |[from, to]: [[u32; 3]; 2]| {
            let share = (FxBuildHasher.hash_one(&frame.function) >> 56) as u32;
            let mix = |n: usize| ((from[n] * (255 - share) + to[n] * share) / 255) as u8;
            Color { r: mix(0), g: mix(1), b: mix(2) }
        };
        let colour = match (frame.file.is_empty(), frame.user) {
            (true, _) => grey,
            (_, true) => between([[239, 131, 84], [247, 214, 122]]),
            _ => between([[112, 166, 194], [154, 166, 220]]),
        };
        colours.insert(folded::label_in_line(frame, options), colour);
    }
    colours
}
