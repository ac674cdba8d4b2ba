//! Sandbox (kind 71): the system call filters of the threads of a process (seccomp(2)).

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// The filters of a process that has any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The process.
    pub process: TaskId,
    /// Those of its threads that have filters.
    pub threads: Vec<ThreadSandbox>,
}

/// The filters of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSandbox {
    /// The thread.
    pub thread: TaskId,
    /// The filters, the oldest first.
    pub filters: Vec<Filter>,
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `SECCOMP_FILTER_FLAG_LOG` or 0.
    pub flags: u64,
    /// Its instructions: `struct sock_filter`, 8 bytes each.
    #[serde(with = "crate::bytes")]
    pub program: Vec<u8>,
}

/// Bytes of an instruction.
pub const INSTRUCTION: usize = 8;
/// Most instructions of a filter: `BPF_MAXINSNS`.
const LONGEST: usize = 4096;
/// Most instructions of all filters of a thread: `MAX_INSNS_PER_PATH`.
const MOST: usize = 32768;
/// `SECCOMP_FILTER_FLAG_LOG`.
pub const FLAG_LOG: u64 = 2;

impl Record for Sandbox {
    const KIND: Kind = Kind::Sandbox;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        let count: usize = self.threads.iter().map(|thread| thread.filters.len()).sum();
        format!("{count} filters of process {}", self.process)
    }

    fn refers(&self) -> Vec<Identity> {
        let threads = self.threads.iter().map(|thread| Identity::from(thread.thread));
        std::iter::once(self.process.into()).chain(threads).collect()
    }

    fn check(&self) -> Result<(), String> {
        for ThreadSandbox { thread, filters } in &self.threads {
            for Filter { flags, program } in filters {
                if program.is_empty()
                    || program.len() % INSTRUCTION != 0
                    || program.len() > LONGEST * INSTRUCTION
                {
                    return Err(format!("thread {thread} has a filter of {} bytes", program.len()));
                }
                if flags & !FLAG_LOG != 0 {
                    return Err(format!("thread {thread} has a filter with the flags {flags:#x}"));
                }
            }
            if filters.iter().map(|filter| filter.program.len() / INSTRUCTION).sum::<usize>() > MOST {
                return Err(format!("thread {thread} has too many filters"));
            }
        }
        Ok(())
    }
}
