//! Observing memory: the mappings of each process, and which of their pages are to be stored.

use super::{attributes, pages};
use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::kinds::nameless_file::observe::observe_nameless;
use crate::kinds::segment::observe_segment;
use crate::proc::maps::MapLine;
use crate::proc::read;
use crate::records::{Inode, Records};
use crate::stub::batch::Batch;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use vckpt_image_format::record::process_map::{Layout, MappedFile, Mapping, ProcessMap, Source, flag};
use vckpt_image_format::record::shared_segment::Origin;
use vckpt_image_format::{MemoryId, NamelessFileId, Text};

/// Mappings in one record.
const MAPPINGS_A_RECORD: usize = 4096;

/// Adds the records of all address spaces, and what is to be stored of them.
///
/// # Errors
/// All mappings that can't be kept.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut known: Vec<(u32, Vec<Mapping>)> = Vec::new();
    for index in 0..frozen.processes.len() {
        let Some(process) = frozen.processes.get_mut(index) else { continue };
        if process.threads.is_empty() || process.shares.memory != process.index {
            continue;
        }
        let memory = MemoryId(process.shares.memory);
        let Some(layout) = problems.take(layout(process, records)) else { continue };
        let mut mappings = Vec::with_capacity(process.maps.len());
        for line in &process.maps {
            let mapping = mapping(process, line, records)
                .map_err(|error| error.about(process.subject().address(line.start)));
            mappings.extend(problems.take(mapping));
        }
        let parent = frozen.processes.get(index).and_then(|process| {
            let mut others = frozen.processes.iter().filter(|_| !process.adopted);
            let parent = others.find(|other| Some(other.id) == process.parent)?;
            let (_, mappings) = known.iter().find(|(index, _)| *index == parent.shares.memory)?;
            Some((parent, mappings.as_slice()))
        });
        let Some(process) = frozen.processes.get(index) else { continue };
        if let Some(content) = problems.take(pages::find(process, &mappings, parent)) {
            records.memories.push(content);
        }
        push(memory, layout, &mappings, records);
        known.push((process.index, mappings));
    }
    problems.finish()
}

fn push(memory: MemoryId, layout: Layout, mappings: &[Mapping], records: &mut Records) {
    let mut layout = Some(layout);
    let mut chunks = mappings.chunks(MAPPINGS_A_RECORD);
    let first = chunks.next().unwrap_or_default();
    for chunk in std::iter::once(first).chain(chunks) {
        records.push(ProcessMap { memory, layout: layout.take(), mappings: chunk.to_vec() });
    }
}

/// The addresses that the kernel keeps about a memory.
fn layout(process: &mut FrozenProcess, records: &mut Records) -> Result<Layout> {
    let mut batch = Batch::new();
    let brk = batch.call("brk", libc::SYS_brk, [0.into()]);
    let outcome = process.run(&batch)?;
    let heap_end = outcome.get(brk).unwrap_or(process.stat.heap);
    let auxiliary_vector = read::file(process.view, "auxv")?;
    let stat = &process.stat;
    Ok(Layout {
        code: stat.code,
        data: stat.data,
        heap: (stat.heap, heap_end),
        stack: stat.stack,
        arguments: stat.arguments,
        environment: stat.environment,
        auxiliary_vector,
        executable: executable(process, records)?,
    })
}

/// The program of a process.
fn executable(process: &FrozenProcess, records: &mut Records) -> Result<MappedFile> {
    let path = Text::from(read::link(process.view, "exe")?);
    let open = || {
        File::open(read::path(process.view, "exe"))
            .map_err(|error| read::failure(process.view, "exe", &error).about(process.subject()))
    };
    let metadata = std::fs::metadata(read::path(process.view, "exe"))
        .map_err(|error| read::failure(process.view, "exe", &error).about(process.subject()))?;
    let path = path.0.strip_suffix(b" (deleted)").map(Text::from).unwrap_or(path);
    if let Some(file) = named(process, &path, (metadata.dev(), metadata.ino()), false) {
        return Ok(file);
    }
    nameless(process, path, &open()?, false, records)
}

/// The file, if the name still leads to it.
fn named(process: &FrozenProcess, path: &Text, inode: Inode, writable: bool) -> Option<MappedFile> {
    // The kernel gives paths as we see them, whatever root the process has; in another mount namespace, from the root
    // of that.
    let relative = path.as_path().strip_prefix("/").ok()?;
    let places = [path.to_path(), read::path(process.view, "root").join(relative)];
    let metadata = places.iter().find_map(|place| {
        std::fs::metadata(place).ok().filter(|found| (found.dev(), found.ino()) == inode)
    })?;
    Some(described(path.clone(), &metadata, None, writable))
}

fn described(
    path: Text,
    metadata: &Metadata,
    nameless: Option<NamelessFileId>,
    writable: bool,
) -> MappedFile {
    let modified = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    MappedFile { path, nameless, size: metadata.size(), modified, writable }
}

/// A file whose name is gone or leads elsewhere: its content travels in the image.
fn nameless(
    process: &FrozenProcess,
    path: Text,
    file: &File,
    writable: bool,
    records: &mut Records,
) -> Result<MappedFile> {
    let about = |error: Box<Error>| error.about(process.subject().with_path(&path));
    let metadata = file
        .metadata()
        .map_err(|error| about(Error::system(code::MAPPING, "looking at a mapped file", error)))?;
    if !metadata.is_file() {
        return Err(about(Error::new(code::MAPPING, "it maps something that is no regular file")));
    }
    let id = observe_nameless(records, file.as_fd(), &path).map_err(about)?;
    Ok(described(path, &metadata, Some(id), writable))
}

fn mapping(process: &FrozenProcess, line: &MapLine, records: &mut Records) -> Result<Mapping> {
    let refuse = |what: String| {
        let name = String::from_utf8_lossy(&line.name).into_owned();
        Err(Error::new(code::MAPPING, what).about(process.subject().address(line.start).with_path(name)))
    };
    let mut mapping = Mapping {
        start: line.start,
        end: line.end,
        protection: line.protection,
        shared: line.shared,
        flags: 0,
        source: Source::Anonymous,
        name: None,
    };
    if is_kernels(&line.name) {
        mapping.source = Source::Kernel { name: String::from_utf8_lossy(&line.name).into_owned() };
        return Ok(mapping);
    }
    mapping.flags = match attributes::flags(&line.flags) {
        Ok(flags) => flags,
        Err(meaning) => return refuse(format!("it has {meaning}")),
    };
    if line.inode == 0 {
        mapping.name =
            line.name.strip_prefix(b"[anon:").and_then(|name| name.strip_suffix(b"]")).map(Text::from);
        let expected = matches!(line.name.as_slice(), b"" | b"[heap]" | b"[stack]");
        if !expected && mapping.name.is_none() {
            return refuse("it has a mapping of an unknown kind".to_owned());
        }
        return Ok(mapping);
    }
    mapping.source = file_source(process, line, &mapping, records)?;
    Ok(mapping)
}

fn is_kernels(name: &[u8]) -> bool {
    matches!(name, b"[vdso]" | b"[vsyscall]") || name.starts_with(b"[vvar")
}

/// The source of a mapping that has an inode.
fn file_source(
    process: &FrozenProcess,
    line: &MapLine,
    mapping: &Mapping,
    records: &mut Records,
) -> Result<Source> {
    let path = Text::from(line.name.as_slice());
    let subject = || process.subject().address(line.start).with_path(&path);
    if line.name.starts_with(b"/SYSV") && line.deleted {
        return Err(Error::new(code::MAPPING, "it has System V shared memory").about(subject()));
    }
    let writable = line.shared && line.has(b"mw");
    if !line.deleted
        && let Some(file) = named(process, &path, (line.device, line.inode), writable)
    {
        return Ok(Source::File { file, offset: line.offset });
    }
    let segment_name = line.name.strip_prefix(b"/memfd:");
    let anonymous = line.name == b"/dev/zero" && line.deleted || line.name.starts_with(b"[anon_shmem:");
    let opened = File::open(read::path(process.view, &format!("map_files/{:x}-{:x}", line.start, line.end)));
    if anonymous || segment_name.is_some() {
        let origin = match segment_name {
            Some(name) => Origin::Memfd { name: name.into(), seals: seals(opened.as_ref().ok()) },
            None => Origin::Anonymous,
        };
        return segment_source(process, line, opened, origin, records);
    }
    if line.name == b"/dev/zero" && !mapping.shared {
        let file = MappedFile { path, nameless: None, size: 0, modified: 0, writable: false };
        return Ok(Source::File { file, offset: line.offset });
    }
    let file = opened.map_err(|error| {
        Error::system(code::MAPPING, "it maps a file whose name is gone or leads to another file", error)
            .hint("run vckpt as root, which may open the file behind the mapping")
            .about(subject())
    })?;
    // A file system such as overlayfs shows one device here and another by name.
    let metadata = file
        .metadata()
        .map_err(|error| Error::system(code::MAPPING, "looking at a mapped file", error).about(subject()))?;
    let file = match named(process, &path, (metadata.dev(), metadata.ino()), writable) {
        Some(named) => named,
        None => nameless(process, path, &file, writable, records)?,
    };
    Ok(Source::File { file, offset: line.offset })
}

fn seals(file: Option<&File>) -> u32 {
    file.and_then(|file| nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GET_SEALS).ok())
        .map_or(0, i32::cast_unsigned)
}

/// The source of a mapping of shared memory that no file system names.
fn segment_source(
    process: &FrozenProcess,
    line: &MapLine,
    opened: std::io::Result<File>,
    origin: Origin,
    records: &mut Records,
) -> Result<Source> {
    let inode = (line.device, line.inode);
    let subject = || process.subject().address(line.start);
    let segment = match opened {
        Ok(file) => {
            let size = file
                .metadata()
                .map_err(|error| {
                    Error::system(code::MAPPING, "looking at shared memory", error).about(subject())
                })?
                .size();
            observe_segment(records, file.into(), inode, size, origin)
        }
        Err(_) => {
            let (id, first) = records.segment(inode);
            if first {
                pages::segment_by_memory(process, id, line, origin, records);
            }
            id
        }
    };
    Ok(Source::Segment { segment, offset: line.offset })
}

/// Whether pages of a mapping are stored at all.
#[must_use]
pub fn stores_pages(mapping: &Mapping) -> bool {
    !mapping.shared
        && mapping.flags & flag::DROPPABLE == 0
        && matches!(mapping.source, Source::Anonymous | Source::File { .. })
}
