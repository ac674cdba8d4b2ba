//! File (kind 2): an open file description of something that has, or had, a path: a regular file, a directory, a
//! character device; or of a memory file.

use super::description::Description;
use super::{Kind, Record};
use crate::id::{Identity, NamelessFileId, SegmentId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// An open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// What every description has.
    pub description: Description,
    /// Its path when it was dumped.
    pub path: Text,
    /// What the path leads to.
    pub target: Target,
    /// `lseek(fd, 0, SEEK_CUR)`; for a directory the cookie of its file system.
    pub position: u64,
}

/// What an open file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A regular file with a name.
    Regular {
        /// Its size in bytes.
        size: u64,
        /// Its modification time, in nanoseconds since 1970.
        modified: i64,
    },
    /// A file without a name, of any sort: what it was travels in the image.
    Nameless(NamelessFileId),
    /// A memory file (`memfd_create(2)`).
    Segment(SegmentId),
    /// A directory.
    Directory,
    /// A character device.
    CharacterDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// Anything else that was opened with `O_PATH`.
    PathOnly {
        /// `st_mode & S_IFMT`.
        file_type: u32,
    },
    /// A file of `/proc` about a task that has ended and was waited for.
    OfEndedTask,
}

impl Record for File {
    const KIND: Kind = Kind::File;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        let word = match self.target {
            Target::Regular { .. } => "file",
            Target::Nameless(_) => "nameless file",
            Target::Segment(_) => "memory file",
            Target::Directory => "directory",
            Target::CharacterDevice { .. } => "device",
            Target::PathOnly { .. } => "path",
            Target::OfEndedTask => "file of an ended task",
        };
        format!("{word} {}", self.path)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let mut identities = self.description.refers();
        match self.target {
            Target::Nameless(id) => identities.push(id.into()),
            Target::Segment(id) => identities.push(id.into()),
            Target::Regular { .. }
            | Target::Directory
            | Target::CharacterDevice { .. }
            | Target::PathOnly { .. }
            | Target::OfEndedTask => {}
        }
        identities
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()?;
        if self.path.is_empty() || self.path.0.contains(&0) {
            return Err("the path is empty or has a NUL".to_owned());
        }
        if self.position > i64::MAX as u64 {
            return Err(format!("position {} is out of range", self.position));
        }
        Ok(())
    }
}
