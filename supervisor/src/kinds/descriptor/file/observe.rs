//! Looking at files.

use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::{nameless_file, segment};
use crate::proc::read;
use crate::records::Records;
use rustix::fs::{AtFlags, CWD, SealFlags};
use std::os::fd::AsFd;
use vckpt_image_format::record::file::{File, Target};
use vckpt_image_format::record::shared_segment::Origin;
use vckpt_image_format::{SegmentId, Text};

/// The type of the file system of huge pages.
const HUGETLBFS: i64 = 0x9584_58f6;

/// Gives a record for each file.
///
/// # Errors
/// Directories and devices whose name is gone; files that can't be read.
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for opened in opened {
        if let Some(record) = problems.take(file(opened, records)) {
            records.push(record);
        }
    }
    problems.finish()
}

fn file(opened: &Opened, records: &mut Records) -> Result<File> {
    let mut path = opened.link.clone();
    let target = if is_where_its_path_leads(opened) {
        named(opened)
    } else if is_of_ended_task(opened) {
        path = nameless_file::old_path(&path);
        Target::OfEndedTask
    } else if opened.link.0 == b"/secretmem (deleted)" {
        let size = opened.status.st_size.cast_unsigned();
        Target::Segment(segment::observe::observe_secret(records, opened.inode(), size))
    } else if let Some(name) = memory_file_name(opened) {
        Target::Segment(memory_file(opened, name, records)?)
    } else if opened.file_type() == libc::S_IFDIR && opened.status.st_nlink > 0 {
        return Err(opened
            .refuse(code::DESCRIPTOR_KIND, "the path of an open directory leads elsewhere")
            .hint("something may be mounted over it: close it before the dump"));
    } else {
        path = nameless_file::old_path(&path);
        if let Some(other) = nameless_file::other_name(&path, opened.inode()) {
            path = other;
            named(opened)
        } else {
            let id = nameless_file::observe::observe_nameless(records, opened.file.as_fd(), &path);
            Target::Nameless(id.map_err(|error| error.about(opened.subject.clone()))?)
        }
    };
    Ok(File { description: opened.description.clone(), path, target, position: opened.info.position })
}

/// Whether its path leads to it, and to nothing else.
fn is_where_its_path_leads(opened: &Opened) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let Ok(relative) = opened.link.as_path().strip_prefix("/") else { return false };
    // A tree that was restored into a PID namespace has a `/proc` of its own, in a mount namespace of its own.
    let places = [opened.link.to_path(), read::path(opened.holders[0].pid, "root").join(relative)];
    places.iter().any(|place| {
        rustix::fs::statat(CWD, place, flags)
            .is_ok_and(|found| (found.st_dev, found.st_ino) == opened.inode())
    })
}

/// Whether it is a file of `/proc` about a task; its path leads elsewhere or nowhere, so that task has ended.
fn is_of_ended_task(opened: &Opened) -> bool {
    let rest = opened.link.0.strip_prefix(b"/proc/").unwrap_or_default();
    rest.first().is_some_and(u8::is_ascii_digit)
        && rustix::fs::fstatfs(&opened.file).is_ok_and(|found| found.f_type == libc::PROC_SUPER_MAGIC)
}

fn named(opened: &Opened) -> Target {
    let (major, minor) = opened.device();
    match opened.file_type() {
        libc::S_IFREG if !opened.is_path_only() => Target::Regular {
            size: opened.status.st_size.cast_unsigned(),
            modified: nameless_file::nanoseconds(opened.status.st_mtime, opened.status.st_mtime_nsec),
        },
        libc::S_IFDIR => Target::Directory,
        libc::S_IFCHR => Target::CharacterDevice { major, minor },
        file_type => Target::PathOnly { file_type },
    }
}

/// The name of a memory file: it has no seals if it is none.
fn memory_file_name(opened: &Opened) -> Option<Text> {
    let name = opened.link.0.strip_prefix(b"/memfd:")?;
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    rustix::fs::fcntl_get_seals(&opened.file).ok().map(|_| Text::from(name))
}

fn memory_file(opened: &Opened, name: Text, records: &mut Records) -> Result<SegmentId> {
    let seals = rustix::fs::fcntl_get_seals(&opened.file).unwrap_or(SealFlags::empty()).bits();
    let again = nameless_file::observe::open_to_read(opened.file.as_fd())
        .map_err(|error| error.about(opened.subject.clone()))?;
    let size = opened.status.st_size.cast_unsigned();
    let system = rustix::fs::fstatfs(&opened.file).ok().filter(|system| system.f_type == HUGETLBFS);
    let page = system.and_then(|system| u64::try_from(system.f_bsize).ok()?.checked_ilog2());
    let huge_page = page.and_then(|page| u8::try_from(page).ok()).unwrap_or(0);
    let origin = Origin::Memfd { name, seals };
    Ok(segment::observe::observe_segment(records, again, opened.inode(), size, origin, huge_page))
}
