//! Identities that records use to refer to one another: newtypes, never bare integers.
//!
//! Task identities are the virtual IDs that the application knows; all others are numbered by the dump, from 0, and
//! mean nothing outside their image.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! identities {
    ($($(#[$documentation:meta])* $name:ident, $word:literal;)+) => {
        $(
            $(#[$documentation])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
            #[serde(transparent)]
            pub struct $name(pub u32);

            impl fmt::Display for $name {
                fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    write!(formatter, "{}", self.0)
                }
            }

            impl From<$name> for Identity {
                fn from(id: $name) -> Self {
                    Identity { space: $word, number: id.0 }
                }
            }
        )+
    };
}

/// An identity with the word for what it identifies; what [`check`](crate::check) resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// What is identified, such as `"task"`.
    pub space: &'static str,
    /// Its number.
    pub number: u32,
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.space, self.number)
    }
}

identities! {
    /// A task by its virtual thread ID; a process is identified by the ID of its leader.
    TaskId, "task";
    /// A memory (`mm_struct`): one address space.
    MemoryId, "memory";
    /// An open file description (`struct file`).
    DescriptionId, "description";
    /// A table of descriptors (`files_struct`).
    DescriptorTableId, "descriptor table";
    /// A file system context: current directory, root, umask (`fs_struct`).
    FileSystemContextId, "file system context";
    /// A segment of memory shared by mappings (shared anonymous memory, a memfd).
    SegmentId, "segment";
    /// A file without a name, whose content travels in the image.
    NamelessFileId, "nameless file";
    /// A pipe or FIFO: the buffer between its ends.
    PipeId, "pipe";
    /// A socket.
    SocketId, "socket";
    /// A terminal.
    TerminalId, "terminal";
    /// An io_uring: the rings of requests and completions that a program shares with the kernel.
    RingId, "ring";
}
