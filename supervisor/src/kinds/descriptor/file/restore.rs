//! Opening files again.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use rustix::fs::{SeekFrom, Stat};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use vckpt_image_format::Image;
use vckpt_image_format::record::file::{File, Target};

/// Adds a step for each file.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for file in all::<File>(image)? {
        plan.action(Stage::Descriptors, OpenFile(file));
    }
    Ok(())
}

/// Opens a file and moves to its position.
#[derive(Debug)]
struct OpenFile(File);

impl Action for OpenFile {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let opened = self.open(restoring).map_err(|error| error.about(Subject::path(&self.0.path)))?;
        if self.0.position != 0 {
            let moved = rustix::fs::seek(&opened, SeekFrom::Start(self.0.position));
            let matters =
                matches!(self.0.target, Target::Regular { .. } | Target::Nameless(_) | Target::Segment(_));
            if let (Err(errno), true) = (moved, matters) {
                return Err(self.failed("moving to the position in a file", errno));
            }
        }
        restore::keep(restoring, &self.0.description, opened)
            .map_err(|error| error.about(Subject::path(&self.0.path)))
    }
}

impl OpenFile {
    fn open(&self, restoring: &mut Restoring<'_>) -> Result<OwnedFd> {
        let flags = self.0.description.flags;
        let made = match self.0.target {
            Target::Nameless(id) => restoring.nameless_files.get(&id),
            Target::Segment(id) => restoring.segments.get(&id),
            Target::Regular { .. }
            | Target::Directory
            | Target::CharacterDevice { .. }
            | Target::PathOnly { .. } => return self.open_by_path(restoring),
            Target::OfEndedTask => return self.open_of_ended_task(restoring),
        };
        let Some(made) = made else {
            return Err(Error::new(code::INTERNAL, "a file whose content was not made"));
        };
        // A symbolic link can't be opened but by its name, and a description of it has no state.
        if flags.cast_signed() & (libc::O_PATH | libc::O_NOFOLLOW) == libc::O_PATH | libc::O_NOFOLLOW {
            return rustix::io::fcntl_dupfd_cloexec(made, 0)
                .map_err(|errno| self.failed("opening a file that was made again", errno));
        }
        // The description with which a file without a name was made shows that, so it is the one that made this file.
        let made_it = libc::O_TMPFILE | libc::O_RDWR;
        let both = [flags, crate::sys::file::status_flags(made.as_fd()).unwrap_or_default()];
        if both.iter().all(|flags| flags.cast_signed() & (libc::O_TMPFILE | libc::O_ACCMODE) == made_it) {
            return rustix::io::fcntl_dupfd_cloexec(made, 0)
                .map_err(|errno| self.failed("opening a file that was made again", errno));
        }
        match restore::open_again(made.as_fd(), flags) {
            // Secret memory can't be opened again: its one description is what all have.
            Err(rustix::io::Errno::NXIO) => rustix::io::fcntl_dupfd_cloexec(made, 0),
            opened => opened,
        }
        .map_err(|errno| self.failed("opening a file that was made again", errno))
    }

    /// Opens the same file about a process that ends then.
    fn open_of_ended_task(&self, restoring: &mut Restoring<'_>) -> Result<OwnedFd> {
        restoring.with_mortal(|pid| {
            let path = of_process(self.0.path.as_path(), pid);
            restore::open(&path, self.0.description.flags)
                .map_err(|errno| self.failed("opening a file about a process that has ended", errno))
        })
    }

    fn open_by_path(&self, restoring: &Restoring<'_>) -> Result<OwnedFd> {
        let path = restoring.path(self.0.path.as_path());
        let flags = self.0.description.flags;
        // What stands there must be known before it is opened: opening a FIFO or a device does something.
        let found =
            rustix::fs::lstat(&path).map_err(|errno| self.differs("it can't be found").because(errno))?;
        self.check(&found)?;
        let opened = restore::open(&path, flags).map_err(|errno| self.failed("opening a file", errno))?;
        let found = rustix::fs::fstat(&opened).map_err(|errno| self.failed("looking at a file", errno))?;
        self.check(&found)?;
        Ok(opened)
    }

    /// Whether what is found can be what is wanted.
    fn check(&self, found: &Stat) -> Result<()> {
        let file_type = found.st_mode & libc::S_IFMT;
        let device = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
        let size = found.st_size.cast_unsigned();
        match self.0.target {
            Target::Regular { .. } if file_type != libc::S_IFREG => {
                Err(self.differs("it is no regular file"))
            }
            Target::Regular { size: wanted, .. } if size < wanted && !self.is_of_the_kernel() => Err(self
                .differs("it is shorter than it was")
                .because(format!("{size} bytes instead of {wanted}"))),
            Target::Directory if file_type != libc::S_IFDIR => Err(self.differs("it is no directory")),
            Target::CharacterDevice { major, minor }
                if file_type != libc::S_IFCHR || device != (major, minor) =>
            {
                Err(self.differs("it is another device"))
            }
            Target::PathOnly { file_type: wanted } if file_type != wanted => {
                Err(self.differs("it is of another type"))
            }
            Target::Regular { .. }
            | Target::Directory
            | Target::CharacterDevice { .. }
            | Target::PathOnly { .. }
            | Target::Nameless(_)
            | Target::Segment(_)
            | Target::OfEndedTask => Ok(()),
        }
    }

    /// Files of the kernel have no size that means anything.
    fn is_of_the_kernel(&self) -> bool {
        [&b"/proc/"[..], b"/sys/"].iter().any(|prefix| self.0.path.0.starts_with(prefix))
    }

    fn differs(&self, what: &str) -> Box<Error> {
        Error::new(code::FILE_DIFFERS, format!("a file that was open is not as it was: {what}"))
    }

    fn failed(&self, what: &str, errno: rustix::io::Errno) -> Box<Error> {
        Error::system(code::DESCRIPTOR_RESTORE, what, errno).about(Subject::path(&self.0.path))
    }
}

/// A path of `/proc` with another ID instead of those in it.
fn of_process(path: &Path, pid: i32) -> PathBuf {
    let mut names: Vec<OsString> = path.iter().map(OsString::from).collect();
    let is_number = |name: &OsString| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    // "/", "proc", the process, and after "task" the thread.
    let thread = names.get(3).is_some_and(|name| name == "task").then_some(4);
    for place in [Some(2), thread].into_iter().flatten() {
        if let Some(name) = names.get_mut(place).filter(|name| is_number(name)) {
            *name = OsString::from(pid.to_string());
        }
    }
    names.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_in_a_path_are_those_of_the_other_process() {
        let of = |path: &str| of_process(Path::new(path), 99);
        assert_eq!(of("/proc/12/stat"), Path::new("/proc/99/stat"));
        assert_eq!(of("/proc/12"), Path::new("/proc/99"));
        assert_eq!(of("/proc/12/task/13/comm"), Path::new("/proc/99/task/99/comm"));
        assert_eq!(of("/proc/12/fd/13"), Path::new("/proc/99/fd/13"));
    }
}
