//! Message queue (kind 69): a System V message queue; see msgget(2).

use super::{Kind, Record};
use serde::{Deserialize, Serialize};

/// Who may use an object of System V IPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Its key; 0 (`IPC_PRIVATE`) for none.
    pub key: i32,
    /// Its ID.
    pub id: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
}

impl Access {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        if self.id > i32::MAX as u32 {
            return Err(format!("ID {} is out of range", self.id));
        }
        if self.mode & !0o777 != 0 {
            return Err(format!("mode {:o} has more than permission bits", self.mode));
        }
        Ok(())
    }
}

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// Who may use it.
    pub access: Access,
    /// Most bytes that it holds (`msg_qbytes`).
    pub capacity: u64,
    /// The messages, the oldest first.
    pub messages: Vec<TypedMessage>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypedMessage {
    /// Its type.
    pub message_type: i64,
    /// Its bytes.
    #[serde(with = "crate::bytes")]
    pub data: Vec<u8>,
}

impl Record for MessageQueue {
    const KIND: Kind = Kind::MessageQueue;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("message queue {} with {} messages", self.access.id, self.messages.len())
    }

    fn check(&self) -> Result<(), String> {
        self.access.check()?;
        match self.messages.iter().find(|message| message.message_type < 1) {
            Some(message) => Err(format!("type {} of a message is out of range", message.message_type)),
            None => Ok(()),
        }
    }
}
