//! Options of sockets of the internet protocols.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "socket_options",
    fixtures: &[("options", options), ("forms", forms)],
    cases: &[("numbers", || two_rounds("options")), ("other_forms", || two_rounds("forms"))],
};

/// An option by its level, its name, and its value in four bytes.
pub(crate) type Choice = (i32, i32, i32);

pub(crate) fn get(socket: i32, level: i32, name: i32) -> Vec<u8> {
    let mut value = [0_u8; 64];
    let mut length = 64_u32;
    // SAFETY: room for 64 bytes.
    let result = unsafe { libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    assert_eq!(result, 0, "option {name} of level {level}");
    value[..length as usize].to_vec()
}

pub(crate) fn set(socket: i32, choices: &[Choice]) {
    for &(level, name, value) in choices {
        let place = (&raw const value).cast();
        // SAFETY: a valid value of four bytes.
        let result = unsafe { libc::setsockopt(socket, level, name, place, 4) };
        assert_eq!(result, 0, "option {name} of level {level}: {}", std::io::Error::last_os_error());
    }
}

const TCP_OPTIONS: &[Choice] = &[
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    (libc::SOL_SOCKET, libc::SO_PRIORITY, 5),
    (libc::SOL_SOCKET, libc::SO_RCVBUF, 50_000),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR, 1),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT, 1),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 1),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 71),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 9),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, 3),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, 33),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 12_345),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4000),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 3),
    (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
    (libc::IPPROTO_IP, libc::IP_TTL, 99),
    (libc::IPPROTO_IP, libc::IP_FREEBIND, 1),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
    (libc::IPPROTO_IP, libc::IP_MINTTL, 1),
];

const UDP_OPTIONS: &[Choice] = &[
    (libc::SOL_SOCKET, libc::SO_BROADCAST, 1),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1),
    (libc::SOL_SOCKET, libc::SO_SNDBUF, 40_000),
    (libc::SOL_SOCKET, libc::SO_NO_CHECK, 1),
    (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 7),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 0),
    (libc::IPPROTO_UDP, 104, 1),
];

const SIX_OPTIONS: &[Choice] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 9),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0x20),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
    (libc::IPPROTO_IPV6, 62, 1),
];

pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> Option<OwnedFd> {
    // SAFETY: plain integers.
    let made = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    // SAFETY: a descriptor that was just made.
    (made >= 0).then(|| unsafe { OwnedFd::from_raw_fd(made) })
}

pub(crate) fn all(sockets: &[(OwnedFd, &[Choice])]) -> Vec<Vec<u8>> {
    let each = |(file, choices): &(OwnedFd, &[Choice])| {
        choices.iter().map(|&(level, name, _)| get(file.as_raw_fd(), level, name)).collect::<Vec<_>>()
    };
    sockets.iter().flat_map(each).collect()
}

fn options(stage: Stage) {
    let made = |family, kind, protocol, choices: &'static [Choice]| {
        let file = socket(family, kind, protocol)?;
        set(file.as_raw_fd(), choices);
        Some((file, choices))
    };
    let sockets: Vec<_> = [
        made(libc::AF_INET, libc::SOCK_STREAM, 0, TCP_OPTIONS),
        made(libc::AF_INET, libc::SOCK_DGRAM, 0, UDP_OPTIONS),
        made(libc::AF_INET6, libc::SOCK_DGRAM, 0, SIX_OPTIONS),
        made(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE, &[(libc::IPPROTO_UDPLITE, 10, 20)]),
    ]
    .into_iter()
    .flatten()
    .collect();
    let before = all(&sockets);
    stage.serve(|_| {
        let now = all(&sockets);
        for (place, (before, now)) in before.iter().zip(&now).enumerate() {
            verify!(before == now, "option number {place}: {before:?} became {now:?}");
        }
        Ok(())
    });
}

/// Options whose values are no numbers, and those of listeners.
fn forms(stage: Stage) {
    let put = |file: &OwnedFd, level: i32, name: i32, value: &[u8]| {
        let (place, length) = (value.as_ptr().cast(), value.len() as u32);
        // SAFETY: a valid value of this length.
        let result = unsafe { libc::setsockopt(file.as_raw_fd(), level, name, place, length) };
        assert_eq!(result, 0, "option {name}: {}", std::io::Error::last_os_error());
    };
    let stream = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    let listener = OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let datagram = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let linger = [1_u32, 7].map(u32::to_ne_bytes).concat();
    let options: [(&OwnedFd, i32, i32, &[u8]); 8] = [
        (&stream, libc::SOL_SOCKET, libc::SO_LINGER, &linger),
        (&stream, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno"),
        (&stream, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &123_456_u64.to_ne_bytes()),
        (&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &5_u32.to_ne_bytes()),
        (&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &3_u32.to_ne_bytes()),
        (&datagram, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo\0"),
        (&datagram, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &1_u32.to_ne_bytes()),
        (&datagram, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &Ipv4Addr::LOCALHOST.octets()),
    ];
    for (file, level, name, value) in options {
        put(file, level, name, value);
    }
    let all = || options.map(|(file, level, name, _)| get(file.as_raw_fd(), level, name));
    let before = all();
    stage.serve(|_| {
        for ((before, now), (_, level, name, _)) in before.iter().zip(all()).zip(options) {
            verify!(*before == now, "option {name} of level {level}: {before:?} became {now:?}");
        }
        Ok(())
    });
}
