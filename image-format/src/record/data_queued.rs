//! Data queued (kind 13): what waits in a pipe or socket to be read.

use super::{Kind, Record};
use crate::id::{Identity, PipeId, SocketId};
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
            let size = message.data.len() + message.source.as_ref().map_or(0, |source| source.0.len()) + 16;
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
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        let bytes: usize = self.messages.iter().map(|message| message.data.len()).sum();
        format!("{bytes} bytes in {}", Identity::from(self.queue))
    }

    fn refers(&self) -> Vec<Identity> {
        vec![self.queue.into()]
    }

    fn check(&self) -> Result<(), String> {
        match self.messages.iter().find_map(|message| message.source.as_ref()) {
            Some(source) if source.0.len() > 108 => Err("the name of a sender is too long".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_keep_order_and_stay_small() {
        let message = |byte: u8, length: usize| Message { data: vec![byte; length], source: None };
        let messages: Vec<Message> = (0..10).map(|byte| message(byte, 300_000)).collect();
        let records = DataQueued::portions(Queue::Pipe(PipeId(1)), true, messages.clone());
        assert!(records.iter().all(|record| record.messages.len() == 3 || record.messages.len() == 1));
        let joined: Vec<Message> = records.into_iter().flat_map(|record| record.messages).collect();
        assert_eq!(joined, messages);
        assert!(DataQueued::portions(Queue::Pipe(PipeId(1)), false, Vec::new()).is_empty());
    }
}
