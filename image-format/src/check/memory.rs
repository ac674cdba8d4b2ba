//! Maps and pages: order, overlap, and that pages are where something is mapped.

use super::Finding;
use super::tree::Families;
use crate::id::{MemoryId, SegmentId};
use crate::layout::{PAGE_SIZE, align};
use crate::reader::PageSection;
use crate::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};
use crate::record::process_map::ProcessMap;
use crate::record::shared_segment::SharedSegment;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The memories so far. Add all maps and segments, then the pages.
#[derive(Debug)]
pub(super) struct Memories {
    families: Families,
    /// The ranges that are mapped, in order; adjacent ones are joined.
    mapped: HashMap<MemoryId, Vec<(u64, u64)>>,
    segments: HashMap<SegmentId, u64>,
    /// Where the last run of an owner ends.
    ends: HashMap<PageOwner, u64>,
}

impl Memories {
    /// No memories; how they descend from one another is known from the tree.
    pub(super) fn new(families: Families) -> Self {
        Self { families, mapped: HashMap::new(), segments: HashMap::new(), ends: HashMap::new() }
    }

    /// Adds a map.
    pub(super) fn map(&mut self, record: usize, map: &ProcessMap) -> Result<(), Finding> {
        let ranges = match (self.mapped.entry(map.memory), &map.layout) {
            (Entry::Vacant(vacant), Some(_)) => vacant.insert(Vec::new()),
            (Entry::Occupied(occupied), None) => occupied.into_mut(),
            (Entry::Vacant(_), None) => {
                return Err(Finding::new(record, "it is the first of its memory, but has no layout"));
            }
            (Entry::Occupied(_), Some(_)) => {
                return Err(Finding::new(record, "it has a layout, but is not the first of its memory"));
            }
        };
        for mapping in &map.mappings {
            match ranges.last_mut() {
                Some((_, end)) if mapping.start < *end => {
                    let why = format!(
                        "mapping {:#x}-{:#x} is not behind those of the records before",
                        mapping.start, mapping.end
                    );
                    return Err(Finding::new(record, why));
                }
                Some((_, end)) if mapping.start == *end => *end = mapping.end,
                _ => ranges.push((mapping.start, mapping.end)),
            }
        }
        Ok(())
    }

    /// Adds a shared segment.
    pub(super) fn segment(&mut self, segment: &SharedSegment) {
        self.segments.insert(segment.id, align(segment.size, PAGE_SIZE as u64));
    }

    /// Checks the runs of a record; `section` finds page sections.
    pub(super) fn pages(
        &mut self,
        record: usize,
        pages: &MmapMemory,
        section: impl Fn(u32) -> Option<PageSection>,
    ) -> Result<(), Finding> {
        for run in &pages.runs {
            self.run(pages.owner, run, &section).map_err(|why| {
                Finding::new(record, format!("run of {} pages at {:#x}: {why}", run.count, run.address))
            })?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        owner: PageOwner,
        run: &PageRun,
        section: impl Fn(u32) -> Option<PageSection>,
    ) -> Result<(), String> {
        let (start, length) = (run.address, run.count.checked_mul(PAGE_SIZE as u64));
        let end = length.and_then(|length| start.checked_add(length)).ok_or("it is too long")?;
        let last = self.ends.entry(owner).or_insert(0);
        if start < *last {
            return Err("it overlaps one of the records before or is out of order".to_owned());
        }
        *last = end;
        match owner {
            PageOwner::Memory(memory) if !self.is_mapped(memory, start, end) => {
                return Err(format!("it is not inside the mappings of memory {memory}"));
            }
            PageOwner::Segment(segment) if self.segments.get(&segment).is_none_or(|&size| end > size) => {
                return Err(format!("it is not inside segment {segment}"));
            }
            // The record of a nameless file knows its size; pages behind its end are cut off by it.
            PageOwner::Memory(_) | PageOwner::Segment(_) | PageOwner::NamelessFile(_) => {}
        }
        match run.source {
            PageSource::Zero => Ok(()),
            PageSource::Guard if matches!(owner, PageOwner::Memory(_)) => Ok(()),
            PageSource::Guard => Err("only a memory can have guard regions".to_owned()),
            PageSource::Stored { section: number, page } => {
                let section = section(number).ok_or_else(|| format!("there is no page section {number}"))?;
                if page.checked_add(run.count).is_none_or(|end| end > section.pages) {
                    let pages = section.pages;
                    return Err(format!(
                        "page {page} and those behind are not in the {pages} of section {number}"
                    ));
                }
                Ok(())
            }
            PageSource::Parent => {
                let PageOwner::Memory(memory) = owner else {
                    return Err("only a memory can have pages of a parent".to_owned());
                };
                match self.families.get(&memory).copied().flatten() {
                    Some(parent) if self.is_mapped(parent, start, end) => Ok(()),
                    Some(parent) => Err(format!("the memory of the parent, {parent}, has no mapping there")),
                    None => Err(format!("memory {memory} has no parent")),
                }
            }
        }
    }

    /// Whether all of the range is mapped, be it by several mappings.
    fn is_mapped(&self, memory: MemoryId, start: u64, end: u64) -> bool {
        let Some(ranges) = self.mapped.get(&memory) else { return false };
        let behind = ranges.partition_point(|&(first, _)| first <= start);
        behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|&(_, last)| end <= last)
    }
}
