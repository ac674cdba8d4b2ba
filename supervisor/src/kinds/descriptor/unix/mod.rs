//! Unix sockets: see unix(7).
//!
//! - **Saved**: type, address, the file of it wherever that is now, connection, what was shut down, options, backlog,
//!   who is at the other end, and the data that waits, message by message.
//! - **Saved too**: descriptors that travel with the data, also those that nobody else has, sockets that travel in
//!   sockets, in circles too; who has sent a message, if the kernel noted it; connections of the tree that wait to be
//!   accepted, as long as nothing was sent in them.
//! - **Refused**: a stream whose peer is outside of the tree, unless the user gives it up; other connections that nobody
//!   accepts although those who could are let run for a while; an urgent byte that waits.
//! - **Outside of the tree**: a datagram socket that sends to an address there is connected with that address again; if
//!   nobody is there, that is said before anything is made.
//! - **Not exact**: who is at the other end or has sent a message, if that process is not in the tree, or is a zombie;
//!   the name of a sender outside of the tree whose datagram waits; time stamps of datagrams that wait.
//! - **Not saved**: that a message was looked at before (`SO_PEEK_OFF` passes over an empty one the second time); the
//!   name of the closed peer of a datagram socket; the mark that an urgent byte leaves which was read.
//! - **Kernel**: sock_diag(7) tells the peer (`CONFIG_UNIX_DIAG`); `SO_PEEK_OFF` (3.4) shows data without taking it;
//!   `SIOCUNIXFILE` (4.14) finds files that were moved.

mod acting;
pub mod credentials;
mod fill;
mod helpers;
pub mod make;
mod names;
pub mod observe;
mod place;
pub mod queue;
pub mod restore;
mod signed;
mod state;

use super::opened::Opened;
use super::socket::SOCKET;
use crate::sys::socket;
use std::os::fd::AsFd;

/// Whether it is a unix socket.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.file_type() == libc::S_IFSOCK
        && socket::number_option(opened.file.as_fd(), SOCKET, libc::SO_DOMAIN.cast_unsigned())
            == Ok(libc::AF_UNIX.cast_unsigned())
}

/// Whether the program is told by a descriptor who has sent a message (kernel 6.5).
const SO_PASSPIDFD: i32 = 76;
/// Whether descriptors may come with messages (kernel 6.16).
const SO_PASSRIGHTS: i32 = 83;

/// Offset of the path in `struct sockaddr_un`.
const PATH: usize = 2;

/// The name in an address: none for a socket without one. A path has no NUL at its end.
#[must_use]
pub fn name(address: &[u8]) -> Option<&[u8]> {
    let name = address.get(PATH..).filter(|name| !name.is_empty())?;
    if name[0] == 0 {
        return Some(name);
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Some(&name[..end])
}

/// The address with a name.
#[must_use]
pub fn address(name: &[u8]) -> Vec<u8> {
    let family = u16::try_from(libc::AF_UNIX).unwrap_or_default().to_ne_bytes();
    let end: &[u8] =
        if name.first().is_some_and(|&byte| byte != 0) && name.len() < 108 { b"\0" } else { b"" };
    [&family, name, end].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive() {
        for name_of_it in [&b"/run/x"[..], b"\0abstract", b"\0with\0zero"] {
            assert_eq!(name(&address(name_of_it)), Some(name_of_it));
        }
        assert_eq!(name(&[1, 0]), None);
        assert_eq!(name(&[]), None);
    }
}
