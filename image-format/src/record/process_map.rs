//! Process map (kind 18): the layout of an address space: its mappings and the addresses that the kernel keeps.

use super::schedule_control::{MAXIMUM_MASK_WORDS, MemoryPolicy};
use super::{Kind, Record};
use crate::id::{Identity, MemoryId, NamelessFileId, RingId, SegmentId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// The first address that no program can have: 47 bits, less the last page.
const USER_END: u64 = 0x7fff_ffff_f000;
/// The highest protection key.
const HIGHEST_KEY: u8 = 15;
/// The binary logarithm of the size of the largest pages (16 GiB, of other architectures).
pub(super) const LARGEST_PAGE: u8 = 34;

/// Mappings of one memory, in the order of their addresses. A memory with many mappings has several such records; the
/// first one has the [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMap {
    /// The memory.
    pub memory: MemoryId,
    /// What the kernel keeps about it; in the first record only.
    pub layout: Option<Layout>,
    /// Mappings that follow those of the record before.
    pub mappings: Vec<Mapping>,
}

/// `struct prctl_mm_map`, the executable, and the auxiliary vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Start and end of the code.
    pub code: (u64, u64),
    /// Start and end of the data.
    pub data: (u64, u64),
    /// Start and current end of the heap.
    pub heap: (u64, u64),
    /// Start of the stack.
    pub stack: u64,
    /// Start and end of the arguments.
    pub arguments: (u64, u64),
    /// Start and end of the environment.
    pub environment: (u64, u64),
    /// `/proc/<pid>/auxv`.
    pub auxiliary_vector: Vec<u8>,
    /// The executable (`/proc/<pid>/exe`).
    pub executable: MappedFile,
    /// What `mlockall(2)` has asked for memory that is mapped later: `MCL_FUTURE`, `MCL_ONFAULT`; else 0.
    pub lock_future: u32,
    /// Its protection keys.
    pub keys: ProtectionKeys,
}

/// The protection keys of a memory (pkeys(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectionKeys {
    /// The keys that are allocated, one bit each; key 0 always is, and has no bit.
    pub allocated: u16,
    /// The one that the kernel has taken for memory that can only be executed; 0 for none.
    pub execute_only: u8,
}

/// A mapping (`struct vm_area_struct`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC`.
    pub protection: u8,
    /// Whether writes are shared (`MAP_SHARED`).
    pub shared: bool,
    /// The flags of [`flag`].
    pub flags: u32,
    /// What it maps.
    pub source: Source,
    /// The name given by `PR_SET_VMA_ANON_NAME`.
    pub name: Option<Text>,
    /// Its protection key.
    pub protection_key: u8,
    /// Where its pages are to be (`mbind(2)`); none for the default.
    pub policy: Option<MemoryPolicy>,
    /// The binary logarithm of the size of its pages if they are huge (hugetlbfs), else 0.
    pub huge_page: u8,
}

/// Attributes of a [`Mapping`].
pub mod flag {
    /// Grows down (`gd`).
    pub const GROWS_DOWN: u32 = 1 << 0;
    /// Locked in memory (`lo`).
    pub const LOCKED: u32 = 1 << 1;
    /// Read in sequence (`sr`).
    pub const SEQUENTIAL_READ: u32 = 1 << 2;
    /// Read at random (`rr`).
    pub const RANDOM_READ: u32 = 1 << 3;
    /// Not copied on fork (`dc`).
    pub const DO_NOT_COPY: u32 = 1 << 4;
    /// No swap space reserved (`nr`).
    pub const NO_RESERVE: u32 = 1 << 5;
    /// Not in core dumps (`dd`).
    pub const DO_NOT_DUMP: u32 = 1 << 6;
    /// Huge pages advised (`hg`).
    pub const HUGE_PAGE: u32 = 1 << 7;
    /// Huge pages refused (`nh`).
    pub const NO_HUGE_PAGE: u32 = 1 << 8;
    /// May be merged with equal pages (`mg`).
    pub const MERGEABLE: u32 = 1 << 9;
    /// Zeroed in children (`wf`).
    pub const WIPE_ON_FORK: u32 = 1 << 10;
    /// May be thrown away (`dp`); its content is never stored.
    pub const DROPPABLE: u32 = 1 << 11;
    /// Locked when touched (`lf`).
    pub const LOCKED_ON_FAULT: u32 = 1 << 12;
    /// Counted against the commit limit (`ac`).
    pub const ACCOUNTED: u32 = 1 << 13;
    /// Sealed: it can't be unmapped, moved or changed any more (`sl`).
    pub const SEALED: u32 = 1 << 14;
    /// May have guard regions (`gu`); which pages they are is told by the runs of its pages.
    pub const GUARDS: u32 = 1 << 15;
    /// A mapping of a segment that can never be made writable: its descriptor was read-only, or the segment is sealed.
    pub const READ_ONLY: u32 = 1 << 16;
}

/// What a [`Mapping`] maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Private anonymous memory.
    Anonymous,
    /// A file.
    File {
        /// The file.
        file: MappedFile,
        /// Offset of the first byte in it.
        offset: u64,
    },
    /// A segment of shared memory.
    Segment {
        /// The segment.
        segment: SegmentId,
        /// Offset of the first byte in it.
        offset: u64,
    },
    /// A mapping that the kernel makes by itself: `[vdso]`, `[vvar]`, `[vvar_vclock]`, `[vsyscall]`.
    Kernel {
        /// Its name in `/proc/<pid>/maps`.
        name: String,
    },
    /// The ring of a context of asynchronous input and output (`io_setup(2)`).
    Ring(Ring),
    /// A part of an io_uring.
    IoUring {
        /// The io_uring.
        ring: RingId,
        /// `IORING_OFF_SQ_RING`, `IORING_OFF_CQ_RING` or `IORING_OFF_SQES`, and what lies behind.
        offset: u64,
    },
}

/// A context of asynchronous input and output, by what is in its ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Events that the ring has room for.
    pub capacity: u32,
    /// The place of the first event that was not fetched yet.
    pub head: u32,
    /// The place of the next event.
    pub tail: u32,
    /// The events from head to tail (`struct io_event`, 32 bytes each).
    pub events: Vec<u8>,
}

impl Ring {
    /// Bytes of an event, and of what stands before the first.
    pub const EVENT: usize = 32;

    fn is_sound(&self, length: u64) -> bool {
        let Self { capacity, head, tail, .. } = *self;
        let waiting =
            u64::from(if head <= tail { tail - head } else { capacity.saturating_sub(head) + tail });
        head < capacity
            && tail < capacity
            && self.events.len() as u64 == waiting * Self::EVENT as u64
            && (u64::from(capacity) + 1) * Self::EVENT as u64 <= length
    }
}

/// A file behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MappedFile {
    /// Its path when it was dumped.
    pub path: Text,
    /// Set when the content travels in the image: the name is gone or leads to another file, or that was asked for.
    pub nameless: Option<NamelessFileId>,
    /// Whether the file was there, so that the content in the image is only needed where it is not.
    pub embedded: bool,
    /// Its size in bytes.
    pub size: u64,
    /// Its modification time, in nanoseconds since 1970.
    pub modified: i64,
    /// Whether the mapping needs the file open for writing.
    pub writable: bool,
}

impl Record for ProcessMap {
    const KIND: Kind = Kind::ProcessMap;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        format!("memory {} with {} mappings", self.memory, self.mappings.len())
    }

    fn defines(&self) -> Vec<Identity> {
        if self.layout.is_some() { vec![self.memory.into()] } else { Vec::new() }
    }

    fn refers(&self) -> Vec<Identity> {
        let mut identities = vec![self.memory.into()];
        let executable = self.layout.iter().map(|layout| &layout.executable);
        let mapped = self.mappings.iter().filter_map(|mapping| match &mapping.source {
            Source::File { file, .. } => Some(file),
            Source::Anonymous
            | Source::Segment { .. }
            | Source::Kernel { .. }
            | Source::Ring(_)
            | Source::IoUring { .. } => None,
        });
        identities.extend(executable.chain(mapped).filter_map(|file| file.nameless).map(Identity::from));
        identities.extend(self.mappings.iter().filter_map(|mapping| match &mapping.source {
            Source::Segment { segment, .. } => Some(Identity::from(*segment)),
            Source::IoUring { ring, .. } => Some(Identity::from(*ring)),
            Source::Anonymous | Source::File { .. } | Source::Kernel { .. } | Source::Ring(_) => None,
        }));
        identities
    }

    fn check(&self) -> Result<(), String> {
        let mut last = 0;
        for mapping in &self.mappings {
            let Mapping { start, end, .. } = *mapping;
            let kernels = matches!(&mapping.source, Source::Kernel { name } if name == "[vsyscall]");
            if end > USER_END && !kernels {
                return Err(format!("mapping {start:#x}-{end:#x} is beyond what a program can have"));
            }
            if start % 4096 != 0 || end % 4096 != 0 || start >= end {
                return Err(format!("mapping {start:#x}-{end:#x} is no range of pages"));
            }
            if start < last {
                return Err(format!(
                    "mapping {start:#x}-{end:#x} overlaps the one before or is out of order"
                ));
            }
            last = end;
            let policy =
                mapping.policy.as_ref().is_some_and(|policy| policy.nodes.len() > MAXIMUM_MASK_WORDS);
            if policy || mapping.protection_key > HIGHEST_KEY || mapping.huge_page > LARGEST_PAGE {
                return Err(format!("mapping {start:#x}-{end:#x} has attributes that are out of range"));
            }
            if let Source::Ring(ring) = &mapping.source
                && !ring.is_sound(end - start)
            {
                return Err(format!("the ring at {start:#x} is not as large as it says"));
            }
        }
        if self.layout.as_ref().is_some_and(|layout| layout.keys.execute_only > HIGHEST_KEY) {
            return Err("there is no protection key of that number".to_owned());
        }
        Ok(())
    }
}
