//! Which memory a child may share with its parent by copy-on-write: the same rule for dump and restore.

use vckpt_image_format::record::process_map::{Mapping, Source, flag};

/// Ranges in which parent and child have private memory of the same source at the same addresses, in order.
#[must_use]
pub fn common_ranges(parent: &[Mapping], child: &[Mapping]) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let (mut p, mut c) = (0, 0);
    while let (Some(of_parent), Some(of_child)) = (parent.get(p), child.get(c)) {
        let start = of_parent.start.max(of_child.start);
        let end = of_parent.end.min(of_child.end);
        if start < end && compatible(of_parent, of_child) {
            ranges.push((start, end));
        }
        if of_parent.end <= of_child.end {
            p += 1;
        } else {
            c += 1;
        }
    }
    ranges
}

fn compatible(parent: &Mapping, child: &Mapping) -> bool {
    const NOT_INHERITED: u32 = flag::DO_NOT_COPY | flag::WIPE_ON_FORK | flag::DROPPABLE;
    if parent.shared || child.shared || parent.flags & NOT_INHERITED != 0 || child.flags & NOT_INHERITED != 0
    {
        return false;
    }
    // These are not inherited, or set anew.
    const FREE: u32 = flag::LOCKED | flag::LOCKED_ON_FAULT | flag::ACCOUNTED | flag::SEALED | flag::GUARDS;
    if (parent.flags ^ child.flags) & !FREE != 0 || parent.policy != child.policy {
        return false;
    }
    // A page of hugetlbfs is not found by its frame.
    if parent.huge_page != 0 || child.huge_page != 0 {
        return false;
    }
    match (&parent.source, &child.source) {
        (Source::Anonymous, Source::Anonymous) => parent.name == child.name,
        (Source::File { file: one, offset: first }, Source::File { file: other, offset: second }) => {
            one == other && parent.start.wrapping_sub(*first) == child.start.wrapping_sub(*second)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(start: u64, end: u64, flags: u32) -> Mapping {
        Mapping {
            start,
            end,
            protection: 3,
            shared: false,
            flags,
            source: Source::Anonymous,
            name: None,
            protection_key: 0,
            policy: None,
            huge_page: 0,
        }
    }

    #[test]
    fn ranges_are_cut_to_what_both_have() {
        let parent = [anonymous(0x1000, 0x5000, 0), anonymous(0x8000, 0x9000, 0)];
        let child = [anonymous(0x3000, 0x6000, 0), anonymous(0x8000, 0xa000, 0)];
        assert_eq!(common_ranges(&parent, &child), [(0x3000, 0x5000), (0x8000, 0x9000)]);
    }

    #[test]
    fn what_fork_does_not_copy_is_not_shared() {
        let parent = [anonymous(0x1000, 0x5000, flag::DO_NOT_COPY)];
        assert!(common_ranges(&parent, &[anonymous(0x1000, 0x5000, 0)]).is_empty());
    }
}
