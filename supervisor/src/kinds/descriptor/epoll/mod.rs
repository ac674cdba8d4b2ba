//! Epoll sets: see epoll(7).
//!
//! An entry belongs to an open file description *and* the number under which it was added; the number may lead
//! elsewhere by now.
//!
//! - **Saved**: all entries with events and data; one-shot entries that have fired stay disabled.
//! - **Edges**: if a set has nothing to tell, every edge was told, and is not told again.
//! - **Not saved**: which edges were told in a set that has something to tell: those that are ready are told once more.
//! - **Refused**: an entry whose description no process of the tree has any more.
//! - **Kernel**: `tfd` lines in `fdinfo` (3.8), `KCMP_EPOLL_TFD` (4.13).
//!
//! Entries are added by a process that has the set, when all descriptors are in their places.

pub mod observe;
pub mod restore;

use super::opened::Opened;

/// Whether it is an epoll set.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("eventpoll")
}
