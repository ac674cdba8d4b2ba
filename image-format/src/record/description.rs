//! What every open file description has, whatever its kind: a part of the records of files, pipes, sockets and the
//! other things that descriptors lead to. It is no record by itself.

use crate::id::{DescriptionId, Identity, TaskId};
use serde::{Deserialize, Serialize};

/// An open file description (`struct file`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its identity.
    pub id: DescriptionId,
    /// `F_GETFL`: access mode and status flags.
    pub flags: u32,
    /// `F_GETOWN_EX`: who gets its signals.
    pub owner: Option<Owner>,
    /// `F_GETSIG`: which signal; 0 for `SIGIO`.
    pub signal: u32,
}

/// Who gets the signals of a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// A thread.
    Thread(TaskId),
    /// A process.
    Process(TaskId),
    /// A process group, by its ID.
    Group(u32),
}

impl Description {
    /// Bits of the access mode (`O_ACCMODE`).
    pub const ACCESS_MODE: u32 = 3;

    /// Whether it is open for reading.
    #[must_use]
    pub const fn reads(&self) -> bool {
        matches!(self.flags & Self::ACCESS_MODE, 0 | 2)
    }

    /// Whether it is open for writing.
    #[must_use]
    pub const fn writes(&self) -> bool {
        matches!(self.flags & Self::ACCESS_MODE, 1 | 2)
    }

    /// The identities that it refers to.
    #[must_use]
    pub fn refers(&self) -> Vec<Identity> {
        match self.owner {
            Some(Owner::Thread(task) | Owner::Process(task)) => vec![task.into()],
            Some(Owner::Group(_)) | None => Vec::new(),
        }
    }

    /// Whether its values make sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        if self.flags > i32::MAX as u32 {
            return Err(format!("flags {:#o} are out of range", self.flags));
        }
        if self.signal > 64 {
            return Err(format!("signal {} is out of range", self.signal));
        }
        Ok(())
    }
}
