//! Whether a task with a stub runs or stands still, and the look at one that does not answer.

use crate::error::{Error, Result, code};
use crate::tracee::{Running, Stop, Stopped};

/// What a task with a stub is doing.
#[derive(Debug)]
pub(super) enum TaskState {
    /// It stands still.
    Stopped(Stopped),
    /// It runs, or may.
    Running(Running),
    /// Nobody holds it: it was let go, has ended, or a step of it failed.
    Gone,
}

impl TaskState {
    /// Gives what it is, and leaves [`TaskState::Gone`].
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Gone)
    }

    /// Fails if a running task has ended or was stopped by something that a stub can't survive; whatever else stopped
    /// it, it goes on.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`], [`code::STUB_SILENT`], [`code::PTRACE`].
    pub(super) fn look(&mut self) -> Result<()> {
        let running = match self.take() {
            Self::Running(running) => running,
            other @ (Self::Stopped(_) | Self::Gone) => {
                *self = other;
                return Ok(());
            }
        };
        let tid = running.tid();
        *self = Self::Running(match running.poll()? {
            Err(running) => running,
            Ok(Stop::Ended(status)) => {
                return Err(Error::new(code::TARGET_DIED, "the task ended meanwhile")
                    .because(format!("wait status {status:#x}")));
            }
            Ok(Stop::Interrupted(stopped, _) | Stop::Event(stopped, _) | Stop::Call(stopped)) => {
                stopped.resume(0)?
            }
            // The one signal that nobody can block and that does not end the task.
            Ok(Stop::Signal(stopped, libc::SIGSTOP)) => stopped.resume(libc::SIGSTOP)?,
            Ok(Stop::Signal(stopped, signal)) => {
                let registers = stopped.registers()?;
                *self = Self::Stopped(stopped);
                return Err(Error::new(code::STUB_SILENT, "the stub was hit by a signal")
                    .because(format!("signal {signal} at {:#x}, task {tid}", registers.rip)));
            }
        });
        Ok(())
    }
}
