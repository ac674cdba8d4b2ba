//! Files by path: regular files, directories, harmless character devices, and whatever was opened with `O_PATH`.
//!
//! - **Saved**: path, position, access mode and status flags. A file whose name is gone, or leads elsewhere by now, is
//!   a [nameless file](crate::kinds::nameless_file) whose content travels in the image; a memory file is a
//!   segment.
//! - **Not saved**: the content of files with a name. A file that has shrunk, is missing, or is of another type when
//!   it is restored is an error; one that has grown is taken as it is.
//! - **Devices**: null, zero, full, random, urandom, kmsg, which have no state. Terminals are a kind of their own.

pub mod observe;
pub mod restore;

use super::opened::Opened;

/// Whether it is a file that is known by its path.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    if opened.is_path_only() {
        return true;
    }
    match opened.file_type() {
        libc::S_IFREG => opened.link.0.starts_with(b"/"),
        libc::S_IFDIR => true,
        libc::S_IFCHR => matches!(opened.device(), (1, 3 | 5 | 7 | 8 | 9 | 11)),
        _ => false,
    }
}
