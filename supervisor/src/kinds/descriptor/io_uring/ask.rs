//! Asking about io_urings from inside the tree, and their content.
//!
//! Refused: rings whose descriptor is closed, those whose only submitter has ended or is outside of the tree, groups of
//! provided buffers, an eventfd that can't be told from others, and what is not `sound`.

use super::layout::Contents;
use super::observe::{self, Looked, Watch};
use super::sound;
use super::under_way;
use crate::error::{Error, Problems, Result, Subject, code};
use crate::frozen::{Frozen, FrozenProcess, FrozenThread, run_side_by_side};
use crate::records::Records;
use crate::stub::batch::Batch;
use crate::sys::io_uring::{self, BUFFER_STATUS, GET_EVENTS, GROUPS, REGISTER_PROBE};
use nix::errno::Errno;
use std::os::fd::AsFd;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::io_uring::IoUring;

/// `IORING_ENTER_REGISTERED_RING`.
const BY_NUMBER: u32 = 16;
/// Rings that a task may have registered.
const NUMBERS: u32 = 16;
/// `IORING_REGISTER_EVENTFD`.
const REGISTER_EVENT: u32 = 4;
/// Groups that are asked for in one batch.
const SOME: u32 = 1000;
/// An address that no program has.
const NOWHERE: u64 = 0x7fff_ffff_f000;

/// Asks about all rings that were found, and gives their records.
///
/// # Errors
/// Rings that are [refused](self).
pub fn ask(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut rings = std::mem::take(&mut records.rings);
    if records.ring_refused {
        return Ok(());
    }
    problems.take(are_open(&rings, records));
    for ring in &mut rings {
        problems.take(maker(frozen, ring).map_err(|error| error.about(ring.subject.clone())));
    }
    problems.take(registered(frozen, &mut rings));
    let all = rings.iter().map(|ring| u64::from(ring.info.taken.max(ring.info.given))).sum::<u64>();
    if all > IoUring::MAXIMUM_TURNS_OF_ALL {
        let what =
            "io_urings that have done too many requests, taken together, to be made anew in a few seconds";
        problems.push(Error::new(code::RING, what).because(format!("{all} requests or completions")));
    }
    if problems.is_empty() {
        for ring in rings {
            let subject = ring.subject.clone();
            problems.take(finish(frozen, ring, records).map_err(|error| error.about(subject)));
        }
    }
    problems.finish()
}

/// Fails if something of a ring is mapped that nobody has open.
fn are_open(rings: &[Looked], records: &Records) -> Result<()> {
    let mut mapped = records.ring_ids();
    if mapped.all(|id| rings.iter().any(|ring| ring.record.id == id)) {
        return Ok(());
    }
    let what = "it has mapped an io_uring of which it has no descriptor";
    Err(Error::new(code::RING, what)
        .hint("the program has closed the descriptor of a registered ring: leave it open"))
}

/// A thread of the tree, by the places of its process and its own.
pub(super) type Place = (usize, usize);

/// All threads that share a descriptor table, and the number of a ring in it.
pub(super) fn with_ring(frozen: &Frozen, ring: &Looked) -> Vec<(Place, i32)> {
    let mut found = Vec::new();
    for holder in &ring.holders {
        for (index, process) in frozen.processes.iter().enumerate() {
            if process.shares.descriptors as usize == holder.process {
                found.extend((0..process.threads.len()).map(|thread| ((index, thread), holder.number)));
            }
        }
    }
    found
}

fn thread(frozen: &mut Frozen, (process, thread): Place) -> Result<&mut FrozenThread> {
    let found = frozen.processes.get_mut(process).and_then(|process| process.threads.get_mut(thread));
    found.ok_or_else(|| Error::new(code::INTERNAL, "a thread that is not there"))
}

/// Finds the thread that is to make the ring.
fn maker(frozen: &mut Frozen, ring: &mut Looked) -> Result<()> {
    let threads = with_ring(frozen, ring);
    let flags = ring.record.flags;
    let mut found = threads.first().map(|&(place, _)| place);
    if let Some(worker) = ring.info.thread {
        let has = |&&((process, _), _): &&(Place, i32)| {
            let pid = frozen.processes.get(process).map_or(0, |process| process.pid);
            crate::proc::read::path(pid, &format!("task/{worker}")).exists()
        };
        found = threads.iter().find(has).map(|&(place, _)| place);
    }
    if flags & IoUring::SINGLE_ISSUER != 0 {
        found = None;
        for (place, number) in threads {
            let mut batch = Batch::new();
            let room = batch.room(24);
            let arguments = [number.into(), REGISTER_PROBE.into(), room.into(), 1.into()];
            let asked = batch.call("asking who may submit", libc::SYS_io_uring_register, arguments);
            if thread(frozen, place)?.run(&batch)?.get(asked).is_ok() {
                found = Some(place);
                break;
            }
        }
    }
    let Some(place) = found else {
        let what = "an io_uring that only a task may use that has ended or is outside of the tree";
        return Err(Error::new(code::RING, what));
    };
    ring.record.maker = thread(frozen, place)?.id;
    Ok(())
}

/// Finds which threads have registered which rings.
fn registered(frozen: &mut Frozen, rings: &mut [Looked]) -> Result<()> {
    let mut problems = Problems::new();
    let mut batch = Batch::new();
    let asked: Vec<_> = (0..NUMBERS)
        .map(|number| {
            let none = 0.into();
            let arguments = [number.into(), none, none, BY_NUMBER.into(), none, none];
            batch.call("asking for a registered ring", libc::SYS_io_uring_enter, arguments)
        })
        .collect();
    let has_ring = |rings: &[Looked], table| {
        rings.iter().any(|ring| ring.holders.iter().any(|holder| holder.process == table))
    };
    // Under a filter nothing is asked without need: it may forbid that.
    let is_asked = |process: &FrozenProcess| {
        process.threads.iter().all(|thread| thread.filters.is_empty())
            || has_ring(rings, process.shares.descriptors as usize)
    };
    let mut processes: Vec<_> = frozen.living().filter(|process| is_asked(process)).collect();
    let threads = processes.iter_mut().flat_map(|process| process.threads.iter_mut());
    let mut answers = run_side_by_side(threads.map(|thread| (thread, &batch))).into_iter();
    for process in processes {
        let (subject, table) = (process.subject(), process.shares.descriptors as usize);
        for (thread, answer) in process.threads.iter().zip(answers.by_ref()) {
            let answer = answer.map_err(|error| error.about(subject.clone()))?;
            let numbers = (0..NUMBERS).zip(&asked).filter(|&(_, &call)| {
                matches!(answer.get(call), Ok(_) | Err(Errno::EBADFD | Errno::EOWNERDEAD))
            });
            for (number, _) in numbers {
                let mut candidates = rings.iter_mut().filter(|ring| {
                    ring.holders.iter().any(|holder| holder.process == table)
                        && (ring.record.flags & IoUring::SINGLE_ISSUER == 0 || ring.record.maker == thread.id)
                });
                match (candidates.next(), candidates.next()) {
                    (Some(ring), None) => ring.record.registered.push((thread.id, number)),
                    (first, _) => {
                        let why =
                            if first.is_some() { "can't be told from others" } else { "has no descriptor" };
                        let what = format!("thread {} has registered an io_uring that {why}", thread.id);
                        problems.push(Error::new(code::RING, what).about(subject.clone()));
                    }
                }
            }
        }
    }
    problems.finish()
}

/// Asks the maker of a ring for the rest, reads the content, and gives the record.
fn finish(frozen: &mut Frozen, mut ring: Looked, records: &mut Records) -> Result<()> {
    let flags = ring.record.flags;
    let place = place_of(frozen, ring.record.maker);
    let number =
        with_ring(frozen, &ring).into_iter().find(|&(with, _)| with == place).map(|(_, number)| number);
    let Some(number) = number else { return Err(Error::new(code::INTERNAL, "a ring without a maker")) };
    if flags & IoUring::DEFERRED != 0 {
        // What is done is told only if it asks.
        let mut batch = Batch::new();
        let none = 0.into();
        let arguments = [number.into(), none, none, GET_EVENTS.into(), none, none];
        batch.call("asking for completions", libc::SYS_io_uring_enter, arguments);
        thread(frozen, place)?.run(&batch)?;
    }
    ring.record.event = event(frozen, place, number, &ring)?;
    let groups = if flags & IoUring::SINGLE_ISSUER == 0 {
        io_uring::has_groups(ring.file.as_fd())
    } else {
        has_groups(frozen, place, number)?
    };
    if groups {
        return Err(Error::new(code::RING, "an io_uring with buffers that were provided for requests"));
    }
    ring.info = observe::info(ring.holders[0], &ring.subject)?;
    let read = || Contents::read(ring.file.as_fd(), flags, &ring.info);
    let contents =
        read().map_err(|errno| Error::system(code::RING, "reading the content of an io_uring", errno))?;
    let found = under_way::find(&ring.info, &contents, flags)?;
    (ring.record.taken, ring.record.given) = (ring.info.taken, ring.info.given);
    sound::turns(&ring.record)?;
    if flags & IoUring::POLLED != 0 && ring.info.submission_head != ring.info.submission_tail {
        let what = "the kernel has not taken all requests of an io_uring yet";
        return Err(Error::new(code::RING, what).passing());
    }
    (ring.record.rings, ring.record.entries) = (contents.rings, contents.entries);
    ring.record.under_way = found.entries;
    sound::can_be_asked_again(frozen, place.0, &ring)?;
    sound::is_of_one_memory(frozen, &ring)?;
    if flags & IoUring::POLLED != 0 {
        let process = frozen.processes.get(place.0).map_or_else(Subject::default, FrozenProcess::subject);
        let what = "the kernel's threads of its io_urings sleep after 50 ms, on any processor";
        let line = format!("{process}: {what}");
        if !records.degraded.contains(&line) {
            records.degraded.push(line);
        }
    }
    records.degraded.extend(found.degraded.into_iter().map(|what| format!("{}: {what}", ring.subject)));
    let sockets = sound::in_use(&ring);
    records.watched.push(Watch { holder: ring.holders[0], info: ring.info, sockets, subject: ring.subject });
    records.push(ring.record);
    Ok(())
}

fn place_of(frozen: &Frozen, thread: TaskId) -> Place {
    let mut all = frozen.processes.iter().enumerate().flat_map(|(index, process)| {
        process.threads.iter().enumerate().map(move |(number, thread)| ((index, number), thread.id))
    });
    all.find(|&(_, id)| id == thread).map_or((usize::MAX, 0), |(place, _)| place)
}

/// The eventfd that is registered: nobody tells which, so there must not be another.
fn event(
    frozen: &mut Frozen,
    place: Place,
    number: i32,
    ring: &Looked,
) -> Result<Option<vckpt_image_format::DescriptionId>> {
    let mut batch = Batch::new();
    let arguments = [number.into(), REGISTER_EVENT.into(), NOWHERE.into(), 1.into()];
    let asked = batch.call("asking for a registered eventfd", libc::SYS_io_uring_register, arguments);
    if thread(frozen, place)?.run(&batch)?.get(asked) != Err(Errno::EBUSY) {
        return Ok(None);
    }
    match ring.events.as_slice() {
        &[only] => Ok(Some(only)),
        _ => Err(Error::new(code::RING, "an io_uring has registered an eventfd, and can't be asked which")
            .because(format!("there are {}", ring.events.len()))),
    }
}

/// Whether there are groups of provided buffers. There are many numbers to ask for, so one batch asks again and again.
fn has_groups(frozen: &mut Frozen, place: Place, number: i32) -> Result<bool> {
    let mut batch = Batch::new();
    let asked: Vec<_> = (0..SOME)
        .map(|group| {
            let status = batch.words(&io_uring::status(group));
            let arguments = [number.into(), BUFFER_STATUS.into(), status.into(), 1.into()];
            (status, batch.call("asking for provided buffers", libc::SYS_io_uring_register, arguments))
        })
        .collect();
    for first in (0..GROUPS).step_by(SOME as usize) {
        for (group, (status, _)) in (first..GROUPS).zip(&asked) {
            batch.change(*status, &group.to_le_bytes());
        }
        let outcome = thread(frozen, place)?.run(&batch)?;
        if asked.iter().any(|&(_, call)| outcome.get(call) != Err(Errno::ENOENT)) {
            return Ok(true);
        }
    }
    Ok(false)
}
