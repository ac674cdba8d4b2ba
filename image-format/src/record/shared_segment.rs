//! Shared segment (kind 68): memory that several mappings or descriptors share.

use super::process_map::LARGEST_PAGE;
use super::{Kind, Record};
use crate::id::{Identity, SegmentId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A segment; its pages are in [`MmapMemory`](super::mmap_memory::MmapMemory) records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedSegment {
    /// Its identity.
    pub id: SegmentId,
    /// Its size in bytes.
    pub size: u64,
    /// What made it.
    pub origin: Origin,
    /// The binary logarithm of the size of its pages if they are huge (hugetlbfs), else 0.
    pub huge_page: u8,
}

/// What made a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// `mmap(MAP_SHARED | MAP_ANONYMOUS)`.
    Anonymous,
    /// `memfd_create(2)`.
    Memfd {
        /// Its name, without the `memfd:` that the kernel puts before it.
        name: Text,
        /// `F_GET_SEALS`.
        seals: u32,
    },
    /// `memfd_secret(2)`: its content is not stored.
    Secret,
    /// `shmget(2)`.
    SystemV(SystemV),
}

/// A segment of System V shared memory (`struct shmid_ds`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemV {
    /// Its ID.
    pub id: u32,
    /// Its key; 0 is `IPC_PRIVATE`.
    pub key: u32,
    /// Permission bits (`mode & 0777`).
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Creator and the creator's group.
    pub creator: (u32, u32),
    /// When it was last changed, in seconds since 1970.
    pub changed: i64,
    /// Whether it is locked in memory (`SHM_LOCK`).
    pub locked: bool,
    /// Whether it is removed when the last process detaches it (`SHM_DEST`).
    pub removed: bool,
}

impl Record for SharedSegment {
    const KIND: Kind = Kind::SharedSegment;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        match &self.origin {
            Origin::Anonymous => {
                format!("segment {} of shared anonymous memory, {} bytes", self.id, self.size)
            }
            Origin::Secret => format!("segment {} of secret memory, {} bytes", self.id, self.size),
            Origin::SystemV(shared) => {
                format!("segment {} of System V, ID {}, {} bytes", self.id, shared.id, self.size)
            }
            Origin::Memfd { name, .. } => format!("segment {} memfd:{name}, {} bytes", self.id, self.size),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into()]
    }

    fn check(&self) -> Result<(), String> {
        if self.size > i64::MAX as u64 - 4096 {
            return Err(format!("size {} is out of range", self.size));
        }
        if self.huge_page > LARGEST_PAGE {
            return Err(format!("there are no pages of 2^{} bytes", self.huge_page));
        }
        Ok(())
    }
}
