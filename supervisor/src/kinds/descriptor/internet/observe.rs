//! Looking at sockets of the internet protocols.

use super::around::Around;
use super::ends::state;
use super::options::{BEFORE_BIND, NETLINK_OPTIONS, OPTIONS};
use super::parse_address;
use super::stream::Streams;
use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::descriptor::socket::{self as any_socket, SOCKET};
use crate::records::Records;
use crate::sys::socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use vckpt_image_format::SocketId;
use vckpt_image_format::record::connection::{Address, Connection, ConnectionState, Ending};
use vckpt_image_format::record::data_queued::{DataQueued, Queue};

/// Offsets in `struct tcp_info` of what means, for a listener: connections that wait, how many may.
const TCP_INFO_WAITING: usize = 24;
const TCP_INFO_BACKLOG: usize = 28;

/// Gives a record for each socket.
///
/// # Errors
/// All that this kind [refuses](super).
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let (streams, hold) = Streams::find(opened, records.close_connections)?;
    records.hold = hold;
    let around = Around::look()?;
    for opened in opened {
        if let Some(record) = problems.take(connection(opened, &streams, &around, records)) {
            records.push(record);
        }
    }
    problems.finish()
}

fn connection(
    opened: &Opened,
    streams: &Streams<'_>,
    around: &Around,
    records: &mut Records,
) -> Result<Connection> {
    let file = opened.file.as_fd();
    let failed = |errno| opened.failed("looking at a socket", errno);
    let option = |name: i32| socket::number_option(file, SOCKET, name.cast_unsigned()).map_err(failed);
    let (family, socket_type, protocol) =
        (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?, option(libc::SO_PROTOCOL)?);
    // Those to whom it speaks are served without it as well.
    let is_multipath = protocol.cast_signed() == any_socket::IPPROTO_MPTCP;
    if is_multipath {
        let what = "a socket of Multipath TCP without a connection becomes one of TCP";
        records.degraded.push(format!("{}: {what}", opened.subject));
    }
    refuse_layers(opened)?;
    let local = parse_address(&socket::local_address(file).map_err(failed)?);
    let peer = socket::peer_address(file).ok().and_then(|address| parse_address(&address));
    let state = match (family.cast_signed(), protocol.cast_signed()) {
        (libc::AF_NETLINK, _) => netlink_state(opened)?,
        (_, libc::IPPROTO_TCP | any_socket::IPPROTO_MPTCP) => {
            tcp_state(opened, local, peer, streams, around, records)?
        }
        _ => datagram_state(opened, peer, around, records)?,
    };
    let levels = |options: &[(i32, i32)]| -> Vec<(u32, i32)> {
        options.iter().map(|&(level, name)| (level.cast_unsigned(), name)).collect()
    };
    let mut wanted = match family.cast_signed() {
        libc::AF_NETLINK => levels(NETLINK_OPTIONS),
        _ => {
            [levels(&[(libc::SOL_SOCKET, libc::SO_REUSEADDR)]), levels(BEFORE_BIND), levels(OPTIONS)].concat()
        }
    };
    if is_multipath && family.cast_signed() == libc::AF_INET {
        // It answers to those of IPv6 as well, which one of TCP does not have.
        wanted.retain(|&(level, _)| level.cast_signed() != libc::IPPROTO_IPV6);
    }
    // TCP has no groups, and netlink says its own with its address.
    let is_datagram = family.cast_signed() != libc::AF_NETLINK && protocol.cast_signed() != libc::IPPROTO_TCP;
    let memberships = if is_datagram { around.groups.joined(opened)? } else { Vec::new() };
    Ok(Connection {
        id: identity(opened),
        description: opened.description.clone(),
        inode: opened.status.st_ino,
        family,
        socket_type,
        protocol: if is_multipath { libc::IPPROTO_TCP.cast_unsigned() } else { protocol },
        local: local.filter(is_bound),
        state,
        options: any_socket::options(opened, &wanted),
        memberships,
        filter: any_socket::filter(opened)?,
    })
}

/// Refuses protocols on top of TCP in the kernel, such as `tls`, whose keys it does not give out.
fn refuse_layers(opened: &Opened) -> Result<()> {
    let (level, name) = (libc::IPPROTO_TCP.cast_unsigned(), libc::TCP_ULP.cast_unsigned());
    let layer = socket::option(opened.file.as_fd(), level, name).unwrap_or_default();
    let layer = layer.split(|&byte| byte == 0).next().unwrap_or_default();
    if layer.is_empty() || layer == b"mptcp" {
        return Ok(());
    }
    let what = format!("a TCP connection with {} in the kernel", String::from_utf8_lossy(layer));
    Err(opened.refuse(code::DESCRIPTOR_KIND, what))
}

/// A socket has one description, and so the number of that.
pub fn identity(opened: &Opened) -> SocketId {
    SocketId(opened.description.id.0)
}

fn is_bound(address: &Address) -> bool {
    match address {
        Address::Internet(address) => address.port() != 0 || !address.ip().is_unspecified(),
        Address::Netlink { port, groups } => *port != 0 || *groups != 0,
    }
}

/// The state of a TCP socket.
fn tcp_state(
    opened: &Opened,
    local: Option<Address>,
    peer: Option<Address>,
    streams: &Streams<'_>,
    around: &Around,
    records: &mut Records,
) -> Result<ConnectionState> {
    if let Some(found) = streams.look(opened, local, peer, records.hold.as_ref())? {
        found.queued.into_iter().for_each(|record| records.push(record));
        return Ok(found.state);
    }
    let tcp = libc::IPPROTO_TCP.cast_unsigned();
    let info = socket::option(opened.file.as_fd(), tcp, libc::TCP_INFO.cast_unsigned())
        .map_err(|errno| opened.failed("asking for the state of a connection", errno))?;
    let number = |offset: usize| {
        let bytes = info.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    };
    match info.first() {
        Some(&state::CLOSE) => match closed(opened)? {
            Some(ending) => over(opened, ending, peer, records),
            None => Ok(ConnectionState::Unconnected),
        },
        Some(&state::CLOSE_WAIT) => over(opened, Ending::PeerClosed, peer, records),
        Some(&(state::LAST_ACK | state::CLOSING | state::TIME_WAIT)) => {
            over(opened, Ending::Closed, peer, records)
        }
        Some(&state::LISTEN) => {
            let others = number(TCP_INFO_WAITING)
                .saturating_sub(u32::try_from(streams.waiting_at(identity(opened))).unwrap_or(u32::MAX));
            if others > 0 && records.close_connections {
                let line = "connections from outside that wait to be accepted are closed";
                records.degraded.push(format!("{}: {others} {line}", opened.subject));
            } else if others > 0 {
                let what = format!("{others} connections from outside of the tree wait to be accepted");
                let error = opened.refuse(code::SOCKET_STATE, what);
                let hint =
                    "try again when the program has accepted them, or let them be closed with --tcp close";
                return Err(error.hint(hint));
            }
            Ok(ConnectionState::Listening { backlog: number(TCP_INFO_BACKLOG) })
        }
        Some(&state::CONNECTING) => Ok(ConnectionState::Connecting { peer: around.sought(opened, local)? }),
        // What is left are connections that the user gives up.
        Some(&(state::ESTABLISHED | state::FIN_WAIT_1 | state::FIN_WAIT_2)) if records.close_connections => {
            over(opened, Ending::PeerClosed, peer, records)
        }
        _ => {
            let word =
                |address: Option<Address>| address.map_or("?".to_owned(), |address| address.to_string());
            let what = format!("a TCP connection from {} to {}", word(local), word(peer));
            Err(opened.refuse(code::SOCKET_STATE, what))
        }
    }
}

/// How the connection of a socket in state `CLOSE` ended, if it ever had one. Asking for the error would take it away.
fn closed(opened: &Opened) -> Result<Option<Ending>> {
    let mut polled = [PollFd::new(&opened.file, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map_err(|errno| opened.failed("asking whether a connection has ended", errno))?;
    let events = polled[0].revents();
    Ok(match (events.contains(PollFlags::RDHUP), events.contains(PollFlags::ERR)) {
        (false, _) => None,
        (true, true) => Some(Ending::Failed),
        (true, false) => Some(Ending::Closed),
    })
}

/// A connection that is over, with what was received and not read.
fn over(
    opened: &Opened,
    ending: Ending,
    peer: Option<Address>,
    records: &mut Records,
) -> Result<ConnectionState> {
    let length = rustix::io::ioctl_fionread(&opened.file)
        .map_err(|errno| opened.failed("asking what waits in a socket", errno))?;
    let messages = any_socket::waiting_bytes(opened, usize::try_from(length).unwrap_or(usize::MAX))?;
    for record in DataQueued::portions(Queue::Socket(identity(opened)), false, messages) {
        records.push(record);
    }
    Ok(ConnectionState::Over { ending, peer })
}

/// The state of a datagram socket, and what waits in it.
fn datagram_state(
    opened: &Opened,
    peer: Option<Address>,
    around: &Around,
    records: &mut Records,
) -> Result<ConnectionState> {
    around.refuse_unfinished(opened)?;
    let mut polled = [PollFd::new(&opened.file, PollFlags::IN)];
    let polls = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let events = polled[0].revents();
    if polls.is_ok() && events.intersects(PollFlags::IN | PollFlags::ERR) {
        let socket_type =
            socket::number_option(opened.file.as_fd(), SOCKET, libc::SO_TYPE.cast_unsigned()).unwrap_or(0);
        // Looking at an error takes it away.
        if events.contains(PollFlags::ERR) || socket_type.cast_signed() != libc::SOCK_DGRAM {
            records.degraded.push(format!("{}: packets or errors that wait are not kept", opened.subject));
        } else {
            let messages = any_socket::waiting_messages(opened)?;
            for record in DataQueued::portions(Queue::Socket(identity(opened)), true, messages) {
                records.push(record);
            }
        }
    }
    Ok(peer.map_or(ConnectionState::Unconnected, |peer| ConnectionState::FixedPeer { peer }))
}

/// A netlink socket must have nothing to be read.
fn netlink_state(opened: &Opened) -> Result<ConnectionState> {
    use rustix::net::RecvFlags;
    let mut byte = [0_u8; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(&opened.file, byte.as_mut_slice(), flags) {
        Err(rustix::io::Errno::AGAIN) => Ok(ConnectionState::Unconnected),
        _ => Err(opened.refuse(code::SOCKET_STATE, "messages of the kernel wait in a netlink socket")),
    }
}
