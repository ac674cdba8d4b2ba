//! Epoll (kind 77): a set of descriptors that are watched together.

use super::description::Description;
use super::{Kind, Record};
use crate::id::{DescriptionId, Identity};
use serde::{Deserialize, Serialize};

/// An epoll set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoll {
    /// What every description has.
    pub description: Description,
    /// What it watches, in the order of the numbers.
    pub targets: Vec<EpollTarget>,
    /// Whether it had nothing to tell: every edge was told.
    pub quiet: bool,
}

/// Something that an epoll set watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// The number under which it was added; it may lead elsewhere by now.
    pub number: u32,
    /// What is watched.
    pub description: DescriptionId,
    /// The events (`EPOLLIN` …). A one-shot entry that has fired has none but its modes.
    pub events: u32,
    /// What the program gets with an event.
    pub data: u64,
}

impl Record for Epoll {
    const KIND: Kind = Kind::Epoll;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        format!("epoll set of {} descriptors", self.targets.len())
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let targets = self.targets.iter().map(|target| Identity::from(target.description));
        self.description.refers().into_iter().chain(targets).collect()
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()?;
        match self.targets.iter().find(|target| target.number > i32::MAX as u32) {
            Some(target) => Err(format!("descriptor {} is out of range", target.number)),
            None => Ok(()),
        }
    }
}
