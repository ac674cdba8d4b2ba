//! Stopping a process of puppets by a signal, as job control does, while its puppets go on serving.
//!
//! A tracer may let the threads of a stopped process run: the stop stays in effect, and holds them when they are let
//! go. So a process can be stopped early, while its parent is still a puppet that can take the report.

use super::{PATIENCE, Puppet};
use crate::error::{Error, Result, code};
use crate::stub::batch::Batch;
use crate::stub::task_state::TaskState;
use crate::tracee::{Running, Stop, Stopped};
use std::time::Instant;

impl Puppet {
    /// Stops its process by this signal, or by `SIGSTOP` where that one has no effect. It then stands still; the stop
    /// is complete when all other threads were [stopped](Puppet::stop). The batch is to be
    /// [received](Puppet::receive) when all were [resumed](Puppet::resume).
    ///
    /// # Errors
    /// [`code::TARGET_DIED`], [`code::PTRACE`], [`code::STUB_SILENT`].
    pub fn stop_process(&mut self, signal: i32) -> Result<Batch> {
        let mut batch = Batch::new();
        let own = batch.must("asking for the thread ID", libc::SYS_gettid, []);
        batch.must("stopping", libc::SYS_tkill, [own.into(), libc::SIGSTOP.into()]);
        self.send(&batch)?;
        let TaskState::Running(running) = self.state.take() else {
            return Err(Error::new(code::INTERNAL, "a puppet that does not run").about(self.subject()));
        };
        let (stopped, by) = stop_by(running, signal)?;
        self.state = TaskState::Stopped(stopped);
        if by.is_some() || signal == libc::SIGSTOP {
            return Ok(batch);
        }
        // The members of an orphaned process group, for one, can't be stopped by a terminal.
        self.resume()?;
        self.receive(&batch)?;
        self.stop_process(libc::SIGSTOP)
    }

    /// Lets it go on serving.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it runs; [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn resume(&mut self) -> Result<()> {
        let TaskState::Stopped(stopped) = self.state.take() else {
            return Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()));
        };
        self.state = TaskState::Running(stopped.resume(0)?);
        Ok(())
    }
}

/// Gives a thread that is about to get `SIGSTOP` this signal instead; also tells by which signal it then is stopped.
fn stop_by(running: Running, signal: i32) -> Result<(Stopped, Option<i32>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut running = running;
    let stopped = loop {
        running = match running.wait(deadline)? {
            Stop::Signal(stopped, libc::SIGSTOP) => break stopped,
            Stop::Signal(stopped, _)
            | Stop::Interrupted(stopped, _)
            | Stop::Event(stopped, _)
            | Stop::Call(stopped) => stopped.resume(0)?,
            Stop::Ended(status) => return Err(ended(status)),
        };
    };
    let mask = stopped.signal_mask()?;
    stopped.set_signal_mask(mask & !1_u64.rotate_left(signal.cast_unsigned().wrapping_sub(1)))?;
    // So that it stands still also if the signal has no effect.
    stopped.interrupt()?;
    running = stopped.resume(signal)?;
    loop {
        running = match running.wait(deadline)? {
            Stop::Interrupted(stopped, by) => {
                stopped.set_signal_mask(mask)?;
                return Ok((stopped, by));
            }
            Stop::Signal(stopped, _) | Stop::Event(stopped, _) | Stop::Call(stopped) => stopped.resume(0)?,
            Stop::Ended(status) => return Err(ended(status)),
        };
    }
}

fn ended(status: i32) -> Box<Error> {
    Error::new(code::TARGET_DIED, "a puppet ended").because(format!("wait status {status:#x}"))
}
