//! Looking at message queues.

use super::notification::{Registered, Watch};
use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Holder, Opened, Walk};
use crate::kinds::descriptor::restore::open_again;
use crate::kinds::nameless_file::old_path;
use crate::proc::read;
use crate::records::Records;
use crate::sys::message_queue;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::Text;
use vckpt_image_format::record::posix_message_queue::{PosixMessageQueue, QueueDescription};

/// A queue that is still to be asked for its messages.
#[derive(Debug)]
pub struct Queue {
    /// Its record, without messages.
    pub record: PosixMessageQueue,
    /// Another description of it, for receiving and sending without waiting.
    pub file: OwnedFd,
    /// The process that is to do that, by its index.
    pub process: usize,
    /// How many messages it has.
    pub count: usize,
    /// Who is to be notified of a message.
    pub watch: Option<Watch>,
}

/// Hands over each queue, to be asked for its messages.
///
/// # Errors
/// Queues that are [refused](super).
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut queues: BTreeMap<(u64, u64), Vec<&Opened>> = BTreeMap::new();
    for opened in opened {
        queues.entry(opened.inode()).or_default().push(opened);
    }
    let mut problems = Problems::new();
    let ours = std::process::id().cast_signed();
    for descriptions in queues.into_values() {
        let holder = descriptions.first().map_or(ours, |first| first.holders[0].pid);
        if read::link(holder, "ns/ipc")? != read::link(ours, "ns/ipc")? {
            let what = "a POSIX message queue in an IPC namespace of its own";
            descriptions.iter().for_each(|opened| problems.push(opened.refuse(code::DESCRIPTOR_KIND, what)));
            continue;
        }
        if let Some(first) = descriptions.first() {
            records.queues.extend(problems.take(look(walk, first, &descriptions)));
        }
    }
    problems.finish()
}

fn look(walk: &Walk<'_>, first: &Opened, descriptions: &[&Opened]) -> Result<Queue> {
    let failed = |errno: nix::errno::Errno| first.failed("looking at a message queue", errno);
    let attributes = message_queue::attributes(first.file.as_fd()).map_err(failed)?;
    let file = open_again(first.file.as_fd(), (libc::O_RDWR | libc::O_NONBLOCK).cast_unsigned())
        .map_err(|errno| first.failed("opening a message queue to copy its messages", errno))?;
    let mut state = [0; 256];
    let count = rustix::io::pread(&file, &mut state, 0)
        .map_err(|errno| first.failed("reading the state of a message queue", errno))?;
    let watch = Registered::parse(state.get(..count).unwrap_or_default());
    let waiting = usize::try_from(attributes.messages).unwrap_or(usize::MAX);
    let watch = watch.map(|registered| Watch::of(registered, walk, descriptions, waiting)).transpose();
    let watch = watch.map_err(|what| {
        first.refuse(code::DESCRIPTOR_KIND, what).hint("take the notification back before the dump")
    })?;
    let name = old_path(&first.link);
    let record = PosixMessageQueue {
        unlinked: !leads_to(&name, first),
        name,
        mode: first.status.st_mode & 0o7777,
        user: first.status.st_uid,
        group: first.status.st_gid,
        maximum: u32::try_from(attributes.maximum).unwrap_or(u32::MAX),
        message_size: u32::try_from(attributes.message_size).unwrap_or(u32::MAX),
        messages: Vec::new(),
        notification: None,
        descriptions: descriptions
            .iter()
            .map(|opened| QueueDescription {
                description: opened.description.clone(),
                position: opened.info.position,
            })
            .collect(),
    };
    // One that only travels in a socket is nobody's: the root looks at it.
    let process = Some(first.holders[0].process).filter(|&process| process != Holder::NOBODY).unwrap_or(0);
    // Whoever sends in the name of another would notify that one.
    let process = watch.flatten().as_ref().map_or(process, |watch| watch.process);
    Ok(Queue { record, file, process, count: waiting, watch: watch.flatten() })
}

/// Whether a name leads to this queue.
fn leads_to(name: &Text, opened: &Opened) -> bool {
    let Ok(name) = CString::new(name.0.get(1..).unwrap_or_default()) else { return false };
    message_queue::open(&name, libc::O_RDWR | libc::O_NONBLOCK, None)
        .ok()
        .and_then(|queue| rustix::fs::fstat(queue).ok())
        .is_some_and(|found| (found.st_dev, found.st_ino) == opened.inode())
}
