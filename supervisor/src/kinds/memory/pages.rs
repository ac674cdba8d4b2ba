//! Finding the pages of a process that are to be stored, and those that it shares with its parent.

use super::{observe, sharing};
use crate::error::{Error, Result, code};
use crate::frozen::FrozenProcess;
use crate::proc::read;
use crate::records::{FoundRun, MemoryContent, RunContent};
use crate::sys::pagemap::{self, Query, Region};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use vckpt_image_format::MemoryId;
use vckpt_image_format::record::mmap_memory::PageOwner;
use vckpt_image_format::record::process_map::{Mapping, Source, flag};

const PAGE: u64 = 4096;
/// Pages compared at a time.
const CHUNK: usize = 512;

/// The pages of a process that are to be stored; `parent` is its parent in the tree with its mappings.
///
/// # Errors
/// [`code::PROC`].
pub fn find(
    process: &FrozenProcess,
    mappings: &[Mapping],
    parent: Option<(&FrozenProcess, &[Mapping])>,
) -> Result<MemoryContent> {
    let pagemap = open(process.view)?;
    let mut runs = Vec::new();
    for mapping in mappings {
        scan(&pagemap, mapping, &mut runs)
            .map_err(|errno| Error::system(code::PROC, "finding pages", errno).about(process.subject()))?;
    }
    if let Some((parent, parent_mappings)) = parent {
        let ranges = sharing::common_ranges(parent_mappings, mappings);
        runs = shared_with_parent(process, &pagemap, parent, &ranges, runs)?;
    }
    Ok(MemoryContent {
        owner: PageOwner::Memory(MemoryId(process.shares.memory)),
        pid: process.view,
        memory: reopen(process)?,
        base: 0,
        runs,
    })
}

/// Adds the pages of a mapping that are to be stored, and its guard regions.
fn scan(pagemap: &File, mapping: &Mapping, runs: &mut Vec<FoundRun>) -> std::result::Result<(), Errno> {
    let stored = observe::stores_pages(mapping);
    let (mut query, content) = match mapping.source {
        _ if !stored && mapping.flags & flag::GUARDS == 0 => return Ok(()),
        _ if !stored => (Query { any_of: 0, none_of: 0 }, RunContent::Guard),
        // The zero page is what a page is without being stored.
        Source::Anonymous => (
            Query { any_of: pagemap::PRESENT | pagemap::SWAPPED, none_of: pagemap::ZERO },
            RunContent::Anonymous,
        ),
        // A page of the file itself is not stored, only what was written over it.
        Source::File { .. }
        | Source::Segment { .. }
        | Source::Kernel { .. }
        | Source::Ring(_)
        | Source::IoUring { .. } => (
            Query { any_of: pagemap::PRESENT | pagemap::SWAPPED, none_of: pagemap::FILE },
            RunContent::OverFile,
        ),
    };
    let without_guards = query;
    query.any_of |= pagemap::GUARD;
    let mut found = |Region { start, end, categories }| {
        let content = if categories & pagemap::GUARD != 0 { RunContent::Guard } else { content };
        runs.push(FoundRun { start, end, content });
    };
    match pagemap::scan(pagemap.as_fd(), mapping.start, mapping.end, query, &mut found) {
        // The kernel does not know the category, which is none that it can tell then.
        Err(Errno::EINVAL) => {
            pagemap::scan(pagemap.as_fd(), mapping.start, mapping.end, without_guards, &mut found)
        }
        result => result,
    }
}

fn open(pid: i32) -> Result<File> {
    File::open(read::path(pid, "pagemap")).map_err(|error| read::failure(pid, "pagemap", &error))
}

fn reopen(process: &FrozenProcess) -> Result<File> {
    process.memory.try_clone().map_err(|error| read::failure(process.view, "mem", &error))
}

/// Marks the pages that the parent has at the same address, within the ranges where that may be.
fn shared_with_parent(
    process: &FrozenProcess,
    pagemap: &File,
    parent: &FrozenProcess,
    ranges: &[(u64, u64)],
    runs: Vec<FoundRun>,
) -> Result<Vec<FoundRun>> {
    let parent_pagemap = open(parent.view)?;
    let mut marked: Vec<FoundRun> = Vec::with_capacity(runs.len());
    for run in runs {
        if run.content == RunContent::Guard {
            marked.push(run);
            continue;
        }
        let mut position = run.start;
        for &(start, end) in ranges.iter().filter(|&&(start, end)| start < run.end && end > run.start) {
            let (start, end) = (start.max(run.start), end.min(run.end));
            add(&mut marked, FoundRun { start: position, end: start, content: run.content });
            mark(process, pagemap, parent, &parent_pagemap, FoundRun { start, end, ..run }, &mut marked)?;
            position = end;
        }
        add(&mut marked, FoundRun { start: position, end: run.end, content: run.content });
    }
    Ok(marked)
}

/// Adds a run, joined with the one before if it continues it.
fn add(runs: &mut Vec<FoundRun>, run: FoundRun) {
    if run.start >= run.end {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.end == run.start && last.content == run.content => last.end = run.end,
        _ => runs.push(run),
    }
}

fn mark(
    process: &FrozenProcess,
    pagemap: &File,
    parent: &FrozenProcess,
    parent_pagemap: &File,
    run: FoundRun,
    marked: &mut Vec<FoundRun>,
) -> Result<()> {
    let mut start = run.start;
    while start < run.end {
        let end = run.end.min(start + CHUNK as u64 * PAGE);
        let count = usize::try_from((end - start) / PAGE).unwrap_or(CHUNK);
        let own =
            entries(pagemap, start, count).map_err(|error| read::failure(process.view, "pagemap", &error))?;
        let parents = entries(parent_pagemap, start, count)
            .map_err(|error| read::failure(parent.view, "pagemap", &error))?;
        let known = own.iter().any(|&entry| frame(entry) != 0);
        let same = if known {
            own.iter()
                .zip(&parents)
                .map(|(&own, &parents)| frame(own) != 0 && frame(own) == frame(parents))
                .collect()
        } else {
            // Without the right to see page frames, equal content must do.
            equal_pages(process, parent, start, &parents)
        };
        for (index, same) in same.into_iter().enumerate() {
            let address = start + index as u64 * PAGE;
            let content = if same { RunContent::Parent } else { run.content };
            add(marked, FoundRun { start: address, end: address + PAGE, content });
        }
        start = end;
    }
    Ok(())
}

fn entries(pagemap: &File, address: u64, count: usize) -> std::io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * 8];
    pagemap.read_exact_at(&mut bytes, address / PAGE * 8)?;
    Ok(bytes.chunks_exact(8).map(|entry| entry.try_into().map_or(0, u64::from_le_bytes)).collect())
}

/// The page frame number of a present page; 0 if it is not shown.
fn frame(entry: u64) -> u64 {
    let present = entry >> 63 == 1;
    if present { entry & ((1 << 55) - 1) } else { 0 }
}

fn equal_pages(process: &FrozenProcess, parent: &FrozenProcess, start: u64, parents: &[u64]) -> Vec<bool> {
    let length = parents.len() * 4096;
    let (mut own, mut other) = (vec![0; length], vec![0; length]);
    let readable = process.memory.read_exact_at(&mut own, start).is_ok()
        && parent.memory.read_exact_at(&mut other, start).is_ok();
    let pages = own.chunks_exact(4096).zip(other.chunks_exact(4096)).zip(parents);
    pages.map(|((own, other), &entry)| readable && entry >> 62 != 0 && own == other).collect()
}
