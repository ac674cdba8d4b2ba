//! Contexts of asynchronous input and output: made anew, moved to their old place, and wound up until head and tail of
//! the ring are where they were.
//!
//! The kernel counts by itself how many events there were, so it has to see as many again: requests that read nothing
//! from `/dev/null` are done at once. Those that were fetched are fetched again; those that were not get the content of
//! the old ones.

use super::MemoryPlan;
use super::calls::Builder;
use super::layout::prepare;
use crate::error::{Error, Result, code};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use std::fs::File;
use std::os::fd::AsRawFd;
use vckpt_image_format::record::process_map::{Mapping, Ring, Source};
use vckpt_parasite::protocol;

const PAGE: u64 = 4096;
/// Bytes of an event, and of what stands before the first.
const EVENT: u64 = Ring::EVENT as u64;
/// Requests that are submitted at a time.
const SOME: u32 = 256;
/// Words of a mask of processors.
const PROCESSORS: usize = 128;
/// `IOCB_CMD_PREAD`.
const READ: u64 = 0;
/// Length of a request (`struct iocb`).
const REQUEST: u64 = 64;
/// Where the capacity stands in the ring (`struct aio_ring`), behind its number.
const CAPACITY: u64 = 4;

impl Builder {
    /// Makes all contexts.
    pub(super) fn rings(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        let mut made = false;
        for mapping in &plan.mappings {
            if let Source::Ring(ring) = &mapping.source {
                self.flush(restoring)?;
                self.make_ring(restoring, mapping, ring)?;
                made = true;
            }
        }
        // What was prepared lies where the rings were wound up.
        if made { prepare(restoring, plan) } else { Ok(()) }
    }

    fn make_ring(&mut self, restoring: &mut Restoring<'_>, mapping: &Mapping, ring: &Ring) -> Result<()> {
        let length = mapping.end - mapping.start;
        // The kernel takes twice as many and two more, and fills the last page.
        let wanted = (length / PAGE * (PAGE / EVENT) / 2).saturating_sub(2);
        let mut batch = Batch::new();
        let made = batch.room(8);
        batch.must("making a context of asynchronous I/O", libc::SYS_io_setup, [wanted.into(), made.into()]);
        let made = restoring.run(self.process, &batch)?.word(made, 0);
        let capacity = word(restoring, self.process, made + CAPACITY)?;
        if capacity != ring.capacity {
            return Err(Error::new(code::HOST_FEATURE, "the ring of asynchronous I/O has another size here")
                .because(format!("{capacity} events instead of {}", ring.capacity))
                .hint("its size depends on the number of processors: restore on a host that has as many"));
        }
        let mut batch = Batch::new();
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let arguments = [made.into(), length.into(), length.into(), flags.into(), mapping.start.into()];
        batch.must("moving a ring of asynchronous I/O", libc::SYS_mremap, arguments);
        restoring.run(self.process, &batch)?;
        let processors = self.stay(restoring)?;
        self.wind(restoring, mapping.start, ring)?;
        self.set_processors(restoring, &processors)?;
        for (number, event) in ring.events.chunks(Ring::EVENT).enumerate() {
            let slot = (u64::from(ring.head) + number as u64) % u64::from(ring.capacity);
            restoring.puppet(self.process)?.write(mapping.start + (slot + 1) * EVENT, event)?;
        }
        Ok(())
    }

    /// Stays on one processor, since each keeps some of the room of a ring for itself; the ones it had before.
    fn stay(&mut self, restoring: &mut Restoring<'_>) -> Result<Vec<u64>> {
        let mut batch = Batch::new();
        let room = batch.room(PROCESSORS * 8);
        let arguments = [0.into(), (PROCESSORS * 8).into(), room.into()];
        batch.must("reading the processors", libc::SYS_sched_getaffinity, arguments);
        let outcome = restoring.run(self.process, &batch)?;
        let all: Vec<u64> = (0..PROCESSORS).map(|index| outcome.word(room, index)).collect();
        let first = all.iter().position(|&word| word != 0).unwrap_or(0);
        let lowest =
            |(index, &word): (usize, &u64)| if index == first { word & word.wrapping_neg() } else { 0 };
        let one: Vec<u64> = all.iter().enumerate().map(lowest).collect();
        self.set_processors(restoring, &one)?;
        Ok(all)
    }

    fn set_processors(&mut self, restoring: &mut Restoring<'_>, processors: &[u64]) -> Result<()> {
        let mut batch = Batch::new();
        let mask = batch.words(processors);
        let arguments = [0.into(), (processors.len() * 8).into(), mask.into()];
        batch.must("setting the processors", libc::SYS_sched_setaffinity, arguments);
        restoring.run(self.process, &batch).map(drop)
    }

    /// Submits and fetches until head and tail are where they were.
    fn wind(&mut self, restoring: &mut Restoring<'_>, context: u64, ring: &Ring) -> Result<()> {
        let puppet = restoring.puppet(self.process)?;
        let (request, number) = (puppet.scratch(), puppet.socket - 1);
        let (pointers, fetched) = (request + REQUEST, request + REQUEST + u64::from(SOME) * 8);
        const { assert!(64 + SOME as usize * (8 + 32) <= protocol::FRAMES_LENGTH) };
        // Data, key and flags; what to do, with what; where to, how much, from where; the rest.
        let words = [0, 0, READ | u64::from(number.cast_unsigned()) << 32, fetched, 0, 0, 0, 0];
        let words = words.into_iter().chain(std::iter::repeat_n(request, SOME as usize));
        puppet.write(request, &words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;
        let null = File::open("/dev/null")
            .map_err(|error| Error::system(code::HOST_FEATURE, "opening /dev/null", error))?;
        let mut batch = Batch::new();
        let sent = batch.descriptor(null.as_raw_fd());
        batch.must("moving a descriptor", libc::SYS_dup3, [sent, number.into(), libc::O_CLOEXEC.into()]);
        batch.must("closing a descriptor", libc::SYS_close, [sent]);
        restoring.run(self.process, &batch)?;
        let mut left = Left::of(ring);
        while left.submit > 0 || left.fetch > 0 {
            let mut batch = Batch::new();
            let arguments = [context.into(), left.next().into(), pointers.into()];
            let done = batch.call("submitting requests", libc::SYS_io_submit, arguments);
            let now = batch.words(&[0, 0]);
            let most = left.fetch.min(SOME);
            let arguments = [context.into(), 0.into(), most.into(), fetched.into(), now.into()];
            let got = batch.must("fetching events", libc::SYS_io_getevents, arguments);
            let outcome = restoring.run(self.process, &batch)?;
            let number =
                |result: std::result::Result<u64, _>| u32::try_from(result.unwrap_or(0)).unwrap_or(0);
            if !left.went_on(number(outcome.get(done)), number(outcome.get(got))) {
                return Err(Error::new(code::MAPPING, "a ring of asynchronous I/O can't be set up")
                    .because(format!("{} requests and {} events are missing", left.submit, left.fetch)));
            }
        }
        let mut batch = Batch::new();
        batch.must("closing a descriptor", libc::SYS_close, [number.into()]);
        restoring.run(self.process, &batch).map(drop)
    }
}

/// What is left to be done with a ring.
#[derive(Debug)]
struct Left {
    /// Requests to submit.
    submit: u32,
    /// Events to fetch.
    fetch: u32,
    /// Events that wait.
    waiting: u32,
    /// Requests that there is room for.
    room: u32,
}

impl Left {
    fn of(ring: &Ring) -> Self {
        let Ring { capacity, head, tail, .. } = *ring;
        let submit = if head <= tail { tail } else { capacity + tail };
        Self { submit, fetch: head, waiting: 0, room: capacity - 1 }
    }

    /// How many requests to submit next.
    fn next(&self) -> u32 {
        self.submit.min(SOME).min(self.room - self.waiting)
    }

    /// Takes what was done off; false if it was nothing.
    fn went_on(&mut self, submitted: u32, fetched: u32) -> bool {
        self.submit = self.submit.saturating_sub(submitted);
        self.fetch = self.fetch.saturating_sub(fetched);
        self.waiting = (self.waiting + submitted).saturating_sub(fetched).min(self.room);
        submitted > 0 || fetched > 0
    }
}

/// A number of 32 bits in the memory of a puppet.
fn word(restoring: &mut Restoring<'_>, process: vckpt_image_format::TaskId, address: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    let tid = restoring.puppet(process)?.tid;
    crate::sys::process::read_memory(tid, address, &mut bytes)
        .map_err(|errno| Error::system(code::MEMORY_ACCESS, "reading from a puppet", errno))?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Head and tail after a kernel that takes 60 requests at most has done all.
    fn end(capacity: u32, head: u32, tail: u32) -> (u32, u32) {
        let mut left = Left::of(&Ring { capacity, head, tail, events: Vec::new() });
        let (mut first, mut next) = (0, 0);
        while left.submit > 0 || left.fetch > 0 {
            let submitted = left.next().min(60);
            next += submitted;
            assert!(next - first < capacity);
            let fetched = (next - first).min(left.fetch).min(SOME);
            first += fetched;
            assert!(left.went_on(submitted, fetched));
        }
        (first % capacity, next % capacity)
    }

    #[test]
    fn head_and_tail_come_to_their_places() {
        for (head, tail) in [(0, 0), (5, 9), (126, 3), (1, 0), (0, 126), (126, 126)] {
            assert_eq!(end(127, head, tail), (head, tail));
        }
        assert_eq!(end(1023, 1000, 999), (1000, 999));
    }
}
