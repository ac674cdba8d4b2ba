//! Witnesses: processes of ours with the user and group of a thread, into which it may look if no rules forbid it.

use crate::error::{Error, Result, code};
use crate::proc::{id_map, read, status};
use crate::stub::batch::{Batch, CallIndex};
use crate::stub::puppet::{Place, Puppet};
use nix::errno::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use vckpt_image_format::TaskId;

/// A witness has nothing mapped but its own program, and only its socket.
const SOCKET: i32 = 3;
/// Address space for a puppet.
const ROOM: u64 = 1 << 24;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u64 = 0x2008_0522;

/// Who a thread is when it looks into others: user and group for files, as its user namespace has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    user: u32,
    group: u32,
    /// A thread of the namespace, and its inode; none for our own.
    namespace: Option<(i32, u64)>,
}

impl Identity {
    /// That of a thread; none if its namespace does not know its IDs.
    ///
    /// # Errors
    /// As [`read::file`].
    pub(super) fn of(tid: i32) -> Result<Option<Self>> {
        let status = status::parse(&read::file(tid, "status")?)?;
        let ([.., user], [.., group]) = (status.user, status.group);
        let number = |pid: i32| {
            let namespace = std::fs::metadata(read::path(pid, "ns/user"));
            namespace.map(|file| file.ino()).map_err(|error| read::failure(pid, "ns/user", &error))
        };
        let inode = number(tid)?;
        if inode == number(std::process::id().cast_signed())? {
            return Ok(Some(Self { user, group, namespace: None }));
        }
        let inside = |file: &str, id: u32| -> Result<Option<u32>> {
            Ok(id_map::inside(&id_map::parse(&read::file(tid, file)?)?, id))
        };
        let ids = inside("uid_map", user)?.zip(inside("gid_map", group)?);
        // One witness does for all threads of a namespace.
        Ok(ids.map(|(user, group)| Self { user, group, namespace: Some((tid, inode)) }))
    }

    /// What tells identities apart.
    fn key(self) -> (u32, u32, Option<u64>) {
        (self.user, self.group, self.namespace.map(|(_, inode)| inode))
    }
}

const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;

/// The witnesses that were needed so far.
#[derive(Debug, Default)]
pub(super) struct Witnesses(HashMap<(u32, u32, Option<u64>), Witness>);

impl Witnesses {
    /// One with this identity.
    ///
    /// # Errors
    /// If it can't be made.
    pub(super) fn get(&mut self, identity: Identity) -> Result<&mut Witness> {
        match self.0.entry(identity.key()) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => Ok(entry.insert(Witness::new(identity)?)),
        }
    }
}

/// A process of ours that can be looked into.
#[derive(Debug)]
pub(super) struct Witness {
    puppet: Puppet,
    /// Its folder in `/proc`.
    folder: File,
    /// Whether another one with its identity may look into it, once that was tried.
    seen: Option<bool>,
}

impl Witness {
    fn new(identity: Identity) -> Result<Self> {
        let area = crate::freeze::free_range(std::iter::empty(), ROOM)
            .ok_or_else(|| Error::new(code::INTERNAL, "no addresses for a puppet"))?;
        let mut puppet = Puppet::start(TaskId(0), 0, &[], Place { area, socket: SOCKET })?;
        become_like(&mut puppet, identity)?;
        let folder = File::open(read::path(puppet.tid, ""));
        let folder = folder.map_err(|error| read::failure(puppet.tid, "", &error))?;
        Ok(Self { puppet, folder, seen: None })
    }

    /// A question that only those may ask who may look into it.
    pub(super) fn question(&self) -> (Batch, CallIndex) {
        let mut batch = Batch::new();
        let folder = batch.descriptor(self.folder.as_raw_fd());
        let name = batch.data(b"exe\0");
        // Whoever may measure performance may open its maps and the like too.
        let room = batch.room(8);
        let arguments = [folder, name.into(), room.into(), room.length.into()];
        let call = batch.call("looking into a witness", libc::SYS_readlinkat, arguments);
        (batch, call)
    }

    /// Whether a process with its identity may look into it.
    ///
    /// # Errors
    /// If none can be made.
    pub(super) fn would_be_seen(&mut self, identity: Identity) -> Result<bool> {
        if let Some(seen) = self.seen {
            return Ok(seen);
        }
        let mut other = Self::new(identity)?;
        let (batch, call) = self.question();
        let seen = other.puppet.run(&batch)?.get(call).is_ok();
        self.seen = Some(seen);
        Ok(seen)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // One that does not end by itself is killed.
        let _ = self.puppet.end(0);
    }
}

/// Gives a puppet user, group and user namespace of an identity, takes all capabilities from it, and lets it be looked
/// into.
fn become_like(puppet: &mut Puppet, identity: Identity) -> Result<()> {
    let mut batch = Batch::new();
    // Whoever has its user may look into it: it has nothing of ours that he could use. Who may not give up groups has
    // those of that user anyway.
    let none = batch.words(&[0]);
    batch.call("giving groups up", libc::SYS_setgroups, [0.into(), none.into()]);
    batch.call(
        "leaving the session keyring",
        libc::SYS_keyctl,
        [KEYCTL_JOIN_SESSION_KEYRING.into(), 0.into()],
    );
    let root = batch.data(b"/\0");
    batch.call("leaving the current directory", libc::SYS_chdir, [root.into()]);
    let namespace = match identity.namespace {
        None => None,
        Some((tid, _)) => Some(
            File::open(read::path(tid, "ns/user")).map_err(|error| read::failure(tid, "ns/user", &error))?,
        ),
    };
    if let Some(namespace) = &namespace {
        let there = batch.descriptor(namespace.as_raw_fd());
        batch.must("entering a user namespace", libc::SYS_setns, [there, libc::CLONE_NEWUSER.into()]);
    }
    let Identity { user, group, .. } = identity;
    batch.must("becoming a group", libc::SYS_setresgid, [group.into(), group.into(), group.into()]);
    batch.must("becoming a user", libc::SYS_setresuid, [user.into(), user.into(), user.into()]);
    let header = batch.words(&[CAPABILITY_VERSION]);
    let none = batch.words(&[0, 0, 0]);
    batch.must("giving capabilities up", libc::SYS_capset, [header.into(), none.into()]);
    let arguments = [libc::PR_SET_DUMPABLE.into(), 1.into(), 0.into(), 0.into(), 0.into()];
    batch.must("being seen", libc::SYS_prctl, arguments);
    puppet.run(&batch).map(drop).map_err(|error| {
        let why = error.why.clone().unwrap_or_else(|| Errno::EPERM.desc().to_owned());
        Error::new(code::PRIVILEGE, "finding out whether Landlock restricts it")
            .because(format!("{}: {why}", error.what))
    })
}
