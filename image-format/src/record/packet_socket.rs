//! Packet socket (kind 98): a socket that gets the packets of network interfaces; see packet(7).

use super::description::Description;
use super::reception::PacketFilter;
use super::socket_option::SocketOption;
use super::{Kind, Record};
use crate::id::Identity;
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A packet socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketSocket {
    /// What every description has.
    pub description: Description,
    /// Inode number at the dump, for people.
    pub inode: u64,
    /// `SOCK_RAW` (3) or `SOCK_DGRAM` (2).
    pub socket_type: u32,
    /// The protocol of the packets that it gets: a number of `if_ether.h`, 3 for all of them, 0 for none.
    pub protocol: u16,
    /// The interface to which it is bound; none: all.
    pub interface: Option<Text>,
    /// Its options.
    pub options: Vec<SocketOption>,
    /// Its filter.
    pub filter: Option<PacketFilter>,
    /// What interfaces receive for it beside their own packets.
    pub memberships: Vec<PacketMembership>,
    /// The group with which it shares packets (`PACKET_FANOUT`): its ID, and from bit 16 on how they are shared.
    pub fanout: Option<u32>,
}

/// What an interface receives for a packet socket (`PACKET_ADD_MEMBERSHIP`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketMembership {
    /// The interface.
    pub interface: Text,
    /// How often it was asked for.
    pub count: u32,
    /// `PACKET_MR_…`: 0 a group, 1 everything, 2 all groups, 3 one more address.
    pub membership_type: u16,
    /// The hardware address.
    pub address: Vec<u8>,
}

impl PacketMembership {
    fn check(&self) -> Result<(), String> {
        if self.membership_type > 3 || self.address.len() > 8 || self.count > 1024 {
            return Err(format!("a membership at the interface {} makes no sense", self.interface));
        }
        check_interface(&self.interface)
    }
}

/// The name of an interface: up to 15 bytes.
fn check_interface(name: &Text) -> Result<(), String> {
    if (1..=15).contains(&name.0.len()) && !name.0.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Ok(());
    }
    Err(format!("{name} is no name of a network interface"))
}

impl Record for PacketSocket {
    const KIND: Kind = Kind::PacketSocket;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        let at = self.interface.as_ref().map_or_else(|| "all interfaces".to_owned(), ToString::to_string);
        format!("packet socket of protocol {:#06x} at {at}", self.protocol)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        self.description.refers()
    }

    fn check(&self) -> Result<(), String> {
        if !matches!(self.socket_type, 2 | 3) {
            return Err(format!("a packet socket of type {}", self.socket_type));
        }
        self.interface.iter().try_for_each(check_interface)?;
        self.memberships.iter().try_for_each(PacketMembership::check)?;
        self.options.iter().try_for_each(SocketOption::check)?;
        self.filter.iter().try_for_each(PacketFilter::check)?;
        self.description.check()
    }
}
