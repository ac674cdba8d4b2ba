//! What a restore made in the file system, and takes away again if it fails.

use crate::sys::message_queue;
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// Paths and message queues that were made. Dropping this removes them, unless they were [released](Undo::release).
#[derive(Debug, Default)]
pub struct Undo {
    paths: Vec<Made>,
    queues: Vec<CString>,
}

/// A path, and what was made there: nothing else is ever removed.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Undo {
    /// Notes what was just made at a path, where nothing was before.
    pub fn made(&mut self, path: &Path) {
        if let Ok(status) = rustix::fs::lstat(path) {
            self.paths.push(Made { path: path.to_owned(), device: status.st_dev, inode: status.st_ino });
        }
    }

    /// Whether it notes something that is still at this path.
    #[must_use]
    pub fn notes(&self, path: &Path) -> bool {
        self.paths.iter().any(|made| made.path == path && made.is_there())
    }

    /// Leaves everything where it is: the restore has succeeded.
    pub fn release(&mut self) {
        self.paths.clear();
        self.queues.clear();
    }

    /// Notes a POSIX message queue that was just made under a name that nobody had.
    pub fn made_queue(&mut self, name: CString) {
        self.queues.push(name);
    }
}

impl Made {
    fn is_there(&self) -> bool {
        rustix::fs::lstat(&self.path)
            .is_ok_and(|status| (status.st_dev, status.st_ino) == (self.device, self.inode))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for name in self.queues.drain(..) {
            let _ = message_queue::unlink(&name);
        }
        for made in self.paths.drain(..).rev() {
            if made.is_there() {
                // Nobody is there to be told; what can't be removed stays.
                let _ = rustix::fs::unlink(&made.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_is_removed() {
        let folder = std::env::temp_dir().join(format!("vckpt-undo-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let [kept, gone, replaced] = ["kept", "gone", "replaced"].map(|name| folder.join(name));
        for path in [&kept, &gone, &replaced] {
            std::fs::write(path, "").unwrap();
        }
        let mut undo = Undo::default();
        undo.made(&kept);
        undo.release();
        undo.made(&gone);
        undo.made(&replaced);
        std::fs::write(folder.join("other"), "").unwrap();
        std::fs::rename(folder.join("other"), &replaced).unwrap();
        assert!(undo.notes(&gone) && !undo.notes(&replaced));
        drop(undo);
        assert!(kept.exists() && replaced.exists() && !gone.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
