//! Process and process status (kinds 9 and 14): thread groups, their place in the tree, sessions and groups, and
//! whether they run, are stopped, or have ended.
//!
//! Restored as puppets that make one another: each process starts as a child of its parent, with its own ID, in a
//! session that it founds or inherits. Not yet: sessions and groups whose leader has ended, or of a shape that the
//! order of births can't explain; these are refused before anything is made.

pub mod make;
pub mod observe;
pub mod plan;

use crate::kinds::KindEntry;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "process", observe: observe::observe, plan: plan::plan };
