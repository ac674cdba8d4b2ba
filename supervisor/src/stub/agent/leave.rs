//! Taking a stub out of a thread, and letting the thread go.

use super::{Agent, Injected, PATIENCE, write_exact};
use crate::error::{Error, Result, code};
use crate::stub::batch::Batch;
use crate::stub::task_state::TaskState;
use crate::tracee::sigframe::Gadgets;
use crate::tracee::{Stop, Stopped};
use crate::waits::{resume, updated};
use std::fs::File;
use std::time::Instant;
use vckpt_parasite::protocol;

impl Agent {
    /// Whether the thread has made the area of its stub by itself, and takes it away by itself.
    #[must_use]
    pub fn made_its_area(&self) -> bool {
        self.injected.as_ref().is_some_and(|injected| injected.by_itself)
    }

    /// Takes the stub out: the thread stands still with its own state, as after [`Agent::prepare`]. Gives its area
    /// if that is to be [unmapped](Agent::unmap) by a thread that still has its stub.
    ///
    /// # Errors
    /// If the thread is gone or does not obey. If it can't be taken out, the stub goes home by itself when its
    /// channel is dropped.
    pub fn remove(&mut self, memory: &File) -> Result<Option<u64>> {
        let Some(injected) = self.injected.take() else { return Ok(None) };
        let mut stopped = match self.state.take() {
            TaskState::Running(running) => {
                running.interrupt()?;
                running.expect_interruption(Instant::now() + PATIENCE)?
            }
            other @ (TaskState::Stopped(_) | TaskState::Gone) => {
                self.state = other;
                return Err(
                    Error::new(code::INTERNAL, "a stub in a task that does not run").about(self.subject())
                );
            }
        };
        let Injected { socket, area, by_itself, call_and_return, way_home, overwritten, .. } = injected;
        let gadgets = Gadgets { call_and_return, signal_return: 0 };
        let close = (libc::SYS_close, [u64::from(socket.cast_unsigned()), 0, 0, 0, 0, 0]);
        let unmap = (libc::SYS_munmap, [area, protocol::AREA_LENGTH as u64, 0, 0, 0, 0]);
        for (call, arguments) in [Some(close), by_itself.then_some(unmap)].into_iter().flatten() {
            (stopped, _) = self.remote_call(stopped, gadgets, Some(way_home.address), call, arguments)?;
        }
        let overwritten = (!overwritten.is_empty()).then_some((way_home.address, overwritten.as_slice()));
        self.put_back(stopped, overwritten, memory)?;
        Ok((!by_itself).then_some(area))
    }

    /// Unmaps areas that other threads have left.
    ///
    /// # Errors
    /// If the stub can't be reached.
    pub fn unmap(&mut self, areas: &[u64]) -> Result<()> {
        for areas in areas.chunks(protocol::MAXIMUM_CALLS) {
            let mut batch = Batch::new();
            for &area in areas {
                batch.call("unmapping a stub", libc::SYS_munmap, [area.into(), protocol::AREA_LENGTH.into()]);
            }
            self.run(&batch)?;
        }
        Ok(())
    }

    /// Puts a thread that stands still back to its own state, and its memory to what it was.
    pub(super) fn put_back(
        &mut self,
        stopped: Stopped,
        overwritten: Option<(u64, &[u8])>,
        memory: &File,
    ) -> Result<()> {
        let stopped = stopped.to_interruption(Instant::now() + PATIENCE)?;
        stopped.set_xstate(&self.own.xstate)?;
        // The mask before the registers: until it has its own registers, the thread would go home by the frames,
        // which set the mask; afterwards nobody would.
        stopped.set_signal_mask(self.own.signal_mask)?;
        stopped.set_registers(&self.own.registers)?;
        if let Some((address, bytes)) = overwritten {
            write_exact(memory, address, bytes)?;
        }
        self.state = TaskState::Stopped(stopped);
        Ok(())
    }

    /// Lets the thread go on; if it was in a call that waits for at most some time, with the time that is left.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn release(&mut self, memory: &File) -> Result<()> {
        let TaskState::Stopped(stopped) = self.state.take() else { return Ok(()) };
        if let Some(wait) = self.own.wait_that_is_left() {
            // Frames on a stack that may be somebody's are not worth the risk.
            let gadgets = self.gadgets.filter(|_| self.own_stack);
            let own = &self.own;
            let resume = resume::resume(&own.registers, &own.xstate, own.signal_mask, Some(&wait), gadgets);
            let written = resume
                .bytes
                .as_ref()
                .is_none_or(|(address, bytes)| write_exact(memory, *address, bytes).is_ok());
            // Without room for it below its stack the thread waits its whole time anew.
            if written {
                stopped.set_registers(&resume.registers)?;
            }
        } else {
            // A time-out that can't be written any more is the program's own affair.
            let _ = updated::shorten(memory, &self.own.registers, self.own.passed());
        }
        stopped.detach(0)
    }

    /// Waits for the end of a thread that was killed.
    ///
    /// # Errors
    /// [`code::PTRACE`] if it does not end.
    pub fn wait_for_end(&mut self) -> Result<()> {
        self.injected = None;
        let mut running = match self.state.take() {
            TaskState::Stopped(stopped) => stopped.killed(),
            TaskState::Running(running) => running,
            TaskState::Gone => return Ok(()),
        };
        loop {
            running = match running.wait(Instant::now() + PATIENCE) {
                Ok(Stop::Ended(_)) => return Ok(()),
                Ok(
                    Stop::Interrupted(stopped, _)
                    | Stop::Event(stopped, _)
                    | Stop::Call(stopped)
                    | Stop::Signal(stopped, _),
                ) => stopped.killed(),
                Err(error) if error.code == code::TARGET_DIED => return Ok(()),
                Err(error) => return Err(error),
            };
        }
    }
}

impl Drop for Agent {
    /// Lets the thread go, whatever it is doing: a stub that is still there goes home by itself.
    fn drop(&mut self) {
        let injected = self.injected.take().is_some();
        match self.state.take() {
            TaskState::Running(running) => {
                if running.interrupt().is_ok() {
                    // Dropping a stopped task detaches from it.
                    let _ = running.expect_interruption(Instant::now() + PATIENCE);
                }
            }
            TaskState::Stopped(stopped) if !injected => {
                let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", self.pid));
                self.state = TaskState::Stopped(stopped);
                if let Ok(memory) = memory {
                    let _ = self.release(&memory);
                }
            }
            // As above.
            TaskState::Stopped(_) | TaskState::Gone => {}
        }
    }
}
