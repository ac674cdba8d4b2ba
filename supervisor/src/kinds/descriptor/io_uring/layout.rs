//! The shape of a ring: flags of the setup that only the layout of its memory tells.

use crate::proc::io_uring::RingInfo;
use crate::sys::io_uring::{ENTRIES, RINGS, Window};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use vckpt_image_format::record::io_uring::IoUring;

/// Bytes of a page.
const PAGE: usize = 4096;

/// What the memory of a ring holds.
#[derive(Debug)]
pub struct Contents {
    /// The rings, as far as they have a meaning.
    pub rings: Vec<u8>,
    /// The entries.
    pub entries: Vec<u8>,
}

impl Contents {
    /// Reads the memory of a ring of this shape.
    ///
    /// # Errors
    /// What the kernel says; `EPROTO` if there is less than it should be.
    pub fn read(ring: BorrowedFd<'_>, flags: u32, info: &RingInfo) -> Result<Self, Errno> {
        let (sq, cq) = (info.submission_entries, info.completion_entries);
        let rings = whole(ring, RINGS, IoUring::rings_length(flags, sq, cq))?;
        let entries = whole(ring, ENTRIES, sq as usize * IoUring::entry_length(flags))?;
        Ok(Self { rings, entries })
    }

    /// A word of the rings.
    #[must_use]
    pub fn word(&self, offset: usize) -> u32 {
        word(&self.rings, offset)
    }
}

/// A word of 32 bits; 0 behind the end.
#[must_use]
pub fn word(bytes: &[u8], offset: usize) -> u32 {
    let found = bytes.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
    found.map_or(0, u32::from_le_bytes)
}

fn whole(ring: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let bytes = all(ring, offset, length.next_multiple_of(PAGE))?;
    bytes.get(..length).map(<[u8]>::to_vec).ok_or(Errno::EPROTO)
}

/// The pages that a part of a ring has, up to this length.
fn all(ring: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let window = Window::map(ring, offset, length)?;
    let mut bytes = vec![0; length];
    let mut end = 0;
    for page in bytes.chunks_mut(PAGE) {
        match window.read(end, page) {
            Ok(count) if count == page.len() => end += count,
            Ok(_) | Err(Errno::EFAULT) => break,
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(end);
    Ok(bytes)
}

/// The flags that the layout tells. What can't be told apart is a ring that was hardly used: it is taken for the common
/// kind. Entries and completions of the large kind are for devices, which a dump refuses; without an array every request
/// is in the place of its number, where programs put it with one too.
///
/// # Errors
/// As [`Contents::read`].
pub fn flags(ring: BorrowedFd<'_>, info: &RingInfo) -> Result<u32, Errno> {
    let (sq, cq) = (info.submission_entries, info.completion_entries);
    let large = IoUring::LARGE_COMPLETIONS;
    let most = IoUring::rings_length(large, sq, cq).next_multiple_of(PAGE);
    let rings = all(ring, RINGS, most)?;
    let entries = all(ring, ENTRIES, (sq as usize * 128).next_multiple_of(PAGE))?;
    let flags = of_rings(&rings, info);
    Ok(flags | of_entries(&entries, &places(&rings, flags, info), info))
}

/// Whether there is anything but zeros in a range.
fn is_used(bytes: &[u8], range: std::ops::Range<usize>) -> bool {
    bytes.get(range).is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0))
}

fn of_rings(rings: &[u8], info: &RingInfo) -> u32 {
    let (sq, cq) = (info.submission_entries, info.completion_entries);
    let fits = |flags: u32| IoUring::rings_length(flags, sq, cq).next_multiple_of(PAGE) == rings.len();
    let (large, direct) = (IoUring::LARGE_COMPLETIONS, IoUring::NO_ARRAY);
    let has_array = |flags: u32| {
        let from = IoUring::array(flags, cq);
        is_used(rings, from..from + sq as usize * 4)
    };
    let is_large = match info.large_completions {
        Some(is_large) => is_large,
        None if !fits(0) && !fits(direct) => true,
        None if !fits(large) && !fits(large | direct) => false,
        // Behind as many small completions as were given, and behind the array, only large ones go on.
        None => {
            let given = IoUring::COMPLETIONS + info.given.min(cq) as usize * 16;
            let end = IoUring::rings_length(0, sq, cq);
            is_used(rings, given..IoUring::array(0, cq)) || is_used(rings, end..IoUring::array(large, cq))
        }
    };
    let flags = if is_large { large } else { 0 };
    let is_direct = match (fits(flags), fits(flags | direct)) {
        (true, false) => false,
        (false, true) => true,
        _ => !has_array(flags),
    };
    if is_direct { flags | direct } else { flags }
}

/// The places that requests were in; none if that may be all.
fn places(rings: &[u8], flags: u32, info: &RingInfo) -> Option<Vec<usize>> {
    let (count, entries) = (info.submission_tail, info.submission_entries);
    let array = IoUring::array(flags, info.completion_entries);
    let place = |position: usize| {
        if flags & IoUring::NO_ARRAY != 0 { position } else { word(rings, array + position * 4) as usize }
    };
    (count < entries).then(|| (0..count as usize).map(place).collect())
}

fn of_entries(entries: &[u8], places: &Option<Vec<usize>>, info: &RingInfo) -> u32 {
    let sq = info.submission_entries as usize;
    let (small, large) = (sq * 64, sq * 128);
    let fits = |length: usize| length.next_multiple_of(PAGE) == entries.len();
    let is_large = match (fits(small), fits(large)) {
        (true, false) => false,
        (false, true) => true,
        // Where no small entry was, only large ones go on.
        _ => {
            let is_free = |place: &usize| places.as_ref().is_some_and(|places| !places.contains(place));
            is_used(entries, small..large)
                || (0..sq).filter(is_free).any(|place| is_used(entries, place * 64..place * 64 + 64))
        }
    };
    if is_large { IoUring::LARGE_ENTRIES } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(sq: u32, cq: u32) -> RingInfo {
        RingInfo { submission_entries: sq, completion_entries: cq, ..RingInfo::default() }
    }

    #[test]
    fn an_array_is_what_stands_behind_the_completions() {
        let mut rings = vec![0; PAGE];
        assert_eq!(of_rings(&rings, &info(8, 16)), IoUring::NO_ARRAY);
        rings[64 + 16 * 16 + 4] = 1;
        assert_eq!(of_rings(&rings, &info(8, 16)), 0);
    }

    #[test]
    fn sizes_tell_where_they_differ() {
        // 64 + 512 * 16 = 8256 bytes, with an array of 256 words 9280.
        assert_eq!(of_rings(&vec![0; 3 * PAGE], &info(256, 512)), IoUring::NO_ARRAY);
        // 64 + 4096 * 16 = 65600; with an array of 2048 words 73792.
        assert_eq!(of_rings(&vec![0; 17 * PAGE], &info(2048, 4096)), IoUring::NO_ARRAY);
        assert_eq!(of_rings(&vec![0; 19 * PAGE], &info(2048, 4096)), 0);
        let large = IoUring::LARGE_COMPLETIONS;
        assert_eq!(of_rings(&vec![0; 5 * PAGE], &info(256, 512)), large | IoUring::NO_ARRAY);
        assert_eq!(of_entries(&vec![0; PAGE], &None, &info(64, 128)), 0);
        assert_eq!(of_entries(&vec![0; 2 * PAGE], &None, &info(64, 128)), IoUring::LARGE_ENTRIES);
    }

    #[test]
    fn entries_are_where_requests_were() {
        let mut entries = vec![0; PAGE];
        entries[7 * 64] = 1;
        assert_eq!(of_entries(&entries, &Some(vec![7]), &info(8, 16)), 0);
        assert_eq!(of_entries(&entries, &Some(vec![0, 1]), &info(8, 16)), IoUring::LARGE_ENTRIES);
        assert_eq!(of_entries(&entries, &None, &info(8, 16)), 0);
        entries[8 * 64] = 1;
        assert_eq!(of_entries(&entries, &None, &info(8, 16)), IoUring::LARGE_ENTRIES);
    }
}
