//! The resource records: one file a kind, plain data, no behaviour.
//!
//! Adding a kind: a file here with a type that implements [`Record`], a [`Kind`], and a line in [`REGISTRY`].
//! Fields are encoded by position: adding one is a new [`Record::VERSION`].

pub mod alarm;
pub mod bpf_map;
pub mod connection;
pub mod credentials;
pub mod current_directory;
pub mod data_queued;
pub mod description;
pub mod descriptor_table;
pub mod epoll;
pub mod event_descriptor;
pub mod fanotify;
pub mod file;
pub mod file_locking;
pub mod inotify;
pub mod io_uring;
pub mod ipc_namespace;
pub mod kind;
pub mod lightweight_process;
pub mod message_queue;
pub mod mmap_memory;
pub mod nameless_file;
pub mod namespace_descriptor;
pub mod packet_socket;
pub mod pipe;
pub mod platform_name;
pub mod posix_message_queue;
pub mod process;
pub mod process_descriptor;
pub mod process_map;
pub mod process_status;
pub mod pseudo_terminal;
pub mod reception;
pub mod resource_limit;
pub mod sandbox;
pub mod schedule_control;
pub mod semaphore;
pub mod shared_segment;
pub mod signal;
pub mod signal_descriptor;
pub mod snapshot;
pub mod socket_credentials;
pub mod socket_option;
pub mod terminal;
pub mod timer_descriptor;
pub mod unix_socket;
pub mod uts_namespace;

use crate::codec::{self, CodecError};
use crate::id::Identity;
pub use kind::Kind;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A resource record.
pub trait Record: Serialize + DeserializeOwned + std::fmt::Debug {
    /// Its kind: the resource type of FIG. 7.
    const KIND: Kind;
    /// The version of its data.
    const VERSION: u16;

    /// The name for people, such as `fd 7 pipe:[4711]`.
    fn name(&self) -> String;

    /// What this record defines: an identity may be defined once an image.
    fn defines(&self) -> Vec<Identity> {
        Vec::new()
    }

    /// What this record refers to: every identity must be defined by some record of the image.
    fn refers(&self) -> Vec<Identity> {
        Vec::new()
    }

    /// Whether the values make sense by themselves (ranges, lengths, order); the text says what does not.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What can be done with a record without knowing its type; see [`REGISTRY`].
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The kind.
    pub kind: Kind,
    /// The newest version of its data that this program reads.
    pub version: u16,
    /// Decodes the data and gives all that can be said without its type.
    pub examine: fn(&[u8]) -> Result<Examined, CodecError>,
    /// Decodes the data and gives its `Debug` rendering.
    pub debug: fn(&[u8]) -> Result<String, CodecError>,
    /// Decodes the data and gives it as JSON.
    pub json: fn(&[u8]) -> Result<serde_json::Value, CodecError>,
}

/// A record that was decoded by [`Entry::examine`].
#[derive(Debug)]
pub struct Examined {
    /// [`Record::defines`].
    pub defines: Vec<Identity>,
    /// [`Record::refers`].
    pub refers: Vec<Identity>,
    /// [`Record::check`].
    pub check: Result<(), String>,
}

/// The [`Entry`] of a record type.
#[must_use]
pub const fn entry<R: Record>() -> Entry {
    Entry { kind: R::KIND, version: R::VERSION, examine: examine::<R>, debug: debug::<R>, json: json::<R> }
}

fn examine<R: Record>(data: &[u8]) -> Result<Examined, CodecError> {
    let record: R = codec::decode(data)?;
    Ok(Examined { defines: record.defines(), refers: record.refers(), check: record.check() })
}

fn debug<R: Record>(data: &[u8]) -> Result<String, CodecError> {
    Ok(format!("{:?}", codec::decode::<R>(data)?))
}

fn json<R: Record>(data: &[u8]) -> Result<serde_json::Value, CodecError> {
    serde_json::to_value(codec::decode::<R>(data)?).map_err(|error| CodecError::Encode(error.to_string()))
}

/// The [`Entry`] of a kind, if this program understands it.
#[must_use]
pub fn find(kind: Kind) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.kind == kind)
}

/// The data of a record of this kind as JSON.
///
/// # Errors
/// [`CodecError`] if the data is not of this kind, or if the kind is in no [`REGISTRY`].
pub fn to_json(kind: Kind, data: &[u8]) -> Result<serde_json::Value, CodecError> {
    let entry =
        find(kind).ok_or_else(|| CodecError::Decode(format!("records of kind {kind} are not known")))?;
    (entry.json)(data)
}

/// The one list of all kinds that this program understands.
pub const REGISTRY: &[Entry] = &[
    entry::<snapshot::Snapshot>(),
    entry::<platform_name::PlatformName>(),
    entry::<process::Process>(),
    entry::<process_status::ProcessStatus>(),
    entry::<lightweight_process::LightweightProcess>(),
    entry::<process_map::ProcessMap>(),
    entry::<mmap_memory::MmapMemory>(),
    entry::<shared_segment::SharedSegment>(),
    entry::<sandbox::Sandbox>(),
    entry::<signal::Signal>(),
    entry::<alarm::Alarm>(),
    entry::<credentials::Credentials>(),
    entry::<resource_limit::ResourceLimit>(),
    entry::<schedule_control::ScheduleControl>(),
    entry::<file::File>(),
    entry::<nameless_file::NamelessFile>(),
    entry::<descriptor_table::DescriptorTable>(),
    entry::<pipe::Pipe>(),
    entry::<data_queued::DataQueued>(),
    entry::<file_locking::FileLocking>(),
    entry::<current_directory::CurrentDirectory>(),
    entry::<event_descriptor::EventDescriptor>(),
    entry::<epoll::Epoll>(),
    entry::<signal_descriptor::SignalDescriptor>(),
    entry::<timer_descriptor::TimerDescriptor>(),
    entry::<unix_socket::UnixSocket>(),
    entry::<connection::Connection>(),
    entry::<packet_socket::PacketSocket>(),
    entry::<terminal::Terminal>(),
    entry::<process_descriptor::ProcessDescriptor>(),
    entry::<namespace_descriptor::NamespaceDescriptor>(),
    entry::<inotify::Inotify>(),
    entry::<fanotify::Fanotify>(),
    entry::<pseudo_terminal::PseudoTerminal>(),
    entry::<posix_message_queue::PosixMessageQueue>(),
    entry::<ipc_namespace::IpcNamespace>(),
    entry::<uts_namespace::UtsNamespace>(),
    entry::<bpf_map::BpfMap>(),
    entry::<io_uring::IoUring>(),
    entry::<message_queue::MessageQueue>(),
    entry::<semaphore::Semaphore>(),
];
