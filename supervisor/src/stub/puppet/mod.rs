//! A puppet: an empty task that is being turned into a restored one.
//!
//! The first one is started from a tiny executable; it makes the others on command. A puppet ends itself when this
//! program goes away, and is killed when it is dropped before its [release](Puppet::release).

mod ending;
mod making;
mod stopping;

pub use making::{Child, FILE_SYSTEM, FILES, HANDLERS, MEMORY, PARENT, Place, THREAD_FLAGS};

use super::batch::{Batch, Outcome};
use super::channel::Channel;
use super::task_state::TaskState;
use crate::error::{Error, Result, Subject, code};
use crate::sys::process;
use crate::tracee::{Running, Stopped};
use std::fs::File;
use std::time::{Duration, Instant};
use vckpt_image_format::TaskId;
use vckpt_parasite::protocol::{self, operation};

/// With which puppets are traced.
pub const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;

const PATIENCE: Duration = Duration::from_secs(10);

/// A puppet: a process, or a second thread of one.
#[derive(Debug)]
pub struct Puppet {
    /// Its thread ID, as this program sees it.
    pub tid: i32,
    /// The ID of its process, as this program sees it.
    process: i32,
    /// The ID that the application knows.
    pub id: TaskId,
    /// Where all puppets are.
    pub place: Place,
    /// Address of its area.
    pub area: u64,
    /// Number of its socket in its own table.
    pub socket: i32,
    /// The last task that it made, as this program sees it; at first itself.
    newest: i32,
    state: TaskState,
    channel: Option<Channel>,
    /// Whether it is still ours to end.
    ours: bool,
}

impl Puppet {
    fn trace(&mut self) -> Result<()> {
        self.state = TaskState::Running(Running::seize(self.tid, OPTIONS)?);
        Ok(())
    }

    /// Its memory.
    ///
    /// # Errors
    /// As [`read::file`](crate::proc::read::file).
    pub fn memory(&self) -> Result<File> {
        let path = crate::proc::read::path(self.tid, "mem");
        let file = File::options().read(true).write(true).open(path);
        file.map_err(|error| crate::proc::read::failure(self.tid, "mem", &error))
    }

    /// An address in its area that nothing else uses: room of `protocol::FRAMES_LENGTH` bytes.
    #[must_use]
    pub fn scratch(&self) -> u64 {
        self.area + protocol::FRAMES_OFFSET as u64
    }

    /// For error messages.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject { task: Some(self.id.0), ..Subject::default() }
    }

    fn channel(&self) -> Result<&Channel> {
        self.channel.as_ref().ok_or_else(|| {
            Error::new(code::INTERNAL, "a batch for a puppet that does not listen any more")
                .about(self.subject())
        })
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
        self.channel()?.send(batch).map_err(|error| error.about(self.subject()))
    }

    /// Waits for what comes of the batch that was sent.
    ///
    /// # Errors
    /// As [`Puppet::run`].
    pub fn receive(&mut self, batch: &Batch) -> Result<Outcome> {
        let subject = self.subject();
        let Some(channel) = &self.channel else {
            return Err(
                Error::new(code::INTERNAL, "an answer from a puppet that does not listen").about(subject)
            );
        };
        let state = &mut self.state;
        let outcome = channel.receive(batch, || state.look()).map_err(|error| error.about(subject))?;
        outcome.check(batch, &self.subject())?;
        Ok(outcome)
    }

    fn write_scratch(&self, bytes: &[u8]) -> Result<()> {
        self.write(self.scratch(), bytes)
    }

    /// Writes to its memory.
    ///
    /// # Errors
    /// [`code::MEMORY_ACCESS`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        process::write_memory(self.tid, address, bytes).map_err(|errno| {
            Error::system(code::MEMORY_ACCESS, "writing to a puppet", errno)
                .about(self.subject().address(address))
        })
    }

    /// Ends its conversation: it closes its socket and waits to be set up by ptrace.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`], [`code::TARGET_DIED`], [`code::PTRACE`].
    pub fn park(&mut self) -> Result<()> {
        self.begin_parking()?;
        self.finish_parking()
    }

    /// Asks it to end its conversation, as [`Puppet::park`] does, and to stop then.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`].
    pub fn begin_parking(&mut self) -> Result<()> {
        let mut batch = Batch::new();
        batch.operation("parking", operation::PARK, []);
        self.send(&batch)
    }

    /// Waits until it has ended its conversation.
    ///
    /// # Errors
    /// As [`Puppet::park`].
    pub fn finish_parking(&mut self) -> Result<()> {
        let (subject, state) = (self.subject(), &mut self.state);
        if let Some(channel) = self.channel.take() {
            channel.expect_end(|| state.look()).map_err(|error| error.about(subject))?;
        }
        Ok(())
    }

    /// Stops it, after it was parked.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn stop(&mut self) -> Result<&Stopped> {
        self.begin_stopping()?;
        self.finish_stopping()
    }

    /// Asks it to stop, as [`Puppet::stop`] does.
    ///
    /// # Errors
    /// As [`Puppet::stop`].
    pub fn begin_stopping(&mut self) -> Result<()> {
        match &self.state {
            TaskState::Running(running) => running.interrupt(),
            TaskState::Stopped(_) | TaskState::Gone => Ok(()),
        }
    }

    /// Waits until it stands still.
    ///
    /// # Errors
    /// As [`Puppet::stop`].
    pub fn finish_stopping(&mut self) -> Result<&Stopped> {
        match self.state.take() {
            TaskState::Running(running) => {
                self.state = TaskState::Stopped(running.expect_interruption(Instant::now() + PATIENCE)?);
            }
            other @ (TaskState::Stopped(_) | TaskState::Gone) => self.state = other,
        }
        self.stopped()
    }

    /// Its stopped state.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it runs.
    pub fn stopped(&self) -> Result<&Stopped> {
        match &self.state {
            TaskState::Stopped(stopped) => Ok(stopped),
            TaskState::Running(_) | TaskState::Gone => {
                Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()))
            }
        }
    }

    /// Replaces its stopped state by what a move of it gives.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it runs; what the move says.
    pub fn step(&mut self, step: impl FnOnce(Stopped) -> Result<Stopped>) -> Result<()> {
        match self.state.take() {
            TaskState::Stopped(stopped) => {
                self.state = TaskState::Stopped(step(stopped)?);
                Ok(())
            }
            other @ (TaskState::Running(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()))
            }
        }
    }

    /// Lets it run, as a move of its stopped state does.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it runs; what the move says.
    pub fn set_out(&mut self, go: impl FnOnce(Stopped) -> Result<Running>) -> Result<()> {
        match self.state.take() {
            TaskState::Stopped(stopped) => {
                self.state = TaskState::Running(go(stopped)?);
                Ok(())
            }
            other @ (TaskState::Running(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()))
            }
        }
    }

    /// Waits for a stop after [`Puppet::set_out`].
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it does not run; what the wait says.
    pub fn arrive(&mut self, wait: impl FnOnce(Running) -> Result<Stopped>) -> Result<()> {
        match self.state.take() {
            TaskState::Running(running) => {
                self.state = TaskState::Stopped(wait(running)?);
                Ok(())
            }
            other @ (TaskState::Stopped(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a puppet does not run").about(self.subject()))
            }
        }
    }

    /// Lets it run as what it has become, if it does not so already.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn release(&mut self) -> Result<()> {
        if !self.ours {
            return Ok(());
        }
        match self.state.take() {
            TaskState::Stopped(stopped) => {
                self.ours = false;
                stopped.detach(0)
            }
            other @ (TaskState::Running(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()))
            }
        }
    }

    /// Makes it the init of its PID namespace, which lives as long as the process `root` and its orphans.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`].
    pub fn become_init(&mut self, root: TaskId) -> Result<()> {
        let mut batch = Batch::new();
        batch.operation("becoming init", operation::INIT, [root.0.into()]);
        self.run(&batch)?;
        self.channel = None;
        self.stop()?;
        self.release()
    }
}
