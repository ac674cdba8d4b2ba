//! Inotify instances: see inotify(7).
//!
//! - **Saved**: all watches with their numbers, events and flags. A watch is found again by a description of the tree
//!   that leads to the same file, or by path.
//! - **Not saved**: events that were not read: they can't be looked at without being taken. The program gets the event
//!   that says so (`IN_Q_OVERFLOW`), as if there had been too many, and the report tells it.
//! - **Refused**: a watch on something that is not found.
//! - **Kernel**: `inotify` lines in `fdinfo` (3.8), `INOTIFY_IOC_SETNEXTWD` (4.18, `CONFIG_CHECKPOINT_RESTORE`).
//!
//! Watches are added when all else is done, so that they don't see the restore.

pub mod observe;
pub mod restore;

use super::opened::Opened;

/// Whether it is an inotify instance.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("inotify")
}
