//! Looking at packet sockets.

use super::{COPY_THRESHOLD, FANOUT, LEVEL, OPTIONS};
use crate::error::{Error, Problems, Result, code};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::descriptor::socket::{self as any_socket, SOCKET};
use crate::records::Records;
use crate::sys::sock_diag::{PacketSocketInfo, SocketDiagnosis};
use crate::sys::socket;
use nix::errno::Errno;
use std::os::fd::AsFd;
use vckpt_image_format::Text;
use vckpt_image_format::record::packet_socket::{PacketMembership, PacketSocket};
use vckpt_image_format::record::socket_option::SocketOption;

/// Ways to share packets that a program decides (`PACKET_FANOUT_CBPF`, `PACKET_FANOUT_EBPF`).
const BY_PROGRAM: [u32; 2] = [6, 7];

/// Gives a record for each socket.
///
/// # Errors
/// All that this kind [refuses](super).
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let unknown = |errno: Errno| {
        Error::system(code::HOST_FEATURE, "asking the kernel about packet sockets", errno)
            .hint("a kernel with CONFIG_PACKET_DIAG is needed")
    };
    let known = SocketDiagnosis::new().and_then(|diagnosis| diagnosis.packet_sockets()).map_err(unknown)?;
    let mut problems = Problems::new();
    for opened in opened {
        let Some(info) = known.get(&opened.status.st_ino) else {
            problems
                .push(opened.refuse(code::DESCRIPTOR_KIND, "a packet socket of another network namespace"));
            continue;
        };
        if let Some(record) = problems.take(look(opened, info)) {
            if info.waiting > 0 {
                records.degraded.push(format!("{}: the packets that wait are lost", opened.subject));
            }
            records.push(record);
        }
    }
    problems.finish()
}

fn look(opened: &Opened, info: &PacketSocketInfo) -> Result<PacketSocket> {
    let file = opened.file.as_fd();
    let failed = |errno| opened.failed("looking at a packet socket", errno);
    let refuse = |what: &str| Err(opened.refuse(code::DESCRIPTOR_KIND, what));
    if info.has_ring {
        return refuse("a packet socket with a ring, of which the kernel does not tell where it is");
    }
    let socket_type = socket::number_option(file, SOCKET, libc::SO_TYPE.cast_unsigned()).map_err(failed)?;
    if ![libc::SOCK_RAW, libc::SOCK_DGRAM].contains(&socket_type.cast_signed()) {
        return refuse("a packet socket of the old kind (SOCK_PACKET)");
    }
    // struct sockaddr_ll: family, protocol, number of the interface.
    let address = socket::local_address(file).map_err(failed)?;
    let protocol = address.get(2..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes);
    let index = address.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    let interface = match u32::try_from(index) {
        Ok(0) => None,
        Ok(index) => Some(name(index).ok_or(())),
        Err(_) => Some(Err(())),
    };
    let Ok(interface) = interface.transpose() else {
        return refuse("a packet socket of a network interface that is gone");
    };
    // Some families of kernels know no groups.
    let fanout = socket::number_option(file, LEVEL, FANOUT).unwrap_or(0);
    if BY_PROGRAM.contains(&(fanout >> 16 & 0xff)) {
        return refuse("a packet socket whose group is divided by a program (PACKET_FANOUT_DATA)");
    }
    let membership = |(index, count, membership_type, address): &(u32, u32, u16, Vec<u8>)| {
        let (count, membership_type) = (*count, *membership_type);
        let interface = name(*index)?;
        (address.len() <= 8 && count <= 1024).then(|| PacketMembership {
            interface,
            count,
            membership_type,
            address: address.clone(),
        })
    };
    let Some(memberships) = info.memberships.iter().map(membership).collect::<Option<Vec<_>>>() else {
        return refuse("a packet socket with a membership that can't be kept");
    };
    let mut options = any_socket::options(opened, OPTIONS);
    let copies = |option: &SocketOption| (option.level, option.name.cast_signed()) == (LEVEL, COPY_THRESHOLD);
    if info.copy_threshold != 0 && !options.iter().any(copies) {
        let value = info.copy_threshold.to_ne_bytes().to_vec();
        options.push(SocketOption { level: LEVEL, name: COPY_THRESHOLD.cast_unsigned(), value });
    }
    Ok(PacketSocket {
        description: opened.description.clone(),
        inode: opened.status.st_ino,
        socket_type,
        protocol,
        interface,
        options,
        filter: any_socket::filter(opened)?,
        memberships,
        fanout: info.has_group.then_some(fanout),
    })
}

/// The name of the network interface with this number, if there is one.
fn name(index: u32) -> Option<Text> {
    let any =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(any, index).ok().map(|name| Text::from(name.as_bytes()))
}
