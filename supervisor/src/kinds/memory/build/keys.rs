//! Protection keys: allocated by number, and the one that the kernel takes for memory that can only be executed.
//!
//! The kernel gives out the lowest free key. So all are taken first, and those that the program does not have are given
//! back when every mapping has its own.

use super::MemoryPlan;
use super::calls::Builder;
use crate::error::Result;
use crate::kinds::memory::layout::HIGHEST_KEY;
use crate::restoring::Restoring;
use vckpt_image_format::record::process_map::Mapping;

const PAGE: u64 = 4096;

impl Builder {
    /// Takes all keys, and lets the kernel take its own.
    pub(super) fn take_keys(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        if !plan.uses_keys {
            return Ok(());
        }
        self.reserve(restoring, 0)?;
        for _ in 1..=HIGHEST_KEY {
            // Some may be inherited.
            self.batch.call("allocating a protection key", libc::SYS_pkey_alloc, [0.into(), 0.into()]);
        }
        self.flush(restoring)?;
        let own = plan.layout.keys.execute_only;
        if own == 0 {
            return Ok(());
        }
        // Not its own if it was inherited, for then it is the kernel's already.
        self.batch.call("freeing a protection key", libc::SYS_pkey_free, [u64::from(own).into()]);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let arguments = [0.into(), PAGE.into(), libc::PROT_EXEC.into(), flags.into(), (-1).into(), 0.into()];
        let page = self.batch.must("mapping memory that can only be executed", libc::SYS_mmap, arguments);
        self.batch.must("unmapping it again", libc::SYS_munmap, [page.into(), PAGE.into()]);
        self.flush(restoring)
    }

    /// Gives back the keys that the program does not have.
    pub(super) fn give_keys_back(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        if !plan.uses_keys {
            return Ok(());
        }
        self.flush(restoring)?;
        for key in (1..=HIGHEST_KEY).filter(|key| plan.layout.keys.allocated & 1 << key == 0) {
            self.batch.call("freeing a protection key", libc::SYS_pkey_free, [u64::from(key).into()]);
        }
        self.flush(restoring)
    }

    /// Protects a mapping, with its key if there are keys.
    pub(super) fn set_protection(&mut self, plan: &MemoryPlan, mapping: &Mapping, protection: i32, key: u8) {
        let (start, length) = (mapping.start, mapping.end - mapping.start);
        let arguments = [start.into(), length.into(), protection.into()];
        let kernels = key != 0 && key == plan.layout.keys.execute_only;
        if !plan.uses_keys || kernels {
            self.batch.must("protecting memory", libc::SYS_mprotect, arguments);
            return;
        }
        let [start, length, protection] = arguments;
        let arguments = [start, length, protection, u64::from(key).into()];
        self.batch.must("protecting memory with a key", libc::SYS_pkey_mprotect, arguments);
    }
}
