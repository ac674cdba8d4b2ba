//! POSIX message queues that are open; see mq_overview(7).
//!
//! - **Saved**: name, permissions, attributes, all messages with their priorities, how it is open, and which process of
//!   the tree is to be notified of a message by a signal (`mq_notify(3)`), also if one has come meanwhile.
//! - **Restored**: a queue that is still there is as it is: like a file, it outlives its users, and may have gone on
//!   without them. One that is gone is made again, with the messages; one that had lost its name loses it again.
//! - **Refused**: a queue with more messages than one request to the stub holds; a [notification] whose value can't be
//!   found out.
//! - **Not seen**: queues that nobody in the tree has open.
//!
//! Messages can't be looked at without taking them: they are taken and put back by calls that a process of the tree
//! makes in one go, whatever becomes of this program meanwhile.

pub mod messages;
pub mod notification;
mod notify;
pub mod observe;
pub mod restore;

use super::opened::Opened;

/// `MQUEUE_MAGIC` of the kernel.
const MAGIC: i64 = 0x1980_0202;

/// Whether it is a message queue.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.file_type() == libc::S_IFREG
        && rustix::fs::fstatfs(&opened.file).is_ok_and(|found| found.f_type == MAGIC)
        && !opened.is_path_only()
}
