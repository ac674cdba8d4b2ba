//! Process groups: who founds and who joins them, also those whose leader has ended or left.

use std::collections::BTreeMap;
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

/// The group that a process founds or joins; none: the one it was born into.
pub(super) fn joins(process: &Process, all: &[Process]) -> Option<u32> {
    let group = process.process_group;
    if process.session == process.id.0
        || is_outside(process, all)
        || group == process.session && is_gone(group, all)
    {
        return None;
    }
    Some(group)
}

/// The groups of the tree that nobody in it can found.
pub(super) fn without_leaders(all: &[Process]) -> Vec<Leaderless> {
    let mut found = BTreeMap::new();
    for process in all {
        if let Some(group) = joins(process, all).filter(|&group| is_gone(group, all)) {
            found.entry(group).or_insert(process.id);
        }
    }
    found.into_iter().map(|(group, member)| Leaderless { group, member }).collect()
}

/// The group of the root, which is led from outside: that of whoever restores. 0 is one of another namespace.
fn is_outside(process: &Process, all: &[Process]) -> bool {
    let group = process.process_group;
    group == 0 || is_gone(group, all) && all.first().is_some_and(|root| root.process_group == group)
}

fn is_gone(id: u32, all: &[Process]) -> bool {
    all.iter().all(|other| other.id.0 != id)
}
