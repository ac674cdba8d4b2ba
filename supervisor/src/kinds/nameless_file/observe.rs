//! Looking at nameless files.

use super::nanoseconds;
use crate::error::{Error, Result, Subject, code};
use crate::frozen::Frozen;
use crate::kinds::descriptor::restore::open_again;
use crate::records::{FileContent, Records};
use std::os::fd::{BorrowedFd, OwnedFd};
use vckpt_image_format::record::mmap_memory::PageOwner;
use vckpt_image_format::record::nameless_file::{NamelessFile, Sort};
use vckpt_image_format::{NamelessFileId, Text};

/// Nothing: nameless files are found by what uses them, descriptors and mappings.
///
/// # Errors
/// None.
pub fn observe(_frozen: &mut Frozen, _records: &mut Records) -> Result<()> {
    Ok(())
}

/// The identity of a nameless file; its record and content are added if it is seen for the first time.
/// `file` may be any descriptor of it; `path` is the one that it had.
///
/// # Errors
/// [`code::NOT_PERMITTED`] if it can't be opened for reading.
pub fn observe_nameless(records: &mut Records, file: BorrowedFd<'_>, path: &Text) -> Result<NamelessFileId> {
    let Content { id, is_new, links } = observe_content(records, file, path)?;
    if is_new && links > 0 {
        records
            .degraded
            .push(format!("{path}: has other names elsewhere ({links}); restored as a file of its own"));
    }
    Ok(id)
}

/// A file whose content travels in the image.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// Its identity.
    pub id: NamelessFileId,
    /// Whether it was seen for the first time.
    pub is_new: bool,
    /// Names that it has.
    pub links: u32,
}

/// As [`observe_nameless`], for a file that may have names.
///
/// # Errors
/// [`code::NOT_PERMITTED`] if it can't be opened for reading.
pub fn observe_content(records: &mut Records, file: BorrowedFd<'_>, path: &Text) -> Result<Content> {
    let status = rustix::fs::fstat(file)
        .map_err(|errno| Error::system(code::PROC, "looking at a file without a name", errno))?;
    let (id, is_new) = records.nameless_file((status.st_dev, status.st_ino));
    let links = u32::try_from(status.st_nlink).unwrap_or(u32::MAX);
    if !is_new {
        return Ok(Content { id, is_new, links });
    }
    let sort = sort(file, status.st_mode, path)?;
    let is_regular = sort == Sort::Regular;
    // Only what a regular file holds is a matter of its size.
    let size = if is_regular { status.st_size.cast_unsigned() } else { 0 };
    if is_regular {
        records.contents.push(FileContent {
            owner: PageOwner::NamelessFile(id),
            file: open_to_read(file)?,
            size,
        });
    }
    records.push(NamelessFile {
        id,
        path: path.clone(),
        mode: status.st_mode & 0o7777,
        user: status.st_uid,
        group: status.st_gid,
        size,
        links,
        modified: nanoseconds(status.st_mtime, status.st_mtime_nsec),
        sort,
    });
    Ok(Content { id, is_new, links })
}

/// What it is.
fn sort(file: BorrowedFd<'_>, mode: u32, path: &Text) -> Result<Sort> {
    Ok(match mode & libc::S_IFMT {
        libc::S_IFREG => Sort::Regular,
        libc::S_IFDIR => Sort::Directory,
        libc::S_IFIFO => Sort::Fifo,
        libc::S_IFSOCK => Sort::Socket,
        libc::S_IFLNK => {
            let target = rustix::fs::readlinkat(file, c"", Vec::new()).map_err(|errno| {
                Error::system(code::PROC, "looking where a symbolic link without a name leads", errno)
            })?;
            Sort::SymbolicLink(Text::from(target.as_bytes()))
        }
        _ => {
            return Err(Error::new(code::DESCRIPTOR_KIND, "the path of an open device is gone")
                .hint("its name was removed or leads elsewhere: close it before the dump")
                .about(Subject::path(path)));
        }
    })
}

/// The same file opened for reading, as a description of its own: a position that can be moved.
///
/// # Errors
/// [`code::NOT_PERMITTED`] if it can't be opened for reading; see open(2).
pub fn open_to_read(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    open_again(file, libc::O_RDONLY.cast_unsigned()).map_err(|errno| {
        Error::system(code::NOT_PERMITTED, "opening a file without a name to copy its content", errno)
    })
}
