//! Finding the file of a unix socket: its address is what `bind(2)` was told, which may be a relative path, and the file
//! may have been renamed, moved with its directory, or removed since.
//!
//! With `CAP_NET_ADMIN` the kernel tells (`SIOCUNIXFILE`, kernel 4.14). Else the file is looked for where the address
//! leads to from the directories of its processes, and under other names next to that.

use crate::error::Result;
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::descriptor::restore::by_descriptor;
use crate::proc::read;
use crate::records::Records;
use crate::sys::sock_diag::UnixSocketInfo;
use crate::sys::socket;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use vckpt_image_format::Text;
use vckpt_image_format::record::unix_socket::SocketFile;

/// Most names that are looked at in a directory.
const MOST_NAMES: usize = 20_000;

/// The file of a socket whose address is a path; none if it is gone.
///
/// # Errors
/// If the kernel does not tell.
pub(super) fn find(
    walk: &Walk<'_>,
    opened: &Opened,
    address: &Text,
    info: &UnixSocketInfo,
    records: &mut Records,
) -> Result<Option<SocketFile>> {
    let is_it = |path: &Path| look(path, info.file_inode);
    match socket::file(opened.file.as_fd()) {
        Ok(file) => {
            let path = std::fs::read_link(by_descriptor(file.as_fd()))
                .map_err(|error| opened.failed("looking at the file of a socket", error))?;
            return Ok(is_it(&path));
        }
        // It has none, since it was made by a socket that was bound elsewhere.
        Err(Errno::ENOENT) => return Ok(None),
        Err(_) => {}
    }
    let current = walk.frozen.processes.iter().filter_map(|process| read::link(process.view, "cwd").ok());
    let places: BTreeSet<PathBuf> = if address.0.first() == Some(&b'/') {
        BTreeSet::from([address.to_path()])
    } else {
        current.map(|directory| PathBuf::from(directory).join(address.as_path())).collect()
    };
    if let Some(found) = places.iter().find_map(|path| is_it(path)) {
        return Ok(Some(found));
    }
    let near =
        places.iter().filter_map(|path| path.parent()).filter_map(|folder| std::fs::read_dir(folder).ok());
    let near = near.flatten().flatten().take(MOST_NAMES).find_map(|entry| is_it(&entry.path()));
    if near.is_none() {
        records.degraded.push(format!(
            "{}: the file of a unix socket is gone, or in another directory, which only root can tell",
            opened.subject
        ));
    }
    Ok(near)
}

/// What is at a path, if it is the file of a socket with this inode number. The kernel tells only a half of it.
fn look(path: &Path, inode: u32) -> Option<SocketFile> {
    let found = rustix::fs::lstat(path).ok()?;
    let is_it = found.st_mode & libc::S_IFMT == libc::S_IFSOCK
        && (inode == 0 || found.st_ino & u64::from(u32::MAX) == u64::from(inode));
    let path = Text::from(path);
    is_it.then_some(SocketFile {
        path,
        mode: found.st_mode & 0o7777,
        user: found.st_uid,
        group: found.st_gid,
    })
}
