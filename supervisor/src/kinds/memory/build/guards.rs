//! Guard regions: those of the parent are taken out of what is inherited, and the own ones put in.

use super::MemoryPlan;
use super::calls::Builder;
use crate::error::Result;
use crate::restoring::Restoring;
use vckpt_image_format::record::mmap_memory::PageSource;

const PAGE: u64 = 4096;
/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE` (Linux 6.13).
const INSTALL: i32 = 102;
const REMOVE: i32 = 103;

impl Builder {
    /// Takes the guard regions of the parent out.
    pub(super) fn unguard(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        for &(start, end) in &plan.inherited_guards {
            self.reserve(restoring, 0)?;
            let arguments = [start.into(), (end - start).into(), REMOVE.into()];
            self.batch.must("removing an inherited guard region", libc::SYS_madvise, arguments);
        }
        Ok(())
    }

    /// Puts the guard regions in. Locked memory can't have new ones, so this comes before locking.
    pub(super) fn guard(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        for run in plan.runs.iter().filter(|run| run.source == PageSource::Guard) {
            self.reserve(restoring, 0)?;
            let arguments = [run.address.into(), (run.count * PAGE).into(), INSTALL.into()];
            self.batch.must("installing a guard region", libc::SYS_madvise, arguments);
        }
        Ok(())
    }
}
