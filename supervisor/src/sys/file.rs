//! Open file descriptions: status flags, who gets their signals, locks, and how epoll sets know them.

use super::process::Compare;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;
const KCMP_EPOLL_TFD: i32 = Compare::SemaphoreUndo as i32 + 1;

/// `struct f_owner_ex`: who gets the signals of a description.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// `F_OWNER_TID` (0), `F_OWNER_PID` (1) or `F_OWNER_PGRP` (2).
    pub sort: i32,
    /// The ID; 0 for nobody.
    pub id: i32,
}

/// Access mode and status flags (`F_GETFL`).
///
/// # Errors
/// See fcntl(2).
pub fn status_flags(file: BorrowedFd<'_>) -> Result<u32> {
    number(file, libc::F_GETFL, 0)
}

/// Sets the status flags that can be set (`F_SETFL`).
///
/// # Errors
/// See fcntl(2).
pub fn set_status_flags(file: BorrowedFd<'_>, flags: u32) -> Result<()> {
    number(file, libc::F_SETFL, flags.cast_signed()).map(drop)
}

/// The signal that a description sends; 0 for `SIGIO` (`F_GETSIG`).
///
/// # Errors
/// See fcntl(2).
pub fn signal(file: BorrowedFd<'_>) -> Result<u32> {
    number(file, F_GETSIG, 0)
}

/// Begins to write a range of a file to its disk, without waiting for it.
///
/// # Errors
/// See sync_file_range(2).
pub fn begin_writing(file: BorrowedFd<'_>, start: i64, length: i64) -> Result<()> {
    // SAFETY: the call takes plain numbers.
    let result =
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
    Errno::result(result).map(drop)
}

fn number(file: BorrowedFd<'_>, operation: i32, argument: i32) -> Result<u32> {
    // SAFETY: these operations take a plain number.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), operation, argument) };
    Errno::result(result).map(i32::cast_unsigned)
}

/// Who gets the signals of a description (`F_GETOWN_EX`).
///
/// # Errors
/// See fcntl(2).
pub fn owner(file: BorrowedFd<'_>) -> Result<Owner> {
    let mut owner = Owner::default();
    // SAFETY: the pointer leads to a live structure with the layout of f_owner_ex.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), F_GETOWN_EX, &raw mut owner) };
    Errno::result(result).map(|_| owner)
}

/// Takes a lock that belongs to the description (`F_OFD_SETLK`), without waiting.
///
/// # Errors
/// See fcntl(2): `EAGAIN` if somebody else has it.
pub fn lock_description(file: BorrowedFd<'_>, exclusive: bool, start: i64, length: i64) -> Result<()> {
    let sort = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: i16::try_from(sort).unwrap_or_default(),
        l_whence: 0,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: the pointer leads to a live structure of the kind that the operation reads.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    Errno::result(result).map(drop)
}

/// `struct kcmp_epoll_slot`.
#[repr(C)]
struct EpollSlot {
    epoll: u32,
    target: u32,
    offset: u32,
}

/// Whether the description behind descriptor `number` of process `pid` is the one that the epoll set behind
/// descriptor `epoll` of process `epoll_pid` watches under the number `target`; the `offset`th of that number.
///
/// # Errors
/// See kcmp(2): `ENOENT` if the set has no such entry.
pub fn is_epoll_target(
    pid: i32,
    number: RawFd,
    epoll_pid: i32,
    epoll: RawFd,
    target: u32,
    offset: u32,
) -> Result<bool> {
    let slot = EpollSlot { epoll: epoll.cast_unsigned(), target, offset };
    // SAFETY: the pointer leads to a live structure with the layout of kcmp_epoll_slot, which the kernel only reads.
    let result = unsafe {
        libc::syscall(libc::SYS_kcmp, pid, epoll_pid, KCMP_EPOLL_TFD, i64::from(number), &raw const slot)
    };
    Errno::result(result).map(|order| order == 0)
}

/// A descriptor that reads the signals of a mask: bit `n - 1` for signal `n`.
///
/// # Errors
/// See signalfd(2).
pub fn signal_descriptor(mask: u64) -> Result<OwnedFd> {
    // SAFETY: the pointer leads to a live mask of the eight bytes that are passed as its size.
    let result = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8_u64, libc::SFD_CLOEXEC) };
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
