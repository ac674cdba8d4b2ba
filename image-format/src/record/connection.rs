//! Connection (kind 67): a socket of the internet protocols (`ip(7)`, `ipv6(7)`), or one to the kernel
//! (`netlink(7)`).

use super::description::Description;
use super::reception::{Membership, PacketFilter};
use super::socket_option::SocketOption;
use super::{Kind, Record};
use crate::id::{Identity, SocketId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Its identity.
    pub id: SocketId,
    /// What every description has. A socket has one description.
    pub description: Description,
    /// Its inode number when it was dumped, by which `socket:[…]` names it.
    pub inode: u64,
    /// `AF_INET`, `AF_INET6` or `AF_NETLINK`.
    pub family: u32,
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_RAW`.
    pub socket_type: u32,
    /// The protocol, such as `IPPROTO_TCP`.
    pub protocol: u32,
    /// Its own address, if it was bound.
    pub local: Option<Address>,
    /// Its state.
    pub state: ConnectionState,
    /// Its options.
    pub options: Vec<SocketOption>,
    /// The multicast groups that it has joined.
    pub memberships: Vec<Membership>,
    /// Its filter.
    pub filter: Option<PacketFilter>,
}

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// Of an internet protocol.
    Internet(SocketAddr),
    /// Of a netlink socket.
    Netlink {
        /// Its port ID.
        port: u32,
        /// The multicast groups 1 to 32 that it has joined.
        groups: u32,
    },
}

/// The state of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionState {
    /// Neither connected nor listening.
    Unconnected,
    /// It waits for connections.
    Listening {
        /// How many may wait.
        backlog: u32,
    },
    /// A datagram socket with a fixed peer.
    FixedPeer {
        /// The peer.
        peer: Address,
    },
    /// A TCP connection whose other end is a socket of the image as well. What was sent and not read yet, wherever it
    /// was, is in [`DataQueued`](super::data_queued::DataQueued) records of the receiving end.
    Paired {
        /// The other end.
        end: SocketId,
        /// Its address, as this end knows it.
        peer: Address,
        /// What was shut down: 1 receiving, 2 sending, 3 both.
        shut: u8,
    },
    /// A TCP connection that waits in the backlog of a listener of the image.
    Unaccepted {
        /// The listener.
        listener: SocketId,
        /// Its address, as this end knows it.
        peer: Address,
        /// What was shut down: 1 receiving, 2 sending, 3 both.
        shut: u8,
    },
    /// A TCP connection with a peer outside of the image, which must notice nothing.
    Established {
        /// The peer.
        peer: Address,
        /// Where the connection stands.
        stream: Stream,
    },
    /// A TCP connection that is still being made: the peer has not answered yet.
    Connecting {
        /// The peer.
        peer: Address,
    },
    /// A TCP connection that is over. What it has received and nobody has read yet is in
    /// [`DataQueued`](super::data_queued::DataQueued) records.
    Over {
        /// How it came to its end.
        ending: Ending,
        /// Its peer, if the kernel still told.
        peer: Option<Address>,
    },
}

/// Where a TCP connection stands: what `TCP_REPAIR` tells and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The lock that keeps the packets of the connection away between dump and restore.
    pub lock: u64,
    /// Sequence number of the first byte that the peer has not acknowledged.
    pub sent: u32,
    /// How many of the last bytes in the queue for sending were never sent.
    pub unsent: u32,
    /// Sequence number of the next byte to be received.
    pub received: u32,
    /// The largest segment that the peer takes, in bytes.
    pub segment: u32,
    /// The scales of the windows (powers of two) for sending and receiving, if both ends know them.
    pub scales: Option<(u8, u8)>,
    /// Whether acknowledgements are selective.
    pub selective: bool,
    /// The clock of the time stamps, if there are any.
    pub clock: Option<u32>,
    /// `struct tcp_repair_window`.
    pub window: [u32; 5],
    /// What was shut down: 1 receiving, 2 sending, 3 both.
    pub shut: u8,
    /// Whether the peer has sent its end.
    pub ended: bool,
}

/// How a TCP connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The peer has closed it, the program has not: `CLOSE_WAIT`.
    PeerClosed,
    /// It was reset or failed otherwise, and the program has not got the error yet.
    Failed,
    /// Closed from both sides, or failed and the program knows.
    Closed,
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Internet(address) => write!(formatter, "{address}"),
            Address::Netlink { port, .. } => write!(formatter, "netlink port {port}"),
        }
    }
}

impl Connection {
    /// The address of its peer, if it has one and that is known.
    #[must_use]
    pub const fn peer(&self) -> Option<Address> {
        match self.state {
            ConnectionState::Unconnected | ConnectionState::Listening { .. } => None,
            ConnectionState::FixedPeer { peer }
            | ConnectionState::Paired { peer, .. }
            | ConnectionState::Unaccepted { peer, .. }
            | ConnectionState::Connecting { peer }
            | ConnectionState::Established { peer, .. } => Some(peer),
            ConnectionState::Over { peer, .. } => peer,
        }
    }
}

impl Record for Connection {
    const KIND: Kind = Kind::Connection;
    const VERSION: u16 = 4;

    fn name(&self) -> String {
        let protocol = match (self.family, self.protocol) {
            (16, _) => "netlink",
            (_, 6) => "tcp",
            (_, 17) => "udp",
            _ => "socket",
        };
        let local = self.local.map_or_else(|| "unbound".to_owned(), |local| local.to_string());
        match self.state {
            ConnectionState::Unconnected => format!("{protocol} {local}"),
            ConnectionState::Listening { .. } => format!("{protocol} listening at {local}"),
            ConnectionState::FixedPeer { peer } => format!("{protocol} {local} to {peer}"),
            ConnectionState::Paired { peer, .. } | ConnectionState::Established { peer, .. } => {
                format!("{protocol} {local} to {peer}")
            }
            ConnectionState::Unaccepted { peer, .. } => {
                format!("{protocol} {local} to {peer}, not accepted yet")
            }
            ConnectionState::Connecting { peer } => format!("{protocol} {local} to {peer}, still being made"),
            ConnectionState::Over { peer: Some(peer), .. } => format!("{protocol} {local} to {peer}, over"),
            ConnectionState::Over { peer: None, .. } => format!("{protocol} {local}, over"),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into(), self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let mut identities = self.description.refers();
        match self.state {
            ConnectionState::Paired { end: other, .. }
            | ConnectionState::Unaccepted { listener: other, .. } => identities.push(other.into()),
            ConnectionState::Unconnected
            | ConnectionState::Listening { .. }
            | ConnectionState::FixedPeer { .. }
            | ConnectionState::Established { .. }
            | ConnectionState::Connecting { .. }
            | ConnectionState::Over { .. } => {}
        }
        identities
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()?;
        let netlink = |address: &Address| matches!(address, Address::Netlink { .. });
        if self
            .local
            .iter()
            .chain(self.peer().as_ref())
            .any(|address| netlink(address) != (self.family == 16))
        {
            return Err("an address is of another family than the socket".to_owned());
        }
        let (is_connection, shut) = match self.state {
            ConnectionState::Unconnected
            | ConnectionState::Listening { .. }
            | ConnectionState::FixedPeer { .. } => (false, 0),
            ConnectionState::Over { .. } | ConnectionState::Connecting { .. } => (true, 0),
            ConnectionState::Paired { shut, .. } | ConnectionState::Unaccepted { shut, .. } => (true, shut),
            ConnectionState::Established { stream, .. } => (true, stream.shut),
        };
        if is_connection && (self.family == 16 || self.protocol != 6) {
            return Err("a socket that is none of TCP has a connection".to_owned());
        }
        if shut > 3 {
            return Err(format!("shutdown {shut} is out of range"));
        }
        self.memberships.iter().try_for_each(Membership::check)?;
        self.filter.iter().try_for_each(PacketFilter::check)?;
        self.options.iter().try_for_each(SocketOption::check)
    }
}
