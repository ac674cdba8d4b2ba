//! Making io_urings again: each by its own thread, wound up and filled before anything else runs; mapped and given what
//! was registered when memory and descriptors are there; and at last asked once more for what was under way.

use super::made::{self, MadeRing};
use super::map::MapRings;
use super::register::{RegisterMemory, plan_files};
use super::wind::{PREPARED, SEEN, TAKEN, Winding, failed};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{all, restore, tables};
use crate::kinds::memory::plan::memories;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use crate::sys::io_uring::PARAMETERS;
use crate::sys::process::pidfd_getfd;
use std::os::fd::AsFd;
use vckpt_image_format::record::descriptor_table::{Descriptor, DescriptorTable};
use vckpt_image_format::record::io_uring::IoUring;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_map::{Mapping, Source};
use vckpt_image_format::{Image, RingId, TaskId};

/// For how many milliseconds the kernel's thread looks for requests before it sleeps.
const IDLE: u32 = 50;
/// `IORING_SETUP_CQSIZE`.
const WITH_SIZE: u32 = 1 << 3;
/// `IORING_SETUP_SUBMIT_ALL`: who does not expect it looks how many were submitted.
const SUBMIT_ALL: u32 = 1 << 7;
/// `IORING_SETUP_TASKRUN_FLAG`: who does not expect it does not look.
const TELL_OF_WORK: u32 = 1 << 9;
/// Where the kernel's flags stand in the rings; they are not set.
const KERNELS_FLAGS: std::ops::Range<usize> = 36..40;

/// Adds the steps of all rings.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let rings = all::<IoUring>(image)?;
    if rings.is_empty() {
        return Ok(());
    }
    if rings.iter().map(IoUring::turns).sum::<u64>() > IoUring::MAXIMUM_TURNS_OF_ALL {
        return Err(Error::new(
            code::IMAGE_BAD,
            "the io_urings have turned more often than can be made anew",
        ));
    }
    let processes = all::<Process>(image)?;
    let leader = |thread: TaskId| {
        let has = |process: &&Process| {
            process.living.as_ref().is_some_and(|living| living.threads.contains(&thread))
        };
        processes.iter().find(has).map(|process| process.id)
    };
    for record in rings {
        let Some(process) = leader(record.maker) else {
            return Err(Error::new(code::IMAGE_BAD, "an io_uring is made by a thread that has no process"));
        };
        let highest = tables(image)?.iter().map(|(_, table)| highest(table)).max().unwrap_or(0);
        plan.action(Stage::Descriptors, MakeRing { process, highest, record: record.clone() });
        if !record.buffers.is_empty() || !record.registered.is_empty() {
            plan.action(Stage::TaskState, RegisterMemory(record.clone()));
        }
        let (ring, maker) = (record.id, record.maker);
        if !record.under_way.is_empty() {
            plan.action(Stage::Timers, AskAgain(record));
        }
        plan.action(Stage::Timers, Forget { ring, maker });
    }
    for (process, memory) in memories(image)? {
        let is_ring = |mapping: &Mapping| matches!(mapping.source, Source::IoUring { .. });
        let mappings: Vec<Mapping> = memory.mappings.into_iter().filter(is_ring).collect();
        if !mappings.is_empty() {
            plan.action(Stage::Memory, MapRings { process, mappings });
        }
    }
    Ok(())
}

/// Adds the steps that put rings into the tables that have them, and register files with them: for when all other
/// descriptors are in their places.
///
/// # Errors
/// As [`all`].
pub fn plan_places(image: &Image, plan: &mut Plan) -> Result<()> {
    let rings = all::<IoUring>(image)?;
    if rings.is_empty() {
        return Ok(());
    }
    for (process, table) in tables(image)? {
        for &descriptor in &table.descriptors {
            let found = rings.iter().find(|ring| ring.description.id == descriptor.description);
            let Some(ring) = found.map(|ring| ring.id) else { continue };
            let (process, highest) = (process.id, highest(&table));
            plan.action(Stage::Descriptors, PlaceRing { process, ring, descriptor, highest });
        }
    }
    plan_files(image, plan)
}

fn highest(table: &DescriptorTable) -> u32 {
    table.descriptors.iter().map(|descriptor| descriptor.number).max().unwrap_or(0)
}

/// Makes a ring, winds it up, and fills it.
#[derive(Debug)]
struct MakeRing {
    process: TaskId,
    /// The highest number of a descriptor of this process.
    highest: u32,
    record: IoUring,
}

impl Action for MakeRing {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::task(self.record.maker.0, "task"));
        let made = self.make(restoring).map_err(about)?;
        self.fill(restoring, &made).map_err(about)?;
        let copy = made.ring.try_clone();
        let ring =
            copy.map_err(|error| Error::system(code::DESCRIPTOR_RESTORE, "copying a descriptor", error))?;
        restoring.rings.insert(self.record.id, made);
        restore::keep(restoring, &self.record.description, ring)
    }
}

impl MakeRing {
    fn make(&self, restoring: &mut Restoring<'_>) -> Result<MadeRing> {
        let record = &self.record;
        let mut parameters = [0_u32; PARAMETERS];
        (parameters[0], parameters[1]) = (record.submission_entries, record.completion_entries);
        parameters[2] = record.flags | WITH_SIZE | SUBMIT_ALL;
        parameters[4] = IDLE;
        if record.flags & IoUring::DEFERRED != 0 {
            parameters[2] |= TELL_OF_WORK;
        }
        let bytes: Vec<u8> = parameters.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut batch = Batch::new();
        let place = batch.exchange(&bytes);
        let arguments = [record.submission_entries.into(), place.into()];
        let made = batch.must("making an io_uring", libc::SYS_io_uring_setup, arguments);
        let arguments = [made.into(), libc::F_DUPFD_CLOEXEC.into(), (self.highest + 1).into()];
        let moved = batch.must("moving a descriptor", libc::SYS_fcntl, arguments);
        batch.must("closing a descriptor that was moved", libc::SYS_close, [made.into()]);
        let outcome = restoring.run(record.maker, &batch).map_err(|error| {
            Error::new(code::HOST_FEATURE, "this host does not let an io_uring be made")
                .because(error)
                .hint("see /proc/sys/kernel/io_uring_disabled, and whether the kernel is as new as that of the dump")
        })?;
        let number = outcome.get(moved).ok().and_then(|number| i32::try_from(number).ok()).unwrap_or(-1);
        let process = made::process(restoring, self.process)?;
        let ring =
            pidfd_getfd(process.as_fd(), number).map_err(|errno| failed("fetching an io_uring", errno))?;
        // Sizes, and where the array is.
        let word = |index| outcome.half_word(place, index);
        let array = IoUring::array(record.flags, record.completion_entries);
        let has_array = record.flags & IoUring::NO_ARRAY == 0;
        let is_same = (word(0), word(1)) == (record.submission_entries, record.completion_entries)
            && word(20 + 5) as usize == IoUring::COMPLETIONS
            && (!has_array || word(10 + 6) as usize == array);
        if is_same {
            return Ok(MadeRing { ring, process, number });
        }
        Err(Error::new(code::HOST_FEATURE, "io_urings have another shape on this kernel"))
    }

    fn fill(&self, restoring: &mut Restoring<'_>, made: &MadeRing) -> Result<()> {
        let winding = Winding::begin(&self.record, made)?;
        winding.wind(restoring)?;
        if !self.record.under_way.is_empty() {
            // The requests come when what is under way is asked for again.
            let taken = winding.word(TAKEN)?;
            winding.write(PREPARED, &taken.to_le_bytes())?;
        } else {
            write_requests(&winding)?;
        }
        let (before, behind) = (KERNELS_FLAGS.start, KERNELS_FLAGS.end);
        let end = IoUring::array(self.record.flags, self.record.completion_entries);
        winding.write(behind, self.record.rings.get(behind..end).unwrap_or_default())?;
        winding.write(SEEN, self.record.rings.get(SEEN..before).unwrap_or_default())
    }
}

/// Gives a ring the requests of the old one; the last thing that is written is how many there are.
fn write_requests(winding: &Winding<'_>) -> Result<()> {
    let record = winding.record;
    winding.write_entries(&record.entries)?;
    let array = IoUring::array(record.flags, record.completion_entries);
    winding.write(array, record.rings.get(array..).unwrap_or_default())?;
    winding.write(PREPARED, record.rings.get(PREPARED..SEEN).unwrap_or_default())
}

/// Gives a process a ring under the number that it had.
#[derive(Debug)]
struct PlaceRing {
    process: TaskId,
    ring: RingId,
    descriptor: Descriptor,
    highest: u32,
}

impl Action for PlaceRing {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let made = MadeRing::of(restoring, self.ring)?;
        let Descriptor { number, close_on_exec, .. } = self.descriptor;
        made.place(restoring, self.process, (number, close_on_exec), self.highest).map_err(|error| {
            error.about(Subject::task(self.process.0, "task").descriptor(number.cast_signed()))
        })
    }
}

/// Takes the maker's additional descriptor of a ring away.
#[derive(Debug)]
struct Forget {
    ring: RingId,
    maker: TaskId,
}

impl Action for Forget {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(made) = restoring.rings.remove(&self.ring) else { return Ok(()) };
        let mut batch = Batch::new();
        batch.must("closing a descriptor", libc::SYS_close, [made.number.into()]);
        restoring.run(self.maker, &batch).map(drop)
    }
}

/// Submits once more what was under way.
#[derive(Debug)]
struct AskAgain(IoUring);

impl Action for AskAgain {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let record = &self.0;
        let made = MadeRing::of(restoring, record.id)?;
        let winding = Winding::begin(record, &made)?;
        let length = IoUring::entry_length(record.flags);
        let first = winding.word(TAKEN)?;
        let mut entries = vec![0; record.entries.len()];
        for (number, entry) in (0..).zip(record.under_way.chunks(length)) {
            let slot = (first.wrapping_add(number) & (record.submission_entries - 1)) as usize;
            if let Some(place) = entries.get_mut(slot * length..(slot + 1) * length) {
                place.copy_from_slice(entry);
            }
        }
        winding.write_entries(&entries)?;
        winding.straighten()?;
        winding.write(PREPARED, &record.taken.to_le_bytes())?;
        winding.submit(restoring, u32::try_from(record.requests()).unwrap_or(0), record.taken)?;
        if winding.word(TAKEN)? != record.taken {
            let what = "requests of an io_uring that were under way can't be submitted again";
            return Err(
                Error::new(code::DESCRIPTOR_RESTORE, what).about(Subject::task(record.maker.0, "task"))
            );
        }
        write_requests(&winding)
    }
}
