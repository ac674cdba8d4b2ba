//! A ring that was made, and how others come to it: the kernel lets no io_uring travel in a socket, so whoever is to have
//! it fetches it from its maker.

use super::wind::failed;
use crate::error::{Error, Result, code};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, Outcome};
use std::os::fd::{AsRawFd, OwnedFd};
use vckpt_image_format::{RingId, TaskId};

/// A ring that was made.
#[derive(Debug)]
pub struct MadeRing {
    /// This program's descriptor.
    pub ring: OwnedFd,
    /// The process that has made it.
    pub process: OwnedFd,
    /// Its number there, above all that are wanted.
    pub number: i32,
}

impl MadeRing {
    /// The same once more, so that the restore can go on meanwhile.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it was not made.
    pub fn of(restoring: &Restoring<'_>, id: RingId) -> Result<Self> {
        let missing = || Error::new(code::INTERNAL, "an io_uring was not made");
        let made = restoring.rings.get(&id).ok_or_else(missing)?;
        let copy = |file: &OwnedFd| {
            file.try_clone()
                .map_err(|error| Error::system(code::DESCRIPTOR_RESTORE, "copying a descriptor", error))
        };
        Ok(Self { ring: copy(&made.ring)?, process: copy(&made.process)?, number: made.number })
    }

    /// Lets a thread have the ring for the calls that `add` adds.
    ///
    /// # Errors
    /// What the calls say.
    pub fn lend<T>(
        &self,
        restoring: &mut Restoring<'_>,
        thread: TaskId,
        add: impl FnOnce(&mut Batch, Argument) -> T,
    ) -> Result<(Outcome, T)> {
        let mut batch = Batch::new();
        let process = batch.descriptor(self.process.as_raw_fd());
        let arguments = [process, self.number.into(), 0.into()];
        let ring = batch.must("fetching an io_uring", libc::SYS_pidfd_getfd, arguments);
        let added = add(&mut batch, ring.into());
        batch.must("closing a descriptor", libc::SYS_close, [ring.into()]);
        batch.must("closing a descriptor", libc::SYS_close, [process]);
        Ok((restoring.run(thread, &batch)?, added))
    }

    /// Gives a thread the ring under any number.
    ///
    /// # Errors
    /// What the calls say.
    pub fn fetch(&self, restoring: &mut Restoring<'_>, thread: TaskId) -> Result<i32> {
        let mut batch = Batch::new();
        let process = batch.descriptor(self.process.as_raw_fd());
        let arguments = [process, self.number.into(), 0.into()];
        let ring = batch.must("fetching an io_uring", libc::SYS_pidfd_getfd, arguments);
        batch.must("closing a descriptor", libc::SYS_close, [process]);
        let number = restoring.run(thread, &batch)?.get(ring).ok();
        Ok(number.and_then(|number| i32::try_from(number).ok()).unwrap_or(-1))
    }

    /// Gives a process the ring under a number that is free. What arrives is first moved out of the way, above `highest`.
    ///
    /// # Errors
    /// What the calls say.
    pub fn place(
        &self,
        restoring: &mut Restoring<'_>,
        process: TaskId,
        (number, close_on_exec): (u32, bool),
        highest: u32,
    ) -> Result<()> {
        let mut batch = Batch::new();
        let maker = batch.descriptor(self.process.as_raw_fd());
        let arguments = [maker, self.number.into(), 0.into()];
        let ring = batch.must("fetching an io_uring", libc::SYS_pidfd_getfd, arguments);
        let arguments = [ring.into(), libc::F_DUPFD_CLOEXEC.into(), (highest + 1).into()];
        let moved = batch.must("moving a descriptor", libc::SYS_fcntl, arguments);
        batch.must("closing a descriptor", libc::SYS_close, [ring.into()]);
        batch.must("closing a descriptor", libc::SYS_close, [maker]);
        let flag = if close_on_exec { libc::O_CLOEXEC } else { 0 };
        let arguments = [moved.into(), number.into(), flag.into()];
        batch.must("giving a descriptor its number", libc::SYS_dup3, arguments);
        batch.must("closing a descriptor that was moved", libc::SYS_close, [moved.into()]);
        restoring.run(process, &batch).map(drop).map_err(|error| {
            Error::new(code::DESCRIPTOR_RESTORE, "giving a process its io_uring").because(error)
        })
    }
}

/// A descriptor of a process, as fetching from it needs.
///
/// # Errors
/// What the kernel says.
pub fn process(restoring: &mut Restoring<'_>, process: TaskId) -> Result<OwnedFd> {
    let pid = restoring.system_id(process)?;
    crate::sys::process::pidfd_open(pid).map_err(|errno| failed("opening a process", errno))
}
