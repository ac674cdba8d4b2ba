//! io_uring: the calls, and the memory that a ring shares with the kernel.

use super::process;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// `IORING_ENTER_GETEVENTS`.
pub const GET_EVENTS: u32 = 1;
/// `IORING_ENTER_SQ_WAKEUP`.
pub const WAKE_UP: u32 = 2;
/// `IORING_ENTER_EXT_ARG`.
pub const EXTENDED: u32 = 8;

/// Words of `struct io_uring_params`.
pub const PARAMETERS: usize = 30;
/// Where the rings are in what is mapped (`IORING_OFF_SQ_RING`).
pub const RINGS: u64 = 0;
/// Where the entries are (`IORING_OFF_SQES`).
pub const ENTRIES: u64 = 0x1000_0000;

/// Makes a ring; the parameters are those of the kernel afterwards.
///
/// # Errors
/// See io_uring_setup(2).
pub fn setup(entries: u32, parameters: &mut [u32; PARAMETERS]) -> Result<OwnedFd> {
    // SAFETY: the place has the length of the kernel's structure.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, parameters.as_mut_ptr()) };
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Submits requests, without waiting for completions.
///
/// # Errors
/// See io_uring_enter(2).
pub fn enter(ring: BorrowedFd<'_>, submit: u32, flags: u32) -> Result<u32> {
    // SAFETY: plain numbers; there is no argument to be read.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), submit, 0, flags, 0_usize, 0_usize)
    };
    u32::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)
}

/// Asks for completions with a time-out that can't be read: whether the kernel tries to read it.
///
/// # Errors
/// `EFAULT` if it does.
pub fn enter_with_bad_time(ring: BorrowedFd<'_>) -> Result<()> {
    // struct io_uring_getevents_arg: signal mask, its size and the least time, time-out.
    let argument = [0_u64, 0, 1];
    // SAFETY: the argument lives and has the given length; the kernel checks the address in it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            0,
            0,
            GET_EVENTS | EXTENDED,
            argument.as_ptr(),
            size_of_val(&argument),
        )
    };
    Errno::result(result).map(drop)
}

/// Asks which operations there are (`IORING_REGISTER_PROBE`), only to see whether we may ask.
///
/// # Errors
/// `EEXIST` if only another thread may, `EACCES` if there are restrictions.
pub fn probe(ring: BorrowedFd<'_>) -> Result<()> {
    // struct io_uring_probe with room for one operation.
    let mut answer = [0_u64; 3];
    // SAFETY: the place has room for a head of 16 bytes and one operation.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_PROBE, answer.as_mut_ptr(), 1)
    };
    Errno::result(result).map(drop)
}

/// `IORING_REGISTER_PROBE`.
pub const REGISTER_PROBE: u32 = 8;
/// `IORING_REGISTER_PBUF_STATUS`.
pub const BUFFER_STATUS: u32 = 26;
/// Groups of provided buffers that there may be.
pub const GROUPS: u32 = 1 << 16;

/// What is asked about a group of provided buffers (`struct io_uring_buf_status`): group, head, reserved words.
#[must_use]
pub const fn status(group: u32) -> [u64; 5] {
    [group as u64, 0, 0, 0, 0]
}

/// Whether there are groups of provided buffers: without one it is `ENOENT`, with one that was provided in the old way
/// `EINVAL`.
#[must_use]
pub fn has_groups(ring: BorrowedFd<'_>) -> bool {
    (0..GROUPS).any(|group| {
        let mut status = status(group);
        // SAFETY: the place has the length of the kernel's structure.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.as_raw_fd(),
                BUFFER_STATUS,
                status.as_mut_ptr(),
                1,
            )
        };
        Errno::result(result) != Err(Errno::ENOENT)
    })
}

/// A part of the memory that a ring shares with the kernel, mapped into this program. It may be shorter than what was
/// asked for: nothing is touched but by system calls, which say so.
#[derive(Debug)]
pub struct Window {
    address: *mut libc::c_void,
    length: usize,
}

impl Window {
    /// Maps a part: [`RINGS`] or [`ENTRIES`].
    ///
    /// # Errors
    /// See mmap(2).
    pub fn map(ring: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let (nowhere, number) = (std::ptr::null_mut(), ring.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(nowhere, length, protection, libc::MAP_SHARED, number, offset) };
        if address == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self { address, length }) }
    }

    /// Reads bytes; how many were there.
    ///
    /// # Errors
    /// `EFAULT` if there are none; `ERANGE` outside of what was asked for.
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> Result<usize> {
        process::read_memory(own(), self.place(at, bytes.len())?, bytes)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// As [`Window::read`].
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        process::write_memory(own(), self.place(at, bytes.len())?, bytes)
    }

    fn place(&self, at: usize, length: usize) -> Result<u64> {
        if at.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Errno::ERANGE);
        }
        Ok((self.address.addr() + at) as u64)
    }
}

fn own() -> i32 {
    std::process::id().cast_signed()
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and nothing refers to it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}
