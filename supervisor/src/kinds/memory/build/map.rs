//! Mapping what is not inherited, and the protection while a mapping is filled.

use super::MemoryPlan;
use super::calls::Builder;
use crate::error::{Error, Result, code};
use crate::restoring::Restoring;
use std::os::fd::AsRawFd;
use vckpt_image_format::record::mmap_memory::{PageRun, PageSource};
use vckpt_image_format::record::process_map::{Mapping, Source, flag};

const PAGE: u64 = 4096;

impl Builder {
    /// Forgets the inherited pages that no run names: the child has there what the mapping gives by itself.
    pub(super) fn forget(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        for (start, end) in gaps(&plan.kept, &plan.runs) {
            self.reserve(restoring, 0)?;
            let arguments = [start.into(), (end - start).into(), libc::MADV_DONTNEED.into()];
            self.batch.must("forgetting inherited memory", libc::SYS_madvise, arguments);
        }
        Ok(())
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
            let arguments = [
                mapping.start.into(),
                (mapping.end - mapping.start).into(),
                protection(plan, mapping).into(),
            ];
            self.batch.must("making memory writable", libc::SYS_mprotect, arguments);
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
            Source::Anonymous | Source::Kernel { .. } => {
                flags |= libc::MAP_ANONYMOUS;
                ((-1).into(), 0)
            }
            Source::File { file, offset } => {
                let number = self.open(restoring, file)?;
                (self.descriptor(number), *offset)
            }
            Source::Segment { segment, offset } => {
                let number = restoring.segments.get(segment).map(AsRawFd::as_raw_fd);
                let number = number.ok_or_else(|| Error::new(code::INTERNAL, "a segment was not made"))?;
                (self.descriptor(number), *offset)
            }
        };
        let offset = offset + (start - mapping.start);
        let protection = protection(plan, mapping);
        let arguments =
            [start.into(), (end - start).into(), protection.into(), flags.into(), descriptor, offset.into()];
        self.batch.must("mapping memory", libc::SYS_mmap, arguments);
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
    runs.iter().take_while(|run| run.address < mapping.end).any(|run| run.source != PageSource::Parent)
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
