//! Looking at unix sockets.

use super::state::{Look, is_path};
use super::{credentials, name, place};
use crate::error::{Error, Problems, Result, code};
use crate::frozen::Frozen;
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::descriptor::socket::{self as any_socket, SOCKET};
use crate::records::Records;
use crate::sys::socket;
use std::os::fd::AsFd;
use vckpt_image_format::record::data_queued::{DataQueued, Queue};
use vckpt_image_format::record::socket_credentials::SocketCredentials;
use vckpt_image_format::record::unix_socket::{SocketType, UnixSocket, UnixState};
use vckpt_image_format::{SocketId, Text};

/// Options of unix sockets.
pub const OPTIONS: &[(u32, i32)] =
    &[(SOCKET, libc::SO_PEEK_OFF), (SOCKET, super::SO_PASSPIDFD), (SOCKET, super::SO_PASSRIGHTS)];

/// Gives a record for each socket, and for what waits in it.
///
/// # Errors
/// All that this kind [refuses](super).
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let look = Look::new(walk.frozen, opened, records.close_external)?;
    let mut problems = Problems::new();
    for opened in opened {
        problems.take(observe_one(walk, &look, opened, records));
    }
    problems.finish()
}

/// A socket has one description, and so the number of that.
pub fn identity(opened: &Opened) -> SocketId {
    SocketId(opened.description.id.0)
}

fn observe_one(walk: &Walk<'_>, look: &Look<'_>, opened: &Opened, records: &mut Records) -> Result<()> {
    let info = look.info(opened.status.st_ino).map_err(|errno| {
        Error::system(code::HOST_FEATURE, "asking the kernel about a unix socket", errno)
            .about(opened.subject.clone())
            .hint("it may belong to another network namespace, or the kernel was built without unix_diag")
    })?;
    let file = opened.file.as_fd();
    let failed = |errno| opened.failed("looking at a unix socket", errno);
    let number = socket::number_option(file, SOCKET, libc::SO_TYPE.cast_unsigned()).map_err(failed)?;
    let socket_type = match number.cast_signed() {
        libc::SOCK_STREAM => SocketType::Stream,
        libc::SOCK_DGRAM => SocketType::Datagram,
        _ => SocketType::SequencedPacket,
    };
    let address = socket::local_address(file).map_err(failed)?;
    let address = name(&address).map(Text::from);
    let state = look.state(opened, socket_type, &info, records)?;
    let socket_file = match &address {
        Some(address) if is_path(address) => place::find(walk, opened, address, &info, records)?,
        _ => None,
    };
    let id = identity(opened);
    let borders = socket_type != SocketType::Stream;
    let messages = records.unix_queues.remove(&opened.description.id).unwrap_or_default();
    if socket_type == SocketType::Datagram && !messages.is_empty() && is_stamped(opened) {
        let line = format!(
            "{}: datagrams that wait get the time of the restore as their time stamp",
            opened.subject
        );
        records.degraded.push(line);
    }
    for record in DataQueued::portions(Queue::Socket(id), borders, messages) {
        records.push(record);
    }
    let peer_credentials = credentials::peer(walk.frozen, file);
    if let Some(peer) = &peer_credentials
        && !matches!(&state, UnixState::Orphaned if info.peer != Some(0))
    {
        records.degraded.extend(stranger(walk.frozen, opened, peer));
    }
    records.push(UnixSocket {
        id,
        description: opened.description.clone(),
        inode: opened.status.st_ino,
        socket_type,
        file: socket_file,
        address,
        state,
        peer_credentials,
        shutdown: info.shutdown,
        options: any_socket::options_without_filter(opened, OPTIONS)?,
    });
    Ok(())
}

/// What it means that somebody who is not in the tree is at the other end, or has made it: only somebody in the tree
/// can be there.
fn stranger(frozen: &Frozen, opened: &Opened, peer: &SocketCredentials) -> Option<String> {
    let SocketCredentials { task: None, process, .. } = *peer else { return None };
    Some(format!(
        "{}: a unix socket tells of process {process} as its peer, which is not in the tree: it will tell of process {}, \
         with the same user",
        opened.subject, frozen.root
    ))
}

/// Whether its datagrams get time stamps.
fn is_stamped(opened: &Opened) -> bool {
    let options = [libc::SO_TIMESTAMP, libc::SO_TIMESTAMPNS, libc::SO_TIMESTAMPING];
    let is_set = |name: i32| {
        socket::number_option(opened.file.as_fd(), SOCKET, name.cast_unsigned()).is_ok_and(|value| value != 0)
    };
    options.into_iter().any(is_set)
}
