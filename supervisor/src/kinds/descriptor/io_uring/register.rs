//! Registering again with an io_uring what was registered: files and the eventfd as soon as they are there, buffers and
//! the ring itself when there is memory.

use super::made::MadeRing;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::all;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Batch, Data};
use std::os::fd::AsRawFd;
use vckpt_image_format::record::io_uring::IoUring;
use vckpt_image_format::{DescriptionId, Image, TaskId};

/// `IORING_REGISTER_EVENTFD`.
const EVENT: u32 = 4;
/// `IORING_REGISTER_FILES_UPDATE`, `IORING_REGISTER_FILES2`.
const FILES_UPDATE: u32 = 6;
const FILES: u32 = 13;
/// `IORING_REGISTER_BUFFERS2`, `IORING_REGISTER_BUFFERS_UPDATE`.
const BUFFERS: u32 = 15;
const BUFFERS_UPDATE: u32 = 16;
/// `IORING_REGISTER_RING_FDS`.
const RINGS: u32 = 20;
/// `IORING_RSRC_REGISTER_SPARSE`, above the number of places.
const SPARSE: u64 = 1 << 32;
/// Buffers that are registered by one call.
const SOME: usize = 1024;

/// Adds the steps that register files and eventfds, for when all descriptions are made.
///
/// # Errors
/// As [`all`].
pub(super) fn plan_files(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in all::<IoUring>(image)? {
        if !record.files.is_empty() || record.event.is_some() {
            plan.action(Stage::Descriptors, RegisterFiles(record));
        }
    }
    Ok(())
}

/// Makes an operation on a ring by a thread; what it is given is added by `prepare`, with the count that goes with it.
fn register(
    restoring: &mut Restoring<'_>,
    ring: &IoUring,
    thread: TaskId,
    operation: u32,
    prepare: impl FnOnce(&mut Batch) -> (Data, u64),
) -> Result<()> {
    let made = MadeRing::of(restoring, ring.id)?;
    let registered = made.lend(restoring, thread, |batch, descriptor| {
        let (data, count) = prepare(batch);
        let arguments = [descriptor, operation.into(), data.into(), count.into()];
        batch.must("registering with an io_uring", libc::SYS_io_uring_register, arguments);
    });
    registered.map(drop).map_err(|error| {
        Error::new(code::DESCRIPTOR_RESTORE, "registering with an io_uring")
            .because(error)
            .about(Subject::task(thread.0, "task"))
    })
}

/// A table with nothing in it (`struct io_uring_rsrc_register`).
fn table(batch: &mut Batch, places: usize) -> (Data, u64) {
    (batch.words(&[places as u64 | SPARSE, 0, 0, 0]), 32)
}

/// Lets a thread have a descriptor of ours for a while; `act` is given its number there.
fn lend(
    restoring: &mut Restoring<'_>,
    thread: TaskId,
    ours: i32,
    act: impl FnOnce(&mut Restoring<'_>, i32) -> Result<()>,
) -> Result<()> {
    let mut batch = Batch::new();
    let sent = batch.descriptor(ours);
    let copied =
        batch.must("copying a descriptor", libc::SYS_fcntl, [sent, libc::F_DUPFD_CLOEXEC.into(), 0.into()]);
    batch.must("closing a descriptor", libc::SYS_close, [sent]);
    let number =
        restoring.run(thread, &batch)?.get(copied).ok().and_then(|number| i32::try_from(number).ok());
    let number = number.unwrap_or(-1);
    act(restoring, number)?;
    close(restoring, thread, number)
}

fn close(restoring: &mut Restoring<'_>, thread: TaskId, number: i32) -> Result<()> {
    let mut batch = Batch::new();
    batch.must("closing a descriptor", libc::SYS_close, [number.into()]);
    restoring.run(thread, &batch).map(drop)
}

/// Registers files and the eventfd.
#[derive(Debug)]
struct RegisterFiles(IoUring);

impl RegisterFiles {
    /// Registers one description by an operation.
    fn one(
        &self,
        restoring: &mut Restoring<'_>,
        file: DescriptionId,
        operation: u32,
        prepare: impl FnOnce(&mut Batch, i32, u64) -> (Data, u64),
    ) -> Result<()> {
        let missing = || Error::new(code::INTERNAL, "a registered file was not made");
        let ours = restoring.descriptions.get(&file).ok_or_else(missing)?.as_raw_fd();
        let maker = self.0.maker;
        lend(restoring, maker, ours, |restoring, number| {
            let puppet = restoring.puppet(maker)?;
            let scratch = puppet.scratch();
            puppet.write(scratch, &number.to_le_bytes())?;
            register(restoring, &self.0, maker, operation, |batch| prepare(batch, number, scratch))
        })
    }
}

impl Action for RegisterFiles {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        if !self.0.files.is_empty() {
            let places = self.0.files.len();
            register(restoring, &self.0, self.0.maker, FILES, |batch| table(batch, places))?;
        }
        for (place, file) in (0_u64..).zip(&self.0.files) {
            let Some(file) = file else { continue };
            // struct io_uring_rsrc_update: place, address of the numbers.
            self.one(restoring, *file, FILES_UPDATE, |batch, _, numbers| {
                (batch.words(&[place, numbers]), 1)
            })?;
        }
        let Some(event) = self.0.event else { return Ok(()) };
        self.one(restoring, event, EVENT, |batch, number, _| (batch.data(&number.to_le_bytes()), 1))
    }
}

/// Registers buffers, and the ring with the threads that have it registered.
#[derive(Debug)]
pub(super) struct RegisterMemory(pub(super) IoUring);

impl Action for RegisterMemory {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let record = &self.0;
        if !record.buffers.is_empty() {
            let places = record.buffers.len();
            register(restoring, record, record.maker, BUFFERS, |batch| table(batch, places))?;
        }
        for (place, buffers) in (0_u64..).step_by(SOME).zip(record.buffers.chunks(SOME)) {
            let puppet = restoring.puppet(record.maker)?;
            let scratch = puppet.scratch();
            let vectors = buffers.iter().flat_map(|&(address, length)| [address, length]);
            puppet.write(scratch, &vectors.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;
            // struct io_uring_rsrc_update2: place, address, tags, how many.
            let update = [place, scratch, 0, buffers.len() as u64];
            register(restoring, record, record.maker, BUFFERS_UPDATE, |batch| (batch.words(&update), 32))?;
        }
        for &(thread, number) in &record.registered {
            let made = MadeRing::of(restoring, record.id)?;
            let descriptor = made.fetch(restoring, thread)?;
            let update = [u64::from(number), u64::from(descriptor.cast_unsigned())];
            register(restoring, record, thread, RINGS, |batch| (batch.words(&update), 1))?;
            close(restoring, thread, descriptor)?;
        }
        Ok(())
    }
}
