//! The finished stub as bytes, made and checked by the build script. Not its address in a task: that is the
//! supervisor's choice, the bytes fit anywhere.

/// The stub as it lies in memory: the first bytes of an area, to be mapped read-execute.
/// At most [`CODE_LENGTH`](crate::protocol::CODE_LENGTH) bytes.
pub static STUB_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub.image"));

/// Where in [`STUB_IMAGE`] execution starts. `rdi` holds the address of the boot page then, or 0 for the boot page
/// that follows the code.
pub const ENTRY_OFFSET: usize = include!(concat!(env!("OUT_DIR"), "/stub.entry"));
