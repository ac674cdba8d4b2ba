//! Filling memory and files from the page sections of an image.

use crate::error::{Error, Result, code};
use crate::sys::shared_memory::Window;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};

const PAGE: u64 = 4096;
const CHUNK: usize = 1024 * 1024;

/// The runs of every owner, in order.
///
/// # Errors
/// [`code::IMAGE_BAD`].
pub fn runs(image: &Image) -> Result<HashMap<PageOwner, Vec<PageRun>>> {
    let mut runs: HashMap<PageOwner, Vec<PageRun>> = HashMap::new();
    for record in crate::image::all::<MmapMemory>(image)? {
        runs.entry(record.owner).or_default().extend(record.runs);
    }
    Ok(runs)
}

/// Offset in the image of a stored run.
///
/// # Errors
/// [`code::IMAGE_BAD`] if there is no such section, which validation excludes.
pub fn offset(image: &Image, section: u32, page: u64) -> Result<u64> {
    let found = image.page_section(section);
    let found = found
        .ok_or_else(|| Error::new(code::IMAGE_BAD, "a run of pages names a section that is not there"))?;
    Ok(found.offset + page * PAGE)
}

/// Reads the stored pages into a window.
///
/// # Errors
/// [`code::IMAGE_OPEN`] if the image can't be read.
pub fn window(image: &Image, runs: &[PageRun], window: &Window) -> Result<()> {
    for run in runs {
        let PageSource::Stored { section, page } = run.source else { continue };
        let from = offset(image, section, page)?;
        let length = run.count.saturating_mul(PAGE);
        let mut done = 0;
        while done < length {
            let read = window.read(image.file().as_fd(), from + done, run.address + done, length - done);
            let read = read.map_err(|errno| Error::system(code::IMAGE_OPEN, "reading the image", errno))?;
            if read == 0 {
                return Err(Error::new(code::IMAGE_OPEN, "the image ended while it was read"));
            }
            done += read as u64;
        }
    }
    Ok(())
}

/// Writes the content of a file of this size: its stored pages; the rest stays a hole.
///
/// # Errors
/// [`code::MEMORY_ACCESS`] if the file can't be written, [`code::IMAGE_OPEN`] if the image can't be read.
pub fn file(image: &Image, runs: &[PageRun], file: &File, size: u64) -> Result<()> {
    let mut buffer = Vec::new();
    for run in runs {
        let PageSource::Stored { section, page } = run.source else { continue };
        let from = offset(image, section, page)?;
        // The last page may go beyond the end of the file.
        let length = run.count.saturating_mul(PAGE).min(size.saturating_sub(run.address));
        let mut done = 0;
        while done < length {
            let count = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK);
            buffer.resize(count, 0);
            image
                .file()
                .read_exact_at(&mut buffer, from + done)
                .map_err(|error| Error::system(code::IMAGE_OPEN, "reading the image", error))?;
            file.write_all_at(&buffer, run.address + done).map_err(|error| {
                Error::system(code::MEMORY_ACCESS, "writing the content of a file", error)
            })?;
            done += count as u64;
        }
    }
    Ok(())
}
