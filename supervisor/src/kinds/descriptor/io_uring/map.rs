//! Mapping rings where they were. The kernel lets nobody choose the address of such a mapping, so for a moment it is left
//! no choice: everything that is free is taken, but for the one place.

use super::made::MadeRing;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::memory::attributes;
use crate::plan::Action;
use crate::proc::{maps, read};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::process_map::{Mapping, Source, flag};

/// The first address that a program can't have.
const END: u64 = 0x7fff_ffff_f000;
/// Below this the kernel does not look for room, if it is told so by [`ABOVE`].
const LOW: u64 = 1 << 32;
/// `MAP_ABOVE4G` (Linux 6.6): there is room where nobody may map anything, which can't be taken.
const ABOVE: i32 = 0x80;
/// Ranges that are taken, or given back, by one batch.
const SOME: usize = 500;

/// Maps the rings of a process; their places are kept free.
#[derive(Debug)]
pub(super) struct MapRings {
    pub(super) process: TaskId,
    pub(super) mappings: Vec<Mapping>,
}

impl Action for MapRings {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let free = self.free(restoring)?;
        self.at_all(restoring, &free, |batch, start, length| {
            let flags =
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
            let arguments = [start.into(), length.into(), 0.into(), flags.into(), (-1).into(), 0.into()];
            batch.must("taking free memory", libc::SYS_mmap, arguments);
        })?;
        for mapping in &self.mappings {
            self.map(restoring, mapping)
                .map_err(|error| error.about(Subject::task(self.process.0, "task").address(mapping.start)))?;
        }
        self.at_all(restoring, &free, |batch, start, length| {
            batch.must("giving memory back", libc::SYS_munmap, [start.into(), length.into()]);
        })
    }
}

impl MapRings {
    /// What is free in the memory of the process, as far as a ring could get there.
    fn free(&self, restoring: &mut Restoring<'_>) -> Result<Vec<(u64, u64)>> {
        let tid = restoring.system_id(self.process)?;
        let lines = maps::parse(&read::file(tid, "maps")?)
            .map_err(|line| Error::new(code::PROC, "the kernel's text is not understood").because(line))?;
        let first = self.mappings.iter().map(|mapping| mapping.start).min().unwrap_or(LOW);
        let shortest = self.mappings.iter().map(|mapping| mapping.end - mapping.start).min().unwrap_or(0);
        let mut free = Vec::new();
        let mut position = first.min(LOW);
        for line in &lines {
            let end = line.start.min(END);
            if end > position && end - position >= shortest {
                free.push((position, end));
            }
            position = position.max(line.end);
        }
        if END > position && END - position >= shortest {
            free.push((position, END));
        }
        Ok(free)
    }

    /// Makes calls for each range, given by start and length.
    fn at_all(
        &self,
        restoring: &mut Restoring<'_>,
        ranges: &[(u64, u64)],
        add: impl Fn(&mut Batch, u64, u64),
    ) -> Result<()> {
        for ranges in ranges.chunks(SOME) {
            let mut batch = Batch::new();
            ranges.iter().for_each(|&(start, end)| add(&mut batch, start, end - start));
            restoring.run(self.process, &batch)?;
        }
        Ok(())
    }

    /// Maps one in its place, where alone there is room.
    fn map(&self, restoring: &mut Restoring<'_>, mapping: &Mapping) -> Result<()> {
        let Source::IoUring { ring, offset } = mapping.source else { return Ok(()) };
        let made = MadeRing::of(restoring, ring)?;
        let (start, length) = (mapping.start, mapping.end - mapping.start);
        let mut flags = if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        if start >= LOW {
            flags |= ABOVE;
        }
        let protection = i32::from(mapping.protection);
        let (outcome, mapped) = made.lend(restoring, self.process, |batch, ring| {
            batch.must("making room for an io_uring", libc::SYS_munmap, [start.into(), length.into()]);
            let arguments = [0.into(), length.into(), protection.into(), flags.into(), ring, offset.into()];
            let mapped = batch.must("mapping an io_uring", libc::SYS_mmap, arguments);
            for (advice, _) in attributes::advice(mapping.flags) {
                let arguments = [mapped.into(), length.into(), advice.into()];
                batch.call("advising on memory", libc::SYS_madvise, arguments);
            }
            if mapping.flags & flag::LOCKED != 0 {
                batch.call("locking memory", libc::SYS_mlock, [mapped.into(), length.into()]);
            }
            mapped
        })?;
        let place = outcome.get(mapped);
        if place == Ok(start) {
            return Ok(());
        }
        Err(Error::new(code::MAPPING, "this kernel does not map an io_uring where there is room")
            .because(format!("it came to {:#x}", place.unwrap_or(0))))
    }
}
