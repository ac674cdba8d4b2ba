//! Making unix sockets again, all of an image at once, since they need one another: with their addresses, listening,
//! connected. What waits in them and their options come later (`fill`).

use super::acting;
use super::address;
use super::helpers::{Helpers, copy};
use super::names::{Named, bind};
use crate::error::{Error, Result, Subject, code};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::sock_diag::SocketDiagnosis;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, SocketFlags};
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::SocketId;
use vckpt_image_format::record::Record;
use vckpt_image_format::record::socket_credentials::SocketCredentials;
use vckpt_image_format::record::unix_socket::{SocketType, UnixSocket, UnixState};

/// A socket that was made.
#[derive(Debug)]
pub struct MadeSocket {
    pub(super) socket: OwnedFd,
    /// The other end of one whose peer is gone, until it has got what that one has sent.
    pub(super) peer: Option<OwnedFd>,
    /// Its address, if it has one of its own.
    pub(super) named: Option<Named>,
}

/// Makes all unix sockets.
#[derive(Debug)]
pub(super) struct MakeUnixSockets {
    pub(super) sockets: Vec<UnixSocket>,
}

impl Action for MakeUnixSockets {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        // Those whose files are elsewhere by now come first: others may have taken their names.
        let mut alone: Vec<&UnixSocket> = self.sockets.iter().filter(|socket| is_alone(socket)).collect();
        alone.sort_by_key(|socket| {
            socket.file.as_ref().map(|file| Some(&file.path)) == Some(socket.address.as_ref())
        });
        for socket in alone {
            let made = make_alone(restoring, socket).map_err(|error| about(error, socket))?;
            restoring.unix_sockets.insert(socket.id, made);
        }
        let mut helpers = Helpers::default();
        for (first, second) in self.pairs() {
            let pair = self.pair(restoring, &mut helpers, first, second);
            let (one, other) = pair.map_err(|error| about(error, first))?;
            restoring.unix_sockets.insert(first.id, one);
            restoring.unix_sockets.insert(second.id, other);
        }
        for socket in self.sockets.iter().filter(|socket| socket.state == UnixState::Orphaned) {
            let orphan =
                self.orphan(restoring, &mut helpers, socket).map_err(|error| about(error, socket))?;
            restoring.unix_sockets.insert(socket.id, orphan);
        }
        for (socket, listener, client) in self.unaccepted() {
            wait_at(restoring, socket, listener, client).map_err(|error| about(error, socket))?;
        }
        for socket in &self.sockets {
            let made = restoring.unix_sockets.remove(&socket.id);
            let mut made = match made {
                Some(made) => made,
                // Its peer has it not as its own.
                None if socket.socket_type == SocketType::Datagram => end(new_socket(socket)?, None),
                None => {
                    let what = "a unix socket has a peer that has another";
                    return Err(about(Error::new(code::IMAGE_BAD, what), socket));
                }
            };
            if let Some(named) = &mut made.named {
                named.settle(restoring, socket).map_err(|error| about(error, socket))?;
            }
            restoring.unix_sockets.insert(socket.id, made);
        }
        helpers.settle(restoring)
    }
}

pub(super) fn about(error: Box<Error>, socket: &UnixSocket) -> Box<Error> {
    error.about(Subject::path(socket.name()))
}

pub(super) fn failed(what: &str, errno: Errno) -> Box<Error> {
    Error::system(code::DESCRIPTOR_RESTORE, what, errno)
}

pub(super) fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// Whether it is made by itself: everything but connected streams and pairs of datagram sockets without addresses.
pub(super) fn is_alone(socket: &UnixSocket) -> bool {
    match socket.state {
        UnixState::Unconnected
        | UnixState::Listening { .. }
        | UnixState::Unaccepted { .. }
        | UnixState::ConnectedOutside { .. } => true,
        UnixState::Orphaned => false,
        UnixState::Connected { .. } => socket.socket_type == SocketType::Datagram && socket.address.is_some(),
    }
}

fn socket_type(socket: &UnixSocket) -> rustix::net::SocketType {
    match socket.socket_type {
        SocketType::Stream => rustix::net::SocketType::STREAM,
        SocketType::Datagram => rustix::net::SocketType::DGRAM,
        SocketType::SequencedPacket => rustix::net::SocketType::SEQPACKET,
    }
}

pub(super) fn new_socket(socket: &UnixSocket) -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, socket_type(socket), SocketFlags::CLOEXEC, None)
        .map_err(|error| failed("making a unix socket", errno(error)))
}

/// Most connections of others that are sent away while one's own is waited for.
const MOST_OTHERS: usize = 10_000;

/// The other end of a connection. Somebody else may have found the listener before; he finds his connection closed, as
/// nobody is there yet who could serve him.
fn accept(listener: &OwnedFd, client_end: &OwnedFd) -> Result<OwnedFd> {
    let refused = |error| failed("accepting the connection of a unix socket", errno(error));
    let inode = |socket: &OwnedFd| rustix::fs::fstat(socket).map(|found| found.st_ino).map_err(refused);
    let diagnosis = SocketDiagnosis::new();
    let wanted = inode(client_end)?;
    for _ in 0..MOST_OTHERS {
        let server_end = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).map_err(refused)?;
        // Where the kernel can't tell, the first one has to be it.
        let Ok(diagnosis) = &diagnosis else { return Ok(server_end) };
        let peer = diagnosis.unix_socket(inode(&server_end)?).map(|info| info.peer);
        match peer {
            Ok(Some(peer)) if u64::from(peer) != wanted => {}
            _ => return Ok(server_end),
        }
    }
    Err(Error::new(code::DESCRIPTOR_RESTORE, "others connect with a unix socket all the time"))
}

/// A socket that needs no other, with its address.
fn make_alone(restoring: &mut Restoring<'_>, socket: &UnixSocket) -> Result<MadeSocket> {
    let new = new_socket(socket)?;
    let named = match &socket.address {
        Some(_) => Some(bind(restoring, &new, socket)?),
        None => None,
    };
    if let UnixState::Listening { backlog } = socket.state {
        acting::listen(restoring, socket.peer_credentials.as_ref(), new.as_fd(), backlog)?;
    }
    Ok(MadeSocket { socket: new, peer: None, named })
}

/// A pair of sockets without addresses.
fn new_pair(restoring: &mut Restoring<'_>, socket: &UnixSocket) -> Result<(OwnedFd, OwnedFd)> {
    let kind = socket_type(socket).as_raw().cast_signed();
    acting::pair(restoring, socket.peer_credentials.as_ref(), kind)
}

impl MakeUnixSockets {
    fn by_id(&self, id: SocketId) -> Option<&UnixSocket> {
        self.sockets.iter().find(|socket| socket.id == id)
    }

    /// Sockets whose connections wait to be accepted, with their listeners and who has made them, in the order in which
    /// they wait.
    fn unaccepted(&self) -> Vec<(&UnixSocket, Option<&UnixSocket>, Option<&SocketCredentials>)> {
        let mut waiting: Vec<_> = self
            .sockets
            .iter()
            .filter_map(|socket| {
                let UnixState::Unaccepted { listener, place, client } = &socket.state else { return None };
                Some((*listener, *place, socket, client.as_ref()))
            })
            .collect();
        waiting.sort_by_key(|&(listener, place, ..)| (listener, place));
        let with_listener = |(listener, _, socket, client)| (socket, self.by_id(listener), client);
        waiting.into_iter().map(with_listener).collect()
    }

    /// Sockets that are made in pairs, each pair once.
    fn pairs(&self) -> impl Iterator<Item = (&UnixSocket, &UnixSocket)> {
        self.sockets.iter().filter(|socket| !is_alone(socket)).filter_map(|socket| {
            let UnixState::Connected { peer } = socket.state else { return None };
            let other = self.by_id(peer).filter(|other| !is_alone(other))?;
            let mutual = other.state == UnixState::Connected { peer: socket.id };
            (mutual && socket.id < other.id).then_some((socket, other))
        })
    }

    /// The listener that a socket has its address from.
    fn listener_of(&self, socket: &UnixSocket) -> Option<&UnixSocket> {
        let name = socket.address.as_ref()?;
        let is_it = |other: &&UnixSocket| {
            matches!(other.state, UnixState::Listening { .. })
                && other.address.as_ref() == Some(name)
                && (other.file == socket.file || socket.file.is_none())
        };
        self.sockets.iter().find(is_it)
    }

    /// Two connected sockets. One with an address may have it from the listener that accepted it.
    fn pair(
        &self,
        restoring: &mut Restoring<'_>,
        helpers: &mut Helpers,
        first: &UnixSocket,
        second: &UnixSocket,
    ) -> Result<(MadeSocket, MadeSocket)> {
        if first.address.is_none() && second.address.is_none() {
            let (one, other) = new_pair(restoring, first)?;
            return Ok((end(one, None), end(other, None)));
        }
        let has_listener = |socket: &UnixSocket| self.listener_of(socket).is_some();
        let first_accepted = has_listener(first) || (second.address.is_none() && !has_listener(second));
        let (client, server) = if first_accepted { (second, first) } else { (first, second) };
        let (client_end, server_end) = self.accepted(restoring, helpers, client, server)?;
        Ok(if first_accepted { (server_end, client_end) } else { (client_end, server_end) })
    }

    /// A connected pair whose server side was accepted at its address: by the listener, or by one that is made for it.
    fn accepted(
        &self,
        restoring: &mut Restoring<'_>,
        helpers: &mut Helpers,
        client: &UnixSocket,
        server: &UnixSocket,
    ) -> Result<(MadeSocket, MadeSocket)> {
        let listener = self.listener_of(server);
        let told = client.peer_credentials.as_ref();
        let is_abstract = server.address.as_ref().is_some_and(|name| name.0.first() == Some(&0));
        let fits = |listener: &&UnixSocket| {
            told.is_none() || listener.peer_credentials.as_ref() == told || is_abstract
        };
        let made = listener.filter(fits).and_then(|listener| restoring.unix_sockets.get(&listener.id));
        let (listener, way) = match made {
            Some(MadeSocket { socket, named: Some(named), .. }) => (copy(socket)?, named.way()?),
            _ => {
                // The file of a listener stays that one's.
                let file = server.file.clone().filter(|_| listener.is_none());
                helpers.listener(restoring, &UnixSocket { file, ..server.clone() }, told)?
            }
        };
        let client_end = new_socket(client)?;
        let named = match &client.address {
            Some(_) => Some(bind(restoring, &client_end, client)?),
            None => None,
        };
        acting::connect(restoring, server.peer_credentials.as_ref(), client_end.as_fd(), &way)?;
        let server_end = accept(&listener, &client_end)?;
        Ok((end(client_end, named), end(server_end, None)))
    }

    /// A socket whose peer is gone, with a peer that goes when it has sent its last.
    fn orphan(
        &self,
        restoring: &mut Restoring<'_>,
        helpers: &mut Helpers,
        socket: &UnixSocket,
    ) -> Result<MadeSocket> {
        let is_path = socket.address.as_ref().is_some_and(|name| name.0.first() != Some(&0));
        let is_stream = socket.socket_type != SocketType::Datagram;
        if is_stream && (is_path || self.listener_of(socket).is_some()) {
            let client = UnixSocket { address: None, file: None, peer_credentials: None, ..socket.clone() };
            let (client_end, server_end) = self.accepted(restoring, helpers, &client, socket)?;
            return Ok(MadeSocket { peer: Some(client_end.socket), ..server_end });
        }
        let (new, peer) = new_pair(restoring, socket)?;
        let named = match &socket.address {
            Some(_) if is_path => Some(bind(restoring, &new, socket)?),
            Some(name) => {
                // Its listener may have had the same name and be gone, and somebody else have it: this only shows in
                // its own address.
                let _ = socket::bind(new.as_fd(), &address(&name.0));
                None
            }
            None => None,
        };
        Ok(MadeSocket { socket: new, peer: Some(peer), named })
    }
}

fn end(socket: OwnedFd, named: Option<Named>) -> MadeSocket {
    MadeSocket { socket, peer: None, named }
}

/// Puts a connection into the backlog of a listener.
fn wait_at(
    restoring: &mut Restoring<'_>,
    socket: &UnixSocket,
    listener: Option<&UnixSocket>,
    client: Option<&SocketCredentials>,
) -> Result<()> {
    let find = |id: SocketId| restoring.unix_sockets.get(&id);
    let named = listener.and_then(|listener| find(listener.id)).and_then(|made| made.named.as_ref());
    let (Some(named), Some(new)) = (named, find(socket.id)) else {
        let what = "a unix socket is connected with one that has no address";
        return Err(Error::new(code::IMAGE_BAD, what));
    };
    let (way, new) = (named.way()?, copy(&new.socket)?);
    acting::connect(restoring, client, new.as_fd(), &way)
}
