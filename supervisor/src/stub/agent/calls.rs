//! Remote calls of many threads at the same time.
//!
//! Each step of a remote call is a change from this program to the task and back. On a busy machine each of these may
//! have to wait for a processor, so the threads make their steps side by side, not one after the other.

use super::{Agent, PATIENCE};
use crate::error::{Error, Result, code};
use crate::stub::task_state::TaskState;
use crate::sys::ptrace::Registers;
use crate::tracee::sigframe::Gadgets;
use crate::tracee::{Running, Stopped};
use std::time::Instant;

/// A remote call: number and arguments, and where the stack pointer is meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct RemoteCall {
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
    pub(super) stack: Option<u64>,
}

impl RemoteCall {
    /// The registers with which a thread of these own registers makes it. On the stack lies the way home, so that the
    /// thread goes there by itself when nobody stops it at the exit of the call.
    pub(super) fn registers(&self, home: &Registers, gadgets: Gadgets) -> Registers {
        let mut registers = *home;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            self.arguments;
        registers.rax = self.number.cast_unsigned();
        registers.orig_rax = u64::MAX;
        registers.rip = gadgets.call_and_return;
        registers.rsp = self.stack.unwrap_or(home.rsp);
        registers
    }
}

impl Agent {
    /// Makes a step with the stopped thread. If that fails, the thread is nobody's any more.
    pub(super) fn step(&mut self, step: impl FnOnce(&Self, Stopped) -> Result<TaskState>) -> Result<()> {
        match self.state.take() {
            TaskState::Stopped(stopped) => {
                self.state = step(self, stopped).map_err(|error| error.about(self.subject()))?;
                Ok(())
            }
            other @ (TaskState::Running(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a task does not stand still").about(self.subject()))
            }
        }
    }

    /// Waits with the running thread for its next stop. If that fails, the thread is nobody's any more.
    pub(super) fn arrive(&mut self, wait: impl FnOnce(Running, Instant) -> Result<Stopped>) -> Result<()> {
        match self.state.take() {
            TaskState::Running(running) => {
                let stopped = wait(running, Instant::now() + PATIENCE);
                self.state = TaskState::Stopped(stopped.map_err(|error| error.about(self.subject()))?);
                Ok(())
            }
            other @ (TaskState::Stopped(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a task does not run").about(self.subject()))
            }
        }
    }

    fn result(&self) -> Result<i64> {
        match &self.state {
            TaskState::Stopped(stopped) => Ok(stopped.registers()?.rax.cast_signed()),
            TaskState::Running(_) | TaskState::Gone => {
                Err(Error::new(code::INTERNAL, "a task does not stand still").about(self.subject()))
            }
        }
    }
}

/// Lets threads run from these registers, with every signal blocked, to the exit of their next call. Gives what each
/// call returned; the threads stand still then.
pub(super) fn run_to_calls(agents: &mut [(&mut Agent, Registers)]) -> Vec<Result<i64>> {
    let begun: Vec<Result<()>> = agents
        .iter_mut()
        .map(|(agent, registers)| {
            agent.away = true;
            agent.step(|_, stopped| {
                // The mask second: with its own registers and every signal blocked the thread would not go home.
                stopped.set_registers(registers)?;
                stopped.set_signal_mask(u64::MAX)?;
                Ok(TaskState::Running(stopped.resume_to_call()?))
            })
        })
        .collect();
    let entered: Vec<Result<()>> = agents
        .iter_mut()
        .zip(begun)
        .map(|((agent, _), begun)| {
            begun?;
            agent.arrive(Running::expect_call)?;
            agent.step(|_, stopped| Ok(TaskState::Running(stopped.resume_to_call()?)))
        })
        .collect();
    agents
        .iter_mut()
        .zip(entered)
        .map(|((agent, _), entered)| {
            entered?;
            agent.arrive(Running::expect_call)?;
            agent.result()
        })
        .collect()
}
