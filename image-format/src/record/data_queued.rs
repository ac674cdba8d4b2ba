//! Data queued (kind 13): what waits in a pipe or socket to be read.

use super::socket_credentials::SocketCredentials;
use super::{Kind, Record};
use crate::id::{DescriptionId, Identity, PipeId, SocketId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// Messages that wait, the oldest first. A queue may have several such records, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataQueued {
    /// Where they wait.
    pub queue: Queue,
    /// Whether the borders between the messages must be kept.
    pub borders: bool,
    /// The messages; of a stream any pieces.
    pub messages: Vec<Message>,
}

/// Where data waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Queue {
    /// In a pipe or FIFO.
    Pipe(PipeId),
    /// To be received by a socket.
    Socket(SocketId),
    /// Sent by a socket to a peer outside, and not acknowledged.
    Sent(SocketId),
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its bytes.
    #[serde(with = "crate::bytes")]
    pub data: Vec<u8>,
    /// The name of the unix socket that sent it, if that is not the peer or it has one.
    pub source: Option<Text>,
    /// Copies of descriptors that travel with it (`SCM_RIGHTS`).
    pub descriptors: Vec<DescriptionId>,
    /// Who sent it (`SCM_CREDENTIALS`), if it says so.
    pub sender: Option<SocketCredentials>,
    /// Whether it is the urgent byte of a stream (`MSG_OOB`).
    pub urgent: bool,
}

impl Message {
    /// Most descriptors of a message (`SCM_MAX_FD`).
    const MOST_DESCRIPTORS: usize = 253;

    /// A message that is nothing but its bytes.
    #[must_use]
    pub fn plain(data: Vec<u8>) -> Self {
        Self { data, source: None, descriptors: Vec::new(), sender: None, urgent: false }
    }
}

impl From<Queue> for Identity {
    fn from(queue: Queue) -> Self {
        match queue {
            Queue::Pipe(id) => id.into(),
            Queue::Socket(id) | Queue::Sent(id) => id.into(),
        }
    }
}

impl DataQueued {
    /// Bytes of data that one record takes at most; more is spread over several.
    pub const PORTION: usize = 1 << 20;

    /// Records for messages: each with at most [`PORTION`](Self::PORTION) bytes, or one message that is longer.
    #[must_use]
    pub fn portions(queue: Queue, borders: bool, messages: Vec<Message>) -> Vec<Self> {
        let mut records: Vec<Self> = Vec::new();
        let mut length = usize::MAX;
        for message in messages {
            let source = message.source.as_ref().map_or(0, |source| source.0.len());
            let size = message.data.len() + source + message.descriptors.len() * 5 + 48;
            length = length.saturating_add(size);
            match records.last_mut() {
                Some(record) if length <= Self::PORTION => record.messages.push(message),
                _ => {
                    length = size;
                    records.push(Self { queue, borders, messages: vec![message] });
                }
            }
        }
        records
    }
}

impl Record for DataQueued {
    const KIND: Kind = Kind::DataQueued;
    const VERSION: u16 = 3;

    fn name(&self) -> String {
        let bytes: usize = self.messages.iter().map(|message| message.data.len()).sum();
        format!("{bytes} bytes in {}", Identity::from(self.queue))
    }

    fn refers(&self) -> Vec<Identity> {
        let mut identities = vec![self.queue.into()];
        for message in &self.messages {
            identities.extend(message.descriptors.iter().map(|&description| Identity::from(description)));
            identities.extend(message.sender.iter().flat_map(SocketCredentials::refers));
        }
        identities
    }

    fn check(&self) -> Result<(), String> {
        for message in &self.messages {
            if message.source.as_ref().is_some_and(|source| source.0.len() > 108) {
                return Err("the name of a sender is too long".to_owned());
            }
            if message.descriptors.len() > Message::MOST_DESCRIPTORS {
                return Err(format!("{} descriptors travel with a message", message.descriptors.len()));
            }
            if !message.descriptors.is_empty() && !matches!(self.queue, Queue::Socket(_)) {
                return Err("descriptors travel where none can".to_owned());
            }
            if message.urgent && (message.data.len() != 1 || !message.descriptors.is_empty()) {
                return Err("what is urgent is not one byte".to_owned());
            }
            message.sender.as_ref().map_or(Ok(()), SocketCredentials::check)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_keep_order_and_stay_small() {
        let message = |byte: u8, length: usize| Message::plain(vec![byte; length]);
        let messages: Vec<Message> = (0..10).map(|byte| message(byte, 300_000)).collect();
        let records = DataQueued::portions(Queue::Pipe(PipeId(1)), true, messages.clone());
        assert!(records.iter().all(|record| record.messages.len() == 3 || record.messages.len() == 1));
        let joined: Vec<Message> = records.into_iter().flat_map(|record| record.messages).collect();
        assert_eq!(joined, messages);
        assert!(DataQueued::portions(Queue::Pipe(PipeId(1)), false, Vec::new()).is_empty());
    }

    #[test]
    fn what_can_t_travel_is_refused() {
        let record = |queue, message: Message| DataQueued { queue, borders: false, messages: vec![message] };
        let socket = Queue::Socket(SocketId(0));
        let urgent = |data| Message { urgent: true, ..Message::plain(data) };
        let with = |count| Message { descriptors: vec![DescriptionId(7); count], ..Message::plain(vec![1]) };
        assert_eq!(record(socket, urgent(vec![1])).check(), Ok(()));
        assert!(record(socket, urgent(vec![1, 2])).check().is_err());
        assert!(record(socket, urgent(Vec::new())).check().is_err());
        assert_eq!(record(socket, with(253)).check(), Ok(()));
        assert!(record(socket, with(254)).check().is_err());
        assert!(record(Queue::Pipe(PipeId(0)), with(1)).check().is_err());
        assert_eq!(record(socket, with(1)).refers(), [SocketId(0).into(), DescriptionId(7).into()]);
    }
}
