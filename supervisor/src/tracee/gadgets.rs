//! Instructions that a process has anyway and that we need: `syscall; ret`, and the C library's `rt_sigreturn`.
//!
//! They are looked for in the vdso, the C library, and then everything that is executable. A program without a
//! `rt_sigreturn` (it never handles signals, and has no C library) can be dumped all the same; only the way home
//! through its own code is then missing, see [`Gadgets::signal_return`].

use super::sigframe::Gadgets;
use crate::error::{Error, Result, code};
use crate::proc::maps::MapLine;
use memchr::memmem;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Offsets within a mapping of a file: of `syscall; ret`, of a bare `syscall`, of `rt_sigreturn`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    call_and_return: Option<u64>,
    call: Option<u64>,
    signal_return: Option<u64>,
}

impl Found {
    /// Whether the instructions are at these offsets of a mapping.
    fn is_there(&self, memory: &File, map: &MapLine) -> bool {
        let holds = |offset: Option<u64>, sequences: &[&[u8]]| {
            offset.is_none_or(|offset| {
                sequences.iter().any(|sequence| holds(memory, map.start + offset, sequence))
            })
        };
        holds(self.call_and_return, &[CALL_AND_RETURN])
            && holds(self.call, &[CALL])
            && holds(self.signal_return, &SIGNAL_RETURN)
    }
}

/// Whether these bytes are at an address.
fn holds(memory: &File, address: u64, bytes: &[u8]) -> bool {
    let mut found = [0; 16];
    let Some(found) = found.get_mut(..bytes.len()) else { return false };
    memory.read_exact_at(found, address).is_ok() && found == bytes
}

/// Whether both instructions of a program are where they were found once.
#[must_use]
pub fn are_there(gadgets: Gadgets, memory: &File) -> bool {
    holds(memory, gadgets.call_and_return, CALL_AND_RETURN)
        && SIGNAL_RETURN.iter().any(|sequence| holds(memory, gadgets.signal_return, sequence))
}

/// What was found in files that several processes map: by device, inode and offset.
pub type Cache = HashMap<(u64, u64, u64), Found>;

const CHUNK: usize = 256 * 1024;
/// Longer than any of the sequences, so that none is lost between chunks.
const OVERLAP: usize = 16;
const CALL_AND_RETURN: &[u8] = &[0x0f, 0x05, 0xc3];
const CALL: &[u8] = &[0x0f, 0x05];
/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`.
const SIGNAL_RETURN: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];

/// Finds the instructions in a process with these mappings and this memory.
///
/// # Errors
/// [`code::INJECT`] if it has not even a `syscall`.
pub fn find(maps: &[MapLine], memory: &File, cache: &mut Cache) -> Result<Gadgets> {
    let mut executable: Vec<&MapLine> =
        maps.iter().filter(|map| map.protection & 5 == 5 && map.name != b"[vsyscall]").collect();
    executable.sort_by_key(|map| rank(map));
    let mut total = Found::default();
    for map in executable {
        let key = (map.device, map.inode, map.offset);
        // A program may have changed its code.
        let found = match cache.get(&key) {
            Some(found) if map.inode != 0 && found.is_there(memory, map) => *found,
            _ => search(memory, map),
        };
        if map.inode != 0 {
            cache.insert(key, found);
        }
        let at = |offset: Option<u64>| offset.map(|offset| map.start + offset);
        total.call_and_return = total.call_and_return.or(at(found.call_and_return));
        total.call = total.call.or(at(found.call));
        total.signal_return = total.signal_return.or(at(found.signal_return));
        if total.call_and_return.is_some() && total.signal_return.is_some() {
            break;
        }
    }
    let call = total
        .call_and_return
        .or(total.call)
        .ok_or_else(|| Error::new(code::INJECT, "the program has no system call instruction anywhere"))?;
    let signal_return = total.call_and_return.and(total.signal_return);
    Ok(Gadgets { call_and_return: call, signal_return: signal_return.unwrap_or(0) })
}

/// Where the search is shortest.
fn rank(map: &MapLine) -> u8 {
    let name = map.name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    match name {
        b"[vdso]" => 0,
        _ if name.starts_with(b"libc.") || name.starts_with(b"libc-") || name.starts_with(b"ld-musl") => 1,
        _ => 2,
    }
}

fn search(memory: &File, map: &MapLine) -> Found {
    let mut found = Found::default();
    let mut buffer = vec![0; CHUNK + OVERLAP];
    let mut offset = 0;
    while map.start + offset < map.end {
        let length = usize::try_from(map.end - map.start - offset).unwrap_or(usize::MAX).min(buffer.len());
        let Some(bytes) = buffer.get_mut(..length) else { break };
        if memory.read_exact_at(bytes, map.start + offset).is_err() {
            break;
        }
        let position = |needle: &[u8]| memmem::find(bytes, needle).map(|index| offset + index as u64);
        found.call_and_return = found.call_and_return.or_else(|| position(CALL_AND_RETURN));
        found.call = found.call.or_else(|| position(CALL));
        found.signal_return = found.signal_return.or_else(|| SIGNAL_RETURN.into_iter().find_map(position));
        if found.call_and_return.is_some() && found.signal_return.is_some() {
            break;
        }
        offset += CHUNK as u64;
    }
    found
}
