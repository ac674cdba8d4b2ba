//! Looking at unix sockets.

use super::name;
use crate::error::{Error, Problems, Result, code};
use crate::freeze::Backlog;
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::descriptor::socket::{self as any_socket, SOCKET};
use crate::records::Records;
use crate::sys::sock_diag::{SocketDiagnosis, UnixSocketInfo};
use crate::sys::socket;
use std::collections::HashMap;
use std::os::fd::AsFd;
use vckpt_image_format::record::data_queued::{DataQueued, Queue};
use vckpt_image_format::record::unix_socket::{SocketType, UnixSocket, UnixState};
use vckpt_image_format::{SocketId, Text};

const CONNECTED: u8 = 1;
const LISTENING: u8 = 10;

/// Gives a record for each socket, and for what waits in it.
///
/// # Errors
/// All that this kind [refuses](super).
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let diagnosis = SocketDiagnosis::new()
        .map_err(|errno| Error::system(code::HOST_FEATURE, "asking the kernel about unix sockets", errno))?;
    let by_inode: HashMap<u64, SocketId> =
        opened.iter().map(|opened| (opened.status.st_ino, identity(opened))).collect();
    let mut look = Look { diagnosis, by_inode, waiting: HashMap::new() };
    for opened in opened {
        look.backlog(opened);
    }
    let mut problems = Problems::new();
    for opened in opened {
        problems.take(look.socket(opened, records));
    }
    problems.finish()
}

/// A socket has one description, and so the number of that.
pub fn identity(opened: &Opened) -> SocketId {
    SocketId(opened.description.id.0)
}

struct Look {
    diagnosis: SocketDiagnosis,
    by_inode: HashMap<u64, SocketId>,
    /// Sockets whose connections wait to be accepted, with their listener and their place there.
    waiting: HashMap<u64, (SocketId, u32)>,
}

impl Look {
    /// Notes the connections that wait in the backlog of a listener, if they can be made again: for that, its address
    /// must lead to it.
    fn backlog(&mut self, opened: &Opened) {
        let Ok(info) = self.diagnosis.unix_socket(opened.status.st_ino) else { return };
        let address = socket::local_address(opened.file.as_fd()).unwrap_or_default();
        let Some(address) = name(&address).map(Text::from) else { return };
        let is_there = address.0.first() == Some(&0) || socket_file(&address, info.file_inode).is_some();
        for (place, &inode) in info.waiting.iter().enumerate().filter(|_| is_there) {
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            self.waiting.insert(inode.into(), (identity(opened), place));
        }
    }

    fn socket(&self, opened: &Opened, records: &mut Records) -> Result<()> {
        let info = self.diagnosis.unix_socket(opened.status.st_ino).map_err(|errno| {
            Error::system(code::HOST_FEATURE, "asking the kernel about a unix socket", errno)
                .about(opened.subject.clone())
                .hint("it may belong to another network namespace, or the kernel was built without unix_diag")
        })?;
        let file = opened.file.as_fd();
        let failed = |errno| opened.failed("looking at a unix socket", errno);
        let socket_type = match socket::number_option(file, SOCKET, libc::SO_TYPE.cast_unsigned())
            .map_err(failed)?
            .cast_signed()
        {
            libc::SOCK_STREAM => SocketType::Stream,
            libc::SOCK_DGRAM => SocketType::Datagram,
            _ => SocketType::SequencedPacket,
        };
        let address = socket::local_address(file).map_err(failed)?;
        let address = name(&address).map(Text::from);
        if address.as_ref().is_some_and(|name| !matches!(name.0.first(), Some(0 | b'/'))) {
            return Err(opened
                .refuse(code::SOCKET_STATE, "a unix socket whose address is a relative path")
                .hint("give the program an absolute path for its socket"));
        }
        let state = self.state(opened, socket_type, &info, &mut records.backlog)?;
        let messages = match (socket_type, &state) {
            (_, UnixState::Listening { .. }) => Vec::new(),
            _ if info.receive_queue == 0 && socket_type != SocketType::Datagram => Vec::new(),
            (SocketType::Stream, _) => {
                any_socket::waiting_bytes(opened, usize::try_from(info.receive_queue).unwrap_or(usize::MAX))?
            }
            (SocketType::Datagram, _) if !is_readable(opened) => Vec::new(),
            (SocketType::Datagram | SocketType::SequencedPacket, _) => {
                any_socket::waiting_messages(opened, info.shutdown & 1 != 0)?
            }
        };
        let id = identity(opened);
        let borders = socket_type != SocketType::Stream;
        for record in DataQueued::portions(Queue::Socket(id), borders, messages) {
            records.push(record);
        }
        records.push(UnixSocket {
            id,
            description: opened.description.clone(),
            inode: opened.status.st_ino,
            socket_type,
            file: address.as_ref().and_then(|address| socket_file(address, info.file_inode)),
            address,
            state,
            shutdown: info.shutdown,
            options: any_socket::options_without_filter(opened)?,
        });
        Ok(())
    }

    fn state(
        &self,
        opened: &Opened,
        socket_type: SocketType,
        info: &UnixSocketInfo,
        backlog: &mut Backlog,
    ) -> Result<UnixState> {
        if info.state == LISTENING {
            if info.receive_queue > 0 {
                let copy = opened.file.try_clone();
                let copy = copy.map_err(|error| opened.failed("copying a descriptor", error))?;
                backlog.add(copy, opened.holders.iter().map(|holder| holder.pid));
            }
            let is_known = |inode: &&u32| {
                let inode = u64::from(**inode);
                self.by_inode.contains_key(&inode) && self.waiting.contains_key(&inode)
            };
            let known = u32::try_from(info.waiting.iter().filter(is_known).count()).unwrap_or(u32::MAX);
            if info.receive_queue > known {
                let count = info.receive_queue - known;
                let what = format!("{count} connections from outside of the tree wait to be accepted");
                return Err(opened
                    .refuse(code::SOCKET_STATE, what)
                    .passing()
                    .hint("try again when the program has accepted them"));
            }
            return Ok(UnixState::Listening { backlog: info.send_queue });
        }
        let Some(peer) = info.peer else {
            return Ok(UnixState::Unconnected);
        };
        if let Some(&peer) = self.by_inode.get(&u64::from(peer)) {
            return Ok(UnixState::Connected { peer });
        }
        let peer_name = socket::peer_address(opened.file.as_fd()).unwrap_or_default();
        let peer_name = name(&peer_name).map(Text::from);
        if socket_type == SocketType::Datagram {
            return match (peer, peer_name) {
                (_, Some(address)) if matches!(address.0.first(), Some(0 | b'/')) => {
                    Ok(UnixState::ConnectedOutside { address })
                }
                (0, _) => Ok(UnixState::Orphaned),
                _ => Err(outside(opened, peer, None)),
            };
        }
        if peer != 0 {
            return Err(outside(opened, peer, peer_name));
        }
        if info.state == CONNECTED && info.shutdown == 3 {
            return Ok(UnixState::Orphaned);
        }
        let waits = self.waiting.get(&opened.status.st_ino);
        if let (Some(&(listener, place)), Ok(0)) = (waits, socket::unacknowledged(opened.file.as_fd())) {
            return Ok(UnixState::Unaccepted { listener, place });
        }
        let what = if waits.is_some() {
            "data waits in a connection that was not accepted yet"
        } else {
            "a connection that was not accepted yet"
        };
        backlog.add_client(opened.status.st_ino);
        let error = opened.refuse(code::SOCKET_STATE, what).passing();
        Err(error.hint("try again when the other side has accepted it"))
    }
}

fn outside(opened: &Opened, peer: u32, name: Option<Text>) -> Box<Error> {
    let name = name.map(|name| format!(" at {name}")).unwrap_or_default();
    let what = format!("a unix socket whose peer, socket:[{peer}]{name}, is outside of the dumped tree");
    opened
        .refuse(code::SOCKET_STATE, what)
        .hint("dump a process above both ends, or close the connection first")
}

fn is_readable(opened: &Opened) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(&opened.file, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}

/// Permissions and owner of the file of an address, if that is still there.
fn socket_file(address: &Text, inode: u32) -> Option<(u32, u32, u32)> {
    if address.0.first() != Some(&b'/') {
        return None;
    }
    let found = rustix::fs::lstat(address.as_path()).ok()?;
    let is_it = found.st_mode & libc::S_IFMT == libc::S_IFSOCK
        && (inode == 0 || found.st_ino & u64::from(u32::MAX) == u64::from(inode));
    is_it.then_some((found.st_mode & 0o7777, found.st_uid, found.st_gid))
}
