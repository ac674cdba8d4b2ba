//! Sockets that send single packets: UDP, UDP-Lite, ICMP, raw; with what waits in them, and their options.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "datagrams",
    fixtures: &[
        ("udp", udp),
        ("options", options),
        ("raw", raw),
        ("foreign", foreign),
        ("multipath", multipath_listener),
    ],
    cases: &[
        ("udp_with_senders", || two_rounds("udp")),
        ("options_of_the_internet", || two_rounds("options")),
        ("raw_sockets", || {
            need_root()?;
            two_rounds("raw")
        }),
        ("sockets_that_are_refused_by_name", refused_by_name),
        ("listener_of_multipath_tcp", multipath),
    ],
};

fn told(error: std::io::Error) -> String {
    error.to_string()
}

fn takes(socket: &UdpSocket, expected: &[(&[u8], SocketAddr)]) -> Verdict {
    socket.set_nonblocking(true).map_err(told)?;
    let mut bytes = [0; 2000];
    for (data, from) in expected {
        let (count, source) = socket.recv_from(&mut bytes).map_err(told)?;
        verify!(&bytes[..count] == *data, "a datagram of {count} bytes, not of {}", data.len());
        verify!(source == *from, "a datagram of {source}, not of {from}");
    }
    let more = socket.recv_from(&mut bytes).map(|(count, _)| count).map_err(|error| error.kind());
    verify!(more == Err(std::io::ErrorKind::WouldBlock), "more datagrams than were sent: {more:?}");
    socket.set_nonblocking(false).map_err(told)
}

fn udp(stage: Stage) {
    let bind = |at: &str| UdpSocket::bind(at).unwrap();
    let (receiver, sender, wide) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"), bind("0.0.0.0:0"));
    let (one, other) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let at = |socket: &UdpSocket| socket.local_addr().unwrap();
    one.connect(at(&other)).unwrap();
    other.connect(at(&one)).unwrap();
    let six = UdpSocket::bind("[::1]:0").ok();
    let to_wide = SocketAddr::from((Ipv4Addr::LOCALHOST, at(&wide).port()));
    // Somebody who is gone when the program is dumped.
    let gone = bind("127.0.0.1:0");
    let gone_at = at(&gone);
    gone.send_to(b"from one who has left", at(&receiver)).unwrap();
    drop(gone);
    let long = vec![7; 1400];
    let load = {
        let (receiver, sender, one, six) =
            (at(&receiver), sender.try_clone().unwrap(), one.try_clone().unwrap(), six.as_ref());
        let long = long.clone();
        move || {
            for data in [&b"first"[..], b"", &long] {
                sender.send_to(data, receiver).unwrap();
            }
            sender.send_to(b"to all addresses", to_wide).unwrap();
            one.send(b"to the peer").unwrap();
            if let Some(six) = six {
                six.send_to(b"of six", six.local_addr().unwrap()).unwrap();
            }
        }
    };
    load();
    let mut at_first = true;
    stage.serve(|number| {
        let from = at(&sender);
        let mut expected: Vec<(&[u8], SocketAddr)> = vec![(b"first", from), (b"", from), (&long, from)];
        if at_first {
            expected.insert(0, (b"from one who has left", gone_at));
        }
        at_first = false;
        takes(&receiver, &expected)?;
        takes(&wide, &[(b"to all addresses", from)])?;
        takes(&other, &[(b"to the peer", at(&one))])?;
        if let Some(six) = &six {
            takes(six, &[(b"of six", at(six))])?;
        }
        // Once more with somebody who is gone, now for the dump.
        let gone = bind("127.0.0.1:0");
        gone.send_to(format!("number {number}").as_bytes(), at(&one)).map_err(told)?;
        load();
        Ok(())
    });
}

/// An option by its level, its name, and its value in four bytes.
type Choice = (i32, i32, i32);

fn get(socket: i32, level: i32, name: i32) -> Vec<u8> {
    let mut value = [0_u8; 64];
    let mut length = 64_u32;
    // SAFETY: room for 64 bytes.
    let result = unsafe { libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    assert_eq!(result, 0, "option {name} of level {level}");
    value[..length as usize].to_vec()
}

fn set(socket: i32, choices: &[Choice]) {
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

fn socket(family: i32, kind: i32, protocol: i32) -> Option<OwnedFd> {
    // SAFETY: plain integers.
    let made = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    // SAFETY: a descriptor that was just made.
    (made >= 0).then(|| unsafe { OwnedFd::from_raw_fd(made) })
}

fn all(sockets: &[(OwnedFd, &[Choice])]) -> Vec<Vec<u8>> {
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

/// Raw sockets, with a filter of ICMP types.
fn raw(stage: Stage) {
    let filter: &[Choice] = &[(libc::IPPROTO_RAW, 1, 0x1234), (libc::SOL_SOCKET, libc::SO_MARK, 77)];
    let header: &[Choice] = &[(libc::IPPROTO_IP, libc::IP_HDRINCL, 1)];
    let sockets = [
        (socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).unwrap(), filter),
        (socket(libc::AF_INET, libc::SOCK_RAW, 253).unwrap(), header),
    ];
    for (file, choices) in &sockets {
        set(file.as_raw_fd(), choices);
    }
    let before = all(&sockets);
    stage.serve(|_| {
        let now = all(&sockets);
        verify!(now == before, "options of raw sockets: {before:?} became {now:?}");
        Ok(())
    });
}

/// A socket of this family, type and protocol.
fn foreign(stage: Stage) {
    let number = |place: usize| stage.arguments[place].parse::<i32>().unwrap();
    let held = socket(number(0), number(1), number(2)).unwrap();
    stage.serve(|_| {
        verify!(held.as_raw_fd() > 2, "no socket");
        Ok(())
    });
}

fn refused_by_name() -> Outcome {
    let mut tried = 0;
    for (family, kind, protocol, name) in [
        (libc::AF_VSOCK, libc::SOCK_STREAM, 0, "vsock"),
        (libc::AF_PACKET, libc::SOCK_DGRAM, 0, "a packet socket"),
        (libc::AF_XDP, libc::SOCK_RAW, 0, "an XDP socket"),
    ] {
        if socket(family, kind, protocol).is_none() {
            continue;
        }
        tried += 1;
        let mut case = Case::new()?;
        let root = case.start("foreign", &[&family.to_string(), &kind.to_string(), &protocol.to_string()])?;
        if !case.is_control() {
            let ran = case.vckpt(&["dump", &root.to_string(), "-o", "foreign.vckpt"])?;
            ran.refused(&[3])?;
            ensure!(ran.stderr.contains(name), "no name: {}", ran.describe());
        }
        case.ask()?;
        case.finish(root)?;
    }
    if tried == 0 { skip("families of sockets beside the usual ones") } else { Ok(()) }
}

/// A listener of Multipath TCP, with a client in each round.
fn multipath_listener(stage: Stage) {
    let listener = socket(libc::AF_INET, libc::SOCK_STREAM, MULTIPATH).unwrap();
    set(listener.as_raw_fd(), &[(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)]);
    // SAFETY: plain integers; without an address it gets any port.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 7) }, 0);
    let listener = std::net::TcpListener::from(listener);
    let port = listener.local_addr().unwrap().port();
    stage.serve(move |_| {
        let client = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(told)?;
        let (_, from) = listener.accept().map_err(told)?;
        verify!(Ok(from) == client.local_addr().map_err(told), "{from} was accepted");
        Ok(())
    });
}

const MULTIPATH: i32 = 262;

fn multipath() -> Outcome {
    if socket(libc::AF_INET, libc::SOCK_STREAM, MULTIPATH).is_none() {
        return skip("Multipath TCP (CONFIG_MPTCP, net.mptcp.enabled)");
    }
    let mut case = Case::new()?;
    let mut root = case.start("multipath", &[])?;
    case.ask()?;
    let image = case.dump(root)?;
    if !case.is_control() {
        let shown = case.vckpt(&["show", text(&image)])?.good()?;
        ensure!(shown.stdout.contains("Multipath TCP"), "nothing is said of it: {}", shown.describe());
    }
    root = case.restore(&image)?;
    case.ask()?;
    root = case.round(root)?;
    case.finish(root)
}
