//! Reading the pages of a memory, piece by piece: ahead of their being written, where there is much of it.

use crate::error::{Error, Result, code};
use crate::proc::read;
use crate::records::{FoundRun, MemoryContent, RunContent};
use crate::sys::process;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Bytes that are read at a time.
pub(super) const CHUNK: usize = 1024 * 1024;
const PAGE: usize = 4096;
/// Ranges that are read at a time: the kernel's `UIO_MAXIOV`.
const RANGES: usize = 1024;
/// From this many bytes on, a thread that reads ahead is worth its start.
const AHEAD: u64 = 4 * CHUNK as u64;
/// Pieces that are read ahead.
const PIECES: usize = 4;
/// Up to this many ranges it pays to ask who else has their pages.
const FEW: usize = 32;

/// Runs of a memory that are read together. Those of which only the source is noted are not read; they come alone.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) runs: Vec<FoundRun>,
    /// The bytes of the runs, one after the other; behind them the buffer has no meaning.
    pub(super) bytes: Vec<u8>,
}

impl Piece {
    fn is_read(&self) -> bool {
        self.runs.first().is_some_and(has_bytes)
    }

    fn length(&self) -> usize {
        self.runs.iter().map(length).sum()
    }
}

fn has_bytes(run: &FoundRun) -> bool {
    matches!(run.content, RunContent::Anonymous | RunContent::OverFile)
}

fn length(run: &FoundRun) -> usize {
    usize::try_from(run.end - run.start).unwrap_or(usize::MAX)
}

/// Reads a memory and hands it over, piece by piece in the order of the addresses.
///
/// # Errors
/// [`code::MEMORY_ACCESS`]; what `take` says.
pub(super) fn pieces(content: &MemoryContent, mut take: impl FnMut(&Piece) -> Result<()>) -> Result<()> {
    let source = Source::new(content);
    let total: u64 = content.runs.iter().map(|run| run.end - run.start).sum();
    if total >= AHEAD {
        let (full, ready) = channel();
        let (free, empty) = channel();
        let source = &source;
        return std::thread::scope(|scope| {
            let reader = std::thread::Builder::new().name("read".to_owned());
            match reader.spawn_scoped(scope, move || source.read_ahead(&empty, &full)) {
                Ok(_) => take_all(&ready, free, take),
                // Without a second thread this one does all.
                Err(_) => source.read_all(take),
            }
        });
    }
    source.read_all(&mut take)
}

/// Takes the pieces of the other thread.
fn take_all(
    ready: &Receiver<Result<Piece>>,
    free: Sender<Vec<u8>>,
    mut take: impl FnMut(&Piece) -> Result<()>,
) -> Result<()> {
    for _ in 0..PIECES {
        let _ = free.send(Vec::new());
    }
    for piece in ready {
        let piece = piece?;
        take(&piece)?;
        // It needs no more if it has ended.
        let _ = free.send(piece.bytes);
    }
    Ok(())
}

/// Where the pages of a memory are read from.
struct Source<'content> {
    content: &'content MemoryContent,
    /// What the kernel tells of the pages, if it does.
    pagemap: Option<File>,
}

impl<'content> Source<'content> {
    fn new(content: &'content MemoryContent) -> Self {
        Self { content, pagemap: File::open(read::path(content.pid, "pagemap")).ok() }
    }

    fn read_all(&self, mut take: impl FnMut(&Piece) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        for mut piece in Cut::new(&self.content.runs) {
            piece.bytes = bytes;
            self.read(&mut piece)?;
            take(&piece)?;
            bytes = piece.bytes;
        }
        Ok(())
    }

    /// Reads into buffers that are free, until all is read or nobody wants more.
    fn read_ahead(&self, empty: &Receiver<Vec<u8>>, full: &Sender<Result<Piece>>) {
        for mut piece in Cut::new(&self.content.runs) {
            let Ok(bytes) = empty.recv() else { return };
            piece.bytes = bytes;
            let result = self.read(&mut piece);
            let failed = result.is_err();
            if full.send(result.map(|()| piece)).is_err() || failed {
                return;
            }
        }
    }

    fn read(&self, piece: &mut Piece) -> Result<()> {
        if !piece.is_read() {
            return Ok(());
        }
        let length = piece.length();
        piece.bytes.resize(length.max(piece.bytes.len()), 0);
        let Some(mut rest) = piece.bytes.get_mut(..length) else { return Ok(()) };
        if self.is_exclusive(&piece.runs) {
            let ranges: Vec<(u64, usize)> =
                piece.runs.iter().map(|run| (run.start, self::length(run))).collect();
            // Where the program itself may not read, this does not either.
            if process::read_ranges(self.content.pid, &ranges, rest) == Ok(length) {
                return Ok(());
            }
        }
        for run in &piece.runs {
            let Some((part, behind)) = rest.split_at_mut_checked(self::length(run)) else { break };
            self.content
                .memory
                .read_exact_at(part, run.start)
                .map_err(|error| Error::system(code::MEMORY_ACCESS, "reading memory", error))?;
            rest = behind;
        }
        Ok(())
    }

    /// Whether no other process has any of the pages. `process_vm_readv(2)`, which is twice as fast, pins what it
    /// reads, and pages that are shared by copy-on-write would be copied for that.
    fn is_exclusive(&self, runs: &[FoundRun]) -> bool {
        let Some(pagemap) = self.pagemap.as_ref().filter(|_| runs.len() <= FEW) else { return false };
        let mut entries = [0; CHUNK / PAGE * 8];
        runs.iter().all(|run| {
            let Some(entries) = entries.get_mut(..length(run) / PAGE * 8) else { return false };
            pagemap.read_exact_at(entries, run.start / PAGE as u64 * 8).is_ok()
                && entries.as_chunks().0.iter().all(|entry| is_exclusive_page(u64::from_le_bytes(*entry)))
        })
    }
}

/// Whether a page is not there, or in this process only.
fn is_exclusive_page(entry: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const EXCLUSIVE: u64 = 1 << 56;
    entry & PRESENT == 0 || entry & EXCLUSIVE != 0
}

/// Cuts runs into pieces that fit into a buffer.
struct Cut<'runs> {
    runs: std::slice::Iter<'runs, FoundRun>,
    /// What is left of a run.
    rest: Option<FoundRun>,
}

impl<'runs> Cut<'runs> {
    fn new(runs: &'runs [FoundRun]) -> Self {
        Self { runs: runs.iter(), rest: None }
    }
}

impl Iterator for Cut<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let mut piece = Piece::default();
        let mut room = CHUNK;
        while room > 0 && piece.runs.len() < RANGES {
            let Some(run) = self.rest.take().or_else(|| self.runs.next().copied()) else { break };
            if !has_bytes(&run) {
                if piece.runs.is_empty() {
                    piece.runs.push(run);
                } else {
                    self.rest = Some(run);
                }
                break;
            }
            let part = length(&run).min(room);
            let middle = run.start + part as u64;
            piece.runs.push(FoundRun { end: middle, ..run });
            self.rest = (middle < run.end).then_some(FoundRun { start: middle, ..run });
            room -= part;
        }
        (!piece.runs.is_empty()).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: usize, end: usize, content: RunContent) -> FoundRun {
        FoundRun { start: (start * PAGE) as u64, end: (end * PAGE) as u64, content }
    }

    #[test]
    fn pieces_fit_and_keep_what_is_not_read_apart() {
        let runs = [
            run(0, 1, RunContent::Anonymous),
            run(2, 4, RunContent::Parent),
            run(4, 6, RunContent::OverFile),
            run(10, 300, RunContent::Anonymous),
        ];
        let pieces: Vec<Vec<FoundRun>> = Cut::new(&runs).map(|piece| piece.runs).collect();
        let expected = [
            vec![runs[0]],
            vec![runs[1]],
            vec![runs[2], run(10, 264, RunContent::Anonymous)],
            vec![run(264, 300, RunContent::Anonymous)],
        ];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn only_pages_of_one_process_are_exclusive() {
        assert!(is_exclusive_page(0));
        assert!(is_exclusive_page(1 << 62));
        assert!(is_exclusive_page(1 << 63 | 1 << 56));
        assert!(!is_exclusive_page(1 << 63));
    }
}
