//! The content of files and segments that can't be opened, for want of a right: it is read through the mappings that the
//! processes have of them.

use super::observe::At;
use super::source::huge_page;
use crate::error::{Error, Result, code};
use crate::frozen::FrozenProcess;
use crate::proc::maps::MapLine;
use crate::proc::read;
use crate::records::{FoundRun, MemoryContent, Records, RunContent};
use crate::sys::pagemap::{self, Query};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use vckpt_image_format::record::mmap_memory::PageOwner;
use vckpt_image_format::record::nameless_file::{NamelessFile, Sort};
use vckpt_image_format::record::process_map::MappedFile;
use vckpt_image_format::record::shared_segment::{Origin, SharedSegment};
use vckpt_image_format::{SegmentId, Text};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// A piece of a mapping that shows a part of what is mapped.
struct Piece<'tree> {
    process: &'tree FrozenProcess,
    line: &'tree MapLine,
    start: u64,
    end: u64,
}

impl Piece<'_> {
    fn offset(&self) -> u64 {
        self.line.offset + (self.start - self.line.start)
    }
}

/// Adds the record and the content of a segment; `exact` is its size if it is known.
///
/// # Errors
/// If the memory of a process can't be reached.
pub(super) fn segment(
    at: At<'_>,
    id: SegmentId,
    exact: Option<u64>,
    origin: Origin,
    records: &mut Records,
) -> Result<()> {
    if matches!(origin, Origin::Memfd { .. }) {
        let name = String::from_utf8_lossy(&at.line.name);
        records.degraded.push(format!("{name}: its seals and exact size can't be seen, for it is not open"));
    }
    let pieces = lines(at).filter_map(|(process, line)| in_file(process, line));
    let size = exact.unwrap_or_else(|| end(at));
    records.push(SharedSegment { id, size, origin, huge_page: huge_page(at.line) });
    let missing = gather(PageOwner::Segment(id), pieces.collect(), records)?;
    if missing > 0 {
        records
            .degraded
            .push(format!("{missing} bytes of shared memory that no process maps could not be read"));
    }
    Ok(())
}

/// A file without a name; adds its record and content the first time. What nobody maps, and what everybody has written
/// over in private mappings, is not seen by anybody, and zeros in the file that is made again.
///
/// # Errors
/// If the memory of a process can't be reached.
pub(super) fn file(at: At<'_>, path: Text, writable: bool, records: &mut Records) -> Result<MappedFile> {
    let (id, first) = records.nameless_file((at.line.device, at.line.inode));
    let size = pages_end(at);
    if first {
        let mut pieces = Vec::new();
        for (process, line) in lines(at) {
            if line.shared {
                pieces.extend(in_file(process, line));
            } else {
                pieces.extend(untouched(process, line)?);
            }
        }
        records.push(NamelessFile {
            id,
            path: path.clone(),
            mode: 0o755,
            user: nix::unistd::geteuid().as_raw(),
            group: nix::unistd::getegid().as_raw(),
            size,
            links: 0,
            modified: 0,
            sort: Sort::Regular,
        });
        gather(PageOwner::NamelessFile(id), pieces, records)?;
    }
    if at.line.shared && !records.degraded.iter().any(|line| line == UNSEEN) {
        records.degraded.push(UNSEEN.to_owned());
    }
    Ok(MappedFile { path, nameless: Some(id), embedded: false, size, modified: 0, writable })
}

/// What is told once, since a program often has many such files (semaphores, for example).
const UNSEEN: &str = "mapped files without a name that are not open: their exact sizes, what no process maps of them, \
                      and names that they may have elsewhere can't be seen";

/// All mappings of what a mapping maps.
fn lines(at: At<'_>) -> impl Iterator<Item = (&FrozenProcess, &MapLine)> {
    let all = at.tree.iter().flat_map(|process| process.maps.iter().map(move |line| (process, line)));
    all.filter(move |(_, line)| {
        (line.device, line.inode, &line.name) == (at.line.device, at.line.inode, &at.line.name)
    })
}

/// Where the last of them ends.
fn end(at: At<'_>) -> u64 {
    lines(at).map(|(_, line)| line.offset + (line.end - line.start)).max().unwrap_or(0)
}

/// The part of a shared mapping behind which the file has pages: none can be read behind its end.
fn in_file<'tree>(process: &'tree FrozenProcess, line: &'tree MapLine) -> Option<Piece<'tree>> {
    let has =
        |page: u64| process.memory.read_at(&mut [0], line.start + page * PAGE).is_ok_and(|read| read == 1);
    let (mut within, mut behind) = (0, (line.end - line.start) / PAGE);
    if behind > 0 && has(behind - 1) {
        within = behind;
    }
    while within < behind {
        let middle = within + (behind - within) / 2;
        if has(middle) {
            within = middle + 1;
        } else {
            behind = middle;
        }
    }
    (within > 0).then_some(Piece { process, line, start: line.start, end: line.start + within * PAGE })
}

/// Where the file ends behind the last of them, as far as that can be seen.
fn pages_end(at: At<'_>) -> u64 {
    let ends = lines(at).filter_map(|(process, line)| match in_file(process, line) {
        Some(piece) if line.shared => Some(line.offset + (piece.end - line.start)),
        None if line.shared => None,
        _ => Some(line.offset + (line.end - line.start)),
    });
    ends.max().unwrap_or(0)
}

/// The parts of a private mapping that the process has not written over.
fn untouched<'tree>(process: &'tree FrozenProcess, line: &'tree MapLine) -> Result<Vec<Piece<'tree>>> {
    let pagemap = File::open(read::path(process.view, "pagemap"))
        .map_err(|error| read::failure(process.view, "pagemap", &error))?;
    let query = Query { any_of: pagemap::PRESENT | pagemap::SWAPPED, none_of: pagemap::FILE };
    let (mut pieces, mut position) = (Vec::new(), line.start);
    pagemap::scan(pagemap.as_fd(), line.start, line.end, query, |region| {
        if region.start > position {
            pieces.push(Piece { process, line, start: position, end: region.start });
        }
        position = region.end;
    })
    .map_err(|errno| Error::system(code::HOST_FEATURE, "finding pages (PAGEMAP_SCAN)", errno))?;
    if position < line.end {
        pieces.push(Piece { process, line, start: position, end: line.end });
    }
    Ok(pieces)
}

/// Adds the content that the pieces show, in its order; how many bytes before the last are shown by none.
fn gather(owner: PageOwner, mut pieces: Vec<Piece<'_>>, records: &mut Records) -> Result<u64> {
    pieces.sort_by_key(Piece::offset);
    let (mut position, mut missing) = (0, 0);
    let mut gathered: Vec<MemoryContent> = Vec::new();
    for piece in pieces {
        let offset = piece.offset();
        let Piece { process, line, start, end } = piece;
        let behind = offset + (end - start);
        if behind <= position {
            continue;
        }
        missing += offset.saturating_sub(position);
        let start = end - (behind - position.max(offset));
        position = behind;
        let run = FoundRun { start, end, content: RunContent::Anonymous };
        let base = line.start.wrapping_sub(line.offset);
        match gathered.last_mut() {
            Some(last) if (last.pid, last.base) == (process.view, base) => last.runs.push(run),
            _ => {
                let memory = process.memory.try_clone();
                let memory = memory.map_err(|error| read::failure(process.view, "mem", &error))?;
                gathered.push(MemoryContent { owner, pid: process.view, memory, base, runs: vec![run] });
            }
        }
    }
    records.memories.extend(gathered);
    Ok(missing)
}
