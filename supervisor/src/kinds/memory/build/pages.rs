//! Reading the stored pages into their places.

use super::MemoryPlan;
use super::calls::Builder;
use crate::error::Result;
use crate::kinds::memory::fill;
use crate::restoring::Restoring;
use vckpt_image_format::record::mmap_memory::{PageRun, PageSource};
use vckpt_image_format::record::process_map::Source;

const PAGE: u64 = 4096;
/// Most bytes that one call reads: less than the kernel's limit of 2 GiB.
const MOST: u64 = 256 << 20;
/// Most ranges that one call reads into.
const RANGES: usize = 512;

impl Builder {
    /// Reads the stored pages into their places.
    pub(super) fn fill(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        let mut group: Vec<(u64, u64)> = Vec::new();
        let (mut from, mut length) = (0, 0);
        for run in &plan.runs {
            match run.source {
                PageSource::Parent | PageSource::Guard => {}
                PageSource::Zero => self.zero(restoring, plan, run)?,
                PageSource::Stored { section, page } => {
                    let mut offset = fill::offset(restoring.image, section, page)?;
                    let (mut address, mut rest) = (run.address, run.count * PAGE);
                    while rest > 0 {
                        if offset != from + length || length >= MOST || group.len() >= RANGES {
                            self.read(restoring, &group, from, length)?;
                            group.clear();
                            (from, length) = (offset, 0);
                        }
                        let part = rest.min(MOST - length);
                        group.push((address, part));
                        (address, offset, rest, length) =
                            (address + part, offset + part, rest - part, length + part);
                    }
                }
            }
        }
        self.read(restoring, &group, from, length)
    }

    fn read(
        &mut self,
        restoring: &mut Restoring<'_>,
        group: &[(u64, u64)],
        from: u64,
        length: u64,
    ) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        self.reserve(restoring, group.len() * 16)?;
        let image = self.descriptor(restoring.image_descriptor());
        let words: Vec<u64> = group.iter().flat_map(|&(address, length)| [address, length]).collect();
        let vector = self.batch.words(&words);
        let arguments = [image, vector.into(), group.len().into(), from.into(), 0.into()];
        let call = self.batch.must("reading memory from the image", libc::SYS_preadv, arguments);
        self.expected.push((call, length));
        Ok(())
    }

    /// Pages of zeros where the mapping gives something else: only those over a file have to be written.
    fn zero(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan, run: &PageRun) -> Result<()> {
        let run_end = run.address + run.count * PAGE;
        let first = plan.mappings.partition_point(|mapping| mapping.end <= run.address);
        let mappings = plan.mappings.iter().skip(first).take_while(|mapping| mapping.start < run_end);
        for mapping in mappings {
            let (start, end) = (mapping.start.max(run.address), mapping.end.min(run_end));
            match mapping.source {
                Source::File { .. } => self.write_zeros(restoring, start, end)?,
                // What is inherited may be there already.
                Source::Anonymous => {
                    self.reserve(restoring, 0)?;
                    let arguments = [start.into(), (end - start).into(), libc::MADV_DONTNEED.into()];
                    self.batch.must("clearing memory", libc::SYS_madvise, arguments);
                }
                Source::Segment { .. } | Source::Kernel { .. } | Source::Ring(_) | Source::IoUring { .. } => {
                }
            }
        }
        Ok(())
    }

    fn write_zeros(&mut self, restoring: &mut Restoring<'_>, start: u64, end: u64) -> Result<()> {
        self.flush(restoring)?;
        let zeros = vec![0; 64 * 4096];
        let mut address = start;
        while address < end {
            let part = usize::try_from(end - address).unwrap_or(zeros.len()).min(zeros.len());
            let bytes = zeros.get(..part).unwrap_or_default();
            restoring.puppet(self.process)?.write(address, bytes)?;
            address += part as u64;
        }
        Ok(())
    }
}
