//! The on-disk format of vckpt images: the specification, and the only code that reads and writes it.
//!
//! An image is one file: a header, then frames (resource records as in FIG. 7, and sections of pages), an index, and
//! a trailer. It is written in one pass to any sink by [`ImageWriter`], and opened by [`Image`] once it is a regular
//! file. What processes and resources mean on a host is not known here; see the supervisor for that.
//!
//! # Format version 1
//!
//! All numbers are unsigned and little-endian. All offsets in the file count from its first byte. A checksum is
//! CRC-32C (Castagnoli; as in iSCSI). Fields and paddings that are said to be zero are verified to be.
//!
//! Every byte of a file is covered by a checksum or has only one permitted value. Checksums find damage, not malice:
//! nothing here authenticates.
//!
//! ## Header
//!
//! 64 bytes at offset 0.
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic: `89 56 43 4b 50 0d 0a 1a` (`\x89VCKP\r\n\x1a`) |
//! | 8 | 4 | format version: 1 |
//! | 12 | 4 | architecture, as an ELF machine: 62 (x86-64) |
//! | 16 | 4 | page size: 4096 |
//! | 20 | 4 | codec of record data: 1 (bincode 2, little-endian, variable-length integers) |
//! | 24 | 8 | flags: zero; a bit that is set asks for a feature that a reader must know |
//! | 32 | 28 | zero |
//! | 60 | 4 | checksum of bytes 0 to 59 |
//!
//! Magic, format version and checksum are where they are in all versions.
//!
//! ## Frames
//!
//! From offset 64 to the index, frames follow one another without a gap. Every frame begins at a multiple of 8. There
//! are at most 4194304 ([`MAX_FRAMES`]).
//!
//! ### Record
//!
//! | offset in the frame | size | field |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic: `RCRD` |
//! | 4 | 2 | Resource Name Size: *n* |
//! | 6 | 2 | Resource Descriptor Size: *d*, at least 8 |
//! | 8 | 2 | Resource Type: the code of a [`Kind`] |
//! | 10 | 2 | zero |
//! | 12 | 4 | size of the Resource Data: *s*, at most 4194304 ([`codec::LIMIT`]) for a known kind |
//! | 16 | 4 | checksum of the whole frame with its padding, but for these four bytes |
//! | 20 | *n* | Resource Name: for people, UTF-8; never interpreted |
//! | 20 + *n* | *d* | Resource Descriptor |
//! | 20 + *n* + *d* | *s* | Resource Data: a [`Record`], encoded by [`codec`] |
//! | 20 + *n* + *d* + *s* | 0 to 7 | zero, up to a multiple of 8 |
//!
//! The Resource Descriptor is what must be known before the data can be decoded:
//!
//! | offset in the descriptor | size | field |
//! | ---: | ---: | --- |
//! | 0 | 2 | version of the data ([`Record::VERSION`]), from 1 on |
//! | 2 | 2 | flags; bit 0: must be understood; the other bits: zero |
//! | 4 | 4 | zero |
//! | 8 | *d* - 8 | ignored |
//!
//! A record whose kind or version a reader does not know is skipped, unless it must be understood: then the image is
//! refused. Record frames have at most 1073741824 bytes in all ([`MAX_RECORD_BYTES`]). Fields of data are encoded by
//! position; a record type with other fields is a new version. The first record is a
//! [`Snapshot`](record::snapshot::Snapshot); the order of the others is free where [`check`] does not ask for one.
//!
//! ### Page section
//!
//! | offset in the frame | size | field |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic: `PAGE` |
//! | 4 | 4 | number of the section, counted from 0 in the order of the file |
//! | 8 | 8 | offset in the file of the first page: the next multiple of 4096 behind this header |
//! | 16 | 4 | zero |
//! | 20 | 4 | checksum of bytes 0 to 19 |
//! | 24 | 0 to 4095 | zero, up to that offset |
//! | | | pages, 4096 bytes each; possibly none |
//!
//! How many pages there are is only known from the index, and so are their checksums: one for every 1048576 bytes
//! ([`CHUNK_SIZE`]) from the beginning of the section's pages on, and one for what is left at its end. What the pages
//! are is said by [`MmapMemory`](record::mmap_memory::MmapMemory) records, anywhere in the image.
//!
//! ## Index
//!
//! Behind the last frame, at a multiple of 8.
//!
//! | offset in the index | size | field |
//! | ---: | ---: | --- |
//! | 0 | 4 | magic: `INDX` |
//! | 4 | 4 | zero |
//! | 8 | 8 | number of frames: *f* |
//! | 16 | 8 | number of chunks of all page sections: *c*, at most 16777216 ([`MAX_CHUNKS`]) |
//! | 24 | 24 *f* | an entry for every frame, in the order of the file |
//! | 24 + 24 *f* | 4 *c* | checksums of the chunks of the first section, of the second, and so on |
//! | 24 + 24 *f* + 4 *c* | 0 or 4 | zero, up to a multiple of 8 |
//!
//! An entry:
//!
//! | offset in the entry | size | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | offset of the frame in the file |
//! | 8 | 8 | record: length of the frame with its padding; page section: length of its pages in bytes |
//! | 16 | 2 | 1: record; 2: page section |
//! | 18 | 2 | record: its Resource Type; page section: zero |
//! | 20 | 4 | record: zero; page section: its number |
//!
//! ## Trailer
//!
//! The last 64 bytes, directly behind the index. It is written last: a file without it is no image.
//!
//! | offset in the trailer | size | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic: `VCKPTEND` |
//! | 8 | 8 | offset of the index |
//! | 16 | 8 | length of the index with its padding |
//! | 24 | 8 | length of the file |
//! | 32 | 4 | checksum of the index with its padding |
//! | 36 | 24 | zero |
//! | 60 | 4 | checksum of bytes 0 to 59 of the trailer |
//!
//! # Reading
//!
//! An image is hostile until it was opened: [`Image::open`] verifies all of the above, then that the data of every
//! record that is known can be decoded and makes sense, and that records agree with one another ([`check`]). No length
//! is believed before it is compared with the file and with the limits above. Every failure is a [`FormatError`].

mod bytes;
pub mod check;
pub mod codec;
pub mod error;
pub mod id;
mod layout;
pub mod reader;
pub mod record;
#[cfg(test)]
mod tests;
pub mod text;
pub mod writer;

pub use error::{FormatError, WriteError};
pub use id::{
    DescriptionId, DescriptorTableId, FileSystemContextId, Identity, MemoryId, NamelessFileId, PipeId,
    RingId, SegmentId, SocketId, TaskId, TerminalId,
};
pub use layout::{CHUNK_SIZE, FORMAT_VERSION, MAX_CHUNKS, MAX_FRAMES, MAX_RECORD_BYTES, PAGE_SIZE};
pub use reader::{FrameInfo, Image, PageSection};
pub use record::{Kind, Record, to_json};
pub use text::Text;
pub use writer::ImageWriter;
