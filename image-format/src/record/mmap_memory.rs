//! Mmap memory (kind 17): contents of memory: which pages, and where their bytes are.
//!
//! The bytes are in page sections of the image (see the format's specification), aligned to the page size.
//! A page that no run names has the content that its mapping gives by itself: zeros, or the file's.

use super::{Kind, Record};
use crate::id::{Identity, MemoryId, NamelessFileId, SegmentId};
use serde::{Deserialize, Serialize};

/// Runs of pages of one owner, in the order of their addresses. An owner may have several such records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmapMemory {
    /// What the pages belong to.
    pub owner: PageOwner,
    /// The runs.
    pub runs: Vec<PageRun>,
}

/// What pages belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PageOwner {
    /// A memory; runs are addressed by virtual address.
    Memory(MemoryId),
    /// A shared segment; runs are addressed by offset.
    Segment(SegmentId),
    /// The content of a nameless file; runs are addressed by offset.
    NamelessFile(NamelessFileId),
}

impl From<PageOwner> for Identity {
    fn from(owner: PageOwner) -> Self {
        match owner {
            PageOwner::Memory(id) => id.into(),
            PageOwner::Segment(id) => id.into(),
            PageOwner::NamelessFile(id) => id.into(),
        }
    }
}

/// Pages with consecutive addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Address (or offset) of the first page, in bytes.
    pub address: u64,
    /// Number of pages.
    pub count: u64,
    /// Where the bytes are.
    pub source: PageSource,
}

/// Where the bytes of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageSource {
    /// In the image.
    Stored {
        /// Number of the page section, counted from 0 in the order of the image.
        section: u32,
        /// Number of the first page within the section.
        page: u64,
    },
    /// The pages that the parent process has at the same address: shared by copy-on-write.
    Parent,
    /// Zeros where the mapping alone would give something else (a page of a file that was written with zeros).
    Zero,
    /// A guard region (`MADV_GUARD_INSTALL`): touching it is a fault.
    Guard,
}

impl Record for MmapMemory {
    const KIND: Kind = Kind::MmapMemory;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        let pages: u64 = self.runs.iter().map(|run| run.count).fold(0, u64::saturating_add);
        format!("{} KiB of {}", pages.saturating_mul(4), Identity::from(self.owner))
    }

    fn refers(&self) -> Vec<Identity> {
        vec![self.owner.into()]
    }

    fn check(&self) -> Result<(), String> {
        let mut last = 0;
        for run in &self.runs {
            let PageRun { address, count, .. } = *run;
            let end = count.checked_mul(4096).and_then(|length| address.checked_add(length));
            let Some(end) = end.filter(|&end| end > address && address % 4096 == 0) else {
                return Err(format!("run of {count} pages at {address:#x} is no range of pages"));
            };
            if address < last {
                return Err(format!("run at {address:#x} overlaps the one before or is out of order"));
            }
            last = end;
        }
        Ok(())
    }
}
