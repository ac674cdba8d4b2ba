//! Pipes and FIFOs: see pipe(7) and fifo(7).
//!
//! - **Saved**: the ends that are open with their flags, the capacity, and the data that waits, with the borders of
//!   packets. That one side is closed is kept too: a reader then gets its data and the end of file.
//! - **Outside of the tree**: a pipe whose other side is open there, as that of a shell's pipeline or of a runner that
//!   keeps a log. It is the same pipe again as long as somebody has it; else see [`outside`].
//! - **Not exact**: an end of a pipe that leads outside is opened, and so has `O_LARGEFILE` in `F_GETFL`, which means
//!   nothing.
//! - **Not seen**: that somebody outside of the tree has the *same* end open.
//! - **Kernel**: `tee(2)` copies the data without taking it out.

pub mod observe;
pub mod outside;
pub mod restore;
pub mod search;

use super::opened::Opened;

/// Whether it is a pipe or FIFO.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.file_type() == libc::S_IFIFO
}
