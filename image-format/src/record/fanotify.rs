//! Fanotify (kind 93): a group of fanotify(7), and its marks.

use super::description::Description;
use super::inotify::Watched;
use super::{Kind, Record};
use crate::id::Identity;
use serde::{Deserialize, Serialize};

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fanotify {
    /// What every description has.
    pub description: Description,
    /// The flags of `fanotify_init(2)`.
    pub flags: u32,
    /// The flags of the descriptors that come with events.
    pub event_flags: u32,
    /// Its marks.
    pub marks: Vec<Mark>,
}

/// A mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What it is on.
    pub scope: Scope,
    /// What is marked; of a mount or file system something in it.
    pub watched: Watched,
    /// Its flags (`FAN_MARK_…`).
    pub flags: u32,
    /// Its events.
    pub mask: u64,
    /// The events that are ignored.
    pub ignored: u64,
}

/// What a mark is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// A file or directory.
    Inode,
    /// A mount.
    Mount,
    /// A file system.
    FileSystem,
}

impl Record for Fanotify {
    const KIND: Kind = Kind::Fanotify;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("fanotify with {} marks", self.marks.len())
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let watched = self.marks.iter().filter_map(|mark| mark.watched.refers());
        self.description.refers().into_iter().chain(watched).collect()
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()?;
        self.marks.iter().try_for_each(|mark| mark.watched.check())
    }
}
