//! What sockets of all families have: options, and messages that wait.
//!
//! Options are read with `getsockopt(2)`, and set again where a fresh socket has another value: so what was never
//! changed is never touched. Options that can only be set are not saved.

use super::opened::Opened;
use crate::error::{Error, Result, code};
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd};
use vckpt_image_format::Text;
use vckpt_image_format::record::data_queued::Message;
use vckpt_image_format::record::reception::PacketFilter;
use vckpt_image_format::record::socket_option::SocketOption;

/// `SOL_SOCKET`.
pub const SOCKET: u32 = libc::SOL_SOCKET.cast_unsigned();
const SO_PEEK_OFF: u32 = libc::SO_PEEK_OFF.cast_unsigned();
const SO_SNDBUF: u32 = libc::SO_SNDBUF.cast_unsigned();
const SO_RCVBUF: u32 = libc::SO_RCVBUF.cast_unsigned();
const SO_SNDBUFFORCE: u32 = 32;
const SO_RCVBUFFORCE: u32 = 33;
const SO_LOCK_FILTER: u32 = 44;
/// Which sizes of buffers were set: 1 sending, 2 receiving (kernel 5.14).
const SO_BUF_LOCK: u32 = 72;

/// Multipath TCP: each connection may have several ways.
pub const IPPROTO_MPTCP: i32 = 262;

/// Options of every socket.
pub const GENERAL: &[(u32, i32)] = &[
    (SOCKET, libc::SO_KEEPALIVE),
    (SOCKET, libc::SO_BROADCAST),
    (SOCKET, libc::SO_DONTROUTE),
    (SOCKET, libc::SO_LINGER),
    (SOCKET, libc::SO_OOBINLINE),
    (SOCKET, libc::SO_PASSCRED),
    (SOCKET, libc::SO_PASSSEC),
    (SOCKET, libc::SO_RCVLOWAT),
    (SOCKET, libc::SO_RCVTIMEO),
    (SOCKET, libc::SO_SNDTIMEO),
    (SOCKET, libc::SO_PRIORITY),
    (SOCKET, libc::SO_MARK),
    (SOCKET, libc::SO_NO_CHECK),
    (SOCKET, libc::SO_TIMESTAMP),
    (SOCKET, libc::SO_TIMESTAMPNS),
    (SOCKET, libc::SO_TIMESTAMPING),
    (SOCKET, libc::SO_BUSY_POLL),
    (SOCKET, libc::SO_RXQ_OVFL),
    (SOCKET, libc::SO_WIFI_STATUS),
    (SOCKET, libc::SO_SELECT_ERR_QUEUE),
    (SOCKET, libc::SO_MAX_PACING_RATE),
    (SOCKET, libc::SO_ZEROCOPY),
    (SOCKET, libc::SO_TXTIME),
];

/// What a socket is that no kind claims.
#[must_use]
pub fn unknown(opened: &Opened) -> String {
    let option = |name: i32| {
        socket::number_option(opened.file.as_fd(), SOCKET, name.cast_unsigned()).map_or(-1, u32::cast_signed)
    };
    match (option(libc::SO_DOMAIN), option(libc::SO_PROTOCOL)) {
        (libc::AF_INET | libc::AF_INET6, IPPROTO_MPTCP) => "a connection of Multipath TCP".to_owned(),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_SCTP) => "an SCTP socket".to_owned(),
        (libc::AF_INET | libc::AF_INET6, protocol) => format!("an internet socket of protocol {protocol}"),
        (libc::AF_VSOCK, _) => "a socket to the host or to a virtual machine (vsock)".to_owned(),
        (libc::AF_XDP, _) => "an XDP socket".to_owned(),
        (libc::AF_ALG, _) => "a socket to the kernel's cryptography".to_owned(),
        (libc::AF_CAN, _) => "a CAN socket".to_owned(),
        (libc::AF_BLUETOOTH, _) => "a Bluetooth socket".to_owned(),
        (libc::AF_NETLINK, protocol) => {
            format!("a netlink socket of protocol {protocol} that has spoken to the kernel")
        }
        (family, _) => format!("a socket of address family {family}"),
    }
}

/// The options of a list that it has; those that its family does not know are left out.
#[must_use]
pub fn options(opened: &Opened, wanted: &[(u32, i32)]) -> Vec<SocketOption> {
    let file = opened.file.as_fd();
    let mut options = Vec::new();
    for &(level, name) in GENERAL.iter().chain(wanted) {
        let name = name.cast_unsigned();
        if let Ok(value) = socket::option(file, level, name) {
            options.push(SocketOption { level, name, value });
        }
    }
    let locked = socket::number_option(file, SOCKET, SO_BUF_LOCK).unwrap_or_default();
    for (bit, name) in [(1, SO_SNDBUF), (2, SO_RCVBUF)] {
        if locked & bit != 0
            && let Ok(value) = socket::option(file, SOCKET, name)
        {
            options.push(SocketOption { level: SOCKET, name, value });
        }
    }
    options
}

/// As [`options`]; a socket with a filter is refused.
///
/// # Errors
/// [`code::DESCRIPTOR_KIND`].
pub fn options_without_filter(opened: &Opened, wanted: &[(u32, i32)]) -> Result<Vec<SocketOption>> {
    if filter(opened)?.is_some() {
        return Err(opened.refuse(code::DESCRIPTOR_KIND, "a unix socket with a packet filter attached"));
    }
    Ok(options(opened, wanted))
}

/// The filter of a socket.
///
/// # Errors
/// [`code::DESCRIPTOR_KIND`] for one that the kernel does not give: eBPF.
pub fn filter(opened: &Opened) -> Result<Option<PacketFilter>> {
    let file = opened.file.as_fd();
    match socket::filter(file) {
        Ok(instructions) if instructions.is_empty() => Ok(None),
        Ok(instructions) => {
            let locked = socket::number_option(file, SOCKET, SO_LOCK_FILTER).is_ok_and(|locked| locked != 0);
            Ok(Some(PacketFilter { instructions, locked }))
        }
        // Families without filters.
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Err(Errno::EACCES) => Err(opened.refuse(
            code::DESCRIPTOR_KIND,
            "a socket with an eBPF filter, which the kernel does not give out",
        )),
        Err(errno) => Err(opened.failed("asking for the filter of a socket", errno)),
    }
}

/// Attaches a filter.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`] with the kernel's reason.
pub fn set_filter(made: BorrowedFd<'_>, filter: &PacketFilter) -> Result<()> {
    let attach = || -> std::result::Result<(), Errno> {
        socket::set_filter(made, &filter.instructions)?;
        if filter.locked {
            socket::set_option(made, SOCKET, SO_LOCK_FILTER, &1_u32.to_ne_bytes())?;
        }
        Ok(())
    };
    attach().map_err(|errno| Error::system(code::DESCRIPTOR_RESTORE, "attaching a filter to a socket", errno))
}

/// Sets the options in which a socket differs.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`] with the kernel's reason.
pub fn set_options(made: BorrowedFd<'_>, options: &[SocketOption]) -> Result<()> {
    options.iter().try_for_each(|option| set_option(made, option))
}

/// Whether an option is one of those that are kept. An image may name others, which mean something else than a value.
fn is_kept(level: u32, name: u32) -> bool {
    let key = (level, name.cast_signed());
    let sizes = [(SOCKET, SO_SNDBUF), (SOCKET, SO_RCVBUF)];
    GENERAL.contains(&key)
        || sizes.contains(&(level, name))
        || super::unix::observe::OPTIONS.contains(&key)
        || super::internet::keeps(level.cast_signed(), name.cast_signed())
        || super::packet::keeps(level, name.cast_signed())
}

fn set_option(made: BorrowedFd<'_>, option: &SocketOption) -> Result<()> {
    let SocketOption { level, name, value } = option;
    if !is_kept(*level, *name) {
        let what = format!("option {name} of level {level} is none that a socket has of its own");
        return Err(Error::new(code::IMAGE_BAD, what));
    }
    if socket::option(made, *level, *name).is_ok_and(|has| has == *value) {
        return Ok(());
    }
    let result = match (*level, *name) {
        (SOCKET, SO_SNDBUF) => set_buffer(made, SO_SNDBUF, SO_SNDBUFFORCE, value),
        (SOCKET, SO_RCVBUF) => set_buffer(made, SO_RCVBUF, SO_RCVBUFFORCE, value),
        _ => socket::set_option(made, *level, *name, value),
    };
    result.map_err(|errno| {
        let what = format!("setting option {name} of level {level} of a socket");
        Error::system(code::DESCRIPTOR_RESTORE, what, errno)
    })
}

/// The kernel doubles what it is given, and asks for a right if it is much.
fn set_buffer(made: BorrowedFd<'_>, name: u32, force: u32, value: &[u8]) -> std::result::Result<(), Errno> {
    let value = value.try_into().map(u32::from_ne_bytes).map_err(|_| Errno::EINVAL)?;
    let half = (value / 2).to_ne_bytes();
    socket::set_option(made, SOCKET, force, &half).or_else(|_| socket::set_option(made, SOCKET, name, &half))
}

/// The size of a buffer, and which sizes were set.
pub type Room = (Vec<u8>, u32);

/// Makes room for this many bytes to be sent; what was there before, for [`give_room_back`].
///
/// # Errors
/// What `getsockopt(2)` says.
pub fn make_room(made: BorrowedFd<'_>, bytes: usize) -> std::result::Result<Room, Errno> {
    let before = socket::option(made, SOCKET, SO_SNDBUF)?;
    let locked = socket::number_option(made, SOCKET, SO_BUF_LOCK).unwrap_or_default();
    let wanted = u32::try_from(bytes.saturating_mul(4)).unwrap_or(u32::MAX / 2).min(1 << 30);
    set_buffer(made, SO_SNDBUF, SO_SNDBUFFORCE, &wanted.to_ne_bytes())?;
    Ok((before, locked))
}

/// Undoes [`make_room`].
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn give_room_back(made: BorrowedFd<'_>, before: &Room) -> std::result::Result<(), Errno> {
    set_buffer(made, SO_SNDBUF, SO_SNDBUFFORCE, &before.0)?;
    // Kernels before 5.14 have no such option, and keep the buffer as one that was set.
    socket::set_option(made, SOCKET, SO_BUF_LOCK, &before.1.to_ne_bytes()).or(Ok(()))
}

/// Makes room for this many bytes to be received; what was there before, for [`give_receive_room_back`].
///
/// # Errors
/// What `getsockopt(2)` says.
pub fn make_receive_room(made: BorrowedFd<'_>, bytes: usize) -> std::result::Result<Room, Errno> {
    let before = socket::option(made, SOCKET, SO_RCVBUF)?;
    let locked = socket::number_option(made, SOCKET, SO_BUF_LOCK).unwrap_or_default();
    let wanted = u32::try_from(bytes.saturating_mul(8)).unwrap_or(u32::MAX / 2).min(1 << 30);
    set_buffer(made, SO_RCVBUF, SO_RCVBUFFORCE, &wanted.to_ne_bytes())?;
    Ok((before, locked))
}

/// Undoes [`make_receive_room`].
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn give_receive_room_back(made: BorrowedFd<'_>, before: &Room) -> std::result::Result<(), Errno> {
    set_buffer(made, SO_RCVBUF, SO_RCVBUFFORCE, &before.0)?;
    // Kernels before 5.14 have no such option, and keep the buffer as one that was set.
    socket::set_option(made, SOCKET, SO_BUF_LOCK, &before.1.to_ne_bytes()).or(Ok(()))
}

/// A copy of the bytes that wait in a stream.
///
/// # Errors
/// A queue that can't be read.
pub fn waiting_bytes(opened: &Opened, length: usize) -> Result<Vec<Message>> {
    if length == 0 {
        return Ok(Vec::new());
    }
    match peek(opened, length)? {
        Some(message) if message.data.len() == length => Ok(vec![message]),
        _ => Err(opened.refuse(code::SOCKET_STATE, "a socket does not show all data that waits in it")),
    }
}

/// A copy of the messages that wait, without taking them.
///
/// # Errors
/// A queue that can't be read.
pub fn waiting_messages(opened: &Opened) -> Result<Vec<Message>> {
    let file = opened.file.as_fd();
    let failed = |errno| opened.failed("looking at what waits in a socket", errno);
    let before = socket::option(file, SOCKET, SO_PEEK_OFF).map_err(failed)?;
    socket::set_option(file, SOCKET, SO_PEEK_OFF, &0_i32.to_ne_bytes()).map_err(failed)?;
    let mut messages = Vec::new();
    let result = loop {
        match peek(opened, 0) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => break Ok(messages),
            Err(error) => break Err(error),
        }
    };
    socket::set_option(file, SOCKET, SO_PEEK_OFF, &before).map_err(failed)?;
    result
}

/// Room for a datagram of any size that the kernel's own limits allow.
const LONGEST_MESSAGE: usize = 4 << 20;

/// One message; none if nothing waits. A `length` of 0 stands for a message of any length.
fn peek(opened: &Opened, length: usize) -> Result<Option<Message>> {
    let mut data = vec![0; if length == 0 { LONGEST_MESSAGE } else { length }];
    let mut ancillary = RecvAncillaryBuffer::default();
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let received =
        rustix::net::recvmsg(&opened.file, &mut [IoSliceMut::new(&mut data)], &mut ancillary, flags);
    let received = match received {
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN) => return Ok(None),
        other => other.map_err(|errno| opened.failed("looking at what waits in a socket", errno))?,
    };
    if received.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(
            opened.refuse(code::SOCKET_STATE, "a message that is longer than 4 MiB waits in a socket")
        );
    }
    data.truncate(received.bytes);
    let source = received.address.and_then(|address| std::net::SocketAddr::try_from(address).ok());
    let source = source.map(|address| Text::from(address.to_string().as_bytes()));
    Ok(Some(Message { source, ..Message::plain(data) }))
}
