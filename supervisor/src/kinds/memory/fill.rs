//! Filling memory and files from the page sections of an image.

use crate::error::{Error, Result, Subject, code};
use std::fs::File;
use std::os::unix::fs::FileExt;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};

const PAGE: u64 = 4096;
const CHUNK: usize = 1024 * 1024;

/// The runs of an owner, in order.
///
/// # Errors
/// [`code::IMAGE_BAD`].
pub fn runs(image: &Image, owner: PageOwner) -> Result<Vec<PageRun>> {
    let records = crate::image::all::<MmapMemory>(image)?;
    Ok(records.into_iter().filter(|record| record.owner == owner).flat_map(|record| record.runs).collect())
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

/// Writes the content of a file of this size: its stored pages; the rest stays a hole.
///
/// # Errors
/// [`code::MEMORY_ACCESS`] if the file can't be written, [`code::IMAGE_OPEN`] if the image can't be read.
pub fn file(image: &Image, owner: PageOwner, file: &File, size: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    for run in runs(image, owner)? {
        let PageSource::Stored { section, page } = run.source else { continue };
        let from = offset(image, section, page)?;
        let mut done = 0;
        let length = run.count * PAGE;
        while done < length {
            let count = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK);
            let bytes = buffer.get_mut(..count).unwrap_or_default();
            image
                .file()
                .read_exact_at(bytes, from + done)
                .map_err(|error| Error::system(code::IMAGE_OPEN, "reading the image", error))?;
            let at = run.address + done;
            // The last page may go beyond the end of the file.
            let inside = usize::try_from(size.saturating_sub(at)).unwrap_or(CHUNK).min(count);
            file.write_all_at(bytes.get(..inside).unwrap_or_default(), at).map_err(|error| {
                Error::system(code::MEMORY_ACCESS, "writing the content of a file", error)
                    .about(Subject::default())
            })?;
            done += count as u64;
        }
    }
    Ok(())
}
