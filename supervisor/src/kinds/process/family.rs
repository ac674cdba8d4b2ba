//! Who makes a process, so that it shares what it shared: with its parent, or with another child of its parent.

use super::make::{Birth, Member};
use crate::error::{Error, Result, Subject, code};
use crate::stub::puppet::{FILE_SYSTEM, FILES, HANDLERS, MEMORY, PARENT};
use std::collections::{BTreeMap, BTreeSet};
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::{DescriptorTableId, FileSystemContextId, MemoryId, TaskId};

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

/// What is known of the processes of an image while their births are found out, in the order of the image.
#[derive(Debug)]
pub struct Family<'image> {
    by_id: BTreeMap<TaskId, &'image Process>,
    /// The session of the root, if it is led from outside.
    pub(super) outside: Option<u32>,
    /// Who was born, by parent.
    born: BTreeMap<Option<TaskId>, Vec<Birth>>,
    /// The areas of all that were born.
    slots: BTreeMap<TaskId, usize>,
    memories: BTreeSet<MemoryId>,
    tables: BTreeSet<DescriptorTableId>,
    contexts: BTreeSet<FileSystemContextId>,
    handlers: BTreeSet<TaskId>,
    /// Areas and sockets.
    pub places: Places,
}

impl<'image> Family<'image> {
    /// Nobody is born.
    #[must_use]
    pub fn new(all: &'image [Process]) -> Self {
        Self {
            by_id: all.iter().map(|process| (process.id, process)).collect(),
            outside: super::plan::outside(all),
            born: BTreeMap::new(),
            slots: BTreeMap::new(),
            memories: BTreeSet::new(),
            tables: BTreeSet::new(),
            contexts: BTreeSet::new(),
            handlers: BTreeSet::new(),
            places: Places::default(),
        }
    }

    /// A process by its ID.
    #[must_use]
    pub fn find(&self, id: TaskId) -> Option<&'image Process> {
        self.by_id.get(&id).copied()
    }

    /// Completes a birth by who makes the process: one of those that came before.
    ///
    /// # Errors
    /// [`code::SHARED_BETWEEN_PROCESSES`] if none can, who has all that is shared.
    pub fn descend(&mut self, mut birth: Birth, process: &Process) -> Result<Birth> {
        let needed = process.living.as_ref().map_or(0, |living| self.shared_before(process, living));
        let parent = process.parent.and_then(|parent| self.find(parent));
        if birth.adopted {
            // It comes by the end of another process, from whichever task: in area 0.
            if needed != 0 {
                return Err(impossible(process));
            }
            self.complete(&mut birth, process, Some(0));
        } else if let Some(parent) = parent {
            let (maker, by, flags) =
                self.maker(&birth, process, parent, needed).ok_or_else(|| impossible(process))?;
            birth.flags = flags;
            birth.maker = Some(maker);
            let slot = self.slots.get(&maker).copied();
            if let (Some(own), Some(makers), MEMORY) = (&process.living, &by.living, flags & (MEMORY | FILES))
            {
                self.places.reserve(makers.descriptor_table, own.descriptor_table);
            }
            let is_copy = flags & MEMORY == 0;
            self.complete(&mut birth, process, slot.filter(|_| is_copy));
        } else {
            self.complete(&mut birth, process, None);
        }
        self.born.entry(birth.parent).or_default().push(birth.clone());
        Ok(birth)
    }

    /// All that a process shares with anybody who is there before it.
    fn shared_before(&self, process: &Process, living: &Living) -> u64 {
        let flag = |is_shared: bool, flag| if is_shared { flag } else { 0 };
        flag(self.memories.contains(&living.memory), MEMORY)
            | flag(self.tables.contains(&living.descriptor_table), FILES)
            | flag(self.contexts.contains(&living.file_system_context), FILE_SYSTEM)
            | flag(self.handlers.contains(&handlers(process)), HANDLERS)
    }

    /// The task that makes a process, the process of that task, and the flags with which it does: the parent, or else a
    /// sibling that shares with it just what is needed.
    fn maker(
        &self,
        birth: &Birth,
        process: &Process,
        parent: &'image Process,
        needed: u64,
    ) -> Option<(TaskId, &'image Process, u64)> {
        let by_parent = (process.parent_thread.unwrap_or(parent.id), parent);
        let Some(living) = &process.living else {
            return Some((by_parent.0, parent, 0));
        };
        let shares = |other: &Process| {
            let theirs = other.living.as_ref()?;
            Some(shared(living, theirs, (handlers(process), handlers(other))))
        };
        if shares(parent) == Some(needed) {
            return Some((by_parent.0, parent, needed));
        }
        let is_made_like = |other: &&Birth| {
            other.zombie.is_none()
                && other.exit_signal == birth.exit_signal
                && other.before_parents_session == birth.before_parents_session
        };
        let siblings = self.born.get(&birth.parent).into_iter().flatten().filter(is_made_like);
        let mut siblings = siblings.filter_map(|other| self.find(other.id()));
        let fits =
            |other: &&Process| other.parent_thread == process.parent_thread && shares(other) == Some(needed);
        siblings.find(fits).map(|sibling| (sibling.id, sibling, needed | PARENT))
    }

    /// Gives the tasks of a process their areas and sockets; `slot` is the area that the leader has from who makes it.
    fn complete(&mut self, birth: &mut Birth, process: &Process, slot: Option<usize>) {
        if let Some(living) = &process.living {
            let mut tasks = process.tasks().into_iter();
            let leader = tasks.next().unwrap_or(process.id);
            birth.leader = self.places.member(leader, living, slot);
            birth.others = tasks.map(|id| self.places.member(id, living, None)).collect();
            self.memories.insert(living.memory);
            self.tables.insert(living.descriptor_table);
            self.contexts.insert(living.file_system_context);
            self.handlers.insert(handlers(process));
        } else {
            birth.leader.slot = slot.unwrap_or(0);
        }
        self.slots.extend(members(birth).map(|member| (member.id, member.slot)));
    }
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
/// As [`Family::descend`].
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
    let groups = super::groups::Groups::new(processes)
        .without_leaders(processes)
        .into_iter()
        .map(|group| TaskId(group.group));
    let temporary = super::sessions::temporary(&adoptions).chain(groups).collect();
    Ok((adoptions.iter().map(|adoption| adoption.child).collect(), temporary))
}
