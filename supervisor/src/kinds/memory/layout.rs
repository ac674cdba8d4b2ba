//! What the kernel keeps about a memory: addresses, the executable, protection keys, and what future mappings get.

use super::mapped_file::{named, nameless};
use crate::error::Result;
use crate::frozen::FrozenProcess;
use crate::proc::{identity, maps, read};
use crate::records::{Inode, Records};
use crate::stub::batch::{Batch, CallIndex, Outcome};
use nix::errno::Errno;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use vckpt_image_format::Text;
use vckpt_image_format::record::process_map::{Layout, MappedFile, ProtectionKeys};

/// The highest protection key.
pub(super) const HIGHEST_KEY: u8 = 15;
/// `MCL_FUTURE` and `MCL_ONFAULT`.
const FUTURE: u32 = 2;
const ON_FAULT: u32 = 4;
/// `PR_GET_MEMORY_MERGE` (Linux 6.4).
const GET_MEMORY_MERGE: i32 = 68;
/// An address that no program has.
const NOWHERE: u64 = 0x7fff_ffff_f000;

/// What a process is asked about its memory.
pub(super) struct Question {
    pub(super) batch: Batch,
    brk: CallIndex,
    merges: CallIndex,
}

impl Question {
    pub(super) fn new() -> Self {
        let mut batch = Batch::new();
        let brk = batch.call("brk", libc::SYS_brk, [0.into()]);
        let none = 0.into();
        let arguments = [GET_MEMORY_MERGE.into(), none, none, none, none];
        let merges = batch.call("asking whether pages are merged", libc::SYS_prctl, arguments);
        Self { batch, brk, merges }
    }

    /// The addresses that the kernel keeps about a memory.
    pub(super) fn layout(
        &self,
        process: &mut FrozenProcess,
        outcome: &Outcome,
        told: Told,
        records: &mut Records,
    ) -> Result<Layout> {
        if outcome.get(self.merges).is_ok_and(|merges| merges != 0) {
            records.degraded.push(format!(
                "{}: equal pages of memory that it maps later are not merged (PR_SET_MEMORY_MERGE)",
                process.subject()
            ));
        }
        let heap_end = outcome.get(self.brk).unwrap_or(process.stat.heap);
        let stat = process.stat.clone();
        Ok(Layout {
            code: stat.code,
            data: stat.data,
            heap: (stat.heap, heap_end),
            stack: stat.stack,
            arguments: stat.arguments,
            environment: stat.environment,
            auxiliary_vector: told.auxiliary_vector,
            executable: executable(process, told.path, told.inode, records)?,
            lock_future: lock_future(process, told.locked)?,
            keys: keys(process)?,
        })
    }
}

/// What `/proc` tells about the memory of a process.
pub(super) struct Told {
    auxiliary_vector: Vec<u8>,
    /// The path of its program, and what that is.
    path: Text,
    inode: Inode,
    /// Bytes that are locked now.
    locked: Option<u64>,
}

impl Told {
    /// Reads what is told.
    ///
    /// # Errors
    /// As reading `/proc`.
    pub(super) fn about(process: &FrozenProcess) -> Result<Self> {
        let path = Text::from(read::link(process.view, "exe")?);
        let metadata = std::fs::metadata(read::path(process.view, "exe"))
            .map_err(|error| read::failure(process.view, "exe", &error).about(process.subject()))?;
        let status = read::file(process.view, "status")?;
        let locked = identity::field(&status, "VmLck");
        let locked = locked.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Ok(Self {
            auxiliary_vector: read::file(process.view, "auxv")?,
            path: path.0.strip_suffix(b" (deleted)").map(Text::from).unwrap_or(path),
            inode: (metadata.dev(), metadata.ino()),
            locked: locked.map(|kibibytes| kibibytes * 1024),
        })
    }
}

/// The program of a process.
fn executable(
    process: &FrozenProcess,
    path: Text,
    inode: Inode,
    records: &mut Records,
) -> Result<MappedFile> {
    if let Some(file) = named(process, &path, inode, false, records)? {
        return Ok(file);
    }
    let opened = File::open(read::path(process.view, "exe"))
        .map_err(|error| read::failure(process.view, "exe", &error).about(process.subject()))?;
    nameless(process, path, &opened, false, records)
}

/// What `mlockall(2)` has asked for future mappings: the stub's own mapping is one. Its mapping is only looked for
/// if more is locked than before it was there.
fn lock_future(process: &FrozenProcess, now: Option<u64>) -> Result<u32> {
    let locked = process.maps.iter().filter(|line| line.has(b"lo")).map(|line| line.end - line.start);
    let before: u64 = locked.sum();
    if now.is_none_or(|now| now <= before) {
        return Ok(0);
    }
    let lines = maps::parse(&read::file(process.view, "smaps")?).unwrap_or_default();
    let new =
        |line: &maps::MapLine| process.maps.iter().all(|old| line.end <= old.start || old.end <= line.start);
    let Some(line) = lines.iter().find(|line| line.has(b"lo") && new(line)) else { return Ok(0) };
    Ok(FUTURE | if line.has(b"lf") { ON_FAULT } else { 0 })
}

/// The protection keys that are allocated: those that can't be had. What could be had is given back at once.
fn keys(process: &mut FrozenProcess) -> Result<ProtectionKeys> {
    let mut keys = ProtectionKeys::default();
    if process.maps.iter().all(|line| line.protection_key.is_none()) {
        return Ok(keys);
    }
    let mut batch = Batch::new();
    let taken: Vec<CallIndex> = (1..=HIGHEST_KEY)
        .map(|_| batch.call("allocating a protection key", libc::SYS_pkey_alloc, [0.into(), 0.into()]))
        .collect();
    for &call in &taken {
        batch.call("freeing a protection key", libc::SYS_pkey_free, [call.into()]);
    }
    let outcome = process.run(&batch)?;
    let free: Vec<u64> = taken.iter().filter_map(|&call| outcome.get(call).ok()).collect();
    let mut batch = Batch::new();
    let mut asked = Vec::new();
    for key in (1..=HIGHEST_KEY).filter(|&key| !free.contains(&key.into())) {
        keys.allocated |= 1 << key;
        // The kernel's own key may not be given to anything.
        let arguments = [NOWHERE.into(), 4096.into(), 0.into(), u64::from(key).into()];
        asked.push((key, batch.call("asking for a protection key", libc::SYS_pkey_mprotect, arguments)));
    }
    if !asked.is_empty() {
        let outcome = process.run(&batch)?;
        let own = asked.iter().find(|&&(_, call)| outcome.get(call) == Err(Errno::EINVAL));
        keys.execute_only = own.map_or(0, |&(key, _)| key);
    }
    Ok(keys)
}
