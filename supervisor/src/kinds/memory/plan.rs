//! Planning memory: from the records of an image to what each process has to build.

use super::build::{BuildMemory, MemoryPlan};
use super::{fill, sharing};
use crate::error::{Error, Result, code};
use crate::plan::{Plan, Stage};
use crate::stub::batch::Batch;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::mmap_memory::{PageOwner, PageRun, PageSource};
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_map::{Layout, Mapping, ProcessMap, ProtectionKeys, flag};
use vckpt_image_format::{DescriptorTableId, MemoryId, TaskId};

/// `mseal(2)` (Linux 6.10).
const SYS_MSEAL: i64 = 462;
const PAGE: u64 = 4096;
/// Calls in one batch.
const CALLS_A_BATCH: usize = 512;

/// Adds the building of every memory, except of those that [`early`] names.
///
/// # Errors
/// [`code::IMAGE_BAD`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let plans = memories(image)?;
    let early = early(&plans);
    for (process, memory) in plans {
        finish(&memory, plan);
        if !early.contains(&process) {
            plan.action(Stage::Memory, BuildMemory { plan: memory });
        }
    }
    Ok(())
}

/// What is done when nothing is mapped any more: sealing, and what later mappings shall get.
fn finish(memory: &MemoryPlan, plan: &mut Plan) {
    let sealed: Vec<_> = memory.mappings.iter().filter(|mapping| mapping.flags & flag::SEALED != 0).collect();
    for some in sealed.chunks(CALLS_A_BATCH) {
        let mut batch = Batch::new();
        for mapping in some {
            let arguments = [mapping.start.into(), (mapping.end - mapping.start).into(), 0.into()];
            batch.must("sealing memory", SYS_MSEAL, arguments);
        }
        plan.batch(Stage::TaskState, memory.process, "memory", batch);
    }
    if memory.layout.lock_future != 0 {
        let mut batch = Batch::new();
        batch.must("locking future memory", libc::SYS_mlockall, [memory.layout.lock_future.into()]);
        plan.batch(Stage::TaskState, memory.process, "memory", batch);
    }
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
/// [`code::IMAGE_BAD`].
pub fn memories(image: &Image) -> Result<BTreeMap<TaskId, MemoryPlan>> {
    let processes = crate::image::all::<Process>(image)?;
    let maps = maps(image)?;
    let areas = crate::kinds::process::family::places(&processes)?.areas();
    let adopted = crate::kinds::process::family::adopted(&processes)?.0;
    let mut seen = BTreeSet::new();
    let mut all_runs = fill::runs(image)?;
    let guards = guards(&all_runs);
    let uses_keys = maps.values().any(|(layout, mappings)| {
        layout.as_ref().is_some_and(|layout| layout.keys != ProtectionKeys::default())
            || mappings.iter().any(|mapping| mapping.protection_key != 0)
    });
    let shared = shared_tables(&processes);
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
        let runs = all_runs.remove(&PageOwner::Memory(living.memory)).unwrap_or_default();
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
        let parents_guards = parent.and_then(|parent| guards.get(&parent.living.as_ref()?.memory));
        let inherited_guards = parents_guards.map_or_else(Vec::new, |guards| common(guards, &kept));
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
                inherited_guards,
                uses_keys,
                shares_table: shared.contains(&living.descriptor_table),
                kept,
            },
        );
    }
    Ok(plans)
}

/// The descriptor tables that processes with different memories have.
fn shared_tables(processes: &[Process]) -> BTreeSet<DescriptorTableId> {
    let living = processes.iter().filter_map(|process| process.living.as_ref());
    let pairs: BTreeSet<_> = living.map(|living| (living.descriptor_table, living.memory)).collect();
    let tables = || pairs.iter().map(|&(table, _)| table);
    tables().zip(tables().skip(1)).filter(|(one, next)| one == next).map(|(table, _)| table).collect()
}

/// The guard regions of each memory that has some.
fn guards(runs: &HashMap<PageOwner, Vec<PageRun>>) -> HashMap<MemoryId, Vec<(u64, u64)>> {
    let mut guards: HashMap<MemoryId, Vec<(u64, u64)>> = HashMap::new();
    for (owner, runs) in runs {
        let PageOwner::Memory(memory) = owner else { continue };
        for run in runs.iter().filter(|run| run.source == PageSource::Guard) {
            guards.entry(*memory).or_default().push((run.address, run.address + run.count * PAGE));
        }
    }
    guards
}

/// What is in both of two lists of ranges, each in the order of its addresses.
fn common(one: &[(u64, u64)], other: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for &(start, end) in one {
        let first = other.partition_point(|range| range.1 <= start);
        for range in other.iter().skip(first).take_while(|range| range.0 < end) {
            ranges.push((range.0.max(start), range.1.min(end)));
        }
    }
    ranges
}

type Maps = BTreeMap<MemoryId, (Option<Layout>, Vec<Mapping>)>;

/// The mappings of every memory in the image.
///
/// # Errors
/// [`code::IMAGE_BAD`].
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_both_lists_is_cut_to_both() {
        let one = [(0x1000, 0x4000), (0x6000, 0x7000), (0x9000, 0xf000)];
        let other = [(0x2000, 0x3000), (0x3000, 0x6000), (0xa000, 0xb000), (0xc000, 0xd000)];
        assert_eq!(
            common(&one, &other),
            [(0x2000, 0x3000), (0x3000, 0x4000), (0xa000, 0xb000), (0xc000, 0xd000)]
        );
    }
}
