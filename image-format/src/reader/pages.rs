//! The bytes of pages: every chunk is compared with its checksum, by two threads when there is much to read.

use super::read_at;
use super::structure::Section;
use crate::error::FormatError;
use crate::layout::CHUNK_SIZE;
use crc32c::crc32c;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// From this many chunks on, a second thread is worth its start.
const PARALLEL: usize = 8;

/// A chunk of page data and its checksum.
struct Chunk {
    offset: u64,
    length: usize,
    crc: u32,
}

/// Verifies the pages of all sections; `checksums` are those of their chunks in the same order.
pub(super) fn verify(file: &File, sections: &[Section], checksums: &[u32]) -> Result<(), FormatError> {
    let chunk = CHUNK_SIZE as u64;
    let places = sections.iter().flat_map(|section| {
        (0..section.length.div_ceil(chunk)).map(|number| {
            let start = number * chunk;
            (section.offset + start, (section.length - start).min(chunk))
        })
    });
    let chunks: Vec<Chunk> = places
        .zip(checksums)
        .map(|((offset, length), &crc)| Chunk {
            offset,
            length: usize::try_from(length).unwrap_or(CHUNK_SIZE),
            crc,
        })
        .collect();
    let work = Work { file, chunks: &chunks, next: AtomicUsize::new(0), stop: AtomicBool::new(false) };
    if chunks.len() < PARALLEL {
        return work.run();
    }
    std::thread::scope(|scope| {
        // Without a second thread this one does all.
        let other = std::thread::Builder::new().name("verify".to_owned()).spawn_scoped(scope, || work.run());
        let mine = work.run();
        let others = match other.map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(FormatError::Io(std::io::Error::other("a thread that verified pages ended early")))
            }
            Err(_) => Ok(()),
        };
        mine.and(others)
    })
}

/// What the threads share.
struct Work<'a> {
    file: &'a File,
    chunks: &'a [Chunk],
    next: AtomicUsize,
    stop: AtomicBool,
}

impl Work<'_> {
    /// Verifies chunks until there are none left or one is wrong.
    fn run(&self) -> Result<(), FormatError> {
        let mut buffer = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let Some(chunk) = self.chunks.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            buffer.resize(buffer.len().max(chunk.length), 0);
            self.chunk(chunk, &mut buffer[..chunk.length])
                .inspect_err(|_| self.stop.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn chunk(&self, chunk: &Chunk, buffer: &mut [u8]) -> Result<(), FormatError> {
        read_at(self.file, buffer, chunk.offset)?;
        if crc32c(buffer) != chunk.crc {
            let what = format_args!("the checksum of {} bytes of page data is wrong", chunk.length);
            return Err(FormatError::damaged(chunk.offset, what));
        }
        Ok(())
    }
}
