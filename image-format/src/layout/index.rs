//! What ends an image: the index and the trailer.

use super::{MAX_CHUNKS, MAX_FRAMES, is_zero, u16_at, u32_at, u64_at};
use crate::error::FormatError;
use crc32c::crc32c;

const INDEX_MAGIC: [u8; 4] = *b"INDX";
const TRAILER_MAGIC: [u8; 8] = *b"VCKPTEND";

/// What the index says of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    /// Where the frame begins.
    pub(crate) offset: u64,
    /// Of a record: length of the frame with its padding; of a section: length of its pages.
    pub(crate) length: u64,
    pub(crate) content: Content,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// A record of this kind.
    Record(u16),
    /// The page section of this number.
    Section(u32),
}

impl IndexEntry {
    pub(crate) const SIZE: usize = 24;

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let (class, kind, number) = match self.content {
            Content::Record(kind) => (1_u16, kind, 0),
            Content::Section(number) => (2_u16, 0, number),
        };
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..18].copy_from_slice(&class.to_le_bytes());
        bytes[18..20].copy_from_slice(&kind.to_le_bytes());
        bytes[20..24].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let content = match (u16_at(bytes, 16), u16_at(bytes, 18), u32_at(bytes, 20)) {
            (1, kind, 0) => Content::Record(kind),
            (2, 0, number) => Content::Section(number),
            _ => return None,
        };
        Some(Self { offset: u64_at(bytes, 0), length: u64_at(bytes, 8), content })
    }
}

/// The header of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexHeader {
    pub(crate) frames: u64,
    pub(crate) chunks: u64,
}

impl IndexHeader {
    pub(crate) const SIZE: usize = 24;
    /// Length of the largest index.
    pub(crate) const MOST: u64 = Self { frames: MAX_FRAMES, chunks: MAX_CHUNKS }.content_length() + 8;

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&INDEX_MAGIC);
        bytes[8..16].copy_from_slice(&self.frames.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.chunks.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let header = Self { frames: u64_at(bytes, 8), chunks: u64_at(bytes, 16) };
        (bytes[0..4] == INDEX_MAGIC && is_zero(&bytes[4..8])).then_some(header)
    }

    /// Length of the index without its padding. The numbers must be within their limits.
    pub(crate) const fn content_length(&self) -> u64 {
        Self::SIZE as u64 + self.frames * IndexEntry::SIZE as u64 + self.chunks * 4
    }
}

/// The trailer: the last bytes of every image; without it there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) index_offset: u64,
    pub(crate) index_length: u64,
    pub(crate) file_length: u64,
    pub(crate) index_crc: u32,
}

impl Trailer {
    pub(crate) const SIZE: usize = 64;

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&TRAILER_MAGIC);
        bytes[8..16].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.index_length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.file_length.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.index_crc.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the trailer of a file of `length` bytes and refuses one that does not fit it.
    pub(crate) fn parse(bytes: &[u8; Self::SIZE], length: u64) -> Result<Self, FormatError> {
        let offset = length.saturating_sub(Self::SIZE as u64);
        if bytes[0..8] != TRAILER_MAGIC {
            let what =
                "it does not end with a trailer: it was never finished, was cut, or something follows it";
            return Err(FormatError::Truncated { what: what.to_owned() });
        }
        if u32_at(bytes, 60) != crc32c(&bytes[..60]) {
            return Err(FormatError::damaged(offset, "the checksum of the trailer is wrong"));
        }
        let trailer = Self {
            index_offset: u64_at(bytes, 8),
            index_length: u64_at(bytes, 16),
            file_length: u64_at(bytes, 24),
            index_crc: u32_at(bytes, 32),
        };
        if !is_zero(&bytes[36..60]) {
            return Err(FormatError::damaged(offset, "the trailer has values that no format has"));
        }
        if trailer.file_length != length {
            let what = format!("it has {length} bytes, {} were written", trailer.file_length);
            return Err(FormatError::Truncated { what });
        }
        Ok(trailer)
    }
}
