//! File locking (kind 16): a lock that a process or a description holds on a file.

use super::{Kind, Record};
use crate::id::{DescriptionId, Identity, TaskId};
use serde::{Deserialize, Serialize};

/// A lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLocking {
    /// Which of the kernel's three sorts, and who holds it.
    pub holder: Holder,
    /// A description of the file, through which it is locked.
    pub description: DescriptionId,
    /// Whether it keeps out readers too (`F_WRLCK`, `LOCK_EX`).
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; none for all that follow.
    pub end: Option<u64>,
}

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holder {
    /// A process (`fcntl(F_SETLK)`).
    Process(TaskId),
    /// The description, for a range (`fcntl(F_OFD_SETLK)`).
    Description,
    /// The description, for the whole file (`flock(2)`).
    WholeFile,
    /// The description, as a lease (`fcntl(F_SETLEASE)`), which this process can renew.
    Lease(TaskId),
}

impl Record for FileLocking {
    const KIND: Kind = Kind::FileLocking;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        let sort = match self.holder {
            Holder::Process(task) => format!("POSIX lock of process {task}"),
            Holder::Description => "OFD lock".to_owned(),
            Holder::WholeFile => "flock".to_owned(),
            Holder::Lease(_) => "lease".to_owned(),
        };
        let mode = if self.exclusive { "write" } else { "read" };
        let end = self.end.map_or_else(|| "EOF".to_owned(), |end| end.to_string());
        format!("{sort} ({mode} {}-{end}) on description {}", self.start, self.description)
    }

    fn refers(&self) -> Vec<Identity> {
        let mut identities = vec![self.description.into()];
        if let Holder::Process(task) | Holder::Lease(task) = self.holder {
            identities.push(task.into());
        }
        identities
    }

    fn check(&self) -> Result<(), String> {
        let last = self.end.unwrap_or(i64::MAX as u64);
        if self.start > last || last > i64::MAX as u64 {
            return Err(format!("range {}-{last} is no range of bytes", self.start));
        }
        Ok(())
    }
}
