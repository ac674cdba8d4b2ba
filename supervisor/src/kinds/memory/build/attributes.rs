//! Giving each mapping its own protection and attributes.

use super::MemoryPlan;
use super::calls::Builder;
use super::map::protection;
use crate::error::Result;
use crate::kinds::memory::attributes;
use crate::restoring::Restoring;
use vckpt_image_format::record::process_map::{Mapping, Source, flag};

impl Builder {
    /// Gives a mapping its own protection and attributes.
    pub(super) fn protect(
        &mut self,
        restoring: &mut Restoring<'_>,
        plan: &MemoryPlan,
        mapping: &Mapping,
    ) -> Result<()> {
        if matches!(mapping.source, Source::Kernel { .. }) {
            return Ok(());
        }
        self.reserve(restoring, mapping.name.as_ref().map_or(0, |name| name.0.len() + 1))?;
        let (start, length) = (mapping.start, mapping.end - mapping.start);
        let inherited = plan.kept.iter().any(|&(start, end)| start < mapping.end && end > mapping.start);
        if inherited || protection(plan, mapping) != i32::from(mapping.protection) {
            let arguments = [start.into(), length.into(), i32::from(mapping.protection).into()];
            self.batch.must("protecting memory", libc::SYS_mprotect, arguments);
        }
        for advice in attributes::advice(mapping.flags) {
            self.batch.call(
                "advising on memory",
                libc::SYS_madvise,
                [start.into(), length.into(), advice.into()],
            );
        }
        if mapping.flags & (flag::LOCKED | flag::LOCKED_ON_FAULT) != 0 {
            let on_fault = u32::from(mapping.flags & flag::LOCKED_ON_FAULT != 0);
            self.batch.must(
                "locking memory",
                libc::SYS_mlock2,
                [start.into(), length.into(), on_fault.into()],
            );
        }
        if let Some(name) = &mapping.name {
            let mut bytes = name.0.clone();
            bytes.push(0);
            let text = self.batch.data(&bytes);
            // PR_SET_VMA, PR_SET_VMA_ANON_NAME: a kernel without names for memory refuses, and nothing depends on it.
            let arguments = [0x5356_4d41.into(), 0.into(), start.into(), length.into(), text.into()];
            self.batch.call("naming memory", libc::SYS_prctl, arguments);
        }
        Ok(())
    }
}
