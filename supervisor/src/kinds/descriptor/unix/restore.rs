//! The steps that make unix sockets again.

use super::fill::FillUnixSockets;
use super::make::MakeUnixSockets;
use crate::error::{Error, Problems, Result, Subject, code};
use crate::kinds::descriptor::all;
use crate::plan::{Plan, Stage};
use crate::sys::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::HashMap;
use std::os::fd::AsFd;
use vckpt_image_format::record::Record;
use vckpt_image_format::record::data_queued::{DataQueued, Message, Queue};
use vckpt_image_format::record::unix_socket::{UnixSocket, UnixState};
use vckpt_image_format::{Image, SocketId};

/// Adds one step for all.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let sockets = all::<UnixSocket>(image)?;
    if !sockets.is_empty() {
        plan.action(Stage::Descriptors, MakeUnixSockets { sockets });
    }
    Ok(())
}

/// Adds the step that sends them what waits in them, for when all descriptions are made.
///
/// # Errors
/// As [`all`].
pub fn plan_queues(image: &Image, plan: &mut Plan) -> Result<()> {
    let sockets = all::<UnixSocket>(image)?;
    if sockets.is_empty() {
        return Ok(());
    }
    let mut messages: HashMap<SocketId, Vec<Message>> = HashMap::new();
    for record in all::<DataQueued>(image)? {
        if let Queue::Socket(id) = record.queue {
            messages.entry(id).or_default().extend(record.messages);
        }
    }
    plan.action(Stage::Descriptors, FillUnixSockets { sockets, messages });
    Ok(())
}

/// Looks whether somebody is there with whom datagram sockets are to be connected again.
///
/// # Errors
/// [`code::PEER_MISSING`]: all of them at once.
pub fn check(image: &Image) -> Result<()> {
    let mut problems = Problems::new();
    for record in all::<UnixSocket>(image)? {
        let UnixState::ConnectedOutside { address, may_be_closed: false } = &record.state else { continue };
        let probe =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let connected = probe
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
            .and_then(|probe| socket::connect(probe.as_fd(), &super::address(&address.0)));
        if let Err(errno) = connected {
            let what =
                format!("nobody receives datagrams at {address}, which a socket of the image sends to");
            let error = Error::system(code::PEER_MISSING, what, errno);
            problems.push(error.about(Subject::path(record.name())));
        }
    }
    problems.finish()
}
