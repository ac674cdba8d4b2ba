//! The repair mode of TCP sockets: `TCP_REPAIR` in tcp(7) of the kernel.
//!
//! In it a socket says where its connection stands and takes that, its queues can be read and filled, and closing it
//! sends nothing. It needs `CAP_NET_ADMIN`. Leaving it sets `SO_REUSEADDR` to 0.

use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::os::fd::{AsFd, BorrowedFd};
use vckpt_image_format::record::connection::Stream;

type Result<T> = std::result::Result<T, Errno>;

const TCP: u32 = libc::IPPROTO_TCP.cast_unsigned();
/// `TCP_REPAIR`, with its level.
pub const MODE: (u32, u32) = (TCP, 19);
/// Leaves the mode without asking the peer where it stands.
pub const OFF_SILENTLY: [u8; 4] = (-1_i32).to_ne_bytes();
const QUEUE: u32 = 20;
const SEQUENCE: u32 = 21;
const OPTIONS: u32 = 22;
const CLOCK: u32 = 24;
const WINDOW: u32 = 29;
const SEGMENT: u32 = 2;
/// What can be agreed upon: segment, scales, selective acknowledgements, time stamps.
const AGREED_SEGMENT: u32 = 2;
const AGREED_SCALES: u32 = 3;
const AGREED_SELECTIVE: u32 = 4;
const AGREED_CLOCK: u32 = 8;
/// `TCPI_OPT_TIMESTAMPS`, `TCPI_OPT_SACK`, `TCPI_OPT_WSCALE`.
const HAS_CLOCK: u8 = 1;
const IS_SELECTIVE: u8 = 2;
const HAS_SCALES: u8 = 4;
/// Bytes that are put into a queue at once.
const PIECE: usize = 16 << 10;

/// A queue of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What was received.
    Received = 1,
    /// What is to be sent.
    Sent = 2,
}

/// Whether this program may use the mode.
#[must_use]
pub fn is_permitted() -> bool {
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .is_ok_and(|probe| enter(probe.as_fd()).is_ok())
}

/// Enters the mode.
///
/// # Errors
/// `EPERM` without the right, and for a listener.
pub fn enter(file: BorrowedFd<'_>) -> Result<()> {
    socket::set_option(file, MODE.0, MODE.1, &1_u32.to_ne_bytes())
}

/// Leaves the mode, and asks the peer where it stands.
///
/// # Errors
/// `EPERM` without the right.
pub fn leave(file: BorrowedFd<'_>) -> Result<()> {
    socket::set_option(file, MODE.0, MODE.1, &0_u32.to_ne_bytes())
}

/// Leaves the mode as if nothing had been.
///
/// # Errors
/// `EPERM` without the right.
pub fn leave_silently(file: BorrowedFd<'_>) -> Result<()> {
    socket::set_option(file, MODE.0, MODE.1, &OFF_SILENTLY)
}

fn choose(file: BorrowedFd<'_>, side: Side) -> Result<()> {
    socket::set_option(file, TCP, QUEUE, &(side as u32).to_ne_bytes())
}

/// The sequence number behind the last byte of a queue.
///
/// # Errors
/// Outside of the mode.
pub fn sequence(file: BorrowedFd<'_>, side: Side) -> Result<u32> {
    choose(file, side)?;
    socket::number_option(file, TCP, SEQUENCE)
}

/// Sets the sequence number with which a queue begins. Only before the connection is made.
///
/// # Errors
/// Outside of the mode; `EPERM` when it is connected.
pub fn set_sequence(file: BorrowedFd<'_>, side: Side, value: u32) -> Result<()> {
    choose(file, side)?;
    socket::set_option(file, TCP, SEQUENCE, &value.to_ne_bytes())
}

/// A copy of what is in a queue, of which it has at most this many bytes.
///
/// # Errors
/// Outside of the mode.
pub fn read(file: BorrowedFd<'_>, side: Side, most: usize) -> Result<Vec<u8>> {
    let mut data = vec![0; most];
    if most == 0 {
        return Ok(data);
    }
    choose(file, side)?;
    let count = match rustix::net::recv(file, data.as_mut_slice(), RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(rustix::io::Errno::AGAIN) => 0,
        result => result.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?.0,
    };
    data.truncate(count);
    Ok(data)
}

/// Puts bytes into a queue.
///
/// # Errors
/// `EAGAIN` if there is no room.
pub fn fill(file: BorrowedFd<'_>, side: Side, data: &[u8]) -> Result<()> {
    choose(file, side)?;
    for piece in data.chunks(PIECE) {
        let mut rest = piece;
        while !rest.is_empty() {
            let count = socket::send(file, rest, &[])?;
            rest = rest.get(count..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Where a connection stands, but for the numbers of its queues and what was shut down.
///
/// # Errors
/// Outside of the mode.
pub fn agreed(file: BorrowedFd<'_>) -> Result<Stream> {
    let info = socket::option(file, TCP, libc::TCP_INFO.cast_unsigned())?;
    let (options, scales) = (info.get(5).copied().unwrap_or(0), info.get(6).copied().unwrap_or(0));
    let words = socket::option_of_length(file, TCP, WINDOW, size_of::<[u32; 5]>())?;
    let mut window = [0; 5];
    for (word, bytes) in window.iter_mut().zip(words.chunks_exact(4)) {
        *word = bytes.try_into().map(u32::from_ne_bytes).map_err(|_| Errno::EINVAL)?;
    }
    Ok(Stream {
        lock: 0,
        sent: 0,
        unsent: 0,
        received: 0,
        segment: socket::number_option(file, TCP, SEGMENT)?,
        scales: (options & HAS_SCALES != 0).then_some((scales & 0xf, scales >> 4)),
        selective: options & IS_SELECTIVE != 0,
        clock: if options & HAS_CLOCK != 0 { Some(socket::number_option(file, TCP, CLOCK)?) } else { None },
        window,
        shut: 0,
        ended: false,
    })
}

/// Sets what the ends have agreed upon.
///
/// # Errors
/// Outside of the mode, or when something was sent.
pub fn agree(file: BorrowedFd<'_>, stream: &Stream) -> Result<()> {
    let mut agreed = vec![(AGREED_SEGMENT, stream.segment)];
    if let Some((sending, receiving)) = stream.scales {
        agreed.push((AGREED_SCALES, u32::from(sending) | u32::from(receiving) << 16));
    }
    if stream.selective {
        agreed.push((AGREED_SELECTIVE, 0));
    }
    if stream.clock.is_some() {
        agreed.push((AGREED_CLOCK, 0));
    }
    let bytes: Vec<u8> =
        agreed.iter().flat_map(|&(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat()).collect();
    socket::set_option(file, TCP, OPTIONS, &bytes)?;
    stream.clock.map_or(Ok(()), |clock| socket::set_option(file, TCP, CLOCK, &clock.to_ne_bytes()))
}

/// Sets the windows, when the queues are full.
///
/// # Errors
/// `EINVAL` if they do not fit to the queues.
pub fn set_window(file: BorrowedFd<'_>, stream: &Stream) -> Result<()> {
    let bytes = stream.window.map(u32::to_ne_bytes).concat();
    socket::set_option(file, TCP, WINDOW, &bytes)?;
    // No queue.
    socket::set_option(file, TCP, QUEUE, &0_u32.to_ne_bytes())
}

/// Does something in the mode, and leaves it as if nothing had been.
///
/// # Errors
/// Those of what is done; `EPERM` without the right.
pub fn within<T>(file: BorrowedFd<'_>, done: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
    let (level, name) = (libc::SOL_SOCKET.cast_unsigned(), libc::SO_REUSEADDR.cast_unsigned());
    let reuse = socket::option(file, level, name)?;
    enter(file)?;
    let result = done(file);
    leave_silently(file)?;
    socket::set_option(file, level, name, &reuse)?;
    result
}
