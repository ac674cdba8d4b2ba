//! Asking the kernel about packet sockets, of which it only tells all at once: `linux/packet_diag.h`.

use super::{HEADER, NLMSG_ERROR, Result, SOCK_DIAG_BY_FAMILY, SocketDiagnosis, error_number, half, word};
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::RecvFlags;
use std::collections::HashMap;
use std::os::fd::AsFd;

const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST` and `NLM_F_DUMP`.
const ALL: u16 = 0x301;
/// Configuration, memberships, rings, group, memory.
const SHOW: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10;

/// What the kernel tells about a packet socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketSocketInfo {
    /// Packets up to this size are copied beside a ring (`PACKET_COPY_THRESH`).
    pub copy_threshold: u32,
    /// Number of the interface, how often, type, and address of each membership.
    pub memberships: Vec<(u32, u32, u16, Vec<u8>)>,
    /// Whether it shares packets with a group: `PACKET_FANOUT` of `getsockopt(2)` is 0 for one of the groups too.
    pub has_group: bool,
    /// Whether it has a ring for receiving or sending.
    pub has_ring: bool,
    /// Bytes of memory that packets take which wait.
    pub waiting: u32,
}

impl SocketDiagnosis {
    /// Asks about all packet sockets of our network namespace; they are found by their inode numbers.
    ///
    /// # Errors
    /// `ENOENT` if the kernel can't tell; see also netlink(7).
    pub fn packet_sockets(&self) -> Result<HashMap<u64, PacketSocketInfo>> {
        socket::send(self.0.as_fd(), &request(), &super::kernel())?;
        let mut found = HashMap::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let (count, _) = rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())
                .map_err(error_number)?;
            let mut rest = buffer.get(..count).unwrap_or_default();
            while let (Some(length), Some(kind)) = (word(rest, 0), half(rest, 4)) {
                let length = usize::try_from(length).unwrap_or(0).max(HEADER);
                let body = rest.get(HEADER..length).ok_or(Errno::EBADMSG)?;
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        return Err(Errno::from_raw(-word(body, 0).unwrap_or(0).cast_signed()));
                    }
                    _ => found.extend(parse(body)),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// `nlmsghdr` and `packet_diag_req`.
fn request() -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + 20);
    request.extend(36_u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(ALL.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([u8::try_from(libc::AF_PACKET).unwrap_or_default(), 0, 0, 0]);
    // Any inode; what to show; no cookie.
    for word in [0, SHOW, 0, 0] {
        request.extend(word.to_ne_bytes());
    }
    request
}

/// `packet_diag_msg` and its attributes.
fn parse(body: &[u8]) -> Option<(u64, PacketSocketInfo)> {
    let inode = word(body, 4)?;
    let mut info = PacketSocketInfo::default();
    let mut rest = body.get(16..)?;
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        match kind {
            0 => info.copy_threshold = word(value, 12).unwrap_or_default(),
            1 => info.memberships = value.chunks_exact(44).filter_map(membership).collect(),
            2 | 3 => info.has_ring = true,
            4 => info.has_group = true,
            6 => info.waiting = word(value, 0).unwrap_or_default(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((inode.into(), info))
}

/// `packet_diag_mclist`.
fn membership(entry: &[u8]) -> Option<(u32, u32, u16, Vec<u8>)> {
    let length = usize::from(half(entry, 10)?);
    Some((word(entry, 0)?, word(entry, 4)?, half(entry, 8)?, entry.get(12..12 + length)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_taken_apart() {
        let mut body = vec![17, 3, 0, 3];
        body.extend(77_u32.to_ne_bytes());
        body.extend([0; 8]);
        let mut attribute = |kind: u16, value: &[u8]| {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        };
        let mut configuration = [0; 24];
        configuration[12] = 9;
        attribute(0, &configuration);
        let mut entry = [0; 44];
        (entry[0], entry[4], entry[8], entry[10], entry[12]) = (2, 1, 3, 6, 0xaa);
        attribute(1, &entry);
        attribute(4, &0_u32.to_ne_bytes());
        attribute(6, &5_u32.to_ne_bytes());
        let expected = PacketSocketInfo {
            copy_threshold: 9,
            memberships: vec![(2, 1, 3, vec![0xaa, 0, 0, 0, 0, 0])],
            has_group: true,
            has_ring: false,
            waiting: 5,
        };
        assert_eq!(parse(&body), Some((77, expected)));
        assert_eq!(parse(&[]), None);
    }
}
