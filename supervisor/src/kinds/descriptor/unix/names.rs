//! Giving unix sockets their addresses, with the files that have these names.
//!
//! The address is what `bind(2)` was told; the file may have another path by now, or none. Then the socket is bound
//! within a directory that is there for a moment, as its root directory or current directory, and the file is moved to
//! where it was, or removed, when everybody is connected.

use super::acting::{Way, bind_in};
use super::address;
use super::make::{errno, failed, new_socket};
use super::signed::Target;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::restore::by_descriptor;
use crate::kinds::nameless_file::place::new_name;
use crate::restoring::Restoring;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use vckpt_image_format::Text;
use vckpt_image_format::record::unix_socket::{SocketFile, UnixSocket};

/// A socket that has its address.
#[derive(Debug)]
pub(super) struct Named {
    address: Vec<u8>,
    /// The directory from which its address leads to it, if it is a path; and its file.
    place: Option<(OwnedFd, OwnedFd)>,
    /// Where the file is until everybody is connected.
    nest: Option<Nest>,
}

/// Gives a socket its address. A socket file that nobody listens at any more is one of the application's own.
///
/// # Errors
/// [`code::ADDRESS_TAKEN`], [`code::FILE_DIFFERS`], [`code::DESCRIPTOR_RESTORE`].
pub(super) fn bind(restoring: &mut Restoring<'_>, new: &OwnedFd, socket: &UnixSocket) -> Result<Named> {
    let Some(name) = &socket.address else {
        return Err(Error::new(code::INTERNAL, "a unix socket without an address is to have one"));
    };
    let failed_to_bind = |errno| {
        if errno == Errno::EADDRINUSE {
            return taken(name);
        }
        failed("giving a unix socket its address", errno).about(Subject::path(name))
    };
    let to = address(&name.0);
    if name.0.first() == Some(&0) {
        socket::bind(new.as_fd(), &to).map_err(failed_to_bind)?;
        return Ok(Named { address: to, place: None, nest: None });
    }
    // Where a file was before, one stays, also if the restore fails: nobody listens at it then, as before.
    let was_there = match &socket.file {
        Some(file) => clear(restoring, file, socket)?,
        None => false,
    };
    let file = socket.file.as_ref().filter(|file| file.path == *name);
    let (path, from, way, nest) = if let Some(file) = file {
        socket::bind(new.as_fd(), &to).map_err(failed_to_bind)?;
        let path = file.path.to_path();
        if !was_there {
            restoring.undo.made(&path);
        }
        dress(&file_of(new.as_fd(), &path)?, file)
            .map_err(|error| failed("setting owner and mode of a socket", errno(error)))?;
        let from = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let way = path.file_name().map(|name| Text::from(PathBuf::from(name))).unwrap_or_default();
        (path, from, way, None)
    } else {
        let near = socket.file.as_ref().and_then(|file| file.path.as_path().parent().map(Path::to_path_buf));
        let near = near.unwrap_or_else(std::env::temp_dir);
        let mut nest = Nest::make(&near, name.as_path()).map_err(|errno| {
            failed("making a directory for a socket", errno).about(Subject::path(near.display()))
        })?;
        nest.was_there = was_there;
        let start = folder(&nest.start)?;
        let is_absolute = name.0.first() == Some(&b'/');
        bind_in(restoring, new.as_fd(), start.as_fd(), &to, is_absolute)
            .map_err(|error| error.about(Subject::path(name)))?;
        let way = if is_absolute { Text::from(&name.0[1..]) } else { name.clone() };
        (nest.file.clone(), nest.start.clone(), way, Some(nest))
    };
    let file = file_of(new.as_fd(), &path)?;
    Ok(Named { address: address(&way.0), place: Some((folder(&from)?, file)), nest })
}

impl Named {
    /// How it is reached.
    ///
    /// # Errors
    /// [`code::DESCRIPTOR_RESTORE`].
    pub(super) fn way(&self) -> Result<Way> {
        let directory = self.place.as_ref().map(|(directory, _)| directory.try_clone()).transpose();
        let directory = directory
            .map_err(|error| Error::system(code::DESCRIPTOR_RESTORE, "copying a descriptor", error))?;
        Ok(Way { directory, address: self.address.clone() })
    }

    /// How messages are sent to it, also when its file has no name any more.
    ///
    /// # Errors
    /// [`code::DESCRIPTOR_RESTORE`].
    pub(super) fn target(&self) -> Result<Target> {
        let Some((_, file)) = &self.place else { return Ok(Target::Address(self.address.clone())) };
        let copy = file.try_clone();
        copy.map(Target::File)
            .map_err(|error| Error::system(code::DESCRIPTOR_RESTORE, "copying a descriptor", error))
    }

    /// Brings the file to where it was, or removes it, when everybody is connected.
    ///
    /// # Errors
    /// [`code::DESCRIPTOR_RESTORE`].
    pub(super) fn settle(&mut self, restoring: &mut Restoring<'_>, socket: &UnixSocket) -> Result<()> {
        let (Some(nest), Some(file)) = (self.nest.take(), &socket.file) else { return Ok(()) };
        let made = self.place.as_ref().map(|(_, made)| made);
        let result = made.map_or(Ok(()), |made| dress(made, file));
        let result = result.and_then(|()| rustix::fs::rename(&nest.file, file.path.as_path()));
        result.map_err(|error| {
            failed("moving the file of a socket to its place", errno(error)).about(Subject::path(&file.path))
        })?;
        if !nest.was_there {
            restoring.undo.made(file.path.as_path());
        }
        Ok(())
    }
}

fn folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
        failed("opening the directory of a socket", errno(error)).about(Subject::path(path.display()))
    })
}

/// Makes way for the file of a socket. Gives whether there was one that was not made by this restore.
fn clear(restoring: &Restoring<'_>, file: &SocketFile, socket: &UnixSocket) -> Result<bool> {
    let path = file.path.as_path();
    let Ok(found) = rustix::fs::lstat(path) else { return Ok(false) };
    if found.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(Error::new(code::FILE_DIFFERS, "there is something else where the file of a socket was")
            .about(Subject::path(&file.path)));
    }
    let is_ours = restoring.undo.notes(path);
    let probe = new_socket(socket)?;
    let open = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
    let to = open.map_err(|error| failed("looking at the file of a socket", errno(error)))?;
    // Whoever is there and has no time has the address too.
    rustix::io::ioctl_fionbio(&probe, true)
        .map_err(|error| failed("looking at the file of a socket", errno(error)))?;
    if socket::connect(probe.as_fd(), &Target::File(to).address()) != Err(Errno::ECONNREFUSED) {
        return Err(taken(&file.path));
    }
    rustix::fs::unlink(path).map_err(|error| failed("replacing the file of a socket", errno(error)))?;
    Ok(!is_ours)
}

fn taken(name: &Text) -> Box<Error> {
    Error::new(code::ADDRESS_TAKEN, "somebody else has the address of a unix socket")
        .about(Subject::path(name))
}

/// The file of a socket of ours. Its path may lead elsewhere by now, if others may write to the directory; where the
/// kernel does not tell, this program has no rights that they could use.
fn file_of(new: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    socket::file(new).or_else(|_| {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|error| failed("opening the file of a socket", errno(error)))
    })
}

/// Gives a file of a socket the owner and permissions that it had.
fn dress(made: &OwnedFd, file: &SocketFile) -> std::result::Result<(), rustix::io::Errno> {
    let has = rustix::fs::fstat(made)?;
    if (has.st_uid, has.st_gid) != (file.user, file.group) {
        let (user, group) = (Uid::from_raw(file.user), Gid::from_raw(file.group));
        rustix::fs::chownat(made, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
    }
    rustix::fs::chmod(by_descriptor(made.as_fd()), Mode::from_raw_mode(file.mode & 0o777))
}

/// Directories that are there for a moment, so that a name leads to a file in them. Dropping this removes them, and the
/// file if it is still there.
#[derive(Debug)]
struct Nest {
    /// In the order in which they were made.
    directories: Vec<PathBuf>,
    /// The root or current directory for which the name leads to the file.
    start: PathBuf,
    file: PathBuf,
    /// Whether there was a file where this one goes.
    was_there: bool,
}

impl Nest {
    /// Makes them near a directory: on the same file system.
    fn make(near: &Path, name: &Path) -> std::result::Result<Self, Errno> {
        let make = |path: &Path| rustix::fs::mkdir(path, Mode::from_raw_mode(0o755));
        let ((), base) = new_name(near, None, make).map_err(errno)?;
        let mut nest =
            Self { directories: vec![base.clone()], start: base, file: PathBuf::new(), was_there: false };
        // Room above the current directory, for names that begin there.
        if !name.is_absolute() {
            for _ in name.components().filter(|component| *component == Component::ParentDir) {
                nest.start = nest.enter(nest.start.clone(), Path::new("0"))?;
            }
        }
        let mut at = nest.start.clone();
        for component in name.parent().unwrap_or(Path::new("")).components() {
            match component {
                Component::Normal(name) => at = nest.enter(at, Path::new(name))?,
                // There is nothing above a root directory.
                Component::ParentDir if at != nest.start || !name.is_absolute() => {
                    at.pop();
                }
                Component::ParentDir | Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        nest.file = at.join(name.file_name().unwrap_or_default());
        Ok(nest)
    }

    fn enter(&mut self, at: PathBuf, name: &Path) -> std::result::Result<PathBuf, Errno> {
        let path = at.join(name);
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.directories.push(path.clone()),
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(errno(error)),
        }
        Ok(path)
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        // What can't be removed stays: there is nobody to be told.
        let _ = rustix::fs::unlink(&self.file);
        for directory in self.directories.iter().rev() {
            let _ = rustix::fs::rmdir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_files_in_nests() {
        let folder = std::env::temp_dir().join(format!("vckpt-nest-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        for name in ["/a/b/sock", "sock", "./a/sock", "../../x/sock", "/../sock"] {
            let nest = Nest::make(&folder, Path::new(name)).unwrap();
            let relative = name.strip_prefix('/').unwrap_or(name);
            let relative = if name.starts_with('/') { relative.trim_start_matches("../") } else { relative };
            std::fs::write(nest.start.join(relative), "").unwrap();
            assert!(nest.file.starts_with(&folder) && nest.file.exists(), "{name}: {nest:?}");
        }
        std::fs::remove_dir(&folder).unwrap();
    }
}
