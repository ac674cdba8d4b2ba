//! Event descriptor (kind 76): a counter made by `eventfd(2)`.

use super::description::Description;
use super::{Kind, Record};
use crate::id::Identity;
use serde::{Deserialize, Serialize};

/// An eventfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDescriptor {
    /// What every description has.
    pub description: Description,
    /// The counter.
    pub count: u64,
    /// Whether a read takes one (`EFD_SEMAPHORE`).
    pub semaphore: bool,
}

impl Record for EventDescriptor {
    const KIND: Kind = Kind::EventDescriptor;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("eventfd with count {}", self.count)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        self.description.refers()
    }

    fn check(&self) -> Result<(), String> {
        if self.count == u64::MAX {
            return Err("the count is out of range".to_owned());
        }
        self.description.check()
    }
}
