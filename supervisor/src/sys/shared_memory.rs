//! Shared memory as this program reaches it: windows upon files and System V segments, and the segments themselves.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// What the kernel tells of a System V segment (`struct shmid_ds`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Its key.
    pub key: u32,
    /// Its size in bytes.
    pub size: u64,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Creator and the creator's group.
    pub creator: (u32, u32),
    /// How often it is attached.
    pub attached: u64,
    /// When it was last changed, in seconds since 1970.
    pub changed: i64,
}

/// What the kernel tells of a segment.
///
/// # Errors
/// See shmctl(2): `EINVAL` or `EIDRM` if there is none of this ID.
pub fn status(id: i32) -> Result<Status> {
    let raw = raw_status(id)?;
    Ok(Status {
        key: raw.shm_perm.__key.cast_unsigned(),
        size: raw.shm_segsz as u64,
        owner: (raw.shm_perm.uid, raw.shm_perm.gid),
        creator: (raw.shm_perm.cuid, raw.shm_perm.cgid),
        attached: raw.shm_nattch,
        changed: raw.shm_ctime,
    })
}

fn raw_status(id: i32) -> Result<libc::shmid_ds> {
    let mut raw = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the pointer leads to a live place for the structure that the operation writes.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_STAT, raw.as_mut_ptr()) })?;
    // SAFETY: all of it was zeroed, and zeros are a valid value of each of its fields.
    Ok(unsafe { raw.assume_init() })
}

/// Makes a segment, which must not be there yet; its ID.
///
/// # Errors
/// See shmget(2).
pub fn create(key: u32, size: u64, mode: u32) -> Result<i32> {
    let size = usize::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777).cast_signed();
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::shmget(key.cast_signed(), size, flags) })
}

/// Sets owner and mode.
///
/// # Errors
/// See shmctl(2).
pub fn set_owner(id: i32, owner: (u32, u32), mode: u32) -> Result<()> {
    let mut raw = raw_status(id)?;
    raw.shm_perm.uid = owner.0;
    raw.shm_perm.gid = owner.1;
    raw.shm_perm.mode = u16::try_from(mode & 0o777).unwrap_or_default();
    // SAFETY: the pointer leads to a live structure of the kind that the operation reads.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut raw) }).map(drop)
}

/// Removes it, as soon as nobody has it attached.
///
/// # Errors
/// See shmctl(2).
pub fn remove(id: i32) -> Result<()> {
    // SAFETY: the operation reads nothing from the pointer.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// Locks it in memory.
///
/// # Errors
/// See shmctl(2).
pub fn lock(id: i32) -> Result<()> {
    // SAFETY: the operation reads nothing from the pointer.
    Errno::result(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) }).map(drop)
}

/// A file of secret memory of this size.
///
/// # Errors
/// See memfd_secret(2): `ENOSYS` where the kernel has none.
pub fn secret(size: u64) -> Result<OwnedFd> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    nix::unistd::ftruncate(&file, i64::try_from(size).map_err(|_| Errno::EOVERFLOW)?)?;
    Ok(file)
}

/// A mapping of shared memory in this program, only to read a file into it.
#[derive(Debug)]
pub struct Window {
    address: *mut libc::c_void,
    length: usize,
    is_segment: bool,
}

impl Window {
    /// A window upon a file, which may be one of hugetlbfs: that can't be written in another way.
    ///
    /// # Errors
    /// See mmap(2).
    pub fn map(file: BorrowedFd<'_>, size: u64) -> Result<Self> {
        let length = usize::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (nowhere, number) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(nowhere, length, protection, libc::MAP_SHARED, number, 0) };
        if address == libc::MAP_FAILED {
            Err(Errno::last())
        } else {
            Ok(Self { address, length, is_segment: false })
        }
    }

    /// A window upon a System V segment of this size.
    ///
    /// # Errors
    /// See shmat(2).
    pub fn attach(id: i32, size: u64) -> Result<Self> {
        let length = usize::try_from(size.next_multiple_of(4096)).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        if address == libc::MAP_FAILED {
            Err(Errno::last())
        } else {
            Ok(Self { address, length, is_segment: true })
        }
    }

    /// Makes all of it zeros.
    ///
    /// # Errors
    /// See madvise(2).
    pub fn clear(&self) -> Result<()> {
        // SAFETY: the range is that of the mapping, to which nothing refers.
        Errno::result(unsafe { libc::madvise(self.address, self.length, libc::MADV_REMOVE) }).map(drop)
    }

    /// Reads from a file into a part of it; how many bytes were read.
    ///
    /// # Errors
    /// See pread(2); `ERANGE` if the part is not inside.
    pub fn read(&self, file: BorrowedFd<'_>, from: u64, at: u64, length: u64) -> Result<usize> {
        let at = usize::try_from(at).map_err(|_| Errno::ERANGE)?;
        let length = usize::try_from(length).map_err(|_| Errno::ERANGE)?;
        if at.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Errno::ERANGE);
        }
        let place = self.address.cast::<u8>().wrapping_add(at).cast();
        let from = i64::try_from(from).map_err(|_| Errno::ERANGE)?;
        // SAFETY: the range lies within the mapping, which lives as long as this value, and to which nothing refers.
        let result = unsafe { libc::pread(file.as_raw_fd(), place, length, from) };
        Errno::result(result).map(isize::cast_unsigned)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.is_segment {
            // SAFETY: the address is that of an attachment of our own, which nothing refers to.
            unsafe { libc::shmdt(self.address) };
        } else {
            // SAFETY: the mapping was made by `map`, and nothing refers to it.
            unsafe { libc::munmap(self.address, self.length) };
        }
    }
}
