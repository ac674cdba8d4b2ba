//! Taking locks again.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{all, tables};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use crate::sys::file;
use rustix::fs::FlockOperation;
use std::os::fd::AsFd;
use vckpt_image_format::record::Record;
use vckpt_image_format::record::file_locking::{FileLocking, Holder};
use vckpt_image_format::{Image, TaskId};

/// Adds a step for each lock.
///
/// # Errors
/// [`code::IMAGE_BAD`] if a process has a lock on a file that it has not open.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let locks = all::<FileLocking>(image)?;
    if locks.is_empty() {
        return Ok(());
    }
    let tables = tables(image)?;
    for lock in locks {
        let (Holder::Process(task) | Holder::Lease(task)) = lock.holder else {
            plan.action(Stage::Descriptors, TakeLock(lock));
            continue;
        };
        let table = tables.iter().find(|(process, _)| process.id == task).map(|(_, table)| table);
        let descriptor = table.and_then(|table| {
            table.descriptors.iter().find(|descriptor| descriptor.description == lock.description)
        });
        let Some(descriptor) = descriptor else {
            return Err(Error::new(code::IMAGE_BAD, "a process has a lock on a file that it has not open"));
        };
        plan.action(Stage::TaskState, TakeProcessLock { task, number: descriptor.number, lock });
    }
    Ok(())
}

/// First byte and length, 0 for all that follow.
fn range(lock: &FileLocking) -> (i64, i64) {
    let length = lock.end.map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1));
    (lock.start.cast_signed(), length.cast_signed())
}

fn failed(lock: &FileLocking, why: &Error) -> Box<Error> {
    Error::new(code::DESCRIPTOR_RESTORE, "a file lock could not be taken again")
        .about(Subject::path(lock.name()))
        .because(why.why.as_deref().unwrap_or(&why.what))
        .hint("somebody else may have locked the file meanwhile: see lslocks")
}

/// Takes a lock that belongs to a description.
#[derive(Debug)]
struct TakeLock(FileLocking);

impl Action for TakeLock {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let lock = &self.0;
        let Some(description) = restoring.descriptions.get(&lock.description) else {
            return Err(Error::new(code::INTERNAL, "a lock on a file that was not opened"));
        };
        let (start, length) = range(lock);
        let result: std::result::Result<(), std::io::Error> = if lock.holder == Holder::WholeFile {
            let operation = if lock.exclusive {
                FlockOperation::NonBlockingLockExclusive
            } else {
                FlockOperation::NonBlockingLockShared
            };
            rustix::fs::flock(description, operation).map_err(Into::into)
        } else {
            file::lock_description(description.as_fd(), lock.exclusive, start, length).map_err(Into::into)
        };
        result.map_err(|error| failed(lock, &Error::system(code::DESCRIPTOR_RESTORE, "locking", error)))
    }
}

/// Takes a lock that belongs to a process.
#[derive(Debug)]
struct TakeProcessLock {
    task: TaskId,
    number: u32,
    lock: FileLocking,
}

impl Action for TakeProcessLock {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let (start, length) = range(&self.lock);
        let sort = if self.lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        let mut batch = Batch::new();
        if let Holder::Lease(_) = self.lock.holder {
            let arguments = [self.number.into(), libc::F_SETLEASE.into(), sort.into()];
            batch.must("taking a lease", libc::SYS_fcntl, arguments);
            return restoring.run(self.task, &batch).map(drop).map_err(|error| failed(&self.lock, &error));
        }
        // struct flock: type and whence in the first word, then start, length, pid.
        let words = [u64::from(sort.cast_unsigned()), start.cast_unsigned(), length.cast_unsigned(), 0];
        let lock = batch.words(&words);
        let arguments = [self.number.into(), libc::F_SETLK.into(), lock.into()];
        batch.must("taking a POSIX lock", libc::SYS_fcntl, arguments);
        restoring.run(self.task, &batch).map(drop).map_err(|error| failed(&self.lock, &error))
    }
}
