//! Looking at segments.

use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use crate::records::{FileContent, Inode, Records};
use std::os::fd::OwnedFd;
use vckpt_image_format::SegmentId;
use vckpt_image_format::record::mmap_memory::PageOwner;
use vckpt_image_format::record::shared_segment::{Origin, SharedSegment, SystemV};

/// Nothing: segments are seen by those who meet them: see [`observe_segment`].
///
/// # Errors
/// None.
pub fn observe(_frozen: &mut Frozen, _records: &mut Records) -> Result<()> {
    Ok(())
}

/// The identity of a segment that a mapping or descriptor leads to; adds its record and content the first time.
pub fn observe_segment(
    records: &mut Records,
    file: OwnedFd,
    inode: Inode,
    size: u64,
    origin: Origin,
    huge_page: u8,
) -> SegmentId {
    let (id, first) = records.segment(inode);
    if first {
        records.push(SharedSegment { id, size, origin, huge_page });
        records.contents.push(FileContent { owner: PageOwner::Segment(id), file, size });
    }
    id
}

/// The identity of secret memory, whose content nobody can read.
pub fn observe_secret(records: &mut Records, inode: Inode, size: u64) -> SegmentId {
    let (id, first) = records.segment(inode);
    if first {
        records.push(SharedSegment { id, size, origin: Origin::Secret, huge_page: 0 });
        records
            .degraded
            .push(format!("secret memory of {size} bytes (memfd_secret) is restored without its content"));
    }
    id
}

/// A System V segment and its size, from the kernel's list of them.
///
/// # Errors
/// [`code::PROC`] if it is not in the list.
pub fn system_v(id: u64) -> Result<(SystemV, u64)> {
    let failure = |why: String| Error::new(code::PROC, "looking for a System V segment").because(why);
    let text = std::fs::read_to_string("/proc/sysvipc/shm").map_err(|error| failure(error.to_string()))?;
    let line =
        text.lines().skip(1).find_map(|line| parse(line).filter(|(found, _)| u64::from(found.id) == id));
    line.ok_or_else(|| failure(format!("/proc/sysvipc/shm has no ID {id}")))
}

/// A line of `/proc/sysvipc/shm` (proc(5), sysvipc(7)).
fn parse(line: &str) -> Option<(SystemV, u64)> {
    const DESTROY: u32 = 0o1000;
    const LOCKED: u32 = 0o2000;
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| words.get(index)?.parse::<i64>().ok();
    let small = |index: usize| u32::try_from(number(index)?).ok();
    let mode = u32::from_str_radix(words.get(2)?, 8).ok()?;
    let segment = SystemV {
        id: small(1)?,
        key: words.first()?.parse::<i32>().ok()?.cast_unsigned(),
        mode: mode & 0o777,
        owner: (small(7)?, small(8)?),
        creator: (small(9)?, small(10)?),
        changed: number(13)?,
        locked: mode & LOCKED != 0,
        removed: mode & DESTROY != 0,
    };
    Some((segment, number(3)?.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_list() {
        let line = "         7          3  3600                  5000    811    812      2     1     2     3     4 10 20 30 0 0";
        let (segment, size) = parse(line).unwrap();
        assert_eq!((segment.id, segment.key, segment.mode, size), (3, 7, 0o600, 5000));
        assert_eq!((segment.owner, segment.creator, segment.changed), ((1, 2), (3, 4), 30));
        assert!(segment.locked && segment.removed);
    }
}
