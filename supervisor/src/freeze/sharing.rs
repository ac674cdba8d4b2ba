//! What tasks share that is neither a thread's with its process nor, like an open file, found elsewhere: memory,
//! descriptor tables, file system contexts, signal handlers. Not shared within a process, it is refused by name.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{FrozenProcess, Shares};
use crate::sys::process::{self, Compare};
use nix::errno::Errno;
use std::cmp::Ordering;
use std::collections::BTreeMap;

const KINDS: [(Compare, &str); 4] = [
    (Compare::Memory, "memory"),
    (Compare::Files, "descriptors"),
    (Compare::FileSystem, "its current directory"),
    (Compare::SignalHandlers, "signal handlers"),
];

/// So many threads are worth to be compared side by side.
const SOME: usize = 64;

/// Notes which processes share what.
///
/// # Errors
/// [`code::TASK_STATE`] if a thread does not share what its process has; [`code::PROC`] if the kernel does not tell.
/// All at once.
pub(super) fn find(processes: &mut [FrozenProcess]) -> Result<()> {
    let mut problems = Problems::new();
    let living: Vec<&FrozenProcess> =
        processes.iter().filter(|process| !process.threads.is_empty()).collect();
    let look = |&(kind, word): &(Compare, &str)| {
        let mut problems = Problems::new();
        living.iter().for_each(|process| {
            problems.take(within(kind, word, process));
        });
        let firsts = problems.take(across(kind, word, &living));
        problems.finish().map(|()| firsts.unwrap_or_default())
    };
    let threads: usize = living.iter().map(|process| process.threads.len()).sum();
    let found = if threads < SOME {
        KINDS.iter().map(look).collect()
    } else {
        crate::parallel::map_long(&KINDS, look)
    };
    for ((kind, _), firsts) in KINDS.into_iter().zip(found) {
        let Some(firsts) = problems.take(firsts) else { continue };
        for process in processes.iter_mut() {
            let Some(&first) = firsts.get(&process.index) else { continue };
            *process.shares.of(kind) = first;
        }
    }
    problems.finish()
}

impl Shares {
    fn of(&mut self, kind: Compare) -> &mut u32 {
        match kind {
            Compare::Files => &mut self.descriptors,
            Compare::FileSystem => &mut self.file_system,
            Compare::SignalHandlers => &mut self.handlers,
            Compare::Memory | Compare::File | Compare::Io | Compare::SemaphoreUndo => &mut self.memory,
        }
    }
}

/// All threads of a process share it.
fn within(kind: Compare, word: &str, process: &FrozenProcess) -> Result<()> {
    let mut problems = Problems::new();
    for thread in process.threads.iter().skip(1) {
        let same =
            process::order(kind, process.view, thread.tid).map_err(|errno| unknown(word, process, errno));
        if problems.take(same).is_some_and(|order| !order.is_eq()) {
            let what = format!("its thread {} does not share {word} with the others", thread.id);
            problems.push(Error::new(code::TASK_STATE, what).about(process.subject()));
        }
    }
    problems.finish()
}

/// For each process the first one that shares it, by their places in the tree. The kernel tells of any two in which
/// order they come, so that not each has to be compared with each.
fn across(kind: Compare, word: &str, living: &[&FrozenProcess]) -> Result<BTreeMap<u32, u32>> {
    let mut sorted: Vec<&FrozenProcess> = Vec::with_capacity(living.len());
    let mut firsts = BTreeMap::new();
    for process in living {
        let mut failure = None;
        let place = sorted.binary_search_by(|other| {
            process::order(kind, other.view, process.view).unwrap_or_else(|errno| {
                failure = Some(unknown(word, process, errno));
                Ordering::Less
            })
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        let first = match place {
            Ok(place) => sorted.get(place).map_or(process.index, |first| first.index),
            Err(place) => {
                sorted.insert(place, process);
                process.index
            }
        };
        firsts.insert(process.index, first);
    }
    Ok(firsts)
}

fn unknown(word: &str, process: &FrozenProcess, errno: Errno) -> Box<Error> {
    Error::system(code::PROC, format!("asking who shares {word} with it"), errno).about(process.subject())
}
