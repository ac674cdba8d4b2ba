//! Planning memory: from the records of an image to what each process has to build.

use super::build::{BuildMemory, MemoryPlan};
use super::{fill, sharing};
use crate::error::{Error, Result, code};
use crate::plan::{Plan, Stage};
use std::collections::{BTreeMap, BTreeSet};
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::mmap_memory::{PageOwner, PageSource};
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_map::{Layout, Mapping, ProcessMap};
use vckpt_image_format::{MemoryId, TaskId};

/// Adds the building of every memory, except of those that [`early`] names.
///
/// # Errors
/// [`code::IMAGE_BAD`](crate::error::code::IMAGE_BAD).
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let plans = memories(image)?;
    let early = early(&plans);
    for (process, memory) in plans {
        if !early.contains(&process) {
            plan.action(Stage::Memory, BuildMemory { plan: memory });
        }
    }
    Ok(())
}

/// The processes whose memory has to be there before their children are made, because a child shares pages with them.
#[must_use]
pub fn early(plans: &BTreeMap<TaskId, MemoryPlan>) -> Vec<TaskId> {
    let shares = |plan: &&MemoryPlan| plan.runs.iter().any(|run| run.source == PageSource::Parent);
    plans.values().filter(shares).filter_map(|plan| plan.parent).collect()
}

/// What is to be built, by the first process of each memory.
///
/// # Errors
/// [`code::IMAGE_BAD`](crate::error::code::IMAGE_BAD).
pub fn memories(image: &Image) -> Result<BTreeMap<TaskId, MemoryPlan>> {
    let processes = crate::image::all::<Process>(image)?;
    let maps = maps(image)?;
    let areas = crate::kinds::process::family::places(&processes)?.areas();
    let adopted = crate::kinds::process::family::adopted(&processes)?.0;
    let mut seen = BTreeSet::new();
    let mut plans = BTreeMap::new();
    for process in &processes {
        let Some(living) = &process.living else { continue };
        if !seen.insert(living.memory) {
            // Built by the first process that has it.
            continue;
        }
        let Some((Some(layout), mappings)) = maps.get(&living.memory) else { continue };
        let parent = processes.iter().find(|other| Some(other.id) == process.parent);
        // By whom the memory of the parent is built.
        let owns =
            |other: &&Process, memory| other.living.as_ref().is_some_and(|living| living.memory == memory);
        let parent = parent.and_then(|parent| {
            let memory = parent.living.as_ref()?.memory;
            processes.iter().find(|other| owns(other, memory))
        });
        let parent_maps = parent.and_then(|parent| maps.get(&parent.living.as_ref()?.memory));
        let runs = fill::runs(image, PageOwner::Memory(living.memory))?;
        if adopted.contains(&process.id) && runs.iter().any(|run| run.source == PageSource::Parent) {
            let what = "a process shares pages with a parent that has not made it";
            return Err(Error::new(code::IMAGE_BAD, what));
        }
        let inherits = runs.iter().any(|run| run.source == PageSource::Parent);
        let kept = match parent_maps {
            Some((_, parent_mappings)) if inherits => sharing::common_ranges(parent_mappings, mappings),
            _ => Vec::new(),
        };
        let parents_layout = parent_maps.and_then(|(layout, _)| layout.as_ref());
        let same_executable = parents_layout.is_some_and(|parents| parents.executable == layout.executable);
        plans.insert(
            process.id,
            MemoryPlan {
                process: process.id,
                parent: parent.map(|parent| parent.id),
                areas: areas.get(&living.memory).copied().unwrap_or(1),
                layout: layout.clone(),
                mappings: mappings.clone(),
                runs,
                inherits_executable: inherits && same_executable,
                kept,
            },
        );
    }
    Ok(plans)
}

type Maps = BTreeMap<MemoryId, (Option<Layout>, Vec<Mapping>)>;

/// The mappings of every memory in the image.
///
/// # Errors
/// [`code::IMAGE_BAD`](crate::error::code::IMAGE_BAD).
pub fn maps(image: &Image) -> Result<Maps> {
    let mut maps = Maps::new();
    for record in crate::image::all::<ProcessMap>(image)? {
        let (layout, mappings) = maps.entry(record.memory).or_default();
        if record.layout.is_some() {
            *layout = record.layout;
        }
        mappings.extend(record.mappings);
    }
    Ok(maps)
}
