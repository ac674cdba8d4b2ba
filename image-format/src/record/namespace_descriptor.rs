//! Namespace descriptor (kind 91): a file of `/proc/<pid>/ns`; see namespaces(7).

use super::description::Description;
use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A descriptor of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceDescriptor {
    /// What every description has.
    pub description: Description,
    /// The file in `/proc/<pid>/ns`, such as `net` or `pid_for_children`.
    pub file: Text,
    /// A task that is in it; none: the one in which the image was made.
    pub task: Option<TaskId>,
}

impl Record for NamespaceDescriptor {
    const KIND: Kind = Kind::NamespaceDescriptor;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        match self.task {
            Some(task) => format!("namespace {} of {task}", self.file),
            None => format!("namespace {} of the host", self.file),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        let task = self.task.iter().map(|&task| Identity::from(task));
        self.description.refers().into_iter().chain(task).collect()
    }

    fn check(&self) -> Result<(), String> {
        let is_name = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'_';
        if self.file.is_empty() || !self.file.0.iter().all(is_name) {
            return Err(format!("{} is no file of a namespace", self.file));
        }
        self.description.check()
    }
}
