//! What a mapping with an inode maps: a file, a segment of shared memory, or something that can't be kept.

use super::by_memory;
use super::mapped_file::{named, nameless};
use super::observe::At;
use crate::error::{Error, Result, code};
use crate::frozen::FrozenProcess;
use crate::kinds::nameless_file;
use crate::kinds::segment::observe::{self, observe_secret, observe_segment};
use crate::proc::maps::MapLine;
use crate::proc::read;
use crate::records::Records;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use vckpt_image_format::Text;
use vckpt_image_format::record::process_map::{MappedFile, Mapping, Source};
use vckpt_image_format::record::shared_segment::Origin;

/// The source of a mapping that has an inode.
pub(super) fn file_source(at: At<'_>, mapping: &Mapping, records: &mut Records) -> Result<Source> {
    let At { process, line, .. } = at;
    let path = Text::from(line.name.as_slice());
    let subject = || process.subject().address(line.start).with_path(&path);
    if is_system_v(line) {
        return system_v(at, records).map_err(|error| error.about(subject()));
    }
    if is_secret(line) {
        let status = std::fs::metadata(way(process, line));
        let size = status.map_or(line.offset + (line.end - line.start), |status| status.size());
        let segment = observe_secret(records, (line.device, line.inode), size);
        return Ok(Source::Segment { segment, offset: line.offset });
    }
    let writable = line.shared && line.has(b"mw");
    if !line.deleted
        && let Some(file) = named(process, &path, (line.device, line.inode), writable, records)?
    {
        return Ok(Source::File { file, offset: line.offset });
    }
    let segment_name = line.name.strip_prefix(b"/memfd:");
    let deleted = line.deleted && matches!(line.name.as_slice(), b"/dev/zero" | b"/anon_hugepage");
    let anonymous = deleted || line.name.starts_with(b"[anon_shmem:");
    let opened = open(process, line);
    if anonymous || segment_name.is_some() {
        let origin = match segment_name {
            Some(name) => Origin::Memfd { name: name.into(), seals: seals(opened.as_ref().ok()) },
            None => Origin::Anonymous,
        };
        return segment_source(at, opened, origin, records);
    }
    if line.name == b"/dev/zero" && !mapping.shared {
        let file =
            MappedFile { path, nameless: None, embedded: false, size: 0, modified: 0, writable: false };
        return Ok(Source::File { file, offset: line.offset });
    }
    if line.deleted && is_denied(&opened) {
        let other = nameless_file::other_name(&path, (line.device, line.inode));
        let named = other.map(|other| named(process, &other, (line.device, line.inode), writable, records));
        let file = match named.transpose()?.flatten() {
            Some(named) => named,
            None => by_memory::file(at, path, writable, records)?,
        };
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
    let file = match named(process, &path, (metadata.dev(), metadata.ino()), writable, records)? {
        Some(named) => named,
        None => nameless(process, path, &file, writable, records)?,
    };
    Ok(Source::File { file, offset: line.offset })
}

/// Whether it is a System V segment, whose inode is its ID: 0 for the first.
pub(super) fn is_system_v(line: &MapLine) -> bool {
    line.name.starts_with(b"/SYSV") && line.deleted
}

/// Whether it is memory of `memfd_secret(2)`.
pub(super) fn is_secret(line: &MapLine) -> bool {
    line.name == b"/secretmem" && line.deleted
}

/// The way to the file behind a mapping: by the mapping, for which root is needed, or by a descriptor that leads to the
/// same file, or as the program.
fn way(process: &FrozenProcess, line: &MapLine) -> PathBuf {
    let mapped = read::path(process.view, &format!("map_files/{:x}-{:x}", line.start, line.end));
    if is_denied(&std::fs::metadata(&mapped)) {
        let numbers = read::numbers(process.view, "fd").unwrap_or_default();
        let descriptors = numbers.into_iter().map(|number| format!("fd/{number}"));
        for name in descriptors.chain(["exe".to_owned()]) {
            let path = read::path(process.view, &name);
            let status = std::fs::metadata(&path);
            if status.is_ok_and(|status| (status.dev(), status.ino()) == (line.device, line.inode)) {
                return path;
            }
        }
    }
    mapped
}

fn is_denied<T>(result: &std::io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The file behind a mapping, open for reading.
fn open(process: &FrozenProcess, line: &MapLine) -> std::io::Result<File> {
    File::open(way(process, line))
}

/// The binary logarithm of the size of huge pages; else 0.
pub(super) fn huge_page(line: &MapLine) -> u8 {
    if line.has(b"ht") { u8::try_from(line.page_size.max(1).ilog2()).unwrap_or(0) } else { 0 }
}

/// A System V segment, of which all was attached.
fn system_v(at: At<'_>, records: &mut Records) -> Result<Source> {
    let At { process, line, .. } = at;
    if line.has(b"ht") {
        return Err(Error::new(code::MAPPING, "it has System V shared memory of huge pages"));
    }
    let (shared, size) = observe::system_v(line.inode)?;
    // Its pieces lie side by side, as `shmat(2)` has put them.
    let begin = line.start.wrapping_sub(line.offset);
    let mut end = begin;
    let pieces = process.maps.iter().filter(|piece| (piece.device, piece.inode) == (line.device, line.inode));
    for piece in
        pieces.filter(|piece| piece.start.wrapping_sub(piece.offset) == begin && piece.start >= begin)
    {
        if piece.start == end {
            end = piece.end;
        }
    }
    if end < begin.wrapping_add(size) {
        return Err(Error::new(code::MAPPING, "it has a part of a System V segment, not all of it"));
    }
    segment_source(at, open(process, line), Origin::SystemV(shared), records)
}

fn seals(file: Option<&File>) -> u32 {
    file.and_then(|file| nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GET_SEALS).ok())
        .map_or(0, i32::cast_unsigned)
}

/// The source of a mapping of shared memory that no file system names.
fn segment_source(
    at: At<'_>,
    opened: std::io::Result<File>,
    origin: Origin,
    records: &mut Records,
) -> Result<Source> {
    let At { process, line, .. } = at;
    let inode = (line.device, line.inode);
    let subject = || process.subject().address(line.start);
    // The file behind a System V segment ends with its last page.
    let exact = match &origin {
        Origin::SystemV(shared) => Some(observe::system_v(shared.id.into())?.1),
        Origin::Anonymous | Origin::Memfd { .. } | Origin::Secret => None,
    };
    let segment = match opened {
        Ok(file) => {
            let size = file
                .metadata()
                .map_err(|error| {
                    Error::system(code::MAPPING, "looking at shared memory", error).about(subject())
                })?
                .size();
            observe_segment(records, file.into(), inode, exact.unwrap_or(size), origin, huge_page(line))
        }
        Err(_) => {
            let (id, first) = records.segment(inode);
            if first {
                by_memory::segment(at, id, exact, origin, records)?;
            }
            id
        }
    };
    Ok(Source::Segment { segment, offset: line.offset })
}
