//! Schedule control (kind 19): how the kernel shares out processor, disk and memory nodes to a thread.

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// The scheduling of a process: the kernel keeps it for each thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleControl {
    /// The process.
    pub process: TaskId,
    /// The niceness of the autogroup of its session (`/proc/<pid>/autogroup`); none where there are no autogroups.
    pub autogroup: Option<i32>,
    /// That of each of its threads, the leader's first.
    pub threads: Vec<ThreadSchedule>,
}

/// The scheduling of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSchedule {
    /// The thread.
    pub thread: TaskId,
    /// Policy and priorities.
    pub attributes: Attributes,
    /// The processors it may run on, one bit each; none if it may run on all that the host had.
    pub affinity: Option<Vec<u64>>,
    /// `ioprio_get(2)`.
    pub io_priority: u32,
    /// `PR_GET_TIMERSLACK`, in nanoseconds; 0 for real-time policies.
    pub timer_slack: u64,
    /// `get_mempolicy(2)`; none for the default.
    pub memory_policy: Option<MemoryPolicy>,
}

/// `struct sched_attr` of `sched_getattr(2)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// `SCHED_OTHER` and so on.
    pub policy: u32,
    /// `SCHED_FLAG_…`.
    pub flags: u64,
    /// Niceness, also where the policy makes no use of it.
    pub nice: i32,
    /// Static priority, for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// For `SCHED_DEADLINE`, in nanoseconds; else the slice of the scheduler, 0 for the default.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`, in nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`, in nanoseconds.
    pub period: u64,
    /// Utilisation clamp, lower end.
    pub utilisation_minimum: u32,
    /// Utilisation clamp, upper end.
    pub utilisation_maximum: u32,
}

/// The memory policy of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_…` with its mode flags.
    pub mode: u32,
    /// The nodes, one bit each.
    pub nodes: Vec<u64>,
}

/// Most 64-bit words of a mask of processors or nodes.
pub const MAXIMUM_MASK_WORDS: usize = 128;

/// A mask in the words of `taskset`, such as `0,2-3`.
#[must_use]
pub fn list(mask: &[u64]) -> String {
    let is_set = |number: &usize| mask.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 != 0);
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in (0..mask.len() * 64).filter(is_set) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = ranges.iter().map(|&(first, last)| match last {
        _ if first == last => format!("{first}"),
        _ => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

impl Record for ScheduleControl {
    const KIND: Kind = Kind::ScheduleControl;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("scheduling of process {}", self.process)
    }

    fn refers(&self) -> Vec<Identity> {
        let threads = self.threads.iter().map(|thread| Identity::from(thread.thread));
        std::iter::once(self.process.into()).chain(threads).collect()
    }

    fn check(&self) -> Result<(), String> {
        if let Some(nice) = self.autogroup.filter(|nice| !(-20..=19).contains(nice)) {
            return Err(format!("the session of process {} has the niceness {nice}", self.process));
        }
        for ThreadSchedule { thread, attributes, affinity, memory_policy, .. } in &self.threads {
            if !(-20..=19).contains(&attributes.nice) {
                return Err(format!("thread {thread} has the niceness {}", attributes.nice));
            }
            let masks = affinity.iter().chain(memory_policy.iter().map(|policy| &policy.nodes));
            if let Some(mask) = masks.into_iter().find(|mask| mask.len() > MAXIMUM_MASK_WORDS) {
                return Err(format!("thread {thread} has a mask of {} words", mask.len()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_lists() {
        assert_eq!(list(&[0b1101, 1]), "0,2-3,64");
        assert_eq!(list(&[]), "");
    }
}
