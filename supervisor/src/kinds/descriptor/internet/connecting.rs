//! Beginning again to make TCP connections that were still being made: the peer is asked once more.

use super::ends::internet;
use super::format_address;
use super::over::split;
use super::pair::{bound_to_connect, check_address, failed};
use crate::error::{Error, Result, Subject};
use crate::kinds::descriptor::{restore, socket as any_socket};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::fs::OFlags;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::Record;
use vckpt_image_format::record::connection::{Address, Connection};

/// Begins to make a connection.
#[derive(Debug)]
pub(super) struct MakeConnecting(pub Connection);

impl Action for MakeConnecting {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(self.0.name()));
        let made = self.make();
        let made = made.map_err(|error| about(failed("beginning to make a TCP connection", error)))?;
        restore::keep(restoring, &self.0.description, made).map_err(about)
    }
}

impl MakeConnecting {
    fn make(&self) -> io::Result<OwnedFd> {
        let made = bound_to_connect(&self.0)?;
        let (options, _) = split(&self.0.options);
        // They apply to the question already: how often it is asked, the congestion control that is proposed.
        any_socket::set_options(made.as_fd(), &options)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let peer = internet(self.0.peer()).ok_or(io::ErrorKind::InvalidData)?;
        let flags = rustix::fs::fcntl_getfl(&made)?;
        rustix::fs::fcntl_setfl(&made, flags | OFlags::NONBLOCK)?;
        match socket::connect(made.as_fd(), &format_address(&Address::Internet(peer))) {
            // An answer at once, also one that says no, is for the program, as it would have been.
            Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => {}
            Err(errno) => return Err(errno.into()),
        }
        rustix::fs::fcntl_setfl(&made, flags)?;
        check_address(&made, &self.0)?;
        Ok(made)
    }
}
