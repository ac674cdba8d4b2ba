//! Sending datagrams that waited again, from the addresses of their senders: from the sender's own socket if it is in the
//! image, else from one that is made for it.

use super::ends::{internet, of_family, plain};
use super::format_address;
use crate::error::Result;
use crate::kinds::descriptor::socket as any_socket;
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vckpt_image_format::Record;
use vckpt_image_format::record::connection::{Address, Connection};
use vckpt_image_format::record::data_queued::{DataQueued, Message};

const IP: u32 = libc::IPPROTO_IP.cast_unsigned();
const IPV6: u32 = libc::IPPROTO_IPV6.cast_unsigned();
/// Senders may have any address with these, which need rights.
const ANY_ADDRESS: [(u32, u32); 2] =
    [(IP, libc::IP_TRANSPARENT.cast_unsigned()), (IPV6, libc::IPV6_TRANSPARENT.cast_unsigned())];

/// A socket, and what waited in it.
#[derive(Debug)]
pub(super) struct FillDatagrams {
    /// The socket.
    pub to: Connection,
    /// The datagrams.
    pub messages: Vec<DataQueued>,
}

/// Fills all sockets in which datagrams waited.
#[derive(Debug)]
pub(super) struct FillAll {
    /// Those.
    pub fills: Vec<FillDatagrams>,
    /// Sockets that may have sent them.
    pub senders: Vec<Connection>,
}

impl Action for FillAll {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        for fill in &self.fills {
            if fill.to.filter.is_some()
                && let Some(made) = restoring.descriptions.get(&fill.to.description.id)
            {
                // It lets nothing in yet.
                let _ = socket::set_filter(made.as_fd(), &super::reception::EVERYTHING);
            }
            let mut lost = 0;
            for message in fill.messages.iter().flat_map(|record| &record.messages) {
                lost += usize::from(self.send(restoring, &fill.to, message).is_err());
            }
            if lost > 0 {
                let name = fill.to.name();
                restoring
                    .degraded
                    .push(format!("{name}: {lost} datagrams that waited could not be sent again"));
            }
        }
        Ok(())
    }
}

impl FillAll {
    fn send(
        &self,
        restoring: &Restoring<'_>,
        to: &Connection,
        message: &Message,
    ) -> std::result::Result<(), Errno> {
        let source = message.source.as_ref().and_then(|source| source.to_string().parse::<SocketAddr>().ok());
        let (Some(source), Some(local)) = (source, internet(to.local)) else {
            return Err(Errno::EDESTADDRREQ);
        };
        let mut at = of_family(local, to.family);
        if at.ip().is_unspecified() {
            let is_four = plain(source).is_ipv4();
            at.set_ip(if is_four { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        let at = plain(at);
        let own = self.senders.iter().find(|sender| sent_by(sender, to, source));
        if let Some(own) = own.and_then(|own| restoring.descriptions.get(&own.description.id).zip(Some(own)))
        {
            let (file, own) = own;
            return send_whole(file.as_fd(), &message.data, of_family(at, own.family));
        }
        send_whole(stranger(to, source)?.as_fd(), &message.data, at)
    }
}

/// Whether a socket has the address of a sender.
fn sent_by(sender: &Connection, to: &Connection, source: SocketAddr) -> bool {
    let (Some(local), source) = (internet(sender.local).map(plain), plain(source)) else { return false };
    let is_there = local.ip() == source.ip() || (local.ip().is_unspecified() && is_loopback(source.ip()));
    sender.protocol == to.protocol && local.port() == source.port() && is_there
}

const fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

/// A socket with the address of a sender that is not in the image.
fn stranger(to: &Connection, source: SocketAddr) -> std::result::Result<OwnedFd, Errno> {
    let source = plain(source);
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = NonZeroU32::new(to.protocol).map(Protocol::from_raw);
    let made = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    for name in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
        socket::set_option(made.as_fd(), any_socket::SOCKET, name.cast_unsigned(), &1_u32.to_ne_bytes())?;
    }
    for (level, name) in ANY_ADDRESS {
        // Without the right, addresses of this host must do.
        let _ = socket::set_option(made.as_fd(), level, name, &1_u32.to_ne_bytes());
    }
    socket::bind(made.as_fd(), &format_address(&Address::Internet(source)))?;
    Ok(made)
}

fn send_whole(from: BorrowedFd<'_>, data: &[u8], at: SocketAddr) -> std::result::Result<(), Errno> {
    let sent = socket::send(from, data, &format_address(&Address::Internet(at)))?;
    if sent == data.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
}
