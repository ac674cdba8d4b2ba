//! What making a description needs, whatever it leads to.

use super::owners;
use crate::error::{Error, Result, Subject, code};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::file;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use vckpt_image_format::record::description::Description;

/// Status flags that `F_SETFL` sets.
pub(super) const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME).cast_unsigned();
/// Flags that are not given to `open(2)`: of making a file, and those that only `F_SETFL` may bring about.
const NOT_FOR_OPEN: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC;

/// Keeps a description that was made, after giving it its status flags. Its signals come later: see
/// [`owners`].
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`] with the kernel's reason; see fcntl(2).
pub fn keep(restoring: &mut Restoring<'_>, description: &Description, made: OwnedFd) -> Result<()> {
    if description.flags & libc::O_PATH.cast_unsigned() == 0 {
        if owners::sends(description) {
            restoring.senders.push(description.clone());
        }
        prepare(description, made.as_fd())
            .map_err(|error| error.about(Subject::path(format!("description {}", description.id))))?;
    }
    restoring.descriptions.insert(description.id, made);
    Ok(())
}

fn prepare(description: &Description, made: BorrowedFd<'_>) -> Result<()> {
    let failed = |what, errno: nix::errno::Errno| Error::system(code::DESCRIPTOR_RESTORE, what, errno);
    let has = file::status_flags(made).map_err(|errno| failed("asking for the flags of a file", errno))?;
    if (has ^ description.flags) & SETTABLE != 0 {
        file::set_status_flags(made, description.flags & SETTABLE)
            .map_err(|errno| failed("setting the flags of a file", errno))?;
    }
    Ok(())
}

/// Opens a path as a description had it open.
///
/// # Errors
/// What `open(2)` says.
pub fn open(path: &Path, flags: u32) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    let flags = (flags.cast_signed() & !NOT_FOR_OPEN) | libc::O_CLOEXEC | libc::O_NOCTTY;
    let flags = rustix::fs::OFlags::from_bits_retain(flags.cast_unsigned());
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
}

/// Opens once more what a descriptor of ours leads to: another description of it.
///
/// # Errors
/// What `open(2)` says.
pub fn open_again(file: BorrowedFd<'_>, flags: u32) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    // `O_TMPFILE` has the bit of `O_DIRECTORY`, which is harmless only if it is alone.
    let temporary =
        if flags.cast_signed() & libc::O_TMPFILE == libc::O_TMPFILE { libc::O_TMPFILE } else { 0 };
    let not_wanted = (temporary | libc::O_NOFOLLOW).cast_unsigned();
    open(&by_descriptor(file), flags & !not_wanted)
}

/// A path that leads to what a descriptor of ours leads to, also if that has no name.
#[must_use]
pub fn by_descriptor(file: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Closes this program's copies of the descriptions, when all tables have theirs.
#[derive(Debug)]
pub struct CloseCopies;

impl Action for CloseCopies {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        restoring.descriptions.clear();
        Ok(())
    }
}
