//! Opening message queues again, and making those that are gone.

use super::notify::Notify;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::sys::message_queue::{self, Attributes};
use nix::errno::Errno;
use rustix::fs::{Gid, Mode, SeekFrom, Uid};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::Image;
use vckpt_image_format::record::description::Description;
use vckpt_image_format::record::posix_message_queue::PosixMessageQueue;

/// What `mq_open(3)` takes of the flags of a description.
const FLAGS: u32 = Description::ACCESS_MODE | libc::O_NONBLOCK.cast_unsigned();

/// Adds a step for each queue.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for queue in all::<PosixMessageQueue>(image)? {
        if let Some(notification) = queue.notification {
            let (name, was_empty) = (queue.name.clone(), queue.messages.is_empty());
            plan.action(Stage::Timers, Notify { notification, name, was_empty });
        }
        plan.action(Stage::Descriptors, OpenQueue(queue));
    }
    Ok(())
}

/// Opens a queue in all the ways in which it was open.
#[derive(Debug)]
struct OpenQueue(PosixMessageQueue);

impl Action for OpenQueue {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(&self.0.name));
        let name = CString::new(self.0.name.0.get(1..).unwrap_or_default()).unwrap_or_default();
        let open = |name: &CString| message_queue::open(name, libc::O_RDWR | libc::O_NONBLOCK, None);
        let (queue, name, is_ours) = match open(&name) {
            Ok(queue) if !self.0.unlinked => (queue, name, false),
            Err(errno) if errno != Errno::ENOENT && !self.0.unlinked => {
                return Err(about(self.failed("opening a message queue", errno)));
            }
            Ok(_) | Err(_) => {
                let (queue, name) = self.make(name).map_err(about)?;
                (queue, name, true)
            }
        };
        let opened = self.open_all(restoring, &queue, &name, is_ours);
        // A name that is not to stay goes in any case; one that is to stay goes if the restore fails.
        if self.0.unlinked {
            message_queue::unlink(&name)
                .map_err(|errno| about(self.failed("removing the name of a message queue", errno)))?;
        } else if is_ours {
            restoring.undo.made_queue(name);
        }
        opened.map_err(about)
    }
}

impl OpenQueue {
    /// A new queue: under its name, or if that is to be removed again, under any that is free.
    fn make(&self, name: CString) -> Result<(OwnedFd, CString)> {
        let attributes = Attributes {
            maximum: self.0.maximum.into(),
            message_size: self.0.message_size.into(),
            ..Attributes::default()
        };
        let make = |name: &CString| {
            message_queue::open(name, libc::O_RDWR | libc::O_NONBLOCK, Some((0o600, attributes)))
        };
        let other = CString::new(format!("vckpt-{}", std::process::id())).unwrap_or_default();
        let names = [Some(name), self.0.unlinked.then_some(other)];
        let mut last = Errno::EEXIST;
        for name in names.into_iter().flatten() {
            match make(&name) {
                Ok(queue) => return Ok((queue, name)),
                Err(errno) => last = errno,
            }
        }
        Err(self
            .failed("making a message queue", last)
            .hint("the limits of the host may be smaller: see /proc/sys/fs/mqueue and ulimit -q"))
    }

    fn open_all(
        &self,
        restoring: &mut Restoring<'_>,
        queue: &OwnedFd,
        name: &CString,
        is_ours: bool,
    ) -> Result<()> {
        if is_ours {
            for message in &self.0.messages {
                message_queue::send(queue.as_fd(), &message.data, message.priority)
                    .map_err(|errno| self.failed("filling a message queue", errno))?;
            }
        }
        let has = message_queue::attributes(queue.as_fd())
            .map_err(|errno| self.failed("looking at a message queue", errno))?;
        if (has.maximum, has.message_size) != (self.0.maximum.into(), self.0.message_size.into()) {
            return Err(Error::new(code::FILE_DIFFERS, "a message queue has other limits than it had"));
        }
        for opened in &self.0.descriptions {
            let flags = (opened.description.flags & FLAGS).cast_signed();
            let made = message_queue::open(name, flags, None)
                .map_err(|errno| self.failed("opening a message queue", errno))?;
            if opened.position != 0 {
                rustix::fs::seek(&made, SeekFrom::Start(opened.position))
                    .map_err(|errno| self.failed("moving to the position in a message queue", errno))?;
            }
            restore::keep(restoring, &opened.description, made)?;
        }
        // Last: permissions may be fewer than those with which it is open.
        if is_ours {
            self.dress(queue)
                .map_err(|errno| self.failed("setting owner and mode of a message queue", errno))?;
        }
        Ok(())
    }

    fn dress(&self, queue: &OwnedFd) -> std::result::Result<(), rustix::io::Errno> {
        let has = rustix::fs::fstat(queue)?;
        let PosixMessageQueue { user, group, mode, .. } = self.0;
        if (has.st_uid, has.st_gid) != (user, group) {
            rustix::fs::fchown(queue, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        rustix::fs::fchmod(queue, Mode::from_raw_mode(mode))
    }

    fn failed(&self, what: &str, errno: impl Into<std::io::Error>) -> Box<Error> {
        Error::system(code::DESCRIPTOR_RESTORE, what, errno).about(Subject::path(&self.0.name))
    }
}
