//! Unix socket (kind 80): a socket between processes of one host, see `unix(7)`.

use super::description::Description;
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
    /// Its address: a path, or an abstract name that begins with NUL.
    pub address: Option<Text>,
    /// The socket file of a path: permission bits, owner and group; none if the file is gone or another's.
    pub file: Option<(u32, u32, u32)>,
    /// Its state.
    pub state: UnixState,
    /// What of it was shut down: 1 receiving, 2 sending, 3 both.
    pub shutdown: u8,
    /// Its options.
    pub options: Vec<SocketOption>,
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
    },
    /// A datagram socket that sends to an address outside of the image.
    ConnectedOutside {
        /// The address.
        address: Text,
    },
}

impl Record for UnixSocket {
    const KIND: Kind = Kind::UnixSocket;
    const VERSION: u16 = 2;

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
        if let UnixState::Connected { peer: other } | UnixState::Unaccepted { listener: other, .. } =
            self.state
        {
            identities.push(other.into());
        }
        identities
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()?;
        if self.address.as_ref().is_some_and(|address| address.is_empty() || address.0.len() > 108) {
            return Err("the address has a wrong length".to_owned());
        }
        if self.shutdown > 3 {
            return Err(format!("shutdown {} is out of range", self.shutdown));
        }
        self.options.iter().try_for_each(SocketOption::check)
    }
}
