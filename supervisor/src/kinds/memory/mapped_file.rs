//! Files behind mappings: found by the name that they have, or kept in the image; and opened again.

use crate::error::{Error, Result, Subject, code};
use crate::frozen::FrozenProcess;
use crate::kinds::nameless_file::observe::observe_nameless;
use crate::proc::read;
use crate::records::{Inode, Records};
use crate::restoring::Restoring;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use vckpt_image_format::record::process_map::MappedFile;
use vckpt_image_format::{NamelessFileId, Text};

/// The file, if the name still leads to it.
pub(super) fn named(
    process: &FrozenProcess,
    path: &Text,
    inode: Inode,
    writable: bool,
) -> Option<MappedFile> {
    // The kernel gives paths as we see them, whatever root the process has; in another mount namespace, from the root
    // of that.
    let relative = path.as_path().strip_prefix("/").ok()?;
    let places = [path.to_path(), read::path(process.pid, "root").join(relative)];
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
pub(super) fn nameless(
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
