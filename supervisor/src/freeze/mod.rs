//! Finding a tree of processes and stopping it: every task, also those that are born while we look.
//!
//! [`freeze`] gives a [`Frozen`] tree in which each thread has an [`Agent`](crate::stub::agent::Agent) without a stub
//! yet; [`inject`] puts the stubs in place. Whatever fails: dropping what there is lets every task go on.

mod gadgets;
mod room;
mod stop;
mod survey;

use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess, FrozenThread};
use crate::stub::agent::{Agent, Host, Room};
use crate::stub::batch::Batch;
use crate::tracee::sigframe::Gadgets;
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
        problems.take(inject_process(process, gadgets).map_err(|error| error.about(subject)));
    }
    problems.finish()
}

/// Bytes of the frames of the way home, but for the extended state.
const FRAMES: u64 = 2048;

/// Puts a stub into every thread of a process: first into those on a stack of their own.
fn inject_process(process: &mut FrozenProcess, gadgets: Gadgets) -> Result<()> {
    let count = process.threads.len();
    let start = room::find(&process.maps, (protocol::AREA_LENGTH * count) as u64)?;
    let host = Host { memory: &process.memory, pidfd: process.pidfd.as_fd(), gadgets };
    let maps = &process.maps;
    let room = |thread: &FrozenThread| {
        let length = thread.agent.xstate().len() as u64 + FRAMES;
        room::below_stack(maps, thread.agent.registers(), length)
    };
    let mut problems = Problems::new();
    let mut others = Vec::new();
    for (index, thread) in process.threads.iter_mut().enumerate() {
        let area = start + (protocol::AREA_LENGTH * index) as u64;
        match room(thread) {
            Room::OwnStack => {
                problems.take(thread.agent.inject(host, Room::OwnStack, area));
            }
            room @ (Room::Memory | Room::None) => others.push((index, room, area)),
        }
    }
    // If there is none, the one with the most room.
    others.sort_by_key(|&(index, room, _)| (room == Room::None, index));
    let mut others = others.into_iter().peekable();
    if !process.threads.iter().any(|thread| thread.agent.is_injected())
        && problems.is_empty()
        && let Some((index, room, area)) = others.next()
        && let Some(thread) = process.threads.get_mut(index)
    {
        thread.agent.inject(host, room, area)?;
    }
    problems.finish()?;
    let others: Vec<(usize, u64)> = others.map(|(index, _, area)| (index, area)).collect();
    inject_others(host, &mut process.threads, &others)
}

/// Puts stubs into the threads with these indices, in areas that the first thread which has one makes for them.
fn inject_others(host: Host<'_>, threads: &mut [FrozenThread], others: &[(usize, u64)]) -> Result<()> {
    let mut batches = vec![Batch::new()];
    for &(_, area) in others {
        let batch = Agent::area_batch(area);
        match batches.last_mut() {
            Some(last) if last.has_room_for(&batch) => last.append(&batch),
            _ => batches.push(batch),
        }
    }
    if let Some(maker) = threads.iter_mut().find(|thread| thread.agent.is_injected()) {
        for batch in batches.iter().filter(|batch| !batch.is_empty()) {
            maker.agent.run(batch)?;
        }
    }
    let mut problems = Problems::new();
    for &(index, area) in others {
        if let Some(thread) = threads.get_mut(index) {
            problems.take(thread.agent.inject_into(host, area));
        }
    }
    problems.finish()
}
