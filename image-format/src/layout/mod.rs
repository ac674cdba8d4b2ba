//! The fixed layouts: header, frames, index entries and trailer as bytes. What they mean is specified in the
//! documentation of the crate; what is done with them is in [`writer`](crate::writer) and [`reader`](crate::reader).

mod frame;
mod index;

use crate::error::FormatError;
use crc32c::crc32c;
pub(crate) use frame::{Descriptor, RecordHeader, SectionHeader, append_record};
pub(crate) use index::{Content, IndexEntry, IndexHeader, Trailer};

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
        // The version says how everything else is to be read, the checksum too: so it comes first.
        let version = u32_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(FormatError::NewerFormat { found: version, supported: FORMAT_VERSION });
        }
        if u32_at(bytes, 60) != crc32c(&bytes[..60]) {
            return Err(FormatError::damaged(0, "the checksum of the header is wrong"));
        }
        let header = Self {
            version,
            architecture: u32_at(bytes, 12),
            page_size: u32_at(bytes, 16),
            codec: u32_at(bytes, 20),
            flags: u64_at(bytes, 24),
        };
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
