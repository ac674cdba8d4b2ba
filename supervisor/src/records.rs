//! What observing gives: records, and contents that are still to be copied. Nothing is written here.
//!
//! Storing them is the business of [`store`](crate::store).

use crate::freeze::Backlog;
use crate::kinds::descriptor::internet::hold::Hold;
use crate::kinds::descriptor::io_uring::observe::{Looked, Watch};
use crate::kinds::descriptor::message_queue::observe::Queue;
use crate::kinds::descriptor::terminal::pair::observe::Pair;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use vckpt_image_format::record::data_queued::Message;
use vckpt_image_format::record::mmap_memory::PageOwner;
use vckpt_image_format::record::process_map::MappedFile;
use vckpt_image_format::writer::{ImageWriter, WriteError};
use vckpt_image_format::{DescriptionId, NamelessFileId, Record, RingId, SegmentId, Text};

/// A record of any kind, ready to be written.
pub trait AnyRecord: fmt::Debug {
    /// Writes it.
    ///
    /// # Errors
    /// What the writer says.
    fn write(&self, writer: &mut ImageWriter<Box<dyn Write>>) -> Result<(), WriteError>;
}

impl<R: Record> AnyRecord for R {
    fn write(&self, writer: &mut ImageWriter<Box<dyn Write>>) -> Result<(), WriteError> {
        writer.record(self)
    }
}

/// The identity of a file or segment on this host: device and inode.
pub type Inode = (u64, u64);

/// The content of a file that is to be stored: its data, not its holes.
#[derive(Debug)]
pub struct FileContent {
    /// What it is the content of.
    pub owner: PageOwner,
    /// The file, open for reading.
    pub file: OwnedFd,
    /// Its size in bytes at the freeze.
    pub size: u64,
}

/// The pages of a memory that are to be stored.
#[derive(Debug)]
pub struct MemoryContent {
    /// What they belong to.
    pub owner: PageOwner,
    /// The process to read them from, as this program sees it.
    pub pid: i32,
    /// Its memory (`/proc/<pid>/mem`).
    pub memory: File,
    /// What to subtract from an address to get the address in the record (for segments).
    pub base: u64,
    /// The runs, in order.
    pub runs: Vec<FoundRun>,
}

/// Pages with consecutive addresses that were found in a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRun {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What is known of the pages.
    pub content: RunContent,
}

/// What is known of the pages of a [`FoundRun`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunContent {
    /// To be stored; pages of zeros need not be.
    Anonymous,
    /// To be stored; pages of zeros must be noted, since the mapping gives something else.
    OverFile,
    /// The parent has the same pages at the same addresses.
    Parent,
    /// A guard region.
    Guard,
}

/// Everything that was observed.
#[derive(Debug, Default)]
pub struct Records {
    /// The records in the order of the image.
    pub records: Vec<Box<dyn AnyRecord>>,
    /// Files and segments whose content is to be stored.
    pub contents: Vec<FileContent>,
    /// Memories whose pages are to be stored.
    pub memories: Vec<MemoryContent>,
    /// What can't be kept exactly, in one line each.
    pub degraded: Vec<String>,
    /// Pseudo-terminals that are still to be asked for what waits in them.
    pub pairs: Vec<Pair>,
    /// Message queues that are still to be asked for their messages.
    pub queues: Vec<Queue>,
    /// io_urings that are still to be asked.
    pub rings: Vec<Looked>,
    /// Whether a ring was refused.
    pub ring_refused: bool,
    /// What must still be so when the image is complete: the kernel works on while the tree stands still.
    pub watched: Vec<Watch>,
    /// Files behind mappings that were found by their names: the name, what it led to, and whether it is written to.
    pub mapped_files: HashMap<(Text, Inode, bool), MappedFile>,
    /// Whether the files behind mappings are to be stored too, as far as they are part of the program.
    pub embed_files: bool,
    /// Whether TCP connections with peers outside of the tree are kept as if the peer had closed them.
    pub close_connections: bool,
    /// Whether unix sockets with peers outside of the tree are kept as if the peer had closed them.
    pub close_external: bool,
    /// What keeps TCP connections as they were observed, until the tree has ended or goes on.
    pub hold: Option<Hold>,
    /// What waits in unix sockets, by description.
    pub unix_queues: HashMap<DescriptionId, Vec<Message>>,
    /// Connections that somebody is to accept before the tree can be dumped.
    pub backlog: Backlog,
    nameless_files: HashMap<Inode, NamelessFileId>,
    segments: HashMap<Inode, SegmentId>,
    ring_numbers: HashMap<Inode, RingId>,
}

impl Records {
    /// Adds a record.
    pub fn push<R: Record + 'static>(&mut self, record: R) {
        self.records.push(Box::new(record));
    }

    /// The identity of a nameless file, and whether it is seen for the first time: then the caller adds its record
    /// and content.
    pub fn nameless_file(&mut self, inode: Inode) -> (NamelessFileId, bool) {
        let next = NamelessFileId(u32::try_from(self.nameless_files.len()).unwrap_or(u32::MAX));
        let id = *self.nameless_files.entry(inode).or_insert(next);
        (id, id == next)
    }

    /// The identity of a shared segment, and whether it is seen for the first time: then the caller adds its record
    /// and content.
    pub fn segment(&mut self, inode: Inode) -> (SegmentId, bool) {
        let next = SegmentId(u32::try_from(self.segments.len()).unwrap_or(u32::MAX));
        let id = *self.segments.entry(inode).or_insert(next);
        (id, id == next)
    }

    /// The identity of an io_uring.
    pub fn ring(&mut self, inode: Inode) -> RingId {
        let next = RingId(u32::try_from(self.ring_numbers.len()).unwrap_or(u32::MAX));
        *self.ring_numbers.entry(inode).or_insert(next)
    }

    /// All io_urings that have an identity.
    pub fn ring_ids(&self) -> impl Iterator<Item = RingId> {
        self.ring_numbers.values().copied()
    }
}
