//! Messages of unix sockets with what travels beside their data.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::kernel::check;

const SCM_PIDFD: i32 = 4;

/// A message that was received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Process, user, group.
    pub(crate) credentials: Option<[u32; 3]>,
    pub(crate) pidfd: Option<OwnedFd>,
}

/// A pair of sockets of a type.
pub(crate) fn pair(socket_type: i32) -> [OwnedFd; 2] {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which nobody else knows.
    check(unsafe { libc::socketpair(libc::AF_UNIX, socket_type | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) })
        .unwrap();
    ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) })
}

/// Sends bytes with copies of descriptors, and credentials if they are given.
pub(crate) fn send(
    socket: &OwnedFd,
    bytes: &[u8],
    descriptors: &[i32],
    credentials: Option<[u32; 3]>,
) -> io::Result<()> {
    let mut control = Vec::new();
    let mut add = |kind: i32, words: &[u32]| {
        control.extend((16 + words.len() * 4).to_ne_bytes());
        control.extend([libc::SOL_SOCKET, kind].iter().flat_map(|word| word.to_ne_bytes()));
        control.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        control.resize(control.len().next_multiple_of(8), 0_u8);
    };
    if !descriptors.is_empty() {
        let words: Vec<u32> = descriptors.iter().map(|number| number.cast_unsigned()).collect();
        add(libc::SCM_RIGHTS, &words);
    }
    if let Some(credentials) = credentials {
        add(libc::SCM_CREDENTIALS, &credentials);
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: zeros are a valid header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    if !control.is_empty() {
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), control.len());
    }
    // SAFETY: everything that the header names is live.
    let sent = check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) })?;
    if sent.cast_unsigned() == bytes.len() { Ok(()) } else { Err(io::Error::other("sent a part only")) }
}

/// Receives a message without waiting.
pub(crate) fn receive(socket: &OwnedFd, room: usize) -> io::Result<Received> {
    let mut bytes = vec![0_u8; room];
    let mut control = [0_u64; 512];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: zeros are a valid header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: everything that the header names is live.
    let count = check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    bytes.truncate(count.cast_unsigned());
    let mut received = Received { bytes, descriptors: Vec::new(), credentials: None, pidfd: None };
    if header.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0 {
        return Err(io::Error::other(format!("cut off, flags {:#x}", header.msg_flags)));
    }
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut rest = &control[..header.msg_controllen];
    while rest.len() >= 16 {
        let length = usize::from_ne_bytes(rest[..8].try_into().unwrap());
        let kind = i32::from_ne_bytes(rest[12..16].try_into().unwrap());
        let words: Vec<u32> = rest[16..length]
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        // SAFETY: descriptors that were just received, which nobody else knows.
        let own = |word: &u32| unsafe { OwnedFd::from_raw_fd(word.cast_signed()) };
        match kind {
            libc::SCM_RIGHTS => received.descriptors.extend(words.iter().map(own)),
            libc::SCM_CREDENTIALS => received.credentials = words.try_into().ok(),
            SCM_PIDFD => received.pidfd = words.first().filter(|word| word.cast_signed() >= 0).map(own),
            _ => return Err(io::Error::other(format!("a control message of kind {kind}"))),
        }
        rest = &rest[length.next_multiple_of(8).min(rest.len())..];
    }
    Ok(received)
}

/// Whether two descriptors of this process lead to one description.
pub(crate) fn same(one: i32, other: i32) -> bool {
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_kcmp, libc::getpid(), libc::getpid(), 0, one, other) == 0 }
}

/// An option of a socket that is an int.
pub(crate) fn option(socket: &OwnedFd, name: i32) -> i32 {
    let (mut value, mut length) = (0_i32, 4_u32);
    let place = (&raw mut value).cast();
    // SAFETY: a valid place of four bytes.
    unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, place, &raw mut length) };
    value
}

/// Sets an option of a socket that is an int.
pub(crate) fn set_option(socket: &OwnedFd, name: i32, value: i32) -> io::Result<()> {
    let place = (&raw const value).cast();
    // SAFETY: a valid value of four bytes.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, place, 4) }).map(drop)
}
