//! POSIX message queue (kind 95): see mq_overview(7).

use super::description::Description;
use super::signal::SIGNAL_COUNT;
use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A queue, with the open file descriptions that lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixMessageQueue {
    /// Its name, with a slash in front.
    pub name: Text,
    /// Whether the name was removed, or leads to another queue.
    pub unlinked: bool,
    /// Permission bits (`st_mode & 07777`).
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Most messages that it holds.
    pub maximum: u32,
    /// Bytes of the longest message.
    pub message_size: u32,
    /// The messages, in the order in which they are received.
    pub messages: Vec<PosixMessage>,
    /// Who is to be notified of the next message that comes while it is empty.
    pub notification: Option<QueueNotification>,
    /// Its descriptions.
    pub descriptions: Vec<QueueDescription>,
}

/// A notification that was asked for by `mq_notify(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueNotification {
    /// The process.
    pub process: TaskId,
    /// One of its descriptors that lead to the queue.
    pub number: u32,
    /// The signal that it gets, and the value that comes with it; none: it is only not notified any more
    /// (`SIGEV_NONE`).
    pub signal: Option<(u32, u64)>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixMessage {
    /// Its priority.
    pub priority: u32,
    /// Its bytes.
    #[serde(with = "crate::bytes")]
    pub data: Vec<u8>,
}

/// A description of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDescription {
    /// What every description has.
    pub description: Description,
    /// Where reading the state of the queue as text goes on.
    pub position: u64,
}

impl Record for PosixMessageQueue {
    const KIND: Kind = Kind::PosixMessageQueue;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        format!("message queue {} with {} messages", self.name, self.messages.len())
    }

    fn defines(&self) -> Vec<Identity> {
        self.descriptions.iter().map(|opened| opened.description.id.into()).collect()
    }

    fn refers(&self) -> Vec<Identity> {
        let process = self.notification.map(|notification| notification.process.into());
        self.descriptions.iter().flat_map(|opened| opened.description.refers()).chain(process).collect()
    }

    fn check(&self) -> Result<(), String> {
        let name = self.name.0.strip_prefix(b"/").unwrap_or_default();
        if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
            return Err(format!("{} is no name of a queue", self.name));
        }
        if self.messages.len() > self.maximum as usize {
            return Err("there are more messages than it holds".to_owned());
        }
        if self.messages.iter().any(|message| message.data.len() > self.message_size as usize) {
            return Err("a message is longer than it may be".to_owned());
        }
        if let Some(QueueNotification { signal: Some((signal, _)), .. }) = self.notification
            && !(1..=SIGNAL_COUNT).contains(&signal)
        {
            return Err(format!("signal {signal} of a notification is out of range"));
        }
        if self.mode & !0o7777 != 0 {
            return Err(format!("mode {:o} has more than permission bits", self.mode));
        }
        self.descriptions.iter().try_for_each(|opened| opened.description.check())
    }
}
