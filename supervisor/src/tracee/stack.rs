//! What lies below the stack pointer of a thread, where a frame may be put.

use super::sigframe::RED_ZONE;
use crate::proc::maps::MapLine;
use crate::sys::ptrace::Registers;

/// `PROT_WRITE`.
const PROTECTION_WRITE: u8 = 2;
/// Bytes of frames, but for the extended state.
const FRAMES: u64 = 2048;

/// What lies below the stack pointer of a thread; the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// The rest of a stack that is the thread's own: free.
    OwnStack,
    /// Writable memory, which may be somebody's.
    Memory,
    /// Nothing that can be written to.
    None,
}

/// What lies below the red zone of a thread, in the range that frames with an extended state of this many bytes need.
///
/// A stack is known to be the thread's own if it is the main one, or if it has the shape that the C libraries give to
/// those of threads: the thread-local storage at its end, a guard before its start. On any other memory (a heap) there
/// may be a small stack of a language's own, or the thread handles a signal on an alternate stack.
#[must_use]
pub fn below(maps: &[MapLine], registers: &Registers, xstate: usize) -> Room {
    let holds = |map: &MapLine, address: u64| map.start <= address && address < map.end;
    let Some(index) = maps.iter().position(|map| holds(map, registers.rsp)) else { return Room::None };
    let Some(map) = maps.get(index) else { return Room::None };
    let lowest = registers.rsp.saturating_sub(RED_ZONE + FRAMES + xstate as u64);
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
            protection_key: None,
            page_size: 0,
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
            below(&maps, &Registers { rsp, fs_base, ..crate::sys::ptrace::from_words(&[0; 27]) }, 0x800)
        };
        assert_eq!(below(0x7fff_0001_0000, 0), Room::OwnStack);
        assert_eq!(below(0x7fff_0000_0800, 0), Room::None, "too near to its end");
        assert_eq!(below(0x3f_0000, 0x3f_f000), Room::OwnStack);
        assert_eq!(below(0x3f_0000, 0x11_0000), Room::Memory, "somebody else's storage");
        assert_eq!(below(0x18_0000, 0x1f_0000), Room::Memory, "no guard");
        assert_eq!(below(0x50_0000, 0), Room::None);
    }
}
