//! Finding a tree of processes and stopping it: every task, also those that are born while we look.
//!
//! [`freeze`] gives a [`Frozen`] tree in which each thread has an [`Agent`](crate::stub::agent::Agent) without a stub
//! yet; [`inject`] puts the stubs in place. Whatever fails: dropping what there is lets every task go on.

mod gadgets;
mod room;
mod stop;
mod survey;

use crate::error::{Problems, Result};
use crate::frozen::Frozen;
use crate::stub::agent::Host;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use vckpt_parasite::protocol;

pub use room::free_range;
pub use survey::preflight;

/// Stops the tree of a process and takes down the state of every thread.
///
/// # Errors
/// The target's state that can't be handled, all problems at once; a timeout; the death of the root.
pub fn freeze(pid: i32, timeout: Duration) -> Result<Frozen> {
    preflight(pid)?;
    let tasks = stop::stop_tree(pid, Instant::now() + timeout)?;
    survey::survey(pid, tasks)
}

/// Puts a stub into every thread.
///
/// # Errors
/// All threads into which it could not be put.
pub fn inject(frozen: &mut Frozen) -> Result<()> {
    let mut problems = Problems::new();
    let mut cache = HashMap::new();
    for process in frozen.processes.iter_mut().filter(|process| !process.threads.is_empty()) {
        let subject = process.subject();
        let Some(gadgets) = problems.take(gadgets::find(process, &mut cache)) else { continue };
        let count = process.threads.len();
        let length = protocol::AREA_LENGTH as u64;
        let Some(start) = problems.take(
            room::find(&process.maps, length * count as u64).map_err(|error| error.about(subject.clone())),
        ) else {
            continue;
        };
        let host = Host { memory: &process.memory, pidfd: process.pidfd.as_fd(), gadgets };
        for (index, thread) in process.threads.iter_mut().enumerate() {
            let result = thread.agent.inject(host, start + length * index as u64);
            problems.take(result.map_err(|error| error.about(subject.clone())));
        }
    }
    problems.finish()
}
