//! Observing memory: the mappings of each process, and which of their pages are to be stored.

use super::{attributes, layout, pages, policy, ring, source};
use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::kinds::descriptor::io_uring;
use crate::proc::maps::MapLine;
use crate::records::{MemoryContent, Records};
use std::collections::HashMap;
use vckpt_image_format::record::process_map::{Layout, Mapping, ProcessMap, Source, flag};
use vckpt_image_format::{MemoryId, TaskId, Text};

/// Mappings in one record.
const MAPPINGS_A_RECORD: usize = 4096;

/// Adds the records of all address spaces, and what is to be stored of them.
///
/// # Errors
/// All mappings that can't be kept.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut known = known(frozen, records, &mut problems);
    problems.take(policy::observe(frozen, &mut known));
    for Known { index, mappings, .. } in &known {
        if let Some(process) = frozen.processes.get_mut(*index) {
            problems.take(ring::are_own(process, mappings));
        }
    }
    let places: HashMap<u32, usize> =
        known.iter().enumerate().map(|(place, known)| (known.memory().0, place)).collect();
    for known in &mut known {
        push(known.memory(), known.layout.take(), &known.mappings, records);
    }
    let by_id: HashMap<TaskId, &FrozenProcess> =
        frozen.processes.iter().map(|process| (process.id, process)).collect();
    let find = |of: &Known| -> Option<Result<MemoryContent>> {
        let process = frozen.processes.get(of.index)?;
        let parent = process.parent.filter(|_| !process.adopted).and_then(|parent| by_id.get(&parent));
        let parent = parent.and_then(|parent| {
            let place = *places.get(&parent.shares.memory)?;
            Some((*parent, known.get(place)?.mappings.as_slice()))
        });
        Some(pages::find(process, &of.mappings, parent))
    };
    for content in crate::parallel::map(&known, find).into_iter().flatten() {
        records.memories.extend(problems.take(content));
    }
    problems.finish()
}

/// The memory of a process, by its place among all.
pub(super) struct Known {
    pub(super) index: usize,
    /// Until it is recorded.
    layout: Option<Layout>,
    pub(super) mappings: Vec<Mapping>,
}

impl Known {
    fn memory(&self) -> MemoryId {
        MemoryId(u32::try_from(self.index).unwrap_or(u32::MAX))
    }
}

/// What every memory has mapped, as far as it can be kept. A memory that several processes share is looked at in the
/// first of them.
fn known(frozen: &mut Frozen, records: &mut Records, problems: &mut Problems) -> Vec<Known> {
    let mut known = Vec::new();
    let question = layout::Question::new();
    let has_memory = |process: &FrozenProcess| process.shares.memory == process.index;
    let outcomes = frozen.run_in_some(|process| has_memory(process).then_some(&question.batch));
    let told = frozen.map_processes(|process| has_memory(process).then(|| layout::Told::about(process)));
    let living = frozen.processes.iter().enumerate().filter(|(_, process)| !process.threads.is_empty());
    let places: Vec<usize> = living.map(|(index, _)| index).collect();
    for ((index, outcome), told) in places.into_iter().zip(outcomes).zip(told) {
        let (Some(outcome), Some(told)) = (outcome, told) else { continue };
        let (Some(outcome), Some(told)) = (problems.take(outcome), problems.take(told)) else { continue };
        let Some(process) = frozen.processes.get_mut(index) else { continue };
        let layout = question.layout(process, &outcome, told, records);
        let Some(layout) = problems.take(layout) else { continue };
        let tree = frozen.processes.as_slice();
        let Some(process) = tree.get(index) else { continue };
        let mut mappings = Vec::with_capacity(process.maps.len());
        for line in &process.maps {
            let mapping = mapping(At { tree, process, line }, records)
                .map_err(|error| error.about(process.subject().address(line.start)));
            mappings.extend(problems.take(mapping));
        }
        known.push(Known { index, layout: Some(layout), mappings });
    }
    known
}

fn push(memory: MemoryId, mut layout: Option<Layout>, mappings: &[Mapping], records: &mut Records) {
    let mut chunks = mappings.chunks(MAPPINGS_A_RECORD);
    let first = chunks.next().unwrap_or_default();
    for chunk in std::iter::once(first).chain(chunks) {
        records.push(ProcessMap { memory, layout: layout.take(), mappings: chunk.to_vec() });
    }
}

/// A mapping that is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'tree> {
    /// All processes.
    pub(super) tree: &'tree [FrozenProcess],
    /// The one that has the mapping.
    pub(super) process: &'tree FrozenProcess,
    /// The mapping.
    pub(super) line: &'tree MapLine,
}

fn mapping(at: At<'_>, records: &mut Records) -> Result<Mapping> {
    let At { process, line, .. } = at;
    let refuse = |what: String| {
        let name = String::from_utf8_lossy(&line.name).into_owned();
        Err(Error::new(code::MAPPING, what).about(process.subject().address(line.start).with_path(name)))
    };
    let mut mapping = Mapping {
        start: line.start,
        end: line.end,
        protection: line.protection,
        shared: line.shared,
        flags: 0,
        source: Source::Anonymous,
        name: None,
        protection_key: line.protection_key.unwrap_or(0),
        policy: None,
        huge_page: source::huge_page(line),
    };
    if is_kernels(&line.name) {
        mapping.source = Source::Kernel { name: String::from_utf8_lossy(&line.name).into_owned() };
        return Ok(mapping);
    }
    mapping.flags = match attributes::flags(&line.flags) {
        Ok(flags) => flags,
        Err(meaning) => return refuse(format!("it has {meaning}")),
    };
    if line.name == b"/anon_hugepage" && line.deleted && !line.shared {
        return Ok(mapping);
    }
    let named = [&b"[anon:"[..], b"[anon_shmem:"].iter().find_map(|prefix| line.name.strip_prefix(*prefix));
    mapping.name = named.and_then(|name| name.strip_suffix(b"]")).map(Text::from);
    if ring::is_ring(line) {
        mapping.source = ring::source(at, records)?;
        return Ok(mapping);
    }
    if io_uring::is_mapped(line) {
        mapping.source = io_uring::source(line, records)?;
        return Ok(mapping);
    }
    if line.inode == 0 && !source::is_system_v(line) {
        let expected = matches!(line.name.as_slice(), b"" | b"[heap]" | b"[stack]");
        if !expected && mapping.name.is_none() {
            return refuse("it has a mapping of an unknown kind".to_owned());
        }
        return Ok(mapping);
    }
    mapping.source = source::file_source(at, &mapping, records)?;
    if source::is_secret(line) {
        // It is locked by its nature.
        mapping.flags &= !flag::LOCKED;
    }
    if matches!(mapping.source, Source::Segment { .. }) && !line.has(b"mw") {
        mapping.flags |= flag::READ_ONLY;
    }
    Ok(mapping)
}

fn is_kernels(name: &[u8]) -> bool {
    matches!(name, b"[vdso]" | b"[vsyscall]") || name.starts_with(b"[vvar")
}

/// Whether pages of a mapping are stored at all.
#[must_use]
pub fn stores_pages(mapping: &Mapping) -> bool {
    !mapping.shared
        && mapping.flags & flag::DROPPABLE == 0
        && matches!(mapping.source, Source::Anonymous | Source::File { .. })
}
