//! What sockets receive beside their own address, and what they do not: multicast groups, packet filters.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::check;
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "reception",
    fixtures: &[("members", members), ("filtered", filtered)],
    cases: &[("multicast_groups", || two_rounds("members")), ("packet_filters", || two_rounds("filtered"))],
};

const ANY: Ipv4Addr = Ipv4Addr::new(239, 77, 1, 1);
const SELECTED: Ipv4Addr = Ipv4Addr::new(239, 77, 1, 2);
const SIX: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x77, 0x1234);
const GOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const BAD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);
const IP_MULTICAST_ALL: i32 = 49;

fn told(error: std::io::Error) -> String {
    error.to_string()
}

fn set<T>(socket: &UdpSocket, level: i32, name: i32, value: &T) -> std::io::Result<i64> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap();
    // SAFETY: a live value of this length.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
    check(i64::from(result))
}

/// The whole content of what waits in a socket.
fn waiting(socket: &UdpSocket) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut bytes = [0; 200];
    loop {
        match socket.recv(&mut bytes) {
            Ok(count) => found.push(String::from_utf8_lossy(&bytes[..count]).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Sends to a group, out of the loopback interface.
fn send(from: Ipv4Addr, group: Ipv4Addr, port: u16, text: &str) -> Verdict {
    let sender = UdpSocket::bind((from, 0)).map_err(told)?;
    let interface = u32::from(Ipv4Addr::LOCALHOST).to_be();
    set(&sender, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface).map_err(told)?;
    sender.send_to(text.as_bytes(), (group, port)).map(drop).map_err(told)
}

/// A member of one group; one of another with chosen sources; one of a group of IPv6; one of none.
fn members(stage: Stage) {
    let bind = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        // Otherwise a socket gets the packets of all groups that anybody has joined.
        set(&socket, libc::IPPROTO_IP, IP_MULTICAST_ALL, &0_i32).unwrap();
        socket
    };
    let at = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    let (member, chooser, stranger) = (bind(), bind(), bind());
    member.join_multicast_v4(&ANY, &Ipv4Addr::LOCALHOST).unwrap();
    let source = libc::ip_mreq_source {
        imr_multiaddr: libc::in_addr { s_addr: u32::from(SELECTED).to_be() },
        imr_sourceaddr: libc::in_addr { s_addr: u32::from(GOOD).to_be() },
        imr_interface: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
    };
    set(&chooser, libc::IPPROTO_IP, libc::IP_ADD_SOURCE_MEMBERSHIP, &source).unwrap();
    let six = UdpSocket::bind("[::]:0").ok().filter(|socket| socket.join_multicast_v6(&SIX, 1).is_ok());
    stage.serve(|number| {
        let text = |what: &str| format!("{what} {number}");
        for (socket, group) in
            [(&member, ANY), (&member, SELECTED), (&chooser, ANY), (&stranger, ANY), (&stranger, SELECTED)]
        {
            send(GOOD, group, at(socket), &text(&group.to_string()))?;
        }
        send(GOOD, SELECTED, at(&chooser), &text("good"))?;
        send(BAD, SELECTED, at(&chooser), &text("bad"))?;
        let (found, chosen, strange) = (waiting(&member)?, waiting(&chooser)?, waiting(&stranger)?);
        verify!(found == [text(&ANY.to_string())], "the member got {found:?}");
        verify!(chosen == [text("good")], "who chose its sources got {chosen:?}");
        verify!(strange.is_empty(), "who is no member got {strange:?}");
        if let Some(six) = &six {
            // The loopback interface has no route for them. Only who is a member can leave.
            six.leave_multicast_v6(&SIX, 1).map_err(|error| format!("no member of {SIX}: {error}"))?;
            six.join_multicast_v6(&SIX, 1).map_err(told)?;
        }
        Ok(())
    });
}

/// Lets packets through whose data begins with this byte.
fn filter(socket: &UdpSocket, byte: u8) -> std::io::Result<i64> {
    let one = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    // Behind the 8 bytes of the header of UDP.
    let mut steps =
        [one(0x30, 0, 0, 8), one(0x15, 0, 1, byte.into()), one(0x06, 0, 0, u32::MAX), one(0x06, 0, 0, 0)];
    let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// A socket with a filter and a packet that came before that; one whose filter can't be changed.
fn filtered(stage: Stage) {
    let bind = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let (plain, locked, sender) = (bind(), bind(), bind());
    let send = |to: &UdpSocket, text: &str| {
        sender.send_to(text.as_bytes(), to.local_addr().unwrap()).map(drop).map_err(told)
    };
    send(&plain, "before").unwrap();
    filter(&plain, b'a').unwrap();
    filter(&locked, b'z').unwrap();
    set(&locked, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1_i32).unwrap();
    let mut before = vec!["before".to_owned()];
    stage.serve(|_| {
        for socket in [&plain, &locked] {
            for text in ["a1", "b2", "z3"] {
                send(socket, text)?;
            }
        }
        let found = waiting(&plain)?;
        verify!(found == [&before[..], &["a1".to_owned()]].concat(), "the filter let {found:?} through");
        let found = waiting(&locked)?;
        verify!(found == ["z3"], "the locked filter let {found:?} through");
        let error = filter(&locked, b'b').map_err(|error| error.raw_os_error());
        verify!(error == Err(Some(libc::EPERM)), "the filter can be changed: {error:?}");
        before.clear();
        Ok(())
    });
}
