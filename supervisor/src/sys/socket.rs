//! Sockets: options and addresses as raw bytes, as `getsockopt(2)`, `bind(2)` and the like take and give them.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

type Result<T> = std::result::Result<T, Errno>;

/// Longest value of an option that is asked for.
const LONGEST_OPTION: usize = 64;

/// The value of an option; at most 64 bytes.
///
/// # Errors
/// See getsockopt(2).
pub fn option(socket: BorrowedFd<'_>, level: u32, name: u32) -> Result<Vec<u8>> {
    option_of_length(socket, level, name, LONGEST_OPTION)
}

/// As [`option`], for those that are only given to who knows how long they are.
///
/// # Errors
/// See getsockopt(2).
pub fn option_of_length(socket: BorrowedFd<'_>, level: u32, name: u32, most: usize) -> Result<Vec<u8>> {
    let mut value = vec![0_u8; most];
    let mut length = libc::socklen_t::try_from(value.len()).unwrap_or_default();
    // SAFETY: value and length are live, and the length is that of the value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level.cast_signed(),
            name.cast_signed(),
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    value.truncate(length as usize);
    Ok(value)
}

/// Sets an option.
///
/// # Errors
/// See setsockopt(2).
pub fn set_option(socket: BorrowedFd<'_>, level: u32, name: u32, value: &[u8]) -> Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads no more than the length of the slice.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level.cast_signed(),
            name.cast_signed(),
            value.as_ptr().cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

/// An option that is a number.
///
/// # Errors
/// See getsockopt(2).
pub fn number_option(socket: BorrowedFd<'_>, level: u32, name: u32) -> Result<u32> {
    let value = option(socket, level, name)?;
    value.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes).ok_or(Errno::EINVAL)
}

/// Its own address (`getsockname(2)`), as a `struct sockaddr` of its family.
///
/// # Errors
/// See getsockname(2).
pub fn local_address(socket: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut address = [0_u8; size_of::<libc::sockaddr_storage>()];
    let mut length = libc::socklen_t::try_from(address.len()).unwrap_or_default();
    // SAFETY: address and length are live, and the length is that of the address.
    let result =
        unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result)?;
    Ok(address.get(..length as usize).unwrap_or(&address).to_vec())
}

/// The address of its peer (`getpeername(2)`), as a `struct sockaddr` of its family.
///
/// # Errors
/// See getpeername(2): `ENOTCONN` if there is none.
pub fn peer_address(socket: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut address = [0_u8; size_of::<libc::sockaddr_storage>()];
    let mut length = libc::socklen_t::try_from(address.len()).unwrap_or_default();
    // SAFETY: address and length are live, and the length is that of the address.
    let result =
        unsafe { libc::getpeername(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result)?;
    Ok(address.get(..length as usize).unwrap_or(&address).to_vec())
}

/// Gives a socket its address.
///
/// # Errors
/// See bind(2).
pub fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    let length = libc::socklen_t::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads no more than the length of the slice.
    let result = unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) };
    Errno::result(result).map(drop)
}

/// Connects a socket.
///
/// # Errors
/// See connect(2).
pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    let length = libc::socklen_t::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads no more than the length of the slice.
    let result = unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) };
    Errno::result(result).map(drop)
}

/// Sends a message to an address, or to the peer if the address is empty; without waiting.
///
/// # Errors
/// See send(2): `EAGAIN` if there is no room.
pub fn send(socket: BorrowedFd<'_>, data: &[u8], address: &[u8]) -> Result<usize> {
    let length = libc::socklen_t::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    let to = if address.is_empty() { std::ptr::null() } else { address.as_ptr() };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads no more than the lengths of the two slices.
    let result = unsafe {
        libc::sendto(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), flags, to.cast(), length)
    };
    Errno::result(result).map(isize::cast_unsigned)
}

/// How many bytes were sent, or are to be, and not acknowledged; with the end of the stream as one.
///
/// # Errors
/// See tcp(7): `EINVAL` for a listener.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> Result<u32> {
    number_of(socket, libc::TIOCOUTQ)
}

/// How many bytes are to be sent and never were; with the end of the stream as one.
///
/// # Errors
/// As [`unacknowledged`].
pub fn unsent(socket: BorrowedFd<'_>) -> Result<u32> {
    /// `SIOCOUTQNSD`.
    const NOT_SENT: libc::Ioctl = 0x894b;
    number_of(socket, NOT_SENT)
}

fn number_of(socket: BorrowedFd<'_>, request: libc::Ioctl) -> Result<u32> {
    let mut number: libc::c_int = 0;
    // SAFETY: the kernel writes one int, and number is live.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut number) })?;
    Ok(number.cast_unsigned())
}
