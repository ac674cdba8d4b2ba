//! Credentials: who a thread is for the kernel, and what it may do.
//!
//! # In Linux
//!
//! Each thread has four user IDs, four group IDs, supplementary groups, five sets of capabilities, bits that say how user
//! IDs and capabilities belong together (`securebits`), and a bit that forbids to gain rights by `execve`. The C library
//! keeps the threads of a process alike; the kernel does not.
//!
//! # What is saved
//!
//! All of these, for each thread, from `/proc` and by `PR_GET_SECUREBITS`; IDs as the user namespace of this program has
//! them. A puppet begins with the credentials of this program, or with all capabilities of a new user namespace;
//! [`change`] says which calls make them those of the image, and only these are made: an ordinary user may restore what
//! is the user's own.
//!
//! # What is not
//!
//! Nobody gains rights: what the puppet does not have is refused by name. Only where the bounding set, which limits a
//! later `execve`, lacks a capability, that is a line in the report. Labels of security modules and keyrings are those of
//! the restoring user.
//!
//! # What it needs
//!
//! Linux 4.3 (ambient capabilities). `CAP_SETUID` and the like for another user's processes.

pub mod change;
pub mod observe;
pub mod restore;

use crate::proc::status::Status;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::credentials::{CapabilitySets, Ids, ThreadCredentials};

/// The IDs in a line of `status`.
pub(crate) fn ids([real, effective, saved, file_system]: [u32; 4]) -> Ids {
    Ids { real, effective, saved, file_system }
}

/// The capabilities in a `status`.
pub(crate) fn capabilities(status: &Status) -> CapabilitySets {
    CapabilitySets {
        inheritable: status.inheritable,
        permitted: status.permitted,
        effective: status.effective,
        bounding: status.bounding,
        ambient: status.ambient,
    }
}

/// The credentials of a thread from its `status` and its secure bits.
pub(crate) fn credentials(thread: TaskId, status: Status, secure_bits: u32) -> ThreadCredentials {
    ThreadCredentials {
        thread,
        user: ids(status.user),
        group: ids(status.group),
        capabilities: capabilities(&status),
        groups: status.groups,
        secure_bits,
        no_new_privileges: status.no_new_privileges,
    }
}
