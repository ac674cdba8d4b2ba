//! Nameless files: regular files whose name was removed while they were in use, that never had one (`O_TMPFILE`), or
//! whose name leads to another file by now.
//!
//! - **Saved**: content (its data, not its holes), size, permissions, owner, modification time, and the old path.
//! - **Not saved**: other names that the file has elsewhere (hard links). The restored file is a file of its own; that
//!   is said in the image as a degradation. Extended attributes.
//! - **Kernel**: `O_TMPFILE` (3.11) in the directory of the old path, else a file that is made and unlinked.

pub mod observe;
pub mod restore;

use vckpt_image_format::Text;

/// What the kernel puts behind the path of a file whose name is gone.
const DELETED: &[u8] = b" (deleted)";

/// The path without the kernel's mark.
#[must_use]
pub fn old_path(link: &Text) -> Text {
    link.0.strip_suffix(DELETED).map_or_else(|| link.clone(), Text::from)
}

/// A time of `stat(2)` in nanoseconds since 1970.
#[must_use]
pub fn nanoseconds(seconds: i64, nanoseconds: u64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanoseconds)
}
