//! What a socket receives beside its own address, and what it does not: parts of the records of sockets. They are no
//! records by themselves.

use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Most instructions of a filter: `BPF_MAXINSNS`.
const MOST_INSTRUCTIONS: usize = 4096;
/// Most sources that are named for one group.
const MOST_SOURCES: usize = 4096;

/// A multicast group that a socket has joined: `IP_ADD_MEMBERSHIP` in ip(7), `IPV6_ADD_MEMBERSHIP` in ipv6(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group.
    pub group: IpAddr,
    /// The name of the network interface at which it was joined.
    pub interface: Text,
    /// Whether packets of the sources are left out; otherwise only those of the sources are received.
    pub excludes: bool,
    /// The sources.
    pub sources: Vec<IpAddr>,
}

impl Membership {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        let is_of_family = |address: &IpAddr| address.is_ipv4() == self.group.is_ipv4();
        if !self.group.is_multicast() || !self.sources.iter().all(is_of_family) {
            return Err(format!("{} is no multicast group of these sources", self.group));
        }
        if self.sources.len() > MOST_SOURCES {
            return Err(format!("{} sources of a group are too many", self.sources.len()));
        }
        Ok(())
    }
}

/// A classic filter program: `SO_ATTACH_FILTER` in socket(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketFilter {
    /// Its instructions: `struct sock_filter`, 8 bytes each.
    pub instructions: Vec<u8>,
    /// Whether it can't be changed any more: `SO_LOCK_FILTER`.
    pub locked: bool,
}

impl PacketFilter {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        let length = self.instructions.len();
        if !length.is_multiple_of(8) || length == 0 || length / 8 > MOST_INSTRUCTIONS {
            return Err(format!("a filter has {length} bytes"));
        }
        Ok(())
    }
}
