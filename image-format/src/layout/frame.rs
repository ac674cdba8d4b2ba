//! Frames: records and the headers of page sections.

use super::{PAGE_SIZE, align, is_zero, u16_at, u32_at};
use crc32c::{crc32c, crc32c_append};

const RECORD_MAGIC: [u8; 4] = *b"RCRD";
const SECTION_MAGIC: [u8; 4] = *b"PAGE";

/// The header of a record frame, as FIG. 7 has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordHeader {
    pub(crate) name_size: u16,
    pub(crate) descriptor_size: u16,
    pub(crate) kind: u16,
    pub(crate) data_size: u32,
    pub(crate) crc: u32,
}

impl RecordHeader {
    pub(crate) const SIZE: usize = 20;
    const CRC: usize = 16;

    /// None if there is no record here.
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let header = Self {
            name_size: u16_at(bytes, 4),
            descriptor_size: u16_at(bytes, 6),
            kind: u16_at(bytes, 8),
            data_size: u32_at(bytes, 12),
            crc: u32_at(bytes, Self::CRC),
        };
        (bytes[0..4] == RECORD_MAGIC && is_zero(&bytes[10..12])).then_some(header)
    }

    /// Length of the frame without its padding.
    pub(crate) fn content_length(&self) -> u64 {
        Self::SIZE as u64
            + u64::from(self.name_size)
            + u64::from(self.descriptor_size)
            + u64::from(self.data_size)
    }

    /// The checksum of a frame: all of it, but for the checksum itself.
    pub(crate) fn checksum(frame: &[u8]) -> u32 {
        crc32c_append(crc32c(&frame[..Self::CRC]), &frame[Self::SIZE..])
    }
}

/// The descriptor of a record: what is known about it without its data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) version: u16,
    pub(crate) flags: u16,
}

impl Descriptor {
    pub(crate) const SIZE: usize = 8;

    /// None if it is too short or has bytes that must be zero. Bytes that follow are of a later writer, and ignored.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::SIZE)?;
        is_zero(&bytes[4..8]).then(|| Self { version: u16_at(bytes, 0), flags: u16_at(bytes, 2) })
    }
}

/// Appends a record frame to `buffer` and returns its length, or none if name or data are too long for a frame.
pub(crate) fn append_record(
    buffer: &mut Vec<u8>,
    kind: u16,
    descriptor: Descriptor,
    name: &[u8],
    data: &[u8],
) -> Option<u64> {
    let name_size = u16::try_from(name.len()).ok()?;
    let data_size = u32::try_from(data.len()).ok()?;
    let start = buffer.len();
    buffer.extend_from_slice(&RECORD_MAGIC);
    buffer.extend_from_slice(&name_size.to_le_bytes());
    buffer.extend_from_slice(&8_u16.to_le_bytes());
    buffer.extend_from_slice(&kind.to_le_bytes());
    buffer.extend_from_slice(&[0; 2]);
    buffer.extend_from_slice(&data_size.to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(name);
    buffer.extend_from_slice(&descriptor.version.to_le_bytes());
    buffer.extend_from_slice(&descriptor.flags.to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(data);
    while !(buffer.len() - start).is_multiple_of(8) {
        buffer.push(0);
    }
    let crc = RecordHeader::checksum(&buffer[start..]);
    buffer[start + RecordHeader::CRC..start + RecordHeader::SIZE].copy_from_slice(&crc.to_le_bytes());
    Some((buffer.len() - start) as u64)
}

/// The header of a page section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SectionHeader {
    pub(crate) number: u32,
    /// Where its pages begin in the file.
    pub(crate) pages: u64,
}

impl SectionHeader {
    pub(crate) const SIZE: usize = 24;

    /// Where the pages of a section begin whose header is at `offset`.
    pub(crate) fn pages_of(offset: u64) -> u64 {
        align(offset.saturating_add(Self::SIZE as u64), PAGE_SIZE as u64)
    }

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&SECTION_MAGIC);
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.pages.to_le_bytes());
        let crc = crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}
