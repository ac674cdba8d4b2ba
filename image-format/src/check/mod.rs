//! Whether the records of an image fit together; what one record can be checked for by itself is in
//! [`Record::check`](crate::Record::check), and nothing here compares the image with a host.
//!
//! For all kinds, by [`REGISTRY`](crate::record::REGISTRY):
//! - the first record is the snapshot, and there is one;
//! - every record can be decoded, and its values make sense by themselves;
//! - what is referred to is defined, and nothing is defined twice.
//!
//! For processes:
//! - they are one tree, whose root is that of the snapshot; a parent has not ended;
//! - a living process has one record for each of its threads, and there are no other threads;
//! - the thread whose child a process is belongs to its parent; who has the signal handlers of another process has its
//!   memory too;
//! - a process has at most one status, which says that it has ended if and only if it has.
//!
//! For memory:
//! - the first map of a memory has the layout, the others have none;
//! - mappings of a memory, and runs of pages of an owner, are in order and don't overlap;
//! - runs lie inside the mappings of their memory, or inside their segment;
//! - stored pages exist;
//! - pages that are the parent's are of a memory whose first process (the one that is closest to the root) has a
//!   parent with a mapping there. So such references never run in a circle.

mod memory;
mod references;
#[cfg(test)]
mod tests;
mod tree;

use crate::error::FormatError;
use crate::reader::Image;
use crate::record::Kind;
use crate::record::lightweight_process::LightweightProcess;
use crate::record::process::Process;
use crate::record::process_status::ProcessStatus;
use crate::record::snapshot::Snapshot;
use memory::Memories;
use references::References;
use tree::Tree;

/// What is wrong with the record of this number.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    record: usize,
    why: String,
}

impl Finding {
    fn new(record: usize, why: impl Into<String>) -> Self {
        Self { record, why: why.into() }
    }
}

/// Refuses an image whose records contradict one another.
pub(crate) fn check(image: &Image) -> Result<(), FormatError> {
    let finding = |Finding { record, why }: Finding| FormatError::inconsistent(image.label(record), why);
    if image.frames().next().is_none_or(|first| first.kind != Some(Kind::Snapshot)) {
        return Err(FormatError::inconsistent("the first record", "it is no snapshot"));
    }
    let snapshot: Snapshot = image.one()?;

    let mut references = References::default();
    for examined in image.examined() {
        let (number, examined) = examined?;
        references.add(number, &examined).map_err(finding)?;
    }
    references.finish().map_err(finding)?;

    let threads = image.decoded::<LightweightProcess>().count();
    let mut tree = Tree::new(snapshot.root, threads);
    for process in image.decoded::<Process>() {
        let (number, process) = process?;
        tree.process(number, process).map_err(finding)?;
    }
    for thread in image.decoded::<LightweightProcess>() {
        let (number, thread) = thread?;
        tree.thread(number, thread.id, thread.process).map_err(finding)?;
    }
    for status in image.decoded::<ProcessStatus>() {
        let (number, status) = status?;
        tree.status(number, &status).map_err(finding)?;
    }
    let families = tree.finish().map_err(finding)?;

    let mut memories = Memories::new(families);
    for map in image.decoded() {
        let (number, map) = map?;
        memories.map(number, &map).map_err(finding)?;
    }
    for segment in image.decoded() {
        let (_, segment) = segment?;
        memories.segment(&segment);
    }
    for pages in image.decoded() {
        let (number, pages) = pages?;
        memories.pages(number, &pages, |section| image.page_section(section)).map_err(finding)?;
    }
    Ok(())
}
