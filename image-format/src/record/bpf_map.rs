//! BPF map (kind 97): made by `bpf(2)`.

use super::description::Description;
use super::{Kind, Record};
use crate::id::Identity;
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A map, with the open file descriptions that lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpfMap {
    /// Its descriptions.
    pub descriptions: Vec<Description>,
    /// Its type (`BPF_MAP_TYPE_…`).
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub maximum: u32,
    /// Its flags (`BPF_F_…`).
    pub flags: u32,
    /// Its name.
    pub name: Text,
    /// Whether programs of user space may not change it any more.
    pub frozen: bool,
    /// Keys, each followed by its value.
    #[serde(with = "crate::bytes")]
    pub entries: Vec<u8>,
}

impl Record for BpfMap {
    const KIND: Kind = Kind::BpfMap;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("BPF map {} of type {}", self.name, self.map_type)
    }

    fn defines(&self) -> Vec<Identity> {
        self.descriptions.iter().map(|description| description.id.into()).collect()
    }

    fn refers(&self) -> Vec<Identity> {
        self.descriptions.iter().flat_map(Description::refers).collect()
    }

    fn check(&self) -> Result<(), String> {
        let pair = u64::from(self.key_size) + u64::from(self.value_size);
        if self.key_size == 0 || !(self.entries.len() as u64).is_multiple_of(pair) {
            return Err("the entries are not keys with values".to_owned());
        }
        if self.name.0.len() > 15 {
            return Err("the name is too long".to_owned());
        }
        self.descriptions.iter().try_for_each(Description::check)
    }
}
