//! Taking a stub out of a thread, and letting the thread go.

use super::calls::{RemoteCall, run_to_calls};
use super::{Agent, Injected, PATIENCE, write_exact};
use crate::error::{Error, Problems, Result, code};
use crate::proc::{maps, read};
use crate::stub::batch::Batch;
use crate::stub::task_state::TaskState;
use crate::tracee::stack::{self, Room};
use crate::tracee::{Running, Stop, gadgets};
use crate::waits::{resume, updated};
use std::fs::File;
use std::time::Instant;
use vckpt_parasite::protocol;

/// Takes the stubs out of threads, which then stand still with their own state, as after [`Agent::prepare`]. Gives the
/// areas, with the IDs of their processes, that are to be [unmapped](Agent::unmap) by a thread that still has its stub.
///
/// # Errors
/// Threads that are gone or do not obey. A stub that can't be taken out goes home by itself when its channel is dropped.
pub fn remove<'process>(
    agents: impl Iterator<Item = (&'process mut Agent, &'process File)>,
) -> (Vec<(i32, u64)>, Problems) {
    let mut problems = Problems::new();
    let mut leaving: Vec<(&mut Agent, &File, Injected)> = Vec::new();
    for (agent, memory) in agents {
        let Some(injected) = agent.injected.take() else { continue };
        if problems.take(agent.interrupt_stub()).is_some() {
            leaving.push((agent, memory, injected));
        }
    }
    leaving.retain_mut(|(agent, ..)| problems.take(agent.arrive(Running::expect_interruption)).is_some());
    for (number, all) in [(libc::SYS_close, true), (libc::SYS_munmap, false)] {
        let mut calls = Vec::with_capacity(leaving.len());
        for (agent, _, injected) in leaving.iter_mut().filter(|(_, _, injected)| all || injected.by_itself) {
            let Some(gadgets) = agent.gadgets else { continue };
            let registers = injected.leaving_call(number).registers(&agent.own.registers, gadgets);
            calls.push((&mut **agent, registers));
        }
        for result in run_to_calls(&mut calls) {
            problems.take(result);
        }
    }
    for (agent, ..) in &mut leaving {
        problems.take(agent.begin_interruption());
    }
    let mut areas = Vec::new();
    for (agent, memory, injected) in leaving {
        let Injected { way_home, overwritten, area, by_itself, .. } = injected;
        let overwritten = (!overwritten.is_empty()).then_some((way_home.address, overwritten.as_slice()));
        problems.take(agent.end_interruption(overwritten, memory));
        areas.extend((!by_itself).then_some((agent.pid, area)));
    }
    (areas, problems)
}

impl Injected {
    /// Closing the stub's socket, or unmapping its area.
    fn leaving_call(&self, number: i64) -> RemoteCall {
        let mut arguments = [u64::from(self.socket.cast_unsigned()), 0, 0, 0, 0, 0];
        if number == libc::SYS_munmap {
            arguments = [self.area, protocol::AREA_LENGTH as u64, 0, 0, 0, 0];
        }
        RemoteCall { number, arguments, stack: Some(self.way_home.address) }
    }
}

impl Agent {
    fn interrupt_stub(&mut self) -> Result<()> {
        match &self.state {
            TaskState::Running(running) => running.interrupt(),
            TaskState::Stopped(_) | TaskState::Gone => {
                Err(Error::new(code::INTERNAL, "a stub in a task that does not run").about(self.subject()))
            }
        }
    }

    /// Whether the thread has made the area of its stub by itself, and takes it away by itself.
    #[must_use]
    pub fn made_its_area(&self) -> bool {
        self.injected.as_ref().is_some_and(|injected| injected.by_itself)
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

    /// Puts a thread that stands still after a remote call back to its own state, and its memory to what it was.
    pub(super) fn put_back(&mut self, overwritten: Option<(u64, &[u8])>, memory: &File) -> Result<()> {
        self.begin_interruption()?;
        self.end_interruption(overwritten, memory)
    }

    /// Sends a thread that stands still to a stop in which the kernel looks at signals and restarts calls when it goes
    /// on.
    fn begin_interruption(&mut self) -> Result<()> {
        self.step(|_, stopped| {
            stopped.interrupt()?;
            Ok(TaskState::Running(stopped.resume(0)?))
        })
    }

    fn end_interruption(&mut self, overwritten: Option<(u64, &[u8])>, memory: &File) -> Result<()> {
        self.arrive(Running::expect_interruption)?;
        self.step(|agent, stopped| {
            stopped.set_xstate(&agent.own.xstate)?;
            // The mask before the registers: until it has its own registers, the thread would go home by the frames,
            // which set the mask; afterwards nobody would.
            stopped.set_signal_mask(agent.own.signal_mask)?;
            stopped.set_registers(&agent.own.registers)?;
            Ok(TaskState::Stopped(stopped))
        })?;
        overwritten.map_or(Ok(()), |(address, bytes)| write_exact(memory, address, bytes))
    }

    /// Lets the thread go on; if it was in a call that waits for at most some time, with the time that is left.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn release(&mut self, memory: &File) -> Result<()> {
        let TaskState::Stopped(stopped) = self.state.take() else { return Ok(()) };
        if let Some(wait) = self.own.wait_that_is_left() {
            if self.gadgets.is_none() && resume::needs_frames(&wait) {
                self.look_for_gadgets(memory);
            }
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

    /// What an injection would have found out.
    fn look_for_gadgets(&mut self, memory: &File) {
        let text = read::file(self.tid, "maps").unwrap_or_default();
        let maps = maps::parse(&text).unwrap_or_default();
        self.own_stack = stack::below(&maps, &self.own.registers, self.own.xstate.len()) == Room::OwnStack;
        self.gadgets = gadgets::find(&maps, memory, &mut gadgets::Cache::new()).ok();
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
                let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", self.tid));
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
