//! Which TCP sockets of a tree are the two ends of one connection.

use super::parse_address;
use crate::kinds::descriptor::opened::Opened;
use crate::sys::socket;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use vckpt_image_format::SocketId;
use vckpt_image_format::record::connection::Address;

/// States of TCP, as `TCP_INFO` tells them.
pub mod state {
    /// Connected.
    pub const ESTABLISHED: u8 = 1;
    /// No answer yet.
    pub const CONNECTING: u8 = 2;
    /// Has sent its end, which is not acknowledged.
    pub const FIN_WAIT_1: u8 = 4;
    /// Has sent its end.
    pub const FIN_WAIT_2: u8 = 5;
    /// Both have ended, and packets may be on the way.
    pub const TIME_WAIT: u8 = 6;
    /// Not connected.
    pub const CLOSE: u8 = 7;
    /// Has got the end of the peer.
    pub const CLOSE_WAIT: u8 = 8;
    /// Has got the end of the peer, and has sent its own.
    pub const LAST_ACK: u8 = 9;
    /// Listening.
    pub const LISTEN: u8 = 10;
    /// Has sent its end, and then got that of the peer.
    pub const CLOSING: u8 = 11;
}

/// Whether a connection in this state has two ends, of which this one has sent its end of the stream; and whether it has
/// got that of the other.
#[must_use]
pub const fn ended(of: u8) -> Option<(bool, bool)> {
    match of {
        state::ESTABLISHED => Some((false, false)),
        state::FIN_WAIT_1 | state::FIN_WAIT_2 => Some((true, false)),
        state::CLOSE_WAIT => Some((false, true)),
        state::LAST_ACK | state::CLOSING => Some((true, true)),
        _ => None,
    }
}

/// The same address, whatever the family of the socket: an IPv4 address in IPv6 becomes one of IPv4, and only what
/// makes an address is left of the others.
#[must_use]
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address as a socket of a family has it.
#[must_use]
pub fn of_family(address: SocketAddr, family: u32) -> SocketAddr {
    match address {
        SocketAddr::V4(four) if family.cast_signed() == libc::AF_INET6 => {
            SocketAddr::new(IpAddr::V6(four.ip().to_ipv6_mapped()), four.port())
        }
        SocketAddr::V6(_) if family.cast_signed() == libc::AF_INET => plain(address),
        SocketAddr::V4(_) | SocketAddr::V6(_) => address,
    }
}

/// An internet address.
#[must_use]
pub const fn internet(address: Option<Address>) -> Option<SocketAddr> {
    match address {
        Some(Address::Internet(address)) => Some(address),
        Some(Address::Netlink { .. }) | None => None,
    }
}

/// The TCP sockets of a tree.
#[derive(Debug, Default)]
pub struct Ends<'tree> {
    connected: HashMap<(SocketAddr, SocketAddr), &'tree Opened>,
    listening: HashMap<SocketAddr, Vec<SocketId>>,
}

impl<'tree> Ends<'tree> {
    /// Finds those among all sockets.
    #[must_use]
    pub fn of(opened: &[&'tree Opened]) -> Self {
        let mut ends = Self::default();
        for &opened in opened {
            let file = opened.file.as_fd();
            let own = socket::local_address(file).ok().and_then(|address| parse_address(&address));
            let peer = socket::peer_address(file).ok().and_then(|address| parse_address(&address));
            let (Some(own), Some(state)) = (internet(own), tcp_state(opened)) else { continue };
            if state == state::LISTEN {
                ends.listening.entry(plain(own)).or_default().push(super::observe::identity(opened));
            } else if let (Some(_), Some(peer)) = (ended(state), internet(peer)) {
                ends.connected.insert((plain(own), plain(peer)), opened);
            }
        }
        ends
    }

    /// The other end of a connection between these addresses.
    #[must_use]
    pub fn other(&self, own: SocketAddr, peer: SocketAddr) -> Option<&'tree Opened> {
        self.connected.get(&(plain(peer), plain(own))).copied()
    }

    /// The listener that gets connections to an address, if it is only one.
    #[must_use]
    pub fn listener(&self, at: SocketAddr) -> Option<SocketId> {
        let at = plain(at);
        let any = |ip: IpAddr| SocketAddr::new(ip, at.port());
        let places =
            [at, any(std::net::Ipv4Addr::UNSPECIFIED.into()), any(std::net::Ipv6Addr::UNSPECIFIED.into())];
        let found = places.iter().find_map(|place| self.listening.get(place));
        found.filter(|found| found.len() == 1).and_then(|found| found.first().copied())
    }

    /// All connections that have their other end in the tree too, or not.
    pub fn connections(
        &self,
        inside: bool,
    ) -> impl Iterator<Item = ((SocketAddr, SocketAddr), &'tree Opened)> {
        let connected = self.connected.iter().map(|(&addresses, &opened)| (addresses, opened));
        connected.filter(move |&((own, peer), _)| self.other(own, peer).is_some() == inside)
    }
}

/// The state of a TCP socket; none if it is none.
#[must_use]
pub fn tcp_state(opened: &Opened) -> Option<u8> {
    let file = opened.file.as_fd();
    let protocol =
        socket::number_option(file, libc::SOL_SOCKET.cast_unsigned(), libc::SO_PROTOCOL.cast_unsigned());
    if protocol != Ok(libc::IPPROTO_TCP.cast_unsigned()) {
        return None;
    }
    let info = socket::option(file, libc::IPPROTO_TCP.cast_unsigned(), libc::TCP_INFO.cast_unsigned());
    info.ok()?.first().copied()
}
