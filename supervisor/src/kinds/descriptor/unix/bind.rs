//! Giving unix sockets their addresses, with the files that have these names.

use super::address;
use super::restore::{errno, failed, new_socket};
use crate::error::{Error, Result, Subject, code};
use crate::sys::socket;
use crate::undo::Undo;
use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid};
use std::os::fd::{AsFd, BorrowedFd};
use vckpt_image_format::Text;
use vckpt_image_format::record::unix_socket::UnixSocket;

/// Gives a socket its address. A socket file that nobody listens at any more is one of the application's own.
///
/// # Errors
/// [`code::ADDRESS_TAKEN`], [`code::FILE_DIFFERS`], [`code::DESCRIPTOR_RESTORE`].
pub(super) fn bind(new: BorrowedFd<'_>, name: &Text, socket: &UnixSocket, undo: &mut Undo) -> Result<()> {
    let to = address(&name.0);
    let is_path = name.0.first() == Some(&b'/');
    // Where a file was before, one stays, also if the restore fails: nobody listens at it then, as before.
    let is_ours = is_path && undo.notes(name.as_path());
    let was_there = is_path && clear(name, socket, &to)? && !is_ours;
    socket::bind(new, &to).map_err(|errno| {
        if errno == Errno::EADDRINUSE {
            return taken(name);
        }
        failed("giving a unix socket its address", errno).about(Subject::path(name))
    })?;
    if !is_path {
        return Ok(());
    }
    if !was_there {
        undo.made(name.as_path());
    }
    dress(name, socket).map_err(|error| failed("setting owner and mode of a socket", errno(error)))
}

/// Makes way for the file of a socket. Gives whether there was one.
fn clear(name: &Text, socket: &UnixSocket, to: &[u8]) -> Result<bool> {
    let Ok(found) = rustix::fs::lstat(name.as_path()) else { return Ok(false) };
    if found.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(Error::new(code::FILE_DIFFERS, "there is something else where the file of a socket was")
            .about(Subject::path(name)));
    }
    let probe = new_socket(socket)?;
    if socket::connect(probe.as_fd(), to) != Err(Errno::ECONNREFUSED) {
        return Err(taken(name));
    }
    rustix::fs::unlink(name.as_path())
        .map_err(|error| failed("replacing the file of a socket", errno(error)))?;
    Ok(true)
}

fn taken(name: &Text) -> Box<Error> {
    Error::new(code::ADDRESS_TAKEN, "somebody else has the address of a unix socket")
        .about(Subject::path(name))
}

/// The file of a socket as it was: gone, or with its owner and permissions.
fn dress(name: &Text, socket: &UnixSocket) -> std::result::Result<(), rustix::io::Errno> {
    let Some((mode, user, group)) = socket.file else { return rustix::fs::unlink(name.as_path()) };
    let has = rustix::fs::lstat(name.as_path())?;
    if (has.st_uid, has.st_gid) != (user, group) {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        rustix::fs::chownat(CWD, name.as_path(), Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    rustix::fs::chmod(name.as_path(), Mode::from_raw_mode(mode))
}
