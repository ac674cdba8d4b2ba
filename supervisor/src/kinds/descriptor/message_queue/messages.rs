//! The messages of a queue: taken, and put back at once.

use super::notification::Probe;
use super::observe::Queue;
use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use crate::stub::batch::{Batch, CallIndex, Data};
use std::fs::File;
use std::os::fd::AsRawFd;
use vckpt_image_format::record::posix_message_queue::PosixMessage;

/// A message that is taken and put back.
struct Take {
    room: Data,
    received: CallIndex,
    priority: CallIndex,
    sent: CallIndex,
}

/// Finds out which messages a queue has.
///
/// # Errors
/// [`code::DESCRIPTOR_KIND`] if there are more than one request holds; if they could not be put back.
pub fn observe(frozen: &mut Frozen, queue: &mut Queue) -> Result<()> {
    let Some(process) = frozen.processes.get_mut(queue.process) else { return Ok(()) };
    // An empty queue is only touched for the value of a notification.
    let is_probed = queue.watch.is_some_and(|watch| watch.has_value());
    if queue.count == 0 && !is_probed {
        queue.record.notification = queue.watch.map(|watch| watch.without_value(process.id));
        return Ok(());
    }
    let name = queue.record.name.clone();
    let subject = process.subject().with_path(&name);
    let nothing = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(|error| Error::system(code::HOST_FEATURE, "opening /dev/null", error))?;
    let (batch, takes, probe) = calls(queue, &nothing);
    if !batch.fits() {
        let what = format!("a message queue with {} messages, more than can be looked at", queue.count);
        return Err(Error::new(code::DESCRIPTOR_KIND, what)
            .about(subject)
            .hint("let the program receive some of them first"));
    }
    let outcome = process.run(&batch)?;
    let notification = probe.map(|probe| probe.notification(process, &outcome)).transpose();
    queue.record.notification = notification.map_err(|error| error.about(subject.clone()))?;
    for take in takes {
        let Ok(length) = outcome.get(take.received) else { continue };
        if outcome.get(take.sent).is_err() {
            return Err(Error::new(code::INTERNAL, "a message could not be put back").about(subject));
        }
        let bytes = outcome.bytes(take.room);
        let data = bytes.get(..usize::try_from(length).unwrap_or_default()).unwrap_or_default().to_vec();
        let priority = outcome.get(take.priority).unwrap_or_default();
        let priority = u32::try_from(priority).unwrap_or_default();
        queue.record.messages.push(PosixMessage { priority, data });
    }
    Ok(())
}

/// The calls: all messages are received, then all are sent again. The kernel writes the priority of a message to where
/// it is the length of what is then written into nothing, and so becomes the result of a call, which sending takes.
/// What was not received can't be sent: its length is an error.
fn calls(queue: &Queue, nothing: &File) -> (Batch, Vec<Take>, Option<Probe>) {
    let mut batch = Batch::new();
    let from = batch.descriptor(queue.file.as_raw_fd());
    let nothing = batch.descriptor(nothing.as_raw_fd());
    let size = usize::try_from(queue.record.message_size).unwrap_or(usize::MAX);
    let mut received = Vec::new();
    // What does not fit is refused before: here it need not be made.
    for _ in 0..queue.count.min(vckpt_parasite::protocol::MAXIMUM_CALLS) {
        if !batch.fits() {
            break;
        }
        let room = batch.room(size);
        // struct iovec: an address that is not looked at, and the length.
        let vector = batch.room(16);
        let priority = crate::stub::batch::Argument::from(Data { offset: vector.offset + 8, length: 8 });
        let arguments = [from, room.into(), size.into(), priority, 0.into()];
        let call = batch.call("receiving a message", libc::SYS_mq_timedreceive, arguments);
        received.push((room, vector, call));
    }
    let takes = received
        .into_iter()
        .map(|(room, vector, received)| {
            let arguments = [nothing, vector.into(), 1.into()];
            let priority = batch.call("asking for a priority", libc::SYS_writev, arguments);
            let arguments = [from, room.into(), received.into(), priority.into(), 0.into()];
            let sent = batch.call("sending a message again", libc::SYS_mq_timedsend, arguments);
            Take { room, received, priority, sent }
        })
        .collect();
    let probe = queue.watch.map(|watch| Probe::take(watch, queue, &mut batch, from));
    for descriptor in [from, nothing] {
        batch.call("closing a descriptor", libc::SYS_close, [descriptor]);
    }
    if let Some(probe) = &probe {
        probe.ask_anew(&mut batch);
    }
    (batch, takes, probe)
}
