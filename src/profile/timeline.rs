//! The order of things: which stack a thread had from when to when. Of millions of such spans only the last ones of each
//! track are in memory. The others lie in a temporary file without a name, and are thinned out before it gets large.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tree::StackId;

/// Spans that are written at once, and bytes of each.
const BLOCK: usize = 64;
const SIZE: usize = 20;
/// Spans of all tracks together; and those in memory, where there is no file or no room in it.
const MOST: usize = 2_000_000;
const MOST_IN_MEMORY: usize = 100_000;
/// What starts so soon after an end, in nanoseconds, follows it.
const NO_GAP: u64 = 1000;

/// A thread had this stack from sample to sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Nanoseconds since the recording began.
    pub start: u64,
    pub length: u64,
    pub stack: StackId,
}

#[derive(Debug)]
pub struct Timeline {
    lines: Vec<Line>,
    file: Option<File>,
    /// Where the file ends, and how far it may be written.
    end: u64,
    room: u64,
    /// Blocks of the file that are not in use.
    free: Vec<u64>,
    /// How many there are, and how many of them in memory.
    spans: usize,
    in_memory: usize,
    most: usize,
    most_in_memory: usize,
    /// So many spans in a row are one (1: none is left out).
    pub thinned: u32,
    random: u64,
}

/// One track: blocks in the file, and what came after them.
#[derive(Debug, Default)]
struct Line {
    blocks: Vec<u64>,
    tail: Vec<Span>,
    /// How many spans the last one stands for.
    joined: u32,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline::new(file().inspect_err(|error| log::debug!("no temporary file: {error}")).ok())
    }
}

/// `/tmp` is memory on many machines; `/var/tmp` is not.
fn file() -> io::Result<File> {
    match std::env::var_os("TMPDIR") {
        Some(_) => tempfile::tempfile(),
        None => tempfile::tempfile_in("/var/tmp").or_else(|_| tempfile::tempfile()),
    }
}

impl Timeline {
    fn new(file: Option<File>) -> Timeline {
        Timeline {
            lines: Vec::new(),
            room: if file.is_some() { u64::MAX } else { 0 },
            file,
            end: 0,
            free: Vec::new(),
            spans: 0,
            in_memory: 0,
            most: MOST,
            most_in_memory: MOST_IN_MEMORY,
            thinned: 1,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub fn add(&mut self, track: usize, span: Span) {
        if track >= self.lines.len() {
            self.lines.resize_with(track + 1, Line::default);
        }
        let line = &mut self.lines[track];
        match line.tail.last_mut() {
            Some(last) if goes_on(last, &span) => last.length = span.start + span.length - last.start,
            Some(last) if line.joined < self.thinned => {
                *last = join(last, &span, &mut self.random);
                line.joined += 1;
            }
            _ => self.push(track, span),
        }
        // A part of a block is in memory for each track.
        let most_in_memory = self.most_in_memory + self.lines.len() * BLOCK;
        if self.spans > self.most || self.in_memory > most_in_memory {
            self.thin();
        }
    }

    /// All spans of a track, in their order.
    pub fn each(&self, track: usize, mut to: impl FnMut(Span) -> io::Result<()>) -> io::Result<()> {
        let Some(line) = self.lines.get(track) else { return Ok(()) };
        for block in &line.blocks {
            self.read(*block)?.into_iter().try_for_each(&mut to)?;
        }
        line.tail.iter().copied().try_for_each(to)
    }

    fn push(&mut self, track: usize, span: Span) {
        let line = &mut self.lines[track];
        // What goes to the file is not the last one: that may still grow.
        if line.tail.len() >= BLOCK {
            self.store(track);
        }
        let line = &mut self.lines[track];
        line.tail.push(span);
        line.joined = 1;
        self.spans += 1;
        self.in_memory += 1;
    }

    /// Moves whole blocks to the file, as far as there is room.
    fn store(&mut self, track: usize) {
        let tail = std::mem::take(&mut self.lines[track].tail);
        let mut blocks = tail.chunks_exact(BLOCK);
        let mut done = 0;
        for block in blocks.by_ref() {
            let Some(at) = self.write(block) else { break };
            self.lines[track].blocks.push(at);
            done += BLOCK;
        }
        self.in_memory -= done;
        let line = &mut self.lines[track];
        line.tail = tail;
        line.tail.drain(..done);
    }

    /// `None`: there is no room.
    fn write(&mut self, block: &[Span]) -> Option<u64> {
        let unused = self.free.pop();
        let at = unused.or((self.end < self.room).then_some(self.end))?;
        let bytes: Vec<u8> = block.iter().flat_map(|span| span.to_bytes()).collect();
        match self.file.as_ref()?.write_all_at(&bytes, at) {
            Ok(()) => {
                self.end = self.end.max(at + bytes.len() as u64);
                Some(at)
            }
            Err(error) => {
                log::debug!("the temporary file takes no more: {error}");
                self.room = self.end;
                self.free.extend(unused);
                None
            }
        }
    }

    fn read(&self, at: u64) -> io::Result<Vec<Span>> {
        let mut bytes = vec![0; BLOCK * SIZE];
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes.chunks_exact(SIZE).map(Span::from_bytes).collect())
    }

    /// Of two neighbours one stands for both, as if the rate had been half of it.
    fn thin(&mut self) {
        self.thinned *= 2;
        for track in 0..self.lines.len() {
            let old = std::mem::take(&mut self.lines[track]);
            let mut single = None;
            for at in old.blocks {
                // What is read may be overwritten: less comes out than went in.
                let spans = self.read(at).unwrap_or_else(|error| {
                    log::warn!("a part of the timeline is lost: {error}");
                    Vec::new()
                });
                self.free.push(at);
                self.spans -= BLOCK;
                self.halve(track, &spans, &mut single);
            }
            self.spans -= old.tail.len();
            self.in_memory -= old.tail.len();
            self.halve(track, &old.tail, &mut single);
            if let Some(last) = single {
                self.push(track, last);
            } else {
                self.lines[track].joined = self.thinned;
            }
        }
    }

    fn halve(&mut self, track: usize, spans: &[Span], single: &mut Option<Span>) {
        for span in spans {
            let Some(before) = single.take() else {
                *single = Some(*span);
                continue;
            };
            let one = join(&before, span, &mut self.random);
            match self.lines[track].tail.last_mut() {
                Some(last) if goes_on(last, &one) => last.length = one.start + one.length - last.start,
                _ => self.push(track, one),
            }
        }
    }
}

fn goes_on(last: &Span, next: &Span) -> bool {
    last.stack == next.stack && next.start <= last.start + last.length + NO_GAP
}

/// One for two. Neither time nor a pause between them is made longer; and the stack is one of both by chance, by their
/// lengths: always the first, say, and of two stacks that take turns one would be left.
fn join(a: &Span, b: &Span, random: &mut u64) -> Span {
    // Xorshift (Marsaglia).
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let length = a.length + b.length;
    let stack = if *random % length.max(1) < a.length { a.stack } else { b.stack };
    Span { start: a.start, length, stack }
}

impl Span {
    fn to_bytes(self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..].copy_from_slice(&self.stack.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Span {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let stack = StackId::from_le_bytes(bytes[16..].try_into().expect("4 bytes"));
        Span { start: word(0), length: word(8), stack }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(timeline: &Timeline, track: usize) -> Vec<Span> {
        let mut all = Vec::new();
        let gathered = timeline.each(track, |span| {
            all.push(span);
            Ok(())
        });
        gathered.expect("what was written can be read");
        all
    }

    /// Two stacks in turn, the second one three times as long, and a pause after every hundredth.
    fn turns(count: u64) -> impl Iterator<Item = Span> {
        (0..count).map(|n| {
            let start = n / 2 * 4000 + n % 2 * 1000 + n / 100 * 1_000_000;
            Span { start, length: if n % 2 == 0 { 1000 } else { 3000 }, stack: 1 + (n % 2) as StackId }
        })
    }

    fn nameless() -> Option<File> {
        Some(tempfile::tempfile().expect("a temporary file"))
    }

    #[test]
    fn memory_does_not_grow_and_nothing_is_lost() {
        let mut timeline = Timeline::new(nameless());
        let all: Vec<Span> = turns(100_000).collect();
        for (n, span) in all.iter().enumerate() {
            timeline.add(n % 3, *span);
            let held: usize = timeline.lines.iter().map(|line| line.tail.len()).sum();
            assert!(held <= 3 * BLOCK, "{held} spans in memory after {n}");
        }
        for track in 0..3 {
            let wanted: Vec<Span> = all.iter().skip(track).step_by(3).copied().collect();
            assert!(spans(&timeline, track) == wanted, "track {track}");
        }
        assert_eq!(timeline.thinned, 1);
    }

    #[test]
    fn what_goes_on_is_one_span() {
        let mut timeline = Timeline::new(None);
        for n in 0..1000 {
            timeline.add(0, Span { start: n * 1000, length: 1000, stack: 7 });
        }
        assert_eq!(spans(&timeline, 0), [Span { start: 0, length: 1_000_000, stack: 7 }]);
    }

    /// Where there are too many of them: of both stacks as much as there was, no time more or less, none twice.
    fn is_thinned_fairly(mut timeline: Timeline) {
        const COUNT: u64 = 400_000;
        for span in turns(COUNT) {
            timeline.add(0, span);
        }
        let all = spans(&timeline, 0);
        assert!(timeline.thinned >= 4, "{}", timeline.thinned);
        assert!(all.len() <= 50_000, "{}", all.len());
        assert_eq!(timeline.spans, all.len());
        assert_eq!(timeline.in_memory, timeline.lines[0].tail.len());
        assert!(all.windows(2).all(|w| w[0].start + w[0].length <= w[1].start));
        let time = |stack| all.iter().filter(|s| s.stack == stack).map(|s| s.length).sum::<u64>();
        assert_eq!(time(1) + time(2), COUNT * 2000);
        let share = time(2) as f64 / (COUNT * 2000) as f64;
        assert!((0.73..0.77).contains(&share), "{share}");
    }

    #[test]
    fn too_long_for_the_file() {
        let mut timeline = Timeline::new(nameless());
        timeline.most = 50_000;
        is_thinned_fairly(timeline);
    }

    #[test]
    fn without_a_file() {
        let mut timeline = Timeline::new(None);
        timeline.most_in_memory = 40_000;
        is_thinned_fairly(timeline);
    }

    #[test]
    fn on_a_full_disk() {
        let mut timeline = Timeline::new(nameless());
        timeline.most_in_memory = 20_000;
        timeline.room = (20_000 * SIZE) as u64;
        is_thinned_fairly(timeline);
    }
}
