//! Requests and answers on the socket: one message each, checked before anything is done with it.
//!
//! Not the meaning of what is in them.
#![allow(unsafe_code, reason = "messages are received into and sent from raw memory of the area")]

use crate::protocol::{BUFFER_LENGTH, MAXIMUM_CALLS, MAXIMUM_DESCRIPTORS, Reply, Request, VERSION, epitaph};
use crate::serve::Ending;
use crate::serve::area::{Area, data_offset};
use crate::sys::error::{ECONNRESET, EINTR, EPIPE};
use crate::sys::{self, error_of, number};

/// Words of a control message with the most descriptors: 16 bytes of header, then 4 bytes each.
const CONTROL_WORDS: usize = (16 + MAXIMUM_DESCRIPTORS * 4).div_ceil(8);
/// Bytes of it. No more, so that the kernel can't hand over more descriptors than fit.
const CONTROL_LENGTH: usize = 16 + MAXIMUM_DESCRIPTORS * 4;

/// The kernel's `struct iovec`.
#[repr(C)]
struct Part {
    address: u64,
    length: usize,
}

/// The kernel's `struct user_msghdr`.
#[repr(C)]
struct Header {
    name: u64,
    name_length: u32,
    padding: u32,
    parts: u64,
    part_count: usize,
    control: u64,
    control_length: usize,
    flags: u32,
    flags_padding: u32,
}

impl Header {
    fn new(parts: &[Part]) -> Self {
        Self {
            name: 0,
            name_length: 0,
            padding: 0,
            parts: parts.as_ptr().expose_provenance() as u64,
            part_count: parts.len(),
            control: 0,
            control_length: 0,
            flags: 0,
            flags_padding: 0,
        }
    }
}

/// The descriptors that came with a request, still in the control message they came in.
pub(super) struct Descriptors {
    control: [u64; CONTROL_WORDS],
    count: usize,
    truncated: bool,
}

impl Descriptors {
    /// No descriptors yet.
    pub(super) fn none() -> Self {
        Self { control: [0; CONTROL_WORDS], count: 0, truncated: false }
    }

    /// The descriptor with this index.
    pub(super) fn get(&self, index: usize) -> Option<i32> {
        if index >= self.count {
            return None;
        }
        let word = *self.control.get(2 + index / 2)?;
        let half = if index.is_multiple_of(2) { word & 0xffff_ffff } else { word >> 32 };
        Some(u32::try_from(half).unwrap_or(u32::MAX).cast_signed())
    }

    /// Whether the kernel could not hand over all that were sent.
    pub(super) fn truncated(&self) -> bool {
        self.truncated
    }

    /// Closes them all: nothing was or will be done with them.
    pub(super) fn close(&self) {
        for index in 0..self.count {
            if let Some(descriptor) = self.get(index) {
                sys::close(descriptor);
            }
        }
    }

    /// Takes in what the kernel says of the control message.
    fn accept(&mut self, control_length: usize, truncated: bool) {
        const RIGHTS_OF_SOCKET_LEVEL: u64 = 1 | 1 << 32;
        let [length, kind, ..] = self.control;
        let length = usize::try_from(length).unwrap_or(0).min(control_length);
        self.truncated = truncated;
        self.count = if kind == RIGHTS_OF_SOCKET_LEVEL {
            (length.saturating_sub(16) / 4).min(MAXIMUM_DESCRIPTORS)
        } else {
            0
        };
    }
}

/// Waits for a request and checks its form. Descriptors of a message that is refused are closed.
pub(super) fn receive(area: Area, descriptors: &mut Descriptors) -> Result<Request, Ending> {
    const CLOSE_DESCRIPTORS_ON_EXEC: u64 = 0x4000_0000;
    // A message that is too long is cut off, but its own length is told.
    const WHOLE_LENGTH: u64 = 0x20;
    const CONTROL_TRUNCATED: u32 = 0x8;
    let parts = [Part { address: area.buffer_address(), length: BUFFER_LENGTH }];
    let length = loop {
        let mut header = Header::new(&parts);
        header.control = descriptors.control.as_mut_ptr().expose_provenance() as u64;
        header.control_length = CONTROL_LENGTH;
        let address = (&raw mut header).expose_provenance() as u64;
        let arguments = [
            sys::descriptor_argument(area.socket()),
            address,
            CLOSE_DESCRIPTORS_ON_EXEC | WHOLE_LENGTH,
            0,
            0,
            0,
        ];
        // SAFETY: the kernel writes to the buffer of the area, the control words and the header, each of which is
        // at least as long as it is told and used by nothing else during the call.
        let result = unsafe { sys::call(number::RECVMSG, arguments) };
        match error_of(result) {
            Some(EINTR) => {}
            Some(ECONNRESET) => return Err(Ending { epitaph: epitaph::END_OF_FILE, detail: 0 }),
            Some(error) => return Err(Ending { epitaph: epitaph::RECEIVE, detail: error }),
            None => {
                descriptors.accept(header.control_length, header.flags & CONTROL_TRUNCATED != 0);
                break result.unsigned_abs();
            }
        }
    };
    let ending = if length == 0 {
        Ending { epitaph: epitaph::END_OF_FILE, detail: 0 }
    } else {
        let request = area.request();
        if is_well_formed(&request, length) {
            return Ok(request);
        }
        Ending { epitaph: epitaph::BAD_REQUEST, detail: length }
    };
    descriptors.close();
    Err(ending)
}

/// Whether this header describes a message of this length.
fn is_well_formed(request: &Request, length: u64) -> bool {
    if length < size_of::<Request>() as u64 || request.version != VERSION {
        return false;
    }
    let call_count = request.call_count as usize;
    let Some(data_offset) = data_offset(call_count) else { return false };
    length <= BUFFER_LENGTH as u64
        && call_count <= MAXIMUM_CALLS
        && data_offset as u64 + u64::from(request.data_length) == length
        && request.reply_data_length <= request.data_length
}

/// Answers a request: header, results, and as much of the data as was asked for.
pub(super) fn answer(area: Area, request: &Request, descriptors: &Descriptors) -> Result<(), Ending> {
    const NO_SIGNAL: u64 = 0x4000;
    let call_count = request.call_count as usize;
    let reply = Reply {
        version: VERSION,
        call_count: request.call_count,
        data_length: request.reply_data_length,
        descriptor_count: u32::try_from(descriptors.count).unwrap_or(0),
    };
    let data_offset = data_offset(call_count).unwrap_or(0) as u64;
    let parts = [
        Part { address: (&raw const reply).expose_provenance() as u64, length: size_of::<Reply>() },
        Part { address: area.results_address(), length: call_count.saturating_mul(8) },
        Part {
            address: area.buffer_address().wrapping_add(data_offset),
            length: request.reply_data_length as usize,
        },
    ];
    let header = Header::new(&parts);
    let address = (&raw const header).expose_provenance() as u64;
    loop {
        let arguments = [sys::descriptor_argument(area.socket()), address, NO_SIGNAL, 0, 0, 0];
        // SAFETY: the kernel only reads: the header, its parts, and what they name, all of which lives on.
        let result = unsafe { sys::call(number::SENDMSG, arguments) };
        match error_of(result) {
            Some(EINTR) => {}
            Some(EPIPE | ECONNRESET) => return Err(Ending { epitaph: epitaph::END_OF_FILE, detail: 0 }),
            Some(error) => return Err(Ending { epitaph: epitaph::SEND, detail: error }),
            None => return Ok(()),
        }
    }
}
