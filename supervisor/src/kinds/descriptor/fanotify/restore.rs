//! Making fanotify groups again.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::inotify::restore::fetch;
use crate::kinds::descriptor::watched::{self, Places};
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::sys::watch;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use vckpt_image_format::record::fanotify::{Fanotify, Mark, Scope};
use vckpt_image_format::record::inotify::Watched;
use vckpt_image_format::{Image, TaskId};

/// `FAN_CLOEXEC` and `FAN_NONBLOCK` of `fanotify_init(2)`.
const OURS: u32 = 0x1 | 0x2;
/// Flags of `fanotify_mark(2)`.
const ADD: u32 = 0x1;
const DONT_FOLLOW: u32 = 0x4;
const MOUNT: u32 = 0x10;
const FILE_SYSTEM: u32 = 0x100;
const IGNORED_MASK: u32 = 0x20;
const SURVIVES: u32 = 0x40;
const IGNORE: u32 = 0x400;
const EVICTABLE: u32 = 0x200;

/// Adds the steps that make each and, when all else is done, add its marks.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let groups = all::<Fanotify>(image)?;
    if groups.is_empty() {
        return Ok(());
    }
    let places = watched::places(image)?;
    for record in groups {
        if let Some(&(process, number)) = places.get(&record.description.id) {
            let marks = record.marks.clone();
            plan.action(Stage::Timers, AddMarks { process, number, marks, places: places.clone() });
        }
        plan.action(Stage::Descriptors, MakeFanotify(record));
    }
    Ok(())
}

/// Makes a group without marks.
#[derive(Debug)]
struct MakeFanotify(Fanotify);

impl Action for MakeFanotify {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let made = watch::fanotify_init(self.0.flags | OURS, self.0.event_flags).map_err(|errno| {
            let code = if errno == Errno::EPERM { code::PRIVILEGE } else { code::DESCRIPTOR_RESTORE };
            Error::system(code, "making a fanotify group", errno)
        })?;
        restore::keep(restoring, &self.0.description, made)
    }
}

/// Adds the marks of a group.
#[derive(Debug)]
struct AddMarks {
    process: TaskId,
    number: u32,
    marks: Vec<Mark>,
    places: Places,
}

impl Action for AddMarks {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let group = fetch(restoring, self.process, self.number)?;
        for mark in &self.marks {
            let Some(path) = watched::path(restoring, &self.places, &mark.watched)? else {
                return Err(Error::new(code::IMAGE_BAD, "fanotify has a mark on what nobody has open"));
            };
            let text = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
            add(&group, mark, &text).map_err(|errno| {
                let code = if errno == Errno::ENOENT { code::FILE_DIFFERS } else { code::DESCRIPTOR_RESTORE };
                Error::system(code, "marking a file again", errno).about(Subject::path(path.display()))
            })?;
        }
        Ok(())
    }
}

fn add(group: &OwnedFd, mark: &Mark, path: &CString) -> std::result::Result<(), Errno> {
    let scope = match mark.scope {
        Scope::Inode => 0,
        Scope::Mount => MOUNT,
        Scope::FileSystem => FILE_SYSTEM,
    };
    let follow = if matches!(mark.watched, Watched::Path(_)) { DONT_FOLLOW } else { 0 };
    let flags = ADD | scope | follow | mark.flags & EVICTABLE;
    if mark.mask != 0 {
        watch::fanotify_mark(group.as_fd(), flags, mark.mask, path)?;
    }
    if mark.ignored != 0 {
        let ignored = if mark.flags & IGNORE != 0 { IGNORE } else { IGNORED_MASK };
        watch::fanotify_mark(group.as_fd(), flags | ignored | mark.flags & SURVIVES, mark.ignored, path)?;
    }
    Ok(())
}
