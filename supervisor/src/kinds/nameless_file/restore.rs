//! Making nameless files again.

use super::place::Parents;
use super::{node, place};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::all;
use crate::kinds::descriptor::restore::open_again;
use crate::kinds::memory::fill;
use crate::kinds::memory::mapped_file::is_there;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use vckpt_image_format::record::file::Target;
use vckpt_image_format::record::mmap_memory::{PageOwner, PageRun};
use vckpt_image_format::record::nameless_file::{NamelessFile, Sort};
use vckpt_image_format::record::process_map::{MappedFile, ProcessMap, Source};
use vckpt_image_format::{Image, NamelessFileId, record};

/// Adds a step for each nameless file.
///
/// # Errors
/// [`code::IMAGE_BAD`], which does not happen with an image that was verified.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let files = all::<NamelessFile>(image)?;
    if files.is_empty() {
        return Ok(());
    }
    let mut all_runs = fill::runs(image)?;
    let maps = all::<ProcessMap>(image)?;
    let written = written(image, &maps)?;
    let mut embedded = embedded(&maps);
    for file in files {
        let runs = all_runs.remove(&PageOwner::NamelessFile(file.id)).unwrap_or_default();
        let stays_writable = written.contains(&file.id);
        let embedded = embedded.remove(&file.id);
        plan.action(Stage::SharedObjects, MakeNamelessFile { file, runs, stays_writable, embedded });
    }
    Ok(())
}

/// All files that are mapped, and the programs.
fn mapped(maps: &[ProcessMap]) -> impl Iterator<Item = &MappedFile> {
    maps.iter().flat_map(|map| {
        let mapped = map.mappings.iter().filter_map(|mapping| match &mapping.source {
            Source::File { file, .. } => Some(file),
            Source::Anonymous
            | Source::Segment { .. }
            | Source::Kernel { .. }
            | Source::Ring(_)
            | Source::IoUring { .. } => None,
        });
        mapped.chain(map.layout.iter().map(|layout| &layout.executable))
    })
}

/// The files that are only needed where they are not.
fn embedded(maps: &[ProcessMap]) -> HashMap<NamelessFileId, MappedFile> {
    let embedded = mapped(maps).filter(|file| file.embedded);
    embedded.filter_map(|file| Some((file.nameless?, file.clone()))).collect()
}

/// The files that must stay open for writing: for a mapping, or because the description that made one is in use.
fn written(image: &Image, maps: &[ProcessMap]) -> Result<HashSet<NamelessFileId>> {
    let mut written: HashSet<NamelessFileId> =
        mapped(maps).filter(|file| file.writable).filter_map(|file| file.nameless).collect();
    for file in all::<record::file::File>(image)? {
        if let Target::Nameless(id) = file.target
            && file.description.flags.cast_signed() & libc::O_TMPFILE == libc::O_TMPFILE
        {
            written.insert(id);
        }
    }
    Ok(written)
}

/// Makes a file without a name, and fills it.
#[derive(Debug)]
struct MakeNamelessFile {
    file: NamelessFile,
    runs: Vec<PageRun>,
    stays_writable: bool,
    /// What it is like where it is there: then it is not made.
    embedded: Option<MappedFile>,
}

impl Action for MakeNamelessFile {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        if let Some(file) = &self.embedded {
            if is_there(&restoring.path(file.path.as_path()), file) {
                return Ok(());
            }
            let path = &self.file.path;
            restoring
                .degraded
                .push(format!("{path}: it is not there as it was; what it had comes from the image"));
        }
        let made = self.make(restoring).map_err(|error| error.about(Subject::path(&self.file.path)))?;
        restoring.nameless_files.insert(self.file.id, made);
        Ok(())
    }
}

impl MakeNamelessFile {
    fn make(&self, restoring: &mut Restoring<'_>) -> Result<OwnedFd> {
        let path = restoring.path(self.file.path.as_path());
        if self.file.sort != Sort::Regular {
            return node::make(&path, &self.file);
        }
        let wanted = path.parent().unwrap_or(Path::new("/"));
        let parents = Parents::make(wanted);
        let made = self.make_somewhere(wanted, restoring).map_err(|errno| {
            failed("making a file without a name", errno).about(Subject::path(wanted.display()))
        })?;
        drop(parents);
        let file = File::from(made);
        file.set_len(self.file.size).map_err(|error| failed("setting the size of a file", error))?;
        fill::file(restoring.image, &self.runs, &file, self.file.size)?;
        self.dress(&file).map_err(|errno| failed("setting owner, mode and time of a file", errno))?;
        if self.stays_writable {
            return Ok(file.into());
        }
        // A program can't be run from a file that anybody has open for writing.
        open_again(file.as_fd(), libc::O_RDONLY.cast_unsigned())
            .map_err(|errno| failed("opening a file that was made again", errno))
    }

    /// Where it was, or in the folder for temporary files if that may not be written.
    fn make_somewhere(
        &self,
        directory: &Path,
        restoring: &mut Restoring<'_>,
    ) -> std::result::Result<OwnedFd, rustix::io::Errno> {
        use rustix::io::Errno;
        match make_nameless(directory) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOENT | Errno::NOTDIR) => {
                let other = restoring.path(&std::env::temp_dir());
                let made = make_nameless(&other)?;
                restoring.degraded.push(format!(
                    "{}: its directory may not be written; the file was made in {}",
                    self.file.path,
                    other.display()
                ));
                Ok(made)
            }
            made => made,
        }
    }

    /// Owner, permissions, time: after the content, whose writing changes them.
    fn dress(&self, file: &File) -> std::result::Result<(), rustix::io::Errno> {
        let has = rustix::fs::fstat(file)?;
        let NamelessFile { user, group, mode, modified, .. } = self.file;
        if (has.st_uid, has.st_gid) != (user, group) {
            rustix::fs::fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        let time = Timespec {
            tv_sec: modified.div_euclid(1_000_000_000),
            tv_nsec: modified.rem_euclid(1_000_000_000),
        };
        rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
    }
}

/// A file without a name in this directory.
fn make_nameless(directory: &Path) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {}
        other => return other,
    }
    let (file, name) = place::new_name(directory, None, |name| {
        rustix::fs::open(name, flags | OFlags::CREATE | OFlags::EXCL, mode)
    })?;
    rustix::fs::unlinkat(CWD, &name, AtFlags::empty())?;
    Ok(file)
}

fn failed(what: &str, errno: impl Into<std::io::Error>) -> Box<Error> {
    Error::system(code::DESCRIPTOR_RESTORE, what, errno)
}
