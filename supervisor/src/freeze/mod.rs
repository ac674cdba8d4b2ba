//! Finding a tree of processes and stopping it: every task, also those that are born while we look.
//!
//! [`freeze`] gives a [`Frozen`] tree in which each thread has an [`Agent`](crate::stub::agent::Agent) without a stub
//! yet; [`inject`] puts the stubs in place. Whatever fails: dropping what there is lets every task go on.

mod backlog;
mod room;
mod sharing;
mod stop;
mod survey;
mod vfork;

use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess};
use crate::place;
use crate::stub::agent::{self, Host, Injection};
use crate::stub::batch::Batch;
use crate::tracee::gadgets;
use crate::tracee::sigframe::Gadgets;
use crate::tracee::stack::{self, Room};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use vckpt_parasite::protocol;

pub use backlog::Backlog;
pub use room::free_range;
pub use survey::preflight;

/// Stops the tree of a process that has passed [`preflight`], and takes down the state of every thread. Who can accept
/// the connections of a backlog is stopped last.
///
/// # Errors
/// The target's state that can't be handled, all problems at once; a timeout; the death of the root.
pub fn freeze(pid: i32, timeout: Duration, backlog: &Backlog) -> Result<Frozen> {
    // A descriptor for each thread and a few for each process: nobody else gets fewer by it.
    place::raise_limit(0)?;
    let tasks = stop::stop_tree(pid, Instant::now() + timeout, backlog)?;
    survey::survey(pid, tasks)
}

/// Where a stub is to be put; by the places of its process and thread in the frozen tree.
type Places = BTreeMap<(usize, usize), Place>;

#[derive(Debug, Clone, Copy)]
struct Place {
    area: u64,
    room: Room,
    gadgets: Gadgets,
}

/// Puts a stub into every thread: first into those that are on a stack of their own.
///
/// # Errors
/// All threads into which it could not be put.
pub fn inject(frozen: &mut Frozen) -> Result<()> {
    let mut problems = Problems::new();
    let mut cache = HashMap::new();
    let (mut by_themselves, mut by_others) = (Places::new(), Places::new());
    let mut taken: BTreeMap<u32, usize> = BTreeMap::new();
    for (index, process) in frozen.processes.iter().enumerate() {
        if process.threads.is_empty() {
            continue;
        }
        let sharing = frozen.processes.iter().filter(|other| other.shares.memory == process.shares.memory);
        let all = sharing.map(|process| process.threads.len()).sum();
        let first = taken.entry(process.shares.memory).or_insert(0);
        let areas = (*first, all);
        *first += process.threads.len();
        let places = places(process, areas, &mut cache).map_err(|error| error.about(process.subject()));
        let Some(mut places) = problems.take(places) else { continue };
        // If there is none on its own stack, the one with the most room.
        let best = places.iter().map(|(_, place)| place.room).min().unwrap_or(Room::None);
        let only = places.iter().position(|(_, place)| place.room == best);
        for (number, (thread, place)) in places.drain(..).enumerate() {
            let by_itself = place.room == Room::OwnStack || Some(number) == only;
            let list = if by_itself { &mut by_themselves } else { &mut by_others };
            list.insert((index, thread), place);
        }
    }
    problems.finish()?;
    agent::inject(injections(frozen, &by_themselves))?;
    make_areas(frozen, &by_others)?;
    agent::inject_into_areas(injections(frozen, &by_others))
}

/// A place for each thread of a process: from which number on its areas are, of how many in the memory.
fn places(
    process: &FrozenProcess,
    (first, all): (usize, usize),
    cache: &mut gadgets::Cache,
) -> Result<Vec<(usize, Place)>> {
    let gadgets = gadgets::find(&process.maps, &process.memory, cache)?;
    let length = protocol::AREA_LENGTH as u64;
    let start = room::find(&process.maps, length * all as u64)? + length * first as u64;
    let places = process.threads.iter().enumerate().map(|(index, thread)| {
        let room = stack::below(&process.maps, thread.agent.registers(), thread.agent.xstate().len());
        (index, Place { area: start + length * index as u64, room, gadgets })
    });
    Ok(places.collect())
}

fn injections<'frozen>(frozen: &'frozen mut Frozen, places: &Places) -> Vec<Injection<'frozen>> {
    let mut injections = Vec::with_capacity(places.len());
    for (index, process) in frozen.processes.iter_mut().enumerate() {
        let (memory, pidfd) = (&process.memory, process.pidfd.as_fd());
        for (number, thread) in process.threads.iter_mut().enumerate() {
            if let Some(&Place { area, room, gadgets }) = places.get(&(index, number)) {
                let host = Host { memory, pidfd, gadgets };
                injections.push(Injection { agent: &mut thread.agent, host, area, room });
            }
        }
    }
    injections
}

/// Lets the first thread of each process that has a stub make the areas of those at these places.
fn make_areas(frozen: &mut Frozen, places: &Places) -> Result<()> {
    for (index, process) in frozen.processes.iter_mut().enumerate() {
        let mut batches = vec![Batch::new()];
        for (&(_, number), place) in places.range((index, 0)..(index + 1, 0)) {
            if let Some(thread) = process.threads.get_mut(number) {
                thread.agent.gets_area(place.area);
            }
            let batch = agent::area_batch(place.area);
            match batches.last_mut() {
                Some(last) if last.has_room_for(&batch) => last.append(&batch),
                _ => batches.push(batch),
            }
        }
        let Some(maker) = process.threads.iter_mut().find(|thread| thread.agent.is_injected()) else {
            continue;
        };
        for batch in batches.iter().filter(|batch| !batch.is_empty()) {
            maker.run(batch)?;
        }
    }
    Ok(())
}
