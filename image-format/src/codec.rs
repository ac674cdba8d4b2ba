//! The only user of the serializer: configuration, limits, and the check that everything was consumed.
//!
//! bincode 2 with variable-length integers, little-endian. Records must have no recursive types and no elements of
//! size zero: no limit bounds the time or stack that those take.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of the data of one record.
pub const LIMIT: usize = 4 * 1024 * 1024;

/// Why record data could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value can't be encoded, or is longer than [`LIMIT`].
    #[error("record data can't be encoded: {0}")]
    Encode(String),
    /// The bytes are no such value.
    #[error("record data can't be decoded: {0}")]
    Decode(String),
    /// Bytes are left over.
    #[error("record data has {0} bytes too many")]
    LeftOver(usize),
}

const CONFIGURATION: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LIMIT>,
> = bincode::config::standard().with_little_endian().with_variable_int_encoding().with_limit::<LIMIT>();

/// Encodes record data.
///
/// # Errors
/// [`CodecError::Encode`] if the value can't be encoded or is longer than [`LIMIT`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIGURATION)
        .map_err(|error| CodecError::Encode(error.to_string()))?;
    if bytes.len() > LIMIT {
        return Err(CodecError::Encode(format!("{} bytes are more than {LIMIT}", bytes.len())));
    }
    Ok(bytes)
}

/// Decodes record data: all of it, and nothing but it.
///
/// # Errors
/// [`CodecError::Decode`] if the bytes are no such value, [`CodecError::LeftOver`] if they are more than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, consumed) = bincode::serde::decode_from_slice(bytes, CONFIGURATION)
        .map_err(|error| CodecError::Decode(error.to_string()))?;
    if consumed != bytes.len() {
        return Err(CodecError::LeftOver(bytes.len() - consumed));
    }
    Ok(value)
}
