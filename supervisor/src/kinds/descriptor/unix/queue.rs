//! Looking at what waits in unix sockets, with the descriptors and credentials that travel with it, without taking it.
//!
//! The kernel gives a copy of the descriptors to whoever looks: to this program, which closes them when it is done.
//!
//! While it looks, three options of a socket are changed: from where it looks on (`SO_PEEK_OFF`); that credentials are
//! told (`SO_PASSCRED`), which also tells an empty message from the end of file; and that an urgent byte stands among
//! the others (`SO_OOBINLINE`). A process of its own sets them back.

use super::{claims, name};
use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::Opened;
use crate::kinds::descriptor::socket::SOCKET;
use crate::sys::guard::{Guard, Reset};
use crate::sys::message::{self, Waiting};
use crate::sys::socket;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::{DescriptionId, Text};

/// Room for a message of any size that the kernel's own limits allow.
const LONGEST_MESSAGE: usize = 4 << 20;
const SO_PEEK_OFF: u32 = libc::SO_PEEK_OFF.cast_unsigned();
const SO_PASSCRED: u32 = libc::SO_PASSCRED.cast_unsigned();
const SO_OOBINLINE: u32 = libc::SO_OOBINLINE.cast_unsigned();
/// The process that the kernel tells if it did not note who the sender was.
const NOBODY: u32 = 0;

/// What waits in a socket.
#[derive(Debug)]
pub struct Queue {
    /// Its description.
    pub description: DescriptionId,
    /// The messages; of a stream the pieces that the program would get one by one.
    pub messages: Vec<InFlight>,
}

/// A message on its way.
#[derive(Debug)]
pub struct InFlight {
    /// Its bytes.
    pub data: Vec<u8>,
    /// The name of its sender, if it has one.
    pub source: Option<Text>,
    /// Copies of the descriptors that travel with it.
    pub descriptors: Vec<OwnedFd>,
    /// Process, user and group of its sender as this program sees them, if the kernel noted them.
    pub credentials: Option<[u32; 3]>,
    /// Whether it is the urgent byte of a stream (`MSG_OOB`).
    pub urgent: bool,
}

/// Looks at the queues of all unix sockets among these.
///
/// # Errors
/// Queues that can't be kept, or looked at.
pub fn look(opened: &[Opened]) -> Result<Vec<Queue>> {
    let mut problems = Problems::new();
    let sockets: Vec<&Opened> =
        opened.iter().filter(|opened| claims(opened) && may_have_messages(opened)).collect();
    let mut resets = Vec::new();
    for opened in &sockets {
        for name in [SO_PEEK_OFF, SO_PASSCRED, SO_OOBINLINE] {
            resets.extend(problems.take(reset(opened, name)));
        }
    }
    if resets.is_empty() {
        return problems.finish().map(|()| Vec::new());
    }
    // From here on the options are set back when this ends, however it does.
    let guard = Guard::start(&resets)
        .map_err(|errno| sockets[0].failed("starting a process that sets socket options back", errno))?;
    let mut queues = Vec::new();
    for opened in sockets {
        let messages = problems.take(messages(opened)).unwrap_or_default();
        queues.push(Queue { description: opened.description.id, messages });
    }
    drop(guard);
    problems.finish().map(|()| queues)
}

/// Whether something can be received, or the end of file.
fn may_have_messages(opened: &Opened) -> bool {
    let is_listening =
        socket::number_option(opened.file.as_fd(), SOCKET, libc::SO_ACCEPTCONN.cast_unsigned()) != Ok(0);
    !is_listening && !polled(opened, PollFlags::IN | PollFlags::PRI).is_empty()
}

fn polled(opened: &Opened, events: PollFlags) -> PollFlags {
    let mut polled = [PollFd::new(&opened.file, events)];
    let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled[0].revents() & events
}

fn reset(opened: &Opened, name: u32) -> Result<Reset> {
    let failed = |errno: Errno| opened.failed("looking at what waits in a socket", errno);
    let value = socket::option(opened.file.as_fd(), SOCKET, name).map_err(failed)?;
    let socket = opened.file.try_clone().map_err(|error| opened.failed("copying a descriptor", error))?;
    Ok(Reset { socket, level: SOCKET, name, value })
}

fn messages(opened: &Opened) -> Result<Vec<InFlight>> {
    let failed = |errno: Errno| opened.failed("looking at what waits in a socket", errno);
    for name in [SO_PASSCRED, SO_OOBINLINE] {
        socket::set_option(opened.file.as_fd(), SOCKET, name, &1_i32.to_ne_bytes()).map_err(failed)?;
    }
    look_from(opened, 0)?;
    let is_stream = socket::number_option(opened.file.as_fd(), SOCKET, libc::SO_TYPE.cast_unsigned())
        == Ok(libc::SOCK_STREAM.cast_unsigned());
    let (mut messages, mut offset) = (Vec::new(), 0);
    while let Some(waiting) = peek(opened, LONGEST_MESSAGE)? {
        let length = waiting.data.len();
        // A stream has no empty messages.
        if is_stream && length == 0 {
            break;
        }
        let mut message = in_flight(waiting);
        if is_stream {
            message.source = None;
            // The program may read the bytes before the descriptors without getting these.
            let plain = if message.descriptors.is_empty() { 0 } else { plain_bytes(opened, offset, length)? };
            if plain > 0 {
                let rest = message.data.split_off(plain);
                let data = std::mem::replace(&mut message.data, rest);
                messages.push(InFlight {
                    data,
                    source: None,
                    descriptors: Vec::new(),
                    credentials: message.credentials,
                    urgent: false,
                });
            }
        }
        messages.push(message);
        offset += length;
    }
    if is_stream && polled(opened, PollFlags::PRI).contains(PollFlags::PRI) {
        mark_urgent(opened, &mut messages)?;
    }
    Ok(messages)
}

/// Finds the urgent byte of a stream: the kernel never gives it in one piece with what comes before it. Another sender
/// or descriptors are other reasons for a new piece.
fn mark_urgent(opened: &Opened, messages: &mut Vec<InFlight>) -> Result<()> {
    look_from(opened, 0)?;
    let is_first = socket::is_at_mark(opened.file.as_fd());
    let is_first = is_first.map_err(|errno| opened.failed("looking for an urgent byte", errno))?;
    let has_no_reason = |pair: &[InFlight]| {
        pair[0].credentials == pair[1].credentials
            && pair.iter().all(|message| message.descriptors.is_empty())
    };
    let mut marked = messages.windows(2).enumerate().filter(|(_, pair)| has_no_reason(pair));
    let place = match (is_first, marked.next(), marked.next()) {
        (true, None, _) => Some(0),
        (false, Some((place, _)), None) => Some(place + 1),
        _ => None,
    };
    let place =
        place.filter(|&place| messages.get(place).is_some_and(|message| message.descriptors.is_empty()));
    let Some(place) = place else {
        return Err(opened
            .refuse(code::SOCKET_STATE, "an urgent byte (MSG_OOB) next to descriptors waits in a unix socket")
            .passing()
            .hint("try again when the program has read it"));
    };
    let message = &mut messages[place];
    let rest = InFlight {
        data: message.data.split_off(1),
        source: None,
        descriptors: Vec::new(),
        credentials: message.credentials,
        urgent: false,
    };
    message.urgent = true;
    if !rest.data.is_empty() {
        messages.insert(place + 1, rest);
    }
    Ok(())
}

fn in_flight(waiting: Waiting) -> InFlight {
    InFlight {
        data: waiting.data,
        source: name(&waiting.address).map(Text::from),
        descriptors: waiting.descriptors,
        credentials: waiting.credentials.filter(|&[process, ..]| process != NOBODY),
        urgent: false,
    }
}

/// How many bytes of a stream come before those with which descriptors travel; these are the last of the `length` bytes
/// from `offset` on.
fn plain_bytes(opened: &Opened, offset: usize, length: usize) -> Result<usize> {
    look_from(opened, offset)?;
    let plain = message::peek_before_last(opened.file.as_fd(), length)
        .map_err(|errno| opened.failed("looking at what waits in a socket", errno))?;
    look_from(opened, offset + length)?;
    Ok(plain.min(length))
}

/// Sets from where on the queue is looked at.
fn look_from(opened: &Opened, offset: usize) -> Result<()> {
    let offset = i32::try_from(offset).unwrap_or(i32::MAX).to_ne_bytes();
    socket::set_option(opened.file.as_fd(), SOCKET, SO_PEEK_OFF, &offset)
        .map_err(|errno| opened.failed("looking at what waits in a socket", errno))
}

/// The next message; none at the end.
fn peek(opened: &Opened, length: usize) -> Result<Option<Waiting>> {
    let mut found = message::peek(opened.file.as_fd(), length);
    // That the peer has gone is told before what it has sent, and only once.
    if found.as_ref().err() == Some(&Errno::ECONNRESET) {
        found = message::peek(opened.file.as_fd(), length);
    }
    let waiting = match found {
        Err(Errno::EAGAIN | Errno::ENOTCONN | Errno::ECONNRESET | Errno::EINVAL) => return Ok(None),
        other => other.map_err(|errno| opened.failed("looking at what waits in a socket", errno))?,
    };
    if waiting.lacks {
        return Err(opened
            .refuse(code::HOST_FEATURE, "more descriptors travel in a socket than vckpt may have open")
            .hint("raise the limit of open files with ulimit -n, or run vckpt as root"));
    }
    if waiting.is_longer && length == LONGEST_MESSAGE && waiting.data.len() == length {
        return Err(
            opened.refuse(code::SOCKET_STATE, "a message that is longer than 4 MiB waits in a socket")
        );
    }
    // Every message tells who sent it; the end of file does not.
    Ok(waiting.credentials.is_some().then_some(waiting))
}
