//! Sockets that send single packets: UDP, UDP-Lite, ICMP, raw; with what waits in them, and their options.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::socket_options::{Choice, all, set, socket};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "datagrams",
    fixtures: &[
        ("udp", udp),
        ("raw", raw),
        ("groups", groups),
        ("corked", corked),
        ("foreign", foreign),
        ("multipath", multipath_listener),
    ],
    cases: &[
        ("udp_with_senders", || two_rounds("udp")),
        ("groups_of_one_port", || two_rounds("groups")),
        ("datagram_being_put_together_is_refused", unfinished),
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
    for (family, kind, protocol, name) in
        [(libc::AF_VSOCK, libc::SOCK_STREAM, 0, "vsock"), (libc::AF_XDP, libc::SOCK_RAW, 0, "an XDP socket")]
    {
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

/// Two listeners and two datagram sockets that share a port: each client is served by one of them.
fn groups(stage: Stage) {
    let reuse: &[Choice] = &[(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)];
    let bind = |kind: i32, port: u16| {
        let made = socket(libc::AF_INET, kind | libc::SOCK_NONBLOCK, 0).unwrap();
        set(made.as_raw_fd(), reuse);
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: a valid address of 16 bytes.
        assert_eq!(unsafe { libc::bind(made.as_raw_fd(), (&raw const address).cast(), 16) }, 0);
        made
    };
    let listen = |port: u16| {
        let made = bind(libc::SOCK_STREAM, port);
        // SAFETY: plain integers.
        assert_eq!(unsafe { libc::listen(made.as_raw_fd(), 64) }, 0);
        std::net::TcpListener::from(made)
    };
    let first = listen(0);
    let at = first.local_addr().unwrap();
    let listeners = [first, listen(at.port())];
    let one = UdpSocket::from(bind(libc::SOCK_DGRAM, 0));
    let to = one.local_addr().unwrap();
    let receivers = [one, UdpSocket::from(bind(libc::SOCK_DGRAM, to.port()))];
    stage.serve(|_| {
        let clients: Vec<_> = (0..40).filter_map(|_| std::net::TcpStream::connect(at).ok()).collect();
        let served =
            listeners.each_ref().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count());
        verify!(served[0] + served[1] == 40 && served[0] > 0 && served[1] > 0, "served: {served:?}");
        drop(clients);
        for _ in 0..40 {
            let sender = UdpSocket::bind("127.0.0.1:0").map_err(told)?;
            sender.send_to(b"x", to).map_err(told)?;
        }
        let count = |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut [0; 9]).ok()).count();
        let got = receivers.each_ref().map(count);
        verify!(got[0] + got[1] == 40 && got[0] > 0 && got[1] > 0, "received: {got:?}");
        Ok(())
    });
}

/// Has begun a datagram, and ends it when it is asked.
fn corked(stage: Stage) {
    let (sender, receiver) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let send = |text: &[u8], flags: i32| {
        // SAFETY: pointer and length are those of a slice.
        unsafe { libc::send(sender.as_raw_fd(), text.as_ptr().cast(), text.len(), flags) }
    };
    assert_eq!(send(b"one, ", libc::MSG_MORE), 5);
    stage.serve(|number| {
        let mut bytes = [0; 40];
        if number == 1 {
            verify!(receiver.recv(&mut bytes).is_err(), "it was sent too early");
            send(b"two", 0);
            let count = receiver.recv(&mut bytes).map_err(told)?;
            verify!(&bytes[..count] == b"one, two", "received: {:?}", &bytes[..count]);
        }
        Ok(())
    });
}

fn unfinished() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("corked", &[])?;
    if !case.is_control() {
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", "corked.vckpt"])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains("being put together"), "no reason: {}", ran.describe());
    }
    case.ask()?;
    root = case.round(root)?;
    case.finish(root)
}
