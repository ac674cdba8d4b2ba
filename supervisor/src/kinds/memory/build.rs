//! Building a memory in a puppet: clear what is there, put the kernel's own mappings in their old place, map, fill,
//! protect, and tell the kernel the addresses that it keeps.

mod attributes;
mod calls;
mod clear;
mod guards;
mod keys;
mod layout;
mod map;
mod pages;
mod rings;

use crate::error::{Error, Result, Subject};
use crate::plan::Action;
use crate::restoring::Restoring;
use calls::Builder;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::mmap_memory::PageRun;
use vckpt_image_format::record::process_map::{Layout, Mapping};

/// What a process has to build.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// The process.
    pub process: TaskId,
    /// Its parent in the image.
    pub parent: Option<TaskId>,
    /// Number of the areas of puppets in it.
    pub areas: usize,
    /// The kernel's addresses.
    pub layout: Layout,
    /// The mappings, in order.
    pub mappings: Vec<Mapping>,
    /// The pages, in order.
    pub runs: Vec<PageRun>,
    /// Ranges that are inherited from the parent, in order.
    pub kept: Vec<(u64, u64)>,
    /// Guard regions that are inherited from the parent, in order.
    pub inherited_guards: Vec<(u64, u64)>,
    /// Whether any memory of the image uses protection keys.
    pub uses_keys: bool,
    /// Whether its descriptor table is also that of a process with another memory.
    pub shares_table: bool,
    /// Whether the executable is inherited from the parent too: the kernel does not let it be set while it is mapped.
    pub inherits_executable: bool,
}

/// Builds the memory of a process.
#[derive(Debug)]
pub struct BuildMemory {
    /// What to build.
    pub plan: MemoryPlan,
}

impl Action for BuildMemory {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        build(restoring, &self.plan)
    }

    /// Descriptors have the same numbers for a moment in all processes.
    fn overlaps(&self) -> bool {
        !self.plan.shares_table
    }
}

/// Builds a memory. The last of it is still [under way](Restoring::begin) then.
///
/// # Errors
/// What is missing on this host, or what the kernel refused.
pub fn build(restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
    let subject = Subject::task(plan.process.0, plan.layout.executable.path.clone());
    let about = |error: Box<Error>| error.about(subject.clone());
    layout::prepare(restoring, plan).map_err(about)?;
    clear::clear(restoring, plan).map_err(about)?;
    let mut builder = Builder::new(plan.process, subject.clone());
    builder.take_keys(restoring, plan).map_err(about)?;
    builder.forget(restoring, plan).map_err(about)?;
    for mapping in &plan.mappings {
        builder.map(restoring, plan, mapping).map_err(about)?;
    }
    builder.rings(restoring, plan).map_err(about)?;
    builder.fill(restoring, plan).map_err(about)?;
    for mapping in &plan.mappings {
        builder.protect(restoring, plan, mapping).map_err(about)?;
    }
    // Neighbours that were one mapping until their attributes were set must not share the mark of a guard.
    builder.guard(restoring, plan).map_err(about)?;
    for mapping in &plan.mappings {
        builder.lock(restoring, mapping).map_err(about)?;
    }
    builder.give_keys_back(restoring, plan).map_err(about)?;
    builder.layout(restoring, plan).map_err(about)?;
    builder.flush(restoring).map_err(about)
}
