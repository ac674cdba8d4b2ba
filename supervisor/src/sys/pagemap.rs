//! Finding pages: the `PAGEMAP_SCAN` ioctl of `/proc/<pid>/pagemap` (Linux 6.7 and later), and before that the words of
//! that file.
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
/// See the documentation; `EINVAL` if the kernel does not know a category.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    mut found: impl FnMut(Region),
) -> Result<(), Errno> {
    match scan_by_kernel(pagemap, start, end, query, &mut found) {
        Err(Errno::ENOTTY) => scan_by_words(pagemap, start, end, query, &mut found),
        result => result,
    }
}

/// Pages whose words are read at a time.
const WORDS: usize = 4096;
const PAGE: u64 = 4096;

/// As [`scan`], without the help of the kernel. Nobody tells which pages are the shared page of zeros: they count as
/// pages, and are stored.
fn scan_by_words(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    found: &mut impl FnMut(Region),
) -> Result<(), Errno> {
    let mut bytes = vec![0; WORDS * 8];
    let mut open: Option<Region> = None;
    let mut address = start;
    while address < end {
        let count = usize::try_from((end - address) / PAGE).unwrap_or(WORDS).min(WORDS);
        let wanted = bytes.get_mut(..count * 8).unwrap_or_default();
        let read = rustix::io::pread(pagemap, &mut *wanted, address / PAGE * 8)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        if read < 8 {
            break;
        }
        for word in wanted.get(..read / 8 * 8).unwrap_or_default().chunks_exact(8) {
            let categories = categories(word.try_into().map_or(0, u64::from_le_bytes));
            if categories & query.any_of != 0 && categories & query.none_of == 0 {
                match &mut open {
                    Some(region) => region.end = address + PAGE,
                    None => open = Some(Region { start: address, end: address + PAGE, categories: 0 }),
                }
            } else if let Some(region) = open.take() {
                found(region);
            }
            address += PAGE;
        }
    }
    if let Some(region) = open {
        found(region);
    }
    Ok(())
}

/// The categories of a page by its word in `pagemap`.
fn categories(word: u64) -> u64 {
    let bit = |number: u32, category: u64| if word >> number & 1 == 1 { category } else { 0 };
    bit(63, PRESENT) | bit(62, SWAPPED) | bit(61, FILE)
}

fn scan_by_kernel(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    found: &mut impl FnMut(Region),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn words_tell_the_same_pages_as_the_kernel() {
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let query = Query { any_of: PRESENT | SWAPPED, none_of: FILE };
        let length = 64 * 4096;
        let mut memory = vec![0_u8; length + 4096];
        let start = (memory.as_ptr().expose_provenance() as u64).next_multiple_of(4096);
        let offset = usize::try_from(start).unwrap() - memory.as_ptr().expose_provenance();
        for page in [0, 1, 5, 6, 7, 40, 63] {
            memory[offset + page * 4096] = 1;
        }
        let end = start + length as u64;
        let (mut by_words, mut by_kernel) = (Vec::new(), Vec::new());
        scan_by_words(pagemap.as_fd(), start, end, query, &mut |region| by_words.push(region)).unwrap();
        if scan_by_kernel(pagemap.as_fd(), start, end, query, &mut |region| by_kernel.push(region)).is_ok() {
            assert_eq!(by_words, by_kernel);
        }
        let pages: u64 = by_words.iter().map(|region| (region.end - region.start) / 4096).sum();
        assert!(pages >= 7, "{by_words:?}");
        drop(memory);
    }
}
