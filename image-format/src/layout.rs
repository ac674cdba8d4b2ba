//! The fixed layouts: header, frames, index entries and trailer as bytes. What they mean is specified in the
//! documentation of the crate; what is done with them is in [`writer`](crate::writer) and [`reader`](crate::reader).

use crate::error::FormatError;
use crc32c::{crc32c, crc32c_append};

/// The version of the format that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Size of a page, in bytes.
pub const PAGE_SIZE: usize = 4096;
/// Bytes of page data that one checksum covers.
pub const CHUNK_SIZE: usize = 1024 * 1024;
/// Most frames (records and page sections) of an image.
pub const MAX_FRAMES: u64 = 4 * 1024 * 1024;
/// Most chunks of page data of an image.
pub const MAX_CHUNKS: u64 = 16 * 1024 * 1024;
/// Most bytes of all record frames of an image.
pub const MAX_RECORD_BYTES: u64 = 1024 * 1024 * 1024;

/// ELF machine of x86-64.
pub(crate) const ARCHITECTURE: u32 = 62;
/// bincode 2, little-endian, variable-length integers.
pub(crate) const CODEC: u32 = 1;
/// Frames begin at multiples of this.
pub(crate) const FRAME_ALIGNMENT: u64 = 8;
/// Bit of a record's flags: a program that does not know the kind must refuse the image.
pub(crate) const MUST_UNDERSTAND: u16 = 1;

const HEADER_MAGIC: [u8; 8] = *b"\x89VCKP\r\n\x1a";
const TRAILER_MAGIC: [u8; 8] = *b"VCKPTEND";
const RECORD_MAGIC: [u8; 4] = *b"RCRD";
const SECTION_MAGIC: [u8; 4] = *b"PAGE";
const INDEX_MAGIC: [u8; 4] = *b"INDX";

/// The field of `N` bytes at `at` of a fixed layout.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// The next multiple of `alignment`, a power of two, saturating.
pub(crate) fn align(value: u64, alignment: u64) -> u64 {
    value.saturating_add(alignment - 1) & !(alignment - 1)
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// The header of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) architecture: u32,
    pub(crate) page_size: u32,
    pub(crate) codec: u32,
    pub(crate) flags: u64,
}

impl Header {
    pub(crate) const SIZE: usize = 64;
    /// The header that this program writes.
    pub(crate) const OURS: Self =
        Self { version: FORMAT_VERSION, architecture: ARCHITECTURE, page_size: 4096, codec: CODEC, flags: 0 };

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..8].copy_from_slice(&HEADER_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.architecture.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.page_size.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.codec.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.flags.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Whether these first bytes of a file (as many as there are, up to eight) are those of an image.
    pub(crate) fn begins(bytes: &[u8]) -> bool {
        !bytes.is_empty() && HEADER_MAGIC.starts_with(&bytes[..bytes.len().min(8)])
    }

    /// Reads a header and refuses one that this program can't go on from.
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Result<Self, FormatError> {
        if !Self::begins(bytes) {
            return Err(FormatError::NotAnImage);
        }
        if u32_at(bytes, 60) != crc32c(&bytes[..60]) {
            return Err(FormatError::damaged(0, "the checksum of the header is wrong"));
        }
        let header = Self {
            version: u32_at(bytes, 8),
            architecture: u32_at(bytes, 12),
            page_size: u32_at(bytes, 16),
            codec: u32_at(bytes, 20),
            flags: u64_at(bytes, 24),
        };
        if header.version > FORMAT_VERSION {
            return Err(FormatError::NewerFormat { found: header.version, supported: FORMAT_VERSION });
        }
        if header.version == 0 || !is_zero(&bytes[32..60]) {
            return Err(FormatError::damaged(0, "the header has values that no format has"));
        }
        let ours = Self::OURS;
        if header.architecture != ours.architecture {
            let (found, expected) = (header.architecture, ours.architecture);
            return Err(FormatError::OtherArchitecture { found, expected });
        }
        if header.page_size != ours.page_size {
            let (found, expected) = (header.page_size, ours.page_size);
            return Err(FormatError::OtherPageSize { found, expected });
        }
        if header.codec != ours.codec {
            return Err(FormatError::Unsupported { what: format!("codec {}", header.codec) });
        }
        if header.flags != ours.flags {
            return Err(FormatError::Unsupported { what: format!("the features {:#x}", header.flags) });
        }
        Ok(header)
    }
}

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
