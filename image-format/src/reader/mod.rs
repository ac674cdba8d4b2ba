//! Reading an image: everything is verified when it is opened, before anything of it is believed.
//!
//! The file is only read at positions that the verified index gives, never mapped: whoever can write to the file
//! could otherwise stop this program by cutting it. Record frames are kept in memory as they were verified, so that
//! what is decoded later is what was checked; the bytes of pages are left in the file.

mod pages;
mod records;
mod structure;

use crate::check;
use crate::codec;
pub use crate::error::FormatError;
use crate::record::{Examined, Kind, Record};
use records::Frame;
use std::fs::File;
use std::os::unix::fs::FileExt;
use structure::{Section, Structure};

/// An image that was opened and found good.
#[derive(Debug)]
pub struct Image {
    file: File,
    length: u64,
    frames: Vec<Frame>,
    /// The bytes of all record frames, one after the other.
    bytes: Vec<u8>,
    sections: Vec<Section>,
}

/// A record frame as it is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInfo {
    /// Its place among the records, counted from 0.
    pub number: usize,
    /// Code of the kind.
    pub code: u16,
    /// The kind, if this program knows it.
    pub kind: Option<Kind>,
    /// The name for people; control characters are escaped.
    pub name: String,
    /// Where the frame begins in the file.
    pub offset: u64,
    /// Length of the frame, with header, name, descriptor, data and padding.
    pub length: u64,
    /// Resource Name Size.
    pub name_size: u16,
    /// Resource Descriptor Size.
    pub descriptor_size: u16,
    /// Size of the resource data.
    pub data_size: u32,
    /// Version of the data.
    pub version: u16,
    /// Whether a program that does not know the kind must refuse the image.
    pub must_understand: bool,
}

/// Where the pages of a page section are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSection {
    /// Offset of the first page in the file: a multiple of 4096.
    pub offset: u64,
    /// Number of pages.
    pub pages: u64,
}

impl Image {
    /// Opens an image and verifies all of it.
    ///
    /// # Errors
    /// A [`FormatError`] that says what is wrong and where.
    pub fn open(file: File) -> Result<Self, FormatError> {
        Self::open_with(file, true)
    }

    /// Opens an image and verifies all of it but the bytes of its pages: enough to show it, not to restore it.
    ///
    /// # Errors
    /// A [`FormatError`] that says what is wrong and where.
    pub fn open_without_pages(file: File) -> Result<Self, FormatError> {
        Self::open_with(file, false)
    }

    fn open_with(file: File, with_pages: bool) -> Result<Self, FormatError> {
        let structure = Structure::read(&file)?;
        let (frames, bytes) = records::load(&file, &structure)?;
        records::accept(&frames, &bytes)?;
        let image = Self { length: structure.length, frames, bytes, sections: structure.sections, file };
        check::check(&image)?;
        if with_pages {
            pages::verify(&image.file, &image.sections, &structure.chunks)?;
        }
        Ok(image)
    }

    /// The file; to be read with `pread(2)` at the offsets of [`page_section`](Self::page_section).
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Length of the image in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Every record of a kind, in the order of the image. Records of a later version that need not be understood are
    /// left out.
    ///
    /// # Errors
    /// [`FormatError::Inconsistent`] if one can't be decoded; this does not happen after [`open`](Self::open).
    pub fn all<R: Record>(&self) -> Result<Vec<R>, FormatError> {
        self.decoded::<R>().map(|result| result.map(|(_, record)| record)).collect()
    }

    /// The only record of a kind.
    ///
    /// # Errors
    /// [`FormatError::Inconsistent`] if there is none, more than one, or it can't be decoded.
    pub fn one<R: Record>(&self) -> Result<R, FormatError> {
        let mut records = self.decoded::<R>();
        match (records.next(), records.next()) {
            (Some(record), None) => record.map(|(_, record)| record),
            (None, _) => Err(FormatError::inconsistent(R::KIND, "there is no such record")),
            (Some(_), Some(_)) => {
                Err(FormatError::inconsistent(R::KIND, "there is more than one such record"))
            }
        }
    }

    /// Every record of a kind with its number, one at a time.
    pub(crate) fn decoded<R: Record>(&self) -> impl Iterator<Item = Result<(usize, R), FormatError>> {
        let wanted = |frame: &Frame| frame.code() == R::KIND.code() && frame.version() == R::VERSION;
        let frames = self.frames.iter().enumerate().filter(move |(_, frame)| wanted(frame));
        frames.map(|(number, frame)| match codec::decode::<R>(frame.data(&self.bytes)) {
            Ok(record) => Ok((number, record)),
            Err(error) => Err(FormatError::inconsistent(frame.label(&self.bytes), error)),
        })
    }

    /// Every record that this program understands, examined by [`REGISTRY`](crate::record::REGISTRY).
    pub(crate) fn examined(&self) -> impl Iterator<Item = Result<(usize, Examined), FormatError>> {
        let known = self
            .frames
            .iter()
            .enumerate()
            .filter_map(|(number, frame)| Some((number, frame, frame.entry()?)));
        known.map(|(number, frame, entry)| match (entry.examine)(frame.data(&self.bytes)) {
            Ok(examined) => Ok((number, examined)),
            Err(error) => Err(FormatError::inconsistent(frame.label(&self.bytes), error)),
        })
    }

    /// What is known of every record without its data, in the order of the image.
    pub fn frames(&self) -> impl Iterator<Item = FrameInfo> {
        self.frames.iter().enumerate().map(|(number, frame)| frame.info(number, &self.bytes))
    }

    /// The data of a record, by its [`FrameInfo::number`]; for [`to_json`](crate::to_json).
    #[must_use]
    pub fn data(&self, number: usize) -> Option<&[u8]> {
        self.frames.get(number).map(|frame| frame.data(&self.bytes))
    }

    /// Kind and name of a record, for messages.
    pub(crate) fn label(&self, number: usize) -> String {
        self.frames.get(number).map_or_else(|| "record".to_owned(), |frame| frame.label(&self.bytes))
    }

    /// The page section of this number.
    #[must_use]
    pub fn page_section(&self, number: u32) -> Option<PageSection> {
        self.sections.get(usize::try_from(number).ok()?).map(Section::public)
    }

    /// Every page section, by number.
    pub fn page_sections(&self) -> impl Iterator<Item = PageSection> {
        self.sections.iter().map(Section::public)
    }
}

/// Fills `buffer` from the file at `offset`.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), FormatError> {
    file.read_exact_at(buffer, offset).map_err(|error| FormatError::reading(error, offset))
}

/// Reads a fixed layout of `N` bytes at `offset`.
fn read_fixed<const N: usize>(file: &File, offset: u64) -> Result<[u8; N], FormatError> {
    let mut bytes = [0; N];
    read_at(file, &mut bytes, offset)?;
    Ok(bytes)
}
