//! Telling the kernel the addresses that it keeps about a memory.

use super::MemoryPlan;
use super::calls::Builder;
use crate::error::Result;
use crate::place::SPARE;
use crate::proc::read;
use crate::restoring::Restoring;
use crate::stub::puppet::Puppet;
use std::os::unix::fs::MetadataExt;

/// Where a puppet has the auxiliary vector for the kernel to take.
fn auxiliary_vector(puppet: &Puppet) -> u64 {
    puppet.scratch() + 256
}

/// Puts what the kernel takes from memory into a puppet.
pub(super) fn prepare(restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
    let puppet = restoring.puppet(plan.process)?;
    puppet.write(auxiliary_vector(puppet), &plan.layout.auxiliary_vector)
}

impl Builder {
    /// Tells the kernel the addresses that it keeps.
    pub(super) fn layout(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        let layout = &plan.layout;
        self.reserve(restoring, 128)?;
        // With the executable: none of them may get the number to which that is moved.
        if self.descriptors() + 2 > SPARE {
            self.flush(restoring)?;
        }
        let puppet = restoring.known_puppet(self.process)?;
        let (auxiliary_vector, socket, tid) = (auxiliary_vector(puppet), puppet.place.socket, puppet.tid);
        let is_there = || {
            let has = std::fs::metadata(read::path(tid, "exe")).ok();
            let wanted = std::fs::metadata(restoring.path(layout.executable.path.as_path())).ok();
            // Of whichever task it is a copy.
            wanted.zip(has).is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        let place = if plan.inherits_executable || layout.executable.nameless.is_none() && is_there() {
            -1
        } else {
            // The descriptor's number goes into the structure, so it must be known: it is moved to one that is free.
            let number = self.open(restoring, &layout.executable)?;
            let (executable, place) = (self.descriptor(number), socket - 1);
            let arguments = [executable, place.into(), libc::O_CLOEXEC.into()];
            self.batch.must("moving a descriptor", libc::SYS_dup3, arguments);
            place
        };
        let size = layout.auxiliary_vector.len() as u64;
        let words = [
            layout.code.0,
            layout.code.1,
            layout.data.0,
            layout.data.1,
            layout.heap.0,
            layout.heap.1,
            layout.stack,
            layout.arguments.0,
            layout.arguments.1,
            layout.environment.0,
            layout.environment.1,
            auxiliary_vector,
            size | u64::from(place.cast_unsigned()) << 32,
        ];
        let map = self.batch.words(&words);
        let length = words.len() * 8;
        // PR_SET_MM, PR_SET_MM_MAP.
        let arguments = [35.into(), 14.into(), map.into(), length.into(), 0.into()];
        self.batch.must("setting the layout of memory", libc::SYS_prctl, arguments);
        if place >= 0 {
            self.batch.must("closing a descriptor", libc::SYS_close, [place.into()]);
        }
        Ok(())
    }
}
