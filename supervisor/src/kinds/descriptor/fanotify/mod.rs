//! Fanotify groups: see fanotify(7).
//!
//! - **Saved**: flags, and the marks on files, directories, mounts and file systems.
//! - **Not saved**: events that were not read, which the report tells.
//! - **Refused**: a mark on something that is not found; a group that is asked for permission and has not answered.
//! - **Kernel**: `fanotify` lines in `fdinfo` (3.8).
//!
//! Marks are added when all else is done, so that they don't see the restore.

pub mod observe;
pub mod restore;

use super::opened::Opened;

/// Whether it is a fanotify group.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("fanotify")
}
