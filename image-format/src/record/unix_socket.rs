//! Unix socket (kind 80): a socket between processes of one host, see `unix(7)`.

use super::description::Description;
use super::socket_credentials::SocketCredentials;
use super::socket_option::SocketOption;
use super::{Kind, Record};
use crate::id::{Identity, SocketId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A unix socket; what waits in it is in [`DataQueued`](super::data_queued::DataQueued) records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Its identity.
    pub id: SocketId,
    /// What every description has. A socket has one description.
    pub description: Description,
    /// Its inode number when it was dumped, by which `socket:[…]` names it.
    pub inode: u64,
    /// Its type.
    pub socket_type: SocketType,
    /// Its address: a path as it was bound to, which may be relative, or an abstract name that begins with NUL.
    pub address: Option<Text>,
    /// The file that its path has made, if that is still there.
    pub file: Option<SocketFile>,
    /// Its state.
    pub state: UnixState,
    /// Who is at the other end (`SO_PEERCRED`), or who made it listen.
    pub peer_credentials: Option<SocketCredentials>,
    /// What of it was shut down: 1 receiving, 2 sending, 3 both.
    pub shutdown: u8,
    /// Its options.
    pub options: Vec<SocketOption>,
}

/// The file of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// Where it is now: an absolute path, which need not be that of the address.
    pub path: Text,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
}

/// The type of a unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketType {
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_DGRAM`.
    Datagram,
    /// `SOCK_SEQPACKET`.
    SequencedPacket,
}

/// The state of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixState {
    /// Neither connected nor listening.
    Unconnected,
    /// It waits for connections.
    Listening {
        /// How many may wait.
        backlog: u32,
    },
    /// It is connected with another socket of the image.
    Connected {
        /// The other socket.
        peer: SocketId,
    },
    /// It was connected, and the other socket is gone.
    Orphaned,
    /// Its connection waits in the backlog of a listener of the image.
    Unaccepted {
        /// The listener.
        listener: SocketId,
        /// Its place among those that wait, from 0.
        place: u32,
        /// Who has connected it, as the listener will be told.
        client: Option<SocketCredentials>,
    },
    /// A datagram socket that sends to an address outside of the image.
    ConnectedOutside {
        /// The address: absolute.
        address: Text,
        /// Whether it may be closed if nobody is there.
        may_be_closed: bool,
    },
}

impl Record for UnixSocket {
    const KIND: Kind = Kind::UnixSocket;
    const VERSION: u16 = 3;

    fn name(&self) -> String {
        let address = self.address.as_ref().map(|address| format!(" {address}")).unwrap_or_default();
        match self.state {
            UnixState::Listening { .. } => format!("unix socket listening at{address}"),
            UnixState::Unconnected
            | UnixState::Connected { .. }
            | UnixState::Orphaned
            | UnixState::Unaccepted { .. }
            | UnixState::ConnectedOutside { .. } => format!("unix socket:[{}]{address}", self.inode),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into(), self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let mut identities = self.description.refers();
        match &self.state {
            UnixState::Connected { peer } => identities.push((*peer).into()),
            UnixState::Unaccepted { listener, client, .. } => {
                identities.push((*listener).into());
                identities.extend(client.iter().flat_map(SocketCredentials::refers));
            }
            UnixState::Unconnected
            | UnixState::Listening { .. }
            | UnixState::Orphaned
            | UnixState::ConnectedOutside { .. } => {}
        }
        identities.extend(self.peer_credentials.iter().flat_map(SocketCredentials::refers));
        identities
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()?;
        if self.address.as_ref().is_some_and(|address| address.is_empty() || address.0.len() > 108) {
            return Err("the address has a wrong length".to_owned());
        }
        if self.file.as_ref().is_some_and(|file| file.path.0.first() != Some(&b'/')) {
            return Err("the path of the file is not absolute".to_owned());
        }
        self.peer_credentials.as_ref().map_or(Ok(()), SocketCredentials::check)?;
        if self.shutdown > 3 {
            return Err(format!("shutdown {} is out of range", self.shutdown));
        }
        if let UnixState::Unaccepted { client: Some(client), .. } = &self.state {
            client.check()?;
        }
        self.options.iter().try_for_each(SocketOption::check)
    }
}
