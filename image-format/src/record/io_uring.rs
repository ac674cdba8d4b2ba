//! io_uring (kind 110): rings of requests and completions that a program shares with the kernel; see io_uring(7).

use super::description::Description;
use super::{Kind, Record};
use crate::id::{DescriptionId, Identity, RingId, TaskId};
use serde::{Deserialize, Serialize};

/// An io_uring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoUring {
    /// Its identity.
    pub id: RingId,
    /// What every description has.
    pub description: Description,
    /// The thread that makes it: the only one that may submit, if there is only one.
    pub maker: TaskId,
    /// Flags of `io_uring_setup(2)`, as far as they can be known: those of [`IoUring::FLAGS`].
    pub flags: u32,
    /// Requests that the submission ring has room for.
    pub submission_entries: u32,
    /// Completions that the completion ring has room for.
    pub completion_entries: u32,
    /// How many requests the kernel has taken since it was made; begins anew after 2^32.
    pub taken: u32,
    /// How many completions the kernel has given since it was made; begins anew after 2^32.
    pub given: u32,
    /// Content of the rings (`struct io_rings`, completions, the array of the submission ring if there is one).
    #[serde(with = "crate::bytes")]
    pub rings: Vec<u8>,
    /// Content of the entries of the submission ring (`struct io_uring_sqe`).
    #[serde(with = "crate::bytes")]
    pub entries: Vec<u8>,
    /// Requests that the kernel has taken and not done, the oldest first: their entries.
    #[serde(with = "crate::bytes")]
    pub under_way: Vec<u8>,
    /// The table of registered files; none for a place that is free.
    pub files: Vec<Option<DescriptionId>>,
    /// Registered buffers: address and length; 0 and 0 for a place that is free.
    pub buffers: Vec<(u64, u64)>,
    /// The registered eventfd.
    pub event: Option<DescriptionId>,
    /// The threads that have it registered, and the numbers under which they have.
    pub registered: Vec<(TaskId, u32)>,
}

/// Most entries of a submission ring (`IORING_MAX_ENTRIES`); a completion ring may have twice as many.
const MAXIMUM_ENTRIES: u32 = 32768;
/// Most places of a table of files or buffers.
const MAXIMUM_REGISTERED: usize = 1 << 20;
/// Rings that a task may have registered (`IO_RINGFD_REG_MAX`).
const MAXIMUM_RINGS: u32 = 16;

impl IoUring {
    /// `IORING_SETUP_SQPOLL`: a thread of the kernel takes the requests.
    pub const POLLED: u32 = 1 << 1;
    /// `IORING_SETUP_SQE128`.
    pub const LARGE_ENTRIES: u32 = 1 << 10;
    /// `IORING_SETUP_CQE32`.
    pub const LARGE_COMPLETIONS: u32 = 1 << 11;
    /// `IORING_SETUP_SINGLE_ISSUER`.
    pub const SINGLE_ISSUER: u32 = 1 << 12;
    /// `IORING_SETUP_DEFER_TASKRUN`.
    pub const DEFERRED: u32 = 1 << 13;
    /// `IORING_SETUP_NO_SQARRAY`.
    pub const NO_ARRAY: u32 = 1 << 16;
    /// All that can be known.
    pub const FLAGS: u32 = Self::POLLED
        | Self::LARGE_ENTRIES
        | Self::LARGE_COMPLETIONS
        | Self::SINGLE_ISSUER
        | Self::DEFERRED
        | Self::NO_ARRAY;
    /// Most requests that are taken, or completions that are given, when a ring is made anew: it takes a second for
    /// every ten million or so.
    pub const MAXIMUM_TURNS: u32 = 50_000_000;
    /// Most of them in all rings of an image.
    pub const MAXIMUM_TURNS_OF_ALL: u64 = 4 * Self::MAXIMUM_TURNS as u64;
    /// Most completions that are given without a request: it takes a second for every million.
    pub const MAXIMUM_EXTRA: u32 = 5_000_000;
    /// Where the completions begin in the rings (`struct io_rings`).
    pub const COMPLETIONS: usize = 64;

    /// Bytes of an entry of the submission ring.
    #[must_use]
    pub const fn entry_length(flags: u32) -> usize {
        if flags & Self::LARGE_ENTRIES != 0 { 128 } else { 64 }
    }

    /// Bytes of a completion.
    #[must_use]
    pub const fn completion_length(flags: u32) -> usize {
        if flags & Self::LARGE_COMPLETIONS != 0 { 32 } else { 16 }
    }

    /// Where the array of the submission ring begins, or would begin.
    #[must_use]
    pub const fn array(flags: u32, completion_entries: u32) -> usize {
        let head = if flags & Self::LARGE_COMPLETIONS != 0 { 2 } else { 1 } * Self::COMPLETIONS;
        (head + completion_entries as usize * Self::completion_length(flags)).next_multiple_of(64)
    }

    /// Bytes of the rings.
    #[must_use]
    pub const fn rings_length(flags: u32, submission_entries: u32, completion_entries: u32) -> usize {
        let array = Self::array(flags, completion_entries);
        if flags & Self::NO_ARRAY != 0 { array } else { array + submission_entries as usize * 4 }
    }

    /// How many requests are taken, or completions given, when it is made anew.
    #[must_use]
    pub const fn turns(&self) -> u64 {
        if self.taken > self.given { self.taken as u64 } else { self.given as u64 }
    }

    /// Whether it can be made anew in a few seconds.
    #[must_use]
    pub const fn is_feasible(&self) -> bool {
        let extra = self.given.saturating_sub(self.taken);
        self.taken <= Self::MAXIMUM_TURNS && self.given <= Self::MAXIMUM_TURNS && extra <= Self::MAXIMUM_EXTRA
    }

    /// How many requests are under way.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.under_way.len() / Self::entry_length(self.flags)
    }
}

/// Whether a request is one of those that a restore submits again: `IORING_OP_POLL_ADD`, `TIMEOUT`, `ACCEPT`, `READ`, `RECV`,
/// which are not linked with others and wait for none.
fn is_asked_again(entry: &[u8]) -> bool {
    const KINDS: [u8; 5] = [6, 11, 13, 22, 27];
    /// `IOSQE_IO_DRAIN`, `IOSQE_IO_LINK`, `IOSQE_IO_HARDLINK`, `IOSQE_BUFFER_SELECT`.
    const ENTANGLED: u8 = 2 | 4 | 8 | 32;
    entry.first().is_some_and(|kind| KINDS.contains(kind))
        && entry.get(1).is_some_and(|flags| flags & ENTANGLED == 0)
}

impl Record for IoUring {
    const KIND: Kind = Kind::IoUring;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("io_uring with {} entries, {} requests under way", self.submission_entries, self.requests())
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into(), self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let mut identities = self.description.refers();
        identities.push(self.maker.into());
        identities.extend(self.files.iter().chain([&self.event]).flatten().map(|&id| Identity::from(id)));
        identities.extend(self.registered.iter().map(|&(task, _)| Identity::from(task)));
        identities
    }

    fn check(&self) -> Result<(), String> {
        let (sq, cq) = (self.submission_entries, self.completion_entries);
        if !sq.is_power_of_two() || !cq.is_power_of_two() || sq > MAXIMUM_ENTRIES || cq > 2 * MAXIMUM_ENTRIES
        {
            return Err(format!("{sq} and {cq} entries are out of range"));
        }
        if cq < sq || self.flags & !Self::FLAGS != 0 {
            return Err("the setup is out of range".to_owned());
        }
        if self.flags & Self::DEFERRED != 0 && self.flags & Self::SINGLE_ISSUER == 0 {
            return Err("completions wait for a thread that is not known".to_owned());
        }
        let length = Self::entry_length(self.flags);
        if self.rings.len() != Self::rings_length(self.flags, sq, cq)
            || self.entries.len() != sq as usize * length
        {
            return Err("the rings are not as large as they say".to_owned());
        }
        if !self.is_feasible() {
            return Err("the ring has turned too often".to_owned());
        }
        if !self.under_way.len().is_multiple_of(length) || self.requests() > self.taken.min(sq) as usize {
            return Err("more requests are under way than were taken".to_owned());
        }
        if self.under_way.chunks_exact(length).any(|entry| !is_asked_again(entry)) {
            return Err("a request is under way that is never submitted again".to_owned());
        }
        // The kernel's thread would take them at once, with the rights of whoever restores.
        let prepared = self.rings.get(4..8).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        if self.flags & Self::POLLED != 0 && prepared != Some(self.taken) {
            return Err("requests are prepared for a thread of the kernel".to_owned());
        }
        if self.files.len() > MAXIMUM_REGISTERED || self.buffers.len() > MAXIMUM_REGISTERED {
            return Err("too much is registered".to_owned());
        }
        if self.registered.iter().any(|&(_, number)| number >= MAXIMUM_RINGS) {
            return Err("the number of a registered ring is out of range".to_owned());
        }
        self.description.check()
    }
}
