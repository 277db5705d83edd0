//! `--tasks`: which asyncio task a thread runs just now, read in the same window as its stack.

use std::cell::RefCell;

use crate::python::Python;
use crate::stdlib::asyncio;
use crate::target::memory::{Addr, Fault, Memory};
use crate::target::pages::Pages;

/// What stands under the frames of a thread that runs no task.
pub const NO_TASK: &str = "(no task)";

/// The root of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub label: String,
    /// The code of the task's coroutine: what stands below its frame is the event loop, and the same for all.
    pub code: Addr,
}

/// The task that this thread runs. `tasks`: where asyncio keeps them by loop, see [`asyncio::current_tasks`].
pub fn root(pages: &mut Pages, python: &Python, tstate: Addr, tasks: Option<Addr>) -> Option<Root> {
    let memory = Foreseen(RefCell::new(pages));
    let heap = python.heap(&memory);
    let task = asyncio::current_task(&heap, tstate, tasks)?;
    let coroutine = task.coroutine?;
    let name = asyncio::coroutines::qualname(&heap, coroutine).unwrap_or_else(|| "?".to_owned());
    let code = asyncio::coroutines::chain(&heap, coroutine).frames.last().map_or(0, |frame| frame.code);
    Some(Root { label: label(task.name.as_deref(), &name), code })
}

/// A number that nobody chose tells nothing, and a server has a million of them.
fn label(name: Option<&str>, coroutine: &str) -> String {
    let chosen = |name: &&str| {
        name.strip_prefix("Task-").is_none_or(|n| n.is_empty() || n.bytes().any(|b| !b.is_ascii_digit()))
    };
    match name.filter(chosen) {
        Some(name) => format!("task {name}: {coroutine}()"),
        None => format!("task {coroutine}()"),
    }
}

/// The memory of this sample.
struct Foreseen<'a>(RefCell<&'a mut Pages>);

impl Memory for Foreseen<'_> {
    fn read_into(&self, addr: Addr, buf: &mut [u8]) -> Result<(), Fault> {
        let fault = Fault { addr, len: buf.len() };
        let mut pages = self.0.borrow_mut();
        for (index, part) in buf.chunks_mut(256).enumerate() {
            let at = addr.checked_add(256 * index as u64).ok_or(fault)?;
            part.copy_from_slice(pages.at(at, part.len()).ok_or(fault)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn only_chosen_names_are_shown() {
        assert_eq!(label(Some("Task-12"), "serve"), "task serve()");
        assert_eq!(label(Some("Task-12b"), "serve"), "task Task-12b: serve()");
        assert_eq!(label(Some("feed"), "serve"), "task feed: serve()");
        assert_eq!(label(None, "serve"), "task serve()");
    }
}
