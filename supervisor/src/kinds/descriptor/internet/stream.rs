//! Looking at TCP connections: with both ends in the tree, with one end in a backlog of it, and with a peer outside.

use super::ends::{Ends, ended, internet, of_family, tcp_state};
use super::hold::Hold;
use super::observe::identity;
use super::repair::{self, Side};
use super::urgent;
use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::Opened;
use crate::sys::sock_diag::SocketDiagnosis;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use vckpt_image_format::SocketId;
use vckpt_image_format::record::connection::{Address, ConnectionState, Stream};
use vckpt_image_format::record::data_queued::{DataQueued, Message, Queue};

/// How long a frozen tree waits for acknowledgements that come within this host: the kernel delays them by 200 ms.
const PATIENCE: Duration = Duration::from_secs(1);
const RECEIVING: u8 = 1;
const SENDING: u8 = 2;

/// The TCP connections of a tree.
#[derive(Debug)]
pub struct Streams<'tree> {
    ends: Ends<'tree>,
    /// Those that wait in a backlog of the tree, with their listener.
    waiting: HashMap<SocketId, SocketId>,
    /// Those with a peer outside that are to be kept.
    outside: HashMap<SocketId, (SocketAddr, SocketAddr)>,
    repairs: bool,
    diagnosis: Option<SocketDiagnosis>,
}

/// What a connection is, and what waits in its queues.
#[derive(Debug)]
pub struct Found {
    /// Its state.
    pub state: ConnectionState,
    /// Its queues.
    pub queued: Vec<DataQueued>,
}

impl<'tree> Streams<'tree> {
    /// Finds all, and holds them as they are.
    ///
    /// # Errors
    /// [`code::PRIVILEGE`] if a peer is outside of the tree and connections can't be held.
    pub fn find(opened: &[&'tree Opened], close: bool) -> Result<(Self, Option<Hold>)> {
        let mut streams = Self {
            ends: Ends::of(opened),
            waiting: HashMap::new(),
            outside: HashMap::new(),
            repairs: repair::is_permitted(),
            diagnosis: SocketDiagnosis::new().ok(),
        };
        let mut held: Vec<_> =
            streams.ends.connections(true).map(|(_, opened)| opened.file.as_fd()).collect();
        let mut problems = Problems::new();
        let outside: Vec<_> = streams.ends.connections(false).collect();
        for ((own, peer), opened) in outside {
            let Some((_, got_end)) = tcp_state(opened).and_then(ended) else { continue };
            // What the peer has ended can also be made anew with another one, if there are no rights.
            if got_end && (close || !streams.repairs) {
                continue;
            }
            if let Some(listener) = streams.waits_at(own, peer) {
                streams.waiting.insert(identity(opened), listener);
            } else if close {
                continue;
            } else if streams.repairs {
                streams.outside.insert(identity(opened), (own, peer));
            } else {
                let what = format!(
                    "a TCP connection from {own} to {peer}, whose peer is outside of the dumped tree"
                );
                let error = opened.refuse(code::PRIVILEGE, what).because("this needs CAP_NET_ADMIN");
                problems.push(error.hint("run vckpt as root, or let it be closed with --tcp close"));
                continue;
            }
            held.push(opened.file.as_fd());
        }
        problems.finish()?;
        if held.is_empty() {
            return Ok((streams, None));
        }
        let hold = Hold::new(&held, streams.outside.values().copied().collect())?;
        Ok((streams, Some(hold)))
    }

    /// The listener of the tree in whose backlog the other end waits.
    fn waits_at(&self, own: SocketAddr, peer: SocketAddr) -> Option<SocketId> {
        let listener = self.ends.listener(peer)?;
        waiting(own, peer).is_some().then_some(listener)
    }

    /// How many connections of the tree wait in a backlog.
    pub fn waiting_at(&self, listener: SocketId) -> usize {
        self.waiting.values().filter(|&&at| at == listener).count()
    }

    /// What a connected socket is; nothing if it has no other end that is to be kept.
    ///
    /// # Errors
    /// [`code::SOCKET_STATE`].
    pub fn look(
        &self,
        opened: &Opened,
        own: Option<Address>,
        peer: Option<Address>,
        hold: Option<&Hold>,
    ) -> Result<Option<Found>> {
        let (Some(own), Some(at)) = (internet(own), internet(peer)) else { return Ok(None) };
        let Some((sent_end, got_end)) = tcp_state(opened).and_then(ended) else { return Ok(None) };
        urgent::refuse(self.diagnosis.as_ref(), opened, (own, at), got_end)?;
        let peer = Address::Internet(at);
        let id = identity(opened);
        let shut =
            if sent_end { SENDING } else { 0 } | if !got_end && is_deaf(opened) { RECEIVING } else { 0 };
        if let Some(other) = self.ends.other(own, at) {
            let data = self.on_the_way(opened, got_end, other)?;
            let state = ConnectionState::Paired { end: identity(other), peer, shut };
            return Ok(Some(Found { state, queued: queued(Queue::Socket(id), data) }));
        }
        if let Some(&listener) = self.waiting.get(&id) {
            let data = waiting(own, at).unwrap_or_default().saturating_sub(u32::from(sent_end));
            if data > 0 {
                let what = format!("{data} bytes wait in a connection to {at} that was not accepted yet");
                let error = opened.refuse(code::SOCKET_STATE, what);
                return Err(error.hint("try again when the program has accepted it"));
            }
            let state = ConnectionState::Unaccepted { listener, peer, shut };
            return Ok(Some(Found { state, queued: Vec::new() }));
        }
        if self.outside.contains_key(&id) {
            let lock = hold.map_or(0, |hold| hold.lock);
            let (stream, received, sent) = outside(opened, sent_end, got_end)
                .map_err(|errno| opened.failed("looking where a TCP connection stands", errno))?;
            let stream = Stream { lock, shut, ended: got_end, ..stream };
            let state = ConnectionState::Established { peer, stream };
            let mut all = queued(Queue::Socket(id), received);
            all.extend(queued(Queue::Sent(id), sent));
            return Ok(Some(Found { state, queued: all }));
        }
        Ok(None)
    }

    /// What one end was sent and has not read, wherever it is.
    fn on_the_way(&self, opened: &Opened, got_end: bool, other: &Opened) -> Result<Vec<u8>> {
        let failed = |errno| opened.failed("looking at what waits in a TCP connection", errno);
        let has_ended = tcp_state(other).and_then(ended).is_some_and(|(sent_end, _)| sent_end);
        if !self.repairs {
            let unacknowledged = settled(other, has_ended)
                .map_err(|errno| other.failed("asking what waits in a TCP connection", errno))?;
            if unacknowledged > 0 {
                let what = format!("{unacknowledged} bytes of a TCP connection were not received yet");
                let error = other.refuse(code::PRIVILEGE, what).because("reading them needs CAP_NET_ADMIN");
                return Err(error.hint("run vckpt as root, or try again when the other end has read them"));
            }
            return received(opened, |_| Ok(0)).map(|(data, _)| data).map_err(failed);
        }
        let (mut sent, end) = repair::within(other.file.as_fd(), |file| {
            let most = usize::try_from(socket::unacknowledged(file)?).unwrap_or(0);
            Ok((repair::read(file, Side::Sent, most)?, repair::sequence(file, Side::Sent)?))
        })
        .map_err(failed)?;
        let begin = end.wrapping_sub(length(&sent)).wrapping_sub(u32::from(has_ended));
        let (mut data, next) = received(opened, next_sequence).map_err(failed)?;
        let known = next.wrapping_sub(u32::from(got_end)).wrapping_sub(begin);
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(sent.len());
        data.extend(sent.drain(known..));
        Ok(data)
    }
}

/// How many bytes wait in the other end of a connection, if that was not accepted yet.
fn waiting(own: SocketAddr, peer: SocketAddr) -> Option<u32> {
    let diagnosis = SocketDiagnosis::new().ok()?;
    // The listener may be of the other family.
    let both = [libc::AF_INET, libc::AF_INET6].map(|family| {
        let family = family.cast_unsigned();
        diagnosis.connection(of_family(peer, family), of_family(own, family))
    });
    both.into_iter().flatten().find(|&(_, inode)| inode == 0).map(|(bytes, _)| bytes)
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

fn queued(queue: Queue, data: Vec<u8>) -> Vec<DataQueued> {
    if data.is_empty() {
        return Vec::new();
    }
    let pieces = data.chunks(DataQueued::PORTION / 2);
    let messages = pieces.map(|piece| Message::plain(piece.to_vec())).collect();
    DataQueued::portions(queue, false, messages)
}

/// Whether receiving was shut down by the program itself, asked of one whose peer has not ended.
fn is_deaf(opened: &Opened) -> bool {
    let mut polled = [PollFd::new(&opened.file, PollFlags::RDHUP)];
    let polls = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polls.is_ok() && polled[0].revents().contains(PollFlags::RDHUP)
}

/// Waits until everything that was sent is acknowledged, and gives the bytes that are not.
fn settled(opened: &Opened, sent_end: bool) -> std::result::Result<u32, Errno> {
    let begin = Instant::now();
    loop {
        let left = socket::unacknowledged(opened.file.as_fd())?.saturating_sub(u32::from(sent_end));
        let stands_still = socket::unsent(opened.file.as_fd())? > u32::from(sent_end);
        if left == 0 || stands_still || begin.elapsed() > PATIENCE {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What was received and not read, and what `sequence` gave before and after alike.
fn received(
    opened: &Opened,
    sequence: impl Fn(&Opened) -> std::result::Result<u32, Errno>,
) -> std::result::Result<(Vec<u8>, u32), Errno> {
    use rustix::net::RecvFlags;
    let errno = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    loop {
        let before = sequence(opened)?;
        let length = rustix::io::ioctl_fionread(&opened.file).map_err(errno)?;
        let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
        if !data.is_empty() {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let (count, _) = rustix::net::recv(&opened.file, data.as_mut_slice(), flags).map_err(errno)?;
            data.truncate(count);
        }
        if sequence(opened)? == before && data.len() as u64 == length {
            return Ok((data, before));
        }
    }
}

fn next_sequence(opened: &Opened) -> std::result::Result<u32, Errno> {
    repair::within(opened.file.as_fd(), |file| repair::sequence(file, Side::Received))
}

/// A connection whose packets are kept away: where it stands, what was received, what is to be sent.
fn outside(
    opened: &Opened,
    sent_end: bool,
    got_end: bool,
) -> std::result::Result<(Stream, Vec<u8>, Vec<u8>), Errno> {
    let (data, next) = received(opened, next_sequence)?;
    let ends = u32::from(sent_end);
    repair::within(opened.file.as_fd(), |file| {
        let mut stream = repair::agreed(file)?;
        let most = usize::try_from(socket::unacknowledged(file)?).unwrap_or(0);
        let sent = repair::read(file, Side::Sent, most)?;
        stream.unsent = socket::unsent(file)?.saturating_sub(ends).min(length(&sent));
        let end = repair::sequence(file, Side::Sent)?;
        stream.sent = end.wrapping_sub(ends).wrapping_sub(length(&sent));
        stream.received = next.wrapping_sub(u32::from(got_end));
        // The end counts as one, and has to fit into the window again.
        let [.., room, updated] = &mut stream.window;
        if got_end && *updated == next {
            *updated = stream.received;
            *room = room.saturating_add(1);
        }
        Ok((stream, data, sent))
    })
}
