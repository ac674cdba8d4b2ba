//! Winding a new ring up: it takes requests that do nothing and gives completions, until both counts are where they were.
//!
//! Nothing else than requests moves the kernel's counts. A program that has used `IOSQE_CQE_SKIP_SUCCESS` has taken more
//! than it has given, and so does the new ring; completions without a request of the ring itself come from messages of
//! another ring (`IORING_OP_MSG_RING`).

use super::layout::word;
use super::made::MadeRing;
use crate::error::{Error, Result, code};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use crate::sys::io_uring::{self, ENTRIES, GET_EVENTS, PARAMETERS, RINGS, WAKE_UP, Window};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use vckpt_image_format::record::io_uring::IoUring;

/// `IOSQE_CQE_SKIP_SUCCESS`.
const SILENT: u8 = 64;
/// `IORING_OP_MSG_RING`.
const MESSAGE: u8 = 40;
/// Messages that are sent at a time.
const SOME: u32 = 4096;
/// Bytes of a page, with all counts in it.
const PAGE: u64 = 4096;
/// Calls for turns in one batch.
const TURN_CALLS: u32 = 1000;
/// `FUTEX_WAKE_OP` of a word that only this process uses.
const WAKE_OP: i32 = 5 | 128;
/// `FUTEX_OP_ADD` with `FUTEX_OP_OPARG_SHIFT`: adds the power of two that follows.
const ADD: u32 = 9 << 28;
/// Requests that the kernel has taken.
pub const TAKEN: usize = 0;
/// Requests that the program has prepared.
pub const PREPARED: usize = 4;
/// Completions that the program has seen.
pub const SEEN: usize = 8;
/// Completions that the kernel has given.
pub const GIVEN: usize = 12;
/// For how long a thread of the kernel may do nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A ring that is being wound up.
#[derive(Debug)]
pub struct Winding<'ring> {
    /// What it shall be.
    pub record: &'ring IoUring,
    /// The new ring.
    pub ring: &'ring OwnedFd,
    /// Its number in the process that makes it.
    pub number: i32,
    /// Its rings.
    pub rings: Window,
    /// Its entries.
    pub entries: Window,
}

/// The error for a ring that can't be made.
#[must_use]
pub fn failed(what: &str, errno: Errno) -> Box<Error> {
    Error::system(code::DESCRIPTOR_RESTORE, what, errno)
}

impl<'ring> Winding<'ring> {
    /// A new ring with its memory in sight.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn begin(record: &'ring IoUring, made: &'ring MadeRing) -> Result<Self> {
        let ring = &made.ring;
        let map = |offset, length: usize| {
            Window::map(ring.as_fd(), offset, length).map_err(|errno| failed("mapping an io_uring", errno))
        };
        let (rings, entries) = (map(RINGS, record.rings.len())?, map(ENTRIES, record.entries.len())?);
        Ok(Self { record, ring, number: made.number, rings, entries })
    }

    /// Writes to the rings.
    ///
    /// # Errors
    /// [`code::MEMORY_ACCESS`].
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.rings
            .write(at, bytes)
            .map_err(|errno| Error::system(code::MEMORY_ACCESS, "writing to an io_uring", errno))
    }

    /// Writes to the entries.
    ///
    /// # Errors
    /// [`code::MEMORY_ACCESS`].
    pub fn write_entries(&self, bytes: &[u8]) -> Result<()> {
        self.entries
            .write(0, bytes)
            .map_err(|errno| Error::system(code::MEMORY_ACCESS, "writing to an io_uring", errno))
    }

    /// A word of the rings.
    ///
    /// # Errors
    /// [`code::MEMORY_ACCESS`].
    pub fn word(&self, at: usize) -> Result<u32> {
        let mut bytes = [0; 4];
        let read = self.rings.read(at, &mut bytes);
        read.map_err(|errno| Error::system(code::MEMORY_ACCESS, "reading from an io_uring", errno))?;
        Ok(word(&bytes, 0))
    }

    /// Says in the array, if there is one, that each request is in the place of its number.
    ///
    /// # Errors
    /// As [`Winding::write`].
    pub fn straighten(&self) -> Result<()> {
        let record = self.record;
        if record.flags & IoUring::NO_ARRAY != 0 {
            return Ok(());
        }
        let places: Vec<u8> = (0..record.submission_entries).flat_map(u32::to_le_bytes).collect();
        self.write(IoUring::array(record.flags, record.completion_entries), &places)
    }

    /// Winds it up, all but the requests under way.
    ///
    /// # Errors
    /// What the kernel says, or [`code::HOST_FEATURE`] if it does something else than what was asked for.
    pub fn wind(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let record = self.record;
        let requests = u32::try_from(record.requests()).unwrap_or(0);
        let taken = record.taken.saturating_sub(requests);
        self.straighten()?;
        self.turn(restoring, taken.min(record.given), false)?;
        if taken > record.given {
            self.write_entries(&self.nothing(SILENT))?;
            self.turn(restoring, taken - record.given, true)?;
        } else {
            self.tell(restoring, record.given - taken)?;
        }
        let now = (self.word(TAKEN)?, self.word(GIVEN)?);
        if now == (taken, record.given) {
            return Ok(());
        }
        Err(Error::new(code::HOST_FEATURE, "this kernel counts the requests of an io_uring in another way")
            .because(format!("{now:?} instead of {:?}", (taken, record.given))))
    }

    /// Entries of requests that do nothing (`IORING_OP_NOP` is 0).
    fn nothing(&self, flags: u8) -> Vec<u8> {
        let length = IoUring::entry_length(self.record.flags);
        let mut bytes = vec![0; self.record.entries.len()];
        bytes.chunks_mut(length).filter_map(|entry| entry.get_mut(1)).for_each(|byte| *byte = flags);
        bytes
    }

    /// Has requests taken, and takes their completions: as many at a time as there is room for completions.
    fn turn(&self, restoring: &mut Restoring<'_>, count: u32, is_silent: bool) -> Result<()> {
        let room = self.record.completion_entries;
        let is_polled = self.record.flags & IoUring::POLLED != 0;
        // So many requests a turn that none fits into a batch are submitted part by part.
        let by_batches = !is_polled && room / self.record.submission_entries < TURN_CALLS;
        if by_batches {
            self.turn_from_inside(restoring, count / room, is_silent)?;
        }
        let mut left = if by_batches { count % room } else { count };
        while left > 0 {
            let some = left.min(room);
            let (prepared, seen) = (self.word(TAKEN)?.wrapping_add(some), self.word(SEEN)?);
            self.write(PREPARED, &prepared.to_le_bytes())?;
            if is_polled {
                self.let_work(prepared, seen.wrapping_add(if is_silent { 0 } else { some }))?;
            } else {
                let entries = self.record.submission_entries;
                for part in (0..some).step_by(entries as usize) {
                    self.enter_from_inside(restoring, (some - part).min(entries))?;
                }
            }
            let given = self.word(GIVEN)?;
            self.write(SEEN, &given.to_le_bytes())?;
            left -= some;
        }
        Ok(())
    }

    /// Many turns in few batches: the maker submits as many requests as there is room for completions, and says then that
    /// it has seen them, by a call that adds to a word of its memory (`FUTEX_WAKE_OP`, which wakes nobody).
    fn turn_from_inside(&self, restoring: &mut Restoring<'_>, turns: u32, is_silent: bool) -> Result<()> {
        if turns == 0 {
            return Ok(());
        }
        let (none, length, maker) = (0.into(), PAGE.into(), self.record.maker);
        let mut batch = Batch::new();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let arguments =
            [none, length, protection.into(), libc::MAP_SHARED.into(), self.number.into(), RINGS.into()];
        let mapped = batch.must("mapping an io_uring", libc::SYS_mmap, arguments);
        let rings = restoring.run(maker, &batch)?.get(mapped).unwrap_or(0);
        let seen = (!is_silent).then_some(rings + SEEN as u64);
        let calls = self.record.completion_entries / self.record.submission_entries + 1;
        let most = (TURN_CALLS / calls).max(1);
        for first in (0..turns).step_by(most as usize) {
            self.some_turns(restoring, (turns - first).min(most), seen)?;
        }
        let mut batch = Batch::new();
        batch.must("unmapping an io_uring", libc::SYS_munmap, [rings.into(), length]);
        restoring.run(maker, &batch).map(drop)
    }

    /// Some turns; `seen` is the address of the count of completions that were seen, if there are any.
    fn some_turns(&self, restoring: &mut Restoring<'_>, turns: u32, seen: Option<u64>) -> Result<()> {
        let (entries, room) = (self.record.submission_entries, self.record.completion_entries);
        let prepared = self.word(TAKEN)?.wrapping_add(turns * room);
        self.write(PREPARED, &prepared.to_le_bytes())?;
        let mut batch = Batch::new();
        let none = 0.into();
        for _ in 0..turns {
            for _ in 0..room / entries {
                let arguments = [self.number.into(), entries.into(), none, GET_EVENTS.into(), none, none];
                batch.must("submitting requests of an io_uring", libc::SYS_io_uring_enter, arguments);
            }
            if let Some(seen) = seen {
                let add = ADD | room.ilog2() << 12;
                let arguments = [seen.into(), WAKE_OP.into(), none, none, seen.into(), add.into()];
                batch.must("taking completions of an io_uring", libc::SYS_futex, arguments);
            }
        }
        restoring.run(self.record.maker, &batch).map(drop)
    }

    /// Submits requests that are prepared, by the thread that may.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn submit(&self, restoring: &mut Restoring<'_>, count: u32, until: u32) -> Result<()> {
        let flags = self.record.flags;
        if flags & IoUring::POLLED != 0 {
            return self.let_work(until, self.word(GIVEN)?);
        }
        self.enter_from_inside(restoring, count)
    }

    /// Lets the maker submit what is prepared.
    fn enter_from_inside(&self, restoring: &mut Restoring<'_>, entries: u32) -> Result<()> {
        let mut batch = Batch::new();
        let none = 0.into();
        let arguments = [self.number.into(), entries.into(), none, GET_EVENTS.into(), none, none];
        batch.must("submitting requests of an io_uring", libc::SYS_io_uring_enter, arguments);
        restoring.run(self.record.maker, &batch).map(drop)
    }

    /// Waits until the kernel's thread has taken this many requests, and given at least this many completions.
    fn let_work(&self, taken: u32, given: u32) -> Result<()> {
        let begin = Instant::now();
        let is_there = |count: u32| count.wrapping_sub(given).cast_signed() >= 0;
        while self.word(TAKEN)? != taken || !is_there(self.word(GIVEN)?) {
            io_uring::enter(self.ring.as_fd(), 0, WAKE_UP)
                .map_err(|errno| failed("submitting requests of an io_uring", errno))?;
            if begin.elapsed() > PATIENCE {
                let what = "the kernel's thread of an io_uring takes no requests";
                return Err(Error::new(code::HOST_FEATURE, what));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Has completions given by messages of another ring.
    fn tell(&self, restoring: &mut Restoring<'_>, count: u32) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let mut parameters = [0; PARAMETERS];
        let sender = io_uring::setup(SOME, &mut parameters)
            .map_err(|errno| failed("making an io_uring that sends messages", errno))?;
        let array = parameters[10 + 6] as usize;
        let map = |offset, length| {
            Window::map(sender.as_fd(), offset, length).map_err(|errno| failed("mapping an io_uring", errno))
        };
        let (rings, entries) = (map(RINGS, array + SOME as usize * 4)?, map(ENTRIES, SOME as usize * 64)?);
        let written = |errno| Error::system(code::MEMORY_ACCESS, "writing to an io_uring", errno);
        let mut message = [0; 64];
        message[0] = MESSAGE;
        message[4..8].copy_from_slice(&self.ring.as_raw_fd().to_le_bytes());
        for number in 0..SOME {
            rings.write(array + number as usize * 4, &number.to_le_bytes()).map_err(written)?;
            entries.write(number as usize * 64, &message).map_err(written)?;
        }
        let (mut left, mut sent) = (count, 0_u32);
        while left > 0 {
            let some = left.min(SOME).min(self.record.completion_entries);
            sent = sent.wrapping_add(some);
            rings.write(PREPARED, &sent.to_le_bytes()).map_err(written)?;
            let took = io_uring::enter(sender.as_fd(), some, GET_EVENTS);
            took.map_err(|errno| failed("sending messages to an io_uring", errno))?;
            rings.write(SEEN, &sent.to_le_bytes()).map_err(written)?;
            if self.record.flags & IoUring::DEFERRED != 0 {
                // Its own thread has to take them.
                self.enter_from_inside(restoring, 0)?;
            }
            let given = self.word(GIVEN)?;
            self.write(SEEN, &given.to_le_bytes())?;
            left -= some;
        }
        Ok(())
    }
}
