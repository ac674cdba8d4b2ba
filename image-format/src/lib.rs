//! The on-disk format of vckpt images.

pub mod codec;
pub mod id;
pub mod record;
pub mod text;

pub use id::{
    DescriptionId, DescriptorTableId, FileSystemContextId, Identity, MemoryId, NamelessFileId, PipeId,
    SegmentId, SocketId, TaskId, TerminalId,
};
pub use record::{Kind, Record};
pub use text::Text;
