//! A restore under way: the puppets, and the objects that were made for them.
//!
//! Dropping it before the release ends every puppet: nothing is left behind.

use crate::error::{Error, Result, Subject, code};
use crate::stub::batch::{Batch, Outcome};
use crate::stub::puppet::Puppet;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use vckpt_image_format::reader::Image;
use vckpt_image_format::{DescriptionId, NamelessFileId, SegmentId, TaskId};

/// A restore under way.
#[derive(Debug)]
pub struct Restoring<'image> {
    /// The image, which was verified.
    pub image: &'image Image,
    /// The puppets of all threads, by virtual thread ID; that of a process is its leader's.
    pub puppets: BTreeMap<TaskId, Puppet>,
    /// The open file descriptions that were made, until they are in every table that has them.
    pub descriptions: HashMap<DescriptionId, OwnedFd>,
    /// The shared segments that were made: open for reading and writing.
    pub segments: HashMap<SegmentId, OwnedFd>,
    /// The nameless files that were made: open for reading and writing.
    pub nameless_files: HashMap<NamelessFileId, OwnedFd>,
    /// Where the root directory of the application's mount namespace is seen from here; empty for our own.
    pub root_directory: PathBuf,
    /// What can't be restored exactly, in one line each.
    pub degraded: Vec<String>,
}

impl Restoring<'_> {
    /// The puppet of a thread.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if there is none.
    pub fn puppet(&mut self, thread: TaskId) -> Result<&mut Puppet> {
        self.puppets.get_mut(&thread).ok_or_else(|| {
            Error::new(code::INTERNAL, "a step for a task that has no puppet").about(Subject::task(thread.0, "task"))
        })
    }

    /// Runs a batch in a thread's puppet and checks that what must not fail did not.
    ///
    /// # Errors
    /// If the puppet can't be reached, or a call that must not fail did.
    pub fn run(&mut self, thread: TaskId, batch: &Batch) -> Result<Outcome> {
        self.puppet(thread)?.run(batch)
    }

    /// The ID by which this program sees a task.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if there is no such task.
    pub fn system_id(&mut self, thread: TaskId) -> Result<i32> {
        Ok(self.puppet(thread)?.tid)
    }

    /// A path as the application has it, as this program reaches it.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        if self.root_directory.as_os_str().is_empty() {
            return path.to_path_buf();
        }
        self.root_directory.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The image's file, for page data.
    #[must_use]
    pub fn image_file(&self) -> &File {
        self.image.file()
    }

    /// The number of the image's descriptor in this program.
    #[must_use]
    pub fn image_descriptor(&self) -> i32 {
        self.image.file().as_raw_fd()
    }
}
