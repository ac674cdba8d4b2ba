//! Storing: writes records and contents into an image. It looks at nothing but what observing has named.

mod source;

use crate::error::{Error, Result, code};
use crate::progress::Progress;
use crate::records::{FileContent, MemoryContent, Records, RunContent};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use source::{CHUNK, Piece};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use vckpt_image_format::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};
use vckpt_image_format::writer::{ImageWriter, WriteError};

const PAGE: usize = 4096;
/// The same, for the places in a file.
const PAGE_LENGTH: i64 = 4096;
/// Runs in one record.
const RUNS_A_RECORD: usize = 32 * 1024;

/// What was stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stored {
    /// Bytes of memory that the image stands for: pages that were stored, shared or zero.
    pub memory: u64,
    /// Bytes of the image.
    pub image: u64,
}

/// Writes everything that was observed.
///
/// # Errors
/// [`code::IMAGE_WRITE`]; [`code::MEMORY_ACCESS`] if contents can't be read.
pub fn store(
    records: &Records,
    sink: Box<dyn Write>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Box<dyn Write>, Stored)> {
    let mut writer = ImageWriter::new(sink).map_err(|error| failure(WriteError::Io(error)))?;
    for record in &records.records {
        record.write(&mut writer).map_err(failure)?;
    }
    let total: u64 =
        records.memories.iter().flat_map(|memory| &memory.runs).map(|run| run.end - run.start).sum();
    let mut store = Store { writer, buffer: Vec::new(), memory: 0, total, progress };
    for memory in &records.memories {
        store.memory(memory)?;
    }
    for content in &records.contents {
        store.file(content)?;
    }
    let image = store.writer.position();
    let stored = Stored { memory: store.memory, image };
    Ok((store.writer.finish().map_err(failure)?, stored))
}

fn failure(error: WriteError) -> Box<Error> {
    Error::new(code::IMAGE_WRITE, "writing the image").because(error)
}

struct Store<'progress> {
    writer: ImageWriter<Box<dyn Write>>,
    buffer: Vec<u8>,
    memory: u64,
    total: u64,
    progress: &'progress mut dyn FnMut(Progress),
}

impl Store<'_> {
    /// Stores the pages of a memory.
    fn memory(&mut self, content: &MemoryContent) -> Result<()> {
        if content.runs.is_empty() {
            return Ok(());
        }
        let section = self.writer.begin_page_section().map_err(failure)?;
        let mut runs = Runs { section, base: content.base, runs: Vec::new() };
        source::pieces(content, |piece| self.piece(piece, &mut runs))?;
        self.finish_owner(content.owner, runs)
    }

    /// Writes the pages of a piece.
    fn piece(&mut self, piece: &Piece, runs: &mut Runs) -> Result<()> {
        let mut rest = piece.bytes.as_slice();
        for run in &piece.runs {
            let length = run.end - run.start;
            self.memory += length;
            if let Some(source) = without_bytes(run.content) {
                runs.add(run.start, length / PAGE as u64, source);
                continue;
            }
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((bytes, behind)) = rest.split_at_checked(length) else { break };
            write_pages(&mut self.writer, run.start, bytes, run.content, runs)?;
            rest = behind;
        }
        (self.progress)(Progress { phase: "pages", done: self.memory.min(self.total), total: self.total });
        Ok(())
    }

    /// Stores the data of a file, not its holes.
    fn file(&mut self, content: &FileContent) -> Result<()> {
        let section = self.writer.begin_page_section().map_err(failure)?;
        let mut runs = Runs { section, base: 0, runs: Vec::new() };
        let access = |error: std::io::Error| {
            Error::system(code::MEMORY_ACCESS, "reading the content of a file", error)
        };
        let file = File::from(content.file.try_clone().map_err(access)?);
        self.buffer.resize(CHUNK, 0);
        let mut position = 0_i64;
        let size = i64::try_from(content.size).unwrap_or(i64::MAX);
        while position < size {
            let data = match lseek(&file, position, Whence::SeekData) {
                Ok(data) => data,
                Err(Errno::ENXIO) => break,
                Err(errno) => return Err(access(errno.into())),
            };
            let hole = lseek(&file, data, Whence::SeekHole).map_err(|errno| access(errno.into()))?.min(size);
            let mut start = data - data % PAGE_LENGTH;
            while start < hole {
                let length = usize::try_from(hole - start).unwrap_or(usize::MAX).min(CHUNK);
                let padded = length.next_multiple_of(PAGE);
                let Some(buffer) = self.buffer.get_mut(..padded) else { break };
                buffer.fill(0);
                let Some(bytes) = buffer.get_mut(..length) else { break };
                let address = start.cast_unsigned();
                file.read_exact_at(bytes, address).map_err(access)?;
                write_pages(&mut self.writer, address, buffer, RunContent::Anonymous, &mut runs)?;
                self.memory += padded as u64;
                start = start.saturating_add_unsigned(padded as u64);
            }
            position = hole.max(start);
        }
        self.finish_owner(content.owner, runs)
    }

    fn finish_owner(&mut self, owner: PageOwner, runs: Runs) -> Result<()> {
        for runs in runs.runs.chunks(RUNS_A_RECORD) {
            self.writer.record(&MmapMemory { owner, runs: runs.to_vec() }).map_err(failure)?;
        }
        Ok(())
    }
}

/// What is noted of a run that is not read.
fn without_bytes(content: RunContent) -> Option<PageSource> {
    match content {
        RunContent::Parent => Some(PageSource::Parent),
        RunContent::Guard => Some(PageSource::Guard),
        RunContent::Anonymous | RunContent::OverFile => None,
    }
}

/// The runs of an owner while they are stored.
struct Runs {
    section: u32,
    base: u64,
    runs: Vec<PageRun>,
}

impl Runs {
    /// Adds a run, joined with the one before if it continues it.
    fn add(&mut self, address: u64, count: u64, source: PageSource) {
        let address = address.wrapping_sub(self.base);
        if let Some(last) = self.runs.last_mut()
            && last.address + last.count * PAGE as u64 == address
            && continues(last.source, last.count, source)
        {
            last.count += count;
            return;
        }
        self.runs.push(PageRun { address, count, source });
    }
}

fn continues(last: PageSource, count: u64, next: PageSource) -> bool {
    match (last, next) {
        (PageSource::Stored { section: a, page: first }, PageSource::Stored { section: b, page }) => {
            a == b && first + count == page
        }
        (PageSource::Parent, PageSource::Parent)
        | (PageSource::Zero, PageSource::Zero)
        | (PageSource::Guard, PageSource::Guard) => true,
        _ => false,
    }
}

/// Writes pages with consecutive addresses, without those that are all zeros.
fn write_pages(
    writer: &mut ImageWriter<Box<dyn Write>>,
    address: u64,
    bytes: &[u8],
    kind: RunContent,
    runs: &mut Runs,
) -> Result<()> {
    let mut start = 0;
    while start < bytes.len() {
        let zero = is_zero(bytes, start);
        let mut end = start + PAGE;
        while end < bytes.len() && is_zero(bytes, end) == zero {
            end += PAGE;
        }
        let count = ((end - start) / PAGE) as u64;
        let at = address + start as u64;
        if !zero {
            let page = writer.page_position();
            writer.pages(bytes.get(start..end).unwrap_or_default()).map_err(failure)?;
            runs.add(at, count, PageSource::Stored { section: runs.section, page });
        } else if kind == RunContent::OverFile {
            runs.add(at, count, PageSource::Zero);
        }
        start = end;
    }
    Ok(())
}

/// Whether the page at this offset is all zeros. Its first word tells in nearly all cases.
fn is_zero(bytes: &[u8], offset: usize) -> bool {
    let page = bytes.get(offset..offset + PAGE).unwrap_or_default();
    let (head, body, tail) = (page.get(..64), page.get(64..PAGE - 64), page.get(PAGE - 64..));
    [head, tail, body].into_iter().flatten().all(|part| part.iter().fold(0, |all, &byte| all | byte) == 0)
}
