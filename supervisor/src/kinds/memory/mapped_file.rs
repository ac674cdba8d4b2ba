//! Files behind mappings: found when they are there, and opened again.

use crate::error::{Error, Result, Subject, code};
use crate::restoring::Restoring;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use vckpt_image_format::record::process_map::MappedFile;

/// Opens a file behind a mapping and checks that it is the one of the image.
pub(super) fn open(restoring: &Restoring<'_>, file: &MappedFile) -> Result<File> {
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
