//! Making nameless files again.

use super::place::Parents;
use super::{node, place};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::all;
use crate::kinds::descriptor::restore::open_again;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vckpt_image_format::record::file::Target;
use vckpt_image_format::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};
use vckpt_image_format::record::nameless_file::{NamelessFile, Sort};
use vckpt_image_format::record::process_map::{ProcessMap, Source};
use vckpt_image_format::{Image, NamelessFileId, record};

/// Bytes that are copied at once.
const PORTION: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Adds a step for each nameless file.
///
/// # Errors
/// [`code::IMAGE_BAD`], which does not happen with an image that was verified.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let files = all::<NamelessFile>(image)?;
    if files.is_empty() {
        return Ok(());
    }
    let memory = all::<MmapMemory>(image)?;
    let written = written(image)?;
    for file in files {
        let mine = memory.iter().filter(|memory| memory.owner == PageOwner::NamelessFile(file.id));
        let runs = mine.flat_map(|memory| memory.runs.iter().copied()).collect();
        let stays_writable = written.contains(&file.id);
        plan.action(Stage::SharedObjects, MakeNamelessFile { file, runs, stays_writable });
    }
    Ok(())
}

/// The files that must stay open for writing: for a mapping, or because the description that made one is in use.
fn written(image: &Image) -> Result<HashSet<NamelessFileId>> {
    let mut written = HashSet::new();
    for map in all::<ProcessMap>(image)? {
        written.extend(map.mappings.iter().filter_map(|mapping| match &mapping.source {
            Source::File { file, .. } if file.writable => file.nameless,
            Source::File { .. } | Source::Anonymous | Source::Segment { .. } | Source::Kernel { .. } => None,
        }));
    }
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
}

impl Action for MakeNamelessFile {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
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
        let (made, directory) = make_anywhere(wanted).map_err(|errno| {
            failed("making a file without a name", errno).about(Subject::path(wanted.display()))
        })?;
        drop(parents);
        if directory != wanted {
            restoring.degraded.push(format!(
                "{}: nothing can be made in its directory; the file was made in {}",
                self.file.path,
                directory.display()
            ));
        }
        let file = File::from(made);
        file.set_len(self.file.size).map_err(|error| failed("setting the size of a file", error))?;
        for run in &self.runs {
            fill(restoring.image, run, &file, self.file.size)?;
        }
        self.dress(&file).map_err(|errno| failed("setting owner, mode and time of a file", errno))?;
        if self.stays_writable {
            return Ok(file.into());
        }
        // A program can't be run from a file that anybody has open for writing.
        open_again(file.as_fd(), libc::O_RDONLY.cast_unsigned())
            .map_err(|errno| failed("opening a file that was made again", errno))
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

/// A file without a name in this directory; if it can't be there (a file system that was made read-only, say), in the
/// one for temporary files. Also tells in which.
fn make_anywhere(wanted: &Path) -> std::result::Result<(OwnedFd, PathBuf), rustix::io::Errno> {
    let temporary = std::env::temp_dir();
    match make_nameless(wanted) {
        Ok(made) => Ok((made, wanted.to_path_buf())),
        Err(errno) => make_nameless(&temporary).map(|made| (made, temporary)).map_err(|_| errno),
    }
}

/// Copies a run of pages from the image; what reaches over the end of the file is left out.
fn fill(image: &Image, run: &PageRun, file: &File, size: u64) -> Result<()> {
    let PageSource::Stored { section, page } = run.source else { return Ok(()) };
    let missing = || Error::new(code::IMAGE_BAD, "a page section that a file needs is missing");
    let section = image.page_section(section).ok_or_else(missing)?;
    let source =
        page.checked_mul(PAGE).and_then(|offset| section.offset.checked_add(offset)).ok_or_else(missing)?;
    let length = run.count.saturating_mul(PAGE).min(size.saturating_sub(run.address));
    let mut buffer = vec![0; usize::try_from(length.min(PORTION)).unwrap_or_default()];
    let mut done = 0;
    while done < length {
        let count = usize::try_from((length - done).min(PORTION)).unwrap_or_default();
        let bytes = &mut buffer[..count];
        image
            .file()
            .read_exact_at(bytes, source + done)
            .map_err(|error| Error::system(code::IMAGE_BAD, "reading pages from the image", error))?;
        file.write_all_at(bytes, run.address + done)
            .map_err(|error| failed("writing the content of a file without a name", error))?;
        done += count as u64;
    }
    Ok(())
}

fn failed(what: &str, errno: impl Into<std::io::Error>) -> Box<Error> {
    Error::system(code::DESCRIPTOR_RESTORE, what, errno)
}
