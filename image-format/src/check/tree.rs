//! The process tree: one root, parents that reach it, and the threads and states of every process.

use super::Finding;
use crate::id::{MemoryId, TaskId};
use crate::record::process::Process;
use crate::record::process_status::{ProcessStatus, State};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The tree so far. Add all processes, then their threads and states.
#[derive(Debug)]
pub(super) struct Tree {
    root: TaskId,
    processes: BTreeMap<TaskId, Member>,
    /// The threads that processes have, and no record so far; with their processes.
    threads: HashMap<TaskId, TaskId>,
    /// The processes of all threads.
    owners: HashMap<TaskId, TaskId>,
    /// Most threads that there can be.
    thread_records: usize,
    states: HashSet<TaskId>,
}

/// A process.
#[derive(Debug)]
struct Member {
    record: usize,
    parent: Option<TaskId>,
    /// The thread of the parent that it is a child of, if it is not the leader.
    parent_thread: Option<TaskId>,
    /// The process that has its signal handlers too.
    handlers_of: Option<TaskId>,
    /// Its memory, if it lives.
    memory: Option<MemoryId>,
}

/// From which memory another one was copied when its first process was forked: none if that process is the root.
pub(super) type Families = HashMap<MemoryId, Option<MemoryId>>;

impl Tree {
    /// A tree that must have this root, in an image with so many records of threads.
    pub(super) fn new(root: TaskId, thread_records: usize) -> Self {
        let (processes, threads, states) = (BTreeMap::new(), HashMap::new(), HashSet::new());
        Self { root, processes, threads, owners: HashMap::new(), thread_records, states }
    }

    /// Adds a process.
    pub(super) fn process(&mut self, record: usize, process: Process) -> Result<(), Finding> {
        let refuse = |why: String| Err(Finding::new(record, why));
        if process.parent.is_none() != (process.id == self.root) {
            return refuse(match process.parent {
                None => format!("it has no parent, but the root is process {}", self.root),
                Some(parent) => format!("it is the root, but has the parent {parent}"),
            });
        }
        let memory = process.living.as_ref().map(|living| living.memory);
        let handlers_of = process.living.as_ref().and_then(|living| living.handlers_of);
        for thread in process.living.map(|living| living.threads).unwrap_or_default() {
            if self.threads.len() == self.thread_records {
                return refuse("there are fewer records of threads than threads".to_owned());
            }
            self.owners.insert(thread, process.id);
            if self.threads.insert(thread, process.id).is_some() {
                return refuse(format!("thread {thread} is named a second time"));
            }
        }
        let Process { parent, parent_thread, .. } = process;
        let member = Member { record, parent, parent_thread, handlers_of, memory };
        if self.processes.insert(process.id, member).is_some() {
            return refuse(format!("there is a second process {}", process.id));
        }
        Ok(())
    }

    /// Adds the record of a thread.
    pub(super) fn thread(&mut self, record: usize, id: TaskId, process: TaskId) -> Result<(), Finding> {
        match self.threads.remove(&id) {
            Some(owner) if owner == process => Ok(()),
            Some(owner) => Err(Finding::new(record, format!("it is a thread of process {owner} instead"))),
            None => {
                Err(Finding::new(record, format!("process {process} does not have it, or has it already")))
            }
        }
    }

    /// Adds the state of a process.
    pub(super) fn status(&mut self, record: usize, status: &ProcessStatus) -> Result<(), Finding> {
        let refuse = |why: String| Err(Finding::new(record, why));
        let Some(member) = self.processes.get(&status.process) else {
            return refuse(format!("there is no process {}", status.process));
        };
        let ended = matches!(status.state, State::Zombie { .. });
        match (ended, member.memory.is_some()) {
            (true, true) => return refuse("the process has ended, but has threads".to_owned()),
            (false, false) => return refuse("the process lives, but has no threads".to_owned()),
            (true, false) | (false, true) => {}
        }
        if !self.states.insert(status.process) {
            return refuse(format!("process {} has a second status", status.process));
        }
        Ok(())
    }

    /// Checks the whole.
    pub(super) fn finish(self) -> Result<Families, Finding> {
        if let Some((thread, process)) = self.threads.iter().min() {
            let record = self.processes.get(process).map_or(0, |member| member.record);
            return Err(Finding::new(record, format!("there is no record of its thread {thread}")));
        }
        if !self.processes.contains_key(&self.root) {
            return Err(Finding::new(0, format!("there is no process {}, which is the root", self.root)));
        }
        for member in self.processes.values() {
            let Some(parent) = member.parent else { continue };
            match self.processes.get(&parent) {
                Some(Member { memory: Some(_), .. }) => {}
                Some(_) => return Err(Finding::new(member.record, format!("its parent {parent} has ended"))),
                None => {
                    return Err(Finding::new(member.record, format!("its parent {parent} is no process")));
                }
            }
        }
        self.relations()?;
        let depths = self.depths()?;
        let mut first: HashMap<MemoryId, (usize, usize, TaskId)> = HashMap::new();
        for (&id, member) in &self.processes {
            let Some(memory) = member.memory else { continue };
            let place = (depths.get(&id).copied().unwrap_or(0), member.record, id);
            match first.entry(memory) {
                Entry::Occupied(mut occupied) => *occupied.get_mut() = place.min(*occupied.get()),
                Entry::Vacant(vacant) => {
                    vacant.insert(place);
                }
            }
        }
        let parent_memory = |id: TaskId| self.processes.get(&self.processes.get(&id)?.parent?)?.memory;
        Ok(first.into_iter().map(|(memory, (_, _, id))| (memory, parent_memory(id))).collect())
    }

    /// Checks threads of parents, and who has whose signal handlers.
    fn relations(&self) -> Result<(), Finding> {
        for member in self.processes.values() {
            let refuse = |why: String| Err(Finding::new(member.record, why));
            if let Some(thread) = member.parent_thread
                && self.owners.get(&thread).copied() != member.parent
            {
                return refuse(format!("thread {thread} is not one of its parent"));
            }
            let Some(other) = member.handlers_of else { continue };
            let theirs = self.processes.get(&other);
            let is_first = theirs.is_some_and(|theirs| theirs.handlers_of.is_none());
            if !is_first || theirs.and_then(|theirs| theirs.memory) != member.memory {
                return refuse(format!("it can't have the signal handlers of process {other}"));
            }
        }
        Ok(())
    }

    /// How far every process is from the root.
    fn depths(&self) -> Result<HashMap<TaskId, usize>, Finding> {
        let mut depths = HashMap::from([(self.root, 0)]);
        let mut path = Vec::new();
        for (&id, member) in &self.processes {
            let mut current = id;
            let depth = loop {
                if let Some(&depth) = depths.get(&current) {
                    break depth;
                }
                if path.len() == self.processes.len() {
                    return Err(Finding::new(
                        member.record,
                        "it is its own ancestor, or a descendant of such",
                    ));
                }
                path.push(current);
                match self.processes.get(&current).and_then(|member| member.parent) {
                    Some(parent) => current = parent,
                    None => return Err(Finding::new(member.record, "its ancestors don't lead to the root")),
                }
            };
            for (distance, ancestor) in path.drain(..).rev().enumerate() {
                depths.insert(ancestor, depth + distance + 1);
            }
        }
        Ok(depths)
    }
}
