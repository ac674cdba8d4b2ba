//! Making TCP connections that are over: a real connection over the loopback interface gets the data, and is then
//! brought to the same end by its peer. So the program gets what it would have got: what waits, then the end of file or
//! the error.

use super::ends::{internet, plain};
use super::format_address;
use super::options::V6ONLY;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::holders::Holders;
use crate::kinds::descriptor::{restore, socket as any_socket, socket::SOCKET};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vckpt_image_format::Record;
use vckpt_image_format::record::connection::{Address, Connection, Ending};
use vckpt_image_format::record::data_queued::DataQueued;
use vckpt_image_format::record::socket_option::SocketOption;

/// How long something may take that happens within this host.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// Bytes that certainly fit into a socket whose buffers nobody has changed.
const FITS: usize = 32 * 1024;
pub(super) const REUSE: u32 = libc::SO_REUSEADDR.cast_unsigned();

/// Options of multicast.
const MULTICAST: &[(i32, i32)] = &[
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
];

/// Makes a connection that is over.
#[derive(Debug)]
pub struct MakeOver {
    /// The connection.
    pub connection: Connection,
    /// How it came to its end.
    pub ending: Ending,
    /// What waits in it.
    pub data: Vec<DataQueued>,
    /// Who has it.
    pub holders: Arc<Holders>,
}

/// Sets `SO_REUSEADDR` as it was, when the listeners that have the same address are there.
#[derive(Debug)]
pub struct SetReuse(pub Connection);

impl Action for MakeOver {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(self.connection.name()));
        let (made, has_address) = self.make().map_err(about)?;
        let (early, _) = split(&self.connection.options);
        any_socket::set_options(made.as_fd(), &early).map_err(about)?;
        restoring.degraded.push(self.line(has_address));
        restore::keep(restoring, &self.connection.description, made).map_err(about)
    }
}

impl Action for SetReuse {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(made) = restoring.descriptions.get(&self.0.description.id) else { return Ok(()) };
        any_socket::set_options(made.as_fd(), &split(&self.0.options).1)
    }
}

/// The options that are set at once, and `SO_REUSEADDR`. Those of multicast have the values of the network in a
/// connection that was accepted; they mean nothing there, and can't be set. `IPV6_V6ONLY` is set before the address is.
pub(super) fn split(options: &[SocketOption]) -> (Vec<SocketOption>, Vec<SocketOption>) {
    let is_multicast =
        |option: &SocketOption| MULTICAST.contains(&(option.level.cast_signed(), option.name.cast_signed()));
    let is_too_late = |option: &SocketOption| (option.level, option.name) == V6ONLY;
    let usable = options.iter().filter(|option| !is_multicast(option) && !is_too_late(option)).cloned();
    usable.partition(|option| (option.level, option.name) != (SOCKET, REUSE))
}

impl MakeOver {
    /// What to tell of it.
    fn line(&self, has_address: bool) -> String {
        let what = match self.ending {
            Ending::PeerClosed => "its peer had closed it; the peer's address is another now",
            Ending::Failed => "it had failed; the error is now that of a connection that was reset",
            Ending::Closed => "it was closed",
        };
        let own = if has_address { "" } else { "; its own address is another now" };
        format!(
            "{}: {}: {what}{own}",
            self.holders.name(self.connection.description.id),
            self.connection.name()
        )
    }

    /// The socket, and whether it has the address that it had.
    fn make(&self) -> Result<(OwnedFd, bool)> {
        let local = match self.connection.local {
            Some(Address::Internet(address)) => Some(address),
            Some(Address::Netlink { .. }) | None => None,
        };
        // A socket that is closed holds no port.
        if let (Some(address), Ending::PeerClosed) = (local, self.ending)
            && let Ok(made) = self.connect(address.ip(), Some(address))
        {
            return Ok((made, true));
        }
        let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
        for address in loopback(self.connection.family, local) {
            result = self.connect(address, None);
            if result.is_ok() {
                break;
            }
        }
        let made = result.map_err(|error| {
            Error::system(code::DESCRIPTOR_RESTORE, "making a TCP connection that is over", error)
        })?;
        Ok((made, false))
    }

    /// A connection to ourselves at an address of this host, with data and brought to its end.
    fn connect(&self, at: IpAddr, from: Option<SocketAddr>) -> io::Result<OwnedFd> {
        let family = AddressFamily::from_raw(u16::try_from(self.connection.family).unwrap_or_default());
        let made = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let room = self.make_room(&made)?;
        for option in &self.connection.options {
            if (option.level, option.name) == V6ONLY {
                socket::set_option(made.as_fd(), option.level, option.name, &option.value)?;
            }
        }
        socket::set_option(made.as_fd(), SOCKET, REUSE, &1_u32.to_ne_bytes())?;
        if let Some(from) = from {
            socket::bind(made.as_fd(), &format_address(&Address::Internet(from)))?;
        }
        let to = from.map_or(SocketAddr::new(at, 0), |mut address| {
            address.set_port(0);
            address
        });
        let listener = TcpListener::bind(to)?;
        let peer = accepted(&made, &listener, listener.local_addr()?)?;
        self.fill(&made, &peer)?;
        self.end(&made, peer)?;
        if let Some(before) = room {
            any_socket::give_receive_room_back(made.as_fd(), &before)?;
        }
        Ok(made)
    }

    /// Makes room for all that waits: the window is agreed upon when the connection is made.
    fn make_room(&self, made: &OwnedFd) -> io::Result<Option<(Vec<u8>, u32)>> {
        let bytes = self.data.iter().flat_map(|record| &record.messages).map(|message| message.data.len());
        let bytes: usize = bytes.sum();
        if bytes <= FITS {
            return Ok(None);
        }
        Ok(Some(any_socket::make_receive_room(made.as_fd(), bytes)?))
    }

    /// Sends it what waits, until it is there.
    fn fill(&self, made: &OwnedFd, mut peer: &TcpStream) -> io::Result<()> {
        let mut sent = 0;
        for message in self.data.iter().flat_map(|record| &record.messages) {
            peer.write_all(&message.data)?;
            sent += message.data.len() as u64;
        }
        let begin = Instant::now();
        while rustix::io::ioctl_fionread(made)? < sent {
            if begin.elapsed() > LIMIT {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Closes the other side: in order, or by a reset.
    fn end(&self, made: &OwnedFd, peer: TcpStream) -> io::Result<()> {
        if self.ending != Ending::PeerClosed {
            rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO))?;
        }
        drop(peer);
        wait(made, PollFlags::RDHUP)?;
        if self.ending == Ending::Closed {
            // Asking for the error takes it away.
            socket::number_option(made.as_fd(), SOCKET, libc::SO_ERROR.cast_unsigned())?;
        }
        Ok(())
    }
}

/// Connects a socket with a listener, and gives what that accepted.
pub(super) fn accepted(made: &OwnedFd, listener: &TcpListener, at: SocketAddr) -> io::Result<TcpStream> {
    let limit = Some(LIMIT);
    rustix::net::sockopt::set_socket_timeout(made, rustix::net::sockopt::Timeout::Send, limit)?;
    socket::connect(made.as_fd(), &format_address(&Address::Internet(at)))?;
    rustix::net::sockopt::set_socket_timeout(made, rustix::net::sockopt::Timeout::Send, None)?;
    let own = socket::local_address(made.as_fd())?;
    loop {
        wait(&listener.as_fd().try_clone_to_owned()?, PollFlags::IN)?;
        let (peer, from) = listener.accept()?;
        // Somebody else may have found the listener.
        if internet(super::parse_address(&own)).map(plain) == Some(plain(from)) {
            peer.set_write_timeout(limit)?;
            return Ok(peer);
        }
    }
}

/// Waits for an event, not for ever.
pub(super) fn wait(file: &OwnedFd, event: PollFlags) -> io::Result<()> {
    let time = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    match poll(&mut [PollFd::new(file, event)], Some(&time))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Addresses of the loopback interface that a socket of this family, and of this local address, can connect with.
fn loopback(family: u32, local: Option<SocketAddr>) -> Vec<IpAddr> {
    let four = Ipv4Addr::LOCALHOST;
    if family.cast_signed() == libc::AF_INET {
        return vec![four.into()];
    }
    let mapped = IpAddr::V6(four.to_ipv6_mapped());
    let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
    match local {
        Some(SocketAddr::V6(address)) if address.ip().to_ipv4_mapped().is_some() => vec![mapped],
        _ => vec![six, mapped],
    }
}
