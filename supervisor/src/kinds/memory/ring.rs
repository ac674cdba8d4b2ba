//! Rings of asynchronous input and output (`io_setup(2)`), and the events in them that were not fetched yet.

use super::observe::At;
use crate::error::{Error, Result, code};
use crate::frozen::FrozenProcess;
use crate::proc::maps::MapLine;
use crate::records::Records;
use crate::stub::batch::Batch;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use vckpt_image_format::record::process_map::{Mapping, Ring, Source};

/// `AIO_RING_MAGIC`.
const MAGIC: u32 = 0xa10a_10a1;

/// For how long no event comes from a ring that has settled.
const QUIET: Duration = Duration::from_millis(50);
/// How long is waited for that.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an event, and of what stands before the first.
const EVENT: u64 = Ring::EVENT as u64;

/// Whether it is the ring of a context.
pub(super) fn is_ring(line: &MapLine) -> bool {
    line.name == b"/[aio]" && line.deleted
}

/// What is in a ring.
///
/// # Errors
/// [`code::MAPPING`] if it is none that is understood.
pub(super) fn source(at: At<'_>, records: &mut Records) -> Result<Source> {
    let At { process, line, .. } = at;
    let failure = |error| Error::system(code::MEMORY_ACCESS, "reading a ring of asynchronous I/O", error);
    let header = settled(process, line).map_err(failure)?;
    let word = |index: usize| header.get(index).copied().unwrap_or(0);
    let (capacity, head, tail) = (word(1), word(2), word(3));
    let room = (line.end - line.start) / EVENT;
    if word(4) != MAGIC || u64::from(capacity) >= room || head >= capacity || tail >= capacity {
        return Err(Error::new(code::MAPPING, "it has a ring of asynchronous I/O that is not understood"));
    }
    let mut events = Vec::new();
    let mut slot = head;
    while slot != tail {
        let mut event = [0; Ring::EVENT];
        let place = line.start + (u64::from(slot) + 1) * EVENT;
        process.memory.read_exact_at(&mut event, place).map_err(failure)?;
        events.extend(event);
        slot = (slot + 1) % capacity;
    }
    records.degraded.push(format!(
        "asynchronous I/O of {}: requests that are not done yet, which the kernel does not show, are lost",
        process.subject()
    ));
    Ok(Source::Ring(Ring { capacity, head, tail, events }))
}

/// The first words of a ring: number, capacity, head, tail, magic number; when no event has come for a while.
///
/// How many requests are under way is nowhere to be seen, so this waits for those that are done soon, such as those of
/// disks. Events come while the process stands still, since the kernel writes them.
fn settled(process: &FrozenProcess, line: &MapLine) -> std::io::Result<[u32; 5]> {
    let read = || {
        let mut bytes = [0; 20];
        process.memory.read_exact_at(&mut bytes, line.start)?;
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Ok::<_, std::io::Error>(words)
    };
    let begin = Instant::now();
    let (mut header, mut since) = (read()?, begin);
    while since.elapsed() < QUIET && begin.elapsed() < PATIENCE {
        std::thread::sleep(QUIET / 10);
        let now = read()?;
        if now != header {
            (header, since) = (now, Instant::now());
        }
    }
    Ok(header)
}

/// Refuses rings of contexts that are another process's: a child gets the mapping, but not the context.
///
/// # Errors
/// [`code::MAPPING`].
pub(super) fn are_own(process: &mut FrozenProcess, mappings: &[Mapping]) -> Result<()> {
    for mapping in mappings.iter().filter(|mapping| matches!(mapping.source, Source::Ring(_))) {
        let mut batch = Batch::new();
        let now = batch.words(&[0, 0]);
        let arguments = [mapping.start.into(), 0.into(), 0.into(), 0.into(), now.into()];
        let asked = batch.call("asking for a context", libc::SYS_io_getevents, arguments);
        if process.run(&batch)?.get(asked).is_err() {
            return Err(Error::new(code::MAPPING, "it has the ring of asynchronous I/O of another process")
                .about(process.subject().address(mapping.start)));
        }
    }
    Ok(())
}
