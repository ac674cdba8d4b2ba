//! Who is to be notified of a message in an empty queue, by `mq_notify(3)`.
//!
//! The kernel tells the process and the signal, but not the value that comes with it. So the process notifies itself: it
//! puts a message into the empty queue, takes the signal and the message, and asks for the notification anew. All of it
//! are calls of one batch, which no death of this program can cut in two; only if it dies within these microseconds,
//! another thread that does not block the signal may be told of a message that is not there. A signal of the same number
//! from outside within them is given back, and the dump refused; the notification then has the value of that signal.
//!
//! A process that closes any descriptor of the queue is not notified any more. So ours are closed before it asks anew,
//! by a descriptor of its own.
//!
//! Refused: notifications by a new thread (`SIGEV_THREAD`: the kernel tells it to a socket of the C library); while the
//! same signal waits already; and while processes outside of the tree have the queue open, who may wait for a message.

use super::notify::{BY_MESSAGE, VALUE, event};
use super::observe::Queue;
use crate::error::{Error, Result, code};
use crate::frozen::FrozenProcess;
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::signal::observe::SET_LENGTH;
use crate::proc::{read, status, timers};
use crate::stub::batch::{Argument, Batch, CallIndex, Data, Outcome};
use std::os::unix::fs::MetadataExt;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::posix_message_queue::QueueNotification;
use vckpt_image_format::record::signal::SIGINFO_LENGTH;

/// What the kernel writes behind a name that was removed.
const DELETED: &[u8] = b" (deleted)";
/// Signals that nobody can take, or that take away one another.
const UNTAKEN: [i32; 6] =
    [libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
/// The highest priority of a message: it is received before all others.
const FIRST: u32 = 32767;

/// What the kernel tells of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Registered {
    notify: i32,
    signal: u32,
    /// The process, as this program sees it.
    pid: i32,
}

impl Registered {
    /// Takes it from the state of a queue: `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260`.
    pub(super) fn parse(state: &[u8]) -> Option<Self> {
        let state = std::str::from_utf8(state).ok()?;
        let field = |name: &str| {
            let field = state.split_ascii_whitespace().find_map(|field| field.strip_prefix(name))?;
            field.parse::<i32>().ok()
        };
        let pid = field("NOTIFY_PID:").filter(|&pid| pid != 0)?;
        Some(Self { notify: field("NOTIFY:")?, signal: u32::try_from(field("SIGNO:")?).ok()?, pid })
    }
}

/// A process of the tree that is to be notified.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// The process, by its index.
    pub process: usize,
    /// One of its descriptors that lead to the queue.
    number: i32,
    /// The signal; none for `SIGEV_NONE`.
    signal: Option<u32>,
}

impl Watch {
    /// Finds out whom the kernel means. Nothing if it is a process outside of the tree, and the dump does not notify it.
    ///
    /// # Errors
    /// What can't be kept.
    pub(super) fn of(
        registered: Registered,
        walk: &Walk<'_>,
        descriptions: &[&Opened],
        messages: usize,
    ) -> std::result::Result<Option<Self>, &'static str> {
        let Registered { notify, signal, pid } = registered;
        let process = walk.frozen.processes.iter().find(|process| process.pid == pid);
        let Some(process) = process else {
            if messages > 0 {
                return Err(
                    "a message queue with messages of which a process outside of the tree is notified",
                );
            }
            return Ok(None);
        };
        let signal = match notify {
            // The kernel takes 0 for a signal, and sends none.
            libc::SIGEV_SIGNAL if signal == 0 => None,
            // What ends, stops or lets go on cannot be waited for.
            libc::SIGEV_SIGNAL if UNTAKEN.contains(&signal.cast_signed()) => {
                return Err(
                    "a message queue with a notification (mq_notify) by a signal that can't be taken",
                );
            }
            libc::SIGEV_SIGNAL => Some(signal),
            libc::SIGEV_NONE => None,
            _ => return Err("a message queue of which a new thread is notified (mq_notify, SIGEV_THREAD)"),
        };
        let table = process.shares.descriptors as usize;
        let mut holders = descriptions.iter().flat_map(|opened| &opened.holders);
        let own = holders.find(|holder| holder.process == table);
        let number = own.map(|holder| holder.number);
        let number = number.ok_or("a message queue of which a process is notified that has it not open")?;
        let watch = Self { process: process.index as usize, number, signal };
        if signal.is_some_and(|signal| is_in_use(process, signal)) {
            return Err("a message queue of whose notification (mq_notify) the signal is in use otherwise");
        }
        if messages == 0 && signal.is_some() && is_open_outside(walk, descriptions) {
            return Err("a message queue with a notification (mq_notify) that others have open too");
        }
        Ok(Some(watch))
    }

    /// Whether a value comes with the notification.
    pub(super) fn has_value(self) -> bool {
        self.signal.is_some()
    }

    /// A notification that has no value.
    pub(super) fn without_value(self, process: TaskId) -> QueueNotification {
        QueueNotification { process, number: self.number.cast_unsigned(), signal: None }
    }
}

/// Whether this signal waits for a process or its first thread, or may come at any moment since a timer sends it.
fn is_in_use(process: &FrozenProcess, signal: u32) -> bool {
    let is_same =
        |entry: &[u8; 128]| entry.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)) == Some(signal);
    let Some(thread) = process.threads.first() else { return false };
    let at_the_freeze = |shared| thread.agent.pending(shared).unwrap_or_default().iter().any(is_same);
    // One of another thread does no harm, but whose it is is not looked at.
    let status = read::file(process.view, "status").and_then(|text| status::waiting_signals(&text));
    let waits_now = status.is_ok_and(|(own, shared)| (own | shared) >> (signal - 1) & 1 != 0);
    let timers = read::file(process.view, "timers").and_then(|text| timers::parse(&text));
    let is_timers = timers.is_ok_and(|timers| timers.iter().any(|timer| timer.signal == signal));
    let of_interval_timers = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF];
    at_the_freeze(false)
        || at_the_freeze(true)
        || waits_now
        || is_timers
        || of_interval_timers.contains(&signal.cast_signed())
}

/// Whether a process that is not in the tree has the queue open, as far as that can be seen.
fn is_open_outside(walk: &Walk<'_>, descriptions: &[&Opened]) -> bool {
    let Some(wanted) = descriptions.first().map(|first| first.inode()) else { return false };
    let name = descriptions.first().map(|first| first.link.0.as_slice()).unwrap_or_default();
    let name = name.strip_suffix(DELETED).unwrap_or(name);
    let ours = std::process::id().cast_signed();
    let is_inside = |pid: i32| pid == ours || walk.frozen.processes.iter().any(|process| process.pid == pid);
    let others = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = others.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    others.filter(|&pid| !is_inside(pid)).any(|pid| {
        let numbers = read::numbers(pid, "fd").unwrap_or_default();
        numbers.into_iter().any(|number| {
            // A file of a file system that does not answer is not to be looked at without need.
            let link = read::link(pid, &format!("fd/{number}"));
            if !link.is_ok_and(|link| {
                link.as_encoded_bytes().strip_suffix(DELETED).unwrap_or(link.as_encoded_bytes()) == name
            }) {
                return false;
            }
            let found = std::fs::metadata(read::path(pid, &format!("fd/{number}")));
            found.is_ok_and(|found| (found.dev(), found.ino()) == wanted)
        })
    })
}

/// What a process answers that notifies itself and asks for the notification anew.
#[derive(Debug)]
pub(super) struct Probe {
    watch: Watch,
    /// What comes with the signal, and the call that takes it.
    taken: Option<(Data, CallIndex)>,
    /// The `struct sigevent`.
    event: Data,
}

impl Probe {
    /// Adds the calls that come behind those that put the messages back; that has notified the process. `from` is our
    /// descriptor of the queue in the process.
    pub(super) fn take(watch: Watch, queue: &Queue, batch: &mut Batch, from: Argument) -> Self {
        let Some(signal) = watch.signal else {
            let event = batch.data(&event(libc::SIGEV_NONE, 0, 0));
            return Self { watch, taken: None, event };
        };
        let size = usize::try_from(queue.record.message_size).unwrap_or(usize::MAX);
        let is_empty = queue.count == 0;
        if is_empty {
            let message = batch.data(&[0]);
            let arguments = [from, message.into(), 0.into(), FIRST.into(), 0.into()];
            batch.call("sending a message to itself", libc::SYS_mq_timedsend, arguments);
        }
        let (set, at_once) = (batch.words(&[1 << (signal - 1)]), batch.words(&[0, 0]));
        let information = batch.room(SIGINFO_LENGTH);
        let arguments = [set.into(), information.into(), at_once.into(), SET_LENGTH.into()];
        let taken = batch.call("taking a notification", libc::SYS_rt_sigtimedwait, arguments);
        if is_empty {
            let room = batch.room(size);
            let arguments = [from, room.into(), size.into(), 0.into(), 0.into()];
            batch.call("receiving a message from itself", libc::SYS_mq_timedreceive, arguments);
        }
        let event = batch.exchange(&event(libc::SIGEV_SIGNAL, signal, 0));
        // The value goes by way of a file from the one structure to the other.
        let name = batch.data(b"vckpt\0");
        let arguments = [name.into(), libc::MFD_CLOEXEC.into()];
        let file = batch.call("making a file in memory", libc::SYS_memfd_create, arguments);
        let value = Data { offset: information.offset + VALUE, length: 8 };
        let arguments = [file.into(), value.into(), 8.into(), 0.into()];
        batch.call("writing a value", libc::SYS_pwrite64, arguments);
        let place = Data { offset: event.offset, length: 8 };
        batch.call("reading a value", libc::SYS_pread64, [file.into(), place.into(), 8.into(), 0.into()]);
        batch.call("closing a descriptor", libc::SYS_close, [file.into()]);
        Self { watch, taken: Some((information, taken)), event }
    }

    /// Adds the call that asks anew, when all descriptors of ours are closed.
    pub(super) fn ask_anew(&self, batch: &mut Batch) {
        let arguments = [self.watch.number.into(), self.event.into()];
        batch.call("asking for a notification", libc::SYS_mq_notify, arguments);
    }

    /// What the process was to be notified by.
    ///
    /// # Errors
    /// If another signal has come in between, which is given back.
    pub(super) fn notification(
        &self,
        process: &mut FrozenProcess,
        outcome: &Outcome,
    ) -> Result<QueueNotification> {
        let mut found = self.watch.without_value(process.id);
        let (Some((information, taken)), Some(signal)) = (self.taken, self.watch.signal) else {
            return Ok(found);
        };
        let failed = |why: &str| {
            let what = "the notification of a message queue can't be found out";
            Error::new(code::DESCRIPTOR_KIND, what).because(why).about(process.subject())
        };
        outcome.get(taken).map_err(|errno| failed(errno.desc()))?;
        if outcome.half_word(information, 2).cast_signed() != BY_MESSAGE {
            let mut batch = Batch::new();
            let bytes = batch.data(outcome.bytes(information));
            let arguments = [process.id.0.into(), signal.into(), bytes.into()];
            batch.call("queueing a signal", libc::SYS_rt_sigqueueinfo, arguments);
            let error = failed("the same signal came from somebody else at that moment");
            process.run(&batch)?;
            return Err(error);
        }
        found.signal = Some((signal, outcome.word(information, VALUE / 8)));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_to_be_notified() {
        assert_eq!(Registered::parse(b"QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"), None);
        assert_eq!(
            Registered::parse(b"QSIZE:129        NOTIFY:2     SIGNO:7     NOTIFY_PID:8260  \n"),
            Some(Registered { notify: 2, signal: 7, pid: 8260 })
        );
        assert_eq!(Registered::parse(b""), None);
    }
}
