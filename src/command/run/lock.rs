//! One image, one run: a lock beside the image, which also proves early that an image can be made there.

use crate::failure::{Failure, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use vckpt_supervisor::error::Class;

/// A lock that is held as long as this program lives, and removed in an orderly end.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of an image.
    pub(super) fn take(image: &Path) -> Result<Self> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::plain(Class::Transfer, format!("{}: {why}", image.display()))
        };
        let mut path = image.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| failed(&format!("no image can be made there: {error}")))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _file: file }),
            Err(TryLockError::WouldBlock) => Err(failed(&"another vckpt run has this image")),
            Err(TryLockError::Error(error)) => Err(failed(&format!("the image can't be locked: {error}"))),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
