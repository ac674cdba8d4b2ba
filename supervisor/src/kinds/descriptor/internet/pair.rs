//! Making TCP connections whose both ends are in the image: real ones, between the same addresses. What waited in them
//! is sent again, so that part of it waits at the receiver and part at the sender, as their buffers have room.

use super::ends::{internet, of_family, plain};
use super::options::{BEFORE_BIND, V6ONLY};
use super::over::{LIMIT, REUSE, accepted, split, wait};
use super::{format_address, parse_address};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{restore, socket as any_socket, socket::SOCKET};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;
use vckpt_image_format::Record;
use vckpt_image_format::record::connection::{Address, Connection, ConnectionState};
use vckpt_image_format::record::data_queued::DataQueued;
use vckpt_image_format::record::socket_option::SocketOption;

/// Bytes that certainly fit into a socket whose buffers nobody has changed.
const FITS: usize = 4 * 1024;
const NODELAY: (u32, u32) = (libc::IPPROTO_TCP.cast_unsigned(), libc::TCP_NODELAY.cast_unsigned());

const IP: u32 = libc::IPPROTO_IP.cast_unsigned();
const NO_PORT: u32 = libc::IP_BIND_ADDRESS_NO_PORT.cast_unsigned();
/// `IP_LOCAL_PORT_RANGE` (kernel 6.3).
const PORT_RANGE: u32 = 51;

/// One end.
#[derive(Debug, Clone)]
pub struct End {
    /// Its record.
    pub connection: Connection,
    /// What waits to be read by it.
    pub data: Vec<DataQueued>,
}

/// Makes a connection: the end that connects, and the one that was accepted.
#[derive(Debug)]
pub struct MakePair(pub End, pub End);

/// Makes a connection that waits in a backlog.
#[derive(Debug)]
pub struct MakeUnaccepted(pub Connection);

impl Action for MakePair {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(self.0.connection.name()));
        let (one, other) = self.make().map_err(|error| about(failed(MAKING, error)))?;
        for (made, end) in [(&one, &self.0), (&other, &self.1)] {
            let (early, _) = split(&end.connection.options);
            any_socket::set_options(made.as_fd(), &early).map_err(about)?;
        }
        restore::keep(restoring, &self.0.connection.description, one).map_err(about)?;
        restore::keep(restoring, &self.1.connection.description, other).map_err(about)
    }
}

impl Action for MakeUnaccepted {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(self.0.name()));
        let made = self.make().map_err(|error| about(failed(MAKING, error)))?;
        any_socket::set_options(made.as_fd(), &split(&self.0.options).0).map_err(about)?;
        restore::keep(restoring, &self.0.description, made).map_err(about)
    }
}

const MAKING: &str = "making a TCP connection";

pub(super) fn failed(what: &str, error: io::Error) -> Box<Error> {
    let is_taken = matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable);
    let code = if is_taken { code::ADDRESS_TAKEN } else { code::DESCRIPTOR_RESTORE };
    Error::system(code, what, error)
}

/// A socket at the address of a connection, with what must be set before it is connected.
fn bound(connection: &Connection) -> io::Result<OwnedFd> {
    let made = new(connection)?;
    socket::set_option(made.as_fd(), SOCKET, REUSE, &1_u32.to_ne_bytes())?;
    bind(made, connection)
}

/// The same for the end that connects. A port that the kernel chose may be in use by other connections, with which only
/// one that the kernel chooses again can share it: it gets no other choice.
pub(super) fn bound_to_connect(connection: &Connection) -> io::Result<OwnedFd> {
    match bound(connection) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        result => return result,
    }
    let made = new(connection)?;
    let mut local = internet(connection.local).ok_or(io::ErrorKind::InvalidData)?;
    let port = u32::from(local.port());
    socket::set_option(made.as_fd(), IP, NO_PORT, &1_u32.to_ne_bytes())?;
    socket::set_option(made.as_fd(), IP, PORT_RANGE, &(port << 16 | port).to_ne_bytes())?;
    local.set_port(0);
    socket::bind(made.as_fd(), &format_address(&Address::Internet(local)))?;
    Ok(made)
}

/// Checks that a connected socket has its address, however it came by it.
pub(super) fn check_address(made: &OwnedFd, connection: &Connection) -> io::Result<()> {
    let has = internet(parse_address(&socket::local_address(made.as_fd())?));
    if has.map(plain) != internet(connection.local).map(plain) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    if socket::number_option(made.as_fd(), IP, PORT_RANGE).is_ok_and(|range| range != 0) {
        socket::set_option(made.as_fd(), IP, PORT_RANGE, &0_u32.to_ne_bytes())?;
    }
    Ok(())
}

/// The same in the repair mode, in which every address that this host has can be had.
pub(super) fn bound_as_it_is(connection: &Connection) -> io::Result<OwnedFd> {
    let made = new(connection)?;
    super::repair::enter(made.as_fd())?;
    bind(made, connection)
}

fn bind(made: OwnedFd, connection: &Connection) -> io::Result<OwnedFd> {
    let local = internet(connection.local).ok_or(io::ErrorKind::InvalidData)?;
    socket::bind(made.as_fd(), &format_address(&Address::Internet(local)))?;
    Ok(made)
}

fn new(connection: &Connection) -> io::Result<OwnedFd> {
    let family = AddressFamily::from_raw(u16::try_from(connection.family).unwrap_or_default());
    let made = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let is_early = |option: &&SocketOption| {
        let key = (option.level.cast_signed(), option.name.cast_signed());
        let is_size = [libc::SO_RCVBUF, libc::SO_SNDBUF].contains(&key.1) && key.0 == libc::SOL_SOCKET;
        BEFORE_BIND.contains(&key)
            || is_size
            || (option.level, option.name) == V6ONLY
            || key == (libc::IPPROTO_TCP, libc::TCP_CONGESTION)
    };
    let early: Vec<SocketOption> = connection.options.iter().filter(is_early).cloned().collect();
    any_socket::set_options(made.as_fd(), &early).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(made)
}

impl MakePair {
    fn make(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let (client, server) = (&self.0.connection, &self.1.connection);
        let listener = bound(server)?;
        rustix::net::listen(&listener, 16)?;
        let listener = TcpListener::from(listener);
        let one = bound_to_connect(client)?;
        let at = of_family(target(client, server).ok_or(io::ErrorKind::InvalidData)?, client.family);
        let other: OwnedFd = accepted(&one, &listener, at)?.into();
        rustix::net::sockopt::set_socket_timeout(&other, rustix::net::sockopt::Timeout::Send, None)?;
        drop(listener);
        check_address(&one, client)?;
        for made in [&one, &other] {
            socket::set_option(made.as_fd(), NODELAY.0, NODELAY.1, &1_u32.to_ne_bytes())?;
        }
        fill(one.as_fd(), &self.1.data)?;
        fill(other.as_fd(), &self.0.data)?;
        shut(&one, client)?;
        shut(&other, server)?;
        Ok((one, other))
    }
}

impl MakeUnaccepted {
    fn make(&self) -> io::Result<OwnedFd> {
        let made = bound_to_connect(&self.0)?;
        let at = internet(self.0.peer()).ok_or(io::ErrorKind::InvalidData)?;
        let limit = Some(LIMIT);
        rustix::net::sockopt::set_socket_timeout(&made, rustix::net::sockopt::Timeout::Send, limit)?;
        socket::connect(made.as_fd(), &format_address(&Address::Internet(at)))?;
        rustix::net::sockopt::set_socket_timeout(&made, rustix::net::sockopt::Timeout::Send, None)?;
        check_address(&made, &self.0)?;
        shut(&made, &self.0)?;
        Ok(made)
    }
}

/// Where the one end finds the other.
fn target(client: &Connection, server: &Connection) -> Option<SocketAddr> {
    let known = internet(client.peer())?;
    let has = internet(server.local)?;
    (plain(known) == plain(has)).then_some(known)
}

/// Sends what the other end has not read yet.
fn fill(from: BorrowedFd<'_>, data: &[DataQueued]) -> io::Result<()> {
    let messages = || data.iter().flat_map(|record| &record.messages);
    let bytes: usize = messages().map(|message| message.data.len()).sum();
    if bytes == 0 {
        return Ok(());
    }
    let before = if bytes > FITS { Some(any_socket::make_room(from, bytes)?) } else { None };
    let begin = Instant::now();
    for message in messages() {
        let mut rest = &message.data[..];
        while !rest.is_empty() {
            match socket::send(from, rest, &[]) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::EAGAIN) if begin.elapsed() < LIMIT => {
                    wait(&from.try_clone_to_owned()?, PollFlags::OUT)?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    before.map_or(Ok(()), |before| Ok(any_socket::give_room_back(from, &before)?))
}

/// Shuts down what was shut down.
pub(super) fn shut(made: &OwnedFd, connection: &Connection) -> io::Result<()> {
    let shut = match connection.state {
        ConnectionState::Paired { shut, .. } | ConnectionState::Unaccepted { shut, .. } => shut,
        ConnectionState::Established { stream, .. } => stream.shut,
        ConnectionState::Unconnected
        | ConnectionState::Listening { .. }
        | ConnectionState::FixedPeer { .. }
        | ConnectionState::Connecting { .. }
        | ConnectionState::Over { .. } => 0,
    };
    let how = match shut {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Ok(()),
    };
    match rustix::net::shutdown(made, how) {
        // Both ends have ended, and nothing is left of the connection.
        Err(rustix::io::Errno::NOTCONN) => Ok(()),
        other => Ok(other?),
    }
}
