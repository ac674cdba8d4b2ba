//! A TCP segment as if it came from the peer of a connection: the kernel has no call that tells a socket in the repair
//! mode that its peer has sent its end, so it gets that as a packet, which travels within this host only.

use super::ends::plain;
use super::format_address;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use vckpt_image_format::record::connection::Address;

/// `IPPROTO_RAW`: packets come with their header.
const RAW: u32 = libc::IPPROTO_RAW.cast_unsigned();
const TCP: u8 = 6;
/// The highest time to live: a socket may ask for one (`IP_MINTTL`).
const FAR: u8 = 255;
const END: u8 = 0x01;
const ACKNOWLEDGES: u8 = 0x10;

/// Whether one may send such a segment, and the address is one of this host: it must not leave it.
pub(super) fn can_be_sent_to(local: Option<Address>) -> bool {
    let protocol = NonZeroU32::new(RAW).map(Protocol::from_raw);
    let raw = rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
    let is_here = |local: Address| match local {
        Address::Internet(address) => super::has_address(address).is_ok(),
        Address::Netlink { .. } => false,
    };
    raw.is_ok() && super::repair::is_permitted() && local.is_some_and(is_here)
}

/// The end of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct EndOfStream {
    /// Who sends it.
    pub from: SocketAddr,
    /// Who gets it.
    pub to: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledged: u32,
    /// The window, as it is on the wire.
    pub window: u16,
}

impl EndOfStream {
    /// Sends it to an address of this host.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`; see raw(7).
    pub(super) fn send(self) -> Result<(), Errno> {
        let to = plain(self.to);
        if to.is_ipv4() != plain(self.from).is_ipv4() {
            return Err(Errno::EINVAL);
        }
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let protocol = NonZeroU32::new(RAW).map(Protocol::from_raw);
        let sender = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        // With its scope, by which a link is chosen; raw sockets have no port.
        let mut address = if to.is_ipv4() { to } else { self.to };
        address.set_port(0);
        let address = format_address(&Address::Internet(address));
        socket::send(sender.as_fd(), &self.packet(), &address).map(drop)
    }

    fn packet(self) -> Vec<u8> {
        let (from, to) = (plain(self.from), plain(self.to));
        let mut segment = Vec::with_capacity(20);
        segment.extend(from.port().to_be_bytes());
        segment.extend(to.port().to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend([5 << 4, END | ACKNOWLEDGES]);
        segment.extend(self.window.to_be_bytes());
        // The checksum, and no urgent data.
        segment.extend([0; 4]);
        let length = u8::try_from(segment.len()).unwrap_or_default();
        let addresses = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
        };
        let sum = checksum(&[&addresses[..], &[0, TCP, 0, length], &segment].concat());
        if let Some(place) = segment.get_mut(16..18) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
        // The kernel fills in the identification and the checksum of IPv4.
        let header = if to.is_ipv4() {
            [0x45, 0, 0, 20 + length, 0, 0, 0x40, 0, FAR, TCP, 0, 0].to_vec()
        } else {
            [0x60, 0, 0, 0, 0, length, TCP, FAR].to_vec()
        };
        [header, addresses, segment].concat()
    }
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let halves =
        bytes.chunks_exact(2).map(|half| half.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
    let mut sum: u64 = halves.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_cancel() {
        for (from, to) in [("10.0.0.1:80", "10.0.0.2:5000"), ("[::1]:80", "[::ffff:1]:5000")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let end = EndOfStream { from, to, sequence: 77, acknowledged: 0xffff_ffff, window: 512 };
            let packet = end.packet();
            // The segment with its checksum and the pseudo header add up to nothing.
            let (addresses, segment) = if from.is_ipv4() {
                (&packet[12..20], &packet[20..])
            } else {
                (&packet[8..40], &packet[40..])
            };
            assert_eq!(segment.len(), 20);
            assert_eq!(checksum(&[addresses, &[0, TCP, 0, 20], segment].concat()), 0);
        }
    }
}
