//! Making unix sockets again: all of an image at once, since they need one another.

use super::address;
use super::bind::bind;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{all, restore, socket as any_socket};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::sys::socket;
use crate::undo::Undo;
use nix::errno::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vckpt_image_format::record::Record;
use vckpt_image_format::record::data_queued::{DataQueued, Message, Queue};
use vckpt_image_format::record::unix_socket::{SocketType, UnixSocket, UnixState};
use vckpt_image_format::{Image, SocketId};

/// Bytes that certainly fit into a socket whose buffers nobody has changed.
const FITS: usize = 64 * 1024;

/// Adds one step for all.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let sockets = all::<UnixSocket>(image)?;
    if sockets.is_empty() {
        return Ok(());
    }
    let mut messages: HashMap<SocketId, Vec<Message>> = HashMap::new();
    for record in all::<DataQueued>(image)? {
        if let Queue::Socket(id) = record.queue {
            messages.entry(id).or_default().extend(record.messages);
        }
    }
    plan.action(Stage::Descriptors, MakeUnixSockets { sockets, messages });
    Ok(())
}

/// Makes all unix sockets.
#[derive(Debug)]
struct MakeUnixSockets {
    sockets: Vec<UnixSocket>,
    messages: HashMap<SocketId, Vec<Message>>,
}

impl Action for MakeUnixSockets {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let mut made: HashMap<SocketId, OwnedFd> = HashMap::new();
        for socket in self.sockets.iter().filter(|socket| is_alone(socket)) {
            let new = alone(socket, &mut restoring.undo).map_err(|error| about(error, socket))?;
            made.insert(socket.id, new);
        }
        for (first, second) in self.pairs() {
            let pair = self.pair(first, second, &made, &mut restoring.undo);
            let (one, other) = pair.map_err(|error| about(error, first))?;
            made.insert(first.id, one);
            made.insert(second.id, other);
        }
        for socket in &self.sockets {
            self.connect(socket, &mut made).map_err(|error| about(error, socket))?;
        }
        for (socket, listener) in self.unaccepted() {
            let new = made.get(&socket.id);
            connect_to(listener, new).map_err(|error| about(error, socket))?;
        }
        for socket in &self.sockets {
            self.fill(socket, &made, restoring).map_err(|error| about(error, socket))?;
        }
        // Those that lose their peer now have got what it sent.
        for socket in &self.sockets {
            let Some(new) = made.remove(&socket.id) else {
                return Err(about(
                    Error::new(code::IMAGE_BAD, "a unix socket has a peer that has another"),
                    socket,
                ));
            };
            finish(socket, &new).map_err(|error| about(error, socket))?;
            restore::keep(restoring, &socket.description, new).map_err(|error| about(error, socket))?;
        }
        Ok(())
    }
}

fn about(error: Box<Error>, socket: &UnixSocket) -> Box<Error> {
    error.about(Subject::path(socket.name()))
}

pub(super) fn failed(what: &str, errno: Errno) -> Box<Error> {
    Error::system(code::DESCRIPTOR_RESTORE, what, errno)
}

pub(super) fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// Whether it is made by itself: everything but connected streams and pairs of datagram sockets without addresses.
fn is_alone(socket: &UnixSocket) -> bool {
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

/// A socket that needs no other, with its address.
fn alone(socket: &UnixSocket, undo: &mut Undo) -> Result<OwnedFd> {
    let new = new_socket(socket)?;
    if let Some(name) = &socket.address {
        bind(new.as_fd(), name, socket, undo)?;
    }
    if let UnixState::Listening { backlog } = socket.state {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        rustix::net::listen(&new, backlog)
            .map_err(|error| failed("listening at a unix socket", errno(error)))?;
    }
    Ok(new)
}

impl MakeUnixSockets {
    fn by_id(&self, id: SocketId) -> Option<&UnixSocket> {
        self.sockets.iter().find(|socket| socket.id == id)
    }

    /// Sockets whose connections wait to be accepted, with their listeners, in the order in which they wait.
    fn unaccepted(&self) -> Vec<(&UnixSocket, Option<&UnixSocket>)> {
        let mut waiting: Vec<_> = self
            .sockets
            .iter()
            .filter_map(|socket| {
                let UnixState::Unaccepted { listener, place } = socket.state else { return None };
                Some((listener, place, socket))
            })
            .collect();
        waiting.sort_by_key(|&(listener, place, _)| (listener, place));
        waiting.into_iter().map(|(listener, _, socket)| (socket, self.by_id(listener))).collect()
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

    /// Two connected sockets. One with an address may have it from the listener that accepted it.
    fn pair(
        &self,
        first: &UnixSocket,
        second: &UnixSocket,
        made: &HashMap<SocketId, OwnedFd>,
        undo: &mut Undo,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let listener_of = |socket: &UnixSocket| {
            let name = socket.address.as_ref()?;
            let is_it = |other: &&UnixSocket| {
                matches!(other.state, UnixState::Listening { .. }) && other.address.as_ref() == Some(name)
            };
            self.sockets.iter().find(is_it).and_then(|listener| made.get(&listener.id))
        };
        if first.address.is_none() && second.address.is_none() {
            return rustix::net::socketpair(
                AddressFamily::UNIX,
                socket_type(first),
                SocketFlags::CLOEXEC,
                None,
            )
            .map_err(|error| failed("making a pair of unix sockets", errno(error)));
        }
        let first_accepted =
            listener_of(first).is_some() || (second.address.is_none() && listener_of(second).is_none());
        let (client, server) = if first_accepted { (second, first) } else { (first, second) };
        let (client_end, server_end) = accepted(client, server, listener_of(server), undo)?;
        Ok(if first_accepted { (server_end, client_end) } else { (client_end, server_end) })
    }

    /// Connects datagram sockets, and makes a peer that is gone already for those that have lost theirs.
    fn connect(&self, socket: &UnixSocket, made: &mut HashMap<SocketId, OwnedFd>) -> Result<()> {
        let to = match &socket.state {
            UnixState::Unconnected | UnixState::Listening { .. } | UnixState::Unaccepted { .. } => {
                return Ok(());
            }
            UnixState::Orphaned => {
                let orphan = self.orphan(socket)?;
                made.insert(socket.id, orphan);
                return Ok(());
            }
            UnixState::Connected { .. } if !is_alone(socket) && made.contains_key(&socket.id) => {
                return Ok(());
            }
            UnixState::Connected { peer } => self.by_id(*peer).and_then(|peer| peer.address.clone()),
            UnixState::ConnectedOutside { address } => Some(address.clone()),
        };
        let Some(to) = to else {
            return Err(Error::new(
                code::IMAGE_BAD,
                "a unix socket is connected with one that has no address",
            ));
        };
        let new = match made.entry(socket.id) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => free.insert(new_socket(socket)?),
        };
        socket::connect(new.as_fd(), &address(&to.0))
            .map_err(|errno| failed("connecting a unix socket", errno).about(Subject::path(&to)))
    }

    /// A socket whose peer has sent its last and is gone.
    fn orphan(&self, socket: &UnixSocket) -> Result<OwnedFd> {
        let (new, peer) =
            rustix::net::socketpair(AddressFamily::UNIX, socket_type(socket), SocketFlags::CLOEXEC, None)
                .map_err(|error| failed("making a pair of unix sockets", errno(error)))?;
        if let Some(name) = &socket.address
            && name.0.first() == Some(&0)
        {
            // Its listener may have the same name: then it can't have it back, which only shows in its own address.
            let _ = socket::bind(new.as_fd(), &address(&name.0));
        }
        send_all(peer.as_fd(), self.messages.get(&socket.id).into_iter().flatten(), &[])
            .map_err(|errno| failed("filling a unix socket", errno))?;
        Ok(new)
    }

    /// Sends it what waits in it: through its peer, or through whoever has the name of the sender.
    fn fill(
        &self,
        socket: &UnixSocket,
        made: &HashMap<SocketId, OwnedFd>,
        restoring: &mut Restoring<'_>,
    ) -> Result<()> {
        let Some(messages) = self.messages.get(&socket.id) else { return Ok(()) };
        let to = match &socket.state {
            UnixState::Orphaned => return Ok(()),
            UnixState::Connected { peer } => {
                let peer =
                    self.by_id(*peer).filter(|peer| peer.state == UnixState::Connected { peer: socket.id });
                if let Some(peer) = peer.and_then(|peer| made.get(&peer.id)) {
                    return send_all(peer.as_fd(), messages, &[])
                        .map_err(|errno| failed("filling a unix socket", errno));
                }
                socket.address.as_ref()
            }
            UnixState::Unconnected
            | UnixState::Listening { .. }
            | UnixState::Unaccepted { .. }
            | UnixState::ConnectedOutside { .. } => socket.address.as_ref(),
        };
        let Some(to) = to.map(|name| address(&name.0)) else {
            return Err(Error::new(code::SOCKET_STATE, "messages wait in a unix socket that has no address"));
        };
        let stranger = new_socket(socket)?;
        let mut nameless = 0;
        for message in messages {
            let sender = message.source.as_ref().and_then(|source| {
                let is_it = |other: &&UnixSocket| other.address.as_ref() == Some(source);
                self.sockets.iter().find(is_it).and_then(|other| made.get(&other.id))
            });
            nameless += u32::from(sender.is_none() && message.source.is_some());
            send_all(sender.unwrap_or(&stranger).as_fd(), std::iter::once(message), &to)
                .map_err(|errno| failed("filling a unix socket", errno))?;
        }
        if nameless > 0 {
            restoring
                .degraded
                .push(format!("{}: {nameless} messages have lost their sender's name", socket.name()));
        }
        Ok(())
    }
}

/// Puts a connection into the backlog of a listener.
fn connect_to(listener: Option<&UnixSocket>, new: Option<&OwnedFd>) -> Result<()> {
    let at = listener.and_then(|listener| listener.address.as_ref());
    let (Some(at), Some(new)) = (at, new) else {
        return Err(Error::new(code::IMAGE_BAD, "a unix socket is connected with one that has no address"));
    };
    socket::connect(new.as_fd(), &address(&at.0))
        .map_err(|errno| failed("connecting a unix socket", errno).about(Subject::path(at)))
}

/// A connected pair whose server side was accepted at its address: by the listener, or by one that is made for it.
fn accepted(
    client: &UnixSocket,
    server: &UnixSocket,
    listener: Option<&OwnedFd>,
    undo: &mut Undo,
) -> Result<(OwnedFd, OwnedFd)> {
    let Some(name) = &server.address else {
        return Err(Error::new(code::INTERNAL, "a unix socket without an address has accepted a connection"));
    };
    let temporary;
    let listener = if let Some(listener) = listener {
        listener
    } else {
        temporary = new_socket(server)?;
        // The file must be there to be connected to; `dress` comes last.
        let with_file = UnixSocket { file: server.file.or(Some((0o600, 0, 0))), ..server.clone() };
        bind(temporary.as_fd(), name, &with_file, undo)?;
        rustix::net::listen(&temporary, 1)
            .map_err(|error| failed("listening at a unix socket", errno(error)))?;
        &temporary
    };
    let client_end = new_socket(client)?;
    if let Some(name) = &client.address {
        bind(client_end.as_fd(), name, client, undo)?;
    }
    socket::connect(client_end.as_fd(), &address(&name.0))
        .map_err(|errno| failed("connecting a unix socket", errno).about(Subject::path(name)))?;
    let server_end = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
        .map_err(|error| failed("accepting the connection of a unix socket", errno(error)))?;
    if server.file.is_none() && undo.notes(name.as_path()) {
        rustix::fs::unlink(name.as_path())
            .map_err(|error| failed("removing the file of a socket", errno(error)))?;
    }
    Ok((client_end, server_end))
}

/// Sends messages to an address, or to the peer if it is empty, and makes room for what does not fit.
fn send_all<'messages>(
    from: BorrowedFd<'_>,
    messages: impl IntoIterator<Item = &'messages Message>,
    to: &[u8],
) -> std::result::Result<(), Errno> {
    let messages: Vec<&Message> = messages.into_iter().collect();
    let total: usize = messages.iter().map(|message| message.data.len() + 1024).sum();
    let before = if total > FITS { Some(any_socket::make_room(from, total)?) } else { None };
    for message in messages {
        let sent = socket::send(from, &message.data, to)?;
        if sent != message.data.len() {
            return Err(Errno::ENOBUFS);
        }
    }
    before.map_or(Ok(()), |before| any_socket::give_room_back(from, &before))
}

/// Options, and what was shut down.
fn finish(socket: &UnixSocket, new: &OwnedFd) -> Result<()> {
    any_socket::set_options(new.as_fd(), &socket.options)?;
    let how = match socket.shutdown {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 if socket.state != UnixState::Orphaned => Shutdown::Both,
        _ => return Ok(()),
    };
    match rustix::net::shutdown(new, how) {
        // A datagram socket that is not connected can't be shut down, and needs not.
        Err(rustix::io::Errno::NOTCONN) => Ok(()),
        other => other.map_err(|error| failed("shutting down a unix socket", errno(error))),
    }
}
