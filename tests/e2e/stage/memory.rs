//! Pages and ranges, and what the kernel says of them.

use std::fs;

use super::kernel::{check, pipe};
use super::{Verdict, verify};

pub(crate) const PAGE: usize = 4096;
pub(crate) const READ: i32 = libc::PROT_READ;
pub(crate) const WRITE: i32 = libc::PROT_WRITE;
/// Private memory without a file.
pub(crate) const OWN: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

pub(crate) fn at(place: *mut u8, page: usize) -> *mut u8 {
    place.wrapping_add(page * PAGE)
}

/// Writes a number into the first word of a page.
pub(crate) fn mark(place: *mut u8, value: u64) {
    // SAFETY: callers pass pages that they have mapped writable.
    unsafe { place.cast::<u64>().write_volatile(value) };
}

pub(crate) fn seen(place: *const u8) -> u64 {
    // SAFETY: callers pass pages that can be read.
    unsafe { place.cast::<u64>().read_volatile() }
}

pub(crate) fn advise(place: *mut u8, length: usize, advice: i32) -> bool {
    // SAFETY: callers own the range.
    unsafe { libc::madvise(place.cast(), length, advice) == 0 }
}

pub(crate) fn protect(place: *mut u8, length: usize, protection: i32) {
    // SAFETY: callers own the range.
    check(unsafe { libc::mprotect(place.cast(), length, protection) }).unwrap();
}

/// Whether the kernel can read a byte there for us: with no more rights than we have.
pub(crate) fn readable(place: *const u8) -> bool {
    let ends = pipe(0);
    // SAFETY: the kernel checks the address.
    let written = unsafe { libc::write(ends[1], place.cast(), 1) };
    for end in ends {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(end) };
    }
    written == 1
}

/// What smaps says of the mapping at an address, without the counters.
pub(crate) fn described(place: *const u8) -> String {
    let text = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let (mut found, mut inside) = (String::new(), false);
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let range = range.map(|(start, end)| [start, end].map(|text| usize::from_str_radix(text, 16)));
        if let Some([Ok(start), Ok(end)]) = range {
            inside = (start..end).contains(&place.addr());
            if inside {
                found.push_str(&line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "));
            }
        } else if inside && (line.starts_with("VmFlags") || line.starts_with("ProtectionKey")) {
            found.push_str(&format!(" {}", line.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    found
}

/// Fails unless smaps says the same of each of these places as before.
pub(crate) fn unchanged(before: &[(usize, String)]) -> Verdict {
    for (place, text) in before {
        let now = described(*place as *const u8);
        verify!(now == *text, "{place:#x} was {text}\nand is {now}");
    }
    Ok(())
}

pub(crate) fn descriptions(places: &[*mut u8]) -> Vec<(usize, String)> {
    places.iter().map(|&place| (place as usize, described(place))).collect()
}
