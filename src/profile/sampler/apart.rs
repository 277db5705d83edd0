//! Reading from another CPU while threads run on: for rates at which a seat would keep them from their work.
//!
//! One call copies all that is needed, which takes a microsecond or a few; a thread may have called and returned
//! meanwhile, and then what came is of several moments. It is found out by who calls whom (links.rs): samples from
//! the seat, which are exact, are taken now and then, and teach it. A copy in which some frame does not follow from
//! its caller, and which does not show either that this caller was the innermost frame when it was copied, is
//! dropped and taken again; if that does not help, the sample is torn. Where no seat can be had, only a stack that
//! several copies in a row agree on counts.

use nix::errno::Errno;
use rustc_hash::FxHashSet;

use super::links::Links;
use super::{Found, Outcome, Sampler, state};
use crate::profile::reader::{self, RawFrame};
use crate::profile::threads::State;
use crate::profile::tree::Tree;
use crate::target::clocks::monotonic;
use crate::target::frozen::Seat;
use crate::target::memory::Addr;

/// Copies for one sample.
const TRIES: usize = 8;
/// Copies that agree, where there is no seat.
const AGREE: usize = 4;
/// How often a sample is taken from the seat, nanoseconds; and while much is torn, since calls are not known yet.
const SEATED_EVERY: u64 = 5_000_000;
const SEATED_OFTEN: u64 = 1_000_000;
/// How often threads without the GIL are asked what they do. Each costs a call: no more than a part of all time.
const LOOK_EVERY: u64 = 1_000_000;
const PART: u64 = 8;

#[derive(Default)]
pub struct Apart {
    links: Links,
    seated_at: u64,
    look_at: u64,
    /// Of the last samples, how many were torn (0 to 65,536).
    torn: u32,
    /// There is no seat.
    alone: bool,
    /// The last sample was from it.
    pub seated: bool,
    /// Where the current frame of the thread that ran last is named.
    word: Option<(usize, Addr)>,
}

impl Apart {
    pub fn learn(&mut self, raw: &[RawFrame]) {
        self.links.learn(raw);
    }

    pub fn forget(&mut self, codes: &FxHashSet<Addr>) {
        self.links.forget(codes);
    }
}

impl Sampler {
    pub(super) fn sample_apart(&mut self, tree: &mut Tree, seat: &mut Seat) -> Outcome {
        let now = monotonic();
        let Some(apart) = &mut self.apart else { return Outcome::Torn };
        if now >= apart.seated_at || self.list_again {
            let pace = if apart.torn > 655 { SEATED_OFTEN } else { SEATED_EVERY };
            let outcome = self.sample_seated(tree, seat);
            seat.leave();
            if let Some(apart) = &mut self.apart {
                apart.alone = seat.is_refused();
                apart.seated = true;
                apart.seated_at = monotonic() + pace;
            }
            return outcome;
        }
        let look = now >= apart.look_at;
        self.last = None;
        let turn = self.stats.samples + 1;
        let (mut wanted, mut taken) = (0, 0);
        for attempt in 0..TRIES {
            let word = self.apart.as_ref().and_then(|a| a.word);
            self.pages.end_with(word.map(|w| w.1));
            match self.pages.refresh() {
                Ok(()) => {}
                Err(Errno::ENOMEM | Errno::EAGAIN) => continue,
                Err(_) => return Outcome::Gone,
            }
            let (layout, runtime) = (&self.python.layout, self.python.runtime);
            self.gils.clear();
            for interp in &self.interps {
                self.gils.push(reader::gil(&mut self.pages, layout, runtime, interp.addr));
            }
            let is_known = |gil: &reader::Gil| self.threads.iter().any(|t| t.tstate == gil.holder);
            if self.gils.iter().flatten().any(|gil| gil.locked && !is_known(gil)) {
                self.list_again = true;
            }
            self.ask(tree, look && attempt == 0);
            wanted = 0;
            taken = 0;
            for index in 0..self.threads.len() {
                let thread = &self.threads[index];
                let runs = thread.shown.state == State::Running;
                // Who does not run stands where it stood when it was asked.
                if !self.wants(thread.shown.state) || (!runs && thread.read) {
                    continue;
                }
                wanted += 1;
                taken += usize::from(thread.taken == turn || self.take(tree, index, turn));
            }
            if taken == wanted {
                break;
            }
            self.stats.retries += 1;
        }
        if look && let Some(apart) = &mut self.apart {
            apart.look_at = now + LOOK_EVERY.max((monotonic() - now) * PART);
        }
        for thread in &mut self.threads {
            let runs = thread.shown.state == State::Running;
            thread.shown.exact = !runs || thread.taken == turn;
            self.stats.torn += u64::from(!thread.shown.exact);
        }
        let torn = taken < wanted;
        if let Some(apart) = &mut self.apart {
            apart.seated = false;
            apart.torn = apart.torn - apart.torn / 256 + if torn { 256 } else { 0 };
        }
        self.finish();
        if torn && taken == 0 { Outcome::Torn } else { Outcome::Sample }
    }

    /// What threads do: who holds the GIL runs; who seems to run without it is asked, and with `all` so is everybody.
    fn ask(&mut self, tree: &mut Tree, all: bool) {
        for index in 0..self.threads.len() {
            let thread = &self.threads[index];
            let gil = self.gils[thread.interp];
            let holds = gil.is_some_and(|g| g.locked && g.holder == thread.tstate);
            let before = thread.shown.state;
            let now = match holds {
                true => State::Running,
                // Beside a GIL a thread runs for a moment only, as a rule: to wait for it, say.
                false if all || thread.shown.holds_gil || (gil.is_some() && before == State::Running) => {
                    state(thread, gil, &self.python.layout)
                }
                false => before,
            };
            if now != before {
                self.keep(tree, Found { state: now, ..Found::new(index, holds, None) });
            }
            let thread = &mut self.threads[index];
            thread.shown.holds_gil = holds;
            // It may have run and gone to sleep elsewhere.
            thread.read &= !all;
            if holds {
                self.runner = index;
            }
        }
    }

    /// Walks one thread's frames in what was copied.
    fn take(&mut self, tree: &mut Tree, index: usize, turn: u64) -> bool {
        let begin = self.raw.len();
        let done = self.follow(index).is_some();
        let raw = &self.raw[begin..];
        let thread = &mut self.threads[index];
        let Some(apart) = &mut self.apart else { return false };
        let same = if apart.alone { 0 } else { thread.unchanged(raw) };
        let mut length = apart.links.stack(raw, same).filter(|_| done);
        if let Some(known) = length
            && known > same
            && !self.resolver.is_place(&self.python, &raw[raw.len() - known])
        {
            length = None;
        }
        if done && length.is_none() && apart.alone {
            // In a row: what was in doubt for an earlier sample may well come back.
            let again = thread.doubted == turn && thread.doubtful == raw;
            thread.doubted = turn;
            thread.agree = if again { thread.agree + 1 } else { 1 };
            thread.doubtful.clear();
            thread.doubtful.extend_from_slice(raw);
            length = (thread.agree >= AGREE).then_some(raw.len());
        }
        if let Some(length) = length {
            let interp = self.interps[thread.interp].addr;
            let (holds, state) = (thread.shown.holds_gil, thread.shown.state);
            let layout = &self.python.layout;
            let collecting =
                holds && reader::collecting(&mut self.pages, layout, self.python.runtime, interp);
            let end = self.raw.len();
            let frames = Some((end - length, end));
            self.keep(tree, Found { state, collecting, frames, ..Found::new(index, holds, None) });
            self.threads[index].taken = turn;
            self.stats.apart += 1;
        }
        self.raw.truncate(begin);
        length.is_some()
    }

    /// Its frames into `raw`. The word that names the current one was copied after all frames, if it was foreseen.
    fn follow(&mut self, index: usize) -> Option<()> {
        let layout = &self.python.layout;
        let (tstate, ident) = (self.threads[index].tstate, self.threads[index].shown.ident);
        if self.pages.u64(tstate + layout.tstate.thread_id)? != ident {
            // Another thread by now, in the same place.
            self.list_again = true;
            return None;
        }
        let at = reader::current_at(&mut self.pages, layout, tstate)?;
        let apart = self.apart.as_mut()?;
        let foreseen = apart.word.replace((index, at)) == Some((index, at));
        let innermost = if foreseen { self.pages.last_word()? } else { self.pages.u64(at)? };
        reader::walk_from(&mut self.pages, layout, innermost, &mut self.raw)
    }
}
