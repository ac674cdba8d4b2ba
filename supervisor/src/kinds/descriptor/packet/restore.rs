//! Making packet sockets again.

use super::{FANOUT, LEVEL};
use crate::error::{Error, Problems, Result, Subject, code};
use crate::kinds::descriptor::socket as any_socket;
use crate::kinds::descriptor::{all, own_tables, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::HashMap;
use std::os::fd::AsFd;
use vckpt_image_format::record::Record;
use vckpt_image_format::record::packet_socket::{PacketMembership, PacketSocket};
use vckpt_image_format::{DescriptionId, Image, TaskId, Text};

const ADD_MEMBERSHIP: u32 = libc::PACKET_ADD_MEMBERSHIP.cast_unsigned();

/// Adds the steps for each socket.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let sockets = all::<PacketSocket>(image)?;
    if sockets.is_empty() {
        return Ok(());
    }
    let mut holders: HashMap<DescriptionId, (TaskId, u32)> = HashMap::new();
    for (process, table) in own_tables(image)? {
        for descriptor in &table.descriptors {
            holders.entry(descriptor.description).or_insert((process.id, descriptor.number));
        }
    }
    for socket in sockets {
        let holder = holders.get(&socket.description.id).copied();
        if let Some((process, number)) = holder {
            plan.action(Stage::Timers, Bind { process, number, socket: socket.clone() });
        }
        plan.action(Stage::Descriptors, Make { socket, binds: holder.is_none() });
    }
    Ok(())
}

/// Looks whether this host has what the packet sockets of an image need.
///
/// # Errors
/// [`code::HOST_FEATURE`] for each interface that is missing, [`code::PRIVILEGE`].
pub fn check(image: &Image) -> Result<()> {
    let mut problems = Problems::new();
    for socket in all::<PacketSocket>(image)? {
        let about = |error: Box<Error>| error.about(Subject::path(socket.name()));
        problems.take(make(&socket).map_err(about));
        let names =
            socket.interface.iter().chain(socket.memberships.iter().map(|membership| &membership.interface));
        for name in names {
            problems.take(index(name).map_err(about));
        }
    }
    problems.finish()
}

/// A socket that gets nothing yet.
fn make(socket: &PacketSocket) -> Result<std::os::fd::OwnedFd> {
    let socket_type = SocketType::from_raw(socket.socket_type);
    rustix::net::socket_with(AddressFamily::PACKET, socket_type, SocketFlags::CLOEXEC, None).map_err(
        |errno| {
            let what = "making a packet socket";
            if errno == rustix::io::Errno::PERM {
                return Error::system(code::PRIVILEGE, what, errno).hint("this needs CAP_NET_RAW");
            }
            Error::system(code::DESCRIPTOR_RESTORE, what, errno)
        },
    )
}

/// The number of the network interface of this name.
fn index(name: &Text) -> Result<u32> {
    let find = || {
        let any =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::netdevice::name_to_index(any, std::str::from_utf8(&name.0).unwrap_or_default())
    };
    find().map_err(|_| {
        let what = format!("a packet socket of the network interface {name}, which is not here");
        Error::new(code::HOST_FEATURE, what).hint("make an interface of that name")
    })
}

/// `struct sockaddr_ll`.
fn address(socket: &PacketSocket) -> Result<Vec<u8>> {
    let interface = socket.interface.as_ref().map_or(Ok(0), index)?;
    let mut address = u16::try_from(libc::AF_PACKET).unwrap_or_default().to_ne_bytes().to_vec();
    address.extend(socket.protocol.to_be_bytes());
    address.extend(interface.to_ne_bytes());
    address.resize(size_of::<libc::sockaddr_ll>(), 0);
    Ok(address)
}

/// `struct packet_mreq`.
fn request(membership: &PacketMembership) -> Result<Vec<u8>> {
    let mut request = index(&membership.interface)?.to_ne_bytes().to_vec();
    request.extend(membership.membership_type.to_ne_bytes());
    request.extend(u16::try_from(membership.address.len()).unwrap_or(0).to_ne_bytes());
    request.extend(&membership.address);
    request.resize(size_of::<libc::packet_mreq>(), 0);
    Ok(request)
}

/// Makes a socket.
#[derive(Debug)]
struct Make {
    socket: PacketSocket,
    /// Whether it is bound at once, since nobody has it under a number.
    binds: bool,
}

impl Action for Make {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let socket = &self.socket;
        let about = |error: Box<Error>| error.about(Subject::path(socket.name()));
        let failed = |what: &str, errno: Errno| about(Error::system(code::DESCRIPTOR_RESTORE, what, errno));
        let made = make(socket).map_err(about)?;
        any_socket::set_options(made.as_fd(), &socket.options).map_err(about)?;
        for membership in &socket.memberships {
            let request = request(membership).map_err(about)?;
            for _ in 0..membership.count {
                socket::set_option(made.as_fd(), LEVEL, ADD_MEMBERSHIP, &request)
                    .map_err(|errno| failed("adding a membership to a packet socket", errno))?;
            }
        }
        if let Some(filter) = &socket.filter {
            any_socket::set_filter(made.as_fd(), filter).map_err(about)?;
        }
        if self.binds {
            let address = address(socket).map_err(about)?;
            socket::bind(made.as_fd(), &address).map_err(|errno| failed("binding a packet socket", errno))?;
            if let Some(fanout) = socket.fanout {
                socket::set_option(made.as_fd(), LEVEL, FANOUT, &fanout.to_ne_bytes())
                    .map_err(|errno| failed("joining a group of packet sockets", errno))?;
            }
        }
        restore::keep(restoring, &socket.description, made)
    }
}

/// Lets a process bind a socket that it has: from then on it gets packets.
#[derive(Debug)]
struct Bind {
    process: TaskId,
    number: u32,
    socket: PacketSocket,
}

impl Action for Bind {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Self { process, number, socket } = self;
        let about = |error: Box<Error>| error.about(Subject::path(socket.name()));
        if socket.protocol == 0 && socket.interface.is_none() {
            return Ok(());
        }
        let mut batch = Batch::new();
        let address = batch.data(&address(socket).map_err(about)?);
        let arguments = [(*number).into(), address.into(), address.length.into()];
        batch.must("binding a packet socket", libc::SYS_bind, arguments);
        if let Some(fanout) = socket.fanout {
            let value = batch.data(&fanout.to_ne_bytes());
            let (level, name) = (LEVEL.into(), FANOUT.into());
            let arguments = [(*number).into(), level, name, value.into(), value.length.into()];
            batch.must("joining a group of packet sockets", libc::SYS_setsockopt, arguments);
        }
        restoring.run(*process, &batch).map(drop).map_err(about)
    }
}
