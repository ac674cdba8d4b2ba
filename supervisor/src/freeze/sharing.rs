//! What tasks share that is neither a thread's with its process nor, like an open file, found elsewhere: memory,
//! descriptor tables, file system contexts, signal handlers. Shared across processes, or not shared within one, it is
//! refused by name.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::FrozenProcess;
use crate::sys::process::{self, Compare};
use nix::errno::Errno;
use std::cmp::Ordering;

const KINDS: [(Compare, &str); 4] = [
    (Compare::Memory, "memory"),
    (Compare::Files, "descriptors"),
    (Compare::FileSystem, "its current directory"),
    (Compare::SignalHandlers, "signal handlers"),
];

/// Refuses what tasks share in other ways than ordinary processes and threads do.
///
/// # Errors
/// [`code::SHARED_BETWEEN_PROCESSES`], [`code::TASK_STATE`]; [`code::PROC`] if the kernel does not tell. All at once.
pub(super) fn refuse(processes: &[FrozenProcess]) -> Result<()> {
    let mut problems = Problems::new();
    let living: Vec<&FrozenProcess> =
        processes.iter().filter(|process| !process.threads.is_empty()).collect();
    for (kind, word) in KINDS {
        for process in &living {
            problems.take(within(kind, word, process));
        }
        problems.take(across(kind, word, &living));
    }
    problems.finish()
}

/// All threads of a process share it.
fn within(kind: Compare, word: &str, process: &FrozenProcess) -> Result<()> {
    let mut problems = Problems::new();
    for thread in process.threads.iter().skip(1) {
        let same =
            process::order(kind, process.pid, thread.tid).map_err(|errno| unknown(word, process, errno));
        if problems.take(same).is_some_and(|order| !order.is_eq()) {
            let what = format!("its thread {} does not share {word} with the others", thread.id);
            problems.push(Error::new(code::TASK_STATE, what).about(process.subject()));
        }
    }
    problems.finish()
}

/// No two processes share it. The kernel tells of any two in which order they come, so that not each has to be
/// compared with each.
fn across(kind: Compare, word: &str, living: &[&FrozenProcess]) -> Result<()> {
    let mut problems = Problems::new();
    let mut sorted: Vec<&FrozenProcess> = Vec::with_capacity(living.len());
    for process in living {
        let mut failure = None;
        let place = sorted.binary_search_by(|other| {
            process::order(kind, other.pid, process.pid).unwrap_or_else(|errno| {
                failure = Some(unknown(word, process, errno));
                Ordering::Less
            })
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        match place {
            Ok(place) => {
                let what = format!("it shares {word} with another process");
                let error = Error::new(code::SHARED_BETWEEN_PROCESSES, what).about(process.subject());
                let other = sorted.get(place).map(|other| format!("with {}", other.subject()));
                problems.push(error.because(other.unwrap_or_default()));
            }
            Err(place) => sorted.insert(place, process),
        }
    }
    problems.finish()
}

fn unknown(word: &str, process: &FrozenProcess, errno: Errno) -> Box<Error> {
    Error::system(code::PROC, format!("asking who shares {word} with it"), errno).about(process.subject())
}
