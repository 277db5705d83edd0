//! The frames of one stack, in py-spy's layout: innermost first, `function (file:line)`.

use super::TextOptions;
use super::recursion::{self, Repeat};
use crate::render::page::Page;
use crate::render::style::Ink;
use crate::snapshot::{Frame, FrameKind, Local, Process};
use std::borrow::Cow;

const INDENT: usize = 4;
/// Functions with longer names do not push the others' files to the right.
const LONGEST_ALIGNED: usize = 36;
const LONGEST_NAME: usize = 20;

/// Writes the frames; the notes stand below the frame with that index.
pub(super) fn write(
    page: &mut Page,
    process: &Process,
    frames: &[Frame],
    notes: Option<(usize, &[String])>,
    options: &TextOptions,
) {
    let repeats = if options.full_stacks { Vec::new() } else { recursion::repeats(frames) };
    let innermost_user = frames.iter().position(|frame| frame.user);
    let column = column(page, frames);
    let mut skip = repeats.iter().peekable();
    let mut at = 0;
    while let Some(frame) = frames.get(at) {
        if let Some(repeat) = skip.next_if(|repeat| repeat.hidden.start == at) {
            left_out(page, frames, repeat);
            at = repeat.hidden.end;
            continue;
        }
        line(page, process, frame, column, options);
        if innermost_user == Some(at) {
            source(page, frame);
        }
        if let Some((_, lines)) = notes.filter(|(index, _)| *index == at) {
            let mark = page.marks.note;
            page.pad_to(INDENT + 2);
            page.put(Ink::Wait, mark);
            let indent = page.column() + 1;
            for line in lines {
                page.pad_to(indent);
                page.fact(Ink::Wait, indent, line);
            }
        }
        locals(page, frame);
        at += 1;
    }
}

/// Whether the frame with this index is shown.
pub(super) fn shows(frames: &[Frame], index: usize, options: &TextOptions) -> bool {
    index < frames.len()
        && (options.full_stacks
            || recursion::repeats(frames).iter().all(|repeat| !repeat.hidden.contains(&index)))
}

/// What the function is called, as well as it is known.
pub(super) fn function(frame: &Frame) -> &str {
    frame.qualname.as_deref().unwrap_or(&frame.function)
}

/// `app/api/routes/stream.py`: the path below what its module is imported from.
pub(super) fn file<'a>(frame: &'a Frame, process: Option<&Process>, options: &TextOptions) -> Cow<'a, str> {
    let Some(file) = frame.file.as_deref().or(frame.path.as_deref()) else { return Cow::Borrowed("?") };
    if options.full_filenames {
        return Cow::Borrowed(frame.path.as_deref().filter(|_| !file.starts_with('/')).unwrap_or(file));
    }
    if frame.kind == FrameKind::Native {
        return Cow::Borrowed(file.rsplit('/').next().unwrap_or(file));
    }
    if let Some(tail) = frame.module.as_deref().and_then(|module| below_import_root(file, module)) {
        return Cow::Borrowed(tail);
    }
    for root in ["/site-packages/", "/dist-packages/"] {
        if let Some(at) = file.rfind(root) {
            return Cow::Borrowed(&file[at + root.len()..]);
        }
    }
    // The program itself stands in the command with its whole path.
    if frame.module.as_deref() == Some("__main__")
        && process.is_some_and(|process| process.command.iter().any(|word| word == file))
    {
        return Cow::Borrowed(file.rsplit('/').next().unwrap_or(file));
    }
    let cwd = process.and_then(|process| process.cwd.as_deref()).filter(|cwd| *cwd != "/");
    let below = cwd.and_then(|cwd| file.strip_prefix(cwd)?.strip_prefix('/'));
    Cow::Borrowed(below.unwrap_or(file))
}

/// The last components of the path that are the module's name, if they are.
fn below_import_root<'a>(file: &'a str, module: &str) -> Option<&'a str> {
    let stem = file.strip_suffix(".py").or_else(|| file.strip_suffix(".pyc"))?;
    let stem = match stem.strip_suffix("/__init__") {
        Some(package) if !module.ends_with("__init__") => package,
        _ => stem,
    };
    let start = stem.len().checked_sub(module.len())?;
    let tail = stem.as_bytes()[start..].iter();
    let same = tail.zip(module.as_bytes()).all(|(a, b)| a == b || (*a, *b) == (b'/', b'.'));
    let whole = start == 0 || stem.as_bytes()[start - 1] == b'/';
    if same && whole && !module.is_empty() { file.get(start..) } else { None }
}

/// Where files begin, if there is room to align them.
fn column(page: &Page, frames: &[Frame]) -> usize {
    if !page.is_wide() {
        return 0;
    }
    let widths = frames.iter().map(|frame| page.measure(function(frame)));
    widths.filter(|&width| width <= LONGEST_ALIGNED).max().map_or(0, |width| INDENT + width + 2)
}

fn line(page: &mut Page, process: &Process, frame: &Frame, column: usize, options: &TextOptions) {
    let (name, place) = if frame.user { (Ink::User, Ink::UserPlace) } else { (Ink::Faint, Ink::Faint) };
    if frame.user {
        let mark = page.marks.user;
        page.pad_to(INDENT - 2);
        page.put(Ink::User, mark);
    }
    page.pad_to(INDENT);
    page.begin(name);
    page.add(function(frame));
    // Most frames are in one ink: it is switched once for all of the line.
    if name != place {
        page.end(name);
        page.begin(place);
    }
    let file = file(frame, Some(process), options);
    let column = column.max(page.column() + 1);
    location(page, &file, frame.line.filter(|_| options.lineno), column);
    page.end(place);
    page.end_line();
}

/// `(file:line)`, on a line of its own if it does not fit on this one.
fn location(page: &mut Page, file: &str, line: Option<u32>, column: usize) {
    let around = 2 + line.map_or(0, |line| 2 + line.checked_ilog10().unwrap_or(0) as usize);
    if column + page.measure(file) + around <= page.room() {
        page.pad_to(column);
        page.add("(");
        page.add(file);
    } else {
        // The name with the ellipsis and a slash is the least that a path can be cut to.
        let least = file.rsplit('/').next().map_or(0, |name| page.measure(name) + 2);
        if column + least.min(page.measure(file)) + around > page.room() {
            page.end_line();
            page.pad_to(INDENT + 4);
        } else {
            page.pad_to(column);
        }
        let room = page.room().saturating_sub(page.column() + around);
        let path = page.shorten_path(file, room);
        page.add("(");
        page.add(&path);
    }
    if let Some(line) = line {
        page.add_line_number(line);
    }
    page.add(")");
}

fn source(page: &mut Page, frame: &Frame) {
    if let Some(source) = frame.source.as_deref().filter(|source| !source.is_empty()) {
        page.pad_to(INDENT + 4);
        let room = page.room().saturating_sub(page.column());
        page.put_cut(Ink::Plain, source, room);
        page.end_line();
    }
}

fn left_out(page: &mut Page, frames: &[Frame], repeat: &Repeat) {
    let (ellipsis, arrow) = (page.marks.ellipsis, page.marks.arrow);
    // From caller to callee, the way one would tell it.
    let cycle = &frames[repeat.hidden.start..repeat.hidden.start + repeat.cycle];
    let names: Vec<&str> = cycle.iter().rev().map(function).collect();
    let circle = match names.as_slice() {
        [one] => format!("{one} {arrow} itself"),
        several => several.join(&format!(" {arrow} ")),
    };
    page.pad_to(INDENT);
    let text =
        format!("{ellipsis} {} more frames of this recursion ({circle}) {ellipsis}", repeat.hidden.len());
    page.fact(Ink::Wait, INDENT + 2, &text);
}

fn locals(page: &mut Page, frame: &Frame) {
    let Some(locals) = &frame.locals else { return };
    for (title, arguments) in [("Arguments:", true), ("Locals:", false)] {
        let some: Vec<&Local> = locals.iter().filter(|local| local.argument == arguments).collect();
        if some.is_empty() {
            continue;
        }
        page.pad_to(INDENT + 4);
        page.put(Ink::Faint, title);
        page.end_line();
        let indent = INDENT + 8;
        let widths = some.iter().map(|local| page.measure(&local.name));
        let widest = widths.filter(|&width| width <= LONGEST_NAME).max().unwrap_or(0);
        for local in some {
            page.pad_to(indent);
            page.put(Ink::UserPlace, &local.name);
            page.put(Ink::Faint, ":");
            page.pad_to((indent + widest + 2).max(page.column() + 1));
            let hanging = page.column().min(indent + widest + 2);
            page.fact(Ink::Plain, hanging, &local.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_their_modules_are() {
        let below = |file, module| below_import_root(file, module);
        assert_eq!(below("/srv/app/api/stream.py", "app.api.stream"), Some("app/api/stream.py"));
        assert_eq!(below("/usr/lib/python3.12/asyncio/__init__.py", "asyncio"), Some("asyncio/__init__.py"));
        assert_eq!(below("/usr/lib/python3.12/threading.py", "threading"), Some("threading.py"));
        assert_eq!(below("app/stream.py", "app.stream"), Some("app/stream.py"));
        assert_eq!(below("stream.py", "app.stream"), None);
        assert_eq!(below("/srv/main.py", "__main__"), None);
        assert_eq!(below("/srv/main.py", ""), None);
        assert_eq!(below("/srv/myapp.py", "app"), None);
        assert_eq!(below("/srv/größe/ß.py", "größe.ß"), Some("größe/ß.py"));
        assert_eq!(below("<frozen importlib._bootstrap>", "importlib._bootstrap"), None);
    }
}
