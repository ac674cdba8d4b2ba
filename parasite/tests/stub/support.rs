//! A minimal supervisor: batches and the channel they go through.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, recv, recvmsg, sendmsg, socketpair,
};
use vckpt_parasite::protocol::{
    BOOT_MAGIC, Boot, Call, MAXIMUM_CALLS, Reply, Request, STOP_ON_ERROR, VERSION, argument,
};

/// An argument: its bits and its kind.
pub(crate) type Argument = (u64, u8);

pub(crate) fn value(bits: u64) -> Argument {
    (bits, argument::VALUE)
}

pub(crate) fn result(index: u64) -> Argument {
    (index, argument::RESULT)
}

pub(crate) fn descriptor(index: u64) -> Argument {
    (index, argument::DESCRIPTOR)
}

pub(crate) fn data(offset: u64) -> Argument {
    (offset, argument::DATA)
}

/// A request in the making.
#[derive(Default)]
pub(crate) struct Batch {
    calls: Vec<Call>,
    data: Vec<u8>,
    reply_data_length: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn call(mut self, number: impl TryInto<u64>, given: &[Argument]) -> Self {
        let mut arguments = [0; 6];
        let mut kinds = [0; 6];
        for (index, (bits, kind)) in given.iter().enumerate() {
            arguments[index] = *bits;
            kinds[index] = *kind;
        }
        let number = number.try_into().ok().unwrap();
        self.calls.push(Call { number, arguments, kinds, flags: 0, reserved: 0 });
        self
    }

    /// The last call stops the batch if it fails.
    pub(crate) fn or_stop(mut self) -> Self {
        self.calls.last_mut().unwrap().flags = STOP_ON_ERROR;
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    pub(crate) fn data_back(mut self) -> Self {
        self.reply_data_length = self.data.len();
        self
    }

    pub(crate) fn request(&self) -> Request {
        Request {
            version: VERSION,
            call_count: u32::try_from(self.calls.len()).unwrap(),
            data_length: u32::try_from(self.data.len()).unwrap(),
            reply_data_length: u32::try_from(self.reply_data_length).unwrap(),
        }
    }

    /// The message, with any header.
    pub(crate) fn message(&self, request: Request) -> Vec<u8> {
        let mut message = request.to_bytes().to_vec();
        for call in &self.calls {
            message.extend_from_slice(&call.to_bytes());
        }
        message.extend_from_slice(&self.data);
        message
    }
}

pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) results: Vec<i64>,
    pub(crate) data: Vec<u8>,
}

/// The supervisor's end of a socket pair.
pub(crate) struct Channel(pub(crate) OwnedFd);

impl Channel {
    /// A channel and the stub's end of it.
    pub(crate) fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Self(ours), theirs)
    }

    pub(crate) fn send(&self, message: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
        let parts = [IoSlice::new(message)];
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    }

    pub(crate) fn receive(&self) -> Answer {
        let mut bytes = vec![0; 16 + MAXIMUM_CALLS * 8 + 256 * 1024];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let length =
            recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, None, MsgFlags::empty()).unwrap().bytes;
        assert_ne!(length, 0, "the stub is gone");
        bytes.truncate(length);
        let reply = Reply::from_bytes(&bytes).unwrap();
        let (results, data) = bytes[16..].split_at(reply.call_count as usize * 8);
        assert_eq!(reply.version, VERSION);
        assert_eq!(reply.data_length as usize, data.len());
        let results = results.chunks(8).map(|word| i64::from_le_bytes(word.try_into().unwrap())).collect();
        Answer { reply, results, data: data.to_vec() }
    }

    pub(crate) fn ask_with(&self, batch: &Batch, descriptors: &[RawFd]) -> Answer {
        self.send(&batch.message(batch.request()), descriptors);
        self.receive()
    }

    pub(crate) fn ask(&self, batch: &Batch) -> Answer {
        self.ask_with(batch, &[])
    }

    /// Waits for the stub to close its end.
    pub(crate) fn expect_end_of_file(&self) {
        assert_eq!(recv(self.0.as_raw_fd(), &mut [0; 16], MsgFlags::empty()), Ok(0));
    }
}

pub(crate) fn boot(mode: u32, area: u64, socket: i32) -> Boot {
    Boot {
        magic: BOOT_MAGIC,
        version: VERSION,
        mode,
        socket,
        peer: -1,
        area,
        home: 0,
        epitaph: 0,
        epitaph_detail: 0,
    }
}
