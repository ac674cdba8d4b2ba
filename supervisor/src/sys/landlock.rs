//! Landlock: the rules that a program gives itself. See landlock(7).

use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;
/// `LANDLOCK_ACCESS_FS_EXECUTE`.
const EXECUTE: u64 = 1;
/// `LANDLOCK_MAX_NUM_LAYERS`.
const MOST: u32 = 16;

/// Whether this kernel lacks it, or it was turned off at boot.
#[must_use]
pub fn is_absent() -> bool {
    let (none, length) = (std::ptr::null::<u64>(), 0_usize);
    // SAFETY: with this flag there are no attributes.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, length, VERSION) };
    matches!(Errno::result(result), Err(Errno::ENOSYS | Errno::EOPNOTSUPP))
}

/// How many layers of rules this program has on itself, by how many more are possible: a thread adds them, and ends. None
/// if a filter upon this program forbids to ask.
///
/// # Errors
/// See landlock_restrict_self(2).
pub fn own_layers() -> Result<Option<u32>> {
    let thread = std::thread::Builder::new().spawn(|| {
        // SAFETY: plain numbers; of the threads of this program it is only about this one.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        let rules = match rules() {
            Err(Errno::EPERM) => return Ok(None),
            rules => rules?,
        };
        let mut free = 0;
        loop {
            // SAFETY: a descriptor and a plain number; of the threads of this program it is only about this one.
            let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
            match Errno::result(result) {
                Ok(_) if free < MOST => free += 1,
                Ok(_) | Err(Errno::E2BIG) => return Ok(Some(MOST - free)),
                Err(errno) => return Err(errno),
            }
        }
    });
    thread.map_err(|_| Errno::EAGAIN)?.join().map_err(|_| Errno::ECANCELED)?
}

/// A set of rules that forbids to run programs.
fn rules() -> Result<OwnedFd> {
    let attributes = [EXECUTE];
    let length = size_of_val(&attributes);
    // SAFETY: the pointer leads to as many bytes as the length says.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes.as_ptr(), length, 0) };
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_own_layers_leaves_none() {
        if !is_absent() {
            let before = own_layers().unwrap();
            assert_eq!(own_layers(), Ok(before));
        }
    }
}
