//! Resource limits: how much of what the kernel lets a process have.
//!
//! # In Linux
//!
//! A process has sixteen limits, shared by its threads and inherited by its children. Each has a soft value, which
//! counts, and a hard one, up to which the process may raise it. Only `CAP_SYS_RESOURCE` lets a hard value be raised.
//!
//! # What is saved
//!
//! All sixteen, read by `prlimit64` in the process itself: asking from outside needs a privilege for another user's.
//! They are set after memory, descriptors and threads are there, since a limit may be below what is already in use,
//! and before the credentials, which may take away the right to set them. That of waiting signals is set once more when
//! these and the timers are there.
//!
//! # What is not
//!
//! What was used up: `RLIMIT_CPU` counts anew in the restored task, `RLIMIT_RTTIME` too. Limits of control groups.
//!
//! # What it needs
//!
//! Linux 2.6.36. If the restoring user has a lower hard limit than the process had, `CAP_SYS_RESOURCE`; without it the
//! restore is refused, naming the limits.

pub mod observe;
pub mod restore;

/// Size of `struct rlimit64`.
const LENGTH: usize = 16;
