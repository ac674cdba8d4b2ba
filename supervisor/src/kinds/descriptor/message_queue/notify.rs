//! Asking for a notification anew, in a restored process; and what the kernel knows of it.

use crate::error::{Error, Result, Subject, code};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use nix::errno::Errno;
use vckpt_image_format::Text;
use vckpt_image_format::record::posix_message_queue::QueueNotification;
use vckpt_image_format::record::signal::SIGINFO_LENGTH;

/// `SI_MESGQ`.
pub(super) const BY_MESSAGE: i32 = -3;
/// Place of the value in a `siginfo_t`.
pub(super) const VALUE: usize = 24;
/// Size of a `struct sigevent`.
const EVENT_LENGTH: usize = 64;

/// A `struct sigevent`.
pub(super) fn event(notify: i32, signal: u32, value: u64) -> Vec<u8> {
    let mut event = value.to_le_bytes().to_vec();
    event.extend(signal.to_le_bytes());
    event.extend(notify.to_le_bytes());
    event.resize(EVENT_LENGTH, 0);
    event
}

/// Lets a process ask for its notification; or notifies it, if a message has come meanwhile.
#[derive(Debug)]
pub(super) struct Notify {
    pub(super) notification: QueueNotification,
    /// The name of the queue, for reports.
    pub(super) name: Text,
    /// Whether it was empty.
    pub(super) was_empty: bool,
}

impl Action for Notify {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let QueueNotification { process, number, signal } = self.notification;
        let mut batch = Batch::new();
        let attributes = batch.room(64);
        let arguments = [number.into(), 0.into(), attributes.into()];
        batch.must("looking at a message queue", libc::SYS_mq_getsetattr, arguments);
        let messages = restoring.run(process, &batch)?.word(attributes, 3);
        let mut batch = Batch::new();
        if let (true, 1.., Some((signal, value))) = (self.was_empty, messages, signal) {
            let bytes = batch.data(&information(signal, process.0, value));
            let arguments = [process.0.into(), signal.into(), bytes.into()];
            batch.must("notifying of a message", libc::SYS_rt_sigqueueinfo, arguments);
            return restoring.run(process, &batch).map(drop);
        }
        let event = match signal {
            Some((signal, value)) => event(libc::SIGEV_SIGNAL, signal, value),
            None => event(libc::SIGEV_NONE, 0, 0),
        };
        let event = batch.data(&event);
        let asked =
            batch.call("asking for a notification", libc::SYS_mq_notify, [number.into(), event.into()]);
        match restoring.run(process, &batch)?.get(asked) {
            Ok(_) => Ok(()),
            Err(Errno::EBUSY) => {
                let line = format!(
                    "process {process} is not notified of messages in {} any more: another one is now",
                    self.name
                );
                restoring.degraded.push(line);
                Ok(())
            }
            Err(errno) => Err(Error::system(code::DESCRIPTOR_RESTORE, "asking for a notification", errno)
                .about(Subject { task: Some(process.0), ..Subject::default() })),
        }
    }
}

/// The `siginfo_t` of a notification.
fn information(signal: u32, process: u32, value: u64) -> Vec<u8> {
    let mut information = vec![0; SIGINFO_LENGTH];
    let words = [(0, signal), (8, BY_MESSAGE.cast_unsigned()), (16, process)];
    for (place, word) in words {
        information.splice(place..place + 4, word.to_le_bytes());
    }
    information.splice(VALUE..VALUE + 8, value.to_le_bytes());
    information
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_those_of_the_kernel() {
        let event = event(libc::SIGEV_SIGNAL, 35, 7);
        assert_eq!(event.len(), size_of::<libc::sigevent>());
        assert_eq!(event[8..12], 35_u32.to_le_bytes());
        let information = information(35, 9, 7);
        assert_eq!((information.len(), information[24], information[16]), (128, 7, 9));
    }
}
