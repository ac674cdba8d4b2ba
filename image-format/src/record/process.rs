//! Process (kind 9): a thread group, its place in the tree, and what it shares.

use super::{Kind, Record};
use crate::id::{DescriptorTableId, FileSystemContextId, Identity, MemoryId, TaskId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A process, also one that has ended and was not waited for (then without [`Living`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its process ID.
    pub id: TaskId,
    /// Its parent within the image; none for the root.
    pub parent: Option<TaskId>,
    /// The thread of the parent that it is a child of, if that is not the leader.
    pub parent_thread: Option<TaskId>,
    /// The process group, which may be led by a process outside the image (0: of another namespace).
    pub process_group: u32,
    /// The session, which may be led by a process outside the image (0: of another namespace).
    pub session: u32,
    /// `comm` of the leader.
    pub command: Text,
    /// The signal that its end sends to the parent (0: none).
    pub exit_signal: u32,
    /// What only a living process has.
    pub living: Option<Living>,
}

/// What only a process has that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Living {
    /// Its address space.
    pub memory: MemoryId,
    /// Its descriptors.
    pub descriptor_table: DescriptorTableId,
    /// Its current directory, root and umask.
    pub file_system_context: FileSystemContextId,
    /// Its threads; the first is the leader, with the ID of the process, unless that has ended.
    pub threads: Vec<TaskId>,
    /// What is left of the leader, if it has ended while others run.
    pub ended_leader: Option<EndedLeader>,
    /// The first process of the image that has the same signal handlers, if that is another one.
    pub handlers_of: Option<TaskId>,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// `/proc/<pid>/oom_score_adj`.
    pub oom_score_adjustment: i32,
    /// `/proc/<pid>/coredump_filter`; none if the kernel writes no core dumps.
    pub core_dump_filter: Option<u32>,
    /// `PR_GET_MDWE`: whether memory may be writable and executable.
    pub deny_write_execute: u32,
    /// What is registered with membarrier(2): `MEMBARRIER_CMD_REGISTER_…`.
    pub memory_barriers: u32,
    /// The components of the processor's state that it may use (`ARCH_GET_XCOMP_PERM`); 0 if the kernel does not tell.
    pub permitted_components: u64,
    /// `PR_GET_THP_DISABLE`: 0, or 1 with the flags of `PR_SET_THP_DISABLE`.
    pub huge_pages_disabled: u32,
}

/// A leader that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedLeader {
    /// Its wait status.
    pub status: u32,
    /// The signals that it blocked; bit 0 is signal 1.
    pub mask: u64,
}

impl Process {
    /// Its tasks, the leader first, also if it has ended while others run; none if the process has ended.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskId> {
        let Some(living) = &self.living else { return Vec::new() };
        let leader = living.ended_leader.map(|_| self.id);
        leader.into_iter().chain(living.threads.iter().copied()).collect()
    }
}

impl Record for Process {
    const KIND: Kind = Kind::Process;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("process {} {}", self.id, self.command)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let parents = self.parent.iter().chain(&self.parent_thread);
        let mut identities: Vec<Identity> = parents.map(|&parent| parent.into()).collect();
        if let Some(living) = &self.living {
            identities.push(living.memory.into());
            identities.push(living.descriptor_table.into());
            identities.push(living.file_system_context.into());
            identities.extend(living.handlers_of.map(Identity::from));
            identities.extend(living.threads.iter().map(|&thread| Identity::from(thread)));
        }
        identities
    }

    fn check(&self) -> Result<(), String> {
        if self.id.0 == 0 || self.id.0 > i32::MAX as u32 {
            return Err(format!("process ID {} is out of range", self.id));
        }
        if self.exit_signal > 64 {
            return Err(format!("exit signal {} is out of range", self.exit_signal));
        }
        match &self.living {
            Some(living) if living.threads.is_empty() => Err("it lives without a thread".to_owned()),
            Some(living) if living.ended_leader.is_some() => match living.threads.contains(&self.id) {
                true => Err("the leader has ended, but is a thread".to_owned()),
                false => Ok(()),
            },
            Some(living) if living.threads.first() != Some(&self.id) => {
                Err("the first thread is not the leader".to_owned())
            }
            _ => Ok(()),
        }
    }
}
