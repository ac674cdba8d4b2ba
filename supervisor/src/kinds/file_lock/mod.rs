//! File locks: see fcntl(2) and flock(2).
//!
//! - **Saved**: POSIX record locks of a process, locks of open file descriptions (OFD), and those of `flock(2)`, with
//!   their ranges; leases.
//! - **Refused**: a lease that is being broken: somebody waits for the file, and would have it in between.
//! - **Not saved**: who waits for a lock: a call that waits is made again after the restore.
//! - **Kernel**: the `lock:` lines of `/proc/<pid>/fdinfo/<n>` (4.1).
//!
//! Locks of descriptions are taken again by this program, which has a copy of each. POSIX locks and leases can only be taken
//! by the process itself; POSIX locks and are dropped when it closes any descriptor of the file: so they come last, after memory, whose
//! restoring opens and closes files.

pub mod observe;
pub mod restore;
