//! The calls that build a memory: gathered, sent when a request is full, and checked for what came of them.

use crate::error::{Error, Result, code};
use crate::kinds::memory::mapped_file;
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::process_map::MappedFile;
use vckpt_parasite::protocol;

/// Gathers calls for a puppet, sends them when a request is full, and checks what came of them.
pub(super) struct Builder {
    pub(super) process: TaskId,
    pub(super) batch: Batch,
    /// Calls that must give exactly this.
    pub(super) expected: Vec<(CallIndex, u64)>,
    /// Files that were opened, by path and whether for writing.
    files: HashMap<(MappedFile, bool), File>,
    /// Descriptors that travel with the batch, and the calls' argument for them.
    sent: HashMap<RawFd, Argument>,
}

impl Builder {
    /// Nothing is to be called yet.
    pub(super) fn new(process: TaskId) -> Self {
        Self {
            process,
            batch: Batch::new(),
            expected: Vec::new(),
            files: HashMap::new(),
            sent: HashMap::new(),
        }
    }

    /// Sends what was gathered.
    pub(super) fn flush(&mut self, restoring: &mut Restoring<'_>) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        for argument in std::mem::take(&mut self.sent).into_values() {
            batch.call("closing a descriptor", libc::SYS_close, [argument]);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let outcome = restoring.run(self.process, &batch)?;
        for (call, expected) in std::mem::take(&mut self.expected) {
            let result = outcome.get(call);
            if result != Ok(expected) {
                return Err(Error::new(code::MEMORY_ACCESS, "filling memory from the image")
                    .because(format!("{result:?} bytes instead of {expected}")));
            }
        }
        Ok(())
    }

    /// Makes room for a few more calls, with this much data.
    pub(super) fn reserve(&mut self, restoring: &mut Restoring<'_>, data: usize) -> Result<()> {
        const SOME: usize = 8;
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

    /// The argument for a descriptor of ours, which travels once with the batch.
    pub(super) fn descriptor(&mut self, number: RawFd) -> Argument {
        let batch = &mut self.batch;
        *self.sent.entry(number).or_insert_with(|| batch.descriptor(number))
    }

    /// Opens a mapped file, once.
    pub(super) fn open(&mut self, restoring: &Restoring<'_>, file: &MappedFile) -> Result<RawFd> {
        if let Some(id) = file.nameless {
            let made = restoring.nameless_files.get(&id).map(AsRawFd::as_raw_fd);
            return made.ok_or_else(|| Error::new(code::INTERNAL, "a nameless file was not made"));
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
