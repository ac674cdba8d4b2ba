//! Process map and mmap memory (kinds 18 and 17): the layout of an address space, and the pages in it.
//!
//! Saved: every mapping with its protection, attributes and source; the kernel's own addresses (`struct prctl_mm_map`);
//! of private memory the pages that differ from what the mapping gives by itself. Pages that a child shares with its
//! parent by copy-on-write are stored once, and shared again after the restore.
//!
//! Also: guard regions, protection keys, memory policies, locks, advice, seals, huge pages; rings of asynchronous I/O
//! with the events that wait in them; and the files behind private mappings, if that is asked for.
//!
//! Not saved: the content of shared file mappings (it is in the file), of droppable mappings, and of the mappings that
//! the kernel makes by itself (`[vdso]` and its data), which are only moved to their old place; requests of
//! asynchronous I/O that are under way.
//!
//! Needs `PAGEMAP_SCAN` (Linux 6.7); guard regions are seen from Linux 6.16 on.

pub mod attributes;
pub mod build;
mod by_memory;
pub mod fill;
mod layout;
pub mod mapped_file;
pub mod observe;
pub mod pages;
pub mod plan;
mod policy;
mod ring;
pub mod sharing;
mod source;

use crate::kinds::KindEntry;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "memory", observe: observe::observe, plan: plan::plan };
