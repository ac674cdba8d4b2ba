//! Making inotify instances again.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::watched::{self, Places};
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::sys::{process, watch};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init, remove_watch};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use vckpt_image_format::record::inotify::{Inotify, Watched};
use vckpt_image_format::{Image, TaskId};

/// Bytes of an event without a name.
const EVENT: u64 = 16;
/// Most events that are made until a queue is full: far more than its limit is anywhere.
const MOST_EVENTS: u64 = 1 << 24;

/// Adds the steps that make each and, when all else is done, add its watches.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let instances = all::<Inotify>(image)?;
    if instances.is_empty() {
        return Ok(());
    }
    let places = watched::places(image)?;
    for record in instances {
        if let Some(&(process, number)) = places.get(&record.description.id) {
            let record = record.clone();
            plan.action(Stage::Timers, AddWatches { process, number, record, places: places.clone() });
        }
        plan.action(Stage::Descriptors, MakeInotify(record));
    }
    Ok(())
}

/// Makes an instance without watches.
#[derive(Debug)]
struct MakeInotify(Inotify);

impl Action for MakeInotify {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let made = make(self.0.lost)
            .map_err(|errno| Error::system(code::DESCRIPTOR_RESTORE, "making an inotify instance", errno))?;
        restore::keep(restoring, &self.0.description, made)
    }
}

fn make(lost: bool) -> std::result::Result<OwnedFd, Errno> {
    let made = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    if lost {
        overflow(made.as_fd())?;
    }
    Ok(made)
}

/// Leaves one event in an empty queue: that some were lost. The kernel puts it behind as many as a queue can hold; they
/// are made with a file of ours, and taken out again. In a full queue there is no room for the end of the watch.
fn overflow(instance: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?;
    let path = restore::by_descriptor(file.as_fd());
    let number = add_watch(instance, path, WatchFlags::ACCESS | WatchFlags::MODIFY)?;
    let (mut before, mut made) = (u64::MAX, 0);
    while rustix::io::ioctl_fionread(instance)? != before && made < MOST_EVENTS {
        before = rustix::io::ioctl_fionread(instance)?;
        // Events that are the same as the one before are not queued: reading and writing take turns.
        for _ in 0..512 {
            rustix::io::pwrite(&file, b"x", 0)?;
            rustix::io::pread(&file, &mut [0_u8; 1], 0)?;
            made += 2;
        }
    }
    remove_watch(instance, number)?;
    let mut waste = vec![0_u8; 64 * 1024];
    loop {
        let left = rustix::io::ioctl_fionread(instance)?.saturating_sub(EVENT);
        if left == 0 {
            return Ok(());
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(waste.len());
        rustix::io::read(instance, waste.get_mut(..count).unwrap_or_default())?;
    }
}

/// Adds the watches of an instance, in a process that has it.
#[derive(Debug)]
struct AddWatches {
    process: TaskId,
    number: u32,
    record: Inotify,
    places: Places,
}

impl Action for AddWatches {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        if self.record.watches.is_empty() {
            return Ok(());
        }
        let instance = fetch(restoring, self.process, self.number)?;
        for watch in &self.record.watches {
            let Some(path) = watched::path(restoring, &self.places, &watch.watched)? else {
                return Err(Error::new(code::IMAGE_BAD, "inotify watches what nobody has open"));
            };
            self.add(instance.as_fd(), watch.number, watch.mask, &watch.watched, &path)?;
        }
        let next = self.record.watches.last().map_or(1, |watch| watch.number + 1);
        watch::set_next_watch(instance.as_fd(), next).map_err(failed)
    }
}

impl AddWatches {
    fn add(
        &self,
        instance: BorrowedFd<'_>,
        number: u32,
        mask: u32,
        watched: &Watched,
        path: &PathBuf,
    ) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(path.display()));
        watch::set_next_watch(instance, number).map_err(failed)?;
        let mut flags = WatchFlags::from_bits_retain(mask);
        // What `/proc` names is behind a link; a path is that of the watched itself.
        flags.set(WatchFlags::DONT_FOLLOW, matches!(watched, Watched::Path(_)));
        let given = add_watch(instance, path, flags).map_err(|errno| {
            let code = if errno == Errno::NOENT { code::FILE_DIFFERS } else { code::DESCRIPTOR_RESTORE };
            about(Error::system(code, "watching a file again", errno))
        })?;
        if given.cast_unsigned() != number {
            let what = format!("watch {number} of inotify would be watch {given}");
            return Err(about(Error::new(code::FILE_DIFFERS, what).because("two watched files are one now")));
        }
        Ok(())
    }
}

/// A copy of a descriptor of a process that is being made.
///
/// # Errors
/// If the process is gone.
pub fn fetch(restoring: &mut Restoring<'_>, process: TaskId, number: u32) -> Result<OwnedFd> {
    let pid = restoring.system_id(process)?;
    process::pidfd_open(pid)
        .and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), number.cast_signed()))
        .map_err(|errno| {
            Error::system(code::DESCRIPTOR_RESTORE, "fetching a descriptor", errno)
                .about(Subject::task(process.0, "task").descriptor(number.cast_signed()))
        })
}

fn failed(errno: nix::errno::Errno) -> Box<Error> {
    Error::system(code::HOST_FEATURE, "choosing the number of an inotify watch", errno)
}
