//! Signal descriptor (kind 78): made by `signalfd(2)`.

use super::description::Description;
use super::{Kind, Record};
use crate::id::Identity;
use serde::{Deserialize, Serialize};

/// A signalfd. It holds no signals itself: it reads those that are pending for whoever reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalDescriptor {
    /// What every description has.
    pub description: Description,
    /// The signals that it reads: bit `n - 1` for signal `n`.
    pub mask: u64,
}

impl Record for SignalDescriptor {
    const KIND: Kind = Kind::SignalDescriptor;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("signalfd with mask {:016x}", self.mask)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        self.description.refers()
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()
    }
}
