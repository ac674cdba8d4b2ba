//! How far a dump or restore is: told to whoever called, who decides what to show.

use std::ops::ControlFlow;

/// A step forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done: `freeze`, `observe`, `pages`, `seal`, `verify`, `tasks`, `memory`.
    pub phase: &'static str,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all, 0 if that is not known or means nothing.
    pub total: u64,
}

/// Who follows a restore, and may end it by a break: then nothing is left of it.
pub type Follow<'follower> = dyn FnMut(Progress) -> ControlFlow<()> + 'follower;
