//! Open file descriptions of a frozen tree, as kinds of descriptors see them.

use crate::error::{Error, Subject, code};
use crate::frozen::Frozen;
use crate::proc::fdinfo::FdInfo;
use std::os::fd::OwnedFd;
use vckpt_image_format::Text;
use vckpt_image_format::record::description::Description;

/// An open file description with everything that is cheap to know about it.
#[derive(Debug)]
pub struct Opened {
    /// What its record says of it.
    pub description: Description,
    /// The descriptors that lead to it; never empty. One that only travels in a socket has this program's copy.
    pub holders: Vec<Holder>,
    /// What `/proc/<pid>/fd/<n>` leads to.
    pub link: Text,
    /// What `/proc/<pid>/fdinfo/<n>` of the first holder says.
    pub info: FdInfo,
    /// `fstat(2)`.
    pub status: rustix::fs::Stat,
    /// A copy of the descriptor. Position and flags are shared with the target: they must not be changed.
    pub file: OwnedFd,
    /// For error messages.
    pub subject: Subject,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Index of the process in [`Frozen::processes`], or [`Holder::NOBODY`].
    pub process: usize,
    /// Its ID as this program sees it.
    pub pid: i32,
    /// The number of the descriptor.
    pub number: i32,
}

impl Holder {
    /// The index for a copy that this program has of a descriptor that only travels in a socket.
    pub const NOBODY: usize = usize::MAX;
}

/// All descriptions of a frozen tree.
#[derive(Debug)]
pub struct Walk<'tree> {
    /// The tree.
    pub frozen: &'tree Frozen,
    /// The descriptions.
    pub opened: Vec<Opened>,
}

impl Opened {
    /// `st_mode & S_IFMT`.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.status.st_mode & libc::S_IFMT
    }

    /// Device and inode.
    #[must_use]
    pub fn inode(&self) -> (u64, u64) {
        (self.status.st_dev, self.status.st_ino)
    }

    /// Major and minor number of the device that it is.
    #[must_use]
    pub fn device(&self) -> (u32, u32) {
        (rustix::fs::major(self.status.st_rdev), rustix::fs::minor(self.status.st_rdev))
    }

    /// Whether it was opened with `O_PATH`.
    #[must_use]
    pub fn is_path_only(&self) -> bool {
        self.description.flags & libc::O_PATH.cast_unsigned() != 0
    }

    /// Whether it is an anonymous inode of this name, such as `eventfd`. The kernel puts some names in brackets.
    #[must_use]
    pub fn is_anonymous(&self, name: &str) -> bool {
        let Some(found) = self.link.0.strip_prefix(b"anon_inode:") else { return false };
        found.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(found) == name.as_bytes()
    }

    /// A refusal of this description.
    #[must_use]
    pub fn refuse(&self, code: crate::error::Code, what: impl Into<String>) -> Box<Error> {
        Error::new(code, what).about(self.subject.clone())
    }

    /// A failed system call about this description.
    #[must_use]
    pub fn failed(&self, what: &str, errno: impl Into<std::io::Error>) -> Box<Error> {
        Error::system(code::PROC, what, errno).about(self.subject.clone())
    }
}

impl Walk<'_> {
    /// The description that a process has under a number.
    #[must_use]
    pub fn find(&self, process: usize, number: i32) -> Option<&Opened> {
        let is_it = |holder: &Holder| holder.process == process && holder.number == number;
        self.opened.iter().find(|opened| opened.holders.iter().any(is_it))
    }
}
