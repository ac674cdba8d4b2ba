//! Shared segment (kind 68): memory that several mappings or descriptors share: shared anonymous memory, memfds, secret
//! memory, System V segments.
//!
//! Saved: size, content, huge pages; of a memfd its name and seals; of a System V segment its ID, key, owner and mode,
//! and whether it is removed or locked. Anonymous memory is made by this program and opened through
//! `/proc/self/map_files`; without the right to do that it becomes a memfd, which differs in its name only.
//!
//! A System V segment that is still there is taken as it is if processes outside of the tree have it attached, and gets
//! the content of the image if nobody has. A missing one is made with its old ID (`shm_next_id`), which takes privileges.
//!
//! Not saved: the content of secret memory (`memfd_secret(2)`), which the kernel shows to nobody; System V segments that
//! no process of the tree has attached; who made a System V segment, and when. Not here: POSIX shared memory, which is
//! files.

pub mod observe;
pub mod restore;
pub mod system_v;

use crate::kinds::KindEntry;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "segment", observe: observe::observe, plan: restore::plan };
