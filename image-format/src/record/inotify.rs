//! Inotify (kind 92): an instance of inotify(7), and what it watches.

use super::description::Description;
use super::{Kind, Record};
use crate::id::{DescriptionId, Identity};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inotify {
    /// What every description has.
    pub description: Description,
    /// What it watches, in the order of the numbers.
    pub watches: Vec<Watch>,
    /// Whether events waited to be read, which are lost.
    pub lost: bool,
}

/// A watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Its number, as `inotify_add_watch(2)` gave it.
    pub number: u32,
    /// Its events and flags (`IN_…`).
    pub mask: u32,
    /// What is watched.
    pub watched: Watched,
}

/// Something that is watched, by the way on which it is found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watched {
    /// By its path; a symbolic link is meant itself.
    Path(Text),
    /// By a description that leads to it.
    Description(DescriptionId),
}

impl Watched {
    /// The identities that it refers to.
    #[must_use]
    pub fn refers(&self) -> Option<Identity> {
        match self {
            Watched::Path(_) => None,
            Watched::Description(id) => Some((*id).into()),
        }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Watched::Path(path) if path.0.first() != Some(&b'/') || path.0.contains(&0) => {
                Err(format!("{path} is no absolute path"))
            }
            Watched::Path(_) | Watched::Description(_) => Ok(()),
        }
    }
}

impl Record for Inotify {
    const KIND: Kind = Kind::Inotify;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("inotify with {} watches", self.watches.len())
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let watched = self.watches.iter().filter_map(|watch| watch.watched.refers());
        self.description.refers().into_iter().chain(watched).collect()
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()?;
        let mut last = 0;
        for watch in &self.watches {
            if watch.number <= last || watch.number >= i32::MAX as u32 {
                return Err(format!("watch {} is out of range or order", watch.number));
            }
            last = watch.number;
            watch.watched.check()?;
        }
        Ok(())
    }
}
