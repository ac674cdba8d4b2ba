//! The socket to a stub: sends a batch, receives what came of it.

use super::batch::{Batch, Outcome};
use crate::error::{Error, Result, code};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use vckpt_parasite::protocol::{self, Reply, Request};

/// How long a stub may take for one batch.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a wait lasts until it looks for the first time whether the task is still there, and how long at most between
/// two looks, in milliseconds. A task that stands still without need is to go on soon.
const FIRST_LOOK: u16 = 2;
const LOOK: u16 = 200;

/// The supervisor's end of the socket pair of a stub.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Takes the supervisor's end.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a batch. It must [fit](Batch::fits).
    ///
    /// # Errors
    /// [`code::STUB_SILENT`] if the stub is gone; [`code::INTERNAL`] if the batch is too large.
    pub fn send(&self, batch: &Batch) -> Result<()> {
        if !batch.fits() {
            return Err(Error::new(code::INTERNAL, "a batch is too large for one request"));
        }
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let request = Request {
            version: protocol::VERSION,
            call_count: length(batch.calls.len()),
            data_length: length(batch.data.len()),
            reply_data_length: if batch.wants_data { length(batch.data.len()) } else { 0 },
        };
        let mut message = Vec::with_capacity(16 + batch.calls.len() * 64 + batch.data.len());
        message.extend(request.to_bytes());
        for call in &batch.calls {
            message.extend(call.to_bytes());
        }
        message.extend(&batch.data);
        let rights = [ControlMessage::ScmRights(&batch.descriptors)];
        let control = if batch.descriptors.is_empty() { &[] } else { rights.as_slice() };
        loop {
            match sendmsg::<()>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&message)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(Error::system(code::STUB_SILENT, "sending a batch to the stub", errno));
                }
            }
        }
    }

    /// Receives what came of the batch that was sent. `alive` is asked now and then whether the task still is.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`] if the stub is gone, does not answer in time, or answers nonsense; what `alive` says.
    pub fn receive(&self, batch: &Batch, mut alive: impl FnMut() -> Result<()>) -> Result<Outcome> {
        let mut buffer =
            vec![0; 16 + batch.calls.len() * 8 + if batch.wants_data { batch.data.len() } else { 0 }];
        let received = loop {
            // The answer is often there already.
            let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
            match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
                Ok(received) => break received,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait("the stub did not answer", &mut alive)?,
                Err(errno) => return Err(Error::system(code::STUB_SILENT, "receiving from the stub", errno)),
            }
        };
        if received == 0 {
            alive()?;
            return Err(Error::new(code::STUB_SILENT, "the stub has gone away"));
        }
        decode(&buffer, received, batch).ok_or_else(|| {
            Error::new(code::STUB_SILENT, "the stub answered nonsense").because(format!("{received} bytes"))
        })
    }

    /// Waits until the stub has closed its end. `alive` is asked now and then whether the task still is.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`] if it does not; what `alive` says.
    pub fn expect_end(&self, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        self.wait("the stub did not close its socket", &mut alive)?;
        let mut byte = [0];
        match recv(self.socket.as_raw_fd(), &mut byte, MsgFlags::empty()) {
            Ok(0) | Err(Errno::ECONNRESET) => Ok(()),
            Ok(_) => {
                Err(Error::new(code::STUB_SILENT, "the stub answered where it should have closed its socket"))
            }
            Err(errno) => Err(Error::system(code::STUB_SILENT, "waiting for the stub", errno)),
        }
    }

    /// Waits for a message or the end.
    fn wait(&self, else_what: &str, alive: &mut impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut moment = FIRST_LOOK;
        while !self.readable(moment)? {
            alive()?;
            if Instant::now() > deadline {
                return Err(Error::new(code::STUB_SILENT, else_what));
            }
            moment = LOOK.min(moment * 2);
        }
        Ok(())
    }

    /// Waits a moment for a message or the end.
    fn readable(&self, moment: u16) -> Result<bool> {
        let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, PollTimeout::from(moment)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(Error::system(code::STUB_SILENT, "waiting for the stub", errno)),
        }
    }
}

fn decode(buffer: &[u8], received: usize, batch: &Batch) -> Option<Outcome> {
    let reply = Reply::from_bytes(buffer.get(..received)?)?;
    let results_end = 16 + batch.calls.len() * 8;
    let data_length = usize::try_from(reply.data_length).ok()?;
    if reply.version != protocol::VERSION
        || usize::try_from(reply.call_count).ok()? != batch.calls.len()
        || received != results_end + data_length
    {
        return None;
    }
    let words = buffer.get(16..results_end)?.chunks_exact(8);
    let results = words.map(|word| word.try_into().map(i64::from_le_bytes)).collect::<Result<_, _>>().ok()?;
    Some(Outcome { results, data: buffer.get(results_end..received)?.to_vec() })
}
