//! The stub in a task that is being dumped: put in place, asked, and taken out again without a trace.
//!
//! At every moment from [`Agent::prepare`] to [`Agent::release`] the task finds its own way back if this program dies:
//! see [`sigframe`](crate::tracee::sigframe). A task on a stack of its own makes the area of its stub by itself, covered
//! by frames below the red zone of that stack, and takes it away again.
//!
//! A task that does not run on a stack of its own kind (a goroutine, a coroutine, a handler on an alternate stack) may
//! have live memory there. Its area is made by another thread of its process, and holds its frames; if this program
//! dies, they are what is left of it. If no thread of a process has a stack of its own, the few microseconds of the
//! remote calls by which the first area is made and the last one goes are covered only where some room is.

mod calls;
mod inject;
mod leave;
mod own_state;

pub use inject::{Host, Injection, area_batch, inject, inject_into_areas};
pub use leave::remove;

use super::batch::{Batch, Outcome};
use super::channel::Channel;
use super::task_state::TaskState;
use crate::error::{Error, Result, Subject, code};
use crate::sys::ptrace::Registers;
use crate::tracee::Stopped;
use crate::tracee::sigframe::{Gadgets, WayHome};
use crate::waits::Moments;
use crate::waits::before::Before;
use own_state::OwnState;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use vckpt_image_format::record::lightweight_process::Wait;

/// How long a task may take for a step of being injected or released.
const PATIENCE: Duration = Duration::from_secs(10);

/// A thread that stands still, and the stub in it if one was put there.
#[derive(Debug)]
pub struct Agent {
    pid: i32,
    tid: i32,
    state: TaskState,
    /// What the thread will be put back to.
    own: OwnState,
    /// Instructions of the process, once they were looked for.
    gadgets: Option<Gadgets>,
    /// Whether the thread's stack is known to be its own, so that what lies below the red zone is nobody's.
    own_stack: bool,
    injected: Option<Injected>,
}

#[derive(Debug)]
struct Injected {
    channel: Channel,
    /// Number of the stub's end in the target.
    socket: i32,
    area: u64,
    /// Whether the thread has made its area by itself.
    by_itself: bool,
    way_home: WayHome,
    /// What was where the frames are; nothing if they are in the area.
    overwritten: Vec<u8>,
}

impl Agent {
    /// Takes down the state of a thread of process `pid` that was interrupted. Nothing is changed, but that a call which
    /// the kernel would end with `EINTR` only because of us is marked to be restarted.
    ///
    /// # Errors
    /// If the thread is gone or can't be read.
    pub fn prepare(stopped: Stopped, pid: i32, moments: Moments, before: Option<&Before>) -> Result<Self> {
        Ok(Self {
            pid,
            tid: stopped.tid(),
            own: OwnState::take_down(&stopped, pid, moments, before)?,
            gadgets: None,
            own_stack: false,
            state: TaskState::Stopped(stopped),
            injected: None,
        })
    }

    /// The thread's ID, as this program sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The thread, as long as no stub is in it.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it runs.
    pub fn stopped(&self) -> Result<&Stopped> {
        match &self.state {
            TaskState::Stopped(stopped) => Ok(stopped),
            TaskState::Running(_) | TaskState::Gone => {
                Err(Error::new(code::INTERNAL, "a thread does not stand still").about(self.subject()))
            }
        }
    }

    /// The thread's own registers.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.own.registers
    }

    /// The thread's own extended state.
    #[must_use]
    pub fn xstate(&self) -> &[u8] {
        &self.own.xstate
    }

    /// The thread's own signal mask: bit n-1 for signal n.
    #[must_use]
    pub fn signal_mask(&self) -> u64 {
        self.own.signal_mask
    }

    /// The thread's rseq area: address (0: none), size, signature.
    #[must_use]
    pub fn rseq(&self) -> (u64, u32, u32) {
        self.own.rseq
    }

    /// The wait that was interrupted, if it had a limit of time.
    #[must_use]
    pub fn wait(&self) -> Option<Wait> {
        self.own.wait
    }

    /// Whether the thread was in a call of which nobody knows any more what it was and what is left of its time: if it
    /// is restored, it sees `EINTR`. Left where it is, it goes on rightly.
    #[must_use]
    pub fn loses_its_call(&self) -> bool {
        self.own.loses_its_call
    }

    /// Addresses of a `syscall; ret` and of a `rt_sigreturn` in the program, if it has both and the thread's stack has
    /// room for frames that lead to them.
    #[must_use]
    pub fn instructions(&self) -> Option<(u64, u64)> {
        let gadgets = self.gadgets.filter(|gadgets| self.own_stack && gadgets.signal_return != 0)?;
        Some((gadgets.call_and_return, gadgets.signal_return))
    }

    /// The signals that were pending at the freeze, for the thread or for its process: raw `siginfo_t`, in order.
    ///
    /// # Errors
    /// None today.
    pub fn pending(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        Ok(if shared { self.own.shared_pending.clone() } else { self.own.pending.clone() })
    }

    /// Numbers of descriptors in the target that are the stub's, not the target's.
    #[must_use]
    pub fn descriptors(&self) -> Vec<i32> {
        self.injected.iter().map(|injected| injected.socket).collect()
    }

    fn subject(&self) -> Subject {
        Subject { task: u32::try_from(self.tid).ok(), ..Subject::default() }
    }

    /// Runs a batch and checks that what must not fail did not.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`], [`code::TARGET_DIED`], [`code::REMOTE_CALL`].
    pub fn run(&mut self, batch: &Batch) -> Result<Outcome> {
        self.send(batch)?;
        self.receive(batch)
    }

    /// Sends a batch without waiting for what comes of it.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`].
    pub fn send(&mut self, batch: &Batch) -> Result<()> {
        let Some(injected) = &self.injected else {
            return Err(Error::new(code::INTERNAL, "a batch for a task without a stub").about(self.subject()));
        };
        injected.channel.send(batch).map_err(|error| error.about(self.subject()))
    }

    /// Waits for what comes of the batch that was sent.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub fn receive(&mut self, batch: &Batch) -> Result<Outcome> {
        let subject = self.subject();
        let Some(injected) = &self.injected else {
            return Err(Error::new(code::INTERNAL, "an answer from a task without a stub").about(subject));
        };
        let state = &mut self.state;
        let outcome =
            injected.channel.receive(batch, || state.look()).map_err(|error| error.about(subject.clone()))?;
        outcome.check(batch, &subject)?;
        Ok(outcome)
    }

    /// Whether a stub is in place.
    #[must_use]
    pub fn is_injected(&self) -> bool {
        self.injected.is_some()
    }
}

fn read_exact(memory: &File, address: u64, buffer: &mut [u8]) -> Result<()> {
    memory.read_exact_at(buffer, address).map_err(|error| {
        Error::system(code::MEMORY_ACCESS, "reading the memory of the target", error)
            .about(Subject::default().address(address))
    })
}

fn write_exact(memory: &File, address: u64, bytes: &[u8]) -> Result<()> {
    memory.write_all_at(bytes, address).map_err(|error| {
        Error::system(code::MEMORY_ACCESS, "writing to the memory of the target", error)
            .about(Subject::default().address(address))
    })
}
