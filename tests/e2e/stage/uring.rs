//! An io_uring by the kernel's own calls, for fixtures.

use std::io::Error;
use std::sync::atomic::{AtomicU32, Ordering};

use super::kernel::{READ_WRITE, map_at};
use super::verify;

pub(crate) const SINGLE_ISSUER: u32 = 1 << 12;
pub(crate) const DEFER_TASKRUN: u32 = 1 << 13;
pub(crate) const COOP_TASKRUN: u32 = 1 << 8;
pub(crate) const TASKRUN_FLAG: u32 = 1 << 9;
pub(crate) const NO_SQARRAY: u32 = 1 << 16;
pub(crate) const SQPOLL: u32 = 1 << 1;
pub(crate) const SQE128: u32 = 1 << 10;
pub(crate) const CQE32: u32 = 1 << 11;

pub(crate) const NOP: u8 = 0;
pub(crate) const POLL_ADD: u8 = 6;
pub(crate) const TIMEOUT: u8 = 11;
pub(crate) const ACCEPT: u8 = 13;
pub(crate) const READ: u8 = 22;
pub(crate) const RECV: u8 = 27;
/// `IOSQE_FIXED_FILE`.
pub(crate) const FIXED_FILE: u8 = 1;

const GETEVENTS: u32 = 1;
const SQ_WAKEUP: u32 = 2;
const NEED_WAKEUP: u32 = 1;
pub(crate) const REGISTERED_RING: u32 = 16;

/// A request; what is not named here is zero.
#[derive(Clone, Copy, Default)]
pub(crate) struct Request {
    pub(crate) operation: u8,
    pub(crate) flags: u8,
    pub(crate) priority: u16,
    pub(crate) descriptor: i32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) operation_flags: u32,
    pub(crate) data: u64,
    pub(crate) buffer: u16,
}

/// A ring, with what a library keeps of it in its own memory.
#[derive(Clone)]
pub(crate) struct Ring {
    pub(crate) descriptor: i32,
    /// The number by which calls know it.
    pub(crate) number: i32,
    flags: u32,
    enter_flags: u32,
    entries: u32,
    completions: u32,
    array: Option<usize>,
    rings: *mut u8,
    requests: *mut u8,
    /// Behind the last request that was prepared.
    pub(crate) tail: u32,
    /// Behind the last completion that was seen.
    pub(crate) head: u32,
}

// SAFETY: the rings are used by one thread at a time.
unsafe impl Send for Ring {}

impl Ring {
    /// A new ring.
    pub(crate) fn new(entries: u32, flags: u32) -> Result<Self, Error> {
        // struct io_uring_params: entries, flags of the setup, where what lies.
        let mut parameters = [0_u32; 30];
        parameters[2] = flags;
        // For how many milliseconds a thread of the kernel looks for requests before it sleeps.
        parameters[4] = 1;
        // SAFETY: room for the parameters.
        let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, parameters.as_mut_ptr()) };
        let descriptor = i32::try_from(result).unwrap_or(-1);
        if descriptor < 0 {
            return Err(Error::last_os_error());
        }
        let (entries, completions) = (parameters[0], parameters[1]);
        let array = (flags & NO_SQARRAY == 0).then_some(parameters[10 + 6] as usize);
        let completion = if flags & CQE32 != 0 { 32 } else { 16 };
        let length = match array {
            Some(array) => array + entries as usize * 4,
            None => parameters[20 + 5] as usize + completions as usize * completion,
        };
        let request = if flags & SQE128 != 0 { 128 } else { 64 };
        let rings = map_at(length, READ_WRITE, libc::MAP_SHARED, descriptor, 0);
        let requests =
            map_at(entries as usize * request, READ_WRITE, libc::MAP_SHARED, descriptor, 0x1000_0000);
        let ring = Self {
            descriptor,
            number: descriptor,
            flags,
            enter_flags: 0,
            entries,
            completions,
            array,
            rings,
            requests,
            tail: 0,
            head: 0,
        };
        Ok(ring)
    }

    /// A ring in memory of this program (`IORING_SETUP_NO_MMAP`); its descriptor.
    pub(crate) fn in_own_memory(entries: u32) -> i32 {
        let own = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let memory = [0; 2].map(|_| map_at(4096, READ_WRITE, own, -1, 0).addr() as u64);
        let mut parameters = [0_u64; 15];
        parameters[1] = 1 << 14;
        // The last words of what tells where requests and completions are.
        (parameters[9], parameters[14]) = (memory[0], memory[1]);
        // SAFETY: room for the parameters; the pages are given to the kernel as long as the program lives.
        let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, parameters.as_mut_ptr()) };
        i32::try_from(result).unwrap_or(-1)
    }

    /// Uses the number of a registered ring from now on.
    pub(crate) fn use_registered(&mut self, number: u32) {
        self.number = number.cast_signed();
        self.enter_flags = REGISTERED_RING;
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the words of struct io_rings, which is mapped as long as the program lives.
        unsafe { &*self.rings.add(offset).cast::<AtomicU32>() }
    }

    /// Head and tail of the requests, head and tail of the completions.
    pub(crate) fn positions(&self) -> [u32; 4] {
        [0, 4, 8, 12].map(|offset| self.word(offset).load(Ordering::Acquire))
    }

    /// Puts a request into its place; the kernel does not see it yet.
    pub(crate) fn prepare(&mut self, request: Request) {
        let length = if self.flags & SQE128 != 0 { 128 } else { 64 };
        let mask = self.entries - 1;
        // With an array the places are taken backwards, so that the array matters.
        let slot = if self.array.is_some() { mask - (self.tail & mask) } else { self.tail & mask };
        let mut bytes = vec![0_u8; length];
        bytes[0] = request.operation;
        bytes[1] = request.flags;
        bytes[2..4].copy_from_slice(&request.priority.to_ne_bytes());
        bytes[4..8].copy_from_slice(&request.descriptor.to_ne_bytes());
        bytes[8..16].copy_from_slice(&request.offset.to_ne_bytes());
        bytes[16..24].copy_from_slice(&request.address.to_ne_bytes());
        bytes[24..28].copy_from_slice(&request.length.to_ne_bytes());
        bytes[28..32].copy_from_slice(&request.operation_flags.to_ne_bytes());
        bytes[32..40].copy_from_slice(&request.data.to_ne_bytes());
        bytes[40..42].copy_from_slice(&request.buffer.to_ne_bytes());
        // SAFETY: the place of an entry, which the kernel does not read before the tail has passed it.
        unsafe { self.requests.add(slot as usize * length).copy_from_nonoverlapping(bytes.as_ptr(), length) };
        if let Some(array) = self.array {
            self.word(array + (self.tail & mask) as usize * 4).store(slot, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was prepared.
    pub(crate) fn publish(&self) {
        self.word(4).store(self.tail, Ordering::Release);
    }

    /// `io_uring_enter(2)`.
    pub(crate) fn enter(&self, submit: u32, wait: u32) -> Result<u32, String> {
        let mut flags =
            self.enter_flags | if wait > 0 || self.flags & DEFER_TASKRUN != 0 { GETEVENTS } else { 0 };
        if self.flags & SQPOLL != 0 {
            // As a library does it: behind a full barrier.
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.word(36).load(Ordering::Relaxed) & NEED_WAKEUP != 0 {
                flags |= SQ_WAKEUP;
            }
        }
        // SAFETY: plain numbers; the rings are valid.
        let result = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, self.number, submit, wait, flags, 0_usize, 0_usize)
        };
        u32::try_from(result).map_err(|_| format!("io_uring_enter: {}", Error::last_os_error()))
    }

    /// Prepares and submits a request.
    pub(crate) fn submit(&mut self, request: Request) -> Result<(), String> {
        self.prepare(request);
        self.publish();
        let taken = self.enter(1, 0)?;
        verify!(taken == 1, "{taken} requests were taken instead of one");
        Ok(())
    }

    /// The next completion: data, result, flags; none if there is none.
    pub(crate) fn next(&mut self) -> Option<(u64, i32, u32)> {
        if self.word(12).load(Ordering::Acquire) == self.head {
            return None;
        }
        let length = if self.flags & CQE32 != 0 { 32 } else { 16 };
        let slot = (self.head & (self.completions - 1)) as usize;
        // SAFETY: the kernel has written this completion.
        let words = unsafe { self.rings.add(64 + slot * length).cast::<[u64; 2]>().read() };
        self.head = self.head.wrapping_add(1);
        self.word(8).store(self.head, Ordering::Release);
        let result = u32::try_from(words[1] & 0xffff_ffff).unwrap_or(0).cast_signed();
        Some((words[0], result, u32::try_from(words[1] >> 32).unwrap_or(0)))
    }

    /// The next completion, waited for.
    pub(crate) fn wait(&mut self) -> Result<(u64, i32, u32), String> {
        if let Some(completion) = self.next() {
            return Ok(completion);
        }
        self.enter(0, 1)?;
        self.next().ok_or_else(|| "no completion".to_owned())
    }

    /// `io_uring_register(2)`.
    pub(crate) fn register<T>(&self, operation: u32, argument: &mut T, count: u32) -> Result<i64, String> {
        // SAFETY: the callers' arguments are what the operation reads and writes.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.descriptor,
                operation,
                std::ptr::from_mut(argument),
                count,
            )
        };
        if result < 0 {
            Err(format!("io_uring_register({operation}): {}", Error::last_os_error()))
        } else {
            Ok(result)
        }
    }

    /// Requests that there is room for.
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Sets the last word of the request that was prepared last (`addr3`).
    pub(crate) fn mask(&mut self, value: u64) {
        let length = if self.flags & SQE128 != 0 { 128 } else { 64 };
        let place = self.tail.wrapping_sub(1) & (self.entries - 1);
        let slot = if self.array.is_some() { self.entries - 1 - place } else { place };
        // SAFETY: within an entry that the kernel does not see yet.
        unsafe { self.requests.add(slot as usize * length + 48).cast::<u64>().write(value) };
    }
}
