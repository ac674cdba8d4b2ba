//! Messages of sockets with what travels beside their data, descriptors and credentials: see recvmsg(2), cmsg(3), unix(7).

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

/// `SCM_PIDFD`.
const PIDFD: i32 = 4;
/// Bytes of a `struct cmsghdr`; what it heads is aligned to [`WORD`].
const HEADER: usize = 16;
const WORD: usize = 8;
/// Room for the most descriptors (`SCM_MAX_FD` is 253), credentials, a pidfd, a security label, time stamps.
const CONTROL: usize = 8 * 1024;

/// A message that waits.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Its bytes.
    pub data: Vec<u8>,
    /// The address of its sender as a `struct sockaddr`; empty if it has none.
    pub address: Vec<u8>,
    /// Copies of the descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// Process, user and group of its sender, if the socket tells.
    pub credentials: Option<[u32; 3]>,
    /// Whether it is longer than what was asked for.
    pub is_longer: bool,
    /// Whether something that came with it could not be had.
    pub lacks: bool,
}

/// Looks at the next message, or at most `length` bytes of a stream, without taking them and without waiting. At the end
/// of file there is neither data nor anything else.
///
/// # Errors
/// See recvmsg(2): `EAGAIN` if nothing waits.
pub fn peek(socket: BorrowedFd<'_>, length: usize) -> Result<Waiting> {
    let mut data = vec![0_u8; length];
    let mut address = [0_u8; size_of::<libc::sockaddr_storage>()];
    let mut control = vec![0_u64; CONTROL / WORD];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: a structure of numbers and pointers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = libc::socklen_t::try_from(address.len()).unwrap_or_default();
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: all places are live and have the lengths that the header tells.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let received = Errno::result(received)?;
    data.truncate(received.cast_unsigned());
    data.shrink_to_fit();
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut waiting = Waiting {
        data,
        address: address.get(..header.msg_namelen as usize).unwrap_or_default().to_vec(),
        is_longer: header.msg_flags & libc::MSG_TRUNC != 0,
        lacks: header.msg_flags & libc::MSG_CTRUNC != 0,
        ..Waiting::default()
    };
    for (kind, value) in parts(bytes.get(..header.msg_controllen).unwrap_or_default()) {
        match kind {
            libc::SCM_RIGHTS | PIDFD => {
                // A negative number stands for a pidfd that can't be had.
                let numbers = words(value).filter(|&number| number.cast_signed() >= 0);
                // SAFETY: the kernel has just put these descriptors into our table; nobody else knows them.
                let owned = numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number.cast_signed()) });
                let owned: Vec<OwnedFd> = owned.collect();
                if kind == libc::SCM_RIGHTS {
                    waiting.descriptors.extend(owned);
                }
            }
            libc::SCM_CREDENTIALS => {
                let words: Vec<u32> = words(value).collect();
                waiting.credentials = words.try_into().ok();
            }
            _ => {}
        }
    }
    Ok(waiting)
}

/// How many bytes of a stream come in pieces of their own before the last of the `length` bytes that the next look gives:
/// what was sent in one piece is looked at as a whole, or not at all, if there is no memory for its end.
///
/// # Errors
/// See recvmsg(2) and mmap(2).
pub fn peek_before_last(socket: BorrowedFd<'_>, length: usize) -> Result<usize> {
    const PAGE: usize = 4096;
    let room = length.next_multiple_of(PAGE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses the place, so no existing memory is touched.
    let place = unsafe {
        libc::mmap(std::ptr::null_mut(), room + PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if place == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: within what was just mapped: its last page.
    let end = unsafe { place.byte_add(room) };
    // SAFETY: as above; nothing refers to it.
    let result = unsafe { libc::mprotect(end, PAGE, libc::PROT_NONE) };
    let result = Errno::result(result).and_then(|_| {
        // SAFETY: room is at least length, so this is within the mapping.
        let start = unsafe { end.byte_sub(length.saturating_sub(1)) };
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: where the memory may not be written the kernel says so and writes nothing.
        let count = unsafe { libc::recv(socket.as_raw_fd(), start, length, flags) };
        match Errno::result(count) {
            Err(Errno::EFAULT) => Ok(0),
            count => count.map(isize::cast_unsigned),
        }
    });
    // SAFETY: what was mapped above, to which nothing refers any more.
    unsafe { libc::munmap(place, room + PAGE) };
    result
}

/// The parts of a control message that belong to sockets: the kind of each, and its content.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = (i32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from_ne_bytes(bytes.get(..WORD)?.try_into().ok()?);
        let mut numbers = words(bytes.get(WORD..HEADER)?).map(u32::cast_signed);
        let (level, kind) = (numbers.next()?, numbers.next()?);
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(WORD)..).unwrap_or_default();
        Some((level, kind, value))
    })
    .filter(|&(level, ..)| level == libc::SOL_SOCKET)
    .map(|(_, kind, value)| (kind, value))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes)
}

/// One part of a control message, as sendmsg(2) takes it.
#[must_use]
pub fn part(kind: i32, words: &[u32]) -> Vec<u8> {
    let length = HEADER + words.len() * 4;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(WORD));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    bytes.resize(length.next_multiple_of(WORD), 0);
    bytes
}

/// Sends a message with copies of descriptors to an address, or to the peer if the address is empty; without waiting.
/// More `flags` are those of sendmsg(2).
///
/// # Errors
/// See sendmsg(2): `EAGAIN` if there is no room.
pub fn send(
    socket: BorrowedFd<'_>,
    data: &[u8],
    address: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: i32,
) -> Result<usize> {
    let numbers: Vec<u32> = descriptors.iter().map(|one| one.as_raw_fd().cast_unsigned()).collect();
    let control = if numbers.is_empty() { Vec::new() } else { part(libc::SCM_RIGHTS, &numbers) };
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: a structure of numbers and pointers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if !address.is_empty() {
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = libc::socklen_t::try_from(address.len()).map_err(|_| Errno::EINVAL)?;
    }
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !control.is_empty() {
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len();
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel only reads: the header and what it names, all of which is live.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
    Errno::result(sent).map(isize::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_are_seen_without_being_taken() {
        let (one, other) = UnixStream::pair().unwrap();
        assert_eq!(peek(one.as_fd(), 10).unwrap_err(), Errno::EAGAIN);
        send(other.as_fd(), b"abc", &[], &[one.as_fd(), other.as_fd()], 0).unwrap();
        for _ in 0..2 {
            let waiting = peek(one.as_fd(), 2).unwrap();
            assert_eq!((&waiting.data[..], waiting.descriptors.len()), (&b"ab"[..], 2));
            let inode = |file: BorrowedFd<'_>| rustix::fs::fstat(file).unwrap().st_ino;
            assert_eq!(inode(waiting.descriptors[0].as_fd()), inode(one.as_fd()));
        }
        drop(other);
        let mut rest = [0; 4];
        std::io::Read::read_exact(&mut &one, &mut rest[..3]).unwrap();
        let end = peek(one.as_fd(), 4).unwrap();
        assert!(end.data.is_empty() && end.credentials.is_none());
    }

    #[test]
    fn plain_bytes_before_descriptors_are_counted() {
        for (plain, with) in [(0, 1), (0, 7), (1, 1), (1, 7), (5000, 1), (4096, 4096), (3, 9000)] {
            let (one, other) = UnixStream::pair().unwrap();
            if plain > 0 {
                send(other.as_fd(), &vec![1; plain], &[], &[], 0).unwrap();
            }
            send(other.as_fd(), &vec![2; with], &[], &[one.as_fd()], 0).unwrap();
            send(other.as_fd(), b"behind", &[], &[], 0).unwrap();
            let waiting = peek(one.as_fd(), 100_000).unwrap();
            assert_eq!((waiting.data.len(), waiting.descriptors.len()), (plain + with, 1));
            assert_eq!(peek_before_last(one.as_fd(), plain + with), Ok(plain));
        }
    }

    #[test]
    fn nonsense_is_no_panic() {
        for length in 0..64 {
            assert!(parts(&vec![0xff; length]).next().is_none());
            parts(&vec![0; length]).for_each(drop);
        }
    }
}
