//! Process groups: who founds and who joins them, also those whose leader has ended or left.

use std::collections::{BTreeMap, BTreeSet};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::process::Process;

/// A group whose leader has ended: a process founds it, and ends when all are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaderless {
    /// Its number.
    pub group: u32,
    /// One of its members, who makes that process.
    pub member: TaskId,
}

/// Whom a group can be founded by.
#[derive(Debug)]
pub(super) struct Groups {
    processes: BTreeSet<u32>,
    /// The group of the root.
    of_root: Option<u32>,
}

impl Groups {
    pub(super) fn new(all: &[Process]) -> Self {
        Self {
            processes: all.iter().map(|process| process.id.0).collect(),
            of_root: all.first().map(|root| root.process_group),
        }
    }

    /// The group that a process founds or joins; none: the one it was born into.
    pub(super) fn joins(&self, process: &Process) -> Option<u32> {
        let group = process.process_group;
        if process.session == process.id.0
            || self.is_outside(group)
            || group == process.session && self.is_gone(group)
        {
            return None;
        }
        Some(group)
    }

    /// The groups of the tree that nobody in it can found.
    pub(super) fn without_leaders(&self, all: &[Process]) -> Vec<Leaderless> {
        let mut found = BTreeMap::new();
        for process in all {
            if let Some(group) = self.joins(process).filter(|&group| self.is_gone(group)) {
                found.entry(group).or_insert(process.id);
            }
        }
        found.into_iter().map(|(group, member)| Leaderless { group, member }).collect()
    }

    /// The group of the root, which is led from outside: that of whoever restores. 0 is one of another namespace.
    fn is_outside(&self, group: u32) -> bool {
        group == 0 || self.is_gone(group) && self.of_root == Some(group)
    }

    fn is_gone(&self, id: u32) -> bool {
        !self.processes.contains(&id)
    }
}
