//! Writing an image in one pass to any sink. Nothing is sought; what is only known at the end is in the index.
//!
//! Records and small amounts of page data are gathered so that a small dump costs few calls; larger amounts of page
//! data go straight to the sink. The caller makes the file durable and gives it its name: see
//! [`ImageWriter::finish`].

use crate::codec;
pub use crate::error::WriteError;
use crate::error::one_line;
use crate::layout::{
    CHUNK_SIZE, Content, Descriptor, FRAME_ALIGNMENT, Header, IndexEntry, IndexHeader, MAX_CHUNKS,
    MAX_FRAMES, MAX_RECORD_BYTES, MUST_UNDERSTAND, PAGE_SIZE, SectionHeader, Trailer, align, append_record,
};
use crate::reader::{FrameInfo, Image};
use crate::record::Record;
use crc32c::{crc32c, crc32c_append};
use std::fmt;
use std::io::{self, Write};

/// As much is gathered before it is written.
const GATHER: usize = 64 * 1024;
/// Page data of this size and more is not copied.
const DIRECT: usize = 16 * 1024;
/// Names of records are cut to this many bytes.
const NAME: usize = 1024;

/// Writes an image. Dropped without [`finish`](Self::finish), what was written is no image.
pub struct ImageWriter<W: Write> {
    sink: W,
    gathered: Vec<u8>,
    position: u64,
    frames: Vec<IndexEntry>,
    chunks: Vec<u32>,
    sections: u32,
    open: Option<OpenSection>,
    record_bytes: u64,
    failed: bool,
}

/// The section that pages are written to.
struct OpenSection {
    length: u64,
    /// Checksum of the last chunk as far as it was written.
    crc: u32,
}

impl<W: Write> ImageWriter<W> {
    /// Begins an image.
    ///
    /// # Errors
    /// None at present: the header is gathered, and an error of the sink shows when it is written.
    pub fn new(sink: W) -> io::Result<Self> {
        let mut gathered = Vec::with_capacity(GATHER);
        gathered.extend_from_slice(&Header::OURS.encode());
        Ok(Self {
            sink,
            position: gathered.len() as u64,
            gathered,
            frames: Vec::new(),
            chunks: Vec::new(),
            sections: 0,
            open: None,
            record_bytes: 0,
            failed: false,
        })
    }

    /// Writes a record that must be understood. Ends the open page section.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] if the record would be refused when read, [`WriteError::Codec`] if it can't be
    /// encoded; the image can go on without it. [`WriteError::TooLarge`] or [`WriteError::Io`] if it can't go on.
    pub fn record<R: Record>(&mut self, record: &R) -> Result<(), WriteError> {
        let name = record.name();
        record.check().map_err(|why| WriteError::Invalid { record: one_line(&name), why: one_line(&why) })?;
        let data =
            codec::encode(record).map_err(|error| WriteError::Codec { record: one_line(&name), error })?;
        let descriptor = Descriptor { version: R::VERSION, flags: MUST_UNDERSTAND };
        self.frame(R::KIND.code(), descriptor, &name, &data)
    }

    /// Writes a record of another image as it is there, by its [`FrameInfo::number`]; also one that this program does not
    /// know. Ends the open page section. The page sections that records name are to be written in the same order.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] if the image has no such record; as [`record`](Self::record).
    pub fn copy(&mut self, image: &Image, number: usize) -> Result<(), WriteError> {
        let frame = image.frames().nth(number).zip(image.data(number));
        let Some((FrameInfo { code, name, version, must_understand, .. }, data)) = frame else {
            let why = "there is no such record".to_owned();
            return Err(WriteError::Invalid { record: number.to_string(), why });
        };
        let flags = if must_understand { MUST_UNDERSTAND } else { 0 };
        self.frame(code, Descriptor { version, flags }, &name, data)
    }

    /// Writes a record frame of any kind.
    pub(crate) fn frame(
        &mut self,
        kind: u16,
        descriptor: Descriptor,
        name: &str,
        data: &[u8],
    ) -> Result<(), WriteError> {
        self.begin_frame()?;
        let name = cut(name).as_bytes();
        let length = append_record(&mut self.gathered, kind, descriptor, name, data)
            .ok_or(WriteError::TooLarge { what: "bytes in a record", limit: codec::LIMIT as u64 })?;
        self.frames.push(IndexEntry { offset: self.position, length, content: Content::Record(kind) });
        self.position += length;
        self.record_bytes += length;
        if self.record_bytes > MAX_RECORD_BYTES {
            self.failed = true;
            return Err(WriteError::TooLarge { what: "bytes of records", limit: MAX_RECORD_BYTES });
        }
        if self.gathered.len() >= GATHER {
            self.flush()?;
        }
        Ok(())
    }

    /// Begins a page section and ends the one before if it is open. Returns its number, counted from 0.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] or [`WriteError::Io`]: the image can't go on.
    pub fn begin_page_section(&mut self) -> Result<u32, WriteError> {
        self.begin_frame()?;
        let (offset, number) = (self.position, self.sections);
        let pages = SectionHeader::pages_of(offset);
        self.gathered.extend_from_slice(&SectionHeader { number, pages }.encode());
        self.position += SectionHeader::SIZE as u64;
        self.pad(PAGE_SIZE as u64);
        self.frames.push(IndexEntry { offset, length: 0, content: Content::Section(number) });
        self.open = Some(OpenSection { length: 0, crc: 0 });
        self.sections += 1;
        Ok(number)
    }

    /// The number that the next page section will get.
    #[must_use]
    pub fn next_page_section(&self) -> u32 {
        self.sections
    }

    /// Writes whole pages to the open section.
    ///
    /// # Errors
    /// [`WriteError::PartialPage`] or [`WriteError::NoSection`] if nothing was written; [`WriteError::TooLarge`] or
    /// [`WriteError::Io`] if the image can't go on.
    pub fn pages(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::Failed);
        }
        if !bytes.len().is_multiple_of(PAGE_SIZE) {
            return Err(WriteError::PartialPage(bytes.len()));
        }
        let section = self.open.as_mut().ok_or(WriteError::NoSection)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let filled = usize::try_from(section.length % CHUNK_SIZE as u64).unwrap_or(0);
            let (now, later) = rest.split_at(rest.len().min(CHUNK_SIZE - filled));
            section.crc = crc32c_append(section.crc, now);
            section.length += now.len() as u64;
            if section.length.is_multiple_of(CHUNK_SIZE as u64) {
                self.chunks.push(section.crc);
                section.crc = 0;
            }
            rest = later;
        }
        self.position += bytes.len() as u64;
        if self.chunks.len() as u64 >= MAX_CHUNKS {
            self.failed = true;
            return Err(WriteError::TooLarge { what: "chunks of page data", limit: MAX_CHUNKS });
        }
        if bytes.len() < DIRECT {
            self.gathered.extend_from_slice(bytes);
            return if self.gathered.len() >= GATHER { self.flush() } else { Ok(()) };
        }
        self.flush()?;
        self.sink.write_all(bytes).inspect_err(|_| self.failed = true)?;
        Ok(())
    }

    /// Pages written to the open section; 0 if none is open.
    #[must_use]
    pub fn page_position(&self) -> u64 {
        self.open.as_ref().map_or(0, |section| section.length / PAGE_SIZE as u64)
    }

    /// Bytes of the image so far, some of which may still be gathered.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes index and trailer, which make it an image, and flushes the sink. Making a file durable (`fsync(2)`) and
    /// giving it its name is left to the caller.
    ///
    /// # Errors
    /// [`WriteError::Io`] if the sink fails, [`WriteError::Failed`] if it failed before.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.end_section()?;
        let header = IndexHeader { frames: self.frames.len() as u64, chunks: self.chunks.len() as u64 };
        let mut index = header.encode().to_vec();
        for entry in &self.frames {
            index.extend_from_slice(&entry.encode());
        }
        for crc in &self.chunks {
            index.extend_from_slice(&crc.to_le_bytes());
        }
        while !(index.len() as u64).is_multiple_of(FRAME_ALIGNMENT) {
            index.push(0);
        }
        let index_length = index.len() as u64;
        let trailer = Trailer {
            index_offset: self.position,
            index_length,
            file_length: self.position + index_length + Trailer::SIZE as u64,
            index_crc: crc32c(&index),
        };
        self.gathered.extend_from_slice(&index);
        self.gathered.extend_from_slice(&trailer.encode());
        self.flush()?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    /// Ends the open section, so that a frame can follow.
    fn end_section(&mut self) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::Failed);
        }
        if let Some(section) = self.open.take() {
            if !section.length.is_multiple_of(CHUNK_SIZE as u64) {
                self.chunks.push(section.crc);
            }
            if let Some(entry) = self.frames.last_mut() {
                entry.length = section.length;
            }
        }
        Ok(())
    }

    /// Makes room for a frame.
    fn begin_frame(&mut self) -> Result<(), WriteError> {
        self.end_section()?;
        if self.frames.len() as u64 >= MAX_FRAMES {
            self.failed = true;
            return Err(WriteError::TooLarge { what: "records and page sections", limit: MAX_FRAMES });
        }
        Ok(())
    }

    /// Fills up with zeros to the next multiple of `alignment`.
    fn pad(&mut self, alignment: u64) {
        let padding = align(self.position, alignment) - self.position;
        self.gathered.extend((0..padding).map(|_| 0));
        self.position += padding;
    }

    /// Writes what was gathered.
    fn flush(&mut self) -> Result<(), WriteError> {
        self.sink.write_all(&self.gathered).inspect_err(|_| self.failed = true)?;
        self.gathered.clear();
        self.gathered.shrink_to(2 * GATHER);
        Ok(())
    }
}

/// As much of a name as is stored.
fn cut(name: &str) -> &str {
    let end = (0..=NAME.min(name.len())).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    &name[..end]
}

impl<W: Write> fmt::Debug for ImageWriter<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ImageWriter")
            .field("position", &self.position)
            .field("frames", &self.frames.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
