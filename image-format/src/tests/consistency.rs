//! Images whose frames are right and whose records contradict one another.

use super::{ended, map, open, pages, refused, snapshot, stored, with, written, zombie};
use crate::error::FormatError;
use crate::record::mmap_memory::{PageOwner, PageSource};
use crate::record::process_status::{ProcessStatus, State};
use crate::record::shared_segment::{Origin, SharedSegment};
use crate::{ImageWriter, MemoryId, NamelessFileId, SegmentId, TaskId};

const MEMORY: PageOwner = PageOwner::Memory(MemoryId(0));

/// Why an image is inconsistent.
fn why(bytes: &[u8]) -> String {
    let error = refused(bytes);
    let FormatError::Inconsistent { why, .. } = error else { panic!("{error}") };
    why
}

#[test]
fn the_snapshot_is_first_and_only() {
    let empty = ImageWriter::new(Vec::new()).unwrap().finish().unwrap();
    assert_eq!(why(&empty), "it is no snapshot");
    let mut writer = ImageWriter::new(Vec::new()).unwrap();
    writer.record(&ended(7, None)).unwrap();
    writer.record(&snapshot()).unwrap();
    assert_eq!(why(&writer.finish().unwrap()), "it is no snapshot");
    assert_eq!(why(&with(0, &[snapshot()])), "there is more than one such record");
}

#[test]
fn the_root_is_that_of_the_snapshot() {
    assert_eq!(why(&written(|_| ())), "it refers to task 7, which is not in the image");
    let other = written(|writer| writer.record(&ended(8, None)).unwrap());
    assert_eq!(why(&other), "it refers to task 7, which is not in the image");
    assert_eq!(why(&with(0, &[ended(8, None)])), "it has no parent, but the root is process 7");
    assert_eq!(why(&with(0, &[ended(7, None)])), "task 7 is defined a second time");
    assert_eq!(why(&with(0, &[ended(8, Some(7))])), "its parent 7 has ended");
    assert_eq!(why(&with(0, &[ended(8, Some(9))])), "it refers to task 9, which is not in the image");
}

#[test]
fn states() {
    let status =
        |state| ProcessStatus { process: TaskId(7), state, stop_untold: false, continue_untold: false };
    open(&with(0, &[status(zombie(0))])).unwrap();
    assert_eq!(why(&with(0, &[status(State::Running)])), "the process lives, but has no threads");
    let twice = [status(zombie(0)), status(zombie(0))];
    assert_eq!(why(&with(0, &twice)), "process 7 has a second status");
}

#[test]
fn maps() {
    let first = map(0, true, &[(0x1000, 0x3000)]);
    open(&with(0, &[first.clone(), map(1, true, &[(0x1000, 0x3000)]), map(0, false, &[(0x3000, 0x4000)])]))
        .unwrap();
    let why_not = |second| why(&with(0, &[first.clone(), second]));
    assert_eq!(
        why_not(map(0, false, &[(0x2000, 0x4000)])),
        "mapping 0x2000-0x4000 is not behind those of the records before"
    );
    assert_eq!(why_not(map(0, true, &[])), "memory 0 is defined a second time");
    let reversed = [map(0, false, &[]), first.clone()];
    assert_eq!(why(&with(0, &reversed)), "it is the first of its memory, but has no layout");
}

/// Why runs are refused in a memory with mappings at 0x1000-0x5000 and 0x8000-0x9000, with a section of 2 pages.
fn runs(owner: PageOwner, runs: &[(u64, u64, PageSource)]) -> Result<(), String> {
    let bytes = written(|writer| {
        writer.record(&ended(7, None)).unwrap();
        // Pages may come before the map.
        writer.record(&pages(owner, &runs[..1])).unwrap();
        writer.record(&pages(owner, &runs[1..])).unwrap();
        writer.record(&map(0, true, &[(0x1000, 0x3000), (0x3000, 0x5000), (0x8000, 0x9000)])).unwrap();
        let origin = Origin::Anonymous;
        writer.record(&SharedSegment { id: SegmentId(0), size: 4097, origin, huge_page: 0 }).unwrap();
        writer.begin_page_section().unwrap();
        writer.pages(&super::page(1).repeat(2)).unwrap();
    });
    match open(&bytes) {
        Ok(_) => Ok(()),
        Err(FormatError::Inconsistent { why, .. }) => Err(why),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn runs_lie_inside_mappings() {
    runs(MEMORY, &[(0x1000, 4, PageSource::Zero), (0x8000, 1, PageSource::Zero)]).unwrap();
    let outside = "it is not inside the mappings of memory 0";
    for (address, count) in [(0, 1), (0, 2), (0x1000, 5), (0x4000, 5), (0x5000, 1), (0x7000, 2), (0x9000, 1)]
    {
        let error = runs(MEMORY, &[(address, count, PageSource::Zero)]).unwrap_err();
        assert_eq!(error, format!("run of {count} pages at {address:#x}: {outside}"));
    }
}

#[test]
fn runs_lie_inside_segments() {
    let segment = PageOwner::Segment(SegmentId(0));
    runs(segment, &[(0, 2, stored(0, 0))]).unwrap();
    let error = runs(segment, &[(0, 3, PageSource::Zero)]).unwrap_err();
    assert_eq!(error, "run of 3 pages at 0x0: it is not inside segment 0");
    let nameless = PageOwner::NamelessFile(NamelessFileId(3));
    let error = runs(nameless, &[(0, 3, PageSource::Zero)]).unwrap_err();
    assert_eq!(error, "it refers to nameless file 3, which is not in the image");
}

#[test]
fn runs_are_in_order() {
    let behind = "it overlaps one of the records before or is out of order";
    let error = runs(MEMORY, &[(0x2000, 2, PageSource::Zero), (0x3000, 1, PageSource::Zero)]).unwrap_err();
    assert_eq!(error, format!("run of 1 pages at 0x3000: {behind}"));
    let error = runs(MEMORY, &[(0x2000, 1, PageSource::Zero), (0x1000, 1, PageSource::Zero)]).unwrap_err();
    assert_eq!(error, format!("run of 1 pages at 0x1000: {behind}"));
}

#[test]
fn stored_pages_exist() {
    runs(MEMORY, &[(0x1000, 2, stored(0, 0)), (0x3000, 2, stored(0, 0))]).unwrap();
    for (count, page) in [(3, 0), (2, 1), (1, 2), (1, u64::MAX), (2, u64::MAX - 1)] {
        let error = runs(MEMORY, &[(0x1000, count, stored(0, page))]).unwrap_err();
        assert!(error.ends_with("are not in the 2 of section 0"), "{error}");
    }
    let error = runs(MEMORY, &[(0x1000, 1, stored(1, 0))]).unwrap_err();
    assert_eq!(error, "run of 1 pages at 0x1000: there is no page section 1");
}

#[test]
fn pages_of_a_parent_need_one() {
    let error = runs(MEMORY, &[(0x1000, 1, PageSource::Parent)]).unwrap_err();
    assert_eq!(error, "run of 1 pages at 0x1000: memory 0 has no parent");
    let error = runs(PageOwner::Segment(SegmentId(0)), &[(0, 1, PageSource::Parent)]).unwrap_err();
    assert_eq!(error, "run of 1 pages at 0x0: only a memory can have pages of a parent");
}
