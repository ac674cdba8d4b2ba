//! The end of puppets: as zombies with a certain status, or because a restore has failed.

use super::{PATIENCE, Puppet};
use crate::error::Result;
use crate::stub::batch::Batch;
use crate::stub::task_state::TaskState;
use crate::tracee::{Running, Stop};
use std::time::Instant;

impl Puppet {
    /// Makes it end itself with this wait status; its parent will find a zombie. Gives the status that it then has: one
    /// of a process that has dumped core can't be had without doing so.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`](crate::error::code::STUB_SILENT).
    pub fn end(&mut self, status: u32) -> Result<u32> {
        let signal = status & 0x7f;
        let mut batch = Batch::new();
        if signal == 0 {
            batch.call("ending", libc::SYS_exit_group, [(status >> 8).into()]);
        } else {
            let none = batch.words(&[0]);
            let default = batch.words(&[0, 0, 0, 0]);
            // No core file: the one of the original's death is enough. A limit of 1 keeps it from a program of
            // `core_pattern` as well (core(5)); where that is more than is allowed, it is 0, which keeps it from a file.
            let one = batch.words(&[1, 1]);
            batch.call(
                "limiting",
                libc::SYS_prlimit64,
                [0.into(), libc::RLIMIT_CORE.into(), one.into(), 0.into()],
            );
            batch.call(
                "handling",
                libc::SYS_rt_sigaction,
                [signal.into(), default.into(), 0.into(), 8.into()],
            );
            let own = batch.call("asking", libc::SYS_gettid, []);
            batch.call("signalling", libc::SYS_tkill, [own.into(), signal.into()]);
            batch.call(
                "unblocking",
                libc::SYS_rt_sigprocmask,
                [libc::SIG_SETMASK.into(), none.into(), 0.into(), 8.into()],
            );
            batch.call("ending", libc::SYS_exit_group, [0.into()]);
        }
        self.send(&batch)?;
        self.channel = None;
        if let TaskState::Running(running) = self.state.take() {
            wait_for_end(running)?;
        }
        self.ours = false;
        Ok(if signal == 0 { status } else { signal })
    }
}

fn wait_for_end(running: Running) -> Result<()> {
    let mut running = running;
    loop {
        running = match running.wait(Instant::now() + PATIENCE)? {
            Stop::Ended(_) => return Ok(()),
            Stop::Signal(stopped, signal) => stopped.resume(signal)?,
            Stop::Interrupted(stopped, _) | Stop::Event(stopped, _) | Stop::Call(stopped) => {
                stopped.resume(0)?
            }
        };
    }
}

impl Drop for Puppet {
    /// Ends a puppet that was not released.
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl Puppet {
    /// Ends a puppet that was not released; its end is still to be waited for.
    pub fn kill(&mut self) -> Option<Running> {
        if !std::mem::replace(&mut self.ours, false) {
            return None;
        }
        let dying = match self.state.take() {
            TaskState::Stopped(stopped) => stopped.killed(),
            TaskState::Running(running) => running,
            // A step of it failed and nobody holds it any more.
            TaskState::Gone => Running::attached(self.tid),
        };
        // A thread takes its whole process along, which is meant.
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.tid), nix::sys::signal::Signal::SIGKILL);
        Some(dying)
    }
}
