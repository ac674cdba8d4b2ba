//! Watching files: inotify and fanotify as no crate has them, and file handles, by which the kernel tells what they
//! watch.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// `INOTIFY_IOC_SETNEXTWD`: `_IOW('I', 0, __s32)`.
const SET_NEXT_WATCH: u64 = 0x4004_4900;
/// Most bytes of a file handle (`MAX_HANDLE_SZ`).
const HANDLE_LENGTH: usize = 128;

/// Sets the number that the next watch of an inotify instance gets.
///
/// # Errors
/// `ENOTTY` if the kernel was built without `CONFIG_CHECKPOINT_RESTORE`.
pub fn set_next_watch(instance: BorrowedFd<'_>, number: u32) -> Result<()> {
    // SAFETY: the call takes plain numbers.
    let result = unsafe { libc::ioctl(instance.as_raw_fd(), SET_NEXT_WATCH, u64::from(number)) };
    Errno::result(result).map(drop)
}

/// `struct file_handle` with room for the longest one.
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_LENGTH],
}

/// Opens (`O_PATH`) what a file handle leads to on the file system of `mount`.
///
/// # Errors
/// See open_by_handle_at(2): `EPERM` without `CAP_DAC_READ_SEARCH`, `ESTALE` if it is gone.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> Result<OwnedFd> {
    let mut handle = FileHandle { bytes: 0, kind, handle: [0; HANDLE_LENGTH] };
    handle.handle.get_mut(..bytes.len()).ok_or(Errno::EINVAL)?.copy_from_slice(bytes);
    handle.bytes = u32::try_from(bytes.len()).map_err(|_| Errno::EINVAL)?;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the pointer leads to a live structure with the layout of file_handle, which the kernel only reads.
    let result =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const handle, flags) };
    own(result)
}

/// A group of fanotify.
///
/// # Errors
/// See fanotify_init(2).
pub fn fanotify_init(flags: u32, event_flags: u32) -> Result<OwnedFd> {
    // SAFETY: the call takes plain numbers.
    own(unsafe { libc::syscall(libc::SYS_fanotify_init, flags, event_flags) })
}

/// Adds to a mark of a group.
///
/// # Errors
/// See fanotify_mark(2).
pub fn fanotify_mark(group: BorrowedFd<'_>, flags: u32, mask: u64, path: &CStr) -> Result<()> {
    // SAFETY: the path ends with NUL; the rest are plain numbers.
    let result = unsafe {
        libc::syscall(libc::SYS_fanotify_mark, group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr())
    };
    Errno::result(result).map(drop)
}

fn own(result: i64) -> Result<OwnedFd> {
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
