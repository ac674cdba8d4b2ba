//! Descriptor table (kind 74): which number leads to which open file description.

use super::{Kind, Record};
use crate::id::{DescriptionId, DescriptorTableId, Identity};
use serde::{Deserialize, Serialize};

/// Entries of one table, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// The table.
    pub id: DescriptorTableId,
    /// Its entries.
    pub descriptors: Vec<Descriptor>,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// Whether `execve(2)` closes it.
    pub close_on_exec: bool,
    /// What it leads to.
    pub description: DescriptionId,
}

/// Highest number that a descriptor can have on any kernel (`NR_OPEN` can't be raised above it).
const HIGHEST: u32 = 0x7fff_ffb0;

impl Record for DescriptorTable {
    const KIND: Kind = Kind::DescriptorTable;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("descriptor table {} with {} descriptors", self.id, self.descriptors.len())
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        self.descriptors.iter().map(|descriptor| descriptor.description.into()).collect()
    }

    fn check(&self) -> Result<(), String> {
        for pair in self.descriptors.windows(2) {
            if pair[0].number >= pair[1].number {
                return Err(format!("descriptor {} is out of order", pair[1].number));
            }
        }
        match self.descriptors.last() {
            Some(last) if last.number > HIGHEST => Err(format!("descriptor {} is out of range", last.number)),
            _ => Ok(()),
        }
    }
}
