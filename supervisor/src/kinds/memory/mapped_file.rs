//! Files behind mappings: found by the name that they have, or kept in the image; and opened again.

use crate::error::{Error, Problems, Result, Subject, code};
use crate::frozen::FrozenProcess;
use crate::kinds::nameless_file;
use crate::kinds::nameless_file::observe::{observe_content, observe_nameless};
use crate::proc::read;
use crate::records::{Inode, Records};
use crate::restoring::Restoring;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::process_map::{MappedFile, ProcessMap, Source};
use vckpt_image_format::{NamelessFileId, Text};

/// The file, if the name still leads to it.
///
/// # Errors
/// If its content is to be kept, and can't be.
pub(super) fn named(
    process: &FrozenProcess,
    path: &Text,
    inode: Inode,
    writable: bool,
    records: &mut Records,
) -> Result<Option<MappedFile>> {
    let known = (path.clone(), inode, writable);
    if let Some(file) = records.mapped_files.get(&known) {
        return Ok(Some(file.clone()));
    }
    // The kernel gives paths as we see them, whatever root the process has; in another mount namespace, from the root
    // of that.
    let Ok(relative) = path.as_path().strip_prefix("/") else { return Ok(None) };
    let places = [path.to_path(), read::path(process.view, "root").join(relative)];
    let found = places.iter().find_map(|place| {
        let metadata = std::fs::metadata(place).ok().filter(|found| (found.dev(), found.ino()) == inode)?;
        Some((place, metadata))
    });
    let Some((place, metadata)) = found else { return Ok(None) };
    let mut file = described(path.clone(), &metadata, None, writable);
    // A file that is written to by all is no part of the program.
    if records.embed_files && !writable && metadata.is_file() {
        let opened = File::open(place).map_err(|error| {
            Error::system(code::NOT_PERMITTED, "opening a mapped file to embed it", error)
                .about(process.subject().with_path(path))
        })?;
        file.nameless = Some(observe_content(records, opened.as_fd(), path)?.id);
        file.embedded = true;
    }
    records.mapped_files.insert(known, file.clone());
    Ok(Some(file))
}

fn described(
    path: Text,
    metadata: &Metadata,
    nameless: Option<NamelessFileId>,
    writable: bool,
) -> MappedFile {
    let modified = modified(metadata);
    MappedFile { path, nameless, embedded: false, size: metadata.size(), modified, writable }
}

/// The modification time in nanoseconds since 1970.
fn modified(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
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
    if let Some(other) = nameless_file::other_name(&path, (metadata.dev(), metadata.ino())) {
        return Ok(described(other, &metadata, None, writable));
    }
    let id = observe_nameless(records, file.as_fd(), &path).map_err(about)?;
    Ok(described(path, &metadata, Some(id), writable))
}

/// Looks whether the files behind the mappings of an image are there and are the same.
///
/// # Errors
/// Each file that is not.
pub fn check(image: &Image) -> Result<()> {
    let mut problems = Problems::new();
    let mut seen = HashSet::new();
    for map in crate::image::all::<ProcessMap>(image)? {
        let mapped = map.mappings.into_iter().filter_map(|mapping| match mapping.source {
            Source::File { file, .. } => Some(file),
            Source::Anonymous
            | Source::Segment { .. }
            | Source::Kernel { .. }
            | Source::Ring(_)
            | Source::IoUring { .. } => None,
        });
        for file in map.layout.into_iter().map(|layout| layout.executable).chain(mapped) {
            if file.nameless.is_none() && seen.insert(file.clone()) {
                let metadata = std::fs::metadata(file.path.as_path());
                let found =
                    metadata.map_err(|error| missing("looking for a file that the image maps", error));
                problems.take(
                    found.and_then(|found| same(&file, &found)).map_err(|error| named_error(error, &file)),
                );
            }
        }
    }
    problems.finish()
}

/// Whether a file is where it was, and is the same.
#[must_use]
pub fn is_there(path: &Path, file: &MappedFile) -> bool {
    std::fs::metadata(path).is_ok_and(|found| same(file, &found).is_ok())
}

/// Opens a file behind a mapping and checks that it is the one of the image.
pub(super) fn open(restoring: &Restoring<'_>, file: &MappedFile) -> Result<File> {
    let opened = File::options().read(true).write(file.writable).open(restoring.path(file.path.as_path()));
    opened
        .and_then(|opened| opened.metadata().map(|metadata| (opened, metadata)))
        .map_err(|error| missing("opening a file that the image maps", error))
        .and_then(|(opened, metadata)| same(file, &metadata).map(|()| opened))
        .map_err(|error| named_error(error, file))
}

fn missing(what: &str, error: std::io::Error) -> Box<Error> {
    Error::system(code::MAPPED_FILE_DIFFERS, what, error)
}

/// Whether what was found is the file of the image.
fn same(file: &MappedFile, found: &Metadata) -> Result<()> {
    // What others write to a shared file is meant to be seen; a private mapping relies on the file's pages.
    if !found.is_file() || file.writable || (found.size(), modified(found)) == (file.size, file.modified) {
        return Ok(());
    }
    let error = Error::new(code::MAPPED_FILE_DIFFERS, "a file that the image maps is not the same any more");
    Err(if found.size() == file.size {
        error.because("it was modified or replaced since")
    } else {
        error.because(format!("{} bytes instead of {}", found.size(), file.size))
    })
}

/// The error with the name of the file, and of the package that it belongs to.
fn named_error(error: Box<Error>, file: &MappedFile) -> Box<Error> {
    let error = error.about(Subject::path(&file.path));
    match package(Path::new(PACKAGES), file.path.as_path()) {
        Some(name) => error.hint(format!("install the version of the package {name} that was there")),
        None => error,
    }
}

/// Where dpkg keeps which files belong to which package.
const PACKAGES: &str = "/var/lib/dpkg/info";

/// The package that a file belongs to, if dpkg knows.
fn package(folder: &Path, path: &Path) -> Option<String> {
    let text = path.to_str()?;
    // Folders of the root that moved to /usr are known by their old names too.
    let names = [text, text.strip_prefix("/usr").unwrap_or(text)];
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let list = entry.file_name().into_string().unwrap_or_default();
        let Some(package) = list.strip_suffix(".list") else { continue };
        let files = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if files.lines().any(|line| names.contains(&line)) {
            return Some(package.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_package_of_a_file_is_found_by_its_old_name_too() {
        let folder = std::env::temp_dir().join(format!("vckpt-packages-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("libone:amd64.list"), "/.\n/lib/one.so\n").unwrap();
        std::fs::write(folder.join("two.list"), "/usr/bin/two\n").unwrap();
        let found = ["/usr/lib/one.so", "/lib/one.so", "/usr/bin/two", "/usr/bin/three"]
            .map(|path| package(&folder, Path::new(path)));
        std::fs::remove_dir_all(&folder).unwrap();
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(found, [name("libone:amd64"), name("libone:amd64"), name("two"), None]);
    }
}
