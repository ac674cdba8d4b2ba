//! Making sockets of the internet protocols again.

use super::connecting::MakeConnecting;
use super::datagrams::{FillAll, FillDatagrams};
use super::ends::{internet, plain};
use super::format_address;
use super::options::BEFORE_BIND;
use super::over::{MakeOver, SetReuse};
use super::pair::{End, MakePair, MakeUnaccepted};
use super::reception::{self, AttachFilter};
use super::revive::MakeStream;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::holders::Holders;
use crate::kinds::descriptor::socket::{self as any_socket, SOCKET};
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vckpt_image_format::record::Record;
use vckpt_image_format::record::connection::{Address, Connection, ConnectionState};
use vckpt_image_format::record::data_queued::{DataQueued, Queue};
use vckpt_image_format::record::socket_option::SocketOption;
use vckpt_image_format::{Image, SocketId};

const SO_REUSEADDR: u32 = libc::SO_REUSEADDR.cast_unsigned();

/// Adds a step for each socket. Connections that are over come first: a socket can get the address at which another one
/// listens only before that does.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let mut connections = all::<Connection>(image)?;
    connections.iter_mut().for_each(|connection| plan.map(connection));
    map_sought(&mut connections, plan);
    let mut queues: HashMap<Queue, Vec<DataQueued>> = HashMap::new();
    for record in all::<DataQueued>(image)? {
        queues.entry(record.queue).or_default().push(record);
    }
    let mut take = |queue| queues.remove(&queue).unwrap_or_default();
    let (mut others, mut unaccepted, mut pairs, mut sought) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // Made once: there may be thousands of connections.
    let holders = Arc::new(Holders::of(image)?);
    let (mut reused, mut fills, mut filters) = (Vec::new(), Vec::new(), Vec::new());
    for connection in connections {
        // Those with a peer outside get theirs when they are let go.
        if connection.filter.is_some() && !matches!(connection.state, ConnectionState::Established { .. }) {
            filters.push(AttachFilter(connection.clone()));
        }
        match connection.state {
            ConnectionState::Over { ending, .. } => {
                reused.push(SetReuse(connection.clone()));
                let (data, holders) = (take(Queue::Socket(connection.id)), Arc::clone(&holders));
                plan.action(Stage::Descriptors, MakeOver { connection, ending, data, holders });
            }
            ConnectionState::Paired { .. } => {
                reused.push(SetReuse(connection.clone()));
                let data = take(Queue::Socket(connection.id));
                pairs.push(End { connection, data });
            }
            ConnectionState::Established { stream, .. } => {
                let (received, sent) = (take(Queue::Socket(connection.id)), take(Queue::Sent(connection.id)));
                let holders = Arc::clone(&holders);
                plan.action(Stage::Descriptors, MakeStream { connection, stream, received, sent, holders });
            }
            ConnectionState::Unaccepted { .. } => {
                reused.push(SetReuse(connection.clone()));
                unaccepted.push(connection);
            }
            ConnectionState::Connecting { .. } => {
                reused.push(SetReuse(connection.clone()));
                sought.push(connection);
            }
            ConnectionState::Unconnected
            | ConnectionState::Listening { .. }
            | ConnectionState::FixedPeer { .. } => {
                let messages = take(Queue::Socket(connection.id));
                if !messages.is_empty() {
                    fills.push(FillDatagrams { to: connection.clone(), messages });
                }
                others.push(connection);
            }
        }
    }
    for pair in paired(pairs, &others)? {
        plan.action(Stage::Descriptors, pair);
    }
    let senders: Vec<Connection> = others.clone();
    for connection in others {
        plan.action(Stage::Descriptors, MakeSocket(connection));
    }
    if !fills.is_empty() {
        plan.action(Stage::Descriptors, FillAll { fills, senders });
    }
    for connection in unaccepted {
        plan.action(Stage::Descriptors, MakeUnaccepted(connection));
    }
    // Who listens in the tree has his backlog now.
    for connection in sought {
        plan.action(Stage::Descriptors, MakeConnecting(connection));
    }
    for reuse in reused {
        plan.action(Stage::Descriptors, reuse);
    }
    for filter in filters {
        plan.action(Stage::Descriptors, filter);
    }
    Ok(())
}

/// Who connects with a listener of the tree finds it where that is now.
fn map_sought(connections: &mut [Connection], plan: &Plan) {
    let listening = |connection: &Connection| {
        let listens = matches!(connection.state, ConnectionState::Listening { .. });
        internet(connection.local).filter(|_| listens)
    };
    let listeners: Vec<SocketAddr> = connections.iter().filter_map(listening).collect();
    for connection in connections {
        let ConnectionState::Connecting { peer } = &mut connection.state else { continue };
        let mut there = *peer;
        plan.map_address(&mut there);
        let is_ours = |at: &SocketAddr| {
            internet(Some(there)).is_some_and(|there| {
                at.port() == there.port()
                    && (at.ip().is_unspecified() || plain(*at).ip() == plain(there).ip())
            })
        };
        if listeners.iter().any(is_ours) {
            *peer = there;
        }
    }
}

/// Brings the ends together: first the one that connects. The other one is at a port at which somebody listens, if
/// that can be told.
fn paired(ends: Vec<End>, others: &[Connection]) -> Result<Vec<MakePair>> {
    let listens = |end: &End| {
        let port = internet(end.connection.local).map(|address| address.port());
        others.iter().any(|other| {
            matches!(other.state, ConnectionState::Listening { .. })
                && internet(other.local).map(|address| address.port()) == port
        })
    };
    let mut waiting: HashMap<SocketId, End> = HashMap::new();
    let mut pairs = Vec::new();
    for end in ends {
        let ConnectionState::Paired { end: other, .. } = end.connection.state else { continue };
        match waiting.remove(&other) {
            Some(first) if listens(&first) => pairs.push(MakePair(end, first)),
            Some(first) => pairs.push(MakePair(first, end)),
            None => {
                waiting.insert(end.connection.id, end);
            }
        }
    }
    if waiting.is_empty() {
        return Ok(pairs);
    }
    Err(Error::new(code::IMAGE_BAD, "a TCP connection has one end only"))
}

/// Makes a socket.
#[derive(Debug)]
struct MakeSocket(Connection);

impl Action for MakeSocket {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(self.0.name()));
        let made = self.make().map_err(about)?;
        restore::keep(restoring, &self.0.description, made).map_err(about)
    }
}

fn failed(what: &str, errno: Errno) -> Box<Error> {
    let is_taken = matches!(errno, Errno::EADDRINUSE | Errno::EADDRNOTAVAIL);
    Error::system(if is_taken { code::ADDRESS_TAKEN } else { code::DESCRIPTOR_RESTORE }, what, errno)
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

impl MakeSocket {
    fn make(&self) -> Result<OwnedFd> {
        let Connection { family, socket_type, protocol, local, state, options, memberships, filter, .. } =
            &self.0;
        let protocol = NonZeroU32::new(*protocol).map(Protocol::from_raw);
        let family = AddressFamily::from_raw(u16::try_from(*family).unwrap_or(u16::MAX));
        let made = rustix::net::socket_with(
            family,
            SocketType::from_raw(*socket_type),
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(|error| failed("making a socket", errno(error)))?;
        let is_early = |option: &&SocketOption| {
            let key = (option.level.cast_signed(), option.name.cast_signed());
            BEFORE_BIND.contains(&key)
        };
        let early: Vec<SocketOption> = options.iter().filter(is_early).cloned().collect();
        any_socket::set_options(made.as_fd(), &early)?;
        // Before anything can come in. What waited has passed already, and the one that it had comes when that is there.
        if filter.is_some() {
            socket::set_filter(made.as_fd(), &reception::NOTHING)
                .map_err(|errno| failed("closing a socket to packets", errno))?;
        }
        if let Some(local) = local {
            self.bind(&made, local)?;
        }
        match state {
            // Connections are made otherwise.
            ConnectionState::Unconnected
            | ConnectionState::Paired { .. }
            | ConnectionState::Unaccepted { .. }
            | ConnectionState::Established { .. }
            | ConnectionState::Connecting { .. }
            | ConnectionState::Over { .. } => {}
            ConnectionState::Listening { backlog } => {
                rustix::net::listen(&made, i32::try_from(*backlog).unwrap_or(i32::MAX))
                    .map_err(|error| failed("listening", errno(error)))?;
            }
            ConnectionState::FixedPeer { peer } => {
                socket::connect(made.as_fd(), &format_address(peer))
                    .map_err(|errno| failed("setting the peer of a socket", errno))?;
            }
        }
        any_socket::set_options(made.as_fd(), options)?;
        reception::join(made.as_fd(), memberships)?;
        Ok(made)
    }

    /// Gives it its address, although connections that have ended may still linger there.
    fn bind(&self, made: &OwnedFd, local: &Address) -> Result<()> {
        let is_stream = self.0.socket_type.cast_signed() == libc::SOCK_STREAM;
        let wanted =
            self.0.options.iter().find(|option| (option.level, option.name) == (SOCKET, SO_REUSEADDR));
        let reuse = |value: &[u8]| {
            socket::set_option(made.as_fd(), SOCKET, SO_REUSEADDR, value)
                .map_err(|errno| failed("setting SO_REUSEADDR", errno))
        };
        if let (false, Some(wanted)) = (is_stream, wanted) {
            reuse(&wanted.value)?;
        } else if is_stream {
            reuse(&1_u32.to_ne_bytes())?;
        }
        socket::bind(made.as_fd(), &format_address(local))
            .map_err(|errno| failed("giving a socket its address", errno))
    }
}
