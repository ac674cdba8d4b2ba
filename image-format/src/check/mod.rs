//! Whether the records of an image fit together.

use crate::error::FormatError;
use crate::reader::Image;

/// Refuses an image whose records contradict one another.
pub(crate) fn check(_image: &Image) -> Result<(), FormatError> {
    Ok(())
}
