//! The file of an image that is being made: it has its name only when it is complete.

use crate::error::{Error, Result, Subject, code};
use crate::sys::file::begin_writing;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file without a name, or with a temporary one where the file system knows no files without a name.
#[derive(Debug)]
pub(crate) struct ImageFile {
    path: PathBuf,
    file: File,
    temporary: Option<PathBuf>,
    force: bool,
}

impl ImageFile {
    /// Makes the file, readable by its owner only; also gives what takes its bytes.
    ///
    /// # Errors
    /// [`code::IMAGE_EXISTS`] if the name is taken, [`code::IMAGE_WRITE`] with the kernel's reason.
    pub(crate) fn create(path: PathBuf, force: bool) -> Result<(Self, ImageSink)> {
        match path.symlink_metadata() {
            Ok(_) if !force => return Err(exists(&path)),
            // A device or a directory would be replaced like a file.
            Ok(there) if !there.is_file() && !there.is_symlink() => {
                return Err(Error::new(code::IMAGE_EXISTS, "what is there is no regular file, and stays")
                    .about(Subject::path(path.display()))
                    .hint("give another name, or - for standard output"));
            }
            Ok(_) | Err(_) => {}
        }
        let folder = folder_of(&path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let nameless = options.clone().custom_flags(libc::O_TMPFILE).open(&folder);
        let (file, temporary) = match nameless {
            Ok(file) => (file, None),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)) =>
            {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let temporary = folder.join(format!(".{name}.{}.partial", std::process::id()));
                let file =
                    options.create_new(true).open(&temporary).map_err(|error| failure(&path, error))?;
                (file, Some(temporary))
            }
            Err(error) => return Err(failure(&path, error)),
        };
        let sink = file.try_clone().map_err(|error| failure(&path, error))?;
        let sink = ImageSink { file: sink, written: 0, begun: 0 };
        Ok((Self { path, file, temporary, force }, sink))
    }

    /// The name that it will have.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, when its bytes are safe.
    ///
    /// # Errors
    /// [`code::IMAGE_WRITE`], [`code::IMAGE_EXISTS`].
    pub(crate) fn commit(mut self) -> Result<()> {
        self.file.sync_data().map_err(|error| failure(&self.path, error))?;
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None if !self.force => {
                self.link(&self.path)?;
                return self.sync_folder();
            }
            None => {
                // A file without a name can't replace another one: it gets a name for a moment.
                let temporary = self.path.with_extension(format!("{}.partial", std::process::id()));
                self.link(&temporary)?;
                temporary
            }
        };
        let result = if self.force {
            fs::rename(&temporary, &self.path)
        } else {
            fs::hard_link(&temporary, &self.path)
        };
        if !self.force || result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result.map_err(|error| failure(&self.path, error))?;
        self.sync_folder()
    }

    /// Makes the name safe, too: a file whose name is lost is lost.
    fn sync_folder(&self) -> Result<()> {
        File::open(folder_of(&self.path))
            .and_then(|folder| folder.sync_all())
            .map_err(|error| failure(&self.path, error))
    }

    fn link(&self, to: &Path) -> Result<()> {
        let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(AT_FDCWD, from.as_str(), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(|errno| failure(to, errno.into()))
    }
}

/// Takes the bytes of an image, and has the disk write them while more of them come: at the end there is then little
/// to wait for.
#[derive(Debug)]
pub(crate) struct ImageSink {
    file: File,
    written: u64,
    /// As much is on its way to the disk.
    begun: u64,
}

/// Bytes that are sent on their way at a time.
const STRIDE: u64 = 8 << 20;

impl Write for ImageSink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        if self.written - self.begun >= STRIDE {
            let (start, length) = (self.begun.cast_signed(), (self.written - self.begun).cast_signed());
            // Whether it could be written is known when it is made safe.
            let _ = begin_writing(self.file.as_fd(), start, length);
            self.begun = self.written;
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn exists(path: &Path) -> Box<Error> {
    Error::new(code::IMAGE_EXISTS, "there is a file of this name already")
        .about(Subject::path(path.display()))
}

fn failure(path: &Path, error: std::io::Error) -> Box<Error> {
    if error.kind() == ErrorKind::AlreadyExists {
        return exists(path);
    }
    let code = if error.kind() == ErrorKind::NotFound { code::IMAGE_MISSING } else { code::IMAGE_WRITE };
    Error::system(code, "writing the image", error).about(Subject::path(path.display()))
}
