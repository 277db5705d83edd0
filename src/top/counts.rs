//! What samples add up to: per function, per thread, per stack. Pure.

use rustc_hash::FxHashMap;

use crate::profile::{EMPTY, FrameId, Sampled, StackId, State, Tree};

/// Index into [`Counts::functions`].
pub type FunctionId = usize;

/// Stacks that are kept apart; what comes beyond is counted for its functions only.
const MAX_STACKS: usize = 200_000;

/// A function, whatever its lines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    pub name: String,
    pub file: String,
    pub first_line: u32,
    pub user: bool,
}

/// Samples in which it was innermost, and in which it was anywhere on the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub own: u64,
    pub total: u64,
}

/// Sums over one stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Rounds of sampling; each takes all threads of all processes.
    pub samples: u64,
    pub torn: u64,
    /// Rounds in which some thread held the GIL, or collected garbage.
    pub gil: u64,
    pub gc: u64,
    /// Threads that ran, over all rounds.
    pub active: u64,
    pub functions: Vec<Own>,
    pub threads: FxHashMap<(i32, i32), OfThread>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfThread {
    pub active: u64,
    pub gil: u64,
}

/// A thread as it was last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub pid: i32,
    pub tid: i32,
    pub name: String,
    pub state: State,
    pub stack: StackId,
}

/// Which samples count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Threads that sleep, too.
    pub idle: bool,
    /// Only the thread that holds the GIL.
    pub gil: bool,
}

/// Everything since the start, and since the last time that somebody looked.
#[derive(Default)]
pub struct Counts {
    pub functions: Vec<Function>,
    by_frame: FxHashMap<FrameId, FunctionId>,
    by_function: FxHashMap<Function, FunctionId>,
    pub start: Sums,
    pub now: Sums,
    /// Samples by stack, since the start.
    pub stacks: FxHashMap<StackId, u64>,
    pub threads: Vec<Seen>,
    /// In which round a function was counted last: recursion counts once.
    counted: Vec<u64>,
    round: u64,
}

impl Counts {
    /// Begins a round of sampling.
    pub fn begin(&mut self) {
        self.start.samples += 1;
        self.now.samples += 1;
        self.threads.clear();
    }

    pub fn torn(&mut self) {
        self.start.torn += 1;
        self.now.torn += 1;
    }

    /// Adds the threads of one process.
    pub fn add<'t>(
        &mut self,
        tree: &Tree,
        pid: i32,
        threads: impl IntoIterator<Item = &'t Sampled>,
        filter: Filter,
    ) {
        let (mut gil, mut gc) = (false, false);
        for thread in threads {
            let name = thread.name.as_deref().map_or_else(|| format!("thread {}", thread.tid), str::to_owned);
            let (tid, state, stack) = (thread.tid, thread.state, thread.stack);
            self.threads.push(Seen { pid, tid, name, state, stack });
            gil |= thread.holds_gil;
            gc |= thread.collecting;
            let runs = state == State::Running;
            for sums in [&mut self.start, &mut self.now] {
                sums.active += u64::from(runs);
                let of = sums.threads.entry((pid, tid)).or_default();
                of.active += u64::from(runs);
                of.gil += u64::from(thread.holds_gil);
            }
            let counts = if filter.gil { thread.holds_gil } else { runs || filter.idle };
            if counts && stack != EMPTY {
                self.add_stack(tree, stack);
            }
        }
        for sums in [&mut self.start, &mut self.now] {
            sums.gil += u64::from(gil);
            sums.gc += u64::from(gc);
        }
    }

    fn add_stack(&mut self, tree: &Tree, stack: StackId) {
        if self.stacks.len() < MAX_STACKS || self.stacks.contains_key(&stack) {
            *self.stacks.entry(stack).or_default() += 1;
        }
        self.round += 1;
        for (depth, frame) in tree.walk(stack).enumerate() {
            let function = self.function(tree, frame);
            for sums in [&mut self.start, &mut self.now] {
                if sums.functions.len() <= function {
                    sums.functions.resize(function + 1, Own::default());
                }
                let of = &mut sums.functions[function];
                of.own += u64::from(depth == 0);
                of.total += u64::from(self.counted[function] != self.round);
            }
            self.counted[function] = self.round;
        }
    }

    /// The function of a frame.
    fn function(&mut self, tree: &Tree, id: FrameId) -> FunctionId {
        if let Some(known) = self.by_frame.get(&id) {
            return *known;
        }
        let frame = tree.frame(id);
        let function = Function {
            name: frame.function.clone(),
            file: frame.short.clone(),
            first_line: frame.first_line,
            user: frame.user,
        };
        let next = self.functions.len();
        let known = *self.by_function.entry(function.clone()).or_insert(next);
        if known == next {
            self.functions.push(function);
            self.counted.push(0);
        }
        self.by_frame.insert(id, known);
        known
    }

    /// Ends the present stretch and begins another.
    pub fn take_now(&mut self) -> Sums {
        std::mem::take(&mut self.now)
    }

    /// Forgets what was counted, not what functions there are.
    pub fn reset(&mut self) {
        self.start = Sums::default();
        self.now = Sums::default();
        self.stacks.clear();
    }

    /// The stack that a function was met on most, innermost first, and how often.
    pub fn stack_of(&self, tree: &Tree, function: FunctionId) -> Option<(Vec<FrameId>, u64)> {
        let has = |stack: StackId| tree.walk(stack).any(|f| self.by_frame.get(&f) == Some(&function));
        // Ties are broken by the older one, so that the picture stands still.
        let most = self.stacks.iter().filter(|(stack, _)| has(**stack));
        let (stack, count) = most.max_by_key(|(stack, count)| (**count, std::cmp::Reverse(**stack)))?;
        Some((tree.walk(*stack).collect(), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Frame;

    fn sampled(tid: i32, state: State, stack: StackId) -> Sampled {
        Sampled {
            tid,
            ident: 0,
            name: Some("T".into()),
            main: false,
            state,
            holds_gil: state == State::Running,
            collecting: false,
            stack,
            exact: true,
        }
    }

    fn frame(function: &str, line: u32) -> Frame {
        Frame { line: Some(line), first_line: 1, user: true, ..Frame::label(function) }
    }

    #[test]
    fn own_and_total() {
        let mut tree = Tree::default();
        let [main, f1, f2, g] =
            [frame("main", 9), frame("f", 2), frame("f", 3), frame("g", 5)].map(|f| tree.intern(f));
        let bottom = tree.push(EMPTY, main);
        // main → f → f: recursion counts once, though at two lines.
        let recursive = tree.push(bottom, f1);
        let recursive = tree.push(recursive, f2);
        let in_g = tree.push(bottom, g);
        let mut counts = Counts::default();
        for stack in [recursive, recursive, in_g] {
            counts.begin();
            let threads = [sampled(1, State::Running, stack), sampled(2, State::Idle, in_g)];
            counts.add(&tree, 7, &threads, Filter::default());
        }
        let of = |name: &str| {
            let at = counts.functions.iter().position(|f| f.name == name).unwrap();
            counts.start.functions[at]
        };
        assert_eq!(of("main"), Own { own: 0, total: 3 });
        assert_eq!(of("f"), Own { own: 2, total: 2 });
        assert_eq!(of("g"), Own { own: 1, total: 1 });
        assert_eq!((counts.start.samples, counts.start.active, counts.start.gil), (3, 3, 3));
        let f = counts.functions.iter().position(|f| f.name == "f").unwrap();
        assert_eq!(counts.stack_of(&tree, f), Some((vec![f2, f1, main], 2)));
        assert_eq!(counts.take_now().samples, 3);
        assert_eq!(counts.now.samples, 0);
        counts.reset();
        assert_eq!(counts.start.samples, 0);
    }
}
