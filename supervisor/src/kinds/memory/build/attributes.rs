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
        let (own, key) = (i32::from(mapping.protection), mapping.protection_key);
        if inherited || protection(plan, mapping) != own || key != 0 {
            self.set_protection(plan, mapping, own, key);
        }
        for (advice, name) in attributes::advice(mapping.flags) {
            let arguments = [start.into(), length.into(), advice.into()];
            let call = self.batch.call("advising on memory", libc::SYS_madvise, arguments);
            self.wanted.push((call, format!("{name} of memory at {start:#x}")));
        }
        if let Some(name) = &mapping.name {
            let mut bytes = name.0.clone();
            bytes.push(0);
            let text = self.batch.data(&bytes);
            // PR_SET_VMA, PR_SET_VMA_ANON_NAME.
            let arguments = [0x5356_4d41.into(), 0.into(), start.into(), length.into(), text.into()];
            let call = self.batch.call("naming memory", libc::SYS_prctl, arguments);
            self.wanted.push((call, format!("the name of memory at {start:#x}")));
        }
        Ok(())
    }

    /// Locks a mapping in memory.
    pub(super) fn lock(&mut self, restoring: &mut Restoring<'_>, mapping: &Mapping) -> Result<()> {
        let (start, length) = (mapping.start.into(), (mapping.end - mapping.start).into());
        if mapping.flags & (flag::LOCKED | flag::LOCKED_ON_FAULT) == 0 {
            return Ok(());
        }
        self.reserve(restoring, 0)?;
        self.batch.must("locking memory", libc::SYS_mlock2, [start, length, libc::MLOCK_ONFAULT.into()]);
        if mapping.flags & flag::LOCKED_ON_FAULT == 0 {
            // It is locked by now. What can't be brought in, such as guard regions and memory that can't be read, is
            // an error that tells nothing.
            self.batch.call("bringing locked memory in", libc::SYS_mlock2, [start, length, 0.into()]);
        }
        Ok(())
    }

    /// Sets where the pages of a new mapping are to be, before there are any.
    pub(super) fn place(&mut self, mapping: &Mapping, (start, end): (u64, u64)) {
        let Some(policy) = &mapping.policy else { return };
        let nodes = self.batch.words(&policy.nodes);
        // The kernel counts one bit more than it reads.
        let bits = policy.nodes.len() * 64 + 1;
        let (start, length) = (start.into(), (end - start).into());
        let arguments = [start, length, policy.mode.into(), nodes.into(), bits.into(), 0.into()];
        let call = self.batch.call("setting a memory policy", libc::SYS_mbind, arguments);
        self.wanted.push((call, format!("the memory policy at {:#x}", mapping.start)));
    }
}
