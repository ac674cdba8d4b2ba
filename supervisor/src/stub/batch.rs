//! A batch of system calls for the stub, as plain data: what to call, with what, and what must not fail.
//!
//! Building one makes no system call. How it travels is the business of [`channel`](super::channel).

use crate::error::{Error, Result, Subject, code};
use nix::errno::Errno;
use vckpt_parasite::protocol::{self, Call, argument};

/// A batch of system calls with their data and descriptors.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub(crate) calls: Vec<Call>,
    pub(crate) labels: Vec<&'static str>,
    pub(crate) data: Vec<u8>,
    pub(crate) descriptors: Vec<i32>,
    pub(crate) wants_data: bool,
}

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    value: u64,
    kind: u8,
}

/// A call within a batch, to ask for its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallIndex(pub(crate) usize);

/// A piece of the data area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

impl Argument {
    /// The value itself.
    #[must_use]
    pub const fn value(value: u64) -> Self {
        Self { value, kind: argument::VALUE }
    }

    /// The result of an earlier call.
    #[must_use]
    pub const fn result(call: CallIndex) -> Self {
        Self { value: call.0 as u64, kind: argument::RESULT }
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::value(value)
    }
}

impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Self::value(value as u64)
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::value(u64::from(value))
    }
}

impl From<i32> for Argument {
    /// Sign-extended, as a C program passes an `int`.
    fn from(value: i32) -> Self {
        Self::value(i64::from(value).cast_unsigned())
    }
}

impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self::value(value.cast_unsigned())
    }
}

impl From<CallIndex> for Argument {
    fn from(call: CallIndex) -> Self {
        Self::result(call)
    }
}

impl From<Data> for Argument {
    fn from(data: Data) -> Self {
        Self { value: data.offset as u64, kind: argument::DATA }
    }
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Puts bytes into the data area, aligned to 16; the result is an argument that points to them.
    pub fn data(&mut self, bytes: &[u8]) -> Data {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let offset = self.data.len();
        self.data.extend_from_slice(bytes);
        Data { offset, length: bytes.len() }
    }

    /// Puts 64-bit words into the data area.
    pub fn words(&mut self, words: &[u64]) -> Data {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.data(&bytes)
    }

    /// Reserves zeroed room in the data area for a call to write to; it comes back with the [`Outcome`].
    pub fn room(&mut self, length: usize) -> Data {
        self.wants_data = true;
        self.data(&vec![0; length])
    }

    /// Puts bytes into the data area for a call to read and write; they come back with the [`Outcome`].
    pub fn exchange(&mut self, bytes: &[u8]) -> Data {
        self.wants_data = true;
        self.data(bytes)
    }

    /// Changes the first bytes of a piece of the data area.
    pub fn change(&mut self, place: Data, bytes: &[u8]) {
        for (old, new) in self.data.iter_mut().skip(place.offset).zip(bytes) {
            *old = *new;
        }
    }

    /// Sends a descriptor of the supervisor along; the argument is its number in the target. The caller keeps the
    /// descriptor open until the batch was run.
    pub fn descriptor(&mut self, descriptor: i32) -> Argument {
        self.descriptors.push(descriptor);
        Argument { value: (self.descriptors.len() - 1) as u64, kind: argument::DESCRIPTOR }
    }

    /// Adds a call whose failure does not end the batch.
    pub fn call<const N: usize>(
        &mut self,
        label: &'static str,
        number: i64,
        arguments: [Argument; N],
    ) -> CallIndex {
        self.add(label, number.cast_unsigned(), arguments, 0)
    }

    /// Adds a call that must not fail: the calls behind it are then not run, and [`Outcome::check`] is an error.
    pub fn must<const N: usize>(
        &mut self,
        label: &'static str,
        number: i64,
        arguments: [Argument; N],
    ) -> CallIndex {
        self.add(label, number.cast_unsigned(), arguments, protocol::STOP_ON_ERROR)
    }

    /// Adds one of the stub's own [operations](protocol::operation).
    pub fn operation<const N: usize>(
        &mut self,
        label: &'static str,
        number: u64,
        arguments: [Argument; N],
    ) -> CallIndex {
        self.add(label, number, arguments, protocol::STOP_ON_ERROR)
    }

    fn add<const N: usize>(
        &mut self,
        label: &'static str,
        number: u64,
        arguments: [Argument; N],
        flags: u8,
    ) -> CallIndex {
        const { assert!(N <= 6, "a system call has six arguments at most") };
        let mut call = Call { number, arguments: [0; 6], kinds: [0; 6], flags, reserved: 0 };
        for (index, argument) in arguments.into_iter().enumerate() {
            call.arguments[index] = argument.value;
            call.kinds[index] = argument.kind;
        }
        self.calls.push(call);
        self.labels.push(label);
        CallIndex(self.calls.len() - 1)
    }

    /// Whether this batch with `other` behind it still fits into one request.
    #[must_use]
    pub fn has_room_for(&self, other: &Batch) -> bool {
        let calls = self.calls.len() + other.calls.len();
        let data = self.data.len() + 16 + other.data.len();
        calls <= protocol::MAXIMUM_CALLS
            && self.descriptors.len() + other.descriptors.len() <= protocol::MAXIMUM_DESCRIPTORS
            && calls * size_of::<Call>() + data + size_of::<protocol::Request>() <= protocol::BUFFER_LENGTH
    }

    /// Whether it fits into one request at all.
    #[must_use]
    pub fn fits(&self) -> bool {
        Batch::new().has_room_for(self)
    }

    /// Puts another batch behind this one; its results can't be asked for any more.
    pub fn append(&mut self, other: &Batch) {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let (calls, data, descriptors) = (self.calls.len(), self.data.len(), self.descriptors.len());
        for call in &other.calls {
            let mut call = *call;
            for (value, kind) in call.arguments.iter_mut().zip(call.kinds) {
                *value += match kind {
                    argument::RESULT => calls as u64,
                    argument::DATA => data as u64,
                    argument::DESCRIPTOR => descriptors as u64,
                    _ => 0,
                };
            }
            self.calls.push(call);
        }
        self.labels.extend(&other.labels);
        self.data.extend_from_slice(&other.data);
        self.descriptors.extend(&other.descriptors);
        self.wants_data |= other.wants_data;
    }
}

/// What came of a batch.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub(crate) results: Vec<i64>,
    pub(crate) data: Vec<u8>,
}

impl Outcome {
    /// What a call returned.
    ///
    /// # Errors
    /// The error number that it gave; `ECANCELED` if it was not run.
    pub fn get(&self, call: CallIndex) -> std::result::Result<u64, Errno> {
        match self.results.get(call.0) {
            None | Some(&protocol::NOT_RUN) => Err(Errno::ECANCELED),
            #[expect(clippy::cast_possible_truncation, reason = "the range was just tested")]
            Some(&result) if (-4095..0).contains(&result) => Err(Errno::from_raw(-result as i32)),
            Some(&result) => Ok(result.cast_unsigned()),
        }
    }

    /// The bytes of a [room](Batch::room) after the calls.
    #[must_use]
    pub fn bytes(&self, data: Data) -> &[u8] {
        self.data.get(data.offset..data.offset + data.length).unwrap_or_default()
    }

    /// One 64-bit word of a [room](Batch::room), by its index; 0 outside of it.
    #[must_use]
    pub fn word(&self, data: Data, index: usize) -> u64 {
        let word = self.bytes(data).get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    }

    /// One 32-bit word of a [room](Batch::room), by its index; 0 outside of it.
    #[must_use]
    pub fn half_word(&self, data: Data, index: usize) -> u32 {
        let word = self.bytes(data).get(index * 4..index * 4 + 4).and_then(|bytes| bytes.try_into().ok());
        word.map_or(0, u32::from_le_bytes)
    }

    /// Fails if a call of [`Batch::must`] did.
    ///
    /// # Errors
    /// [`code::PRIVILEGE`] if the kernel did not permit it, else [`code::REMOTE_CALL`]; about the subject, naming the
    /// call by its label.
    pub fn check(&self, batch: &Batch, subject: &Subject) -> Result<()> {
        for (index, call) in batch.calls.iter().enumerate() {
            if call.flags & protocol::STOP_ON_ERROR == 0 {
                continue;
            }
            if let Err(errno) = self.get(CallIndex(index)) {
                let label = batch.labels.get(index).copied().unwrap_or("call");
                let code = if errno == Errno::EPERM { code::PRIVILEGE } else { code::REMOTE_CALL };
                return Err(Error::system(code, label, errno).about(subject.clone()));
            }
        }
        Ok(())
    }
}
