//! Building a memory in a puppet: clear what is there, put the kernel's own mappings in their old place, map, fill,
//! protect, and tell the kernel the addresses that it keeps.

use super::{attributes, fill};
use crate::error::{Error, Result, Subject, code};
use crate::plan::Action;
use crate::proc::maps::{self, MapLine};
use crate::proc::read;
use crate::restoring::Restoring;
use crate::stub::batch::{Batch, CallIndex};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::mmap_memory::{PageRun, PageSource};
use vckpt_image_format::record::process_map::{Layout, MappedFile, Mapping, Source, flag};
use vckpt_parasite::protocol;

const PAGE: u64 = 4096;
/// The lowest address that is cleared, and the first that user space does not have.
const USER: (u64, u64) = (0x1_0000, 0x7fff_ffff_f000);
/// Most bytes that one call reads: less than the kernel's limit of 2 GiB.
const MOST: u64 = 256 << 20;
/// Most ranges that one call reads into.
const RANGES: usize = 512;

/// What a process has to build.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// The process.
    pub process: TaskId,
    /// Its parent in the image.
    pub parent: Option<TaskId>,
    /// Number of the areas of puppets in it.
    pub areas: usize,
    /// The kernel's addresses.
    pub layout: Layout,
    /// The mappings, in order.
    pub mappings: Vec<Mapping>,
    /// The pages, in order.
    pub runs: Vec<PageRun>,
    /// Ranges that are inherited from the parent, in order.
    pub kept: Vec<(u64, u64)>,
    /// Whether the executable is inherited from the parent too: the kernel does not let it be set while it is mapped.
    pub inherits_executable: bool,
}

/// Builds the memory of a process.
#[derive(Debug)]
pub struct BuildMemory {
    /// What to build.
    pub plan: MemoryPlan,
}

impl Action for BuildMemory {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        build(restoring, &self.plan)
    }
}

/// Builds a memory.
///
/// # Errors
/// What is missing on this host, or what the kernel refused.
pub fn build(restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
    let about =
        |error: Box<Error>| error.about(Subject::task(plan.process.0, plan.layout.executable.path.clone()));
    clear(restoring, plan).map_err(about)?;
    let mut builder = Builder {
        process: plan.process,
        batch: Batch::new(),
        expected: Vec::new(),
        files: HashMap::new(),
        sent: HashMap::new(),
    };
    builder.forget(restoring, plan).map_err(about)?;
    for mapping in &plan.mappings {
        builder.map(restoring, plan, mapping).map_err(about)?;
    }
    builder.fill(restoring, plan).map_err(about)?;
    for mapping in &plan.mappings {
        builder.protect(restoring, plan, mapping).map_err(about)?;
    }
    builder.layout(restoring, plan).map_err(about)?;
    builder.flush(restoring).map_err(about)
}

/// Unmaps everything that is not needed, and moves the kernel's own mappings.
fn clear(restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
    let puppet = restoring.puppet(plan.process)?;
    // The puppets of the other threads are there already.
    let area = (puppet.place.area, puppet.place.area_of(plan.areas));
    let there = maps::parse(&read::file(puppet.tid, "maps")?)
        .map_err(|line| Error::new(code::PROC, "the kernel's text is not understood").because(line))?;
    let wanted: Vec<&Mapping> = plan.mappings.iter().filter(|mapping| is_movable(mapping)).collect();
    let own: Vec<&MapLine> = there.iter().filter(|line| is_movable_line(&line.name)).collect();
    let moves = moves(&wanted, &own)?;
    // First out of everybody's way, then to the place where each belongs.
    let shelter = area.1 + 4 * protocol::AREA_LENGTH as u64;
    let mut batch = Batch::new();
    let mut keep = plan.kept.clone();
    keep.push(area);
    let base = own.first().map_or(0, |line| line.start);
    let moving = moves.iter().any(|(line, start)| line.start != *start);
    for (line, start) in &moves {
        keep.push(if moving {
            (shelter + line.start - base, shelter + line.end - base)
        } else {
            (*start, line.end)
        });
        if moving {
            move_mapping(&mut batch, line.start, line.end - line.start, shelter + line.start - base);
        }
    }
    keep.sort_unstable();
    let mut position = USER.0;
    for (start, end) in keep.into_iter().chain([(USER.1, USER.1)]) {
        if start > position {
            batch.must("clearing memory", libc::SYS_munmap, [position.into(), (start - position).into()]);
        }
        position = position.max(end);
    }
    if moving {
        for (line, start) in &moves {
            move_mapping(&mut batch, shelter + line.start - base, line.end - line.start, *start);
        }
    }
    restoring.run(plan.process, &batch).map(drop)
}

fn move_mapping(batch: &mut Batch, from: u64, length: u64, to: u64) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let arguments = [from.into(), length.into(), length.into(), flags.into(), to.into()];
    batch.must("moving the vdso", libc::SYS_mremap, arguments);
}

fn is_movable(mapping: &Mapping) -> bool {
    matches!(&mapping.source, Source::Kernel { name } if is_movable_line(name.as_bytes()))
}

fn is_movable_line(name: &[u8]) -> bool {
    name == b"[vdso]" || name.starts_with(b"[vvar")
}

/// Which of the kernel's mappings goes where. The image may lack them (the program has unmapped its own).
fn moves<'line>(wanted: &[&Mapping], own: &[&'line MapLine]) -> Result<Vec<(&'line MapLine, u64)>> {
    let mut moves = Vec::new();
    for mapping in wanted {
        let Source::Kernel { name } = &mapping.source else { continue };
        let line = own.iter().find(|line| line.name == name.as_bytes());
        match line {
            Some(line) if line.end - line.start == mapping.end - mapping.start => {
                moves.push((*line, mapping.start))
            }
            _ => {
                return Err(Error::new(
                    code::VDSO_DIFFERS,
                    "this kernel's vdso has another shape than the image's",
                )
                .because(format!("{name} of {} bytes", mapping.end - mapping.start)));
            }
        }
    }
    Ok(moves)
}

/// Gathers calls for a puppet, sends them when a request is full, and checks what came of them.
struct Builder {
    process: TaskId,
    batch: Batch,
    /// Calls that must give exactly this.
    expected: Vec<(CallIndex, u64)>,
    /// Files that were opened, by path and whether for writing.
    files: HashMap<(MappedFile, bool), File>,
    /// Descriptors that travel with the batch, and the calls' argument for them.
    sent: HashMap<RawFd, crate::stub::batch::Argument>,
}

impl Builder {
    fn flush(&mut self, restoring: &mut Restoring<'_>) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        for argument in std::mem::take(&mut self.sent).into_values() {
            batch.call("closing a descriptor", libc::SYS_close, [argument]);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let outcome = restoring.run(self.process, &batch)?;
        for (call, expected) in std::mem::take(&mut self.expected) {
            let result = outcome.get(call);
            if result != Ok(expected) {
                return Err(Error::new(code::MEMORY_ACCESS, "filling memory from the image")
                    .because(format!("{result:?} bytes instead of {expected}")));
            }
        }
        Ok(())
    }

    /// Makes room for a few more calls, with this much data.
    fn reserve(&mut self, restoring: &mut Restoring<'_>, data: usize) -> Result<()> {
        const SOME: usize = 8;
        let calls = self.batch.calls.len() + SOME + self.sent.len();
        let length = (calls + SOME) * 64 + self.batch.data.len() + data + 64;
        if calls > protocol::MAXIMUM_CALLS
            || length > protocol::BUFFER_LENGTH
            || self.sent.len() + SOME > protocol::MAXIMUM_DESCRIPTORS
        {
            self.flush(restoring)?;
        }
        Ok(())
    }

    fn descriptor(&mut self, number: RawFd) -> crate::stub::batch::Argument {
        let batch = &mut self.batch;
        *self.sent.entry(number).or_insert_with(|| batch.descriptor(number))
    }

    /// Forgets the inherited pages that no run names: the child has there what the mapping gives by itself.
    fn forget(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        for (start, end) in gaps(&plan.kept, &plan.runs) {
            self.reserve(restoring, 0)?;
            let arguments = [start.into(), (end - start).into(), libc::MADV_DONTNEED.into()];
            self.batch.must("forgetting inherited memory", libc::SYS_madvise, arguments);
        }
        Ok(())
    }

    /// Maps the parts of a mapping that are not inherited.
    fn map(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan, mapping: &Mapping) -> Result<()> {
        if matches!(mapping.source, Source::Kernel { .. }) {
            return Ok(());
        }
        let mut position = mapping.start;
        let inside = plan.kept.iter().filter(|&&(start, end)| start < mapping.end && end > mapping.start);
        for &(start, end) in inside.chain([&(mapping.end, mapping.end)]) {
            if start > position {
                self.map_part(restoring, plan, mapping, (position, start))?;
            }
            position = position.max(end);
        }
        if plan.kept.iter().any(|&(start, end)| start < mapping.end && end > mapping.start)
            && has_pages(plan, mapping)
        {
            self.reserve(restoring, 0)?;
            let arguments = [
                mapping.start.into(),
                (mapping.end - mapping.start).into(),
                protection(plan, mapping).into(),
            ];
            self.batch.must("making memory writable", libc::SYS_mprotect, arguments);
        }
        Ok(())
    }

    fn map_part(
        &mut self,
        restoring: &mut Restoring<'_>,
        plan: &MemoryPlan,
        mapping: &Mapping,
        (start, end): (u64, u64),
    ) -> Result<()> {
        self.reserve(restoring, 0)?;
        let mut flags = libc::MAP_FIXED_NOREPLACE;
        flags |= if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let set = |bit: u32, flag: i32| if mapping.flags & bit != 0 { flag } else { 0 };
        flags |= set(flag::GROWS_DOWN, libc::MAP_GROWSDOWN) | set(flag::NO_RESERVE, libc::MAP_NORESERVE);
        if mapping.flags & flag::DROPPABLE != 0 {
            // MAP_DROPPABLE is a kind of sharing of its own.
            flags = (flags & !(libc::MAP_PRIVATE | libc::MAP_SHARED)) | 0x08;
        }
        let (descriptor, offset) = match &mapping.source {
            Source::Anonymous | Source::Kernel { .. } => {
                flags |= libc::MAP_ANONYMOUS;
                ((-1).into(), 0)
            }
            Source::File { file, offset } => {
                let number = self.open(restoring, file)?;
                (self.descriptor(number), *offset)
            }
            Source::Segment { segment, offset } => {
                let number = restoring.segments.get(segment).map(AsRawFd::as_raw_fd);
                let number = number.ok_or_else(|| Error::new(code::INTERNAL, "a segment was not made"))?;
                (self.descriptor(number), *offset)
            }
        };
        let offset = offset + (start - mapping.start);
        let protection = protection(plan, mapping);
        let arguments =
            [start.into(), (end - start).into(), protection.into(), flags.into(), descriptor, offset.into()];
        self.batch.must("mapping memory", libc::SYS_mmap, arguments);
        Ok(())
    }

    /// Opens a mapped file, once.
    fn open(&mut self, restoring: &Restoring<'_>, file: &MappedFile) -> Result<RawFd> {
        if let Some(id) = file.nameless {
            let made = restoring.nameless_files.get(&id).map(AsRawFd::as_raw_fd);
            return made.ok_or_else(|| Error::new(code::INTERNAL, "a nameless file was not made"));
        }
        let key = (file.clone(), file.writable);
        if let Some(open) = self.files.get(&key) {
            return Ok(open.as_raw_fd());
        }
        let opened = open_mapped(restoring, file)?;
        let number = opened.as_raw_fd();
        self.files.insert(key, opened);
        Ok(number)
    }

    /// Reads the stored pages into their places.
    fn fill(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
        let mut group: Vec<(u64, u64)> = Vec::new();
        let (mut from, mut length) = (0, 0);
        for run in &plan.runs {
            match run.source {
                PageSource::Parent => {}
                PageSource::Zero => self.zero(restoring, run)?,
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

    /// Pages of zeros where the mapping gives something else.
    fn zero(&mut self, restoring: &mut Restoring<'_>, run: &PageRun) -> Result<()> {
        self.flush(restoring)?;
        let zeros = vec![0; 64 * 4096];
        let (mut address, mut rest) = (run.address, run.count * PAGE);
        while rest > 0 {
            let part = usize::try_from(rest).unwrap_or(zeros.len()).min(zeros.len());
            let bytes = zeros.get(..part).unwrap_or_default();
            restoring.puppet(self.process)?.write(address, bytes)?;
            address += part as u64;
            rest -= part as u64;
        }
        Ok(())
    }

    /// Gives a mapping its own protection and attributes.
    fn protect(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan, mapping: &Mapping) -> Result<()> {
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

    /// Tells the kernel the addresses that it keeps.
    fn layout(&mut self, restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
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

/// The parts of ranges that no run of pages covers; both are in the order of their addresses.
fn gaps(ranges: &[(u64, u64)], runs: &[PageRun]) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    for &(start, end) in ranges {
        let mut position = start;
        let first = runs.partition_point(|run| run.address + run.count * PAGE <= start);
        for run in runs.iter().skip(first).take_while(|run| run.address < end) {
            if run.address > position {
                gaps.push((position, run.address));
            }
            position = position.max(run.address + run.count * PAGE);
        }
        if position < end {
            gaps.push((position, end));
        }
    }
    gaps
}

/// The protection while a mapping is filled.
fn protection(plan: &MemoryPlan, mapping: &Mapping) -> i32 {
    if has_pages(plan, mapping) { libc::PROT_READ | libc::PROT_WRITE } else { i32::from(mapping.protection) }
}

/// Whether anything is written into a mapping.
fn has_pages(plan: &MemoryPlan, mapping: &Mapping) -> bool {
    let first = plan.runs.partition_point(|run| run.address + run.count * PAGE <= mapping.start);
    let runs = plan.runs.get(first..).unwrap_or_default();
    runs.iter().take_while(|run| run.address < mapping.end).any(|run| run.source != PageSource::Parent)
}

/// Opens a file behind a mapping and checks that it is the one of the image.
fn open_mapped(restoring: &Restoring<'_>, file: &MappedFile) -> Result<File> {
    let subject = || Subject::path(&file.path);
    let opened = File::options().read(true).write(file.writable).open(restoring.path(file.path.as_path()));
    let opened = opened.map_err(|error| {
        Error::system(code::MAPPED_FILE_DIFFERS, "opening a file that the image maps", error).about(subject())
    })?;
    let metadata = opened.metadata().map_err(|error| {
        Error::system(code::MAPPED_FILE_DIFFERS, "looking at a file that the image maps", error)
            .about(subject())
    })?;
    let modified = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    // What others write to a shared file is meant to be seen; a private mapping relies on the file's pages.
    if metadata.is_file() && !file.writable && (metadata.size(), modified) != (file.size, file.modified) {
        return Err(Error::new(
            code::MAPPED_FILE_DIFFERS,
            "a file that the image maps is not the same any more",
        )
        .because(format!("{} bytes instead of {}, or modified since", metadata.size(), file.size))
        .about(subject()));
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_no_run_names() {
        let run = |address, count| PageRun { address, count, source: PageSource::Parent };
        let runs = [run(0x1000, 2), run(0x5000, 1), run(0x9000, 4)];
        let ranges = [(0x0, 0x7000), (0xa000, 0xf000)];
        assert_eq!(
            gaps(&ranges, &runs),
            [(0x0, 0x1000), (0x3000, 0x5000), (0x6000, 0x7000), (0xd000, 0xf000)]
        );
        assert_eq!(gaps(&[(0x1000, 0x3000)], &runs), []);
    }
}
