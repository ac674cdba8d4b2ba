//! Finding out in which state unix sockets are, and with whom they are connected.

use super::observe::identity;
use super::{credentials, name};
use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use crate::kinds::descriptor::opened::Opened;
use crate::records::Records;
use crate::sys::sock_diag::{SocketDiagnosis, UnixSocketInfo};
use crate::sys::socket;
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::AsFd;
use vckpt_image_format::record::unix_socket::{SocketType, UnixState};
use vckpt_image_format::{SocketId, Text};

const CONNECTED: u8 = 1;
const LISTENING: u8 = 10;

/// All unix sockets of a tree.
pub(super) struct Look<'tree> {
    frozen: &'tree Frozen,
    diagnosis: SocketDiagnosis,
    by_inode: HashMap<u64, SocketId>,
    /// Sockets whose connections wait to be accepted, with their listener and their place there.
    waiting: HashMap<u64, (SocketId, u32)>,
    /// Whether those with peers outside of the tree are kept as if the peer had closed them.
    close_external: bool,
}

/// Whether an address is a path.
pub(super) fn is_path(address: &Text) -> bool {
    address.0.first().is_some_and(|&byte| byte != 0)
}

impl<'tree> Look<'tree> {
    pub(super) fn new(frozen: &'tree Frozen, opened: &[&Opened], close_external: bool) -> Result<Self> {
        let diagnosis = SocketDiagnosis::new().map_err(|errno| {
            Error::system(code::HOST_FEATURE, "asking the kernel about unix sockets", errno)
        })?;
        let by_inode = opened.iter().map(|opened| (opened.status.st_ino, identity(opened))).collect();
        let mut look = Self { frozen, diagnosis, by_inode, waiting: HashMap::new(), close_external };
        for opened in opened {
            look.backlog(opened);
        }
        Ok(look)
    }

    /// What the kernel says of a socket.
    pub(super) fn info(&self, inode: u64) -> std::result::Result<UnixSocketInfo, Errno> {
        self.diagnosis.unix_socket(inode)
    }

    /// Notes the connections that wait in the backlog of a listener.
    fn backlog(&mut self, opened: &Opened) {
        let Ok(info) = self.info(opened.status.st_ino) else { return };
        for (place, &inode) in info.waiting.iter().enumerate() {
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            self.waiting.insert(inode.into(), (identity(opened), place));
        }
    }

    /// The state of a socket.
    pub(super) fn state(
        &self,
        opened: &Opened,
        socket_type: SocketType,
        info: &UnixSocketInfo,
        records: &mut Records,
    ) -> Result<UnixState> {
        if info.state == LISTENING {
            return self.listening(opened, info, records);
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
                (0, _) => Ok(UnixState::Orphaned),
                (_, Some(address)) if matches!(address.0.first(), Some(0 | b'/')) => {
                    Ok(UnixState::ConnectedOutside { address, may_be_closed: self.close_external })
                }
                (_, name) => self.outside(opened, peer, name, records),
            };
        }
        if peer != 0 {
            return self.outside(opened, peer, peer_name, records);
        }
        if info.state == CONNECTED && info.shutdown == 3 {
            return Ok(UnixState::Orphaned);
        }
        self.not_accepted(opened, peer_name, records)
    }

    fn listening(&self, opened: &Opened, info: &UnixSocketInfo, records: &mut Records) -> Result<UnixState> {
        if info.receive_queue > 0 {
            let copy = opened.file.try_clone();
            let copy = copy.map_err(|error| opened.failed("copying a descriptor", error))?;
            records.backlog.add(copy, opened.holders.iter().map(|holder| holder.pid));
        }
        let is_known = |inode: &&u32| {
            let inode = u64::from(**inode);
            self.by_inode.contains_key(&inode) && self.waiting.contains_key(&inode)
        };
        let known = u32::try_from(info.waiting.iter().filter(is_known).count()).unwrap_or(u32::MAX);
        if info.receive_queue > known {
            let count = info.receive_queue - known;
            let what = format!("{count} connections from outside of the tree wait to be accepted");
            if !self.close_external {
                return Err(opened
                    .refuse(code::SOCKET_STATE, what)
                    .passing()
                    .hint("try again when the program has accepted them, or dump with --external close"));
            }
            records.degraded.push(format!("{}: {what}: they are given up", opened.subject));
        }
        Ok(UnixState::Listening { backlog: info.send_queue })
    }

    /// One whose connection nobody has accepted yet.
    fn not_accepted(&self, opened: &Opened, name: Option<Text>, records: &mut Records) -> Result<UnixState> {
        let waits = self.waiting.get(&opened.status.st_ino);
        if let (Some(&(listener, place)), Ok(0)) = (waits, socket::unacknowledged(opened.file.as_fd())) {
            let client = credentials::holder(self.frozen, opened);
            return Ok(UnixState::Unaccepted { listener, place, client });
        }
        let what = match waits {
            Some(_) => "data waits in a connection that was not accepted yet",
            None if self.close_external => return self.outside(opened, 0, name, records),
            None => "a connection that was not accepted yet",
        };
        records.backlog.add_client(opened.status.st_ino);
        let error = opened.refuse(code::SOCKET_STATE, what).passing();
        Err(error.hint("try again when the other side has accepted it"))
    }

    /// One whose peer is outside of the tree.
    fn outside(
        &self,
        opened: &Opened,
        peer: u32,
        name: Option<Text>,
        records: &mut Records,
    ) -> Result<UnixState> {
        let name = name.map(|name| format!(" at {name}")).unwrap_or_default();
        let what = format!("a unix socket whose peer, socket:[{peer}]{name}, is outside of the dumped tree");
        if self.close_external {
            records.degraded.push(format!("{}: {what}: the program finds it closed", opened.subject));
            return Ok(UnixState::Orphaned);
        }
        let hint =
            "dump a process above both ends, close the connection first, or give it up with --external close";
        Err(opened.refuse(code::SOCKET_STATE, what).hint(hint))
    }
}
