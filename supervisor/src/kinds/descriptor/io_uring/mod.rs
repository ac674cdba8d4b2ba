//! io_uring: rings of requests and completions that a program shares with the kernel; see io_uring(7).
//!
//! The kernel counts by itself how many requests it has taken and how many completions it has given, and the program
//! has these numbers too. So a new ring is wound up: it does as many requests that do nothing, and as many completions,
//! until both counts are where they were ([`wind`]); then it gets the content of the old one.
//!
//! - **Saved**: the rings with the completions that were not seen yet and the requests that were not submitted yet;
//!   who may submit; registered files, buffers, eventfds and rings.
//! - **Requests under way** are found by what the rings still hold: the entries of the last requests, and the last
//!   completions ([`under_way`]). Those that wait for something are made again; others are waited for.
//! - **Set anew**: how completions are announced to a thread that runs (`IORING_SETUP_COOP_TASKRUN`: at once), what
//!   follows a request that can't be submitted (`IORING_SETUP_SUBMIT_ALL`: the next), how long the kernel's thread waits
//!   for requests before it sleeps, and on which processor it is.
//! - **Not seen**: the limits of the kernel's workers and their processors (`IORING_REGISTER_IOWQ_…`), the clock of
//!   waits (`IORING_REGISTER_CLOCK`), and on this kernel registered credentials (`IORING_REGISTER_PERSONALITY`).
//! - **Refused**: see [`observe`] and [`ask`].
//! - **Kernel**: developed for 6.18. The parts of the rings have had their places since 5.4.

pub mod ask;
pub mod layout;
pub mod made;
mod map;
pub mod observe;
mod register;
pub mod restore;
pub mod rights;
mod sound;
pub mod under_way;
pub mod wind;

use super::opened::Opened;
use crate::error::{Error, Result, code};
use crate::proc::maps::MapLine;
use crate::records::Records;
use crate::sys::io_uring::{ENTRIES, RINGS};
pub use restore::plan_places;
use vckpt_image_format::record::process_map::Source;

/// What a program may map (`IORING_OFF_CQ_RING` shows the same as the submission ring), from its beginning on.
const PARTS: [u64; 3] = [RINGS, 0x800_0000, ENTRIES];

/// Whether it is an io_uring.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("io_uring")
}

/// Whether a mapping is one of an io_uring.
#[must_use]
pub fn is_mapped(line: &MapLine) -> bool {
    line.name == b"anon_inode:[io_uring]"
}

/// What a mapping of an io_uring shows.
///
/// # Errors
/// [`code::MAPPING`] if it is neither the rings nor the entries.
pub fn source(line: &MapLine, records: &mut Records) -> Result<Source> {
    if !PARTS.contains(&line.offset) {
        let what = "it has mapped buffers of an io_uring that the kernel has made, or a piece of its rings";
        return Err(Error::new(code::MAPPING, what));
    }
    Ok(Source::IoUring { ring: records.ring((line.device, line.inode)), offset: line.offset })
}
