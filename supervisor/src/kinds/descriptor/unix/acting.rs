//! Calls for which the kernel notes who makes them: they are made in the puppet of that process, with its user and
//! groups.

use super::credentials::{missing, other_user};
use super::make::failed;
use crate::error::{Error, Result, code};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, Outcome};
use crate::sys::process::{pidfd_getfd, pidfd_open};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::socket_credentials::SocketCredentials;

/// Where a socket is to be connected with: an abstract address, or a path from a directory.
#[derive(Debug)]
pub(super) struct Way {
    /// The directory from which the path leads.
    pub(super) directory: Option<OwnedFd>,
    /// The address, as a `struct sockaddr`.
    pub(super) address: Vec<u8>,
}

/// Lets a socket listen.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`].
pub(super) fn listen(
    restoring: &mut Restoring<'_>,
    who: Option<&SocketCredentials>,
    socket: BorrowedFd<'_>,
    backlog: u32,
) -> Result<()> {
    let call = |batch: &mut Batch| {
        let socket = batch.descriptor(socket.as_raw_fd());
        batch.must("listening at a unix socket", libc::SYS_listen, [socket, backlog.into()]);
        close(batch, &[socket]);
    };
    make_as(restoring, who, call).map(drop)
}

/// Connects a socket.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`].
pub(super) fn connect(
    restoring: &mut Restoring<'_>,
    who: Option<&SocketCredentials>,
    socket: BorrowedFd<'_>,
    way: &Way,
) -> Result<()> {
    let call = |batch: &mut Batch| {
        let socket = batch.descriptor(socket.as_raw_fd());
        let from = way.directory.as_ref().map(|directory| {
            let before = working_directory(batch);
            let directory = batch.descriptor(directory.as_raw_fd());
            batch.must("changing to the directory of a socket", libc::SYS_fchdir, [directory]);
            (before, directory)
        });
        let address = batch.data(&way.address);
        let arguments = [socket, address.into(), way.address.len().into()];
        batch.must("connecting a unix socket", libc::SYS_connect, arguments);
        if let Some((before, directory)) = from {
            batch.must("changing back", libc::SYS_fchdir, [before]);
            close(batch, &[before, directory]);
        }
        close(batch, &[socket]);
    };
    make_as(restoring, who, call).map(drop)
}

/// Gives a socket an address that is a path: of a root directory if it is absolute, else of a current directory.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`].
pub(super) fn bind_in(
    restoring: &mut Restoring<'_>,
    socket: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    address: &[u8],
    is_absolute: bool,
) -> Result<()> {
    let call = |batch: &mut Batch| {
        let before = working_directory(batch);
        let path = batch.data(b"/\0");
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let arguments = [libc::AT_FDCWD.into(), path.into(), flags.into()];
        let root = batch.must("opening the root directory", libc::SYS_openat, arguments).into();
        let [socket, directory] = [socket, directory].map(|file| batch.descriptor(file.as_raw_fd()));
        let here = batch.data(b".\0");
        batch.must("changing to a directory", libc::SYS_fchdir, [directory]);
        if is_absolute {
            batch.must("changing the root directory", libc::SYS_chroot, [here.into()]);
        }
        let name = batch.data(address);
        let arguments = [socket, name.into(), address.len().into()];
        batch.must("giving a unix socket its address", libc::SYS_bind, arguments);
        if is_absolute {
            batch.must("changing back", libc::SYS_fchdir, [root]);
            batch.must("changing the root directory back", libc::SYS_chroot, [here.into()]);
        }
        batch.must("changing back", libc::SYS_fchdir, [before]);
        close(batch, &[socket, directory, root, before]);
    };
    make_as(restoring, None, call).map(drop)
}

/// Makes two sockets that are connected with one another.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`].
pub(super) fn pair(
    restoring: &mut Restoring<'_>,
    who: Option<&SocketCredentials>,
    socket_type: i32,
) -> Result<(OwnedFd, OwnedFd)> {
    let call = |batch: &mut Batch| {
        let room = batch.room(8);
        let socket_type = socket_type | libc::SOCK_CLOEXEC;
        let arguments = [libc::AF_UNIX.into(), socket_type.into(), 0_u64.into(), room.into()];
        batch.must("making a pair of unix sockets", libc::SYS_socketpair, arguments);
        room
    };
    let (room, outcome, task) = make_as(restoring, who, call)?;
    let numbers = [0, 1].map(|index| outcome.half_word(room, index));
    let pidfd = pidfd_open(restoring.system_id(task)?).map_err(|errno| failed("fetching a socket", errno))?;
    let [one, other] = numbers.map(|number| pidfd_getfd(pidfd.as_fd(), number.cast_signed()));
    let mut batch = Batch::new();
    close(&mut batch, &numbers.map(Argument::from));
    restoring.run(task, &batch)?;
    let fetched = |end: std::result::Result<_, _>| end.map_err(|errno| failed("fetching a socket", errno));
    Ok((fetched(one)?, fetched(other)?))
}

/// Lets the puppet of a process make calls with its user and groups. If that process is not here, another one makes
/// them, which [`missing`] tells.
fn make_as<T>(
    restoring: &mut Restoring<'_>,
    who: Option<&SocketCredentials>,
    calls: impl FnOnce(&mut Batch) -> T,
) -> Result<(T, Outcome, TaskId)> {
    if let Some(who) = who {
        for line in [missing(restoring, who), other_user(who)].into_iter().flatten() {
            if !restoring.degraded.contains(&line) {
                restoring.degraded.push(line);
            }
        }
    }
    let task = task(restoring, who);
    let mut batch = Batch::new();
    let disguise = who.and_then(Disguise::needed);
    if let Some(disguise) = &disguise {
        disguise.put_on(&mut batch);
    }
    let made = calls(&mut batch);
    if let Some(disguise) = &disguise {
        disguise.take_off(&mut batch);
    }
    let outcome = restoring.run(task, &batch).map_err(|error| {
        let what = error.what.clone();
        Error::new(code::DESCRIPTOR_RESTORE, what).because(error)
    })?;
    Ok((made, outcome, task))
}

/// Whose puppet stands for somebody: the root's for those that are not here.
pub(super) fn task(restoring: &Restoring<'_>, who: Option<&SocketCredentials>) -> TaskId {
    let task = who.and_then(|who| who.task).filter(|task| restoring.puppets.contains_key(task));
    task.unwrap_or(restoring.root())
}

/// Adds calls that close descriptors of the puppet.
pub(super) fn close(batch: &mut Batch, descriptors: &[Argument]) {
    for &descriptor in descriptors {
        batch.must("closing a descriptor", libc::SYS_close, [descriptor]);
    }
}

fn working_directory(batch: &mut Batch) -> Argument {
    let here = batch.data(b".\0");
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let arguments = [libc::AT_FDCWD.into(), here.into(), flags.into()];
    batch.must("opening the current directory", libc::SYS_openat, arguments).into()
}

/// Another user and other groups, for a moment.
#[derive(Debug)]
struct Disguise {
    wanted: (u32, u32, Vec<u32>),
    own: (u32, u32, Vec<u32>),
}

impl Disguise {
    /// None if they are those of this program, or it may not change them.
    fn needed(who: &SocketCredentials) -> Option<Self> {
        let own = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
            nix::unistd::getgroups().ok()?.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        );
        let wanted = (who.user, who.group, who.groups.clone().unwrap_or_default());
        (own.0 == 0 && own != wanted).then_some(Self { wanted, own })
    }

    /// Paths are still looked up with the rights of root.
    fn put_on(&self, batch: &mut Batch) {
        Self::change(batch, &self.wanted);
        batch.must("keeping the rights to files", libc::SYS_setfsuid, [0_u64.into()]);
    }

    fn take_off(&self, batch: &mut Batch) {
        let user = u64::from(self.own.0);
        let keep = Argument::from(-1);
        batch.must("changing the user back", libc::SYS_setresuid, [keep, user.into(), keep]);
        Self::change(batch, &self.own);
    }

    fn change(batch: &mut Batch, (user, group, groups): &(u32, u32, Vec<u32>)) {
        let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        let list = batch.data(&bytes);
        let keep = Argument::from(-1);
        batch.must("changing groups", libc::SYS_setgroups, [groups.len().into(), list.into()]);
        batch.must("changing the group", libc::SYS_setresgid, [keep, (*group).into(), keep]);
        batch.must("changing the user", libc::SYS_setresuid, [keep, (*user).into(), keep]);
    }
}
