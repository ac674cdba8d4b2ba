//! The calls that build a memory: gathered, sent when a request is full, and checked for what came of them.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::restore::open_again;
use crate::kinds::memory::mapped_file;
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use vckpt_image_format::record::process_map::MappedFile;
use vckpt_image_format::{SegmentId, TaskId};
use vckpt_parasite::protocol;

/// Gathers calls for a puppet, sends them when a request is full, and checks what came of them.
pub(super) struct Builder {
    pub(super) process: TaskId,
    /// For errors.
    subject: Subject,
    pub(super) batch: Batch,
    /// Calls that must give exactly this.
    pub(super) expected: Vec<(CallIndex, u64)>,
    /// Calls without which something is not exact, and what that is.
    pub(super) wanted: Vec<(CallIndex, String)>,
    /// Files that were opened, by path and whether for writing.
    files: HashMap<(MappedFile, bool), File>,
    /// Segments that were opened for reading only.
    read_only: HashMap<SegmentId, OwnedFd>,
    /// Descriptors that travel with the batch, and the calls' argument for them.
    sent: HashMap<RawFd, Argument>,
}

impl Builder {
    /// Nothing is to be called yet.
    pub(super) fn new(process: TaskId, subject: Subject) -> Self {
        Self {
            process,
            subject,
            batch: Batch::new(),
            expected: Vec::new(),
            wanted: Vec::new(),
            files: HashMap::new(),
            read_only: HashMap::new(),
            sent: HashMap::new(),
        }
    }

    /// Sends what was gathered; what comes of it is taken when the puppet is needed next.
    pub(super) fn flush(&mut self, restoring: &mut Restoring<'_>) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        for argument in std::mem::take(&mut self.sent).into_values() {
            batch.call("closing a descriptor", libc::SYS_close, [argument]);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let expected = std::mem::take(&mut self.expected);
        let (wanted, subject) = (std::mem::take(&mut self.wanted), self.subject.clone());
        restoring.begin(self.process, batch, move |restoring, outcome| {
            for (call, expected) in expected {
                let result = outcome.get(call);
                if result != Ok(expected) {
                    return Err(Error::new(code::MEMORY_ACCESS, "building memory")
                        .because(format!("{result:?} instead of {expected}"))
                        .about(subject));
                }
            }
            for (call, what) in wanted {
                if let Err(errno) = outcome.get(call) {
                    restoring.degraded.push(format!("{what} could not be set: {}", errno.desc()));
                }
            }
            Ok(())
        })
    }

    /// Makes room for a few more calls, with this much data.
    pub(super) fn reserve(&mut self, restoring: &mut Restoring<'_>, data: usize) -> Result<()> {
        const SOME: usize = 24;
        let calls = self.batch.calls.len() + SOME + self.sent.len();
        let length = (calls + SOME) * 64 + self.batch.data.len() + data + 64;
        if calls > protocol::MAXIMUM_CALLS
            || length > protocol::BUFFER_LENGTH
            || self.sent.len() + SOME > protocol::MAXIMUM_DESCRIPTORS
        {
            self.flush(restoring)?;
        }
        Ok(())
    }

    /// How many descriptors travel with what was gathered.
    pub(super) fn descriptors(&self) -> u64 {
        self.sent.len() as u64
    }

    /// The argument for a descriptor of ours, which travels once with the batch.
    pub(super) fn descriptor(&mut self, number: RawFd) -> Argument {
        let batch = &mut self.batch;
        *self.sent.entry(number).or_insert_with(|| batch.descriptor(number))
    }

    /// The descriptor of a segment; one that can only be read if the mapping shall never be written.
    pub(super) fn segment(
        &mut self,
        restoring: &Restoring<'_>,
        id: SegmentId,
        read_only: bool,
    ) -> Result<RawFd> {
        let missing = || Error::new(code::INTERNAL, "a segment was not made");
        let made = restoring.segments.get(&id).ok_or_else(missing)?;
        if !read_only {
            return Ok(made.as_raw_fd());
        }
        if let Some(open) = self.read_only.get(&id) {
            return Ok(open.as_raw_fd());
        }
        let opened = open_again(made.as_fd(), libc::O_RDONLY.cast_unsigned())
            .map_err(|errno| Error::system(code::MAPPING, "opening a segment for reading", errno))?;
        let number = opened.as_raw_fd();
        self.read_only.insert(id, opened);
        Ok(number)
    }

    /// Opens a mapped file, once.
    pub(super) fn open(&mut self, restoring: &Restoring<'_>, file: &MappedFile) -> Result<RawFd> {
        if let Some(id) = file.nameless {
            let made = restoring.nameless_files.get(&id).map(AsRawFd::as_raw_fd);
            if made.is_some() || !file.embedded {
                return made.ok_or_else(|| Error::new(code::INTERNAL, "a nameless file was not made"));
            }
        }
        let key = (file.clone(), file.writable);
        if let Some(open) = self.files.get(&key) {
            return Ok(open.as_raw_fd());
        }
        let opened = mapped_file::open(restoring, file)?;
        let number = opened.as_raw_fd();
        self.files.insert(key, opened);
        Ok(number)
    }
}
