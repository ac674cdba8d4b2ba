//! Resource limit (kind 8): the limits of a process, as `getrlimit(2)` gives them.

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// The limits of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// The process.
    pub process: TaskId,
    /// The limits, each at the place of its number (`RLIMIT_CPU` is 0).
    pub limits: Vec<Limit>,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What counts now; [`UNLIMITED`] for none.
    pub soft: u64,
    /// How far the process may raise it; [`UNLIMITED`] for none.
    pub hard: u64,
}

/// `RLIM64_INFINITY`.
pub const UNLIMITED: u64 = u64::MAX;

/// The names of the limits, each at the place of its number.
pub const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

impl Record for ResourceLimit {
    const KIND: Kind = Kind::ResourceLimit;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("limits of process {}", self.process)
    }

    fn refers(&self) -> Vec<Identity> {
        vec![self.process.into()]
    }

    fn check(&self) -> Result<(), String> {
        if self.limits.len() != NAMES.len() {
            return Err(format!("{} limits instead of {}", self.limits.len(), NAMES.len()));
        }
        for (limit, name) in self.limits.iter().zip(NAMES) {
            if limit.soft > limit.hard {
                return Err(format!(
                    "{name}: the soft limit {} is above the hard one {}",
                    limit.soft, limit.hard
                ));
            }
        }
        Ok(())
    }
}
