//! Who somebody is, as unix sockets tell it: a part of the records of sockets and their messages. It is no record by
//! itself.

use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// Process, user and group (`struct ucred`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SocketCredentials {
    /// The process, if it belongs to the image.
    pub task: Option<TaskId>,
    /// The ID of the process, as the receiver sees it; 0 for one that it can't see.
    pub process: u32,
    /// Its user.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// Its supplementary groups, if they are told.
    pub groups: Option<Vec<u32>>,
}

impl SocketCredentials {
    /// Most supplementary groups (`NGROUPS_MAX`).
    const MOST_GROUPS: usize = 65536;

    /// The identities that it refers to.
    #[must_use]
    pub fn refers(&self) -> Vec<Identity> {
        self.task.map(Identity::from).into_iter().collect()
    }

    /// Whether its values make sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        if self.process > i32::MAX.cast_unsigned() {
            return Err(format!("process {} is out of range", self.process));
        }
        if self.groups.as_ref().is_some_and(|groups| groups.len() > Self::MOST_GROUPS) {
            return Err("there are too many supplementary groups".to_owned());
        }
        Ok(())
    }
}
