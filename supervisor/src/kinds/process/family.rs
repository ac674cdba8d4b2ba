//! Who makes a process, so that it shares what it shared: with its parent, or with another child of its parent.

use super::make::{Birth, Member};
use crate::error::{Error, Result, Subject, code};
use crate::stub::puppet::{FILE_SYSTEM, FILES, HANDLERS, MEMORY, PARENT};
use std::collections::{BTreeMap, BTreeSet};
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::{DescriptorTableId, MemoryId, TaskId};

/// Which areas are taken in each memory, and how many sockets in each table.
#[derive(Debug, Default)]
pub struct Places {
    areas: BTreeMap<MemoryId, BTreeSet<usize>>,
    sockets: BTreeMap<DescriptorTableId, usize>,
}

impl Places {
    /// The number of areas of each memory, free ones between them included.
    #[must_use]
    pub fn areas(&self) -> BTreeMap<MemoryId, usize> {
        let count = |slots: &BTreeSet<usize>| slots.last().map_or(1, |last| last + 1);
        self.areas.iter().map(|(&memory, slots)| (memory, count(slots))).collect()
    }

    /// The most sockets of a table.
    #[must_use]
    pub fn most_sockets(&self) -> usize {
        self.sockets.values().copied().max().unwrap_or(1)
    }

    fn member(&mut self, id: TaskId, living: &Living, slot: Option<usize>) -> Member {
        let taken = self.areas.entry(living.memory).or_default();
        let free = || (0..).zip(taken.iter()).find(|(free, slot)| free != *slot).map(|(free, _)| free);
        let slot = slot.or_else(free).unwrap_or(taken.len());
        taken.insert(slot);
        let sockets = self.sockets.entry(living.descriptor_table).or_default();
        *sockets += 1;
        Member { id, slot, socket: *sockets - 1 }
    }

    /// Keeps the next number of one table free, up to there, in another one: the socket of a task that has the memory of
    /// its maker, but not the descriptors, is in both for a moment.
    fn reserve(&mut self, makers: DescriptorTableId, own: DescriptorTableId) {
        let sockets = self.sockets.entry(makers).or_default();
        let number = *sockets;
        *sockets += 1;
        self.sockets.insert(own, number);
    }
}

/// What two processes share: `CLONE_…`.
fn shared(one: &Living, other: &Living, handlers: (TaskId, TaskId)) -> u64 {
    let flag = |is_shared: bool, flag| if is_shared { flag } else { 0 };
    flag(one.memory == other.memory, MEMORY)
        | flag(one.descriptor_table == other.descriptor_table, FILES)
        | flag(one.file_system_context == other.file_system_context, FILE_SYSTEM)
        | flag(handlers.0 == handlers.1, HANDLERS)
}

/// The process whose signal handlers it has.
fn handlers(process: &Process) -> TaskId {
    process.living.as_ref().and_then(|living| living.handlers_of).unwrap_or(process.id)
}

/// Completes a birth by who makes the process; `before` are those that are made earlier, of `all` in that order.
///
/// # Errors
/// [`code::SHARED_BETWEEN_PROCESSES`] if none can, who has all that is shared.
pub fn descend(
    mut birth: Birth,
    process: &Process,
    all: &[Process],
    before: &[Birth],
    places: &mut Places,
) -> Result<Birth> {
    let find = |id: TaskId| all.iter().find(|other| other.id == id);
    if birth.adopted {
        return adopt(birth, process, all, places);
    }
    let Some(parent) = process.parent.and_then(find) else {
        complete(&mut birth, process, None, places);
        return Ok(birth);
    };
    let mut makers = vec![(process.parent_thread.unwrap_or(parent.id), parent, 0)];
    if let Some(living) = &process.living {
        let is_sibling = |other: &&Birth| {
            other.parent == birth.parent
                && other.zombie.is_none()
                && other.exit_signal == birth.exit_signal
                && other.before_parents_session == birth.before_parents_session
        };
        let siblings = before.iter().filter(is_sibling).filter_map(|other| find(other.id()));
        let siblings = siblings.filter(|other| other.parent_thread == process.parent_thread);
        makers.extend(siblings.map(|other| (other.id, other, PARENT)));
        let with = |other: &Process| {
            let theirs = other.living.as_ref()?;
            Some(shared(living, theirs, (handlers(process), handlers(other))))
        };
        // All that it shares with anybody who is there before it.
        let earlier = before.iter().filter_map(|other| find(other.id()));
        let needed = earlier.filter_map(with).fold(0, |all, flags| all | flags);
        let fits = |maker: &(TaskId, &Process, u64)| with(maker.1) == Some(needed);
        let Some(place) = makers.iter().position(fits) else {
            return Err(impossible(process));
        };
        makers.swap(0, place);
        birth.flags = needed | makers[0].2;
    }
    let (maker, _, _) = makers[0];
    birth.maker = Some(maker);
    let slot = before.iter().flat_map(members).find(|member| member.id == maker).map(|member| member.slot);
    let is_copy = birth.flags & MEMORY == 0;
    if let (Some(own), Some(makers), MEMORY) =
        (&process.living, &makers[0].1.living, birth.flags & (MEMORY | FILES))
    {
        places.reserve(makers.descriptor_table, own.descriptor_table);
    }
    complete(&mut birth, process, slot.filter(|_| is_copy), places);
    Ok(birth)
}

/// Completes the birth of a process that comes by the end of another one, from whichever task: in area 0.
fn adopt(mut birth: Birth, process: &Process, all: &[Process], places: &mut Places) -> Result<Birth> {
    if let Some(living) = &process.living {
        let others = all.iter().filter(|other| other.id != process.id && is_before(other, process, all));
        let shares = |other: &Process| {
            let theirs = other.living.as_ref()?;
            Some(shared(living, theirs, (handlers(process), handlers(other))))
        };
        if others.filter_map(shares).any(|flags| flags != 0) {
            return Err(impossible(process));
        }
    }
    complete(&mut birth, process, Some(0), places);
    Ok(birth)
}

/// Whether a process comes before another one in the image.
fn is_before(one: &Process, other: &Process, all: &[Process]) -> bool {
    let place = |process: &Process| all.iter().position(|found| found.id == process.id);
    place(one) < place(other)
}

/// Gives the tasks of a process their areas and sockets; `slot` is the area that the leader has from who makes it.
fn complete(birth: &mut Birth, process: &Process, slot: Option<usize>, places: &mut Places) {
    let Some(living) = &process.living else {
        birth.leader.slot = slot.unwrap_or(0);
        return;
    };
    let mut tasks = process.tasks().into_iter();
    birth.leader = places.member(tasks.next().unwrap_or(process.id), living, slot);
    birth.others = tasks.map(|id| places.member(id, living, None)).collect();
}

fn members(birth: &Birth) -> impl Iterator<Item = Member> {
    std::iter::once(birth.leader).chain(birth.others.iter().copied())
}

fn impossible(process: &Process) -> Box<Error> {
    Error::new(
        code::SHARED_BETWEEN_PROCESSES,
        "it shares memory, descriptors, directory or signal handlers with others",
    )
    .because("no single task, neither its parent nor another child of its parent, has all that it shares")
    .about(Subject::task(process.id.0, &process.command))
}

/// Areas and sockets for all tasks of an image.
///
/// # Errors
/// As [`descend`].
pub fn places(processes: &[Process]) -> Result<Places> {
    Ok(super::plan::births(processes, &[])?.1)
}

/// The processes that are adopted, and the IDs that are needed for a moment to make all processes of an image.
///
/// # Errors
/// Shapes that can't be made.
pub fn adopted(processes: &[Process]) -> Result<(BTreeSet<TaskId>, Vec<TaskId>)> {
    let births = super::plan::births(processes, &[])?.0;
    let adoptions = super::sessions::adoptions(&births, processes)?;
    let groups = super::groups::without_leaders(processes).into_iter().map(|group| TaskId(group.group));
    let temporary = super::sessions::temporary(&adoptions).chain(groups).collect();
    Ok((adoptions.iter().map(|adoption| adoption.child).collect(), temporary))
}
