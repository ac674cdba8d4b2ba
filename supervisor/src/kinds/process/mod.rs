//! Process and process status (kinds 9 and 14): thread groups, their place in the tree, sessions and groups, and
//! whether they run, are stopped, or have ended.
//!
//! Restored as puppets that make one another: each process starts as a child of its parent, or of a sibling with which it
//! shares something, with its own ID, in a session that it founds or inherits. One whose parent and session only the end
//! of another process explains is adopted: such a process is made, makes it, and ends. Groups without a leader are founded
//! by a process that ends when all are in them. One that has ended is a puppet that takes its name and rights, and ends the
//! same way.

pub mod ended;
pub mod family;
pub mod groups;
pub mod make;
pub mod observe;
pub mod plan;
mod segments;
pub mod sessions;
pub mod values;

use crate::kinds::KindEntry;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "process", observe: observe::observe, plan: plan::plan };
