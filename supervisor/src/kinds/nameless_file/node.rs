//! Making what is no regular file and has no name: with a name, under which it is opened, and which is then removed.

use super::place::{self, Parents};
use crate::error::{Error, Result, Subject, code};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;
use vckpt_image_format::record::nameless_file::{NamelessFile, Sort};

/// Makes it; the descriptor was opened with `O_PATH`.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`] with the kernel's reason.
pub fn make(path: &Path, file: &NamelessFile) -> Result<OwnedFd> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let parents = Parents::make(directory);
    let made = place::new_name(directory, Some(path), |name| make_node(name, &file.sort));
    let opened = made.and_then(|((), name)| {
        let opened = open(&name, file);
        let flags = if file.sort == Sort::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(CWD, &name, flags)?;
        opened
    });
    drop(parents);
    opened.map_err(|errno| {
        Error::system(code::DESCRIPTOR_RESTORE, "making a file without a name", errno)
            .about(Subject::path(path.display()))
    })
}

fn make_node(name: &Path, sort: &Sort) -> std::result::Result<(), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    match sort {
        // Regular files are made without any name.
        Sort::Regular => Err(Errno::INVAL),
        Sort::Directory => rustix::fs::mkdir(name, Mode::RWXU),
        Sort::Fifo => rustix::fs::mknodat(CWD, name, FileType::Fifo, mode, 0),
        Sort::Socket => rustix::fs::mknodat(CWD, name, FileType::Socket, mode, 0),
        Sort::SymbolicLink(target) => rustix::fs::symlink(target.as_path(), name),
    }
}

/// Opens it, and gives it its owner, permissions and time as long as it can be named.
fn open(name: &Path, file: &NamelessFile) -> std::result::Result<OwnedFd, Errno> {
    let opened = rustix::fs::open(name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let has = rustix::fs::fstat(&opened)?;
    let NamelessFile { user, group, mode, modified, .. } = *file;
    if (has.st_uid, has.st_gid) != (user, group) {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        rustix::fs::chownat(CWD, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if !matches!(file.sort, Sort::SymbolicLink(_)) {
        rustix::fs::chmod(name, Mode::from_raw_mode(mode))?;
    }
    let time =
        Timespec { tv_sec: modified.div_euclid(1_000_000_000), tv_nsec: modified.rem_euclid(1_000_000_000) };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(opened)
}
