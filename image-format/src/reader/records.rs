//! The record frames: read, verified against their checksums and the index, and accepted or refused by kind and
//! version. Their data is not decoded here.

use super::structure::{RecordPlace, Structure};
use super::{FrameInfo, read_at};
use crate::error::{FormatError, one_line};
use crate::layout::{Descriptor, FRAME_ALIGNMENT, MUST_UNDERSTAND, RecordHeader, align, is_zero};
use crate::record::{self, Entry, Kind};
use std::fs::File;
use std::ops::Range;

/// A verified record frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Where it is in the file.
    offset: u64,
    /// Where it is among the bytes in memory.
    start: usize,
    header: RecordHeader,
    descriptor: Descriptor,
}

impl Frame {
    pub(super) fn code(&self) -> u16 {
        self.header.kind
    }

    pub(super) fn version(&self) -> u16 {
        self.descriptor.version
    }

    fn must_understand(&self) -> bool {
        self.descriptor.flags & MUST_UNDERSTAND != 0
    }

    fn name_range(&self) -> Range<usize> {
        let start = self.start + RecordHeader::SIZE;
        start..start + usize::from(self.header.name_size)
    }

    pub(super) fn data<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.name_range().end + usize::from(self.header.descriptor_size);
        let length = usize::try_from(self.header.data_size).unwrap_or(usize::MAX);
        &bytes[start..start + length]
    }

    /// The name, fit for a message.
    fn name(&self, bytes: &[u8]) -> String {
        one_line(&String::from_utf8_lossy(&bytes[self.name_range()]))
    }

    /// Kind and name, for messages.
    pub(super) fn label(&self, bytes: &[u8]) -> String {
        let name = self.name(bytes);
        Kind::from_code(self.code()).map_or_else(|| name.clone(), |kind| format!("{kind} \"{name}\""))
    }

    /// What this program can do with it: nothing if kind or version are unknown.
    pub(super) fn entry(&self) -> Option<&'static Entry> {
        Kind::from_code(self.code()).and_then(record::find).filter(|entry| entry.version == self.version())
    }

    pub(super) fn info(&self, number: usize, bytes: &[u8]) -> FrameInfo {
        FrameInfo {
            number,
            code: self.code(),
            kind: Kind::from_code(self.code()),
            name: self.name(bytes),
            offset: self.offset,
            length: align(self.header.content_length(), FRAME_ALIGNMENT),
            name_size: self.header.name_size,
            descriptor_size: self.header.descriptor_size,
            data_size: self.header.data_size,
            version: self.version(),
            must_understand: self.must_understand(),
        }
    }
}

/// Reads and verifies all record frames. Frames that follow one another in the file are read at once.
pub(super) fn load(file: &File, structure: &Structure) -> Result<(Vec<Frame>, Vec<u8>), FormatError> {
    let mut bytes = vec![0; usize::try_from(structure.record_bytes).unwrap_or(usize::MAX)];
    let mut frames = Vec::with_capacity(structure.records.len());
    let adjacent = |left: &RecordPlace, right: &RecordPlace| left.offset + left.length == right.offset;
    let mut start = 0;
    for group in structure.records.chunk_by(adjacent) {
        let length: u64 = group.iter().map(|place| place.length).sum();
        let end = start + usize::try_from(length).unwrap_or(usize::MAX);
        read_at(file, &mut bytes[start..end], group[0].offset)?;
        for place in group {
            let end = start + usize::try_from(place.length).unwrap_or(usize::MAX);
            frames.push(verify(place, &bytes[start..end], start)?);
            start = end;
        }
    }
    Ok((frames, bytes))
}

/// Verifies one frame, which begins at `start` of the bytes in memory.
fn verify(place: &RecordPlace, frame: &[u8], start: usize) -> Result<Frame, FormatError> {
    let damaged = |what: &str| FormatError::damaged(place.offset, what);
    let header = frame.first_chunk().and_then(RecordHeader::parse).ok_or_else(|| damaged("no record"))?;
    if align(header.content_length(), FRAME_ALIGNMENT) != place.length {
        return Err(damaged("the sizes of a record differ from the index"));
    }
    if RecordHeader::checksum(frame) != header.crc {
        return Err(damaged("the checksum of a record is wrong"));
    }
    if header.kind != place.kind {
        return Err(damaged("the kind of a record differs from the index"));
    }
    let content = usize::try_from(header.content_length()).unwrap_or(usize::MAX);
    if !is_zero(&frame[content..]) {
        return Err(damaged("the padding of a record is not zero"));
    }
    let descriptor = &frame[RecordHeader::SIZE + usize::from(header.name_size)..];
    let descriptor = Descriptor::parse(&descriptor[..usize::from(header.descriptor_size)])
        .ok_or_else(|| damaged("the descriptor of a record is none"))?;
    Ok(Frame { offset: place.offset, start, header, descriptor })
}

/// Refuses records that must be understood and are not.
pub(super) fn accept(frames: &[Frame], bytes: &[u8]) -> Result<(), FormatError> {
    for frame in frames {
        let unknown_flags = frame.descriptor.flags & !MUST_UNDERSTAND;
        if unknown_flags != 0 {
            let what = format!("the flags {unknown_flags:#x} of record \"{}\"", frame.label(bytes));
            return Err(FormatError::Unsupported { what });
        }
        if frame.version() == 0 {
            return Err(FormatError::damaged(frame.offset, "a record of version 0"));
        }
        if !frame.must_understand() {
            continue;
        }
        let Some(entry) = Kind::from_code(frame.code()).and_then(record::find) else {
            return Err(FormatError::UnknownKind { code: frame.code(), name: frame.name(bytes) });
        };
        let (record, found, supported) = (frame.label(bytes), frame.version(), entry.version);
        if found > supported {
            return Err(FormatError::NewerRecord { record, found, supported });
        }
        if found < supported {
            return Err(FormatError::OlderRecord { record, found, supported });
        }
    }
    Ok(())
}
