//! The skeleton of an image: header, trailer and index, and that the frames of the index cover the file without gap
//! or overlap. What is in the frames is verified by [`records`](super::records) and [`pages`](super::pages).

use super::{PageSection, read_at, read_fixed};
use crate::error::FormatError;
use crate::layout::{
    CHUNK_SIZE, Content, FRAME_ALIGNMENT, Header, IndexEntry, IndexHeader, MAX_CHUNKS, MAX_FRAMES,
    MAX_RECORD_BYTES, PAGE_SIZE, SectionHeader, Trailer, is_zero, u32_at,
};
use crc32c::crc32c;
use std::fs::File;

/// The verified skeleton.
#[derive(Debug)]
pub(super) struct Structure {
    /// Length of the file.
    pub(super) length: u64,
    /// The record frames in the order of the file.
    pub(super) records: Vec<RecordPlace>,
    /// Length of all of them.
    pub(super) record_bytes: u64,
    /// The page sections by number.
    pub(super) sections: Vec<Section>,
    /// The checksums of the chunks of all sections, one section after the other.
    pub(super) chunks: Vec<u32>,
}

/// Where a record frame is, by the index.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordPlace {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) kind: u16,
}

/// Where the pages of a section are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    /// Where the first page is.
    pub(super) offset: u64,
    /// Length of the pages in bytes.
    pub(super) length: u64,
}

impl Section {
    /// What is public of it.
    pub(super) fn public(&self) -> PageSection {
        PageSection { offset: self.offset, pages: self.length / PAGE_SIZE as u64 }
    }

    fn chunks(&self) -> u64 {
        self.length.div_ceil(CHUNK_SIZE as u64)
    }
}

impl Structure {
    /// Reads and verifies the skeleton.
    pub(super) fn read(file: &File) -> Result<Self, FormatError> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(FormatError::NotRegular);
        }
        let length = metadata.len();
        read_header(file, length)?;
        let end = length
            .checked_sub(Trailer::SIZE as u64)
            .filter(|&end| end >= Header::SIZE as u64)
            .ok_or_else(|| FormatError::Truncated { what: "it ends behind its header".to_owned() })?;
        let trailer = Trailer::parse(&read_fixed(file, end)?, length)?;
        let index = read_index(file, &trailer, end)?;
        let mut structure =
            Self { length, records: Vec::new(), record_bytes: 0, sections: Vec::new(), chunks: Vec::new() };
        structure.fill(file, &trailer, &index)?;
        Ok(structure)
    }

    /// Goes through the index: every frame must begin where the one before ends.
    fn fill(&mut self, file: &File, trailer: &Trailer, index: &[u8]) -> Result<(), FormatError> {
        let at = trailer.index_offset;
        let malformed = |what: &str| FormatError::damaged(at, format_args!("the index {what}"));
        let (header, rest) = index.split_first_chunk().ok_or_else(|| malformed("is too short"))?;
        let header = IndexHeader::parse(header).ok_or_else(|| malformed("has no header"))?;
        limit("records and page sections", header.frames, MAX_FRAMES)?;
        limit("chunks of page data", header.chunks, MAX_CHUNKS)?;
        let content = usize::try_from(header.content_length()).unwrap_or(usize::MAX);
        let padding = index.get(content..).ok_or_else(|| malformed("is shorter than its contents"))?;
        if padding.len() as u64 >= FRAME_ALIGNMENT || !is_zero(padding) {
            return Err(malformed("is longer than its contents"));
        }
        let entries = usize::try_from(header.frames).unwrap_or(usize::MAX) * IndexEntry::SIZE;
        let (entries, checksums) = rest[..content - IndexHeader::SIZE].split_at(entries);
        let mut position = Header::SIZE as u64;
        let mut chunks = 0;
        for entry in entries.as_chunks().0 {
            let entry = IndexEntry::parse(entry).ok_or_else(|| malformed("has an entry that is none"))?;
            if entry.offset != position {
                return Err(malformed(&format!("has a frame at {} instead of {position}", entry.offset)));
            }
            position = match entry.content {
                Content::Record(kind) => self.record(&entry, kind),
                Content::Section(number) => self.section(file, &entry, number, at)?,
            }
            .filter(|&end| end <= at)
            .ok_or_else(|| malformed(&format!("has a frame of wrong length at {position}")))?;
            if let Content::Section(_) = entry.content {
                chunks += self.sections.last().map_or(0, Section::chunks);
            }
        }
        if position != at {
            return Err(malformed(&format!("begins at {at}, but the last frame ends at {position}")));
        }
        if chunks != header.chunks {
            return Err(malformed(&format!("has {} checksums instead of {chunks}", header.chunks)));
        }
        limit("bytes of records", self.record_bytes, MAX_RECORD_BYTES)?;
        self.chunks = checksums.as_chunks::<4>().0.iter().map(|bytes| u32_at(bytes, 0)).collect();
        Ok(())
    }

    /// Notes a record frame and gives its end, if its length is possible.
    fn record(&mut self, entry: &IndexEntry, kind: u16) -> Option<u64> {
        let IndexEntry { offset, length, .. } = *entry;
        self.records.push(RecordPlace { offset, length, kind });
        self.record_bytes = self.record_bytes.saturating_add(length);
        offset.checked_add(length).filter(|_| length > 0 && length.is_multiple_of(FRAME_ALIGNMENT))
    }

    /// Verifies the header of a section and gives the end of its pages, if its length is possible.
    fn section(
        &mut self,
        file: &File,
        entry: &IndexEntry,
        number: u32,
        end: u64,
    ) -> Result<Option<u64>, FormatError> {
        let offset = SectionHeader::pages_of(entry.offset);
        let length = entry.length;
        let Some(behind) = offset.checked_add(length).filter(|&behind| behind <= end) else {
            return Ok(None);
        };
        if self.sections.len() as u64 != u64::from(number) || !length.is_multiple_of(PAGE_SIZE as u64) {
            return Ok(None);
        }
        let mut bytes = [0; SectionHeader::SIZE + PAGE_SIZE];
        let size = usize::try_from(offset - entry.offset).unwrap_or(bytes.len()).min(bytes.len());
        let bytes = &mut bytes[..size];
        read_at(file, bytes, entry.offset)?;
        let (header, padding) = bytes.split_at(SectionHeader::SIZE);
        let expected = SectionHeader { number, pages: offset }.encode();
        if header != expected {
            return Err(FormatError::damaged(
                entry.offset,
                format_args!("no header of page section {number}"),
            ));
        }
        if !is_zero(padding) {
            let what = format_args!("the padding before page section {number} is not zero");
            return Err(FormatError::damaged(entry.offset, what));
        }
        self.sections.push(Section { offset, length });
        Ok(Some(behind))
    }
}

/// Verifies the header of a file of `length` bytes.
fn read_header(file: &File, length: u64) -> Result<(), FormatError> {
    let mut bytes = [0; Header::SIZE];
    let there = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
    read_at(file, &mut bytes[..there], 0)?;
    if !Header::begins(&bytes[..there]) {
        return Err(FormatError::NotAnImage);
    }
    if there < bytes.len() {
        return Err(FormatError::Truncated { what: format!("it ends at byte {there}, within its header") });
    }
    Header::parse(&bytes)?;
    Ok(())
}

/// Reads the index of an image whose trailer is at `end`.
fn read_index(file: &File, trailer: &Trailer, end: u64) -> Result<Vec<u8>, FormatError> {
    let Trailer { index_offset: offset, index_length: length, index_crc, .. } = *trailer;
    let fits = offset >= Header::SIZE as u64
        && offset.is_multiple_of(FRAME_ALIGNMENT)
        && offset.checked_add(length) == Some(end);
    if !fits {
        let what = format_args!("an index of {length} bytes at {offset} does not fit the file");
        return Err(FormatError::damaged(end, what));
    }
    limit("bytes of index", length, IndexHeader::MOST)?;
    let mut index = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    read_at(file, &mut index, offset)?;
    if crc32c(&index) != index_crc {
        return Err(FormatError::damaged(offset, "the checksum of the index is wrong"));
    }
    Ok(index)
}

fn limit(what: &'static str, found: u64, limit: u64) -> Result<(), FormatError> {
    if found > limit { Err(FormatError::TooLarge { what, found, limit }) } else { Ok(()) }
}
