//! What can be wrong with an image, and with writing one. All messages are one line in lower case.

use crate::codec::CodecError;
use std::fmt::Display;
use std::io;

/// Why an image was refused.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file does not begin as an image does.
    #[error("this is no vckpt image")]
    NotAnImage,
    /// The file is no regular file: a stream has to be stored in one first.
    #[error("an image can only be opened as a regular file")]
    NotRegular,
    /// The image has no end.
    #[error("the image is truncated: {what}")]
    Truncated {
        /// What is missing.
        what: String,
    },
    /// Bytes are not what was written.
    #[error("the image is damaged at byte {offset}: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
        /// Where in the file.
        offset: u64,
    },
    /// The image is of a later format.
    #[error("the image has format version {found}, this program reads up to {supported}")]
    NewerFormat {
        /// The version in the header.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// The image was made on another architecture.
    #[error("the image is of another architecture (ELF machine {found} instead of {expected})")]
    OtherArchitecture {
        /// The ELF machine in the header.
        found: u32,
        /// The one that can be read.
        expected: u32,
    },
    /// The image was made with another page size.
    #[error("the image has pages of {found} bytes instead of {expected}")]
    OtherPageSize {
        /// The page size in the header.
        found: u32,
        /// The one that can be read.
        expected: u32,
    },
    /// The image asks for something that is not known.
    #[error("the image needs {what}, which this program does not know")]
    Unsupported {
        /// What it needs.
        what: String,
    },
    /// A record of an unknown kind that must be understood.
    #[error("record \"{name}\" has kind {code}, which must be understood and is not known to this program")]
    UnknownKind {
        /// The code of the kind.
        code: u16,
        /// The name in the record.
        name: String,
    },
    /// A record of a known kind in a later version, that must be understood.
    #[error("record \"{record}\" has version {found}, this program reads version {supported}")]
    NewerRecord {
        /// Kind and name of the record.
        record: String,
        /// The version of its data.
        found: u16,
        /// The version that can be read.
        supported: u16,
    },
    /// A record of a known kind in an earlier version that is not read any more.
    #[error("record \"{record}\" has the old version {found}, this program reads version {supported}")]
    OlderRecord {
        /// Kind and name of the record.
        record: String,
        /// The version of its data.
        found: u16,
        /// The version that can be read.
        supported: u16,
    },
    /// Records contradict themselves or one another.
    #[error("the image is inconsistent: {record}: {why}")]
    Inconsistent {
        /// Which record, or what kind of record.
        record: String,
        /// The contradiction.
        why: String,
    },
    /// The image is larger than this program accepts.
    #[error("the image has {found} {what}, more than the {limit} that this program accepts")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much is accepted.
        limit: u64,
    },
    /// The file can't be read.
    #[error("the image can't be read: {0}")]
    Io(#[from] io::Error),
}

impl FormatError {
    pub(crate) fn damaged(offset: u64, what: impl Display) -> Self {
        Self::Damaged { what: one_line(&what.to_string()), offset }
    }

    pub(crate) fn inconsistent(record: impl Display, why: impl Display) -> Self {
        Self::Inconsistent { record: one_line(&record.to_string()), why: one_line(&why.to_string()) }
    }

    /// An error of reading at a place that must exist: the end of the file there means that it was cut.
    pub(crate) fn reading(error: io::Error, offset: u64) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated { what: format!("it ends before the bytes at {offset}") };
        }
        Self::Io(error)
    }
}

/// Text from an image as part of a message: no control characters, and not too long.
pub(crate) fn one_line(text: &str) -> String {
    const MOST: usize = 300;
    let mut line = String::new();
    for character in text.chars() {
        if line.len() >= MOST {
            line.push('…');
            break;
        }
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink failed.
    #[error("the image can't be written: {0}")]
    Io(#[from] io::Error),
    /// The sink failed before; nothing more can be written to it.
    #[error("the image can't be written on after a failure")]
    Failed,
    /// A record can't be encoded.
    #[error("record \"{record}\": {error}")]
    Codec {
        /// Name of the record.
        record: String,
        /// Why it can't.
        error: CodecError,
    },
    /// A record would be refused when read.
    #[error("record \"{record}\" is invalid: {why}")]
    Invalid {
        /// Name of the record.
        record: String,
        /// What [`Record::check`](crate::Record::check) says.
        why: String,
    },
    /// Page data that is not whole pages.
    #[error("{0} bytes are no whole pages")]
    PartialPage(usize),
    /// Page data while no page section is open.
    #[error("page data outside a page section")]
    NoSection,
    /// The image would be larger than what can be read again.
    #[error("the image would have more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
}
