//! Listeners that are there while sockets are made.

use super::acting::{self, Way};
use super::make::{about, new_socket};
use super::names::{Named, bind};
use crate::error::{Error, Result, code};
use crate::restoring::Restoring;
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::record::socket_credentials::SocketCredentials;
use vckpt_image_format::record::unix_socket::UnixSocket;

/// Listeners that are there for a moment, to accept what others had accepted that are gone or were made by somebody
/// else, each with what it stands for.
#[derive(Debug, Default)]
pub(super) struct Helpers(Vec<(UnixSocket, OwnedFd, Named)>);

impl Helpers {
    /// One with the address of a socket that was accepted, for which `who` listens: a copy of it, and the way to it.
    ///
    /// # Errors
    /// As [`bind`].
    pub(super) fn listener(
        &mut self,
        restoring: &mut Restoring<'_>,
        server: &UnixSocket,
        who: Option<&SocketCredentials>,
    ) -> Result<(OwnedFd, Way)> {
        let is_it = |helper: &UnixSocket| {
            helper.address == server.address
                && helper.socket_type == server.socket_type
                && helper.peer_credentials.as_ref() == who
        };
        if !self.0.iter().any(|(helper, ..)| is_it(helper)) {
            // The file can be that of one of them only.
            let file =
                server.file.clone().filter(|_| !self.0.iter().any(|(helper, ..)| helper.file == server.file));
            let helper = UnixSocket { file, peer_credentials: who.cloned(), ..server.clone() };
            let new = new_socket(&helper)?;
            let named = bind(restoring, &new, &helper)?;
            acting::listen(restoring, who, new.as_fd(), 1)?;
            self.0.push((helper, new, named));
        }
        let found = self.0.iter().find(|(helper, ..)| is_it(helper));
        let (_, listener, named) =
            found.ok_or_else(|| Error::new(code::INTERNAL, "a listener was not made"))?;
        Ok((copy(listener)?, named.way()?))
    }

    /// Closes them.
    ///
    /// # Errors
    /// As [`Named::settle`].
    pub(super) fn settle(self, restoring: &mut Restoring<'_>) -> Result<()> {
        for (socket, _, mut named) in self.0 {
            named.settle(restoring, &socket).map_err(|error| about(error, &socket))?;
        }
        Ok(())
    }
}

/// A copy of a descriptor.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`].
pub(super) fn copy(file: &OwnedFd) -> Result<OwnedFd> {
    file.try_clone().map_err(|error| Error::system(code::DESCRIPTOR_RESTORE, "copying a descriptor", error))
}
