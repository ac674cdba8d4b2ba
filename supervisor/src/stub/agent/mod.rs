//! The stub in a task that is being dumped: put in place, asked, and taken out again without a trace.
//!
//! At every moment from [`Agent::prepare`] to [`Agent::release`] the task finds its own way back if this program dies:
//! see [`sigframe`](crate::tracee::sigframe). A task on a stack of its own makes the area of its stub by itself, covered
//! by frames below the red zone of that stack, and takes it away again.
//!
//! A task that does not run on a stack of its own kind (a goroutine, a coroutine, a handler on an alternate stack) may
//! have live memory there. Its area is made by another thread of its process, and holds its frames; if this program
//! dies, they are what is left of it in the task, or, while stubs come and go, the whole area. If no thread of a process
//! has a stack of its own, then one of them makes its area all the same: if this program dies during the first or the
//! last remote calls of the tree, which all threads make side by side, such a task is lost, or finds frames of ours
//! below its stack pointer.
//!
//! A stack counts as a thread's own by its shape. A small stack within such a stack (an alternate stack that is a local
//! variable) can't be told from it.

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
use crate::tracee::sigframe::Gadgets;
use crate::tracee::stack::Room;
use crate::waits::{Moments, Seen};
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
    /// What lies below the stack pointer, once it was looked for.
    room: Option<Room>,
    /// Whether the thread has other registers than its own, and another signal mask.
    away: bool,
    /// Whether a batch was sent and its answer not taken.
    owes_answer: bool,
    foothold: Foothold,
}

/// What of ours is in a thread and its process.
#[derive(Debug, Default)]
struct Foothold {
    /// Frames on the thread's stack: where, and what was there before.
    on_stack: Option<(u64, Vec<u8>)>,
    /// Frames that take the thread home, there or in its area: where, and what the stack pointer is for the stub to use
    /// them.
    way_home: Option<(u64, u64)>,
    /// Its area, and whether the thread has made it by itself.
    area: Option<(u64, bool)>,
    /// Descriptors of ours in its table: one end of the socket pair, which the stub closes when it begins to serve
    /// (nobody else can get that number meanwhile), and the stub's own.
    descriptors: Vec<i32>,
    /// To the stub, once it serves.
    channel: Option<Channel>,
}

impl Agent {
    /// Takes down the state of a thread of process `pid` that was interrupted. Nothing is changed that the thread could
    /// tell.
    ///
    /// # Errors
    /// If the thread is gone or can't be read.
    pub fn prepare(stopped: Stopped, pid: i32, moments: Moments, seen: Seen<'_>) -> Result<Self> {
        Ok(Self {
            pid,
            tid: stopped.tid(),
            own: OwnState::take_down(&stopped, pid, moments, seen)?,
            gadgets: None,
            room: None,
            away: false,
            state: TaskState::Stopped(stopped),
            owes_answer: false,
            foothold: Foothold::default(),
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
        let gadgets = self.gadgets.filter(|gadgets| gadgets.signal_return != 0)?;
        let gadgets = (self.room == Some(Room::OwnStack)).then_some(gadgets)?;
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
        self.foothold.descriptors.clone()
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
        let Some(channel) = &self.foothold.channel else {
            return Err(Error::new(code::INTERNAL, "a batch for a task without a stub").about(self.subject()));
        };
        if self.owes_answer {
            // A late one must not be taken for that of another batch.
            let error = Error::new(code::STUB_SILENT, "the stub has not answered the batch before");
            return Err(error.about(self.subject()));
        }
        channel.send(batch).map_err(|error| error.about(self.subject()))?;
        self.owes_answer = true;
        Ok(())
    }

    /// Waits for what comes of the batch that was sent.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub fn receive(&mut self, batch: &Batch) -> Result<Outcome> {
        let subject = self.subject();
        let Some(channel) = &self.foothold.channel else {
            return Err(Error::new(code::INTERNAL, "an answer from a task without a stub").about(subject));
        };
        let state = &mut self.state;
        let outcome =
            channel.receive(batch, || state.look()).map_err(|error| error.about(subject.clone()))?;
        self.owes_answer = false;
        outcome.check(batch, &subject)?;
        Ok(outcome)
    }

    /// Whether a stub is in place.
    #[must_use]
    pub fn is_injected(&self) -> bool {
        self.foothold.channel.is_some()
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
