//! System V IPC of a tree that lives in an IPC namespace of its own; see sysvipc(7) and ipc_namespaces(7).
//!
//! - **Saved**: all message queues and semaphore sets of the namespace, with keys, IDs, owners, permissions, messages
//!   and values; the limits of the namespace.
//! - **Not seen**: those of the namespace in which this program is too: the kernel does not tell who uses them. They
//!   stay where they are.
//! - **Refused**: shared memory in such a namespace; a message that one answer of the stub does not hold.
//! - **Not saved**: changes of semaphores that the end of a process would undo (`SEM_UNDO`), which the kernel does not
//!   tell: the report says so if a set of the namespace was ever operated on, or one of the host by a process of the tree. Who has last sent, received or changed a value, and when.
//! - **Kernel**: `MSG_COPY` (3.8) and `/proc/sys/kernel/*_next_id` (3.8), both `CONFIG_CHECKPOINT_RESTORE`.

pub mod observe;
pub mod restore;
mod tunables;
mod undo;

use super::KindEntry;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "ipc", observe: observe::observe, plan: restore::plan };

/// Commands of `msgctl(2)`, `semctl(2)` and `shmctl(2)`.
const SET: i32 = 1;
const GET_ALL: i32 = 13;
const SET_ALL: i32 = 17;
const MESSAGE_INFO: i32 = 12;
const MESSAGE_STATUS: i32 = 13;
const SEMAPHORE_INFO: i32 = 19;
const SEMAPHORE_STATUS: i32 = 20;
const SHARED_INFO: i32 = 14;

/// Bytes of `struct msqid64_ds` and of what the kernel tells of a set, with room to spare.
const STATUS_LENGTH: usize = 160;
