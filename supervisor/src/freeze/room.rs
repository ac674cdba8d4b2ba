//! Room for the stub: a range of addresses that a process does not use, and what is below its stacks.

use crate::error::{Error, Result, code};
use crate::proc::maps::MapLine;
use crate::stub::agent::Room;
use crate::sys::ptrace::Registers;
use crate::tracee::sigframe::RED_ZONE;

/// Where the search begins: far from where the kernel puts programs, heaps, libraries and stacks.
const LOWEST: u64 = 0x10_0000_0000;
/// First address that user space does not have (47 bits, less the last page).
const END: u64 = 0x7fff_ffff_f000;
/// Distance to the next mapping, so that a stack can grow.
const DISTANCE: u64 = 1 << 20;

/// `PROT_WRITE`.
const PROTECTION_WRITE: u8 = 2;

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

/// What lies below the stack pointer of a thread: `length` bytes below its red zone, to be precise.
///
/// A stack is known to be the thread's own if it is the main one, or if it has the shape that the C libraries give to
/// those of threads: the thread-local storage at its end, a guard before its start. On any other memory (a heap) there
/// may be a small stack of a language's own, or the thread handles a signal on an alternate stack.
pub(super) fn below_stack(maps: &[MapLine], registers: &Registers, length: u64) -> Room {
    let holds = |map: &MapLine, address: u64| map.start <= address && address < map.end;
    let Some(index) = maps.iter().position(|map| holds(map, registers.rsp)) else { return Room::None };
    let Some(map) = maps.get(index) else { return Room::None };
    let lowest = registers.rsp.saturating_sub(RED_ZONE + length);
    if map.protection & PROTECTION_WRITE == 0 || map.shared || lowest < map.start {
        return Room::None;
    }
    let guard = index.checked_sub(1).and_then(|before| maps.get(before));
    let guarded = guard.is_some_and(|guard| guard.end == map.start && guard.protection == 0);
    let of_a_thread =
        guarded && map.inode == 0 && holds(map, registers.fs_base) && registers.fs_base > registers.rsp;
    if map.name == b"[stack]" || of_a_thread { Room::OwnStack } else { Room::Memory }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(start: u64, end: u64, protection: u8, name: &[u8]) -> MapLine {
        MapLine {
            start,
            end,
            protection,
            shared: false,
            offset: 0,
            device: 0,
            inode: 0,
            name: name.to_vec(),
            deleted: false,
            flags: Vec::new(),
        }
    }

    #[test]
    fn only_a_stack_of_the_usual_shape_is_a_threads_own() {
        let maps = [
            map(0x10_0000, 0x20_0000, 3, b""),
            map(0x30_0000, 0x30_1000, 0, b""),
            map(0x30_1000, 0x40_0000, 3, b""),
            map(0x7fff_0000_0000, 0x7fff_0002_0000, 3, b"[stack]"),
        ];
        let below = |rsp: u64, fs_base: u64| {
            below_stack(
                &maps,
                &Registers { rsp, fs_base, ..crate::sys::ptrace::from_words(&[0; 27]) },
                0x1000,
            )
        };
        assert_eq!(below(0x7fff_0001_0000, 0), Room::OwnStack);
        assert_eq!(below(0x7fff_0000_0800, 0), Room::None, "too near to its end");
        assert_eq!(below(0x3f_0000, 0x3f_f000), Room::OwnStack);
        assert_eq!(below(0x3f_0000, 0x11_0000), Room::Memory, "somebody else's storage");
        assert_eq!(below(0x18_0000, 0x1f_0000), Room::Memory, "no guard");
        assert_eq!(below(0x50_0000, 0), Room::None);
    }

    #[test]
    fn a_gap_is_found_behind_what_is_there() {
        assert_eq!(free_range([].into_iter(), 4096), Some(LOWEST));
        let taken =
            [(0x1000, 0x2000), (LOWEST - 0x1000, LOWEST + 0x1000), (0x7000_0000_0000, 0x7000_0000_1000)];
        assert_eq!(free_range(taken.into_iter(), 4096), Some(LOWEST + 0x1000 + DISTANCE));
        assert_eq!(free_range([(0x1000, END - 0x1000)].into_iter(), 4096), None);
    }
}
