//! Puts the checksums of a spoiled image right, so that what they would have caught gets to the checks behind them.

use super::open;
use crate::CHUNK_SIZE;
use crate::layout::{IndexHeader, RecordHeader, Trailer};
use crc32c::crc32c;
use std::ops::Range;

/// Where the parts of an image are.
pub(super) struct Parts {
    records: Vec<Range<usize>>,
    /// Of every section: its header, and its pages.
    sections: Vec<(usize, Range<usize>)>,
    pub(super) index: Range<usize>,
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

impl Parts {
    /// The parts of a good image.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let image = open(bytes).unwrap();
        let records: Vec<_> =
            image.frames().map(|frame| size(frame.offset)..size(frame.offset + frame.length)).collect();
        let mut sections: Vec<(usize, Range<usize>)> = Vec::new();
        for section in image.page_sections() {
            let start = size(section.offset);
            let ends = records.iter().map(|record| record.end);
            let before = ends.chain(sections.iter().map(|(_, pages)| pages.end));
            let header = before.filter(|&end| end <= start).max().unwrap_or(64);
            sections.push((header, start..start + size(section.pages) * crate::PAGE_SIZE));
        }
        let end = bytes.len() - Trailer::SIZE;
        let trailer = Trailer::parse(bytes.last_chunk().unwrap(), bytes.len() as u64).unwrap();
        Self { records, sections, index: size(trailer.index_offset)..end }
    }

    /// Puts all checksums right, wherever the parts still are.
    pub(super) fn repair(&self, bytes: &mut [u8]) {
        seal(bytes, 0..60, 60);
        for record in &self.records {
            let crc = RecordHeader::checksum(&bytes[record.clone()]);
            bytes[record.start + 16..record.start + 20].copy_from_slice(&crc.to_le_bytes());
        }
        let mut at = self.index.start
            + IndexHeader::SIZE
            + (self.records.len() + self.sections.len()) * crate::layout::IndexEntry::SIZE;
        for (header, pages) in &self.sections {
            seal(bytes, *header..header + 20, header + 20);
            for chunk in pages.clone().step_by(CHUNK_SIZE) {
                seal(bytes, chunk..pages.end.min(chunk + CHUNK_SIZE), at);
                at += 4;
            }
        }
        seal(bytes, self.index.clone(), self.index.end + 32);
        seal(bytes, self.index.end..self.index.end + 60, self.index.end + 60);
    }
}

/// Writes the checksum of a range to a place.
fn seal(bytes: &mut [u8], range: Range<usize>, at: usize) {
    let crc = crc32c(&bytes[range]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_repaired_image_that_was_good_is_unchanged() {
    let bytes = super::sample();
    let mut repaired = bytes.clone();
    Parts::of(&bytes).repair(&mut repaired);
    assert_eq!(repaired, bytes);
}
