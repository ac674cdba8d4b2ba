//! Schedule control: how the kernel shares out processors, disks and memory nodes to a thread.
//!
//! # In Linux
//!
//! Each thread has a policy with a niceness or a priority, clamps on the utilisation that the kernel assumes, a set of
//! processors, a priority for block devices, a timer slack (how late timers may be), and a memory policy. All processes
//! of a session share one part of the processor, its autogroup, which has a niceness too.
//!
//! # What is saved
//!
//! All of these, asked for in each thread: `sched_getattr`, `sched_getaffinity`, `ioprio_get`, `PR_GET_TIMERSLACK`,
//! `getpriority` (policies without a niceness keep one), `get_mempolicy`; and the niceness of autogroups. A thread that may run on every processor of its host may run on every one of the new host.
//! Otherwise it runs on those of its processors that exist there; if there are fewer, that is a line in the report of
//! the restore, as are clamps or memory policies that the new kernel does not have.
//!
//! # What is not
//!
//! The default timer slack that `PR_SET_TIMERSLACK` goes back to and core scheduling cookies can't be read. The autogroup
//! of a session that is that of `vckpt restore` is left as it is, which the report says. A slice that is that of this program is taken for the default one.
//!
//! # What it needs
//!
//! Linux 3.14 (`sched_getattr`). Real-time policies, a lower niceness than that of the restoring shell and the real-time
//! class of block devices need `CAP_SYS_NICE` or limits that allow them.

pub mod attributes;
pub mod autogroup;
pub mod observe;
pub mod restore;

/// `IOPRIO_WHO_PROCESS` of `ioprio_get(2)`.
const IOPRIO_WHO_PROCESS: u32 = 1;
