//! Taking a stub out of a thread, and letting the thread go.

use super::calls::{RemoteCall, run_to_calls};
use super::{Agent, Foothold, PATIENCE, write_exact};
use crate::error::{Error, Problems, Result, code};
use crate::proc::{maps, read};
use crate::stub::batch::Batch;
use crate::stub::task_state::TaskState;
use crate::sys::process;
use crate::tracee::stack::{self, Room};
use crate::tracee::{Running, Stop, Stopped, gadgets};
use crate::waits::{self, RESTART_NO_HANDLER, resume, updated};
use std::fs::File;
use std::time::Instant;
use vckpt_parasite::protocol;

/// Takes the stubs out of threads, and whatever else of ours is in them, also half of it: they then stand still with
/// their own state, as after [`Agent::prepare`]. Gives the areas, with the IDs of their processes, that are to be
/// [unmapped](Agent::unmap) by a thread that still has its stub.
///
/// # Errors
/// Threads that are gone or do not obey. A stub that can't be taken out goes home by itself when its channel is dropped.
pub fn remove<'process>(
    agents: impl Iterator<Item = (&'process mut Agent, &'process File)>,
) -> (Vec<(i32, u64)>, Problems) {
    let mut problems = Problems::new();
    let mut leaving: Vec<(&mut Agent, &File)> = Vec::new();
    for (agent, memory) in agents {
        // All are asked before any is waited for.
        if agent.has_foothold() && problems.take(agent.interrupt_stub()).is_some() {
            leaving.push((agent, memory));
        }
    }
    leaving.retain_mut(|(agent, _)| problems.take(agent.arrive_if_running()).is_some());
    problems.append(take_away(&mut leaving, Foothold::closing));
    problems.append(take_away(&mut leaving, Foothold::unmapping));
    leaving.retain_mut(|(agent, _)| !agent.away || problems.take(agent.begin_interruption()).is_some());
    let mut areas = Vec::new();
    for (agent, memory) in leaving {
        if agent.away {
            problems.take(agent.end_interruption());
        }
        problems.take(agent.take_frames_back(memory));
        let foothold = std::mem::take(&mut agent.foothold);
        areas.extend(foothold.area.map(|(area, _)| (agent.pid, area)));
    }
    (areas, problems)
}

/// Lets threads make remote calls, side by side, until they have none to make any more.
fn take_away(
    leaving: &mut [(&mut Agent, &File)],
    next: impl Fn(&mut Foothold) -> Option<(i64, [u64; 6])>,
) -> Problems {
    let mut problems = Problems::new();
    loop {
        let mut calls = Vec::new();
        for (agent, _) in leaving.iter_mut().filter(|(agent, _)| agent.away) {
            let Some(gadgets) = agent.gadgets else { continue };
            let Some((number, arguments)) = next(&mut agent.foothold) else { continue };
            let stack = agent.foothold.way_home.map(|(address, _)| address);
            let call = RemoteCall { number, arguments, stack };
            let registers = call.registers(&agent.own.registers, gadgets);
            calls.push((&mut **agent, registers));
        }
        if calls.is_empty() {
            return problems;
        }
        for result in run_to_calls(&mut calls) {
            problems.take(result);
        }
    }
}

impl Foothold {
    /// The call that closes the next descriptor of ours.
    fn closing(&mut self) -> Option<(i64, [u64; 6])> {
        let descriptor = self.descriptors.pop()?;
        Some((libc::SYS_close, [u64::from(descriptor.cast_unsigned()), 0, 0, 0, 0, 0]))
    }

    /// The call that unmaps the area if the thread has made it by itself.
    fn unmapping(&mut self) -> Option<(i64, [u64; 6])> {
        let (area, _) = self.area.take_if(|(_, by_itself)| *by_itself)?;
        Some((libc::SYS_munmap, [area, protocol::AREA_LENGTH as u64, 0, 0, 0, 0]))
    }
}

impl Agent {
    fn has_foothold(&self) -> bool {
        self.away || self.foothold.on_stack.is_some() || self.foothold.area.is_some()
    }

    fn interrupt_stub(&mut self) -> Result<()> {
        match &self.state {
            TaskState::Running(running) => running.interrupt(),
            TaskState::Stopped(_) => Ok(()),
            TaskState::Gone => {
                Err(Error::new(code::INTERNAL, "a task that nobody holds").about(self.subject()))
            }
        }
    }

    fn arrive_if_running(&mut self) -> Result<()> {
        match self.state {
            TaskState::Running(_) => self.arrive(Running::expect_interruption),
            TaskState::Stopped(_) | TaskState::Gone => Ok(()),
        }
    }

    /// Whether the thread has made the area of its stub by itself, and takes it away by itself.
    #[must_use]
    pub fn made_its_area(&self) -> bool {
        self.foothold.area.is_none_or(|(_, by_itself)| by_itself)
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

    /// Puts back what was where the frames on the stack are.
    pub(super) fn take_frames_back(&mut self, memory: &File) -> Result<()> {
        let on_stack = self.foothold.on_stack.take();
        on_stack.map_or(Ok(()), |(address, bytes)| write_exact(memory, address, &bytes))
    }

    /// Sends a thread that stands still to a stop in which the kernel looks at signals and restarts calls when it goes
    /// on.
    fn begin_interruption(&mut self) -> Result<()> {
        self.step(|_, stopped| {
            stopped.interrupt()?;
            Ok(TaskState::Running(stopped.resume(0)?))
        })
    }

    fn end_interruption(&mut self) -> Result<()> {
        self.arrive(Running::expect_interruption)?;
        self.step(|agent, stopped| {
            stopped.set_xstate(&agent.own.xstate)?;
            // The mask before the registers: until it has its own registers, the thread would go home by the frames,
            // which set the mask; afterwards nobody would.
            stopped.set_signal_mask(agent.own.signal_mask)?;
            stopped.set_registers(&agent.own.registers)?;
            Ok(TaskState::Stopped(stopped))
        })?;
        self.away = false;
        Ok(())
    }

    /// Lets the thread go on; if it was in a call that waits for at most some time, with the time that is left.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn release(&mut self, memory: &File) -> Result<()> {
        match self.state.take() {
            TaskState::Gone => Ok(()),
            TaskState::Running(running) => self.let_go_running(running),
            // It could not be put back: the frames take it home.
            TaskState::Stopped(stopped) if self.away => stopped.detach(0),
            TaskState::Stopped(stopped) => self.let_go_on(stopped, memory),
        }
    }

    /// Lets a thread go whose stub could not be taken out, and that goes home by itself or is there already.
    fn let_go_running(&mut self, running: Running) -> Result<()> {
        self.foothold.channel = None;
        running.interrupt()?;
        let stopped = running.expect_interruption(Instant::now() + PATIENCE)?;
        let mut registers = stopped.registers()?;
        let area = self.foothold.area.map_or(0..0, |(area, _)| area..area + protocol::AREA_LENGTH as u64);
        if !area.contains(&registers.rip) && waits::is_interrupted(&registers) {
            registers.rax = RESTART_NO_HANDLER.cast_unsigned();
            stopped.set_registers(&registers)?;
        }
        stopped.detach(0)
    }

    fn let_go_on(&mut self, stopped: Stopped, memory: &File) -> Result<()> {
        let Some(wait) = self.own.wait_that_is_left() else {
            // A time-out that can't be written any more is the program's own affair.
            let _ = updated::shorten(self.tid, &self.own.registers, self.own.passed());
            return stopped.detach(0);
        };
        if self.gadgets.is_none() && resume::needs_frames(&wait) {
            self.look_for_gadgets(memory);
        }
        // Frames on a stack that may be somebody's are not worth the risk.
        let gadgets = self.gadgets.filter(|_| self.room == Some(Room::OwnStack));
        let own = &self.own;
        let resume = resume::resume(&own.registers, &own.xstate, own.signal_mask, Some(&wait), gadgets);
        // Not through the protection of the memory. Without room below its stack the thread waits its time anew.
        let written = resume
            .bytes
            .as_ref()
            .is_none_or(|(address, bytes)| process::write_memory(self.tid, *address, bytes).is_ok());
        if written {
            stopped.set_registers(&resume.registers)?;
        }
        stopped.detach(0)
    }

    /// What an injection would have found out.
    fn look_for_gadgets(&mut self, memory: &File) {
        let text = read::file(self.tid, "maps").unwrap_or_default();
        let maps = maps::parse(&text).unwrap_or_default();
        self.room = Some(stack::below(&maps, &self.own.registers, self.own.xstate.len()));
        self.gadgets = gadgets::find(&maps, memory, &mut gadgets::Cache::new()).ok();
    }

    /// Waits for the end of a thread that was killed.
    ///
    /// # Errors
    /// [`code::PTRACE`] if it does not end.
    pub fn wait_for_end(&mut self) -> Result<()> {
        self.foothold = Foothold::default();
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
        self.foothold.channel = None;
        if matches!(self.state, TaskState::Gone) {
            return;
        }
        let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", self.tid));
        if let Ok(memory) = memory {
            let _ = self.release(&memory);
        }
    }
}
