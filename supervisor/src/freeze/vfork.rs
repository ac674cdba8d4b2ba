//! Tasks inside `vfork(2)`: they don't stop until their child executes a program or ends.

use super::stop::{Moving, OPTIONS, StoppedTree, command, find_children};
use crate::error::{Error, Result, Subject, code};
use crate::proc::read;
use crate::sys::process::{self, Compare};
use crate::tracee::Running;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The calls that wait so: `clone`, `vfork`, `clone3`.
const CALLS: [i64; 3] = [libc::SYS_clone, libc::SYS_vfork, libc::SYS_clone3];

/// A task that does not stop may be inside vfork(2), waiting for a child that executes a program or ends. Such a child is
/// let go on; its own stop comes with either.
///
/// # Errors
/// If a child can't be let go on.
pub(super) fn free_borrowers(tree: &mut StoppedTree, moving: &mut Moving) -> Result<()> {
    let waiting: Vec<(i32, i32)> = moving.iter().map(|(&tid, &(pid, _))| (tid, pid)).collect();
    find_children(tree);
    stop_again(tree, moving);
    for (waiter, pid) in waiting {
        for child in candidates(tree, waiter, pid) {
            let is_awaited = || is_awaited(waiter, child);
            if tree.tasks.values().any(|task| task.pid == child) && is_awaited() {
                let threads: BTreeSet<i32> =
                    tree.tasks.iter().filter(|(_, task)| task.pid == child).map(|(&tid, _)| tid).collect();
                for tid in threads {
                    if let Some(task) = tree.tasks.remove(&tid) {
                        moving.insert(tid, (task.pid, task.stopped.resume(0)?));
                        tree.freed.insert(tid, waiter);
                    }
                }
            } else if !tree.tasks.contains_key(&child) && !moving.contains_key(&child) {
                // Not seen before: if it is waited for, it is let go on when it has stopped.
                let Ok(running) = Running::seize(child, OPTIONS) else { continue };
                let _ = running.interrupt();
                moving.insert(child, (child, running));
            }
        }
    }
    Ok(())
}

/// Asks those to stop again that were let go on for somebody who has stopped since, without their doing.
fn stop_again(tree: &mut StoppedTree, moving: &Moving) {
    tree.freed.retain(|freed, waiter| {
        if let (Some((_, running)), false) = (moving.get(freed), moving.contains_key(waiter)) {
            let _ = running.interrupt();
            return false;
        }
        true
    });
}

/// The error for tasks that have not stopped in time.
pub(super) fn too_late(tree: &StoppedTree, moving: &Moving) -> Box<Error> {
    let what = "the task did not stop in time";
    let waits = moving.iter().find_map(|(&tid, &(pid, _))| {
        let mut children = candidates(tree, tid, pid).into_iter();
        Some((tid, children.find(|&child| is_awaited(tid, child))?))
    });
    let Some((waiter, child)) = waits else {
        let tid = moving.keys().next().copied().unwrap_or(0);
        return Error::new(code::FREEZE_TIMEOUT, what)
            .about(Subject { task: u32::try_from(tid).ok(), ..Subject::default() });
    };
    let why =
        format!("it waits in vfork(2) for its child {child} ({}) to run a program or end", command(child));
    Error::new(code::FREEZE_TIMEOUT, what)
        .because(why)
        .about(Subject::task(waiter.cast_unsigned(), command(waiter)))
        .hint("see what the child waits for, or give it more time with --freeze-timeout")
}

fn candidates(tree: &StoppedTree, waiter: i32, pid: i32) -> Vec<i32> {
    let children = tree.parents.iter().filter(|(_, parent)| **parent == Some(pid));
    children.map(|(&child, _)| child).filter(|&child| child != waiter).collect()
}

/// Whether a task may be waiting for this child: it has lent it its memory, or it has just made it, in a call that waits
/// if it is told to.
fn is_awaited(waiter: i32, child: i32) -> bool {
    process::order(Compare::Memory, waiter, child) == Ok(Ordering::Equal)
        || is_in_clone(waiter) && youngest_child(waiter) == Some(child)
}

fn is_in_clone(tid: i32) -> bool {
    let text = read::file(tid, "syscall").unwrap_or_default();
    let number =
        String::from_utf8_lossy(&text).split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    number.is_some_and(|number: i64| CALLS.contains(&number))
}

/// The child that a thread has made last.
fn youngest_child(tid: i32) -> Option<i32> {
    let text = read::file(tid, &format!("task/{tid}/children")).ok()?;
    String::from_utf8_lossy(&text).split_ascii_whitespace().last()?.parse().ok()
}
