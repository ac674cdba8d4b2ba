//! Packet sockets: they get the packets of network interfaces as these come; see packet(7).
//!
//! - **Saved**: type, protocol and interface, by its name; options, classic filter, memberships, and the group with which
//!   packets are shared (`PACKET_FANOUT`).
//! - **Degraded**: packets that wait are lost, as on a busy host; so are the counters of `PACKET_STATISTICS`. The places
//!   in a group are given in the order of the image.
//! - **Refused**: rings (`PACKET_RX_RING`, `PACKET_TX_RING`), since the kernel does not tell where it is in them; groups
//!   that are divided by a program; eBPF filters; sockets of an interface that is gone; `SOCK_PACKET`.
//! - **Kernel**: `CONFIG_PACKET_DIAG`; `CAP_NET_RAW` to make them again.
//!
//! A socket gets packets from the moment at which it is bound. So a puppet that has it binds it late, when the restore
//! has no packets of its own to send any more.

pub mod observe;
pub mod restore;

use super::opened::Opened;
use super::socket::SOCKET;
use crate::sys::socket;
use std::os::fd::AsFd;

/// `SOL_PACKET`.
const LEVEL: u32 = libc::SOL_PACKET.cast_unsigned();
/// `PACKET_FANOUT`.
const FANOUT: u32 = libc::PACKET_FANOUT.cast_unsigned();
/// `PACKET_COPY_THRESH`.
const COPY_THRESHOLD: i32 = libc::PACKET_COPY_THRESH;

/// Options of packet sockets, in an order in which they can be set: the size of a header fixes that it has one.
pub const OPTIONS: &[(u32, i32)] = &[
    (LEVEL, libc::PACKET_AUXDATA),
    (LEVEL, libc::PACKET_ORIGDEV),
    (LEVEL, libc::PACKET_VERSION),
    (LEVEL, libc::PACKET_RESERVE),
    (LEVEL, libc::PACKET_LOSS),
    (LEVEL, libc::PACKET_VNET_HDR),
    (LEVEL, VNET_HEADER_SIZE),
    (LEVEL, libc::PACKET_TIMESTAMP),
    (LEVEL, libc::PACKET_TX_HAS_OFF),
    (LEVEL, libc::PACKET_QDISC_BYPASS),
    (LEVEL, IGNORE_OUTGOING),
    (LEVEL, COPY_THRESHOLD),
];
/// `PACKET_IGNORE_OUTGOING` (Linux 4.20), `PACKET_VNET_HDR_SZ` (Linux 6.5).
const IGNORE_OUTGOING: i32 = 23;
const VNET_HEADER_SIZE: i32 = 24;

/// Whether it is a packet socket.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    let family = libc::SO_DOMAIN.cast_unsigned();
    opened.file_type() == libc::S_IFSOCK
        && !opened.is_path_only()
        && socket::number_option(opened.file.as_fd(), SOCKET, family) == Ok(libc::AF_PACKET.cast_unsigned())
}

/// Whether an option of a socket is kept.
#[must_use]
pub fn keeps(level: u32, name: i32) -> bool {
    OPTIONS.contains(&(level, name))
}
