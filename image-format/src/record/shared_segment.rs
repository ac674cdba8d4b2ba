//! Shared segment (kind 68): memory that several mappings or descriptors share.

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
}

impl Record for SharedSegment {
    const KIND: Kind = Kind::SharedSegment;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        match &self.origin {
            Origin::Anonymous => {
                format!("segment {} of shared anonymous memory, {} bytes", self.id, self.size)
            }
            Origin::Memfd { name, .. } => format!("segment {} memfd:{name}, {} bytes", self.id, self.size),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into()]
    }
}
