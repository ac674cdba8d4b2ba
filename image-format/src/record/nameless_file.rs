//! Nameless file (kind 81): a file of any sort whose name is gone, or never was; the content of a regular one travels in
//! the image.

use super::{Kind, Record};
use crate::id::{Identity, NamelessFileId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A file without a name; its content is in [`MmapMemory`](super::mmap_memory::MmapMemory) records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamelessFile {
    /// Its identity.
    pub id: NamelessFileId,
    /// The path that it had; its directory is where it is made again.
    pub path: Text,
    /// Permission bits (`st_mode & 07777`).
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Size in bytes.
    pub size: u64,
    /// Names that it still had elsewhere.
    pub links: u32,
    /// Modification time, in nanoseconds since 1970.
    pub modified: i64,
    /// What it is.
    pub sort: Sort,
}

/// What a file without a name is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sort {
    /// A regular file.
    Regular,
    /// A directory, in which nothing can be made any more.
    Directory,
    /// A FIFO; what waits in it is with the pipe that it is.
    Fifo,
    /// The file of a unix socket.
    Socket,
    /// A symbolic link.
    SymbolicLink(Text),
}

impl Record for NamelessFile {
    const KIND: Kind = Kind::NamelessFile;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        let word = match self.sort {
            Sort::Regular => "file",
            Sort::Directory => "directory",
            Sort::Fifo => "FIFO",
            Sort::Socket => "socket file",
            Sort::SymbolicLink(_) => "symbolic link",
        };
        format!("nameless {word} {} of {} bytes, once {}", self.id, self.size, self.path)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into()]
    }

    fn check(&self) -> Result<(), String> {
        if self.path.is_empty() || self.path.0.contains(&0) {
            return Err("the path is empty or has a NUL".to_owned());
        }
        if self.size > i64::MAX as u64 {
            return Err(format!("size {} is out of range", self.size));
        }
        if let Sort::SymbolicLink(target) = &self.sort
            && (target.is_empty() || target.0.contains(&0))
        {
            return Err("the target of a symbolic link is empty or has a NUL".to_owned());
        }
        if self.mode & !0o7777 != 0 {
            return Err(format!("mode {:o} has more than permission bits", self.mode));
        }
        Ok(())
    }
}
