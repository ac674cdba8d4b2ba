//! The on-disk format of vckpt images.

pub mod check;
pub mod codec;
pub mod error;
pub mod id;
mod layout;
pub mod reader;
pub mod record;
pub mod text;
pub mod writer;

pub use error::{FormatError, WriteError};
pub use id::{
    DescriptionId, DescriptorTableId, FileSystemContextId, Identity, MemoryId, NamelessFileId, PipeId,
    SegmentId, SocketId, TaskId, TerminalId,
};
pub use layout::{CHUNK_SIZE, FORMAT_VERSION, MAX_CHUNKS, MAX_FRAMES, MAX_RECORD_BYTES, PAGE_SIZE};
pub use reader::{FrameInfo, Image, PageSection};
pub use record::{Kind, Record, to_json};
pub use text::Text;
pub use writer::ImageWriter;
