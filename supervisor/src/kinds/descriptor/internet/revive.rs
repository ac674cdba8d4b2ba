//! Making TCP connections again whose peer is outside: in the repair mode, without a word to the peer. They are let go
//! at the very end, when nothing can fail any more; up to then dropping one is silent, so that a failed restore can be
//! tried again.

use super::ends::internet;
use super::over::{MakeOver, REUSE, split, wait};
use super::pair::{bound_as_it_is, shut};
use super::repair::{self, Side};
use super::segment::{self, EndOfStream};
use super::{format_address, hold};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::holders::Holders;
use crate::kinds::descriptor::{restore, socket as any_socket, socket::SOCKET};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::netfilter::Firewall;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::event::PollFlags;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vckpt_image_format::Record;
use vckpt_image_format::record::connection::{Address, Connection, Ending, Stream};
use vckpt_image_format::record::data_queued::DataQueued;

/// Makes a connection.
#[derive(Debug)]
pub struct MakeStream {
    /// Its record.
    pub connection: Connection,
    /// Where it stands.
    pub stream: Stream,
    /// What it has received.
    pub received: Vec<DataQueued>,
    /// What it has sent, or will send.
    pub sent: Vec<DataQueued>,
    /// Who has it.
    pub holders: Arc<Holders>,
}

/// A connection that was made and is still in the repair mode.
#[derive(Debug)]
pub struct Revived {
    socket: OwnedFd,
    connection: Connection,
    stream: Stream,
    unsent: Vec<u8>,
    room: (Vec<u8>, u32),
    receive_room: (Vec<u8>, u32),
}

impl Action for MakeStream {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::path(self.connection.name()));
        let failed = |error: io::Error| {
            let code = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM) => code::PRIVILEGE,
                Some(Errno::EADDRINUSE | Errno::EADDRNOTAVAIL) => code::ADDRESS_TAKEN,
                _ => code::DESCRIPTOR_RESTORE,
            };
            about(Error::system(code, "making a TCP connection again", error))
        };
        if self.stream.ended && !segment::can_be_sent_to(self.connection.local) {
            return self.make_over(restoring);
        }
        let revived = self.make().map_err(failed)?;
        let made = revived.socket.try_clone().map_err(failed)?;
        any_socket::set_options(made.as_fd(), &split(&self.connection.options).0).map_err(about)?;
        restoring.revived.push(revived);
        restore::keep(restoring, &self.connection.description, made).map_err(about)
    }
}

fn bytes(records: &[DataQueued]) -> Vec<u8> {
    records.iter().flat_map(|record| &record.messages).flat_map(|message| &message.data).copied().collect()
}

impl MakeStream {
    /// Makes one that the peer has ended anew with another peer: without rights, or where its address is not ours.
    fn make_over(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let sent: usize = bytes(&self.sent).len();
        if sent > 0 {
            let name = self.connection.name();
            restoring.degraded.push(format!("{name}: {sent} bytes that were not sent yet are lost"));
        }
        let ending = if self.stream.shut & 2 == 0 { Ending::PeerClosed } else { Ending::Closed };
        let (connection, data) = (self.connection.clone(), self.received.clone());
        MakeOver { connection, ending, data, holders: Arc::clone(&self.holders) }.act(restoring)
    }

    fn make(&self) -> io::Result<Revived> {
        let stream = &self.stream;
        let (received, mut sent) = (bytes(&self.received), bytes(&self.sent));
        let made = bound_as_it_is(&self.connection)?;
        let file = made.as_fd();
        let length = u32::try_from(received.len()).unwrap_or(u32::MAX);
        repair::set_sequence(file, Side::Sent, stream.sent)?;
        repair::set_sequence(file, Side::Received, stream.received.wrapping_sub(length))?;
        let peer = internet(self.connection.peer()).ok_or(io::ErrorKind::InvalidData)?;
        socket::connect(file, &format_address(&Address::Internet(peer)))?;
        repair::agree(file, stream)?;
        let room = any_socket::make_room(file, sent.len())?;
        let receive_room = any_socket::make_receive_room(file, received.len())?;
        repair::fill(file, Side::Received, &received)?;
        let known = sent.len().saturating_sub(usize::try_from(stream.unsent).unwrap_or(usize::MAX));
        let unsent = sent.split_off(known);
        repair::fill(file, Side::Sent, &sent)?;
        repair::set_window(file, stream)?;
        let (connection, stream) = (self.connection.clone(), *stream);
        Ok(Revived { socket: made, connection, stream, unsent, room, receive_room })
    }
}

/// Lets connections go: their packets come and go again. What can go wrong with one from here on is what the program
/// would have met without the restore too, such as a peer that is gone; it gives a line, and the others go on.
///
/// # Errors
/// [`code::DESCRIPTOR_RESTORE`] with the kernel's reason.
pub fn let_go(revived: Vec<Revived>) -> Result<Vec<String>> {
    let mut locks: Vec<u64> = revived.iter().map(|revived| revived.stream.lock).collect();
    locks.sort_unstable();
    locks.dedup();
    let failed = |what: &str, errno: Errno| Error::system(code::DESCRIPTOR_RESTORE, what, errno);
    for lock in locks {
        let removed = Firewall::new().and_then(|firewall| firewall.remove(&hold::table(lock)));
        match removed {
            // Another host, or an image that was restored before.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed("letting the packets of TCP connections through", errno)),
        }
    }
    let mut lines = Vec::new();
    for revived in revived {
        let name = revived.connection.name();
        if let Err(error) = revived.let_go() {
            lines.push(format!("{name}: it does not go on as it was: {error}"));
        }
    }
    Ok(lines)
}

impl Revived {
    fn let_go(self) -> io::Result<()> {
        let file = self.socket.as_fd();
        // A peer that has ended may be gone, and would answer a question with a reset.
        if self.stream.ended {
            repair::leave_silently(file)?
        } else {
            repair::leave(file)?
        }
        // Leaving the mode has set it to 0.
        let reuse =
            self.connection.options.iter().find(|option| (option.level, option.name) == (SOCKET, REUSE));
        if let Some(reuse) = reuse {
            socket::set_option(file, SOCKET, REUSE, &reuse.value)?;
        }
        let mut rest = &self.unsent[..];
        while !rest.is_empty() {
            let count = socket::send(file, rest, &[])?;
            rest = &rest[count..];
        }
        if self.stream.ended {
            self.end()?;
        }
        // Not before: the end is a packet too.
        if let Some(filter) = &self.connection.filter {
            any_socket::set_filter(file, filter).map_err(|error| io::Error::other(error.to_string()))?;
        }
        shut(&self.socket, &self.connection)?;
        any_socket::give_room_back(file, &self.room)?;
        any_socket::give_receive_room_back(file, &self.receive_room)?;
        Ok(())
    }

    /// Gives it the end that the peer had sent.
    fn end(&self) -> io::Result<()> {
        let peer = internet(self.connection.peer()).ok_or(io::ErrorKind::InvalidData)?;
        let own = internet(self.connection.local).ok_or(io::ErrorKind::InvalidData)?;
        let [_, window, ..] = self.stream.window;
        let scale = self.stream.scales.map_or(0, |(sending, _)| u32::from(sending));
        let end = EndOfStream {
            from: peer,
            to: own,
            sequence: self.stream.received,
            acknowledged: self.stream.sent,
            window: u16::try_from(window.checked_shr(scale).unwrap_or(0)).unwrap_or(u16::MAX),
        };
        end.send()?;
        wait(&self.socket, PollFlags::RDHUP)
    }
}
