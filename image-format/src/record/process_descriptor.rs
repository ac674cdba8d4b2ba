//! Process descriptor (kind 90): made by `pidfd_open(2)` or `clone(2)`.

use super::description::Description;
use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// A pidfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessDescriptor {
    /// What every description has; `O_EXCL` says that it stands for a thread.
    pub description: Description,
    /// The task; none if it has ended and was waited for.
    pub task: Option<TaskId>,
}

impl Record for ProcessDescriptor {
    const KIND: Kind = Kind::ProcessDescriptor;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        match self.task {
            Some(task) => format!("pidfd of {task}"),
            None => "pidfd of a process that has ended".to_owned(),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        // A process that has ended has no thread any more, but a record: both are tasks.
        let task = self.task.iter().map(|&task| Identity::from(task));
        self.description.refers().into_iter().chain(task).collect()
    }

    fn check(&self) -> Result<(), String> {
        self.description.check()
    }
}
