//! Semaphore (kind 11): a System V semaphore set; see semget(2).

use super::message_queue::Access;
use super::{Kind, Record};
use serde::{Deserialize, Serialize};

/// A set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphore {
    /// Who may use it.
    pub access: Access,
    /// The values.
    pub values: Vec<u16>,
}

impl Record for Semaphore {
    const KIND: Kind = Kind::Semaphore;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("semaphore set {} of {}", self.access.id, self.values.len())
    }

    fn check(&self) -> Result<(), String> {
        self.access.check()?;
        if self.values.is_empty() || self.values.len() > 32000 {
            return Err(format!("a set of {} semaphores", self.values.len()));
        }
        match self.values.iter().find(|&&value| value > 32767) {
            Some(value) => Err(format!("value {value} is out of range")),
            None => Ok(()),
        }
    }
}
