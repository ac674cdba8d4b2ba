//! Lightweight process (kind 20): a thread: registers, thread-local pointers, and the call it was in.

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LightweightProcess {
    /// Its thread ID.
    pub id: TaskId,
    /// The process it belongs to.
    pub process: TaskId,
    /// Its name (`comm`).
    pub name: Text,
    /// `struct user_regs_struct` of x86-64, word by word, as the thread goes on with them. An interrupted call is
    /// expressed as the kernel expresses it: `orig_rax` its number, `rax` one of `-ERESTART…`.
    pub registers: Vec<u64>,
    /// The extended state, as `NT_X86_XSTATE` gives it.
    #[serde(with = "crate::bytes")]
    pub xstate: Vec<u8>,
    /// `get_robust_list(2)`: address and length of the head; 0 for none.
    pub robust_list: (u64, u64),
    /// `PR_GET_TID_ADDRESS`: where a 0 is written when the thread ends; 0 for none.
    pub clear_child_tid: u64,
    /// The registered restartable-sequence area.
    pub rseq: Option<Rseq>,
    /// `PR_GET_PDEATHSIG`, 0 for none.
    pub parent_death_signal: u32,
    /// `PR_GET_TSC`: whether it may read the time stamp counter; 0 if the kernel does not tell.
    pub time_stamp_counter: u32,
    /// `PR_GET_SPECULATION_CTRL` of store bypass, indirect branches, and the flush of the level 1 cache; 0 where that is
    /// not the task's own affair.
    pub speculation: [u32; 3],
    /// `personality(2)`.
    pub personality: u32,
    /// Whether it may not identify the processor: `CPUID` ends it with `SIGSEGV` (`ARCH_SET_CPUID`).
    pub identification_denied: bool,
    /// `PR_MCE_KILL_GET`: when it is ended by memory that fails.
    pub memory_failure: u32,
    /// Which of its system calls are not dispatched to its own handler (`PR_SET_SYSCALL_USER_DISPATCH`); none if all
    /// are made.
    pub dispatch: Option<Dispatch>,
    /// The wait that was interrupted, if it had a limit of time.
    pub wait: Option<Wait>,
    /// Addresses of instructions of the program itself: `syscall; ret`, and the C library's `rt_sigreturn`.
    pub instructions: Option<(u64, u64)>,
}

/// A restartable-sequence area, as `PTRACE_GET_RSEQ_CONFIGURATION` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of the area.
    pub address: u64,
    /// Its size in bytes.
    pub size: u32,
    /// Its signature.
    pub signature: u32,
}

/// How system calls are dispatched to the program itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Address of the byte that lets all calls be made when it is 0; 0 if there is none.
    pub selector: u64,
    /// Where code begins whose calls are always made.
    pub start: u64,
    /// Bytes of that code.
    pub length: u64,
}

/// A call with a relative time-out that was under way at the freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Number of the system call.
    pub number: u32,
    /// What was left of the time-out at the freeze, in nanoseconds, or [`Wait::UNCHANGED`].
    pub remaining: u64,
    /// Whether the kernel keeps the deadline in a restart block (`-ERESTART_RESTARTBLOCK`), or the call must be made
    /// again with a shorter time-out.
    pub restart_block: bool,
}

impl Wait {
    /// What is left of a wait that has no limit, or an absolute one: it is made again with the arguments that it had.
    pub const UNCHANGED: u64 = u64::MAX;

    /// Whether it is made again with the arguments that it had.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.remaining == Self::UNCHANGED
    }
}

impl Record for LightweightProcess {
    const KIND: Kind = Kind::LightweightProcess;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("thread {} {} of process {}", self.id, self.name, self.process)
    }

    fn defines(&self) -> Vec<Identity> {
        // The leader is defined by its process.
        if self.id == self.process { Vec::new() } else { vec![self.id.into()] }
    }

    fn refers(&self) -> Vec<Identity> {
        vec![self.process.into()]
    }

    fn check(&self) -> Result<(), String> {
        if self.registers.len() != 27 {
            return Err(format!("{} registers instead of 27", self.registers.len()));
        }
        if self.xstate.len() < 576 || self.xstate.len() > 64 * 1024 {
            return Err(format!("{} bytes of extended state", self.xstate.len()));
        }
        Ok(())
    }
}
