//! Asking the kernel about unix sockets, and about TCP connections without a descriptor: sock_diag(7).
//!
//! Building requests and reading answers is plain work on bytes; the messages travel by `sendto(2)` and `recv(2)`.

mod packet;

pub use packet::PacketSocketInfo;

use super::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
/// Name, file, peer, connections that wait, lengths of the queues.
const SHOW: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10;

/// A connection to the part of the kernel that knows sockets.
#[derive(Debug)]
pub struct SocketDiagnosis(OwnedFd);

/// What the kernel tells about a unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixSocketInfo {
    /// As the states of TCP: 1 connected, 7 not connected, 10 listening.
    pub state: u8,
    /// Inode number of the file that its path made, as far as it fits; 0 for none.
    pub file_inode: u32,
    /// Inode number of its peer: none if it has none, 0 if the peer is closed or not accepted yet.
    pub peer: Option<u32>,
    /// Bytes that wait; of a listening socket connections that wait.
    pub receive_queue: u32,
    /// Bytes on the way; of a listening socket how many connections may wait.
    pub send_queue: u32,
    /// Inode numbers of the sockets whose connections wait to be accepted, in order; 0 for one that is closed.
    pub waiting: Vec<u32>,
    /// 1 receiving, 2 sending, 3 both.
    pub shutdown: u8,
    /// Its name, if it has one.
    pub name: Vec<u8>,
}

impl SocketDiagnosis {
    /// Connects.
    ///
    /// # Errors
    /// See socket(2): `EPROTONOSUPPORT` if the kernel was built without it.
    pub fn new() -> Result<Self> {
        let protocol = NonZeroU32::new(libc::NETLINK_SOCK_DIAG.cast_unsigned()).map(Protocol::from_raw);
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
        socket.map(Self).map_err(error_number)
    }

    /// Asks about the unix socket with this inode number.
    ///
    /// # Errors
    /// `ENOENT` if there is none in our network namespace or the kernel can't tell; see also netlink(7).
    pub fn unix_socket(&self, inode: u64) -> Result<UnixSocketInfo> {
        let inode = u32::try_from(inode).map_err(|_| Errno::ENOENT)?;
        parse(&self.ask(&request(inode))?)
    }

    /// Asks about the TCP connection between two addresses of one family, as the first of them knows it: how many bytes
    /// wait to be read, and the inode number; 0 for one that was not accepted yet, or that was closed.
    ///
    /// # Errors
    /// `ENOENT` if there is none in our network namespace; see also netlink(7).
    pub fn connection(&self, own: SocketAddr, peer: SocketAddr) -> Result<(u32, u32)> {
        let answer = self.ask(&connection_request(own, peer))?;
        let body = body(&answer)?;
        let number = |offset: usize| word(body, offset).ok_or(Errno::EBADMSG);
        Ok((number(56)?, number(68)?))
    }

    fn ask(&self, request: &[u8]) -> Result<Vec<u8>> {
        socket::send(self.0.as_fd(), request, &kernel())?;
        let mut answer = vec![0; 8192];
        let (count, _) =
            rustix::net::recv(&self.0, answer.as_mut_slice(), RecvFlags::empty()).map_err(error_number)?;
        answer.truncate(count);
        Ok(answer)
    }
}

fn error_number(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// The address of the kernel: family and zeros.
fn kernel() -> [u8; 12] {
    let mut kernel = [0_u8; 12];
    kernel[..2].copy_from_slice(&u16::try_from(libc::AF_NETLINK).unwrap_or_default().to_ne_bytes());
    kernel
}

/// `nlmsghdr` and `unix_diag_req`.
fn request(inode: u32) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + 24);
    request.extend(40_u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(1_u16.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([u8::try_from(libc::AF_UNIX).unwrap_or_default(), 0, 0, 0]);
    // All states; the inode; what to show; no cookie.
    for word in [u32::MAX, inode, SHOW, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    request
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn connection_request(own: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let octets = |address: SocketAddr| -> [u8; 16] {
        match address.ip() {
            IpAddr::V6(address) => address.octets(),
            IpAddr::V4(address) => {
                let mut octets = [0; 16];
                octets[..4].copy_from_slice(&address.octets());
                octets
            }
        }
    };
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = Vec::with_capacity(HEADER + 56);
    request.extend(72_u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(1_u16.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, libc::IPPROTO_TCP].map(|number| u8::try_from(number).unwrap_or_default()));
    request.extend([0; 2]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(own.port().to_be_bytes());
    request.extend(peer.port().to_be_bytes());
    request.extend(octets(own));
    request.extend(octets(peer));
    // Any interface, no cookie.
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    request
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// What is behind the header of an answer.
fn body(answer: &[u8]) -> Result<&[u8]> {
    let kind = half(answer, 4).ok_or(Errno::EBADMSG)?;
    if kind == NLMSG_ERROR {
        let error = word(answer, HEADER).ok_or(Errno::EBADMSG)?.cast_signed();
        return Err(Errno::from_raw(-error));
    }
    let length = word(answer, 0).and_then(|length| usize::try_from(length).ok()).ok_or(Errno::EBADMSG)?;
    answer.get(HEADER..length.min(answer.len())).ok_or(Errno::EBADMSG)
}

fn parse(answer: &[u8]) -> Result<UnixSocketInfo> {
    // unix_diag_msg: family, type, state, padding, inode, cookie.
    let body = body(answer)?;
    let mut info = UnixSocketInfo { state: *body.get(2).ok_or(Errno::EBADMSG)?, ..UnixSocketInfo::default() };
    let mut rest = body.get(16..).ok_or(Errno::EBADMSG)?;
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        match kind {
            0 => info.name = value.to_vec(),
            1 => info.file_inode = word(value, 0).unwrap_or_default(),
            2 => info.peer = word(value, 0),
            3 => info.waiting = (0..value.len() / 4).filter_map(|number| word(value, number * 4)).collect(),
            4 => {
                info.receive_queue = word(value, 0).unwrap_or_default();
                info.send_queue = word(value, 4).unwrap_or_default();
            }
            6 => info.shutdown = value.first().copied().unwrap_or_default(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_knows_its_peers() {
        let (first, second) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut &second, b"12345").unwrap();
        let inode = |stream: &UnixStream| rustix::fs::fstat(stream).unwrap().st_ino;
        let Ok(diagnosis) = SocketDiagnosis::new() else { return };
        let info = diagnosis.unix_socket(inode(&first)).unwrap();
        assert_eq!(info.state, 1);
        assert_eq!(info.peer, Some(u32::try_from(inode(&second)).unwrap()));
        assert_eq!((info.receive_queue, info.shutdown), (5, 0));
        drop(second);
        let info = diagnosis.unix_socket(inode(&first)).unwrap();
        assert_eq!((info.peer, info.shutdown), (Some(0), 3));
    }

    #[test]
    fn connections_are_found() {
        use std::net::{TcpListener, TcpStream};
        let Ok(diagnosis) = SocketDiagnosis::new() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::io::Write::write_all(&mut client, b"1234").unwrap();
        let (own, peer) = (listener.local_addr().unwrap(), client.local_addr().unwrap());
        assert_eq!(diagnosis.connection(own, peer), Ok((4, 0)));
        let inode = rustix::fs::fstat(&client).unwrap().st_ino;
        assert_eq!(diagnosis.connection(peer, own), Ok((0, u32::try_from(inode).unwrap())));
    }

    #[test]
    fn no_such_socket_is_an_error() {
        let Ok(diagnosis) = SocketDiagnosis::new() else { return };
        assert_eq!(diagnosis.unix_socket(1), Err(Errno::ENOENT));
    }

    #[test]
    fn nonsense_is_no_panic() {
        for length in 0..64 {
            let _ = parse(&vec![0xff; length]);
            let _ = parse(&vec![0; length]);
        }
    }
}
