//! Where files without a name are made: directories that are there for a moment, and names that nobody has.

use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// Directories that were missing, made until this is dropped. What can't be made is not: what is to be made in it then
/// fails, and says why.
#[derive(Debug)]
pub struct Parents(Vec<PathBuf>);

impl Parents {
    /// Makes a directory, and those above it.
    #[must_use]
    pub fn make(directory: &Path) -> Self {
        let missing: Vec<&Path> = directory
            .ancestors()
            .take_while(|directory| matches!(rustix::fs::lstat(*directory), Err(Errno::NOENT)))
            .collect();
        let mut made = Vec::new();
        for directory in missing.into_iter().rev() {
            if rustix::fs::mkdir(directory, rustix::fs::Mode::RWXU).is_err() {
                break;
            }
            made.push(directory.to_path_buf());
        }
        Self(made)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            // One in which somebody has made something meanwhile stays.
            let _ = rustix::fs::rmdir(directory);
        }
    }
}

/// Makes something under a name that is free in a directory: the wanted one, else one of ours. Gives what was made, and
/// its path.
///
/// # Errors
/// What `make` says; it must refuse a name that is taken.
pub fn new_name<T>(
    directory: &Path,
    wanted: Option<&Path>,
    mut make: impl FnMut(&Path) -> Result<T, Errno>,
) -> Result<(T, PathBuf), Errno> {
    let ours = (0..100).map(|attempt| directory.join(format!(".vckpt-{}-{attempt}", std::process::id())));
    for name in wanted.map(Path::to_path_buf).into_iter().chain(ours) {
        match make(&name) {
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
            Ok(made) => return Ok((made, name)),
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directories_are_there_for_a_moment() {
        let folder = std::env::temp_dir().join(format!("vckpt-place-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let inner = folder.join("a/b/c");
        let parents = Parents::make(&inner);
        assert!(inner.is_dir());
        let make = |name: &Path| rustix::fs::mkdir(name, rustix::fs::Mode::RWXU);
        let ((), name) = new_name(&folder, Some(&folder.join("a")), make).unwrap();
        assert!(name != folder.join("a") && name.is_dir());
        std::fs::remove_dir(name).unwrap();
        drop(parents);
        std::fs::remove_dir(&folder).unwrap();
    }
}
