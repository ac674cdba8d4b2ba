//! Whether what was found of a ring can be made again: what its requests refer to, whose they are, how often it has turned.

use super::ask::with_ring;
use super::observe::{Looked, Open};
use super::under_way::{self, Refers};
use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use vckpt_image_format::record::io_uring::IoUring;

/// Fails unless what the requests under way refer to is still there.
pub(super) fn can_be_asked_again(frozen: &Frozen, process: usize, ring: &Looked) -> Result<()> {
    let refuse = |what: &str| Err(Error::new(code::RING, what));
    let requests = ring.record.under_way.chunks(IoUring::entry_length(ring.record.flags));
    for request in requests.map(under_way::refers) {
        match request {
            Refers::Time(address) => {
                let mut time = [0; 16];
                let memory = frozen.processes.get(process).map(|process| &process.memory);
                let is_read = memory.is_some_and(|memory| memory.read_exact_at(&mut time, address).is_ok());
                let (seconds, nanoseconds) = time.split_at(8);
                let number = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap_or_default());
                if !is_read || number(seconds) < 0 || !(0..1_000_000_000).contains(&number(nanoseconds)) {
                    return refuse("the time of a time-out of an io_uring does not stand in memory any more");
                }
            }
            Refers::Descriptor { number, socket } => {
                let open = ring.files.iter().find(|open| open.number == number);
                if open.is_none_or(|open| socket && open.socket.is_none()) {
                    return refuse(
                        "an io_uring has a request under way upon a descriptor that is closed by now",
                    );
                }
            }
            Refers::Registered(number) => {
                if !matches!(ring.record.files.get(number as usize), Some(Some(_))) {
                    return refuse(
                        "an io_uring has a request under way upon a file that is not registered any more",
                    );
                }
            }
        }
    }
    Ok(())
}

/// Fails if what belongs to a memory may be of several.
pub(super) fn is_of_one_memory(frozen: &Frozen, ring: &Looked) -> Result<()> {
    let memories: BTreeSet<u32> = with_ring(frozen, ring)
        .into_iter()
        .filter_map(|((process, _), _)| Some(frozen.processes.get(process)?.shares.memory))
        .collect();
    if memories.len() > 1 && !(ring.record.under_way.is_empty() && ring.record.buffers.is_empty()) {
        let what = "an io_uring that several processes have, with requests under way or registered buffers";
        return Err(Error::new(code::RING, what).because("it can't be seen whose they are"));
    }
    Ok(())
}

/// The sockets that the kernel has in use for a ring: registered ones, and those of requests under way.
pub(super) fn in_use(ring: &Looked) -> Vec<u64> {
    let requests = ring.record.under_way.chunks(IoUring::entry_length(ring.record.flags));
    let requests: Vec<Refers> = requests.map(under_way::refers).collect();
    let is_in_use = |open: &&Open| {
        let asked = |socket| requests.contains(&Refers::Descriptor { number: open.number, socket });
        ring.record.files.contains(&Some(open.description)) || asked(true) || asked(false)
    };
    ring.files.iter().filter(is_in_use).filter_map(|open| open.socket).collect()
}

/// Refuses rings that would take too long to be wound up.
pub(super) fn turns(record: &IoUring) -> Result<()> {
    if record.is_feasible() {
        return Ok(());
    }
    let what = "an io_uring that has done too many requests to be made anew in a few seconds";
    Err(Error::new(code::RING, what)
        .because(format!(
            "{} requests and {} completions; {} can be kept, and {} completions more than requests",
            record.taken,
            record.given,
            IoUring::MAXIMUM_TURNS,
            IoUring::MAXIMUM_EXTRA
        ))
        .hint("let the program make a new ring from time to time, or dump it earlier"))
}
