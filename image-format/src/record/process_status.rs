//! Process status (kind 14): whether a process runs, is stopped, or has ended.

use super::credentials::{CapabilitySets, Ids};
use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// The state of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// The process.
    pub process: TaskId,
    /// Its state.
    pub state: State,
    /// Whether it was stopped and its parent can still wait for that.
    pub stop_untold: bool,
    /// Whether it was continued after a stop and its parent can still wait for that.
    pub continue_untold: bool,
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It runs or sleeps.
    Running,
    /// It was stopped by this signal (job control) and waits for `SIGCONT`.
    Stopped {
        /// The stop signal.
        signal: u32,
    },
    /// It has ended and was not waited for.
    Zombie {
        /// The status that `wait(2)` gives.
        status: u32,
        /// Whose process it was.
        user: Ids,
        /// The groups of that user.
        group: Ids,
        /// What it was allowed to.
        capabilities: CapabilitySets,
    },
}

impl Record for ProcessStatus {
    const KIND: Kind = Kind::ProcessStatus;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        match self.state {
            State::Running => format!("process {} running", self.process),
            State::Stopped { signal } => format!("process {} stopped by signal {signal}", self.process),
            State::Zombie { status, .. } => format!("process {} ended with status {status:#x}", self.process),
        }
    }

    fn refers(&self) -> Vec<Identity> {
        vec![self.process.into()]
    }
}
