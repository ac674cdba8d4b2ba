//! Sockets of the internet protocols (ip(7), ipv6(7), tcp(7), udp(7)), and netlink(7).
//!
//! - **Saved**: TCP sockets that listen, are bound, or nothing yet; TCP connections: with both ends in the tree
//!   ([`pair`]), in the backlog of a listener of the tree, with a peer outside ([`revive`]), those that are over
//!   ([`over`]) or still being made; UDP, UDP-Lite and ICMP sockets with the datagrams that wait; raw and netlink
//!   sockets; their options, filters, multicast groups and backlog.
//! - **Held**: between dump and restore the packets of connections with a peer outside are dropped by a firewall table
//!   of ours ([`hold`]), so that the kernel does not answer the peer with a reset.
//! - **Refused**: connections from outside of the tree that wait to be accepted, and data in those from inside;
//!   connections with a peer outside without `CAP_NET_ADMIN`; urgent data; packet and other sockets; netlink sockets
//!   with messages.
//! - **Not exact**: Multipath TCP, of which listeners become such of TCP; the address of the peer of a connection that is
//!   over; which error it failed with, since asking for it would take it away; packets that wait in raw sockets; errors
//!   that wait in UDP sockets.
//! - **Not saved**: the mark of urgent data that is read in line, data out of order (the peer sends it again).
//! - **Kernel**: `TCP_REPAIR` and nf_tables with owned tables (5.12) for peers outside; `TCP_INFO` tells the state, and of
//!   a listener the backlog; `IP_LOCAL_PORT_RANGE` (6.3) for ports that other connections share.

mod around;
mod connecting;
mod datagrams;
pub mod ends;
pub mod hold;
pub mod observe;
mod options;
pub mod over;
pub mod pair;
pub mod reception;
pub mod repair;
pub mod restore;
pub mod revive;
mod segment;
pub mod stream;
mod urgent;

use super::all;
use super::opened::Opened;
use super::socket::{IPPROTO_MPTCP, SOCKET};
use crate::error::{Error, Problems, Result, Subject, code};
use crate::plan::Plan;
use crate::sys::socket;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use vckpt_image_format::record::connection::{Address, Connection, ConnectionState};
use vckpt_image_format::record::socket_option::SocketOption;
use vckpt_image_format::{Image, Record};

/// Whether it is a socket of one of these families, and of a type that can be kept.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    if opened.file_type() != libc::S_IFSOCK {
        return false;
    }
    let option = |name: i32| {
        socket::number_option(opened.file.as_fd(), SOCKET, name.cast_unsigned()).map_or(-1, u32::cast_signed)
    };
    match (option(libc::SO_DOMAIN), option(libc::SO_TYPE), option(libc::SO_PROTOCOL)) {
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => true,
        (libc::AF_INET | libc::AF_INET6, _, IPPROTO_MPTCP) => {
            socket::peer_address(opened.file.as_fd()).is_err()
        }
        (libc::AF_INET | libc::AF_INET6, _, protocol) => matches!(
            protocol,
            libc::IPPROTO_TCP
                | libc::IPPROTO_UDP
                | libc::IPPROTO_UDPLITE
                | libc::IPPROTO_ICMP
                | libc::IPPROTO_ICMPV6
        ),
        (libc::AF_NETLINK, _, protocol) => {
            protocol == libc::NETLINK_ROUTE || protocol == libc::NETLINK_KOBJECT_UEVENT || is_fresh(opened)
        }
        _ => false,
    }
}

/// Looks whether this host has the addresses of the sockets, and the rights that their connections need.
///
/// # Errors
/// [`code::ADDRESS_TAKEN`] with the address, [`code::PRIVILEGE`].
pub fn check(image: &Image, plan: &Plan) -> Result<()> {
    let mut problems = Problems::new();
    let mut known = HashSet::new();
    for mut connection in all::<Connection>(image)? {
        plan.map(&mut connection);
        let ended = |ended: bool| matches!(connection.state, ConnectionState::Established { stream, .. } if stream.ended == ended);
        if ended(false) && !repair::is_permitted() {
            let what = "making a TCP connection again whose peer is outside";
            let error = Error::new(code::PRIVILEGE, what).because("this needs CAP_NET_ADMIN");
            problems.push(error.about(Subject::path(connection.name())));
        }
        for membership in &connection.memberships {
            let found = reception::interface(membership);
            problems.take(found.map_err(|error| error.about(Subject::path(connection.name()))));
        }
        let Some(Address::Internet(local)) = connection.local else { continue };
        // Those that are over, or that the peer has ended, may get another address; some are had although this host has them not.
        let is_free = [(libc::IPPROTO_IP, libc::IP_FREEBIND), (libc::IPPROTO_IP, libc::IP_TRANSPARENT)];
        let is_free = |option: &SocketOption| {
            is_free.contains(&(option.level.cast_signed(), option.name.cast_signed()))
                && option.value.iter().any(|&byte| byte != 0)
        };
        if matches!(connection.state, ConnectionState::Over { .. })
            || ended(true)
            || connection.options.iter().any(is_free)
            || !known.insert(local.ip())
        {
            continue;
        }
        problems.take(has_address(local).map_err(|error| error.about(Subject::path(connection.name()))));
    }
    problems.finish()
}

/// Whether an option of a socket of these families is kept.
#[must_use]
pub fn keeps(level: i32, name: i32) -> bool {
    options::keeps(level, name)
}

/// Whether this host has an address.
fn has_address(mut address: SocketAddr) -> Result<()> {
    address.set_port(0);
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let probe = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let bound = probe
        .map_err(|errno| nix::errno::Errno::from_raw(errno.raw_os_error()))
        .and_then(|probe| socket::bind(probe.as_fd(), &format_address(&Address::Internet(address))));
    bound.map_err(|errno| {
        let what = format!("this host does not have the address {}", address.ip());
        let hint = format!(
            "give it to an interface, or give the sockets another one with --map-ip {}=NEW",
            address.ip()
        );
        Error::system(code::ADDRESS_TAKEN, what, errno).hint(hint)
    })
}

/// Whether it is a netlink socket that has not said anything yet, and so has no port: the kernel keeps nothing for it,
/// whatever its protocol. Programs open one for audit messages that they may never send.
fn is_fresh(opened: &Opened) -> bool {
    let address = socket::local_address(opened.file.as_fd()).ok().and_then(|address| parse_address(&address));
    matches!(address, Some(Address::Netlink { port: 0, groups: 0 }))
}

fn half(bytes: &[u8], offset: usize) -> Option<[u8; 2]> {
    bytes.get(offset..offset + 2)?.try_into().ok()
}

fn word(bytes: &[u8], offset: usize) -> Option<[u8; 4]> {
    bytes.get(offset..offset + 4)?.try_into().ok()
}

/// Reads a `struct sockaddr` of one of the families.
#[must_use]
pub fn parse_address(bytes: &[u8]) -> Option<Address> {
    match i32::from(u16::from_ne_bytes(half(bytes, 0)?)) {
        libc::AF_INET => {
            let port = u16::from_be_bytes(half(bytes, 2)?);
            Some(Address::Internet(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(word(bytes, 4)?)), port)))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let port = u16::from_be_bytes(half(bytes, 2)?);
            let flow = u32::from_be_bytes(word(bytes, 4)?);
            let scope = u32::from_ne_bytes(word(bytes, 24)?);
            Some(Address::Internet(SocketAddr::V6(SocketAddrV6::new(
                Ipv6Addr::from(octets),
                port,
                flow,
                scope,
            ))))
        }
        libc::AF_NETLINK => Some(Address::Netlink {
            port: u32::from_ne_bytes(word(bytes, 4)?),
            groups: u32::from_ne_bytes(word(bytes, 8)?),
        }),
        _ => None,
    }
}

/// Writes a `struct sockaddr`.
#[must_use]
pub fn format_address(address: &Address) -> Vec<u8> {
    let family = |family: i32| u16::try_from(family).unwrap_or_default().to_ne_bytes();
    match address {
        Address::Internet(SocketAddr::V4(v4)) => {
            [&family(libc::AF_INET)[..], &v4.port().to_be_bytes(), &v4.ip().octets(), &[0; 8]].concat()
        }
        Address::Internet(SocketAddr::V6(v6)) => [
            &family(libc::AF_INET6)[..],
            &v6.port().to_be_bytes(),
            &v6.flowinfo().to_be_bytes(),
            &v6.ip().octets(),
            &v6.scope_id().to_ne_bytes(),
        ]
        .concat(),
        Address::Netlink { port, groups } => {
            [&family(libc::AF_NETLINK)[..], &[0; 2], &port.to_ne_bytes(), &groups.to_ne_bytes()].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        for text in ["127.0.0.1:80", "[::1]:443", "[fe80::1%3]:5353", "0.0.0.0:0"] {
            let address = Address::Internet(text.parse().unwrap());
            assert_eq!(parse_address(&format_address(&address)), Some(address));
        }
        let address = Address::Netlink { port: 77, groups: 5 };
        assert_eq!(parse_address(&format_address(&address)), Some(address));
        assert_eq!(parse_address(&[2, 0, 0]), None);
    }
}
