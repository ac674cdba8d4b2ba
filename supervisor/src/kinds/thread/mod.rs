//! Lightweight process (kind 20): threads: registers and extended state, thread-local pointers, names, and the call
//! that each was in.
//!
//! An interrupted call is kept as the kernel keeps it: its number in `orig_rax`, one of `-ERESTART…` in `rax`, so that
//! the kernel itself makes it again after the restore. Where the kernel keeps a deadline in a restart block
//! (`-ERESTART_RESTARTBLOCK`), the restored thread makes the call with the time that was left, and is interrupted
//! again: then the kernel has such a block again.

pub mod dispatch;
pub mod observe;
pub mod release;
pub mod restore;
pub mod wait;

use crate::kinds::KindEntry;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "thread", observe: observe::observe, plan: restore::plan };
