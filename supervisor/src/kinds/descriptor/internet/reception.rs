//! What a socket receives beside its own address, and what it does not: multicast groups and filters.
//!
//! The kernel lists the groups of each interface, but not by socket; asked for the sources of a group
//! (`MCAST_MSFILTER`), it tells whether this socket has joined it.

use super::ends::internet;
use super::{format_address, parse_address};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::opened::Opened;
use crate::kinds::descriptor::socket::{self as any_socket, SOCKET};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use vckpt_image_format::record::connection::{Address, Connection};
use vckpt_image_format::record::reception::Membership;
use vckpt_image_format::{Record, Text};

/// Filters of one instruction: `ret #0`, and `ret` with the highest length.
pub(super) const NOTHING: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
pub(super) const EVERYTHING: [u8; 8] = [6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

const JOIN: u32 = 42;
const JOIN_SOURCE: u32 = 46;
const SOURCES: u32 = 48;
/// `struct sockaddr_storage`.
const ROOM: usize = 128;
/// `struct group_filter`: where the group, the mode, the number of sources and they themselves begin.
const GROUP: usize = 8;
const MODE: usize = GROUP + ROOM;
const COUNT: usize = MODE + 4;
const LIST: usize = COUNT + 4;
/// `MCAST_EXCLUDE`.
const EXCLUDE: u32 = 0;
/// Sources for which there is room at the first try.
const FEW: u32 = 16;

/// The groups that somebody has joined, with their interfaces.
#[derive(Debug)]
pub struct Groups(Vec<(u32, Text, IpAddr)>);

impl Groups {
    /// Those of the network namespace of this program.
    ///
    /// # Errors
    /// [`code::PROC`].
    pub fn read() -> Result<Self> {
        let text = |name: &str| match std::fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
            Ok(text) => Ok(text),
            // A kernel without multicast or without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(Error::system(code::PROC, format!("reading the groups of net/{name}"), error)),
        };
        let mut groups = four(&text("igmp")?);
        groups.extend(six(&text("igmp6")?));
        Ok(Self(groups))
    }

    /// Those that a socket has joined.
    ///
    /// # Errors
    /// [`code::PROC`] if the kernel does not tell.
    pub fn joined(&self, opened: &Opened) -> Result<Vec<Membership>> {
        let mut joined = Vec::new();
        let domain = socket::number_option(opened.file.as_fd(), SOCKET, libc::SO_DOMAIN.cast_unsigned());
        let is_four = domain == Ok(libc::AF_INET.cast_unsigned());
        for (index, interface, group) in self.0.iter().filter(|(.., group)| group.is_ipv4() || !is_four) {
            let asked = sources(opened.file.as_fd(), *index, *group);
            match asked {
                Ok((excludes, sources)) => {
                    let interface = interface.clone();
                    joined.push(Membership { group: *group, interface, excludes, sources });
                }
                // Not joined; or of the other family.
                Err(
                    Errno::EADDRNOTAVAIL
                    | Errno::ENOPROTOOPT
                    | Errno::EINVAL
                    | Errno::EOPNOTSUPP
                    | Errno::ENODEV,
                ) => {}
                Err(errno) => return Err(opened.failed("asking for the multicast groups of a socket", errno)),
            }
        }
        Ok(joined)
    }
}

/// `net/igmp`: a line for each interface, then one for each of its groups, as a number in the order of the network.
fn four(text: &str) -> Vec<(u32, Text, IpAddr)> {
    let mut groups = Vec::new();
    let mut interface = None;
    for line in text.lines().skip(1) {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if !line.starts_with('\t') {
            let name = words.next().map(|name| Text::from(name.trim_end_matches(':').as_bytes()));
            interface = first.parse::<u32>().ok().zip(name);
        } else if let (Some((index, name)), Ok(group)) = (&interface, u32::from_str_radix(first, 16)) {
            groups.push((*index, name.clone(), Ipv4Addr::from(group.to_ne_bytes()).into()));
        }
    }
    groups
}

/// `net/igmp6`: number and name of the interface, and the group, on each line.
fn six(text: &str) -> Vec<(u32, Text, IpAddr)> {
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let index = words.next()?.parse().ok()?;
        let name = Text::from(words.next()?.as_bytes());
        let group = u128::from_str_radix(words.next()?, 16).ok()?;
        Some((index, name, Ipv6Addr::from(group).into()))
    };
    text.lines().filter_map(parse).collect()
}

fn level(group: IpAddr) -> u32 {
    let level = if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    level.cast_unsigned()
}

/// A `struct sockaddr_storage`.
fn storage(address: IpAddr) -> Vec<u8> {
    let mut bytes = format_address(&Address::Internet(SocketAddr::new(address, 0)));
    bytes.resize(ROOM, 0);
    bytes
}

/// The beginning of `struct group_req`, and of `struct group_filter`.
fn request(index: u32, group: IpAddr) -> Vec<u8> {
    [&index.to_ne_bytes()[..], &[0; 4], &storage(group)].concat()
}

/// Whether the sources of a group are left out, and which they are.
fn sources(
    file: BorrowedFd<'_>,
    index: u32,
    group: IpAddr,
) -> std::result::Result<(bool, Vec<IpAddr>), Errno> {
    let mut room = FEW;
    loop {
        let mut question = request(index, group);
        question.extend([0; 4]);
        question.extend(room.to_ne_bytes());
        question.resize(LIST + room as usize * ROOM, 0);
        let answer = socket::asked_option(file, level(group), SOURCES, question)?;
        let number = |at: usize| {
            let bytes = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_ne_bytes).ok_or(Errno::EBADMSG)
        };
        let count = number(COUNT)?;
        if count > room {
            room = count;
            continue;
        }
        let list = answer.get(LIST..).unwrap_or_default().chunks_exact(ROOM).take(count as usize);
        let sources = list.filter_map(|bytes| internet(parse_address(bytes))).map(|address| address.ip());
        return Ok((number(MODE)? == EXCLUDE, sources.collect()));
    }
}

/// Joins the groups of a socket.
///
/// # Errors
/// [`code::HOST_FEATURE`] if there is no such interface; [`code::DESCRIPTOR_RESTORE`].
pub fn join(made: BorrowedFd<'_>, memberships: &[Membership]) -> Result<()> {
    for membership in memberships {
        let index = interface(membership)?;
        let Membership { group, excludes, sources, .. } = membership;
        let request = request(index, *group);
        let level = level(*group);
        let join = |request: &[u8]| socket::set_option(made, level, JOIN, request);
        let joined = match (excludes, sources.as_slice()) {
            (true, []) => join(&request),
            (false, [_, ..]) => sources.iter().try_for_each(|&source| {
                let request = [&request[..], &storage(source)].concat();
                socket::set_option(made, level, JOIN_SOURCE, &request)
            }),
            (_, sources) => join(&request).and_then(|()| {
                let count = u32::try_from(sources.len()).map_err(|_| Errno::EINVAL)?;
                let mut filter = request.clone();
                filter.extend(u32::from(!excludes).to_ne_bytes());
                filter.extend(count.to_ne_bytes());
                sources.iter().for_each(|&source| filter.extend(storage(source)));
                socket::set_option(made, level, SOURCES, &filter)
            }),
        };
        joined.map_err(|errno| {
            Error::system(code::DESCRIPTOR_RESTORE, format!("joining the multicast group {group}"), errno)
        })?;
    }
    Ok(())
}

/// The number of the interface of a membership on this host.
///
/// # Errors
/// [`code::HOST_FEATURE`] if there is none.
pub fn interface(membership: &Membership) -> Result<u32> {
    let name = &membership.interface;
    let missing = || {
        let what = format!(
            "a multicast group ({}) of the network interface {name}, which is not here",
            membership.group
        );
        Error::new(code::HOST_FEATURE, what).hint("make an interface of that name")
    };
    let find = || {
        let any =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::netdevice::name_to_index(any, std::str::from_utf8(&name.0).unwrap_or_default())
    };
    find().map_err(|_| missing())
}

/// Attaches the filter of a socket: at the end, since what waits in it has passed already.
#[derive(Debug)]
pub(super) struct AttachFilter(pub Connection);

impl Action for AttachFilter {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(made) = restoring.descriptions.get(&self.0.description.id) else { return Ok(()) };
        let Some(filter) = &self.0.filter else { return Ok(()) };
        any_socket::set_filter(made.as_fd(), filter)
            .map_err(|error| error.about(Subject::path(self.0.name())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_understood() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n12\teth0      :     2      V3\n\
                    \t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        let found = four(text);
        assert_eq!(found[0], (1, Text::from(&b"lo"[..]), "224.0.0.1".parse().unwrap()));
        assert_eq!(found[1], (12, Text::from(&b"eth0"[..]), "224.0.0.251".parse().unwrap()));
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(six(text), [(1, Text::from(&b"lo"[..]), "ff02::1".parse().unwrap())]);
    }
}
