//! Mapping what is not inherited, and the protection while a mapping is filled.

use super::MemoryPlan;
use super::calls::Builder;
use crate::error::Result;
use crate::restoring::Restoring;
use vckpt_image_format::record::mmap_memory::{PageRun, PageSource};
use vckpt_image_format::record::process_map::{Mapping, Source, flag};

const PAGE: u64 = 4096;

impl Builder {
    /// Forgets the inherited pages that no run names: the child has there what the mapping gives by itself.
    pub(super) fn forget(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        self.unguard(restoring, plan)?;
        for (start, end) in gaps(&plan.kept, &plan.runs) {
            self.reserve(restoring, 0)?;
            let arguments = [start.into(), (end - start).into(), libc::MADV_DONTNEED.into()];
            self.batch.must("forgetting inherited memory", libc::SYS_madvise, arguments);
        }
        Ok(())
    }

    /// Attaches a System V segment: all of it with its first piece.
    fn attach(&mut self, id: i32, mapping: &Mapping, offset: u64) {
        if offset == 0 {
            let read_only = if mapping.flags & flag::READ_ONLY != 0 { libc::SHM_RDONLY } else { 0 };
            let executable = if mapping.protection & 4 != 0 { libc::SHM_EXEC } else { 0 };
            let arguments = [id.into(), mapping.start.into(), (read_only | executable).into()];
            let call = self.batch.must("attaching shared memory", libc::SYS_shmat, arguments);
            self.expected.push((call, mapping.start));
        }
        let (start, length) = (mapping.start, mapping.end - mapping.start);
        let protection = i32::from(mapping.protection);
        self.batch.must(
            "protecting shared memory",
            libc::SYS_mprotect,
            [start.into(), length.into(), protection.into()],
        );
        self.place(mapping, (start, mapping.end));
    }

    /// Maps the parts of a mapping that are not inherited.
    pub(super) fn map(
        &mut self,
        restoring: &mut Restoring<'_>,
        plan: &MemoryPlan,
        mapping: &Mapping,
    ) -> Result<()> {
        if matches!(mapping.source, Source::Kernel { .. }) {
            return Ok(());
        }
        let mut position = mapping.start;
        let inside = plan.kept.iter().filter(|&&(start, end)| start < mapping.end && end > mapping.start);
        for &(start, end) in inside.chain([&(mapping.end, mapping.end)]) {
            if start > position {
                self.map_part(restoring, plan, mapping, (position, start))?;
            }
            position = position.max(end);
        }
        if plan.kept.iter().any(|&(start, end)| start < mapping.end && end > mapping.start)
            && has_pages(plan, mapping)
        {
            self.reserve(restoring, 0)?;
            self.set_protection(plan, mapping, protection(plan, mapping), 0);
        }
        Ok(())
    }

    fn map_part(
        &mut self,
        restoring: &mut Restoring<'_>,
        plan: &MemoryPlan,
        mapping: &Mapping,
        (start, end): (u64, u64),
    ) -> Result<()> {
        self.reserve(restoring, 0)?;
        let mut flags = libc::MAP_FIXED_NOREPLACE;
        flags |= if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let set = |bit: u32, flag: i32| if mapping.flags & bit != 0 { flag } else { 0 };
        flags |= set(flag::GROWS_DOWN, libc::MAP_GROWSDOWN) | set(flag::NO_RESERVE, libc::MAP_NORESERVE);
        if mapping.flags & flag::DROPPABLE != 0 {
            // MAP_DROPPABLE is a kind of sharing of its own.
            flags = (flags & !(libc::MAP_PRIVATE | libc::MAP_SHARED)) | 0x08;
        }
        let (descriptor, offset) = match &mapping.source {
            // The place of a ring is only kept free until there is one.
            Source::Anonymous | Source::Kernel { .. } | Source::Ring(_) | Source::IoUring { .. } => {
                flags |= libc::MAP_ANONYMOUS;
                if mapping.huge_page != 0 {
                    flags |= libc::MAP_HUGETLB | i32::from(mapping.huge_page) << libc::MAP_HUGE_SHIFT;
                }
                ((-1).into(), 0)
            }
            Source::File { file, offset } => {
                let number = self.open(restoring, file)?;
                (self.descriptor(number), *offset)
            }
            Source::Segment { segment, offset } => {
                if let Some(id) = restoring.system_v.get(segment).map(|held| held.id) {
                    self.attach(id, mapping, *offset);
                    return Ok(());
                }
                let number = self.segment(restoring, *segment, mapping.flags & flag::READ_ONLY != 0)?;
                (self.descriptor(number), *offset)
            }
        };
        let offset = offset + (start - mapping.start);
        let protection = protection(plan, mapping);
        let arguments =
            [start.into(), (end - start).into(), protection.into(), flags.into(), descriptor, offset.into()];
        self.batch.must("mapping memory", libc::SYS_mmap, arguments);
        self.place(mapping, (start, end));
        Ok(())
    }
}

/// The parts of ranges that no run of pages covers; both are in the order of their addresses.
fn gaps(ranges: &[(u64, u64)], runs: &[PageRun]) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    for &(start, end) in ranges {
        let mut position = start;
        let first = runs.partition_point(|run| run.address + run.count * PAGE <= start);
        for run in runs.iter().skip(first).take_while(|run| run.address < end) {
            if run.address > position {
                gaps.push((position, run.address));
            }
            position = position.max(run.address + run.count * PAGE);
        }
        if position < end {
            gaps.push((position, end));
        }
    }
    gaps
}

/// The protection while a mapping is filled.
pub(super) fn protection(plan: &MemoryPlan, mapping: &Mapping) -> i32 {
    if has_pages(plan, mapping) { libc::PROT_READ | libc::PROT_WRITE } else { i32::from(mapping.protection) }
}

/// Whether anything is written into a mapping.
fn has_pages(plan: &MemoryPlan, mapping: &Mapping) -> bool {
    let first = plan.runs.partition_point(|run| run.address + run.count * PAGE <= mapping.start);
    let runs = plan.runs.get(first..).unwrap_or_default();
    runs.iter().take_while(|run| run.address < mapping.end).any(|run| has_bytes(run.source))
}

fn has_bytes(source: PageSource) -> bool {
    match source {
        PageSource::Stored { .. } | PageSource::Zero => true,
        PageSource::Parent | PageSource::Guard => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_no_run_names() {
        let run = |address, count| PageRun { address, count, source: PageSource::Parent };
        let runs = [run(0x1000, 2), run(0x5000, 1), run(0x9000, 4)];
        let ranges = [(0x0, 0x7000), (0xa000, 0xf000)];
        assert_eq!(
            gaps(&ranges, &runs),
            [(0x0, 0x1000), (0x3000, 0x5000), (0x6000, 0x7000), (0xd000, 0xf000)]
        );
        assert_eq!(gaps(&[(0x1000, 0x3000)], &runs), []);
    }
}
