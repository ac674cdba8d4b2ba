//! Credentials (kind 15): who a thread is for the kernel, and what it may do.

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// The credentials of a process: the kernel keeps them for each thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The process.
    pub process: TaskId,
    /// Those of each of its threads, the leader's first.
    pub threads: Vec<ThreadCredentials>,
}

/// The credentials of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadCredentials {
    /// The thread.
    pub thread: TaskId,
    /// Its user IDs.
    pub user: Ids,
    /// Its group IDs.
    pub group: Ids,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its capability sets.
    pub capabilities: CapabilitySets,
    /// `PR_GET_SECUREBITS`.
    pub secure_bits: u32,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
}

/// User or group IDs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Whose process it is.
    pub real: u32,
    /// Whose rights it has.
    pub effective: u32,
    /// To whose rights it may return.
    pub saved: u32,
    /// Whose rights it has on files.
    pub file_system: u32,
}

/// Capability sets, each with one bit a capability; see `capabilities(7)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Kept by `execve` of a file that has them too.
    pub inheritable: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What counts.
    pub effective: u64,
    /// What `execve` can give at most.
    pub bounding: u64,
    /// Kept by `execve` of any file.
    pub ambient: u64,
}

impl Record for Credentials {
    const KIND: Kind = Kind::Credentials;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        match self.threads.first() {
            Some(leader) => format!("process {} as user {}", self.process, leader.user.effective),
            None => format!("process {}", self.process),
        }
    }

    fn refers(&self) -> Vec<Identity> {
        let threads = self.threads.iter().map(|thread| Identity::from(thread.thread));
        std::iter::once(self.process.into()).chain(threads).collect()
    }

    fn check(&self) -> Result<(), String> {
        for ThreadCredentials { thread, groups, capabilities, .. } in &self.threads {
            let CapabilitySets { inheritable, permitted, effective, ambient, .. } = *capabilities;
            if effective & !permitted != 0 {
                return Err(format!("thread {thread} has effective capabilities that are not permitted"));
            }
            if ambient & !(permitted & inheritable) != 0 {
                return Err(format!(
                    "thread {thread} has ambient capabilities that are not permitted and inheritable"
                ));
            }
            if groups.len() > 65536 {
                return Err(format!("thread {thread} is in {} groups", groups.len()));
            }
        }
        Ok(())
    }
}
