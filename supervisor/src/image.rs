//! Reading records of an image with the errors of this library.

use crate::error::{Error, Result, code};
use vckpt_image_format::Record;
use vckpt_image_format::error::FormatError;
use vckpt_image_format::reader::Image;

/// Every record of a kind.
///
/// # Errors
/// [`code::IMAGE_BAD`].
pub fn all<R: Record>(image: &Image) -> Result<Vec<R>> {
    image.all().map_err(failure)
}

/// The one record of a kind.
///
/// # Errors
/// [`code::IMAGE_BAD`].
pub fn one<R: Record>(image: &Image) -> Result<R> {
    image.one().map_err(failure)
}

/// The error for an image that can't be used.
#[must_use]
pub fn failure(error: FormatError) -> Box<Error> {
    match error {
        FormatError::Io(error) => Error::system(code::IMAGE_OPEN, "reading the image", error),
        FormatError::NewerFormat { .. }
        | FormatError::UnknownKind { .. }
        | FormatError::NewerRecord { .. } => {
            Error::new(code::IMAGE_NEWER, "the image was written by a newer version").because(error)
        }
        FormatError::NotAnImage
        | FormatError::NotRegular
        | FormatError::Truncated { .. }
        | FormatError::Damaged { .. }
        | FormatError::OtherArchitecture { .. }
        | FormatError::OtherPageSize { .. }
        | FormatError::Unsupported { .. }
        | FormatError::OlderRecord { .. }
        | FormatError::Inconsistent { .. }
        | FormatError::TooLarge { .. } => {
            Error::new(code::IMAGE_BAD, "this is no image that can be used").because(error)
        }
    }
}
