//! Waits with a timeout that begin anew whenever it is over: `while not lock.acquire(timeout=1)`, `while
//! thread.is_alive(): thread.join(1)`. They end no sooner than those without a timeout. That it is so, the code
//! says: from where the frame stands the flow of control leads back to the very same call.

use serde_json::json;

use super::flow::Shape;
use super::os::Deadline;
use super::{FrameScene, Scene, Seen, ThreadScene};
use crate::python::opcodes::{self, Op};
use crate::snapshot::{Lock, Wait};

/// Functions of the application's own that hand on what the call returned.
const MAX_HANDED_ON: usize = 3;

pub fn read(scene: &Scene, seen: &mut Seen) {
    for thread in &scene.threads {
        let Some(wait) = seen.waits.get_mut(&thread.raw.tstate) else { continue };
        // Whose lock is waited for is not through with it when one of his naps ends.
        if wait.kind == "sleep"
            && wait.detail.is_object()
            && seen.holds.contains_key(&thread.raw.tstate)
            && let Some(own) = thread.frames.iter().find(|frame| scene.is_user(frame))
        {
            wait.detail["again"] = json!(matches!(after(scene, own, false), After::Again));
        }
        let has_end = !matches!(seen.deadlines.get(&thread.raw.tstate), None | Some(Deadline::Never));
        if !has_end || !is_for_another(wait) {
            continue;
        }
        let own = thread.frames.iter().enumerate().filter(|(_, frame)| scene.is_user(frame));
        let says_so = wait.kind == "lock" || wait.kind == "semaphore";
        let mut then = own.take(MAX_HANDED_ON).map(|(at, frame)| (at, after(scene, frame, says_so)));
        let again = match then.find(|(_, then)| !matches!(then, After::Returns)) {
            Some((at, After::Again)) => {
                let holds = seen.holds.get(&thread.raw.tstate).map_or(&[][..], Vec::as_slice);
                holds.is_empty() || holds.iter().any(|lock| keeps(scene, thread, at, lock, says_so))
            }
            _ => false,
        };
        if !wait.detail.is_object() {
            wait.detail = json!({});
        }
        wait.detail["retried"] = json!(again);
    }
}

/// Whether a thread still has the lock when it asks again, in the frame `at`: between that one's `with` and the
/// next, others may take it.
fn keeps(scene: &Scene, thread: &ThreadScene, at: usize, lock: &Lock, says_so: bool) -> bool {
    let frame = &thread.frames[at];
    match lock.frame {
        Some(inner) if inner < at => false,
        // Whoever leaves a `with` comes by its line.
        Some(inner) if inner == at && lock.line.is_some_and(|line| Some(line) != frame.line()) => {
            matches!(after_without(scene, frame, says_so, lock.line), After::Again)
        }
        _ => true,
    }
}

/// Somebody else has to act. Who looks every second whether there is work, or a sign to stop, is at rest.
fn is_for_another(wait: &Wait) -> bool {
    match wait.kind.as_str() {
        "lock" | "semaphore" | "thread" | "process" | "future" => true,
        "queue" => wait.detail["operation"] == "put",
        _ => false,
    }
}

pub enum After {
    /// The same call once more.
    Again,
    /// What came of it is returned to the caller.
    Returns,
    Other,
}

/// What comes after the time is over. `says_so`: the call returns False then.
pub fn after(scene: &Scene, frame: &FrameScene, says_so: bool) -> After {
    after_without(scene, frame, says_so, None)
}

/// The same, as far as it comes by no instruction of the line `avoided`.
fn after_without(scene: &Scene, frame: &FrameScene, says_so: bool, avoided: Option<u32>) -> After {
    let Some(shape) = scene.shapes.of(scene, frame.raw.code) else { return After::Other };
    let Some(at) = opcodes::at(&shape.instructions, frame.offset) else { return After::Other };
    let next = shape.next(at);
    if let [next] = next[..]
        && shape.instructions[next].op == Op::Return
    {
        return After::Returns;
    }
    let line = |at: usize| frame.code.line(shape.instructions[at].offset);
    // The compiler writes the condition of a loop twice: before it, and at its end.
    let is_it = |n: usize| n == at || is_same_call(&shape, n, at) && line(n) == line(at);
    let test = says_so.then(|| shape.test_after(at)).flatten();
    let mut queue = match test {
        Some((test, jumps_if)) if shape.instructions[test].op != Op::StoreFast => {
            let target = shape.instructions[test].target;
            if jumps_if { vec![test + 1] } else { target.into_iter().collect() }
        }
        _ => next,
    };
    queue.extend(shape.handlers[at]);
    let mut seen = vec![false; shape.instructions.len()];
    while let Some(n) = queue.pop() {
        // The next round of a `for` is about something else.
        let is_over = |n: usize| goes_round(&shape, n, at) || avoided.is_some() && line(n) == avoided;
        if n >= seen.len() || std::mem::replace(&mut seen[n], true) || is_over(n) {
            continue;
        }
        if is_it(n) {
            return After::Again;
        }
        queue.extend(shape.next(n));
        queue.extend(shape.handlers[n]);
    }
    After::Other
}

/// The head of a `for` that `at` is inside of.
fn goes_round(shape: &Shape, head: usize, at: usize) -> bool {
    let head_of = &shape.instructions[head];
    head_of.op == Op::ForIter && head < at && head_of.target.is_some_and(|end| at < end)
}

/// Two calls of the same, written the same way.
fn is_same_call(shape: &Shape, a: usize, b: usize) -> bool {
    const ALIKE: usize = 4;
    let code = &shape.instructions;
    (0..ALIKE).all(|back| match (a.checked_sub(back), b.checked_sub(back)) {
        (Some(a), Some(b)) => (code[a].op, code[a].arg) == (code[b].op, code[b].arg),
        _ => false,
    })
}
