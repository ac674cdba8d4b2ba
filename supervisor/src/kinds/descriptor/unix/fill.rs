//! Sending unix sockets what waits in them, when all descriptions are made that may travel with it; then connections of
//! datagram sockets, options, and what was shut down.

use super::address;
use super::helpers::copy;
use super::make::{about, errno, failed, is_alone, new_socket};
use super::signed::{self, Signed, Target};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::restore;
use crate::kinds::descriptor::socket::{self as any_socket, Room};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::{message, socket};
use nix::errno::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vckpt_image_format::record::Record;
use vckpt_image_format::record::data_queued::Message;
use vckpt_image_format::record::socket_option::SocketOption;
use vckpt_image_format::record::unix_socket::{SocketType, UnixSocket, UnixState};
use vckpt_image_format::{DescriptionId, SocketId};

/// Bytes that certainly fit into a socket whose buffers nobody has changed.
const FITS: usize = 64 * 1024;

/// Fills and finishes all unix sockets.
#[derive(Debug)]
pub(super) struct FillUnixSockets {
    pub(super) sockets: Vec<UnixSocket>,
    pub(super) messages: HashMap<SocketId, Vec<Message>>,
}

impl Action for FillUnixSockets {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        for socket in &self.sockets {
            self.fill(socket, restoring).map_err(|error| about(error, socket))?;
        }
        for socket in &self.sockets {
            self.connect(socket, restoring).map_err(|error| about(error, socket))?;
        }
        for socket in &self.sockets {
            // Those that lose their peer now have got what it sent.
            let made = restoring.unix_sockets.remove(&socket.id);
            let made = made.ok_or_else(|| Error::new(code::INTERNAL, "a unix socket was not made"))?.socket;
            finish(socket, &made).map_err(|error| about(error, socket))?;
            restore::keep(restoring, &socket.description, made).map_err(|error| about(error, socket))?;
        }
        Ok(())
    }
}

/// How a message gets into a socket.
#[derive(Debug)]
struct Sending {
    from: OwnedFd,
    to: Target,
}

impl FillUnixSockets {
    fn by_id(&self, id: SocketId) -> Option<&UnixSocket> {
        self.sockets.iter().find(|socket| socket.id == id)
    }

    /// Sends a socket what waits in it: through its peer, or through whoever has the name of the sender.
    fn fill(&self, socket: &UnixSocket, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(messages) = self.messages.get(&socket.id) else { return Ok(()) };
        let total: usize = messages.iter().map(|message| message.data.len() + 1024).sum();
        let peer = self.peer(socket, restoring)?;
        let stranger = new_socket(socket)?;
        let (mut nameless, mut unsigned) = (0, 0);
        let mut roomy: HashMap<Option<SocketId>, (OwnedFd, Room)> = HashMap::new();
        for message in messages {
            let (sender, sending) = match &peer {
                Some(peer) => (None, Sending { from: copy(peer)?, to: Target::Peer }),
                None => self.to_address(socket, message, &stranger, restoring)?,
            };
            nameless += u32::from(peer.is_none() && sender.is_none() && message.source.is_some());
            if total > FITS && !roomy.contains_key(&sender) {
                let before = any_socket::make_room(sending.from.as_fd(), total);
                let before = before.map_err(|errno| failed("making room in a unix socket", errno))?;
                roomy.insert(sender, (copy(&sending.from)?, before));
            }
            let is_signed = send(restoring, message, &sending)?;
            unsigned += u32::from(!is_signed);
        }
        for (from, before) in roomy.into_values() {
            any_socket::give_room_back(from.as_fd(), &before)
                .map_err(|errno| failed("giving back room in a unix socket", errno))?;
        }
        if nameless > 0 {
            let line = format!("{}: {nameless} messages have lost their sender's name", socket.name());
            restoring.degraded.push(line);
        }
        if unsigned > 0 && tells_senders(socket) {
            let line = format!(
                "{}: {unsigned} messages have lost their sender's credentials, since that process is not here",
                socket.name()
            );
            restoring.degraded.push(line);
        }
        Ok(())
    }

    /// The other end of a socket, if that is how it is filled.
    fn peer(&self, socket: &UnixSocket, restoring: &Restoring<'_>) -> Result<Option<OwnedFd>> {
        let find = |id: SocketId| restoring.unix_sockets.get(&id);
        let peer = match &socket.state {
            UnixState::Orphaned => find(socket.id).and_then(|made| made.peer.as_ref()),
            UnixState::Connected { peer } => {
                let is_mutual = |peer: &&UnixSocket| {
                    peer.state == UnixState::Connected { peer: socket.id } && !is_alone(peer)
                };
                let peer = self.by_id(*peer).filter(is_mutual).filter(|_| !is_alone(socket));
                peer.and_then(|peer| find(peer.id)).map(|made| &made.socket)
            }
            UnixState::Unconnected
            | UnixState::Listening { .. }
            | UnixState::Unaccepted { .. }
            | UnixState::ConnectedOutside { .. } => None,
        };
        peer.map(copy).transpose()
    }

    /// How a message is sent to the address of a socket, and by which socket if that has the sender's name.
    fn to_address(
        &self,
        socket: &UnixSocket,
        message: &Message,
        stranger: &OwnedFd,
        restoring: &Restoring<'_>,
    ) -> Result<(Option<SocketId>, Sending)> {
        let named = restoring.unix_sockets.get(&socket.id).and_then(|made| made.named.as_ref());
        let Some(named) = named else {
            return Err(Error::new(code::SOCKET_STATE, "messages wait in a unix socket that has no address"));
        };
        let sender = message.source.as_ref().and_then(|source| {
            let is_it = |other: &&UnixSocket| {
                other.address.as_ref() == Some(source) && other.socket_type == SocketType::Datagram
            };
            let sender = self.sockets.iter().find(is_it)?;
            Some((sender.id, &restoring.unix_sockets.get(&sender.id)?.socket))
        });
        let from = copy(sender.map_or(stranger, |(_, sender)| sender))?;
        Ok((sender.map(|(id, _)| id), Sending { from, to: named.target()? }))
    }

    /// Connects a datagram socket. Before that, it gets messages from everybody.
    fn connect(&self, socket: &UnixSocket, restoring: &mut Restoring<'_>) -> Result<()> {
        let to = match &socket.state {
            UnixState::Connected { peer } if socket.socket_type == SocketType::Datagram => {
                let peer_is_alone = self.by_id(*peer).is_some_and(is_alone);
                if !peer_is_alone && !is_alone(socket) {
                    return Ok(());
                }
                let named = restoring.unix_sockets.get(peer).and_then(|made| made.named.as_ref());
                let Some(named) = named else {
                    let what = "a unix socket is connected with one that has no address";
                    return Err(Error::new(code::IMAGE_BAD, what));
                };
                named.target()?
            }
            UnixState::ConnectedOutside { address: to, .. } => Target::Address(address(&to.0)),
            UnixState::Connected { .. }
            | UnixState::Unconnected
            | UnixState::Listening { .. }
            | UnixState::Unaccepted { .. }
            | UnixState::Orphaned => return Ok(()),
        };
        let Some(made) = restoring.unix_sockets.get(&socket.id) else { return Ok(()) };
        let result = socket::connect(made.socket.as_fd(), &to.address());
        let UnixState::ConnectedOutside { address: to, may_be_closed } = &socket.state else {
            return result.map_err(|errno| failed("connecting a unix socket", errno));
        };
        if *may_be_closed && result.is_err() {
            close_peer(made.socket.as_fd()).map_err(|errno| failed("connecting a unix socket", errno))?;
            let line = format!("{}: nobody is at {to}, so it finds its peer closed", socket.name());
            restoring.degraded.push(line);
            return Ok(());
        }
        result.map_err(|errno| failed("connecting a unix socket", errno).about(Subject::path(to)))
    }
}

/// Connects a datagram socket with a peer that is closed at once.
fn close_peer(socket: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let peer = rustix::net::socket_with(
        AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(errno)?;
    // The kernel chooses an abstract name.
    let family = u16::try_from(libc::AF_UNIX).unwrap_or_default().to_ne_bytes();
    socket::bind(peer.as_fd(), &family)?;
    socket::connect(socket, &socket::local_address(peer.as_fd())?)
}

/// Sends one message, with all that travels with it. Gives whether it tells its sender as it did.
fn send(restoring: &mut Restoring<'_>, message: &Message, sending: &Sending) -> Result<bool> {
    let mut travel = Vec::new();
    for description in &message.descriptors {
        travel.push(copy(find(restoring, *description)?)?);
    }
    let descriptors: Vec<BorrowedFd<'_>> = travel.iter().map(OwnedFd::as_fd).collect();
    let mut is_signed = true;
    if let Some(sender) = &message.sender {
        let from = &sending.from;
        let (data, descriptors) = (&message.data, descriptors.clone());
        let (from, to, urgent) = (from.as_fd(), &sending.to, message.urgent);
        let signed = Signed { from, to, data, descriptors, sender, urgent };
        match signed::send(restoring, &signed)? {
            Ok(()) => return Ok(true),
            // The kernel does not let it be sent for that process, or there is none.
            Err(Errno::EPERM | Errno::ESRCH | Errno::EINVAL) => is_signed = false,
            Err(errno) => return Err(failed("filling a unix socket", errno)),
        }
    }
    let flags = if message.urgent { libc::MSG_OOB } else { 0 };
    let sent = message::send(sending.from.as_fd(), &message.data, &sending.to.address(), &descriptors, flags);
    match sent.map_err(|errno| failed("filling a unix socket", errno))? {
        count if count == message.data.len() => Ok(is_signed),
        _ => Err(failed("filling a unix socket", Errno::ENOBUFS)),
    }
}

/// A description that was made.
fn find<'made>(restoring: &'made Restoring<'_>, id: DescriptionId) -> Result<&'made OwnedFd> {
    let made = restoring.descriptions.get(&id);
    let made = made.or_else(|| restoring.unix_sockets.get(&SocketId(id.0)).map(|made| &made.socket));
    made.ok_or_else(|| Error::new(code::INTERNAL, "a descriptor that travels leads to nothing that was made"))
}

/// Whether a socket tells its program who has sent its messages.
fn tells_senders(socket: &UnixSocket) -> bool {
    let tells = [libc::SO_PASSCRED, super::SO_PASSPIDFD].map(i32::cast_unsigned);
    let is_set = |option: &SocketOption| option.value.iter().any(|&byte| byte != 0);
    socket.options.iter().any(|option| tells.contains(&option.name) && is_set(option))
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
