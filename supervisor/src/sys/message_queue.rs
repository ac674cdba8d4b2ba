//! POSIX message queues, by the kernel's calls: names without the slash.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

type Result<T> = std::result::Result<T, Errno>;

/// `struct mq_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// `O_NONBLOCK` or 0.
    pub flags: i64,
    /// Most messages that it holds.
    pub maximum: i64,
    /// Bytes of the longest message.
    pub message_size: i64,
    /// Messages that it holds now.
    pub messages: i64,
    /// Nothing.
    pub reserved: [i64; 4],
}

/// Opens a queue; with attributes it is made, and must not be there.
///
/// # Errors
/// See mq_open(3).
pub fn open(name: &CStr, flags: i32, make: Option<(u32, Attributes)>) -> Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC;
    let result = match &make {
        // SAFETY: the name ends with NUL; without O_CREAT the last two arguments are not read.
        None => unsafe {
            libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, ptr::null::<Attributes>())
        },
        // SAFETY: the name ends with NUL, and the attributes live and have the layout of mq_attr.
        Some((mode, attributes)) => unsafe {
            let flags = flags | libc::O_CREAT | libc::O_EXCL;
            libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, *mode, ptr::from_ref(attributes))
        },
    };
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The attributes of a queue.
///
/// # Errors
/// See mq_getattr(3): `EBADF` if it is none.
pub fn attributes(queue: BorrowedFd<'_>) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: nothing is set, and the place lives and has the layout of mq_attr.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mq_getsetattr,
            queue.as_raw_fd(),
            ptr::null::<Attributes>(),
            &raw mut attributes,
        )
    };
    Errno::result(result).map(|_| attributes)
}

/// Sends a message; the description must not wait.
///
/// # Errors
/// See mq_send(3).
pub fn send(queue: BorrowedFd<'_>, message: &[u8], priority: u32) -> Result<()> {
    // SAFETY: pointer and length are those of a live slice; there is no time-out.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue.as_raw_fd(),
            message.as_ptr(),
            message.len(),
            priority,
            ptr::null::<libc::timespec>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Removes the name of a queue.
///
/// # Errors
/// See mq_unlink(3).
pub fn unlink(name: &CStr) -> Result<()> {
    // SAFETY: the name ends with NUL.
    Errno::result(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}
