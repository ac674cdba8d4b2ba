//! Room for the stub: a range of addresses that a process does not use.

use crate::error::{Error, Result, code};
use crate::proc::maps::MapLine;

/// Where the search begins: far from where the kernel puts programs, heaps, libraries and stacks.
const LOWEST: u64 = 0x10_0000_0000;
/// First address that user space does not have (47 bits, less the last page).
const END: u64 = 0x7fff_ffff_f000;
/// Distance to the next mapping, so that a stack can grow.
const DISTANCE: u64 = 1 << 20;

/// The lowest free range of this length.
///
/// # Errors
/// [`code::INJECT`] if there is none.
pub(super) fn find(maps: &[MapLine], length: u64) -> Result<u64> {
    free_range(maps.iter().map(|map| (map.start, map.end)), length)
        .ok_or_else(|| Error::new(code::INJECT, "no free addresses for the stub"))
}

/// The lowest free range of this length between ranges that are in the order of their addresses.
pub fn free_range(ranges: impl Iterator<Item = (u64, u64)>, length: u64) -> Option<u64> {
    let mut candidate = LOWEST;
    for (start, end) in ranges {
        if start >= END || candidate + length + DISTANCE <= start {
            break;
        }
        candidate = candidate.max(end + DISTANCE);
    }
    (candidate + length + DISTANCE <= END).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_found_behind_what_is_there() {
        assert_eq!(free_range([].into_iter(), 4096), Some(LOWEST));
        let taken =
            [(0x1000, 0x2000), (LOWEST - 0x1000, LOWEST + 0x1000), (0x7000_0000_0000, 0x7000_0000_1000)];
        assert_eq!(free_range(taken.into_iter(), 4096), Some(LOWEST + 0x1000 + DISTANCE));
        assert_eq!(free_range([(0x1000, END - 0x1000)].into_iter(), 4096), None);
    }
}
