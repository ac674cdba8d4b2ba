//! Messages that tell who has sent them: they are sent by the puppet of that process.

use super::acting::{close, task};
use super::address;
use super::make::failed;
use crate::error::Result;
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch};
use crate::sys::message::part;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::socket_credentials::SocketCredentials;

/// Most descriptors that travel to a puppet at once.
const PORTION: usize = 200;

/// Where a message is sent to.
#[derive(Debug)]
pub(super) enum Target {
    /// To the peer of the sending socket.
    Peer,
    /// To an address.
    Address(Vec<u8>),
    /// To the socket whose file this is.
    File(OwnedFd),
}

impl Target {
    /// The address for this program; empty for the peer.
    pub(super) fn address(&self) -> Vec<u8> {
        match self {
            Self::Peer => Vec::new(),
            Self::Address(address) => address.clone(),
            Self::File(file) => by_number(file.as_raw_fd().cast_unsigned()),
        }
    }
}

/// The address that leads to the file that a process has open under a number.
fn by_number(number: u32) -> Vec<u8> {
    address(format!("/proc/self/fd/{number}").as_bytes())
}

/// A message that tells who has sent it.
#[derive(Debug)]
pub(super) struct Signed<'message> {
    pub(super) from: BorrowedFd<'message>,
    pub(super) to: &'message Target,
    pub(super) data: &'message [u8],
    /// Copies of these travel with it.
    pub(super) descriptors: Vec<BorrowedFd<'message>>,
    pub(super) sender: &'message SocketCredentials,
    /// Whether it is an urgent byte.
    pub(super) urgent: bool,
}

/// Sends a message from the process that has sent it at first. Gives the kernel's reason if it
/// does not permit that.
///
/// # Errors
/// If the puppet can't be reached.
pub(super) fn send(
    restoring: &mut Restoring<'_>,
    message: &Signed<'_>,
) -> Result<std::result::Result<(), Errno>> {
    let SocketCredentials { process, user, group, .. } = *message.sender;
    let task = task(restoring, Some(message.sender));
    let mut files = vec![message.from.as_raw_fd()];
    files.extend(message.descriptors.iter().map(AsRawFd::as_raw_fd));
    if let Target::File(file) = message.to {
        files.push(file.as_raw_fd());
    }
    let mut numbers = Vec::new();
    for portion in files.chunks(PORTION) {
        numbers.extend(give(restoring, task, portion)?);
    }
    let length = 4096 + message.data.len();
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let mut batch = Batch::new();
    let arguments = [0_u64.into(), length.into(), protection.into(), flags.into(), (-1).into(), 0_u64.into()];
    let room = batch.must("mapping room for a message", libc::SYS_mmap, arguments);
    let address = restoring.run(task, &batch)?.get(room);
    let address = address.map_err(|errno| failed("mapping room for a message", errno))?;
    let (from, rest) = numbers.split_first().unwrap_or((&u32::MAX, &[]));
    let (travel, file) = rest.split_at(message.descriptors.len());
    let name = file.first().map_or_else(|| message.to.address(), |&number| by_number(number));
    let mut control = part(libc::SCM_CREDENTIALS, &[process, user, group]);
    if !travel.is_empty() {
        control.extend(part(libc::SCM_RIGHTS, travel));
    }
    restoring.puppet(task)?.write(address, &laid_out(address, &name, &control, message.data))?;
    let mut batch = Batch::new();
    let urgent = if message.urgent { libc::MSG_OOB } else { 0 };
    let flags = urgent | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let sent =
        batch.call("sending a message", libc::SYS_sendmsg, [(*from).into(), address.into(), flags.into()]);
    batch.must("unmapping the room of a message", libc::SYS_munmap, [address.into(), length.into()]);
    let numbers: Vec<Argument> = numbers.into_iter().map(Argument::from).collect();
    close(&mut batch, &numbers);
    let outcome = restoring.run(task, &batch)?;
    Ok(match outcome.get(sent) {
        Ok(count) if count != message.data.len() as u64 => Err(Errno::ENOBUFS),
        result => result.map(drop),
    })
}

/// Gives a puppet copies of descriptors, and their numbers there.
fn give(restoring: &mut Restoring<'_>, task: TaskId, files: &[i32]) -> Result<Vec<u32>> {
    let mut batch = Batch::new();
    let arrived: Vec<Argument> = files.iter().map(|&file| batch.descriptor(file)).collect();
    let mut copies = Vec::new();
    for from in arrived {
        let arguments = [from, libc::F_DUPFD_CLOEXEC.into(), 0_u64.into()];
        copies.push(batch.must("copying a descriptor", libc::SYS_fcntl, arguments));
        close(&mut batch, &[from]);
    }
    let outcome = restoring.run(task, &batch)?;
    let number = |call| {
        let number = outcome.get(call).map_err(|errno| failed("copying a descriptor", errno))?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    };
    copies.into_iter().map(number).collect()
}

/// A `struct msghdr`, its one part, its control message, its name and its data, as they lie one behind the other at an
/// address.
fn laid_out(address: u64, name: &[u8], control: &[u8], data: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 56;
    const PART: u64 = 16;
    let control_at = address + HEADER + PART;
    let name_at = control_at + control.len() as u64;
    let data_at = name_at + name.len() as u64;
    // The name and its length, the parts and how many they are, the control message and its length, no flags.
    let name_place = if name.is_empty() { 0 } else { name_at };
    let header = [
        name_place,
        name.len() as u64,
        address + HEADER,
        1,
        control_at,
        control.len() as u64,
        0,
        data_at,
        data.len() as u64,
    ];
    [&header.map(u64::to_ne_bytes).concat(), control, name, data].concat()
}

#[cfg(test)]
mod tests {
    use super::laid_out;

    #[test]
    fn a_message_names_its_parts() {
        let bytes = laid_out(0x1000, b"/x", &[1; 16], b"xyz");
        let word = |index: usize| u64::from_ne_bytes(bytes[index * 8..index * 8 + 8].try_into().unwrap());
        assert_eq!((word(2), word(3)), (0x1000 + 56, 1));
        assert_eq!((word(4), word(5)), (0x1000 + 72, 16));
        assert_eq!((word(0), word(1)), (0x1000 + 88, 2));
        assert_eq!((word(7), word(8)), (0x1000 + 90, 3));
        assert_eq!(&bytes[88..], b"/xxyz");
    }
}
