//! Nameless files: files whose name was removed while they were in use, that never had one (`O_TMPFILE`), or whose name
//! leads to another file by now. Mostly regular ones; also directories, FIFOs, symbolic links and the files of sockets.
//!
//! - **Saved**: content (its data, not its holes), size, permissions, owner, modification time, and the old path.
//! - **Other names** (hard links): one in the same directory is found, and then that is what is opened again. One
//!   elsewhere is not: the restored file is a file of its own; that is said in the image as a degradation.
//! - **Not saved**: extended attributes.
//! - **Kernel**: `O_TMPFILE` (3.11) in the directory of the old path; everything else is made with a name, which is
//!   removed at once. Directories on the way that are gone are made for that moment.

pub mod node;
pub mod observe;
pub mod place;
pub mod restore;

use vckpt_image_format::Text;

/// What the kernel puts behind the path of a file whose name is gone.
const DELETED: &[u8] = b" (deleted)";

/// The path without the kernel's mark.
#[must_use]
pub fn old_path(link: &Text) -> Text {
    link.0.strip_suffix(DELETED).map_or_else(|| link.clone(), Text::from)
}

/// Another name that a file has in the directory of its old path: `inode` is device and inode number.
#[must_use]
pub fn other_name(old: &Text, inode: (u64, u64)) -> Option<Text> {
    use std::os::unix::fs::{DirEntryExt, MetadataExt};
    let directory = old.as_path().parent()?;
    let mut entries = std::fs::read_dir(directory).ok()?.flatten();
    // A file system in which `readdir` gives other numbers than `stat` has names that are not found: told as such.
    let found = entries.find(|entry| {
        entry.ino() == inode.1
            && entry.metadata().is_ok_and(|found| (found.dev(), found.ino()) == inode && found.is_file())
    })?;
    Some(Text::from(found.path()))
}

/// A time of `stat(2)` in nanoseconds since 1970.
#[must_use]
pub fn nanoseconds(seconds: i64, nanoseconds: u64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanoseconds)
}
