//! Urgent data of TCP, which is refused: reading stops at it, and its mark can't be made again.

use super::ends::of_family;
use crate::error::{Error, Result, code};
use crate::kinds::descriptor::opened::Opened;
use crate::sys::sock_diag::SocketDiagnosis;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// Refuses urgent data, at which reading stops: the kernel counts less to be read than there is.
pub(super) fn refuse(
    diagnosis: Option<&SocketDiagnosis>,
    opened: &Opened,
    between: (SocketAddr, SocketAddr),
    got_end: bool,
) -> Result<()> {
    let (own, peer) = between;
    let Some(diagnosis) = diagnosis else {
        return if is_urged(opened) { Err(urgent(opened, own, peer)) } else { Ok(()) };
    };
    let failed = |errno| opened.failed("asking what waits in a TCP connection", errno);
    let (level, name) = (libc::SOL_SOCKET.cast_unsigned(), libc::SO_DOMAIN.cast_unsigned());
    let family = socket::number_option(opened.file.as_fd(), level, name).map_err(failed)?;
    let readable = || {
        rustix::io::ioctl_fionread(&opened.file)
            .map_err(|errno| failed(Errno::from_raw(errno.raw_os_error())))
    };
    loop {
        let before = readable()?;
        let found = diagnosis.connection(of_family(own, family), of_family(peer, family));
        // Not found: bound to an interface, by which it can't be asked for here.
        let Ok((waits, _)) = found else {
            return if is_urged(opened) { Err(urgent(opened, own, peer)) } else { Ok(()) };
        };
        if readable()? != before {
            continue;
        }
        if before == u64::from(waits.saturating_sub(u32::from(got_end))) {
            return Ok(());
        }
        return Err(urgent(opened, own, peer));
    }
}

fn urgent(opened: &Opened, own: SocketAddr, peer: SocketAddr) -> Box<Error> {
    let what = format!("urgent data waits in a TCP connection from {own} to {peer}");
    opened.refuse(code::SOCKET_STATE, what).hint("try again when the program has read it")
}

/// Whether urgent data that was not read yet is announced.
fn is_urged(opened: &Opened) -> bool {
    let mut polled = [PollFd::new(&opened.file, PollFlags::PRI)];
    let polls = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polls.is_ok() && polled[0].revents().contains(PollFlags::PRI)
}
