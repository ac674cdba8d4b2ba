//! Who is at the other end of a unix socket (`SO_PEERCRED`, `SO_PEERGROUPS`), or has sent a message
//! (`SCM_CREDENTIALS`).

use crate::frozen::Frozen;
use crate::kinds::descriptor::opened::Opened;
use crate::kinds::descriptor::socket::SOCKET;
use crate::proc::{read, status};
use crate::restoring::Restoring;
use crate::sys::socket;
use std::os::fd::BorrowedFd;
use vckpt_image_format::record::socket_credentials::SocketCredentials;

const SO_PEERCRED: u32 = libc::SO_PEERCRED.cast_unsigned();
const SO_PEERGROUPS: u32 = libc::SO_PEERGROUPS.cast_unsigned();
/// Room for as many supplementary groups as a process can have.
const ALL_GROUPS: usize = 65536 * 4;

/// Process, user and group as this program sees them, for the image.
#[must_use]
pub fn of(frozen: &Frozen, [process, user, group]: [u32; 3]) -> SocketCredentials {
    let task = frozen.virtual_id(process.cast_signed());
    SocketCredentials { task, process: task.map_or(process, |task| task.0), user, group, groups: None }
}

/// Who is at the other end. None if nobody ever was.
#[must_use]
pub fn peer(frozen: &Frozen, socket: BorrowedFd<'_>) -> Option<SocketCredentials> {
    let found = words(&socket::option(socket, SOCKET, SO_PEERCRED).ok()?);
    let found: [u32; 3] = found.try_into().ok()?;
    if found[0] == 0 {
        return None;
    }
    let groups = socket::option_of_length(socket, SOCKET, SO_PEERGROUPS, ALL_GROUPS).ok();
    Some(SocketCredentials { groups: groups.as_deref().map(words), ..of(frozen, found) })
}

/// Those of the process that has a socket: mostly it is the one that has connected it.
pub(super) fn holder(frozen: &Frozen, opened: &Opened) -> Option<SocketCredentials> {
    let process = frozen.processes.get(opened.holders[0].process)?;
    let status = status::parse(&read::file(process.view, "status").ok()?).ok()?;
    Some(SocketCredentials {
        task: Some(process.id),
        process: process.id.0,
        user: status.user[1],
        group: status.group[1],
        groups: Some(status.groups),
    })
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes).collect()
}

/// What it means that somebody is not here who is at the other end of a socket: another process stands there. Nothing
/// is said of those outside of the tree, since the dump has told of them.
pub(super) fn missing(restoring: &Restoring<'_>, who: &SocketCredentials) -> Option<String> {
    let task = who.task.filter(|task| !restoring.puppets.contains_key(task))?;
    Some(format!(
        "process {task} was at the other end of a unix socket and has ended: the socket tells of process {}",
        restoring.root()
    ))
}

/// What it means that somebody else was at the other end of a socket than who restores, and only root can be anybody.
pub(super) fn other_user(who: &SocketCredentials) -> Option<String> {
    let own = nix::unistd::geteuid().as_raw();
    let is_other = own != 0 && (who.user, who.group) != (own, nix::unistd::getegid().as_raw());
    let SocketCredentials { user, group, .. } = who;
    is_other.then(|| {
        format!("user {user} of group {group} was at the other end of a unix socket: it tells of user {own}")
    })
}
