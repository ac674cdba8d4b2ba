//! Looking for pipes of this boot that somebody has open: this program, or a process that it may look at.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Where each of these pipes, given by its inode number, can be opened; one that is not there is gone, or out of sight.
/// A descriptor of this program comes before those of others.
#[must_use]
pub fn find(mut wanted: HashSet<u64>) -> HashMap<u64, PathBuf> {
    let mut found = HashMap::new();
    look(Path::new("/proc/self/fd"), &mut wanted, &mut found);
    let own = std::process::id();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if wanted.is_empty() {
            break;
        }
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if pid.is_some_and(|pid| pid != own) {
            look(&entry.path().join("fd"), &mut wanted, &mut found);
        }
    }
    found
}

/// Looks through the descriptors of a process.
fn look(folder: &Path, wanted: &mut HashSet<u64>, found: &mut HashMap<u64, PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Some(inode) = pipe(&entry.path())
            && wanted.remove(&inode)
        {
            found.insert(inode, entry.path());
        }
    }
}

/// The inode number of the pipe that a descriptor leads to. Only pipes have such links.
#[must_use]
pub fn pipe(descriptor: &Path) -> Option<u64> {
    let link = std::fs::read_link(descriptor).ok()?;
    link.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_pipe_of_ours_is_found_and_others_are_not() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let inode = rustix::fs::fstat(&reader).unwrap().st_ino;
        let found = find(HashSet::from([inode, u64::MAX]));
        assert_eq!(found.keys().collect::<Vec<_>>(), [&inode]);
        assert_eq!(pipe(Path::new(&format!("/proc/self/fd/{}", reader.as_raw_fd()))), Some(inode));
        assert_eq!(pipe(Path::new("/proc/self/exe")), None);
    }
}
