//! Sockets: options and addresses as raw bytes, as `getsockopt(2)`, `bind(2)` and the like take and give them.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
    asked_option(socket, level, name, vec![0; most])
}

/// An option whose value is also a question: the kernel reads it and writes the answer there.
///
/// # Errors
/// See getsockopt(2).
pub fn asked_option(socket: BorrowedFd<'_>, level: u32, name: u32, mut value: Vec<u8>) -> Result<Vec<u8>> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    let (level, name) = (level.cast_signed(), name.cast_signed());
    let place = value.as_mut_ptr().cast();
    // SAFETY: value and length are live, and the length is that of the value.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, place, &raw mut length) };
    Errno::result(result)?;
    value.truncate(length as usize);
    Ok(value)
}

/// `SO_GET_FILTER`, which is `SO_ATTACH_FILTER`.
const FILTER: i32 = libc::SO_ATTACH_FILTER;

/// The instructions of the classic filter of a socket: `struct sock_filter`, 8 bytes each; none without a filter.
///
/// # Errors
/// See socket(7): `EACCES` if it is not a classic one.
pub fn filter(socket: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let get = |place: *mut u8, length: &mut libc::socklen_t| {
        let (file, level) = (socket.as_raw_fd(), libc::SOL_SOCKET);
        // SAFETY: the length is a live number; there is room for 8 bytes for each instruction that it allows, which
        // is more than the kernel takes it for.
        Errno::result(unsafe { libc::getsockopt(file, level, FILTER, place.cast(), length) })
    };
    // Asked without room, the kernel gives the number of instructions as the length.
    let mut count = 0;
    get(std::ptr::null_mut(), &mut count)?;
    let mut instructions = vec![0_u8; count as usize * 8];
    if count > 0 {
        get(instructions.as_mut_ptr(), &mut count)?;
        instructions.truncate(count as usize * 8);
    }
    Ok(instructions)
}

/// Attaches a classic filter.
///
/// # Errors
/// See socket(7).
pub fn set_filter(socket: BorrowedFd<'_>, instructions: &[u8]) -> Result<()> {
    let mut filter = Vec::new();
    for bytes in instructions.chunks_exact(8) {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let k = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        filter.push(libc::sock_filter { code: half(0), jt: bytes[2], jf: bytes[3], k });
    }
    let len = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
    let place = (&raw const program).cast();
    // SAFETY: the program and its instructions are live, and the kernel only reads them.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, place, length)
    };
    Errno::result(result).map(drop)
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

/// Whether what is received next is the urgent byte.
///
/// # Errors
/// See sockatmark(3).
pub fn is_at_mark(socket: BorrowedFd<'_>) -> Result<bool> {
    /// `SIOCATMARK`.
    const AT_MARK: libc::Ioctl = 0x8905;
    number_of(socket, AT_MARK).map(|number| number != 0)
}

/// The file that a unix socket was bound to, as with `O_PATH`.
///
/// # Errors
/// `ENOENT` if there is none; `EPERM` without `CAP_NET_ADMIN`; see also unix(7).
pub fn file(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    /// `SIOCUNIXFILE`.
    const UNIX_FILE: libc::Ioctl = 0x89e0;
    // SAFETY: a call that takes no argument.
    let file = Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), UNIX_FILE) })?;
    // SAFETY: the kernel has just put this descriptor into our table; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

fn number_of(socket: BorrowedFd<'_>, request: libc::Ioctl) -> Result<u32> {
    let mut number: libc::c_int = 0;
    // SAFETY: the kernel writes one int, and number is live.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut number) })?;
    Ok(number.cast_unsigned())
}
