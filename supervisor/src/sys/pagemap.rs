//! Finding pages: the `PAGEMAP_SCAN` ioctl of `/proc/<pid>/pagemap` (Linux 6.7 and later).
//!
//! Documentation/admin-guide/mm/pagemap.rst in the kernel's sources.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `PAGE_IS_FILE`: the page belongs to a file.
pub const FILE: u64 = 1 << 2;
/// `PAGE_IS_PRESENT`: the page is in memory.
pub const PRESENT: u64 = 1 << 3;
/// `PAGE_IS_SWAPPED`: the page is in swap.
pub const SWAPPED: u64 = 1 << 4;
/// `PAGE_IS_PFNZERO`: the page is the shared page of zeros.
pub const ZERO: u64 = 1 << 5;

/// `PAGE_IS_GUARD`: the page is in a guard region (Linux 6.16; before it such pages count as [`SWAPPED`]).
pub const GUARD: u64 = 1 << 8;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Categories of which at least one must hold.
    pub any_of: u64,
    /// Categories that must not hold.
    pub none_of: u64,
}

/// Pages with consecutive addresses: start and end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// Address of the first page.
    pub start: u64,
    /// First address behind the last page.
    pub end: u64,
    /// Which of the categories that were asked for hold.
    pub categories: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// Finds the pages of a range and hands each run to `found`, in the order of addresses. Of the categories only
/// [`GUARD`] is told.
///
/// # Errors
/// `ENOTTY` where the kernel lacks it; else see the documentation.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    mut found: impl FnMut(Region),
) -> Result<(), Errno> {
    let mut regions = [Region::default(); 512];
    let mut start = start;
    while start < end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start,
            end,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            category_inverted: query.none_of,
            category_mask: query.none_of,
            category_anyof_mask: query.any_of,
            return_mask: query.any_of & GUARD,
            ..ScanArguments::default()
        };
        // SAFETY: the arguments and the array of regions that they name are live and exclusively borrowed.
        let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let count = usize::try_from(Errno::result(result)?).unwrap_or(0);
        for region in regions.get(..count).unwrap_or_default() {
            found(*region);
        }
        if arguments.walk_end <= start {
            break;
        }
        start = arguments.walk_end;
    }
    Ok(())
}
