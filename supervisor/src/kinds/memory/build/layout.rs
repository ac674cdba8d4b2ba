//! Telling the kernel the addresses that it keeps about a memory.

use super::MemoryPlan;
use super::calls::Builder;
use crate::error::Result;
use crate::proc::read;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use std::os::unix::fs::MetadataExt;

impl Builder {
    /// Tells the kernel the addresses that it keeps.
    pub(super) fn layout(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        self.flush(restoring)?;
        let layout = &plan.layout;
        let puppet = restoring.puppet(self.process)?;
        let (scratch, socket) = (puppet.scratch(), puppet.place.socket);
        let has = std::fs::metadata(read::path(puppet.tid, "exe")).ok();
        let auxiliary_vector = scratch + 256;
        puppet.write(auxiliary_vector, &layout.auxiliary_vector)?;
        let mut batch = Batch::new();
        let is_there = || {
            let wanted = std::fs::metadata(restoring.path(layout.executable.path.as_path())).ok();
            // Of whichever task it is a copy.
            wanted
                .zip(has.as_ref())
                .is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        let place = if plan.inherits_executable || layout.executable.nameless.is_none() && is_there() {
            -1
        } else {
            // The descriptor's number goes into the structure, so it must be known: it is moved to one that is free.
            let executable = batch.descriptor(self.open(restoring, &layout.executable)?);
            let place = socket - 1;
            batch.must(
                "moving a descriptor",
                libc::SYS_dup3,
                [executable, place.into(), libc::O_CLOEXEC.into()],
            );
            batch.must("closing a descriptor", libc::SYS_close, [executable]);
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
        let map = batch.words(&words);
        let length = words.len() * 8;
        // PR_SET_MM, PR_SET_MM_MAP.
        let arguments = [35.into(), 14.into(), map.into(), length.into(), 0.into()];
        batch.must("setting the layout of memory", libc::SYS_prctl, arguments);
        if place >= 0 {
            batch.must("closing a descriptor", libc::SYS_close, [place.into()]);
        }
        restoring.run(self.process, &batch).map(drop)
    }
}
