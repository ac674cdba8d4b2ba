//! Images that say something else than they did: as another host would have written them.

use std::fs::File;
use std::path::Path;

use vckpt_image_format::record::Record;
use vckpt_image_format::writer::ImageWriter;
use vckpt_image_format::{Image, PAGE_SIZE};

use super::Outcome;

/// Writes an image again, with all records of a kind changed.
pub(crate) fn rewrite<R: Record>(from: &Path, to: &Path, mut change: impl FnMut(R) -> R) -> Outcome {
    let image = Image::open(File::open(from)?)?;
    let mut writer = ImageWriter::new(Vec::new())?;
    let mut changed = image.all::<R>()?.into_iter();
    for frame in image.frames() {
        match (frame.kind == Some(R::KIND)).then(|| changed.next()).flatten() {
            Some(record) => writer.record(&change(record))?,
            None => writer.copy(&image, frame.number)?,
        }
    }
    for section in image.page_sections() {
        writer.begin_page_section()?;
        let mut bytes = vec![0; usize::try_from(section.pages)? * PAGE_SIZE];
        std::os::unix::fs::FileExt::read_exact_at(image.file(), &mut bytes, section.offset)?;
        writer.pages(&bytes)?;
    }
    std::fs::write(to, writer.finish()?)?;
    Ok(())
}
